"""A night of 100 million tokens on 50 machines, in virtual time: `python benchmarks/night.py [--short] [--only NAME]`.

It tells how long the night takes, how many requests are made twice, what the job's program costs, and what breaks first.

The decisions are the package's own: the ledger, the run, handing out of shards, replacement of workers, permits of the rate
(one for ten requests), retries, rules, the parts of the store, the marks, the sweep and `_SUCCESS`, in object storage that is
in memory.

The machines are a model: each takes permits and requests as a worker does, sends on time, and has four open shards. They die,
and answers fail, by chance with a fixed seed; a dead machine is noticed after 10 s and replaced after two minutes. Bandwidth,
CPU time of machines, latency and Flinks itself are not in the model.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, field, frozen

from flinks_async import FlinksClient, config
from flinks_async.bulk import (
    InputFile,
    JobError,
    JSONLParts,
    Layout,
    Place,
    Rules,
    Shard,
    WorkerError,
    Written,
)
from flinks_async.bulk import objects as object_storage
from flinks_async.bulk.counters import Counters
from flinks_async.bulk.executors import Work, dispatch
from flinks_async.bulk.executors.cluster import SILENCE
from flinks_async.bulk.executors.protocol import Task
from flinks_async.bulk.executors.worker import Assigned, Next, Permits, Report, Start, StopWorker, Stored, WantPermits
from flinks_async.bulk.fetching import NoThread
from flinks_async.bulk.ledger import Ledger
from flinks_async.bulk.outcome import JobLog
from flinks_async.bulk.records import Failure, Finished
from flinks_async.bulk.run import Result, Run
from flinks_async.middleware.retry import Backoff, RetryState, decide
from flinks_async.testing import VirtualClock, run_virtual
from flinks_async.verdict import Kind, Verdict

UNIT: Final = 10
"""Requests that one permit stands for, so that a night takes minutes."""

HOUR: Final = 3600.0
REPLACED: Final = 120.0
RESTARTED: Final = 60.0
"""Seconds until a dead machine has a successor, and until the program of the job is started again."""

FAILED: Final = Verdict(Kind.TRANSIENT, "http_503")


@frozen
class Scenario:
    """The failures of a night.

    Attributes:
        deaths: of a machine, in an hour.
        failing: share of the answers that fail.
        down: seconds in the middle for which Flinks answers nothing.
        driver: times that the program of the job is killed.
    """

    deaths: float = 0.0
    failing: float = 0.0
    down: float = 0.0
    driver: int = 0


SCENARIOS: Final = {
    "nothing fails": Scenario(),
    "usual: 1 of 1,000 machines an hour, 0.3 % of answers, 10 minutes down": Scenario(0.001, 0.003, 600.0),
    "usual, and the job's program is killed once": Scenario(0.001, 0.003, 600.0, driver=1),
    "spot machines: 5 % an hour": Scenario(0.05, 0.003, 600.0),
    "20 % an hour": Scenario(0.2, 0.003, 600.0),
}


@define(eq=False)
class Night:
    """The state that all machines of a night share.

    Attributes:
        sent: requests, and `retried` those of them that repeat one that failed.
        deaths: of machines.
    """

    scenario: Scenario
    store: JSONLParts
    spools: Path
    chance: random.Random
    begin: float
    retry: config.Retry = field(factory=lambda: config.bulk().retry)
    sent: int = 0
    retried: int = 0
    deaths: int = 0
    up: asyncio.Event = field(factory=asyncio.Event)

    def failing(self, requests: int) -> int:
        """How many of some requests fail: a binomial number, by its normal approximation."""
        share = self.scenario.failing
        if not share:
            return 0
        deviation = (requests * share * (1 - share)) ** 0.5
        return min(requests, max(0, round(self.chance.gauss(requests * share, deviation))))


class Machine(dispatch.WorkerHandle):
    """A worker: it takes shards and permits, and hands over parts."""

    def __init__(self, number: int, start: Start, night: Night) -> None:
        super().__init__()
        self.name = f"machine {number}"
        self._start, self._night = start, night
        self._inbox = asyncio.Queue[object]()
        self._assigned, self._permits = asyncio.Queue[Task | None](), asyncio.Queue[int]()
        self._room = asyncio.Event()
        self._stopped = False
        self._open = 0
        self._shards: list[tuple[Task, int]] = []  # and tokens without an outcome
        self._failed = Counter[tuple[float, int]]()  # tokens to be asked for again: when, and attempts so far
        self._given_up = Counter[int]()
        self._figures = Counters(limit=35)
        self._tasks = [asyncio.create_task(part) for part in (self._work(), self._report(), self._die())]

    def send(self, message: object) -> None:
        match message:
            case Assigned(task):
                self._assigned.put_nowait(task)
            case Permits(_, waits):
                last = max(0.0, *waits)
                asyncio.get_running_loop().call_later(last, self._permits.put_nowait, len(waits))
            case Stored(_, then):
                if then is None or then.task is None:
                    self._open -= 1
                else:
                    self._shards.append((then.task, then.task.shard.tokens))
                self._room.set()
            case StopWorker():  # a real one also hands over the answers of its open shards
                for task in self._tasks:
                    task.cancel()
                self._inbox.put_nowait(Report(self._counters(), over=True))

    async def receive(self) -> object:
        return await self._inbox.get()

    def kill(self) -> None:
        self._inbox.put_nowait(None)

    async def end(self) -> str:
        for task in self._tasks:
            task.cancel()
        return f"silence for {SILENCE:g} s"

    async def _die(self) -> None:
        if self._night.scenario.deaths:
            await asyncio.sleep(self._night.chance.expovariate(self._night.scenario.deaths / HOUR))
            self._night.deaths += 1
            for task in self._tasks[:2]:
                task.cancel()
            await asyncio.sleep(SILENCE)
            self.kill()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(20.0)
            self._inbox.put_nowait(Report(self._counters()))

    def _counters(self) -> Counters:
        return evolve(self._figures, in_flight=35)

    async def _work(self) -> None:
        exhausted = False
        self._want()
        while True:
            while not exhausted and self._open < self._start.rules.open_shards:
                self._inbox.put_nowait(Next())
                task = await self._assigned.get()
                exhausted = task is None
                if task is not None:
                    self._open += 1
                    self._shards.append((task, task.shard.tokens))
            if self._shards:
                count = await self._permits.get()
                self._want()  # the next block, before this one is used
                await self._night.up.wait()
                self._use(count * UNIT)
            elif self._open:
                self._room.clear()
                await self._room.wait()
            else:
                self._inbox.put_nowait(Report(self._counters(), over=True))
                return

    def _want(self) -> None:
        self._inbox.put_nowait(WantPermits(0, self._start.permits[0]))

    def _use(self, requests: int) -> None:
        """Sends requests: those that are due again first."""
        now = asyncio.get_running_loop().time()
        due = sorted(key for key in self._failed if key[0] <= now)
        for attempts, key in [(key[1], key) for key in due] + [(0, None)]:
            waiting = sum(left for _, left in self._shards) - self._failed.total()
            count = min(requests, waiting if key is None else self._failed[key])
            if count <= 0:
                continue
            requests -= count
            if key is not None:
                self._failed[key] -= count
            failed = self._night.failing(count)
            self._night.sent += count
            self._night.retried += count if attempts else 0
            self._figures.requests += count
            self._figures.retries += count if attempts else 0
            self._done(count - failed)
            if failed:
                self._again(failed, attempts + 1, now)
        self._failed = +self._failed

    def _again(self, tokens: int, attempts: int, now: float) -> None:
        decision = decide(
            self._night.retry,
            FAILED,
            RetryState(attempts),
            retry_after=None,
            remaining=None,
            random=self._night.chance.random,
        )
        if isinstance(decision, Backoff):
            self._failed[now + decision.delay, attempts] += tokens
        else:
            self._figures.failed += tokens
            self._done(tokens, given_up=True)

    def _done(self, tokens: int, *, given_up: bool = False) -> None:
        """Gives outcomes to tokens, in the order of the shards."""
        while tokens:
            task, left = self._shards[0]
            taken = min(left, tokens)
            tokens -= taken
            self._given_up[task.shard.id] += taken if given_up else 0
            if taken < left:
                self._shards[0] = task, left - taken
            else:
                del self._shards[0]
                self._finish(task.shard, self._given_up.pop(task.shard.id, 0))
        self._figures.fetched += 0 if given_up else tokens

    def _finish(self, shard: Shard, given_up: int) -> None:
        spool = self._night.spools / f"{self.name}-{shard.id}"
        spool.write_bytes(b"{}\n")
        failures = tuple(
            Failure(shard.first + number, "exhausted", "ServerError", "answered 503") for number in range(given_up)
        )
        finished = Finished(shard, spool, Written(shard.tokens - given_up, 3, "0" * 64), failures, ())
        receipt = self._night.store.put(finished.commit, spool)
        spool.unlink(missing_ok=True)
        self._inbox.put_nowait(evolve(finished, receipt=receipt))


class Cluster(dispatch.WorkersExecution):
    """50 machines that are there, and others that replace them."""

    def __init__(self, night: Night, machines: int, *arguments: Any) -> None:
        super().__init__(*arguments, restarts=10, grace=10.0)
        self._night, self._machines, self._begun = night, machines, 0

    async def _prepare(self) -> list[Start]:
        return dispatch.starts_of(self._work, self._machines)[0]

    async def _start(self, start: Start) -> Machine | None:
        self._begun += 1
        if self._begun > self._machines:
            await asyncio.sleep(REPLACED)
        return None if self._all_done else Machine(self._begun, start, self._night)

    async def _clean_up(self) -> None:
        pass


@frozen
class Figures:
    """The results of a night."""

    hours: float
    runs: int
    first_attempts: int
    fetched: int
    deaths: int
    failed: int
    reason: str
    cpu: float
    peak: float
    ledger: float
    shards: int


async def night_of(scenario: Scenario, tokens: int, machines: int, shard: int, folder: Path) -> Figures:
    """A night from the plan to `_SUCCESS`; a run that ends early is begun again after a minute, up to 20 times."""
    loop, began = asyncio.get_running_loop(), time.process_time()
    seconds = 8 * HOUR * tokens / 1e8
    place = Place("0" * 32, folder)
    (folder / "spools").mkdir()
    (folder / "tokens.csv").write_text("token\nx\n")
    ledger = Ledger(folder / "ledger.sqlite", new=True)
    with ledger.planning() as planner:
        for number in range(tokens // shard):
            planner.shard(
                Shard(number, 2 + number * shard, 1 + (number + 1) * shard, number * shard * 40, shard, "d" * 32)
            )
    store = JSONLParts(url="s3://night")
    store.open(place)
    night = Night(scenario, store, folder / "spools", random.Random(17), loop.time())
    night.up.set()
    if scenario.down:
        loop.call_later(seconds / 2, night.up.clear)
        loop.call_later(seconds / 2 + scenario.down, night.up.set)
    kills = [seconds * (number + 1) / (scenario.driver + 1) for number in range(scenario.driver)]
    log, runs, reason = JobLog(folder / "job.log", "0" * 32), 0, ""
    settings = evolve(config.bulk(), limits=config.Limits(rate=3472.0 / UNIT, concurrency=1736))
    async with FlinksClient(auth_secret="s", base_url="https://flinks.invalid", settings=settings) as client:
        while runs < 20:
            runs += 1
            work = Work(
                InputFile(folder / "tokens.csv", Layout(column="token")), b"k", {None: client}, folder / "spools", "none",
                Rules(open_shards=4 * machines), True, log, shared=store, place=place,
            )  # fmt: skip
            executor: Any = type("Executor", (), {"map_shards": lambda _, *rest: Cluster(night, machines, *rest)})()
            run = Run(ledger, store, executor, work, clock=VirtualClock(), threads=(NoThread(), NoThread()))
            result = await one_run(run, kills.pop(0) - loop.time() if kills else None)
            if isinstance(result, Result) and result.state == "complete":
                break
            reason = reason or (result if isinstance(result, str) else result.reason)
            await asyncio.sleep(RESTARTED)
            store.recover(ledger.receipts())
    totals = ledger.totals()
    assert totals.pending == 0 or runs == 20
    store.close()
    ledger.close()
    log.close()
    return Figures(
        (loop.time() - night.begin) / HOUR, runs, night.sent - night.retried, totals.fetched, night.deaths, totals.failed, reason,
        time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        (folder / "ledger.sqlite").stat().st_size / 1e6, totals.shards,
    )  # fmt: skip


async def one_run(run: Run, killed_after: float | None) -> Result | str:
    going = asyncio.ensure_future(run.go())
    try:
        if killed_after is None:
            return await going
        done, _ = await asyncio.wait({going}, timeout=killed_after)
        if done:
            return going.result()
        going.cancel()
        with suppress(asyncio.CancelledError):
            await going
        return "the program was killed"
    except WorkerError as error:
        return error.message.partition(",")[0]
    except JobError as error:
        return error.message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a hundredth of the night")
    parser.add_argument("--tokens", type=int, default=0, help="default: 100 million")
    parser.add_argument("--machines", type=int, default=50)
    parser.add_argument("--shard", type=int, default=1000)
    parser.add_argument(
        "--only", type=int, nargs="*", default=range(len(SCENARIOS)), help="scenarios by number, from 0"
    )
    options = parser.parse_args()
    from obstore.store import MemoryStore

    tokens = options.tokens or (1_000_000 if options.short else 100_000_000)
    dispatch.SystemClock = VirtualClock  # type: ignore[misc, assignment]
    print(f"{tokens:,} tokens, {options.machines} machines, shards of {options.shard:,}; 3,472 requests/s asked for\n")
    print(
        "| scenario | hours | machines lost | requests made twice | failed | runs | the first run ended by | CPU a shard | peak | ledger |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in [list(SCENARIOS)[number] for number in options.only]:
        storage = MemoryStore()
        object_storage._connected = lambda *_, storage=storage: storage  # type: ignore[attr-defined]
        memory = Path("/dev/shm")
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
            it = run_virtual(night_of(SCENARIOS[name], tokens, options.machines, options.shard, Path(folder)))
        twice = it.first_attempts - it.fetched - it.failed
        print(
            f"| {name} | {it.hours:.2f} | {it.deaths} | {twice:,} ({100 * twice / tokens:.2f} %) | {it.failed:,} | {it.runs} | "
            f"{it.reason or '-'} | {1e3 * it.cpu / it.shards:.2f} ms | {it.peak:.0f} MB | {it.ledger:.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
