"""A job on a Ray cluster has the same output as in one process; no secret is sent, and nobody waits forever."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.util import find_spec
from unittest.mock import Mock

import pytest

from flinks_async import ConfigError
from flinks_async.bulk import Job, RayExecutor, WorkerError
from flinks_async.bulk.executors.engines import Host, RaySlot

from ..cli_support import start
from ..support import until
from .cluster_contract import *  # noqa: F403
from .cluster_contract import elsewhere, free_ports
from .server_desk import SECRET, Desk, processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.once,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="a machine has one Ray cluster: use -n 0"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]

# Ray's client server forks while gRPC has threads. With gRPC's support of forks, every sixth child dies before it begins.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0", "GRPC_ENABLE_FORK_SUPPORT": "0",
}  # fmt: skip

PORT, CLIENT_PORT = 26379, 26380
"""Outside of the ports of outgoing connections: if one has the port, Ray's client server ends and `ray start` does not say so."""

PROGRAM = [sys.executable, "-m", "ray.scripts.scripts"]


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def a_ray_cluster(cpus: int = 3, **environment: str) -> Iterator[str]:
    """The address of a cluster on this machine with token authentication. Only its workers have the secret."""
    stop = partial(subprocess.run, [*PROGRAM, "stop", "--force"], capture_output=True, timeout=100, check=False)
    if listens(PORT):
        stop()  # what a killed run of the tests has left: another cluster cannot start beside it
    with tempfile.TemporaryDirectory() as folder:
        options = [
            f"--num-cpus={cpus}",
            "--include-dashboard=false",
            "--object-store-memory=80000000",
            f"--temp-dir={folder}",
        ]
        started = subprocess.run(
            [*PROGRAM, "start", "--head", f"--port={PORT}", f"--ray-client-server-port={CLIENT_PORT}", *options],
            env={**os.environ, **ENVIRONMENT, **environment, "TEST_SECRET": SECRET}, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        try:
            assert started.returncode == 0, started.stderr
            yield f"127.0.0.1:{PORT}"
        finally:
            stop()


def ray_workers() -> list[int]:
    """The processes of the workers."""
    return [pid for pid, _, command in processes() if command.startswith(b"ray::Host")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, a_ray_cluster() as address:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        import ray  # it reads the environment when it is imported

        ray.init(address, namespace="tests", log_to_driver=False, configure_logging=False)
        try:
            yield address
        finally:
            ray.shutdown()


@pytest.fixture
def pids(cluster: str) -> Callable[[], list[int]]:
    return ray_workers


@pytest.fixture
def executor(cluster: str) -> RayExecutor:
    return RayExecutor(cluster, workers=2, secret_env="TEST_SECRET", patience=60.0)


@pytest.fixture
async def url(cluster: str) -> str:
    await until(lambda: listens(CLIENT_PORT))  # `ray start` does not wait for it
    return f"ray://127.0.0.1:{CLIENT_PORT}"


# --- the cluster ------------------------------------------------------------------------------------------------------


def test_a_cluster_without_token_authentication_is_refused_unless_it_is_here_or_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for address in ("ray://10.0.0.7:10001", "head:6379", "ray://head.example:10001"):
        with pytest.raises(ConfigError, match="without token authentication"):
            RayExecutor(address, secret_env="X")
        RayExecutor(address, secret_env="X", allow_unauthenticated=True)
    for address in ("ray://127.0.0.1:10001", "localhost:6379", "auto"):
        RayExecutor(address, secret_env="X")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    RayExecutor("ray://10.0.0.7:10001", secret_env="X")


@asynccontextmanager
async def no_free_cpu() -> AsyncIterator[None]:
    import ray

    taken = [ray.remote(num_cpus=1)(Host).remote() for _ in range(3)]
    try:
        await asyncio.gather(*(RaySlot(ray, one).call(asyncio.sleep, 0) for one in taken))
        yield
    finally:
        for one in taken:
            ray.kill(one)


async def test_a_cluster_without_free_workers_is_told_of_and_given_up(desk: Desk, cluster: str) -> None:
    async def look(job: Job) -> None:
        await until(lambda: (at := job.progress()) and "waiting for a worker of the Ray cluster" in str(at.troubles))

    async with no_free_cpu():
        with pytest.raises(WorkerError, match=r"has had no free worker for 3 s. Start workers"):
            await desk.run(RayExecutor(cluster, secret_env="TEST_SECRET", patience=3.0), during=look)


# --- the doctor -------------------------------------------------------------------------------------------------------


async def examined(desk: Desk, url: str, **env: str) -> tuple[str, str]:
    """The only finding about the cluster, which is a problem: the text, and the advice."""
    process = await start("doctor", "--json", "--executor", url, server=desk.server, env=env)
    stdout, stderr = await process.communicate()
    (found,) = [one for one in json.loads(stdout)["findings"] if one["check"] == "cluster"]
    assert found["state"] == "problem", stderr.decode()[-2000:]
    return found["text"], found["advice"]


@pytest.mark.torture  # Ray itself waits for half a minute
async def test_the_doctor_tells_that_ray_refuses_the_token(desk: Desk, url: str) -> None:
    text, _ = await examined(desk, url, RAY_AUTH_TOKEN="1" * 64)
    assert (
        "Ray does not answer there, or refuses this process's token. Compare the port, and RAY_AUTH_MODE=token" in text
    )


@pytest.mark.torture  # Ray itself waits for half a minute
async def test_the_doctor_tells_that_no_cpu_of_ray_is_free(desk: Desk, url: str) -> None:
    async with no_free_cpu():
        text, advice = await examined(desk, url)
    assert re.fullmatch(r"a Ray worker on \S+: it has not begun within 30 s", text)
    assert advice == "Wait until a CPU of Ray is free there"


async def test_the_doctor_tells_that_nothing_listens(desk: Desk, url: str) -> None:
    text, advice = await examined(desk, elsewhere(url, *free_ports(1)))
    assert text.endswith("cannot be used: Connection refused")
    assert advice.startswith("Ask whether it is running")


def test_a_client_server_that_fails_is_tried_again_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    refuse = Mock(side_effect=ConnectionAbortedError("Initialization failure from server:\nTraceback ..."))
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        ConnectionError, match=r"client server there cannot start a process; its ray_client_server\.err"
    ):
        RayExecutor("ray://127.0.0.1:1", secret_env="X").connect()


def test_another_version_of_ray_or_python_is_told_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.61.0\n    Python: 3.12.3\n")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        WorkerError, match=r"has another version of Ray or Python\. Install the same\. .* Python: 3\.12\.3"
    ):
        RayExecutor("ray://127.0.0.1:1", secret_env="X").connect()
