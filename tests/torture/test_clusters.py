"""Jobs on clusters: kill -9 at random moments of workers, of the program that runs the job and of the head of Ray; and machines
that are frozen until their cluster has given them up, and then wake.

Each seed has five moments. `.ci/torture` takes ten seeds.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from flinks_async.bulk import verify
from flinks_async.testing import FlinksServer, Latency

from ..bulk.server_desk import SECRET, Desk, a_server
from ..bulk.test_ray import ENVIRONMENT, PROGRAM, a_ray_cluster, ray_workers
from ..support import TIMES, until

pytestmark = [
    pytest.mark.torture,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]

psutil = pytest.importorskip("psutil")

TOKENS, SHARD, OPEN = 1000, 20, 4
KILLS, SEEDS = 5, range(max(1, round(TIMES)))

DRIVER = f"""
import asyncio, sys
from flinks_async import FlinksClient, config
from flinks_async.bulk import *

async def main(engine, directory, path, base_url, address):
    kind = {{"dask": DaskExecutor, "ray": RayExecutor}}[engine]
    executor = kind(address, workers=2, secret_env="TEST_SECRET", patience=60.0)
    with Job.start(directory, InputFile(path, Layout(column="token", key_column="user")), JSONLParts(), {{"": "here"}},
                   shard_size={SHARD}) as job:
        async with FlinksClient(auth_secret=sys.stdin.readline().strip(), base_url=base_url, settings=config.bulk(),
                                limits={{"concurrency": 8}}) as client:
            await job.run(client, Rules(open_shards={OPEN}), executor=executor)

asyncio.run(main(*sys.argv[1:]))
"""


@frozen
class Cluster:
    engine: str
    address: str
    pids: Callable[[], list[int]]

    async def drive(self, desk: Desk) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", DRIVER, self.engine, str(desk.directory), str(desk.path), desk.server.base_url, self.address,
            stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(SECRET.encode() + b"\n")
        await process.stdin.drain()
        return process


@pytest.fixture(params=["dask", "ray"])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    if request.param == "ray":
        if find_spec("ray") is None:
            pytest.skip("Ray is not installed")
        with a_ray_cluster() as address:
            yield Cluster("ray", address, ray_workers)
        return
    distributed = pytest.importorskip("distributed")
    async with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=60,
        asynchronous=True, env={"TEST_SECRET": SECRET},
    ) as running:  # fmt: skip
        yield Cluster(
            "dask", running.scheduler_address, lambda: [one.pid for one in running.workers.values() if one.pid]
        )


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with a_server(latency=Latency.fixed(0.02)) as server:
        desk = Desk(tmp_path, server)
        desk.write(TOKENS)
        yield desk


def is_whole(desk: Desk, event: str, most: int) -> None:
    """The output has each answer once, and at most so many requests were made. Prints a row of `docs/many-machines.md`."""
    print(f"\n| {event} | {desk.server.stats.requests - TOKENS} of at most {most - TOKENS} |")
    assert set(desk.answers) == set(range(2, TOKENS + 2))
    assert verify(desk.directory) == []
    assert list((desk.directory / "spools").iterdir()) == []
    assert TOKENS <= desk.server.stats.requests <= most


async def until_it_sends(server: FlinksServer, process: asyncio.subprocess.Process) -> None:
    begun = server.stats.requests
    while server.stats.requests == begun and process.returncode is None:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", SEEDS)
async def test_workers_are_killed_at_random_moments(cluster: Cluster, desk: Desk, seed: int) -> None:
    rng, kills = random.Random(seed), 0
    process = await cluster.drive(desk)
    await until_it_sends(desk.server, process)
    while process.returncode is None and kills < KILLS:
        await asyncio.sleep(rng.uniform(0.05, 1.0))
        with suppress(ProcessLookupError, IndexError):
            os.kill(rng.choice(cluster.pids()), signal.SIGKILL)
            kills += 1
    _, stderr = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, stderr.decode()[-2000:]
    assert kills
    is_whole(desk, f"{cluster.engine}: {kills} workers", TOKENS + kills * OPEN * SHARD)


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_program_of_the_job_is_killed_at_random_moments(cluster: Cluster, desk: Desk, seed: int) -> None:
    rng, kills = random.Random(seed), 0
    while True:
        process = await cluster.drive(desk)
        if kills < KILLS:
            await until_it_sends(desk.server, process)
        ending = asyncio.ensure_future(process.communicate())
        await asyncio.wait({ending}, timeout=rng.uniform(0.0, 1.5) if kills < KILLS else 90.0)
        if process.returncode is None:
            process.kill()
            kills += 1
        _, stderr = await ending
        if process.returncode != -signal.SIGKILL:
            break
    assert process.returncode == 0, stderr.decode()[-2000:]
    assert kills
    is_whole(desk, f"{cluster.engine}: {kills} times the program", TOKENS + kills * 2 * OPEN * SHARD)


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
async def test_the_head_of_ray_is_lost_and_the_job_ends_or_goes_on_with_another(desk: Desk) -> None:
    with a_ray_cluster() as address:
        process = await Cluster("ray", address, ray_workers).drive(desk)
        await until_it_sends(desk.server, process)
        found = subprocess.run(["pgrep", "-f", f"gcs_server.*{address.split(':')[1]}"], capture_output=True, check=True)
        os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
        _, stderr = await asyncio.wait_for(process.communicate(), 150)
        assert process.returncode is not None
    if process.returncode != 0:  # Ray ends a program that misses its head for long; a short job is done before
        with a_ray_cluster() as address:
            process = await Cluster("ray", address, ray_workers).drive(desk)
            _, stderr = await asyncio.wait_for(process.communicate(), 90)
            assert process.returncode == 0, stderr.decode()[-2000:]
    is_whole(desk, "ray: the head", TOKENS + 2 * OPEN * SHARD)


# --- machines ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def dask_machines(folder: Path) -> AsyncIterator[tuple[Cluster, list[int]]]:
    """A cluster of two machines, each a nanny and its worker, that gives up silent ones after 6 s; and the nannies."""
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.scheduler.worker-ttl": "6s"}))
        async with distributed.LocalCluster(
            n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=60, asynchronous=True
        ) as running:
            address = running.scheduler_address
            options = ["--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
            machines = [
                subprocess.Popen(
                    [sys.executable, "-m", "dask", "worker", address, *options],
                    env={**os.environ, "TEST_SECRET": SECRET}, stderr=subprocess.DEVNULL,
                )
                for _ in range(2)
            ]  # fmt: skip
            for machine in machines:
                stack.callback(end_all, machine.pid)
            async with asyncio.timeout(60):
                while len(running.scheduler_info["workers"]) < 2:
                    await asyncio.sleep(0.1)
            yield Cluster("dask", address, list), [machine.pid for machine in machines]


@asynccontextmanager
async def ray_machines(folder: Path) -> AsyncIterator[tuple[Cluster, list[int]]]:
    """A cluster of a head without workers and two machines that it gives up after some seconds; and their raylets."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    health = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "1000",
              "RAY_health_check_failure_threshold": "5", "RAY_health_check_initial_delay_ms": "0"}  # fmt: skip
    with a_ray_cluster(0, **health) as address:
        for number in (2, 3):
            await asyncio.to_thread(
                subprocess.run,
                [*PROGRAM, "start", f"--address={address}", "--num-cpus=1", f"--node-ip-address=127.0.0.{number}",
                 "--object-store-memory=80000000"],
                env={**os.environ, **ENVIRONMENT, **health, "TEST_SECRET": SECRET}, capture_output=True, check=True, timeout=100,
            )  # fmt: skip
        raylets = [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if {"--node_ip_address=127.0.0.2", "--node_ip_address=127.0.0.3"} & {*(process.info["cmdline"] or ())}
        ]
        assert len(raylets) == 2, "the head, which has the machine's own address, is not among them"
        yield Cluster("ray", address, ray_workers), raylets


def machine_of(pid: int) -> list[Any]:
    """A process and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    return []


def end_all(pid: int) -> None:
    for process in machine_of(pid):
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.parametrize("machines", [dask_machines, ray_machines])
@pytest.mark.parametrize("seed", SEEDS)
async def test_a_machine_that_wakes_after_its_cluster_has_given_it_up_does_no_harm(
    tmp_path: Path, machines: Callable[[Path], Any], seed: int
) -> None:
    rng = random.Random(seed)
    async with a_server(latency=Latency.fixed(0.15)) as server, machines(tmp_path) as (cluster, pids):
        desk = Desk(tmp_path, server)
        desk.write(TOKENS)
        process = await cluster.drive(desk)
        ending = asyncio.ensure_future(process.communicate())
        await until(
            lambda: server.stats.max_in_flight > 4 or ending.done()
        )  # each has four, so that the frozen one has shards
        await asyncio.sleep(rng.uniform(0.5, 4.0))
        frozen = machine_of(rng.choice(pids))
        try:
            for one in frozen:
                one.suspend()
            log = desk.directory / "job.log"
            async with asyncio.timeout(60):
                while not re.search("its [1-9] shards are handed out again", log.read_text()) and not ending.done():
                    await asyncio.sleep(0.2)
            await asyncio.sleep(rng.uniform(2.0, 4.0))
            assert not ending.done(), "the machine wakes while the job runs"
        finally:
            for one in frozen:
                with suppress(psutil.NoSuchProcess):
                    one.resume()
        _, stderr = await asyncio.wait_for(ending, 120)
        assert process.returncode == 0, stderr.decode()[-2000:]
        is_whole(desk, f"{cluster.engine}: a frozen machine", TOKENS + OPEN * SHARD)
        before = {path: path.stat().st_size for path in desk.directory.rglob("*")}
        await asyncio.sleep(3.0)
        assert {path: path.stat().st_size for path in desk.directory.rglob("*")} == before
