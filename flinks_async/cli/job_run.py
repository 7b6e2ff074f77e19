"""One run of a job, as the command line does it: options, signals, progress, exit code."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from attrs import define, field, frozen

from ..bulk import Executor, InputError, InputFile, Job, Result, Rules
from ..bulk.files import DUPLICATES, FAILED
from ..bulk.inputs import STDIN
from ..bulk.records import from_json
from ..checks import counted
from ..config import Settings
from ..runtime import fast_loop, handled_signals, in_daemon_thread, repeated
from . import Exit
from .access import Access, Clients, access_options, instances_option, secret_references
from .console import OutputError, ReaderGone, described, text_of
from .display import RESUME, Display, DisplayState, Ended
from .options import ProgressKind, Workers, grouped, progress_options, settings_options, stop_options, workers_options

T = TypeVar("T")

OnScan = Callable[[int, int], None]


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """`asyncio.run(main())` on the fastest loop. `main` is called when there is a loop, so an interruption before that
    leaves no coroutine that was never awaited.
    """
    # A full garbage collection walks every object and stops the loop meanwhile. Modules and classes never become garbage, so
    # they are excluded: stalls of 15 to 40 ms become 3 ms (benchmarks/stall.py).
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            return runner.run(main())
    finally:
        gc.unfreeze()


@frozen
class RunOptions:
    """The options of every command that runs a job."""

    rules: Rules
    workers: Workers
    instances: str | None
    settings: Settings
    progress: ProgressKind
    access: Access

    def executor(self) -> Executor:
        """Where to fetch. Raises UsageError or ConfigError if the options do not allow it."""
        return self.workers.executor(lambda: secret_references(self.access, self.instances))


run_options = grouped(
    "options",
    RunOptions,
    stop_options,
    workers_options,
    instances_option,
    settings_options,
    progress_options,
    access_options,
)

_EXITS: Final = {"SIGINT": Exit.SIGINT, "SIGBREAK": Exit.SIGINT, "SIGTERM": Exit.SIGTERM, "SIGHUP": Exit.SIGHUP}

_BROKEN_OFF: Final = (
    "The run ended early because of an error. Committed answers are kept. Fix the cause and run the same command:"
)


class _Interrupted(Exception):
    """A signal came before anything was sent."""


@define(eq=False)
class JobRun:
    """One run. `go()` may be awaited once.

    Args:
        open_job: opens the job; it gets the input and a function to report how much of it was read. It is called in a thread.
        clients: to fetch with. They are closed at the end.
        rules: when to stop.
        executor: where to fetch.
        display: shows progress and summary.
        open_source: opens the input, or reads it if it is standard input; None if the job knows its input. It is called in a
            daemon thread, so that a pipe without data does not keep the process alive.
        resume: tells the user how to fetch what is left.
        show_rows: show failed and duplicate lines, because the job's directory will be deleted.
        abandon: ends what blocks the run when the user interrupts it for the second time.

    Attributes:
        ended: how the run ended, known after `go()`.
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
    ended: Ended | None = field(default=None, init=False)
    _stop: asyncio.Event = field(factory=asyncio.Event, init=False)
    _signal: Exit | None = field(default=None, init=False)
    _job: Job | None = field(default=None, init=False)
    _read: tuple[int, int] | None = field(default=None, init=False)

    async def go(self) -> Exit:
        """Opens the job, runs it and shows how it ended. Committed answers are kept, however the run ends."""
        task = asyncio.current_task()
        assert task is not None
        with handled_signals(lambda name: self._on_signal(_EXITS[name], task), *_EXITS):
            try:
                ended = await self._open_and_run()
            except (_Interrupted, asyncio.CancelledError, ReaderGone):
                if self._signal is None:  # cancelled by somebody else, or the reader of the output went away
                    raise
                ended = self._ended("interrupted", self._signal.name, self._signal)
            except Exception as error:
                resumable = self._job is not None and not self.show_rows
                if resumable and described(error)[1] in (Exit.OUTPUT, Exit.STOPPED):
                    error.add_note(_BROKEN_OFF)
                self._show_rows()
                raise
            finally:
                self.display.close()
                if self._job is not None:
                    self._job.close()
        self._show_rows()
        self.ended = ended
        self.display.end(ended)
        return ended.exit

    async def _open_and_run(self) -> Ended:
        async with repeated(self.display.interval, self._show), self.clients.first:
            source = None if self.open_source is None else await self._unless_stopped(self.open_source)
            self._job = job = await asyncio.to_thread(self.open_job, source, self._on_scan)
            if self._stop.is_set():
                raise _Interrupted
            if not job.scanned.tokens and not job.totals.invalid:
                name = "Standard input" if job.manifest.path == STDIN else job.manifest.path
                self.display.warn(f"{name} holds no tokens, so there is nothing to fetch.")
            try:
                result = await job.run(self.clients.for_job, self.rules, executor=self.executor)
            except InputError as error:  # the input was changed or cut short during the run
                raise OutputError(text_of(error)) from error
        return self._how_it_ended(result)

    async def _unless_stopped(self, function: Callable[[], InputFile]) -> InputFile:
        opening = asyncio.ensure_future(in_daemon_thread(function))
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({opening, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                raise _Interrupted
            return opening.result()
        finally:
            opening.cancel()
            stopped.cancel()

    def _how_it_ended(self, result: Result) -> Ended:
        if result.state == "complete":
            code = Exit.FAILED if result.totals.failed or result.totals.invalid else Exit.OK
        elif result.state == "refused":
            code = Exit.REFUSED
        elif self._signal is not None:
            return self._ended("interrupted", self._signal.name, self._signal, result)
        else:
            code = Exit.STOPPED
        return self._ended(result.state, result.reason, code, result)

    def _ended(self, state: DisplayState, reason: str, code: Exit, result: Result | None = None) -> Ended:
        totals = None if self._job is None else self._job.totals
        progress = None if result is None else result.progress
        return Ended(state, reason, code, self._job, totals, progress, self.resume)

    def _show_rows(self) -> None:
        for name, kind in ((FAILED, "failed"), (DUPLICATES, "duplicate")):
            if self.show_rows and self._job is not None and (path := self._job.directory / name).exists():
                with path.open("rb") as lines:
                    for line in lines:
                        self.display.row(kind, from_json(line))

    def _on_scan(self, read: int, size: int) -> None:
        """Called in the thread that opens the job."""
        if self._stop.is_set():
            raise _Interrupted
        self._read = (read, size)

    def _show(self) -> None:
        progress = None if self._job is None else self._job.progress()
        if progress is not None:
            self.display.progress(progress)
        elif self._job is None and self._read is not None:
            self.display.planning(*self._read)

    def _on_signal(self, code: Exit, task: asyncio.Task[Any]) -> None:
        """The first signal stops the run, the second cancels it."""
        again, self._signal = self._signal is not None, self._signal or code
        self._stop.set()
        if again:
            self.display.note("Stopping at once.")
            self.abandon()
            task.cancel()
        elif self._job is not None and (progress := self._job.progress()) is not None:
            self._job.stop(code.name)
            in_flight = progress.in_flight
            waiting = f"{counted(in_flight, 'request')} in flight can finish" if in_flight else "nothing is in flight"
            self.display.note(f"Stopping: no more tokens are taken, {waiting}. A second signal stops at once.")
