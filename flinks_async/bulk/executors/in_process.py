"""The executor of one process: shards are fetched in the job's own event loop."""

from __future__ import annotations

from ...clock import Clock, SystemClock
from ..fetching import Fetcher
from ..progress import Counters
from ..records import RunState
from ..thread import Thread
from .protocol import NextTask, TakeFinished, Work
from .shard_loader import ShardLoader


class InProcess:
    """Fetches in the running event loop, with the clients of the job.

    Args:
        clock: for tests.
        threads: for tests; for writing and for reading.
    """

    def __init__(self, *, clock: Clock | None = None, threads: tuple[Thread, Thread] | None = None) -> None:
        self._clock = clock or SystemClock()
        self._threads = threads

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> InProcessExecution:
        writing, reading = self._threads or (Thread("flinks-async-spool"), Thread("flinks-async-input"))
        return InProcessExecution(work, tasks, finished, self._clock, writing, reading)


class InProcessExecution:
    """An `Execution`: a fetcher and the loader of its shards."""

    def __init__(
        self, work: Work, tasks: NextTask, finished: TakeFinished, clock: Clock, writing: Thread, reading: Thread
    ) -> None:
        self._writing = writing
        self._loader = ShardLoader(tasks, work.source, work.key, reading)
        self._fetcher = Fetcher(
            self._loader.load, finished, work.clients, work.key, work.spools, work.compression, work.rules,
            secret_is_good=work.secret_is_good, clock=clock, writing=writing,
        )  # fmt: skip

    @property
    def stopped(self) -> tuple[RunState, str] | None:
        return self._fetcher.stopped

    async def go(self) -> None:
        try:
            await self._fetcher.go()
        finally:
            self._loader.close()
            self._writing.close()

    def stop(self, reason: str, state: RunState = "stopped") -> None:
        self._fetcher.stop(reason, state)

    def break_off(self, error: BaseException) -> None:
        self._fetcher.break_off(error)

    def counters(self) -> Counters:
        return self._fetcher.counters()
