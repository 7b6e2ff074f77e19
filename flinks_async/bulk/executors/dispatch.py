"""The job's side of several workers: hands out shards, takes their answers, and replaces what a dead worker had.

    job -- rows of the input --> worker -- files of answers --> job

Only the job uses store and ledger. The shards of a worker that dies are handed out again.

The workers share what they learn from refusals (`PaceLearned`), and the rate: each asks the job for permits in blocks, so that
others get what a dead or slow one does not use. The limits of requests in flight, of open shards and of the retry quota are
divided among them. The job watches the rules that count tokens or time.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil
from typing import Final

from attrs import define, evolve

from ...clock import SystemClock
from ...config import Limits
from ...errors import ConfigError, FlinksError
from ...limits.rate import GCRA, PaceState
from ...limits.shared import PermitSource, RedisRateLimiter
from ..counters import Counters, Wait, WorkerState, joined_waits
from ..directory import empty
from ..errors import WorkerError
from ..files import OPEN_FILES_SHORT, SpareFiles, make_folder
from ..inputs import InputBytes
from ..records import Finished, RunState
from .protocol import NextTask, TakeFinished, Task, Work, settings_for
from .worker import (
    Assigned,
    Broken,
    Next,
    PaceLearned,
    Permits,
    Report,
    Secrets,
    Start,
    StopWorker,
    Stored,
    WantPermits,
    Warned,
    describe,
)

RECENT: Final = 3.0
"""Seconds after which a worker that has asked for no permits leaves the rate to the others."""

SILENCE, SILENT = 10.0, 3.0
"""Seconds without an answer of a worker on a cluster after which it is given up, and after which the progress says so."""

BLOCK: Final = 0.1
"""Seconds for which a worker takes permits of a rate at once; with more than two, 0.05 for each, so that 20 a second ask."""


class WorkerHandle(ABC):
    """A worker, as the job sees it.

    Attributes:
        name: in words, for the log.
        tasks: the shards that it has, by id.
        counters: of its latest report.
        has_finished: it has handed over a shard.
        has_all: there were no more shards for it. It may end, so it gets others only if it asks.
        death: how it died, in words; empty before.
        heard: when it last answered, if it is asked all the time.
    """

    name: str
    has_finished = has_all = False
    death = ""
    heard: float | None = None

    def __init__(self) -> None:
        self.tasks: dict[int, Task] = {}
        self.counters = Counters()
        self._stored = Counters()
        self._inbox = asyncio.Queue[object]()

    @abstractmethod
    def send(self, message: object) -> None:
        """Queues a message. It is dropped if the worker is dead."""

    async def receive(self) -> object:
        """The next message; None once the worker is dead."""
        return await self._inbox.get()

    @abstractmethod
    def kill(self) -> None:
        """Makes `receive` return None soon."""

    @abstractmethod
    async def end(self) -> str:
        """Ends the worker if it still runs. Returns how it ended, in words."""

    def finished(self, shard: Finished) -> None:
        """Counts a shard that the worker has handed over."""
        del self.tasks[shard.shard.id]
        self.has_finished = True
        done, stored = shard.written.lines + len(shard.failures), self._stored
        stored.fetched += shard.written.lines
        stored.failed += len(shard.failures)
        stored.failed_before += done if shard.shard.round else 0

    def state(self, note: str = "") -> WorkerState:
        """The counts of the worker now, or with a note those that remain after its end."""
        one = self.remains() if note else self.counters
        return WorkerState(self.name, one.fetched, one.failed, one.requests, one.in_flight, one.held_back, note)

    def remains(self) -> Counters:
        """Its counters after it has died: all its requests, but only the tokens of shards that it had handed over. Others get
        its share of a learned limit.
        """
        stored, instances = self._stored, self.counters.instances
        return evolve(
            self.counters.ended(),
            instances={host: evolve(one, learned=None) for host, one in instances.items()},
            fetched=stored.fetched,
            failed=stored.failed,
            failed_before=stored.failed_before,
            limit=0,
        )


@define(eq=False)
class _Sharer:
    """Connects a limiter that other programs share with the workers of this run."""

    join: Callable[[PaceState], object]
    on_pace: Callable[[PaceState], object] | None = None


class WorkersExecution(ABC):
    """An `Execution` in a fixed number of workers. Subclasses start them.

    Args:
        restarts: as in `Processes`.
        grace: seconds beyond `Rules.drain` after which a worker that has not handed over its shards is killed.
    """

    def __init__(self, work: Work, tasks: NextTask, finished: TakeFinished, *, restarts: int, grace: float) -> None:
        if isinstance(work.source, InputBytes):
            raise ConfigError(
                "worker processes read the tokens from a file, and these tokens are in memory only; "
                "fetch in one process, or put the tokens into a file"
            )
        self.stopped: tuple[RunState, str] | None = None
        self._work = work
        self._tasks = tasks
        self._finished = finished
        self._restarts = restarts
        self._grace = grace
        self._returned: deque[Task] = deque()
        self._loading = asyncio.Lock()
        self._exhausted = False
        self._workers: set[WorkerHandle] = set()
        self._past: list[Counters] = []
        self._dead: list[WorkerState] = []
        self._missing: list[WorkerState] = []
        self._waits: list[Wait] = []
        self._paces: dict[int, PaceLearned] = {}
        self._working: asyncio.Task[None] | None = None
        self._broken: BaseException | None = None
        self._late: asyncio.TimerHandle | None = None
        self._spare = SpareFiles()
        limits = [client.settings.limits for client in dict.fromkeys(work.clients.values())]
        limiters = [one.rate_limiter or GCRA(one.rate or 1.0, one.burst) for one in limits]
        self._permits = [PermitSource(limiter, SystemClock().now, RECENT) for limiter in limiters]
        self._sharers = [_Sharer(partial(self._tell_pace, number)) for number in range(len(limiters))]
        for limiter, sharer in zip(limiters, self._sharers, strict=True):
            if isinstance(limiter, RedisRateLimiter):
                limiter.attach(sharer)

    @abstractmethod
    async def _prepare(self) -> list[Start]:
        """Called at the beginning of `go`. Returns how each worker starts."""

    @abstractmethod
    async def _start(self, start: Start) -> WorkerHandle | None:
        """Starts a worker; None if none is needed any more. Its files go to the folder `start.spools`."""

    async def _clean_up(self) -> None:  # noqa: B027
        """Called at the end of `go`."""

    async def _work_all(self) -> None:
        try:
            async with asyncio.TaskGroup() as places:
                for start in await self._prepare():
                    places.create_task(self._keep(start))
        except BaseExceptionGroup as errors:
            problem = errors.exceptions[0]
        else:
            return
        finally:
            await self._clean_up()
        raise problem

    async def _keep(self, start: Start) -> None:
        """Runs a worker, and a new one if it dies, until all shards are done. The run ends when workers die in a row and none
        of them has finished a shard: then something kills each of them, and replacing them only repeats requests.
        """
        in_a_row = 0
        try:
            while (dead := await self._run_worker(start)) is not None and not self._all_done:
                in_a_row = 0 if dead.has_finished else in_a_row + 1
                if in_a_row > self._restarts:
                    raise WorkerError(
                        f"workers keep crashing, the last one by {dead.death}: {in_a_row} in a row before they finished a shard. "
                        "The answers so far are kept: run the job again to resume. If memory is short, use fewer workers"
                    )
        except FlinksError as error:
            self._end_with(error)

    def stop(self, reason: str, state: RunState = "stopped") -> None:
        if self.stopped is None:
            self.stopped = (state, reason)
            for worker in self._workers:
                worker.send(StopWorker(reason, state))
            self._late = asyncio.get_running_loop().call_later(self._work.rules.drain + self._grace, self._kill_workers)

    def _kill_workers(self) -> None:
        # Also those that are idle, because they do not say so. The shards that they have handed over are kept.
        for worker in self._workers:
            worker.kill()

    def break_off(self, error: BaseException) -> None:
        if self._broken is None:
            self._broken = error
        if self._working is not None and not self._working.cancelling():
            self._working.cancel()

    def _end_with(self, error: BaseException) -> None:
        """After a problem of one worker, the others end with the answers they have."""
        if self._broken is None:
            self._broken = error
        self.stop("it broke off")

    def _stop_if_short(self) -> None:
        if self._spare.needed():
            self._spare.close()
            self.stop(OPEN_FILES_SHORT)

    @contextmanager
    def _waiting(self, place: str, reason: str, most: float | None = None) -> Iterator[Wait]:
        """Tells in the progress that the run waits.

        Args:
            most: seconds after which the run gives up; None if unknown.
        """
        now = time.monotonic()
        wait = Wait(place, now, None if most is None else now + most, reason)
        self._waits.append(wait)
        try:
            yield wait
        finally:
            self._waits.remove(wait)

    def counters(self) -> Counters:
        live, now = [worker.counters for worker in self._workers], time.monotonic()
        heard = [(worker.name, worker.heard) for worker in self._workers if worker.heard is not None]
        silent = [Wait(name, at, at + SILENCE, f"no answer from {name}") for name, at in heard if now - at > SILENT]
        whole = Counters.sum_of([*live, *(one.without_troubles() if live else one for one in self._past)])
        waits = [wait.trouble(now) for wait in (*self._waits, *silent) if now - wait.since >= 1.0]
        whole.waits = joined_waits((*whole.waits, *waits))
        whole.workers = (*(worker.state() for worker in self._workers), *self._missing, *self._dead)
        return whole

    async def go(self) -> None:
        if self._broken is None:
            working = self._working = asyncio.create_task(self._work_all())
            try:
                await asyncio.wait({working})
            finally:
                if not working.cancelling():  # a second cancellation would interrupt the ends of the workers
                    working.cancel()
                    await asyncio.wait({working})
                self._spare.close()
                if self._late is not None:
                    self._late.cancel()
            if self._broken is None:
                working.result()
        if self._broken is not None:
            raise self._broken

    @property
    def _all_done(self) -> bool:
        """No worker is needed for shards that nobody has."""
        return self.stopped is not None or (self._exhausted and not self._returned)

    # --- one worker ---------------------------------------------------------------------------------------------------

    async def _run_worker(self, start: Start) -> WorkerHandle | None:
        """Runs one worker from start to end. Returns it if it died."""
        self._stop_if_short()
        folder = self._work.spools / f"worker-{uuid.uuid4().hex[:8]}"
        make_folder(folder)
        try:
            worker = await self._start(evolve(start, spools=folder))
            return None if worker is None else await self._serve_to_the_end(worker)
        finally:
            empty(folder)

    async def _serve_to_the_end(self, worker: WorkerHandle) -> WorkerHandle | None:
        self._workers.add(worker)
        storing: set[asyncio.Future[None]] = set()
        over = False
        try:
            over = await self._serve(worker, storing)
        finally:
            worker.has_all = True
            worker.death = await worker.end()
            if storing:
                await asyncio.wait(storing)
            self._workers.discard(worker)
            self._past.append(worker.counters.ended() if over else worker.remains())
            self._returned.extend(worker.tasks.values())
        if over:
            return None
        note = f"died by {worker.death}; its {len(worker.tasks)} shards are handed out again"
        self._work.log.error("%s %s", worker.name, note)
        self._dead.append(evolve(worker.state(note), reassigned=len(worker.tasks)))
        return worker

    async def _serve(self, worker: WorkerHandle, storing: set[asyncio.Future[None]]) -> bool:
        """Answers the messages of a worker. Returns whether it ended normally."""
        for pace in self._paces.values():
            worker.send(pace)
        if self.stopped is not None:
            worker.send(StopWorker(self.stopped[1], self.stopped[0]))
        while (message := await worker.receive()) is not None:
            match message:
                case Next():
                    worker.send(await self._assigned(worker))
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
                case PaceLearned(client, state):
                    self._tell_pace(client, state, worker)
                    if (tell := self._sharers[client].on_pace) is not None:
                        tell(state)
                case WantPermits(client, count):
                    worker.send(Permits(client, tuple(await self._permits[client].take(worker, count))))
                case Warned(text):
                    self._work.log.warning("%s: %s", worker.name, text)
                case Broken(error):
                    self._end_with(error)
                    return True
        return False

    def _break_off_if_failed(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.break_off(error)

    async def _assigned(self, worker: WorkerHandle, *, ahead: bool = False) -> Assigned:
        """The next shard for a worker, or the one that it has not asked for yet."""
        async with self._loading:
            task = None
            if self.stopped is None and not (ahead and worker.has_all):
                if self._returned:
                    task = self._returned.popleft()
                elif not self._exhausted:
                    task = await self._tasks()
                    self._exhausted = task is None
            worker.has_all = task is None
        if task is not None:
            worker.tasks[task.shard.id] = task
        return Assigned(task, self._work.secret_is_good or self.counters().fetched > 0)

    def _tell_pace(self, client: int, state: PaceState, by: WorkerHandle | None = None) -> None:
        message = self._paces[client] = PaceLearned(client, state)
        for worker in self._workers - {by}:
            worker.send(message)

    async def _store(self, worker: WorkerHandle, finished: Finished) -> None:
        self._stop_if_short()
        await self._finished(finished)
        then = await self._assigned(worker, ahead=True)
        worker.send(Stored(finished.shard.id, then if then.task else None))

    def _obey_rules(self, stopped: tuple[RunState, str] | None) -> None:
        """Stops all workers if one of them has stopped, or if their tokens together break a rule."""
        if stopped is not None:
            self.stop(stopped[1], stopped[0])
        counters = self.counters()
        broken = self._work.rules.broken_by(counters.failed, counters.fetched + counters.failed)
        if broken is not None:
            self.stop(broken)


# --- the part of one worker -------------------------------------------------------------------------------------------


def starts_of(work: Work, places: int) -> tuple[list[Start], list[Secrets]]:
    """How each of several workers starts, and the secrets of their clients; after them the key of pseudonyms, if there is one.

    Raises:
        ConfigError: a client cannot be made again in a worker, or the limits are too low for so many workers.
    """
    clients = list(dict.fromkeys(work.clients.values()))
    described = [describe(client) for client in clients]
    selection, starts = work.selection, []
    for place in range(places):
        rules = work.rules.part(place, places)
        settings = [settings_for(one.settings, place, places) for one, _ in described]
        starts.append(
            Start(
                path="" if work.source is None else work.source.name,
                layout=None if work.source is None else work.source.layout,
                key=work.key,
                clients=tuple(evolve(one, settings=part) for (one, _), part in zip(described, settings, strict=True)),
                permits=tuple(permits_for(client.settings.limits, places) for client in clients),
                names={name: clients.index(client) for name, client in work.clients.items()},
                spools=work.spools,
                compression=work.compression,
                kept=work.kept,
                rules=rules,
                report_every=max(0.2, places / 25),  # 25 reports a second of all together
                store=None if work.shared is None else work.shared.describe(),
                place=work.place,
                selection=selection and selection.without_key(),
                function=work.function,
            )
        )
    key = selection and selection.pseudonym_key
    return starts, [*(secrets for _, secrets in described), *([Secrets(key)] if key else [])]


def permits_for(limits: Limits, places: int) -> int:
    """Permits that a worker takes at once; 0 if there is no limit of the rate."""
    rate = limits.rate or getattr(limits.rate_limiter, "rate", None) or 100.0
    limited = limits.rate is not None or limits.rate_limiter is not None
    return ceil(rate / places * min(2.5, max(BLOCK, places / 20))) if limited else 0
