"""The executor of one process, and the loader of shards that worker processes use too.

Shards are fetched in the job's own event loop. The next shard is read while the current one is fetched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from attrs import evolve

from ...clock import Clock, SystemClock
from ...config import Adaptive, Limits
from ...errors import ConfigError
from ..errors import InputChangedError
from ..fetching import Fetcher, Loaded
from ..files import allow_open_files
from ..inputs import InputFile, ShardReader, Token
from ..outcome import JobLog
from ..records import Counters, RunState
from ..rules import Rules
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


FILES: Final = 32
"""Descriptors in reserve beside those of connections and spools: for the store, the ledger, the input and host names."""


def within_open_files(limits: Sequence[Limits], rules: Rules, log: JobLog | None) -> Sequence[Limits]:
    """The limits of a process's clients, lowered where connections and spools would exceed its limit of open files.

    Each client gets its share of the connections, because idle ones stay open for a while. The log tells of it.

    Raises:
        ConfigError: the process may not even open one connection for each client.
    """
    most = [min(one.most_at_once, rules.concurrency or one.most_at_once) for one in limits]
    wanted, beside = sum(most), rules.open_shards + FILES
    allowed = allow_open_files(wanted + beside)
    room = allowed - beside
    if room >= wanted:
        return limits
    advice = "Raise the limit of open files (ulimit -n), or lower concurrency and open_shards"
    if room < len(limits):
        raise ConfigError(
            f"a run needs at least {beside + len(limits):,} more open files ({rules.open_shards:,} for shards under way), and "
            f"this process may open {allowed:,} more. {advice}"
        )
    if log is not None:
        log.warning(
            "at most %d requests are sent at once, not %d, because this process may open only %d more files. %s",
            room, wanted, allowed, advice,
        )  # fmt: skip
    return [_lowered(one, max(1, room * count // wanted)) for one, count in zip(limits, most, strict=True)]


def _lowered(limits: Limits, most: int) -> Limits:
    before = limits.concurrency
    if not isinstance(before, Adaptive):
        return evolve(limits, concurrency=min(before, most))
    bounds = {name: min(getattr(before, name), most) for name in ("minimum", "initial", "maximum")}
    return evolve(limits, concurrency=evolve(before, **bounds))


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
        before = list(dict.fromkeys(work.clients.values()))
        limits = [client.settings.limits for client in before]
        within = within_open_files(limits, work.rules, work.log)
        if within is not limits:
            changed = {c: c.with_options(limits=one) for c, one in zip(before, within, strict=True)}
            work = evolve(work, clients={name: changed[client] for name, client in work.clients.items()})
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
