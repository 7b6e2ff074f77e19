"""The interface of executors, which map shards to files of answers, and the executor of one process.

An executor does not know the ledger. Shards reach it as rows of the input, never as tokens, and answers go back as files, or
as receipts of a shared store; each shard is handed over once. A shard that is lost on the way is fetched again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from logging import Logger
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from attrs import evolve, field, frozen

from ...client import FlinksClient
from ...clock import Clock, SystemClock
from ...config import Adaptive, Limits, Settings, ShareQuota
from ...errors import ConfigError
from ..compression import Compression
from ..counters import Counters, waits
from ..errors import InputChangedError, UnfitAnswerError
from ..fetching import Fetcher, Loaded, Thread
from ..files import allow_open_files, cannot_write
from ..inputs import InputFile, ShardReader, Token
from ..outcome import JobLog
from ..records import Failure, Finished, RunState, Shard, key_from_json
from ..rules import Rules, part, refuse_too_few
from ..selection import Selection
from ..spool import Spool, SpoolLine, read_lines, read_spool_line
from ..stores import format_of
from ..stores.protocol import Place, SharedStore, Store, keeps_spools


@frozen
class Task:
    """A shard to be fetched, and where its rows are. Plain data: it can be pickled.

    Attributes:
        shard: the shard.
        cuts: the pieces of the plan that hold its rows.
        duplicates: lines among them whose token occurs on an earlier line.
        about: for `Work.function`: the rest that it needs to know.
    """

    shard: Shard
    cuts: tuple[Shard, ...] = ()
    duplicates: frozenset[int] = frozenset()
    about: Any = None


Function = Callable[[Task, Path], Finished]

NextTask = Callable[[], Awaitable[Task | None]]

TakeFinished = Callable[[Finished], Awaitable[object]]


@frozen
class Work:
    """Everything that is the same for all shards of a run.

    Attributes:
        source: the file of tokens; the process that fetches a shard reads its tokens from it.
        key: of fingerprints and of the digests of shards.
        clients: by name of the instance; None for rows that name none.
        spools: an empty folder for the files of answers, on a disk that the job can read.
        compression: of these files.
        rules: how to work and when to stop; they hold for all processes together.
        secret_is_good: the AuthSecret has worked before in this job.
        log: of the job; the program's in a worker.
        shared: the open store, if those who fetch a shard also give it to the store.
        place: where the job keeps its files, for this store.
        selection: what is kept of the answers; None for everything.
        function: called with each task in place of fetching it, and with a folder for temporary files, in a thread where the
            executor fetches. It must be possible to pickle it, and each worker has one copy. Its errors end the run. Source,
            key, clients and store are not used.
        kept: the files of answers become output of the job (see `Spool`).
    """

    source: InputFile | None
    key: bytes = field(repr=False)
    clients: Mapping[str | None, FlinksClient]
    spools: Path
    compression: Compression
    rules: Rules
    secret_is_good: bool
    log: JobLog | Logger = field(repr=False)
    shared: SharedStore | None = None
    place: Place | None = None
    selection: Selection | None = None
    function: Function | None = None
    kept: bool = True

    @classmethod
    def of_function(cls, function: Function, spools: Path, log: JobLog | Logger, at_once: int) -> Work:
        """The work of calling a function with each task.

        Args:
            at_once: calls at once, in all processes together.
        """
        rules = Rules(open_shards=at_once)
        return cls(None, b"", {}, spools, "none", rules, secret_is_good=True, log=log, function=function)


class Execution(Protocol):
    """Shards being fetched. All methods are called in the event loop of `go`."""

    @property
    def stopped(self) -> tuple[RunState, str] | None:
        """How and why the run stopped; None while it takes tokens."""
        ...

    async def go(self) -> None:
        """Fetches until there are no more shards, or until it is stopped. Then the open shards are finished too, with the
        answers they have and the rows that are left. Awaited once; if it is cancelled, it ends at once and leaves no files.

        Raises:
            InputError: the file of tokens is gone, or has changed.
            StoreError: spools cannot be written.
            Exception: what `finished` raises.
        """
        ...

    def stop(self, reason: str, state: RunState = "stopped") -> None:
        """Takes no more tokens and sends nothing more. Requests on the wire have `Rules.drain` seconds to end. The first
        reason counts.
        """
        ...

    def break_off(self, error: BaseException) -> None:
        """Ends at once; `go` raises the error."""
        ...

    def counters(self) -> Counters:
        """The counts as they stand."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Maps shards to files of answers."""

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> Execution:
        """Prepares a run.

        Args:
            work: everything that is the same for all shards.
            tasks: returns the next shard, or None when there are no more. Called again only after it has returned.
            finished: takes over a finished shard and its file; an exception ends the run. Shards that it has not taken yet
                count as open (`Rules.open_shards`), so that a slow store slows the fetching.

        Raises:
            ConfigError: the executor cannot work with these clients.
        """
        ...


# --- one process: here, or in a worker (see `worker`) ---

FILES: Final = 32
"""Descriptors in reserve beside those of connections and spools: for the store, the ledger, the input and host names."""


PUTS: Final = 4
"""Shards that a process gives to a shared store at once."""


def within_open_files(limits: Sequence[Limits], rules: Rules, warn: Callable[..., object]) -> Sequence[Limits]:
    """The limits of a process's clients, lowered where connections and spools would exceed its limit of open files.

    Each client gets its share of the connections, because idle ones stay open for a while.

    Args:
        warn: logs that they were lowered, as `Logger.warning`.

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
    warn(
        "at most %d requests are sent at once, not %d, because this process may open only %d more files. %s",
        room, wanted, allowed, advice,
    )  # fmt: skip
    lowered = [max(1, room * count // wanted) for count in most]
    return [with_concurrency(one, partial(min, most)) for one, most in zip(limits, lowered, strict=True)]


def with_concurrency(limits: Limits, change: Callable[[int], int]) -> Limits:
    """The limits with another number of requests at once."""
    before = limits.concurrency
    if not isinstance(before, Adaptive):
        return evolve(limits, concurrency=change(before))
    bounds = {name: change(getattr(before, name)) for name in ("minimum", "initial", "maximum")}
    return evolve(limits, concurrency=evolve(before, **bounds))


def settings_for(settings: Settings, place: int, places: int) -> Settings:
    """The settings of one worker."""
    retry, limits = settings.retry, settings.limits
    refuse_too_few(limits.most_at_once, places)
    if isinstance(retry.quota, ShareQuota):
        retry = evolve(retry, quota=evolve(retry.quota, minimum=retry.quota.minimum / places))
    return evolve(settings, retry=retry, limits=with_concurrency(limits, partial(part, place=place, places=places)))


class InProcess:
    """Fetches in the running event loop, with the clients of the job.

    Args:
        clock: for tests.
        threads: for tests; for writing and for reading.
    """

    def __init__(self, *, clock: Clock | None = None, threads: tuple[Thread, Thread] | None = None) -> None:
        self._clock = clock
        self._threads = threads

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> Execution:
        if work.function is not None:
            return FunctionExecution(work, tasks, finished)
        before = list(dict.fromkeys(work.clients.values()))
        limits = [client.settings.limits for client in before]
        within = within_open_files(limits, work.rules, work.log.warning)
        if within is not limits:
            changed = {c: c.with_options(limits=one) for c, one in zip(before, within, strict=True)}
            work = evolve(work, clients={name: changed[client] for name, client in work.clients.items()})
        return LocalExecution(work, tasks, finished, self._clock, self._threads)


class LocalExecution(Fetcher):
    """An `Execution` in the running event loop. It reads the next shard while it fetches the current one."""

    def __init__(
        self,
        work: Work,
        tasks: NextTask,
        finished: TakeFinished,
        clock: Clock | None = None,
        threads: tuple[Thread, Thread] | None = None,
    ) -> None:
        writing, self._reading = threads or (Thread("flinks-async-spool"), Thread("flinks-async-input"))
        self._work_of_all = work
        self._tasks = tasks
        self._take_over = finished
        self._putting = None if work.shared is None else Thread("flinks-async-parts", PUTS)
        self._reader: ShardReader | None = None
        self._ahead: asyncio.Future[Loaded | None] | None = None
        super().__init__(
            self._next_shard, self._hand_over, work.clients, work.key, work.spools, work.compression, work.rules,
            secret_is_good=work.secret_is_good, clock=clock or SystemClock(), writing=writing,
            select=None if work.selection is None else work.selection.function(), kept=work.kept,
        )  # fmt: skip

    async def go(self) -> None:
        try:
            await super().go()
        finally:
            if self._ahead is not None and not self._ahead.cancel() and not self._ahead.cancelled():
                self._ahead.exception()  # retrieved, so that asyncio does not warn
            self._reading.close()
            if self._reader is not None:
                self._reader.close()
            self._writing.close()
            if self._putting is not None:
                self._putting.close()

    async def _hand_over(self, finished: Finished) -> None:
        if self._putting is not None:
            finished = await self._putting.do(put, self._work_of_all.shared, finished)
        await self._take_over(finished)

    async def _next_shard(self) -> Loaded | None:
        loaded = await (self._ahead or self._load_shard())
        self._ahead = None if loaded is None else asyncio.ensure_future(self._load_shard())
        return loaded

    async def _load_shard(self) -> Loaded | None:
        task = await self._tasks()
        return None if task is None else await self._reading.do(self._read, task)

    def _read(self, task: Task) -> Loaded:
        """Runs in the reading thread. Raises InputError if the file of tokens is gone, or has changed."""
        if self._reader is None:
            assert self._work_of_all.source is not None, "only a function works without tokens"
            self._reader = ShardReader(self._work_of_all.source, self._work_of_all.key)
        shard, tokens = task.shard, list[Token]()
        only = None if shard.only is None else set(shard.only)
        for cut in task.cuts:
            for token in self._reader.read(cut):
                line = token.line
                if shard.first <= line <= shard.last and line not in task.duplicates and (only is None or line in only):
                    tokens.append(token)
        if len(tokens) != shard.tokens:
            raise InputChangedError(
                f"lines {shard.first} to {shard.last} of the file of tokens have {len(tokens)} tokens, "
                f"and had {shard.tokens} when the job was started"
            )
        return shard, tokens


class FunctionExecution:
    """An `Execution` that calls `Work.function` with each task, in threads of this process."""

    def __init__(self, work: Work, tasks: NextTask, finished: TakeFinished) -> None:
        self.stopped: tuple[RunState, str] | None = None
        self.secret_is_good = True
        self._work = work
        self._tasks = tasks
        self._finished = finished
        self._threads = Thread("flinks-async-function", work.rules.open_shards)
        self._next = asyncio.Lock()
        self._counters = Counters()
        self._broken: BaseException | None = None

    async def go(self) -> None:
        try:
            async with asyncio.TaskGroup() as calls:
                for _ in range(self._work.rules.open_shards):
                    calls.create_task(self._call_each())
        except BaseExceptionGroup as errors:
            self.break_off(errors.exceptions[0])
        finally:
            self._threads.close()
        if self._broken is not None:
            raise self._broken

    async def _call_each(self) -> None:
        assert self._work.function is not None
        while True:
            async with self._next:
                task = None if self.stopped is not None else await self._tasks()
            if task is None:
                return
            try:
                finished = await self._threads.do(self._work.function, task, self._work.spools)
            except Exception as error:  # the calls that are under way end too
                self.break_off(error)
                return
            self._counters.fetched += finished.written.lines
            await self._finished(finished)

    def stop(self, reason: str, state: RunState = "stopped") -> None:
        self.stopped = self.stopped or (state, reason)

    def break_off(self, error: BaseException) -> None:
        self._broken = self._broken or error
        self.stop("it broke off")

    def counters(self) -> Counters:
        return self._counters


# --- into the store ---------------------------------------------------------------------------------------------------


def put(store: Store, finished: Finished) -> Finished:
    """Gives a shard to the store, without the answers that it cannot hold: they count as failed. Removes the spool. Blocks; if
    that lasts, the progress tells.

    Raises:
        StoreError: the store cannot be written.
    """
    name = format_of(store.describe()["kind"])
    while True:
        try:
            with waits.call(name, work=f"{name} has been storing shard {finished.shard.id}"):
                finished = evolve(finished, receipt=store.put(finished.commit, finished.spool))
        except UnfitAnswerError as error:
            unfit = error
        else:
            with suppress(OSError):  # on a machine of its own, nobody else can remove it
                finished.spool.unlink(missing_ok=True)
            return finished
        finished = _without(finished, unfit, store)


_BATCH: Final = 100
"""Lines that are copied at once."""


def _without(finished: Finished, unfit: UnfitAnswerError, store: Store) -> Finished:
    """The shard with a spool that lacks the unfit answer, and with a failure for its token.

    Raises:
        StoreError: the spool cannot be read or rewritten.
        UnfitAnswerError: the spool has no such answer. It is the same error, and it ends the job.
    """
    path, compression = finished.spool, store.spool_compression
    found: list[SpoolLine] = []

    def others() -> Iterator[bytes]:
        for text in read_lines(path, compression):
            head = read_spool_line(text)
            if head.line == unfit.line:
                found.append(head)
            else:
                yield text

    spool = Spool(path.with_name(f"{path.name}.fit"), compression, kept=keeps_spools(store))
    try:
        lines = others()
        for first in lines:
            spool.write([first, *islice(lines, _BATCH)])
        written = spool.finish()
    finally:
        spool.abandon()
    if not found:
        raise unfit
    try:
        os.replace(spool.path, path)
    except OSError as error:
        problem = cannot_write(path, error)
    else:
        failures = chain(finished.failures, [_unfit_failure(found[0], unfit)])
        return evolve(finished, written=written, failures=tuple(sorted(failures, key=lambda failure: failure.line)))
    raise problem


def _unfit_failure(answer: SpoolLine, unfit: UnfitAnswerError) -> Failure:
    return Failure(
        unfit.line,
        "final",
        type(unfit).__name__,
        unfit.message,
        key=key_from_json(answer.key),
        status=answer.meta.status,
        attempts=answer.meta.attempts,
        instance=answer.instance,
    )
