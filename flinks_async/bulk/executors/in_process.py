"""The executor of one process, and the loader of shards that worker processes use too.

Shards are fetched in the job's own event loop. The next shard is read while the current one is fetched.
"""

from __future__ import annotations

import asyncio

from ...clock import Clock, SystemClock
from ..errors import InputChangedError
from ..fetching import Fetcher, Loaded
from ..inputs import InputFile, ShardReader, Token
from ..records import Counters, RunState
from ..thread import Thread
from .protocol import NextTask, TakeFinished, Task, Work


class ShardLoader:
    """Reads the tokens of shards, one shard ahead.

    Args:
        tasks: returns the next shard, or None.
        source: the file of tokens.
        key: of the digests of shards.
        reading: the thread for blocking work; it is closed with this object.
    """

    def __init__(self, tasks: NextTask, source: InputFile, key: bytes, reading: Thread) -> None:
        self._tasks = tasks
        self._source = source
        self._key = key
        self._reading = reading
        self._reader: ShardReader | None = None
        self._ahead: asyncio.Future[Loaded | None] | None = None

    async def load(self) -> Loaded | None:
        """The next shard with its tokens, or None.

        Raises:
            InputError: the file of tokens is gone, or has changed.
        """
        loaded = await (self._ahead or self._next())
        self._ahead = None if loaded is None else asyncio.ensure_future(self._next())
        return loaded

    def close(self) -> None:
        """Stops reading and closes the file."""
        if self._ahead is not None and not self._ahead.cancel() and not self._ahead.cancelled():
            self._ahead.exception()  # retrieved, so that asyncio does not warn
        self._reading.close()
        if self._reader is not None:
            self._reader.close()

    async def _next(self) -> Loaded | None:
        task = await self._tasks()
        return None if task is None else await self._reading.do(self._read, task)

    def _read(self, task: Task) -> Loaded:
        """Runs in the reading thread."""
        if self._reader is None:
            self._reader = ShardReader(self._source, self._key)
        return task.shard, read_tokens(task, self._reader)


def read_tokens(task: Task, reader: ShardReader) -> list[Token]:
    """The tokens of a task. Blocks.

    Raises:
        InputChangedError: the file does not hold the tokens that it held when the job was started.
        InputError: it cannot be read.
    """
    shard, tokens = task.shard, []
    only = None if shard.only is None else set(shard.only)
    for cut in task.cuts:
        for token in reader.read(cut):
            line = token.line
            if shard.first <= line <= shard.last and line not in task.duplicates and (only is None or line in only):
                tokens.append(token)
    if len(tokens) != shard.tokens:
        raise InputChangedError(
            f"lines {shard.first} to {shard.last} of the file of tokens have {len(tokens)} tokens, "
            f"and had {shard.tokens} when the job was started"
        )
    return tokens


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
