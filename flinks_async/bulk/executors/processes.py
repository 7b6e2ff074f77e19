"""The executor of several processes: each worker fetches shards with its own event loop and clients.

    job -- rows of the input --> worker -- files of answers --> job

Only the job uses store and ledger. The shards of a worker that dies are handed out again.

The workers share one rate limit (`SharedRate`) and what they learn from refusals (`PaceLearned`). The limits of requests in flight, of open shards and of the
retry quota are divided among them. The job watches the rules that count tokens or time.

The state of GCRA is one number, the theoretical arrival time of the next request (see `limits.rate`). It is in a file that
every process maps, and locks for the few microseconds of a reservation. All processes have the same clock, because the
monotonic clock counts from the start of the machine. A process that dies loses its lock and at most one reservation.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import sys
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import evolve

from ...config import Adaptive, Limits, Retry, Settings, ShareQuota
from ...errors import ConfigError
from ...limits.rate import GCRA
from ..directory import empty
from ..errors import WorkerError
from ..files import (
    OPEN_FILES_SHORT,
    SpareFiles,
    allow_open_files,
    cannot_write,
    create,
    make_folder,
    write_all,
)
from ..inputs import InputBytes
from ..records import Counters, Finished, RunState
from ..rules import Rules
from .in_process import FILES, within_open_files
from .protocol import NextTask, TakeFinished, Task, Work
from .worker_messages import (
    Assigned,
    Broken,
    Description,
    Next,
    PaceLearned,
    Report,
    Start,
    StopWorker,
    Stored,
    describe,
)
from .worker_process import WorkerProcess

GRACE: Final = 10.0
"""Seconds beyond `Rules.drain` after which a worker that has not handed over its shards is killed."""


class Processes:
    """Fetches in worker processes on this machine.

    They share the rate limit; what one of them learns about the limit of an instance, and a pause, holds for all. The concurrency is divided
    among them. Each makes its own clients from the settings of the job's clients.

    Args:
        count: number of processes.
        restarts: dead workers that are replaced, in all, before the run is given up (default 10).

    Raises:
        ConfigError: a number is wrong.
    """

    def __init__(self, count: int, *, restarts: int = 10) -> None:
        if type(count) is not int or count < 1:
            raise ConfigError(f"the number of processes must be a whole number of at least 1, not {count!r}")
        if type(restarts) is not int or restarts < 0:
            raise ConfigError(f"restarts must be a whole number of at least 0, not {restarts!r}")
        self.count = count
        self.restarts = restarts

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> ProcessesExecution:
        if isinstance(work.source, InputBytes):
            raise ConfigError(
                "worker processes read the tokens from a file, and these tokens are in memory only; "
                "fetch in one process, or put the tokens into a file"
            )
        return ProcessesExecution(work, tasks, finished, self.count, self.restarts)


class ProcessesExecution:
    """An `Execution` in worker processes."""

    def __init__(self, work: Work, tasks: NextTask, finished: TakeFinished, count: int, restarts: int) -> None:
        self.stopped: tuple[RunState, str] | None = None
        self._work = work
        self._tasks = tasks
        self._finished = finished
        self._restarts = restarts
        clients = list(dict.fromkeys(work.clients.values()))
        described = [describe(client) for client in clients]
        self._secrets = [secrets for _, secrets in described]
        self._rates = {
            number: work.spools / f"rate-{number}"
            for number, client in enumerate(clients)
            if client.settings.limits.rate is not None
        }
        allow_open_files(count * FILES)  # pipes and spools; workers inherit the limit
        self._starts = [
            Start(
                path=work.source.path.absolute(),
                layout=work.source.layout,
                key=work.key,
                clients=_clients_for([one for one, _ in described], work, place, count),
                names={name: clients.index(client) for name, client in work.clients.items()},
                rates=self._rates,
                spools=work.spools,
                compression=work.compression,
                rules=rules_for(work.rules, place, count),
            )
            for place in range(count)
        ]
        self._returned: deque[Task] = deque()
        self._loading = asyncio.Lock()
        self._exhausted = False
        self._workers: dict[int, WorkerProcess] = {}
        self._past: list[Counters] = []
        self._paces: dict[int, PaceLearned] = {}
        self._breaking = asyncio.Event()
        self._broken: BaseException | None = None
        self._late: asyncio.TimerHandle | None = None
        self._spare = SpareFiles()

    def stop(self, reason: str, state: RunState = "stopped") -> None:
        if self.stopped is None:
            self.stopped = (state, reason)
            for worker in self._workers.values():
                worker.channel.send(StopWorker(reason, state))
            self._late = asyncio.get_running_loop().call_later(self._work.rules.drain + GRACE, self._kill_workers)

    def _kill_workers(self) -> None:
        # Also those that are idle, because they do not say so. The shards that they have handed over are kept.
        for worker in self._workers.values():
            worker.kill()

    def break_off(self, error: BaseException) -> None:
        if self._broken is None:
            self._broken = error
        self._breaking.set()

    def counters(self) -> Counters:
        live = [worker.counters for worker in self._workers.values()]
        return Counters.sum_of([*live, *(one.without_troubles() if live else one for one in self._past)])

    async def go(self) -> None:
        for path in self._rates.values():
            SharedRate.make(path)
        places = [asyncio.ensure_future(self._keep(place)) for place in range(len(self._starts))]
        for place in places:
            place.add_done_callback(self._end_if_failed)
        breaking = asyncio.ensure_future(self._breaking.wait())
        try:
            rest = {*places}
            while rest and not self._breaking.is_set():
                _, pending = await asyncio.wait({*rest, breaking}, return_when=asyncio.FIRST_COMPLETED)
                rest &= pending
        finally:
            for task in (*places, breaking):
                task.cancel()
            await asyncio.wait({*places, breaking})
            self._spare.close()
            if self._late is not None:
                self._late.cancel()
            for path in self._rates.values():
                path.unlink(missing_ok=True)
        if self._broken is not None:
            raise self._broken

    # --- workers ------------------------------------------------------------------------------------------------------

    async def _keep(self, place: int) -> None:
        """Runs a worker, and a new one if it dies, until all shards are done."""
        while (death := await self._run_worker(place)) is not None:
            if self.stopped is not None or (self._exhausted and not self._returned):
                return
            if self._restarts == 0:
                raise WorkerError(
                    f"worker processes keep crashing, the last one by {death}. The answers so far are kept: run the job "
                    "again to resume. If memory is short, use fewer processes"
                )
            self._restarts -= 1

    async def _run_worker(self, place: int) -> str | None:
        """Runs one worker from start to end. Returns how it died; None if it ended normally."""
        self._stop_if_short()
        folder = self._work.spools / f"worker-{uuid.uuid4().hex[:8]}"
        make_folder(folder)
        worker = WorkerProcess(evolve(self._starts[place], spools=folder), self._secrets)
        self._workers[place] = worker
        storing: set[asyncio.Future[None]] = set()
        over = False
        try:
            over = await self._serve(worker, storing)
        finally:
            how = worker.end()
            if storing:
                await asyncio.wait(storing)
            del self._workers[place]
            self._past.append(worker.counters.ended() if over else worker.remains())
            self._returned.extend(worker.tasks.values())
            empty(folder)
        if over:
            return None
        self._work.log.error(
            "worker process %d died by %s; its %d shards are handed out again", worker.pid, how, len(worker.tasks)
        )
        return how

    async def _serve(self, worker: WorkerProcess, storing: set[asyncio.Future[None]]) -> bool:
        """Answers the messages of a worker. Returns whether it ended normally."""
        for pace in self._paces.values():
            worker.channel.send(pace)
        if self.stopped is not None:
            worker.channel.send(StopWorker(self.stopped[1], self.stopped[0]))
        while (message := await worker.channel.receive()) is not None:
            match message:
                case Next():
                    await self._assign(worker)
                case Finished():
                    worker.finished(message)
                    task = asyncio.ensure_future(self._store(worker, message))
                    storing.add(task)
                    task.add_done_callback(storing.discard)
                    task.add_done_callback(self._break_off_if_failed)
                case Report(counters, stopped, over):
                    worker.counters = counters
                    self._obey_rules(stopped)
                    if over:
                        return True
                case PaceLearned():
                    self._pass_on(worker, message)
                case Broken(error):
                    raise error
        return False

    def _end_if_failed(self, place: asyncio.Future[None]) -> None:
        """After a problem of one worker, the others end with the answers they have."""
        if not place.cancelled() and (error := place.exception()) is not None:
            if self._broken is None:
                self._broken = error
            self.stop("it broke off")

    def _break_off_if_failed(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.break_off(error)

    # --- messages of workers ------------------------------------------------------------------------------------------

    async def _assign(self, worker: WorkerProcess) -> None:
        task = await self._next_task()
        if task is not None:
            worker.tasks[task.shard.id] = task
        worker.channel.send(Assigned(task, self._work.secret_is_good or self.counters().fetched > 0))

    async def _next_task(self) -> Task | None:
        async with self._loading:
            if self.stopped is not None:
                return None
            if self._returned:
                return self._returned.popleft()
            task = None if self._exhausted else await self._tasks()
            self._exhausted = task is None
            return task

    async def _store(self, worker: WorkerProcess, finished: Finished) -> None:
        self._stop_if_short()
        await self._finished(finished)
        worker.channel.send(Stored(finished.shard.id))

    def _stop_if_short(self) -> None:
        if self._spare.needed():
            self._spare.close()
            self.stop(OPEN_FILES_SHORT)

    def _obey_rules(self, stopped: tuple[RunState, str] | None) -> None:
        """Stops all workers if one of them has stopped, or if their tokens together break a rule."""
        if stopped is not None:
            self.stop(stopped[1], stopped[0])
        counters = self.counters()
        broken = self._work.rules.broken_by(counters.failed, counters.fetched + counters.failed)
        if broken is not None:
            self.stop(broken)

    def _pass_on(self, worker: WorkerProcess, pace: PaceLearned) -> None:
        self._paces[pace.client] = pace
        for other in self._workers.values():
            if other is not worker:
                other.channel.send(pace)


def _clients_for(described: list[Description], work: Work, place: int, places: int) -> tuple[Description, ...]:
    """The clients of one process: with its part of the limits, and within its limit of open files."""
    settings = [settings_for(one.settings, place, places) for one in described]
    limits = within_open_files(
        [one.limits for one in settings], rules_for(work.rules, place, places), None if place else work.log
    )
    return tuple(
        evolve(client, settings=evolve(one, limits=within))
        for client, one, within in zip(described, settings, limits, strict=True)
    )


def share(whole: int, place: int, places: int) -> int:
    """One worker's part of a number, at least 1. If the number is at least `places`, the parts add up to it."""
    return max(1, whole // places + (place < whole % places))


def settings_for(settings: Settings, place: int, places: int) -> Settings:
    """The settings of one process.

    Raises:
        ConfigError: the concurrency is less than the number of processes.
    """
    retry, limits = settings.retry, settings.limits
    return evolve(settings, retry=_retry_for(retry, places), limits=_limits_for(limits, place, places))


def rules_for(rules: Rules, place: int, places: int) -> Rules:
    """The rules of one process, without those that the job watches.

    Raises:
        ConfigError: as for `settings_for`.
    """
    if rules.concurrency is not None:
        _refuse_too_few(rules.concurrency, places)
    return evolve(
        rules,
        concurrency=None if rules.concurrency is None else share(rules.concurrency, place, places),
        open_shards=share(rules.open_shards, place, places),
        max_failures=None,
        max_failure_share=None,
        max_duration=None,
        unreachable_after=None,
    )


def _retry_for(retry: Retry, places: int) -> Retry:
    quota = retry.quota
    return (
        evolve(retry, quota=evolve(quota, minimum=quota.minimum / places)) if isinstance(quota, ShareQuota) else retry
    )


def _limits_for(limits: Limits, place: int, places: int) -> Limits:
    _refuse_too_few(limits.most_at_once, places)
    concurrency = limits.concurrency
    if isinstance(concurrency, Adaptive):
        bounds = {name: share(getattr(concurrency, name), place, places) for name in ("minimum", "initial", "maximum")}
        return evolve(limits, concurrency=evolve(concurrency, **bounds))
    return evolve(limits, concurrency=share(concurrency, place, places))


def _refuse_too_few(concurrency: int, places: int) -> None:
    if concurrency < places:
        raise ConfigError(f"{places} processes need a concurrency of at least {places} in all, not {concurrency}")


_NUMBER: Final = struct.Struct("<d")


class SharedRate(GCRA):
    """A `RateLimiter` whose state is in a file that `make` has made.

    Args:
        path: of the file.
        rate, burst: as for `GCRA`, the same in all processes.

    Raises:
        OSError: the file is gone.
    """

    def __init__(self, path: Path, rate: float, burst: int | None = None) -> None:
        super().__init__(rate, burst)
        self._file = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        self._memory = mmap.mmap(self._file, _NUMBER.size)

    def reserve(self, now: float, /) -> float:
        with _locked(self._file):
            (self._next,) = _NUMBER.unpack_from(self._memory)
            wait = super().reserve(now)
            _NUMBER.pack_into(self._memory, 0, self._next)
        return wait

    def close(self) -> None:
        self._memory.close()
        os.close(self._file)

    @staticmethod
    def make(path: Path) -> None:
        """Makes the file, with the state before the first request.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            file = create(path)
            try:
                write_all(file, _NUMBER.pack(float("-inf")))
            finally:
                os.close(file)
        except OSError as error:
            raise cannot_write(path, error) from None


if sys.platform == "win32":
    import msvcrt

    @contextmanager
    def _locked(file: int) -> Iterator[None]:
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_LOCK, 1)
        try:
            yield
        finally:
            os.lseek(file, 0, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    @contextmanager
    def _locked(file: int) -> Iterator[None]:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
