"""A job on a Dask cluster has the same output as in one process; no secret is sent, and nobody waits forever."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from flinks_async import ConfigError
from flinks_async.bulk import DaskExecutor, InputChangedError, Job, Rules, StoreError, WorkerError, status, verify
from flinks_async.bulk.executors import dask as executor_module
from flinks_async.bulk.executors.dask import SecretReference
from flinks_async.bulk.executors.seat import PaceLearned, Report, Stored
from flinks_async.bulk.records import Counters, InstanceState
from flinks_async.limits.governor import Trouble
from flinks_async.limits.rate import PaceState
from flinks_async.testing import Fault, Latency

from .test_processes import SECRET, Desk, Watch, a_server, gives_what_one_process_gives

distributed = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two worker processes; TLS with certificates of its own."""
    import dask

    with dask.config.set({"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}):
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, security=True, host="127.0.0.1", dashboard_address="127.0.0.1:0",
            silence_logs=60, env={"TEST_SECRET": SECRET},
        ) as running:  # fmt: skip
            yield running


def pids(cluster: Any) -> list[int]:
    return [worker.pid for worker in cluster.workers.values()]


@pytest.fixture
def executor(cluster: Any) -> DaskExecutor:
    cluster.wait_for_workers(2, timeout=60)
    return DaskExecutor(cluster, workers=2, secret_env="TEST_SECRET")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with a_server() as server:
        yield Desk(tmp_path, server)


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[Desk]:
    async with a_server(latency=Latency.fixed(0.02)) as server:
        yield Desk(tmp_path, server)


async def test_a_cluster_gives_what_one_process_gives(desk: Desk, executor: DaskExecutor, tmp_path: Path) -> None:
    await gives_what_one_process_gives(desk, executor, tmp_path / "two")


async def test_what_a_killed_worker_had_is_done_again_and_once_in_the_output(
    slow: Desk, cluster: Any, executor: DaskExecutor
) -> None:
    async def kill(job: Job) -> None:
        await slow.server.received(60)
        os.kill(pids(cluster)[0], signal.SIGKILL)

    result = await slow.run(executor, Rules(open_shards=4), kill)
    assert (result.state, result.totals.fetched) == ("complete", 200)
    assert set(slow.answers) == set(range(2, 202))
    assert verify(slow.directory) == []
    assert 200 <= slow.server.stats.requests <= 200 + 4 * 10
    assert (slow.directory / "job.log").read_text().count("died by a lost connection") == 1


@pytest.mark.slow
async def test_a_frozen_worker_is_given_up_and_does_no_harm_when_it_wakes(
    slow: Desk, cluster: Any, executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "SILENCE", 1.5)
    frozen: list[int] = []

    async def freeze(job: Job) -> None:
        await slow.server.received(60)
        frozen.append(pids(cluster)[0])
        os.kill(frozen[0], signal.SIGSTOP)

    try:
        result = await slow.run(executor, Rules(open_shards=4), freeze)
        before = {path: path.stat().st_size for path in slow.directory.rglob("*")}
    finally:
        os.kill(frozen[0], signal.SIGCONT)
    assert (result.state, len(slow.answers)) == ("complete", 200)
    await asyncio.sleep(0.5)
    assert {path: path.stat().st_size for path in slow.directory.rglob("*")} == before
    assert verify(slow.directory) == []
    assert "died by silence for 1.5 s" in (slow.directory / "job.log").read_text()


async def test_a_stop_drains_and_no_request_is_repeated_by_the_next_run(slow: Desk, executor: DaskExecutor) -> None:
    async def stop(job: Job) -> None:
        await slow.server.received(60)
        job.stop()

    assert (await slow.run(executor, during=stop)).state == "stopped"
    assert 60 <= status(slow.directory).totals.fetched < 200
    assert (await slow.run()).state == "complete"
    assert set(slow.server.stats.per_token.values()) == {1}


async def test_a_refused_secret_in_one_stops_all(slow: Desk, executor: DaskExecutor) -> None:
    slow.server.auth_secret = "another"
    result = await slow.run(executor)
    assert (result.state, result.totals.pending) == ("refused", 200)
    assert "the AuthSecret is refused" in result.reason


async def test_the_rules_hold_for_all_together(slow: Desk, executor: DaskExecutor) -> None:
    slow.server.script_all(["bad_request"] * 200)
    result = await slow.run(executor, Rules(max_failures=20))
    assert result.state == "stopped"
    assert "tokens failed, more than the 20 allowed" in result.reason
    assert 20 < result.totals.failed < 200


async def test_the_rate_is_one_for_all(tmp_path: Path, executor: DaskExecutor) -> None:
    watch = Watch()
    async with a_server(faults=watch) as server:
        desk = Desk(tmp_path, server)
        desk.write(100)
        await desk.run(executor, limits={"rate": 50.0, "burst": 1, "concurrency": 8})
    times = watch.times
    assert len(times) == 100
    assert times[-1] - times[0] > 0.9 * 99 / 50
    assert max(sum(start <= at < start + 0.5 for at in times) for start in times) <= 0.5 * 50 * 1.2 + 2


async def test_a_pause_for_one_is_a_pause_for_all(tmp_path: Path, executor: DaskExecutor) -> None:
    watch = Watch({40: Fault.reply(503, {}, retry_after=1.0)})
    async with a_server(faults=watch, latency=Latency.fixed(0.02)) as server:
        desk = Desk(tmp_path, server)
        desk.write(300)
        await desk.run(executor, limits={"concurrency": 8})
    paused = watch.times[39]
    assert [at for at in watch.times if paused + 0.3 < at < paused + 0.98] == []
    assert len(watch.times) == 301


async def test_an_input_that_changed_and_a_store_that_fails_end_the_run_as_in_one_process(
    slow: Desk, executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def change(job: Job) -> None:
        slow.write(200, "other")

    with pytest.raises(InputChangedError, match="file of tokens"):
        await slow.run(executor, during=change)
    slow.write(200)
    monkeypatch.setattr(
        "flinks_async.bulk.JSONLParts.put", lambda *_: (_ for _ in ()).throw(StoreError("the disk is full"))
    )
    with pytest.raises(StoreError, match="the disk is full"):
        await slow.run(executor)


# --- the cluster ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_scheduler_that_is_not_there_or_is_lost_is_a_clear_error(slow: Desk) -> None:
    with pytest.raises(WorkerError, match=r"no connection to the Dask scheduler at tcp://127\.0\.0\.1:1"):
        await slow.run(DaskExecutor("tcp://127.0.0.1:1", secret_env="TEST_SECRET", patience=1.0))
    async with distributed.LocalCluster(
        n_workers=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=60, asynchronous=True,
        env={"TEST_SECRET": SECRET},
    ) as lost:  # fmt: skip

        async def lose(job: Job) -> None:
            await slow.server.received(30)
            await lost.close()

        began = time.monotonic()
        with pytest.raises(WorkerError, match=r"connection to the Dask scheduler at .* is lost"):
            await slow.run(DaskExecutor(lost, secret_env="TEST_SECRET", patience=5.0), during=lose)
        assert time.monotonic() - began < 60
    assert (await slow.run()).state == "complete"
    assert len(slow.answers) == 200


@pytest.mark.slow
async def test_a_cluster_without_workers_is_told_of_and_given_up(desk: Desk) -> None:
    async with distributed.LocalCluster(
        n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=60, asynchronous=True
    ) as bare:
        with pytest.raises(WorkerError, match=r"has had no free worker for \d+ s. Start workers"):
            await desk.run(DaskExecutor(bare, secret_env="TEST_SECRET", patience=4.0))
    assert "waiting for a worker of the Dask cluster" in (desk.directory / "job.log").read_text()


def test_an_address_without_tls_is_refused_unless_it_is_on_this_machine_or_asked_for() -> None:
    for address in ("tcp://10.0.0.7:8786", "scheduler:8786", "tcp://scheduler.example:8786", "ws://10.0.0.7:8786"):
        with pytest.raises(ConfigError, match="has no TLS"):
            DaskExecutor(address, secret_env="X")
        DaskExecutor(address, secret_env="X", allow_plaintext=True)
    for address in ("tls://10.0.0.7:8786", "tcp://127.0.0.1:8786", "localhost:8786", "tcp://[::1]:8786"):
        DaskExecutor(address, secret_env="X")


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_moments_are_moved_between_clocks_and_other_messages_stay() -> None:
    state = Counters(
        instances={"a": InstanceState(trouble=Trouble("down", 3, 100.0)), "b": InstanceState(answered=True)}
    )
    sent = executor_module._moved(Report(state), -130.0)
    got = executor_module._moved(sent, 5030.0)
    assert isinstance(got, Report)
    assert got.counters.instances["a"].trouble == Trouble("down", 3, 5000.0), "30 s ago by each clock"
    for until, moved in ((160.0, 5060.0), (0.0, 0.0)):
        pace = executor_module._moved(PaceLearned(1, PaceState(3.0, until)), -130.0)
        assert executor_module._moved(pace, 5030.0) == PaceLearned(1, PaceState(3.0, moved))
    assert executor_module._moved(Stored(3), 7.0) == Stored(3)


def test_exactly_one_reference_is_needed() -> None:
    for wrong in ({}, {"secret_env": "A", "secret_file": "B"}):
        with pytest.raises(ConfigError, match="one of secret_env, secret_file and secret_from"):
            DaskExecutor("tls://x:1", **wrong)
    with pytest.raises(ConfigError, match="the instance 'b'"):
        DaskExecutor("tls://x:1", secret_env={"a": "A"}).secret_of("b")


def my_secret() -> str:
    return SECRET


def test_a_reference_is_resolved_where_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv("MY_SECRET", SECRET)
    for reference in (
        SecretReference("env", "MY_SECRET"),
        SecretReference("file", str(tmp_path / "secret")),
        SecretReference("callable", f"{__name__}:my_secret"),
    ):
        assert reference.resolve().reveal() == SECRET
        assert SECRET.encode() not in pickle.dumps(reference)
    for wrong in (
        SecretReference("env", "NOT_THERE"), SecretReference("file", "/nowhere/x"), SecretReference("callable", "os:nothing"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"finds no AuthSecret in the (environment variable|file|function)"):
            wrong.resolve()


async def test_a_worker_without_the_secret_ends_the_run_with_its_name(desk: Desk, cluster: Any) -> None:
    with pytest.raises(ConfigError, match="finds no AuthSecret in the environment variable NOT_THERE"):
        await desk.run(DaskExecutor(cluster, secret_env="NOT_THERE"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"headers": {"X-Gateway-Key": "k"}}, "headers"),
        ({"connection": {"proxy": "http://user:word@proxy.example:3128"}}, "connection.proxy"),
        ({"middleware": [lambda request, call_next: call_next(request)]}, "middleware"),
    ],
)
async def test_what_cannot_be_sent_to_a_cluster_is_named(
    desk: Desk, executor: DaskExecutor, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        await desk.run(executor, **options)


async def test_neither_secret_nor_tokens_are_in_what_is_sent(
    desk: Desk, executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []

    class Pickle:
        @staticmethod
        def dumps(value: object) -> bytes:
            sent.append(pickle.dumps(value))
            return sent[-1]

        @staticmethod
        def loads(data: bytes) -> Any:
            sent.append(data)
            return pickle.loads(data)

    monkeypatch.setattr(executor_module, "pickle", Pickle)
    await desk.run(executor)
    assert len(sent) > 10
    for data in sent:
        assert SECRET.encode() not in data
        assert b"token-" not in data
