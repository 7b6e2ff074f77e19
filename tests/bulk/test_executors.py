"""Worker processes get shares of the limits, one rate and clients of their own; no secret is visible."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Coroutine
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from flinks_async import Adaptive, Codec, ConfigError, FlinksClient, Limits, ShareQuota, config
from flinks_async.bulk import Executor, Processes, WorkerError
from flinks_async.bulk.counters import WAITED_FOR, Counters, Histogram, InstanceState, WorkerState
from flinks_async.bulk.executors import InProcess, Work
from flinks_async.bulk.executors.dispatch import WorkerHandle, settings_for
from flinks_async.bulk.executors.processes import ending, environment_without, from_line, to_line
from flinks_async.bulk.executors.protocol import Task, put
from flinks_async.bulk.executors.worker import Report, Secrets, Start, StopWorker, Worker, describe, make
from flinks_async.bulk.records import Finished, Shard, Written
from flinks_async.bulk.rules import Rules, part
from flinks_async.cli.display import worker_notes
from flinks_async.limits.governor import Trouble
from flinks_async.limits.rate import GCRA, LearnedLimit
from flinks_async.limits.shared import PermitBuffer, PermitSource
from flinks_async.secret import Secret
from flinks_async.testing import run_virtual

SECRET = "3f2a6f0c-7b0e-4d3a-9a51-0c8d4e5b6a79"


# --- the rate ---------------------------------------------------------------------------------------------------------


class Sharers:
    """Processes that take permits of one rate, in virtual time.

    Args:
        latency: seconds until an answer of the source of the rate arrives.
    """

    def __init__(self, rate: float, *, burst: int | None = None, latency: float = 0.0) -> None:
        self.loop = asyncio.get_running_loop()
        self.source = PermitSource(GCRA(rate, burst), self.loop.time, 1.0)
        self.answers: list[asyncio.Task[None]] = []
        self.latency = latency
        self.sent: list[float] = []

    def join(self, block: int, every: float = 0.0) -> asyncio.Task[None]:
        """One more, which sends as soon as it may, or at most once in `every` seconds."""

        async def answer(count: int) -> None:
            waits = await self.source.take(permits, count)
            await asyncio.sleep(self.latency)
            permits.grant(waits)

        def ask(count: int) -> None:
            self.answers.append(asyncio.create_task(answer(count)))

        async def send() -> None:
            while True:
                now = self.loop.time()
                permit = permits.reserve(now)
                wait = permit if isinstance(permit, float) else await permit
                await asyncio.sleep(now + wait - self.loop.time())
                self.sent.append(self.loop.time())
                await asyncio.sleep(every)

        permits = PermitBuffer(ask, block, self.loop.time)
        return asyncio.create_task(send())

    async def sent_in(self, seconds: float) -> list[float]:
        self.sent = []
        await asyncio.sleep(seconds)
        return self.sent


def test_permits_in_blocks_keep_the_rate_of_all_and_who_dies_costs_less_than_a_percent() -> None:
    async def main() -> None:
        sharers = Sharers(100.0, latency=0.005)
        first, *_ = [sharers.join(4) for _ in range(3)]
        assert len(await sharers.sent_in(20.0)) == pytest.approx(2000, rel=0.01)
        first.cancel()
        assert len(await sharers.sent_in(20.0)) == pytest.approx(2000, rel=0.01), "others use the rate of the dead one"
        sharers.join(4)
        sent = await sharers.sent_in(20.0)
        assert len(sent) == pytest.approx(2000, rel=0.01), "and another one may come"
        assert max(sum(start <= at < start + 1 for at in sent) for start in sent) <= 115

    run_virtual(main())


def test_permits_that_a_pause_made_late_are_dropped() -> None:
    async def main() -> None:
        asked: list[int] = []
        permits = PermitBuffer(asked.append, 10, asyncio.get_running_loop().time)
        permits.grant([number / 10 for number in range(10)])
        assert permits.reserve(0.0) == 0.0
        await asyncio.sleep(0.75)
        assert permits.reserve(0.75) == 0.0, "the permit of 0.6 s is late, but can be used"
        assert permits.reserve(0.75) == 0.0
        assert permits.reserve(0.75) == pytest.approx(0.05)
        permits.grant([0.0])
        await asyncio.sleep(60.0)
        late = permits.reserve(60.75)
        assert isinstance(late, Coroutine), "it waits for new ones"
        late.close()
        assert asked == [5, 2], "and asks for fewer, because it did not use those that it had"

    run_virtual(main())


def test_two_that_wait_for_permits_both_get_theirs() -> None:
    async def main() -> None:
        asked: list[int] = []
        permits = PermitBuffer(asked.append, 10, asyncio.get_running_loop().time)
        waiting = [permits.reserve(0.0) for _ in range(2)]
        async with asyncio.timeout(10.0), asyncio.TaskGroup() as both:
            for one in waiting:
                assert isinstance(one, Coroutine)
                both.create_task(one)
            await asyncio.sleep(0)
            permits.grant([0.0, 0.1])
        assert asked == [10]

    run_virtual(main())


def test_the_permits_of_one_of_several_lie_apart_until_the_others_are_gone() -> None:
    async def main() -> None:
        now = asyncio.get_running_loop().time
        source = PermitSource(GCRA(100.0, 1), now, 1.0)
        assert await source.take("a", 3) == pytest.approx([0.0, 0.01, 0.02])
        assert await source.take("b", 3) == pytest.approx([0.03, 0.05, 0.07])
        await asyncio.sleep(2.0)
        assert await source.take("b", 3) == pytest.approx([0.0, 0.01, 0.02])

    run_virtual(main())


def test_permits_that_are_granted_at_once_are_used_in_order() -> None:
    rate = GCRA(100.0, 1)
    permits = PermitBuffer(lambda count: permits.grant([rate.reserve(0.0) for _ in range(count)]), 10, lambda: 0.0)
    assert [permits.reserve(0.0) for _ in range(25)] == pytest.approx([number / 100 for number in range(25)])


def test_who_sends_slowly_leaves_its_permits_to_others() -> None:
    async def main() -> None:
        sharers = Sharers(100.0, latency=0.002)
        sharers.join(16)
        sharers.join(16, every=0.5)
        await asyncio.sleep(10.0)
        assert len(await sharers.sent_in(60.0)) > 0.95 * 6000

    run_virtual(main())


# --- the shares -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("whole", "places"), [(200, 3), (16, 5), (7, 7), (1000, 1)])
def test_the_shares_of_all_places_add_up(whole: int, places: int) -> None:
    shares = [part(whole, place, places) for place in range(places)]
    assert sum(shares) == whole
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("concurrency", [10, Adaptive(minimum=1, initial=2, maximum=10), Adaptive()])
@pytest.mark.parametrize("places", [1, 2, 3, 7])
def test_requests_at_once_are_divided(concurrency: int | Adaptive, places: int) -> None:
    whole = config.Settings(limits=Limits(concurrency=concurrency))
    parts = [settings_for(whole, place, places).limits for place in range(places)]
    assert sum(part.most_at_once for part in parts) == whole.limits.most_at_once


def test_what_a_process_gets_of_the_rest() -> None:
    settings = settings_for(config.bulk(), 0, 4)
    assert settings.retry.quota == ShareQuota(minimum=2.5)
    rules = Rules(concurrency=9, max_failures=3, max_failure_share=0.1, max_duration=60.0, drain=7.0).part(0, 4)
    assert rules == Rules(concurrency=3, open_shards=4, unreachable_after=None, drain=7.0)


def test_a_process_that_could_send_nothing_is_refused() -> None:
    few = config.Settings(limits=Limits(concurrency=3))
    with pytest.raises(ConfigError, match="4 processes need a concurrency of at least 4 in all, not 3"):
        settings_for(few, 0, 4)
    with pytest.raises(ConfigError, match="not 2"):
        Rules(concurrency=2).part(0, 3)


def test_an_instance_has_answered_if_it_has_answered_one_process() -> None:
    down = InstanceState(trouble=Trouble("no connection", 3, 10.0), held_back=2.0)
    one, other = Counters(instances={"a": InstanceState(answered=True)}), Counters(instances={"a": down, "b": down})
    total = Counters.sum_of([one, other, other])
    assert total.instances == {
        "a": InstanceState(True, Trouble("no connection", 6, 10.0), 2.0),
        "b": InstanceState(False, Trouble("no connection", 6, 10.0), 2.0),
    }
    assert total.ended().instances == total.instances, "the summary tells the last problem of a process that has ended"
    assert [str(trouble) for trouble in total.troubles(now=20.0, began=15.0)] == [
        "no connection, 6 attempts in 5 s, next try in 2 s"
    ] * 2


def test_workers_that_are_missing_or_dead_are_told() -> None:
    died = WorkerState("worker process 7", 30, 2, 40, note="died by signal SIGKILL; its 3 shards are handed out again")
    missing = WorkerState("a worker of the Dask cluster at tls://h:1", note=WAITED_FOR)
    assert worker_notes([WorkerState("worker process 8", 5), missing]) == ["1 worker missing"]
    assert worker_notes([missing, missing, died]) == ["2 workers missing", "1 worker died"]
    assert str(died) == (
        "worker process 7: 30 ok, 2 failed, 0 in flight; died by signal SIGKILL; its 3 shards are handed out again"
    )
    assert str(WorkerState("x", held_back=2.0)) == "x: 0 ok, 0 failed, 0 in flight, held back for 2 s"


def test_processes_add_their_shares_of_a_learned_limit() -> None:
    one = Counters(instances={"a": InstanceState(learned=LearnedLimit(500.0, refused_rate=520.0, seconds=9.0))})
    other = Counters(instances={"a": InstanceState(learned=LearnedLimit(600.0, refused_rate=610.0, seconds=3.0))})
    total = Counters.sum_of([one, other, Counters(instances={"a": InstanceState()})])
    assert total.learned() == ("1,100/s learned: refused at 1,130/s 3 s ago",)
    assert total.learned_rate() == 1100.0
    apart = Counters.sum_of([one, Counters(instances={"b": InstanceState(learned=LearnedLimit(None, 29))})])
    assert apart.learned() == (
        "a: 500/s learned: refused at 520/s 9 s ago",
        "b: at most 29 at once learned: more were refused",
    )
    assert apart.learned_rate() == 500.0


class Silent(WorkerHandle):
    def send(self, message: object) -> None: ...

    async def receive(self) -> object: ...

    def kill(self) -> None: ...

    async def end(self) -> str:
        return ""


def test_the_share_of_a_dead_worker_is_not_added_to_that_of_its_successor() -> None:
    dead = Silent()
    trouble = Trouble("no connection", 3, 10.0)
    dead.counters = Counters(instances={"a": InstanceState(trouble=trouble, learned=LearnedLimit(500.0))})
    successor = Counters(instances={"a": InstanceState(learned=LearnedLimit(480.0))})
    total = Counters.sum_of([dead.remains(), successor])
    assert total.learned_rate() == 480.0
    assert total.instances["a"].trouble == trouble


def test_a_spool_is_removed_once_a_store_has_it(tmp_path: Path) -> None:
    """Also in a worker on another machine, where the job cannot remove it."""
    spool = tmp_path / "000000.spool"
    spool.write_bytes(b"")
    finished = Finished(Shard(0, 2, 2, 0, 0, ""), spool, Written(0, 0, ""), (), ())
    store = SimpleNamespace(put=lambda commit, path: {"size": path.stat().st_size}, describe=lambda: {"kind": "jsonl"})
    assert put(store, finished).receipt == {"size": 0}
    assert not spool.exists()


def test_figures_of_all_are_added_up() -> None:
    quick, slow = Histogram(), Histogram()
    for _ in range(60):
        quick.add(0.01)
    for _ in range(40):
        slow.add(1.0)
    total = Counters.sum_of(
        [Counters(3, 1, requests=5, limit=10, held_back=1.5, times=quick), Counters(4, 2, limit=7, times=slow)]
    )
    assert (total.fetched, total.failed, total.requests, total.limit, total.held_back) == (7, 3, 5, 17, 1.5)
    assert total.times.percentile(0.5) == pytest.approx(0.01, rel=0.06)
    assert total.times.percentile(0.95) == pytest.approx(1.0, rel=0.06)


# --- the clients ------------------------------------------------------------------------------------------------------


async def test_a_client_is_made_again_as_it_was() -> None:
    async with FlinksClient(
        "acme",
        auth_secret=SECRET,
        auth_scheme="bearer",
        settings=config.bulk(),
        limits={"rate": 50.0},
        connection={"proxy": "http://user:word@proxy.example:3128"},
        app_name="acme-lending/2.1",
        headers={"X-Team": "risk"},
        coalesce=True,
        codec=Codec(transactions="on access"),
    ) as client:
        description, secrets = describe(client)
        sent = pickle.dumps(description)
        assert SECRET.encode() not in sent
        assert b"word" not in sent
        limiter = GCRA(50.0)
        again = make(pickle.loads(sent), from_line(to_line([secrets]))[0], limiter)
        assert again.settings.limits.rate_limiter is limiter
        assert again.settings.connection == client.settings.connection
        for name in ("instance", "auth_scheme", "auth_secret", "app_name", "headers", "coalesce", "hedge"):
            assert getattr(again.options, name) == getattr(client.options, name), name
        assert again.options.codec.transactions == "on access"
        assert again.settings.retry == client.settings.retry
        assert again.host == client.host
        await again.close()


def test_no_secret_is_shown_or_in_the_environment_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = Secrets(Secret(SECRET), Secret("short"))
    assert SECRET not in repr(secrets)
    monkeypatch.setattr(os, "environ", {"A": SECRET, "B": f"Bearer {SECRET}", "C": " short\n", "D": "shorter", "E": ""})
    assert environment_without([secrets]) == {"D": "shorter", "E": ""}


def test_secrets_that_are_cut_short_are_not_taken() -> None:
    line = to_line([Secrets(Secret(SECRET), None)])
    assert from_line(io.BytesIO(line).readline()) == [Secrets(Secret(SECRET), None)]
    with pytest.raises(ValueError):
        from_line(line[:20])


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_how_a_worker_ended_in_words() -> None:
    assert ending(3) == "exit code 3"
    assert ending(-9) == "signal SIGKILL"
    assert ending(-40) == "signal 40"  # for real time, without a name


# --- a function -------------------------------------------------------------------------------------------------------


def called(task: Task, scratch: Path) -> Finished:
    """The function that is called in the workers."""
    assert scratch.is_dir()
    if task.about == "fails":
        raise ValueError("a text that may hold a token")
    with Path(task.about, str(task.shard.id)).open("a") as calls:
        calls.write(f"{os.getpid()}\n")
    time.sleep(0.05)
    return Finished(task.shard, Path(), Written(1, 0, ""), (), (), {"pid": os.getpid()})


async def assert_called_for_each_task(executor: Executor, folder: Path, *, kills: bool) -> None:
    """There are at least 40 tasks, and new ones until one of two workers that both have done some is killed."""
    calls, spools = folder / "calls", folder / "spools"
    calls.mkdir()
    spools.mkdir()
    given, killed = count(), list[int]()
    finished: list[Finished] = []

    async def next_task() -> Task | None:
        number = next(given)
        more = number < 40 or (kills and not killed)
        return Task(Shard(number, 0, 0, 0, 1, ""), about=str(calls)) if more else None

    async def take(one: Finished) -> None:
        finished.append(one)
        if kills and not killed and len({(did.receipt or {})["pid"] for did in finished}) == 2:
            killed.append((one.receipt or {})["pid"])
            os.kill(killed[0], signal.SIGKILL)

    execution = executor.map_shards(Work.of_function(called, spools, logging.getLogger("test"), 4), next_task, take)
    await execution.go()
    assert len(finished) >= 40
    assert sorted(one.shard.id for one in finished) == list(range(len(finished))), "each result is taken once"
    assert execution.counters().fetched == len(finished)
    assert len(killed) == kills
    again = sum(len(path.read_text().splitlines()) - 1 for path in calls.iterdir())
    assert again <= (4 if kills else 0)
    assert list(spools.iterdir()) == []


@pytest.mark.parametrize("executor", [InProcess(), Processes(2)])
async def test_a_function_is_called_for_each_task(executor: Executor, tmp_path: Path) -> None:
    await assert_called_for_each_task(executor, tmp_path, kills=False)


async def test_the_calls_of_a_killed_worker_are_made_again(tmp_path: Path) -> None:
    await assert_called_for_each_task(Processes(2), tmp_path, kills=True)


@pytest.mark.parametrize(("executor", "raised"), [(InProcess(), ValueError), (Processes(2), WorkerError)])
async def test_an_error_of_the_function_ends_the_run(
    executor: Executor, raised: type[Exception], tmp_path: Path
) -> None:
    tasks = iter([Task(Shard(0, 0, 0, 0, 1, ""), about="fails")])

    async def next_task() -> Task | None:
        return next(tasks, None)

    async def take(one: Finished) -> None:
        raise AssertionError

    work = Work.of_function(called, tmp_path, logging.getLogger("test"), 4)
    with pytest.raises(raised):
        await executor.map_shards(work, next_task, take).go()


async def test_a_stop_that_comes_before_a_worker_begins_is_obeyed(tmp_path: Path) -> None:
    sent: list[object] = []
    start = Start("", None, b"", (), (), {}, tmp_path, "none", Rules(), report_every=1.0, function=called)
    worker = Worker(start, [], sent.append, asyncio.get_running_loop())
    worker.receive(StopWorker("enough", "stopped"))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await worker.go()
    (last,) = sent
    assert isinstance(last, Report)
    assert last.over
    assert last.stopped == ("stopped", "enough")
