"""The run behind `fetch`: tokens of a file through one client into files."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from pathlib import Path

from attrs import define, field

from ..bulk import Rules
from ..bulk.rules import doubt_about, meets_every_token, reason_for_all, reason_for_row
from ..client import FlinksClient
from ..errors import FlinksError
from ..fanout import Fetched
from .console import say
from .exit_codes import Exit
from .metrics import Metrics
from .options import ProgressKind
from .outcome_writer import Books, Counts
from .output import OutputError, Stdout
from .outputs import Outputs
from .progress import Watched, choose_display, shown
from .run import StopSignals
from .source import tokens_of
from .token_files import TokenFile


@define(eq=False)
class FetchRun:
    """One run.

    Attributes:
        concurrency: None for the settings' own.
        ordered: answers in the order of the file.
        refused_after: tokens in a row that stop the run with an error which may be that of all.
        progress: how it is shown.
        exit: how it ended.
        parts: files that were left behind unfinished.
        seconds: how long it took.
        reason: why it stopped by itself; empty if it did not.
    """

    client: FlinksClient
    file: TokenFile
    outputs: Outputs
    metrics: Metrics
    concurrency: int | None = None
    ordered: bool = False
    refused_after: int = Rules().refused_after
    progress: ProgressKind = "auto"
    books: Books = field(init=False)
    exit: Exit = field(default=Exit.OK, init=False)
    parts: list[Path] = field(factory=list, init=False)
    seconds: float = field(default=0.0, init=False)
    reason: str = field(default="", init=False)
    _stop: StopSignals = field(factory=StopSignals, init=False)
    _refused: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.books = Books(self.outputs.out, self.outputs.failed, self.outputs.skipped)

    @property
    def counts(self) -> Counts:
        return self.books.counts

    async def go(self) -> Exit:
        """Fetches, and leaves every file either whole under its name or as a part. The outputs must be open.

        Raises:
            OutputError: a file could not be written; its part was left behind.
        """
        started = time.monotonic()
        try:
            with self._stop.on_signals(self._heard):
                await self._fetch_all()
                self.exit = self._how_it_ended()
                if self.exit in (Exit.OK, Exit.FAILED) or (self.exit is Exit.REFUSED and not self._refused):
                    self.outputs.finish()
        except asyncio.CancelledError:
            if self._stop.exit is None:  # somebody else's
                raise
            self.exit = self._stop.exit
        except OutputError:
            self.exit = Exit.OUTPUT
            raise
        finally:
            self.parts = self.outputs.abandon()
            self.seconds = time.monotonic() - started
        return self.exit

    async def _fetch_all(self) -> None:
        tokens = tokens_of(self.file, self.books, self._stop.requested)
        watched = Watched(self.counts, self.metrics, self.file)
        display = choose_display(self.progress, beside_answers=isinstance(self.outputs.out, Stdout))
        async with self.client, shown(watched.view, display):
            outcomes = self.client.partner_access_many(tokens, concurrency=self.concurrency, ordered=self.ordered)
            async with aclosing(outcomes):
                async for outcome in outcomes:
                    if isinstance(outcome, Fetched):
                        await self.books.fetched(outcome.key, outcome.response)
                    else:
                        await self.books.failed(outcome.key, outcome.error)
                        self._stop_if_all_fail(outcome.error)

    def _stop_if_all_fail(self, error: FlinksError) -> None:
        if self._stop.requested.is_set():
            return
        if meets_every_token(error):
            self.reason = reason_for_all(error, None)
        elif (kind := doubt_about(error)) is not None and self.books.in_a_row[kind] >= self.refused_after:
            self._refused = kind == "refused"
            self.reason = reason_for_row(error, None, self.books.in_a_row[kind])
        if self.reason:
            self._stop.request()

    def _how_it_ended(self) -> Exit:
        if self._stop.exit is not None:
            return self._stop.exit
        if self.file.error is not None:
            return Exit.OUTPUT
        if self._refused or 0 < self.counts.done == self.books.in_a_row["refused"]:
            return Exit.REFUSED
        if self.reason:
            return Exit.STOPPED
        return Exit.FAILED if self.counts.failed or self.counts.invalid else Exit.OK

    def _heard(self, code: Exit, again: bool) -> None:
        if self.progress == "none":
            return
        if again:
            say("Stopping at once.")
        else:
            count = self.counts.unfinished
            say(f"Stopping: no more tokens are taken, {count:,} in flight are finished. Once more stops at once.")
