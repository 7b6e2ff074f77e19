"""A job on a Dask cluster has the same output as in one process; no secret is sent, and nobody waits forever."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import pickle
import re
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from flinks_async import ConfigError, FlinksClient, __version__
from flinks_async.bulk import DaskExecutor, Job, Rules, WorkerError, status
from flinks_async.bulk.counters import Counters, InstanceState, InstanceTrouble
from flinks_async.bulk.executors import Work
from flinks_async.bulk.executors import cluster as executor_module
from flinks_async.bulk.executors.engines import DaskSlot
from flinks_async.bulk.executors.processes import Outbox, SecretReference, moved
from flinks_async.bulk.executors.worker import Assigned, Next, PaceLearned, Report, Start, Stored, Warned, describe
from flinks_async.bulk.inputs import Layout
from flinks_async.cli import Exit
from flinks_async.limits.governor import Trouble
from flinks_async.limits.rate import PaceState
from flinks_async.testing import Latency, run_virtual

from ..cli_support import cli
from .cluster_contract import *  # noqa: F403
from .server_desk import SECRET, Desk

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


@pytest.fixture
def pids(cluster: Any) -> Callable[[], list[int]]:
    return lambda: [worker.pid for worker in cluster.workers.values()]


@pytest.fixture
def executor(cluster: Any) -> DaskExecutor:
    cluster.wait_for_workers(2, timeout=60)
    return DaskExecutor(cluster, workers=2, secret_env="TEST_SECRET", patience=60.0)


@pytest.fixture
def url(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The certificates come from Dask's configuration."""
    security = cluster.security
    parts = {
        "ca_file": security.tls_ca_file,
        "client__cert": security.tls_client_cert,
        "client__key": security.tls_client_key,
    }
    for name, content in parts.items():
        (tmp_path / name).write_text(content)
        monkeypatch.setenv(f"DASK_DISTRIBUTED__COMM__TLS__{name.upper()}", str(tmp_path / name))
    return str(cluster.scheduler_address.replace("tls://", "dask+tls://"))


# --- the cluster ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_scheduler_that_is_not_there_or_is_lost_is_a_clear_error(slow: Desk) -> None:
    with pytest.raises(WorkerError, match=r"no connection to the Dask cluster at tcp://127\.0\.0\.1:1"):
        await slow.run(DaskExecutor("tcp://127.0.0.1:1", secret_env="TEST_SECRET", patience=1.0))
    async with distributed.LocalCluster(
        n_workers=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=60, asynchronous=True,
        env={"TEST_SECRET": SECRET},
    ) as lost:  # fmt: skip

        async def lose(job: Job) -> None:
            await slow.server.received(30)
            slow.server.latency = Latency.fixed(60.0)  # the rest is not done before the cluster is closed
            await lost.close()

        began = time.monotonic()
        with pytest.raises(WorkerError, match=r"connection to the Dask cluster at .* is lost"):
            await slow.run(DaskExecutor(lost, secret_env="TEST_SECRET", patience=5.0), during=lose)
        assert time.monotonic() - began < 60
    slow.server.latency = None
    assert (await slow.run()).state == "complete"
    assert len(slow.answers) == 200


@pytest.mark.slow
async def test_a_cluster_without_workers_is_told_of_and_given_up(desk: Desk, tmp_path: Path) -> None:
    async with distributed.LocalCluster(
        n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=60, asynchronous=True
    ) as bare:
        with pytest.raises(WorkerError, match=r"has had no free worker for \d+ s. Start workers"):
            await desk.run(DaskExecutor(bare, secret_env="TEST_SECRET", patience=8.0), during=sees_the_wait)
        url = bare.scheduler_address.replace("tcp://", "dask://")
        options = ("--column", "token", "--executor", url, "--wait-for-workers", "6s", "--progress", "json")
        result = await cli("fetch", desk.path, "--out", tmp_path / "a.jsonl", *options, server=desk.server)
        assert result.exit_code == Exit.STOPPED
        events = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
        (wait,) = next(event["troubles"] for event in events if event.get("troubles"))
        assert wait["reason"] == f"waiting for a worker of the Dask cluster at {bare.scheduler_address}"
        assert wait["seconds"] >= 1
        assert wait["seconds"] + wait["gives_up"] == pytest.approx(6.0, abs=0.1)
        (missing,) = next(event["workers"] for event in events if event.get("workers"))
        assert missing["name"] == f"a worker of the Dask cluster at {bare.scheduler_address}"
        assert missing["note"] == "waiting for one that is free"
        assert re.search(r"has had no free worker for \d+ s\. Start workers", result.stderr)
    assert re.search(r"waiting for a worker of .* for \d s, gives up in \d s", (desk.directory / "job.log").read_text())


async def sees_the_wait(job: Job) -> None:
    """In the progress, and then in what `status` shows from the ledger."""
    async with asyncio.timeout(30):
        while (progress := job.progress()) is None or not progress.troubles:
            await asyncio.sleep(0.1)
        while not ((latest := status(job.directory).latest) and latest["troubles"]):
            await asyncio.sleep(0.2)
    for told in (str(progress.troubles[0]), str(InstanceTrouble(**latest["troubles"][0]))):
        assert re.fullmatch(r"waiting for a worker of the Dask cluster at tcp://\S+ for \d s, gives up in \d s", told)


@pytest.mark.slow
async def test_a_scheduler_that_accepts_and_never_answers_is_told_of_and_given_up(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"

        async def look(job: Job) -> None:
            async with asyncio.timeout(30):
                while (progress := job.progress()) is None or not progress.troubles:
                    await asyncio.sleep(0.05)
            (wait,) = progress.troubles
            assert re.fullmatch(rf"connecting to the Dask cluster at {address} for \d s, gives up in \d s", str(wait))

        with pytest.raises(WorkerError, match=rf"no connection to the Dask cluster at {address} for 3 s \(no answer\)"):
            await desk.run(DaskExecutor(address, secret_env="TEST_SECRET", patience=3.0), during=look)


async def test_calls_go_straight_to_a_worker_and_through_the_scheduler_if_it_cannot_be_reached(
    desk: Desk, executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for forbidden in (distributed.Client.run, DaskSlot._reached):
        with monkeypatch.context() as patch:
            if forbidden is DaskSlot._reached:
                patch.setattr(DaskSlot, "_reached", AsyncMock(return_value=False))
            else:
                patch.setattr(distributed.Client, "run", AsyncMock(side_effect=AssertionError))
            assert (await desk.run(executor)).totals.fetched == 200
        desk.directory = desk.directory.with_name("again")


async def test_another_worker_at_the_same_address_is_not_asked() -> None:
    """As behind a tunnel, where the addresses of the cluster are those of other machines."""
    client = AsyncMock()
    client.rpc = lambda address: AsyncMock(identity=AsyncMock(return_value={"id": "Worker-here"}))
    for there, is_it in (("Worker-here", True), ("Worker-there", False)):
        client.scheduler.broadcast.return_value = {"tcp://10.0.0.7:1": {"id": there}}
        assert bool(await DaskSlot(client, "tcp://10.0.0.7:1", set())._reached()) is is_it


def test_an_address_without_tls_is_refused_unless_it_is_on_this_machine_or_asked_for() -> None:
    for address in ("tcp://10.0.0.7:8786", "scheduler:8786", "tcp://scheduler.example:8786", "ws://10.0.0.7:8786"):
        with pytest.raises(ConfigError, match="has no TLS"):
            DaskExecutor(address, secret_env="X")
        DaskExecutor(address, secret_env="X", allow_plaintext=True)
    for address in ("tls://10.0.0.7:8786", "tcp://127.0.0.1:8786", "localhost:8786", "tcp://[::1]:8786"):
        DaskExecutor(address, secret_env="X")


# --- messages ---------------------------------------------------------------------------------------------------------


def test_reports_go_with_other_messages_or_when_the_other_side_has_waited() -> None:
    """Each call costs the cluster's scheduler and the job's program about a millisecond."""

    async def calls() -> list[tuple[float, list[bytes]]]:
        outbox, loop, taken = Outbox(), asyncio.get_running_loop(), list[tuple[float, list[bytes]]]()

        async def take() -> None:
            while messages := await outbox.take(1.0):
                taken.append((round(loop.time() - began, 6), messages))

        began, taking = loop.time(), asyncio.create_task(take())
        stopped = Report(Counters(), ("stopped", "enough"))
        for at, message in [
            (0.1, Next()), (0.2, Report(Counters())), (0.3, Report(Counters())), (0.4, Warned("")),
            (0.5, Report(Counters())), (1.6, stopped),
        ]:  # fmt: skip
            await asyncio.sleep(began + at - loop.time())
            outbox.put(message, str(at).encode())
        await taking
        return taken

    assert run_virtual(calls()) == [(0.1, [b"0.1"]), (0.4, [b"0.4", b"0.3"]), (1.4, [b"0.5"]), (1.6, [b"1.6"])]


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_moments_are_moved_between_clocks_and_other_messages_stay() -> None:
    state = Counters(
        instances={"a": InstanceState(trouble=Trouble("down", 3, 100.0)), "b": InstanceState(answered=True)}
    )
    sent = moved(Report(state), -130.0)
    got = moved(sent, 5030.0)
    assert isinstance(got, Report)
    assert got.counters.instances["a"].trouble == Trouble("down", 3, 5000.0), "30 s ago by each clock"
    for until, then in ((160.0, 5060.0), (0.0, 0.0)):
        pace = moved(PaceLearned(1, PaceState(3.0, until)), -130.0)
        assert moved(pace, 5030.0) == PaceLearned(1, PaceState(3.0, then))
    assert moved(Stored(3), 7.0) == Stored(3)


def test_exactly_one_reference_is_needed() -> None:
    for wrong in ({}, {"secret_env": "A", "secret_file": "B"}):
        with pytest.raises(ConfigError, match="one of secret_env, secret_file and secret_from"):
            DaskExecutor("tls://x:1", **wrong)
    with pytest.raises(ConfigError, match="the instance 'b'"):
        DaskExecutor("tls://x:1", secret_env={"a": "A"}).secret_of("b")


def work_of(desk: Desk, job: Job, clients: dict[str | None, FlinksClient]) -> Work:
    return Work(
        job._source, b"key", clients, desk.directory, "none", Rules(),
        secret_is_good=False, log=logging.getLogger("test"),
    )  # fmt: skip


async def test_instances_with_different_secrets_are_never_given_the_same_one(
    desk: Desk, executor: DaskExecutor
) -> None:
    other = FlinksClient(auth_secret="the-secret-of-another-instance", base_url=desk.server.base_url)
    with desk.job() as job:
        work = work_of(desk, job, {"acme": desk.client(), "beta": other})
        for names in ("TEST_SECRET", {"acme": "TEST_SECRET", "beta": "TEST_SECRET"}):
            with pytest.raises(ConfigError, match="the AuthSecrets differ: name one for each"):
                DaskExecutor(executor.address, secret_env=names).map_shards(work, AsyncMock(), AsyncMock())


def my_secret() -> str:
    return SECRET


def test_a_reference_is_resolved_where_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv("MY_SECRET", SECRET)
    for reference in (
        SecretReference("secret_env", "MY_SECRET"),
        SecretReference("secret_file", str(tmp_path / "secret")),
        SecretReference("secret_from", f"{__name__}:my_secret"),
    ):
        assert reference.resolve().reveal() == SECRET
        assert SECRET.encode() not in pickle.dumps(reference)
    for wrong in (
        SecretReference("secret_env", "NOT_THERE"), SecretReference("secret_file", "/nowhere/x"), SecretReference("secret_from", "os:nothing"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"finds no secret in the (environment variable|file|function)"):
            wrong.resolve()


@pytest.mark.parametrize(
    ("source", "secret"),
    [("secret_env", "3f2b-canary-9c"), ("secret_env", "canary_9c"), ("secret_file", "3f2b-canary-9c"),
     ("secret_from", "3f2b-canary-9c"), ("secret_from", "canary:y")],
)  # fmt: skip
async def test_a_secret_in_place_of_its_name_is_refused_and_not_shown(desk: Desk, source: Any, secret: str) -> None:
    client = FlinksClient(auth_secret=secret, base_url=desk.server.base_url)
    with desk.job() as job, pytest.raises(ConfigError, match="not the AuthSecret itself") as refused:
        executor = DaskExecutor("tcp://127.0.0.1:8786", **{source: {"": secret}})
        executor.map_shards(work_of(desk, job, {None: client}), AsyncMock(), AsyncMock())
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("source", ["secret_env", "secret_file", "secret_from"])
def test_the_error_of_a_worker_shows_no_reference_that_may_be_a_secret(source: Any) -> None:
    with pytest.raises(ConfigError, match=f"that {source} names") as refused:
        SecretReference(source, "canary_9c").resolve()
    assert "canary" not in str(refused.value)


def start_of(folder: Path, **changes: Any) -> Start:
    return Start(
        **{"path": "tokens", "layout": Layout("text"), "key": b"", "clients": (), "permits": (), "names": {},
           "spools": folder, "compression": "none", "rules": Rules(), "report_every": 1.0, **changes},
    )  # fmt: skip


async def test_a_worker_without_its_secret_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    start = start_of(tmp_path / "spools", store={})
    data = pickle.dumps((start, [SecretReference("secret_env", "NOT_THERE")]))
    assert isinstance(pickle.loads(await executor_module.begin_worker("worker", __version__, data)), ConfigError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_over", [False, True], ids=["works", "is over"])
async def test_a_worker_whose_job_died_forgets_its_secrets(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, is_over: bool
) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    description, _ = describe(desk.client())
    start = start_of(desk.directory.parent, path=str(desk.path), layout=Layout(column="token"), clients=(description,),
                     permits=(0,), names={None: 0})  # fmt: skip
    data = pickle.dumps((start, [SecretReference("secret_env", "MY_SECRET")]))
    assert await executor_module.begin_worker("worker", __version__, data) == b""
    worker = weakref.ref(executor_module._threads["worker"]._worker)
    if is_over:
        assert await executor_module.messages_of_worker("worker"), "it asks for a task"
        await executor_module.tell_worker("worker", [pickle.dumps(Assigned(None, True))])
    monkeypatch.setattr(executor_module, "SILENCE", 0.5)
    async with asyncio.timeout(10):
        while executor_module._threads:
            await asyncio.sleep(0.05)
        while worker() is not None:
            gc.collect()
            await asyncio.sleep(0.05)
    assert await executor_module.messages_of_worker("worker") is None
    await executor_module.tell_worker("worker", [b"late"])


async def test_dask_logs_nothing_that_was_sent_to_a_worker_that_cannot_begin(cluster: Any) -> None:
    async with distributed.Client(
        cluster.scheduler_address, security=cluster.security, asynchronous=True, set_as_default=False
    ) as client:
        for data in (b"canary", pickle.dumps((start_of(Path("/nowhere"), path="canary"), [None]))):
            for answer in (await client.run(executor_module.begin_worker, "worker", __version__, data)).values():
                assert isinstance(pickle.loads(answer), WorkerError)
        await client.run(executor_module.tell_worker, "worker", [b"canary"])
        assert "canary" not in str(await client.get_worker_logs())


async def test_a_worker_raises_its_limit_of_open_files_and_the_job_logs_what_it_cannot_reach(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flinks_async.bulk.executors.protocol.allow_open_files", lambda count: 16 + 32 + 5)
    monkeypatch.setenv("MY_SECRET", SECRET)
    description, _ = describe(desk.client())
    start = start_of(desk.directory.parent, path=str(desk.path), layout=Layout(column="token"), clients=(description,),
                     permits=(0,), names={None: 0})  # fmt: skip
    await executor_module.begin_worker(
        "worker", __version__, pickle.dumps((start, [SecretReference("secret_env", "MY_SECRET")]))
    )
    try:
        first, *_ = [pickle.loads(one) for one in await executor_module.messages_of_worker("worker") or []]
    finally:
        await executor_module.end_worker("worker")
    assert isinstance(first, Warned)
    assert first.text.startswith(
        "at most 5 requests are sent at once, not 8, because this process may open only 53 more"
    )
