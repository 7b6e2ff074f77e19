"""One run of a job, as the command line does it: signals, progress, exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from attrs import define, field

from ..bulk import Executor, InputError, InputFile, Job, Result, Rules
from ..bulk.files import DUPLICATES, FAILED
from ..bulk.inputs import STDIN
from ..bulk.records import from_json
from ..checks import counted
from ..errors import FlinksError
from . import Exit
from .access import Clients
from .console import OutputError, ReaderGone, exit_code_of, report_error, say, text_of
from .display import RESUME, Display, DisplayState, Ended, repeated
from .secret_input import in_daemon_thread
from .signals import StopSignals

OnScan = Callable[[int, int], None]


class _Interrupted(Exception):
    """A signal came before anything was sent."""


@define(eq=False)
class JobRun:
    """One run. `go()` may be awaited once.

    Args:
        open_source: opens the input, or reads it if it is standard input; None if the job knows its input. It is called in a
            daemon thread, so that a pipe without data does not keep the process alive.
        open_job: opens the job; it gets the input and a function to report how much of it was read. It is called in a thread.
        clients: to fetch with. They are closed at the end.
        rules: when to stop.
        executor: where to fetch.
        display: shows progress and summary.
        resume: tells the user how to fetch what is left.
        show_rows: show failed and duplicate lines, because the job's directory will be deleted.
        abandon: ends what blocks the run when the user interrupts it for the second time.
    """

    open_job: Callable[[InputFile | None, OnScan], Job]
    clients: Clients
    rules: Rules
    executor: Executor
    display: Display
    open_source: Callable[[], InputFile] | None = None
    resume: str = RESUME
    show_rows: bool = False
    abandon: Callable[[], object] = lambda: None
    _stop: StopSignals = field(factory=StopSignals, init=False)
    _job: Job | None = field(default=None, init=False)
    _read: tuple[int, int] | None = field(default=None, init=False)
    _running: bool = field(default=False, init=False)

    async def go(self) -> Exit:
        """Opens the job, runs it and shows how it ended. Committed answers are kept, however the run ends."""
        error: FlinksError | OutputError | None = None
        with self._stop.on_signals(self._heard):
            try:
                ended = await self._open_and_run()
            except (_Interrupted, asyncio.CancelledError):
                if self._stop.exit is None:  # cancelled by somebody else
                    raise
                ended = self._ended("interrupted", self._stop.exit.name, self._stop.exit)
            except ReaderGone:
                if self._stop.exit is None:
                    return Exit.OUTPUT  # without a message, like other programs before `| head`
                ended = self._ended("interrupted", self._stop.exit.name, self._stop.exit)
            except OutputError as failure:
                error = failure
                ended = Ended("failed", str(error), Exit.OUTPUT, self._job)
            except FlinksError as failure:
                error = failure
                ended = Ended("failed", text_of(error), self._code_of(error), self._job)
            except Exception as failure:
                reason = f"unexpected {type(failure).__name__}"
                self.display.end(Ended("failed", reason, Exit.UNEXPECTED, self._job))
                raise
            finally:
                self.display.close()
                if self._job is not None:
                    self._job.close()
        if self.show_rows and self._job is not None:
            self._show_rows(self._job)
        self.display.end(ended)
        if isinstance(error, FlinksError):
            report_error(error)
        elif error is not None:
            say(f"Error: {error}")
        return ended.exit

    def _code_of(self, error: FlinksError) -> Exit:
        # A problem of the input before anything is sent is wrong usage; during the run the input was changed or cut short.
        return Exit.OUTPUT if self._running and isinstance(error, InputError) else exit_code_of(error)

    async def _open_and_run(self) -> Ended:
        async with repeated(self.display.interval, self._show), self.clients.first:
            source = None if self.open_source is None else await self._unless_stopped(self.open_source)
            self._job = job = await asyncio.to_thread(self.open_job, source, self._on_scan)
            if self._stop.requested.is_set():
                raise _Interrupted
            self._warn_of_nothing(job)
            self._running = True
            result = await job.run(self.clients.for_job, self.rules, executor=self.executor)
        return self._how_it_ended(result)

    async def _unless_stopped(self, function: Callable[[], InputFile]) -> InputFile:
        opening = asyncio.ensure_future(in_daemon_thread(function))
        stopped = asyncio.ensure_future(self._stop.requested.wait())
        try:
            await asyncio.wait({opening, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                raise _Interrupted
            return opening.result()
        finally:
            opening.cancel()
            stopped.cancel()

    def _warn_of_nothing(self, job: Job) -> None:
        if not job.scanned.tokens and not job.totals.invalid:
            name = "Standard input" if job.manifest.path == STDIN else job.manifest.path
            self.display.warn(f"{name} holds no tokens, so there is nothing to fetch.")

    def _how_it_ended(self, result: Result) -> Ended:
        totals = result.totals
        if result.state == "complete":
            code = Exit.FAILED if totals.failed or totals.invalid else Exit.OK
        elif result.state == "refused":
            code = Exit.REFUSED
        elif self._stop.exit is not None:
            return self._ended("interrupted", self._stop.exit.name, self._stop.exit, result)
        else:
            code = Exit.STOPPED
        return self._ended(result.state, result.reason, code, result)

    def _ended(self, state: DisplayState, reason: str, code: Exit, result: Result | None = None) -> Ended:
        totals = None if self._job is None else self._job.totals
        progress = None if result is None else result.progress
        return Ended(state, reason, code, self._job, totals, progress, self.resume)

    def _show_rows(self, job: Job) -> None:
        for name, kind in ((FAILED, "failed"), (DUPLICATES, "duplicate")):
            path = job.directory / name
            if path.exists():
                with path.open("rb") as lines:
                    for line in lines:
                        self.display.row(kind, from_json(line))

    def _on_scan(self, read: int, size: int) -> None:
        """Called in the thread that opens the job."""
        if self._stop.requested.is_set():
            raise _Interrupted
        self._read = (read, size)

    def _show(self) -> None:
        progress = None if self._job is None else self._job.progress()
        if progress is not None:
            self.display.progress(progress)
        elif self._job is None and self._read is not None:
            self.display.planning(*self._read)

    def _heard(self, code: Exit, again: bool) -> None:
        if again:
            self.display.note("Stopping at once.")
            self.abandon()
            return
        progress = None if self._job is None else self._job.progress()
        if self._job is not None and progress is not None:
            self._job.stop(code.name)
            in_flight = progress.in_flight
            waiting = f"{counted(in_flight, 'request')} in flight can finish" if in_flight else "nothing is in flight"
            self.display.note(f"Stopping: no more tokens are taken, {waiting}. A second signal stops at once.")
