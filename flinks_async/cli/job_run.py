"""One run of a job, as the command line does it: signals, progress, and the exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from attrs import define, field

from ..bulk import Executor, InputError, Job, Result, Rules
from ..errors import FlinksError
from .console import tell
from .exit_codes import Exit
from .instances import Clients
from .job_display import DisplayState, Ended, JobDisplay
from .progress import repeated
from .run import StopSignals
from .usage import exit_code_of, message_of

OpenJob = Callable[[Callable[[int, int], None]], Job]


class _Interrupted(Exception):
    """A signal came while the input was read."""


@define(eq=False)
class JobRun:
    """One run. `go()` may be awaited once.

    Args:
        open_job: opens the job; it gets a function to tell how far the input was read. It is called in a thread.
        clients: to fetch with. They are closed at the end.
        rules: when to stop.
        executor: where to fetch.
        display: where progress and the summary go.
    """

    open_job: OpenJob
    clients: Clients
    rules: Rules
    executor: Executor
    display: JobDisplay
    _stop: StopSignals = field(factory=StopSignals, init=False)
    _job: Job | None = field(default=None, init=False)
    _read: tuple[int, int] | None = field(default=None, init=False)
    _running: bool = field(default=False, init=False)

    async def go(self) -> Exit:
        """Opens the job and runs it, and tells how that ended. The first signal lets it end, the second one ends it at once.

        If it cannot be opened, or an error ends it, what was committed stays.
        """
        error: FlinksError | None = None
        with self._stop.on_signals(self._heard):
            try:
                ended = await self._open_and_run()
            except (_Interrupted, asyncio.CancelledError):
                if self._stop.exit is None:  # somebody else's
                    raise
                ended = self._ended("interrupted", self._stop.exit.name, self._stop.exit)
            except FlinksError as failure:
                error = failure
                ended = Ended("failed", f"{type(error).__name__}: {message_of(error)}", self._code_of(error), self._job)
            except Exception as failure:
                reason = f"unexpected {type(failure).__name__}"
                self.display.end(Ended("failed", reason, Exit.UNEXPECTED, self._job))
                raise
            finally:
                self.display.close()
                if self._job is not None:
                    self._job.close()
        self.display.end(ended)
        if error is not None:
            tell(error)
        return ended.exit

    def _code_of(self, error: FlinksError) -> Exit:
        # What is wrong with the tokens before anything is sent is a matter of the command; later it broke off.
        return Exit.OUTPUT if self._running and isinstance(error, InputError) else exit_code_of(error)

    async def _open_and_run(self) -> Ended:
        async with repeated(self.display.interval, self._show):
            self._job = job = await asyncio.to_thread(self.open_job, self._on_scan)
            async with self.clients.first:
                if self._stop.requested.is_set():
                    raise _Interrupted
                self._running = True
                result = await job.run(self.clients.for_job, self.rules, executor=self.executor)
        return self._how_it_ended(result)

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
        return Ended(state, reason, code, self._job, totals, None if result is None else result.progress)

    def _on_scan(self, read: int, size: int) -> None:
        """In the thread that opens the job."""
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
            return
        progress = None if self._job is None else self._job.progress()
        if self._job is not None and progress is not None:
            self._job.stop(code.name)
            flying = f"{progress.in_flight:,} in flight are finished"
            self.display.note(f"Stopping: no more tokens are taken, {flying}. Once more stops at once.")
