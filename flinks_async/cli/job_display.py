"""How a run of a job is shown on standard error: for people, or for machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, Protocol

import click
import msgspec
from attrs import frozen

from ..bulk import Job, Progress, Totals
from ..errors import FlinksError
from .console import say
from .exit_codes import Exit
from .job_summary import summary
from .metrics import duration
from .options import ProgressKind
from .progress import Display, View, choose_display, joined
from .usage import exit_code_of

DisplayState = Literal["complete", "stopped", "refused", "interrupted", "failed"]

_JSON_EVERY: Final = 1.0
_NEVER: Final = 3600.0


@frozen
class Ended:
    """How a run ended.

    Attributes:
        state: `failed` if an error ended it.
        reason: in words; empty if it is complete.
        exit: code of the process.
        job: that it was a run of; None if it could not be opened.
        totals: of the job.
        progress: the last figures of the run, if anything was fetched.
    """

    state: DisplayState
    reason: str
    exit: Exit
    job: Job | None = None
    totals: Totals | None = None
    progress: Progress | None = None


class JobDisplay(Protocol):
    """A way to show a run.

    Attributes:
        interval: seconds between two calls of `planning` or `progress`.
    """

    interval: float

    def planning(self, read: int, size: int) -> None:
        """So many bytes of the input were read."""
        ...

    def progress(self, progress: Progress) -> None: ...

    def note(self, text: str) -> None:
        """Something happened."""
        ...

    def warn(self, text: str) -> None:
        """Something is not as it was asked for."""
        ...

    def close(self) -> None:
        """No more of the above. May be called more than once."""
        ...

    def end(self, ended: Ended) -> None:
        """The last words."""
        ...


def choose_job_display(kind: ProgressKind) -> JobDisplay:
    if kind == "json":
        return JSONLines()
    return ForPeople(choose_display(kind))


@contextmanager
def told(kind: ProgressKind) -> Iterator[None]:
    """For what comes before a run: machines are told of an error there as of one that ended the run."""
    try:
        yield
    except (click.UsageError, FlinksError) as error:
        if kind == "json":
            if isinstance(error, click.UsageError):
                ended = Ended("failed", error.format_message(), Exit.USAGE)
            else:
                ended = Ended("failed", f"{type(error).__name__}: {error}", exit_code_of(error))
            JSONLines().end(ended)
        raise


class ForPeople:
    """A bar or lines, and a summary at the end."""

    def __init__(self, display: Display | None) -> None:
        self._display = display
        self.interval = _NEVER if display is None else display.interval

    def planning(self, read: int, size: int) -> None:
        if self._display is not None:
            self._display.show(View("reading the tokens", share=read / size if size else None, of="read"))

    def progress(self, progress: Progress) -> None:
        if self._display is not None:
            self._display.show(view(progress))

    def note(self, text: str) -> None:
        if self._display is not None:
            say(text)

    def warn(self, text: str) -> None:
        say(text)

    def close(self) -> None:
        if self._display is not None:
            self._display.close()

    def end(self, ended: Ended) -> None:
        self.close()
        if ended.job is None:
            if ended.state == "interrupted":
                say("Interrupted before anything was fetched.")
        elif ended.totals is not None:
            say(summary(ended.state, ended.reason, ended.job, ended.totals, ended.progress))
        elif ended.exit in (Exit.OUTPUT, Exit.STOPPED):
            say("Broken off. What was committed stays; once this is put right, the same command goes on:")


def view(progress: Progress) -> View:
    """The figures in words."""
    stopping = progress.phase == "draining"
    return View(
        joined(
            f"{progress.done:,} of {progress.total:,} done",
            f"{progress.rate:,.0f}/s",
            "stopping" if stopping else f"{duration(progress.eta)} left" if progress.eta is not None else "",
        ),
        joined(
            f"{progress.fetched:,} ok",
            f"{progress.failed:,} failed",
            f"{progress.retries:,} retried",
            f"{progress.throttled:,} throttled" if progress.throttled else "",
            f"p50 {duration(progress.p50)}, p95 {duration(progress.p95)}" if progress.p50 and progress.p95 else "",
            f"{progress.in_flight:,} of {progress.limit:,} at once",
            f"held back for {duration(progress.held_back)}" if progress.held_back else "",
        ),
        progress.done / progress.total if progress.total else None,
    )


class JSONLines:
    """One object a line, as docs/command-line.md has them."""

    interval = _JSON_EVERY

    def planning(self, read: int, size: int) -> None:
        _say("planning", read=read, size=size)

    def progress(self, progress: Progress) -> None:
        _say("progress", **progress.to_dict())

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        _say("warning", text=text)

    def close(self) -> None:
        pass

    def end(self, ended: Ended) -> None:
        _say(
            "end",
            state=ended.state,
            reason=ended.reason,
            exit_code=int(ended.exit),
            totals=None if ended.totals is None else ended.totals.to_dict(),
            run=None if ended.progress is None else ended.progress.to_dict(),
        )


def _say(event: str, **values: Any) -> None:
    say(msgspec.json.encode({"event": event, **values}).decode())
