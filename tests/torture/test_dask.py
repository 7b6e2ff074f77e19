"""kill -9 at random moments of a job on a Dask cluster: of workers, and of the program that runs the job."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flinks_async.bulk import DaskExecutor, Job, Rules, verify
from flinks_async.testing import Latency

from ..bulk.test_processes import SECRET, Desk, a_server

distributed = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.torture,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]

TOKENS, SHARD, OPEN = 1000, 20, 4

DRIVER = f"""
import asyncio, sys
from flinks_async import FlinksClient, config
from flinks_async.bulk import *

async def main(directory, path, base_url, scheduler):
    executor = DaskExecutor(scheduler, workers=2, secret_env="TEST_SECRET")
    with Job.start(directory, InputFile(path, Layout(column="token", key_column="user")), JSONLParts(), {{"": "here"}},
                   shard_size={SHARD}) as job:
        async with FlinksClient(auth_secret=sys.stdin.readline().strip(), base_url=base_url, settings=config.bulk(),
                                limits={{"concurrency": 8}}) as client:
            await job.run(client, Rules(open_shards={OPEN}), executor=executor)

asyncio.run(main(*sys.argv[1:]))
"""


def a_cluster() -> Any:
    return distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=60,
        asynchronous=True, env={"TEST_SECRET": SECRET},
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
async def test_workers_are_killed_at_random_moments(tmp_path: Path, seed: int) -> None:
    rng, kills = random.Random(seed), 0
    async with a_server(latency=Latency.fixed(0.01)) as server, a_cluster() as cluster:
        desk = Desk(tmp_path, server)
        desk.write(TOKENS)

        async def kill(job: Job) -> None:
            nonlocal kills
            while job.progress() is not None and kills < 5:
                await asyncio.sleep(rng.uniform(0.05, 1.0))
                worker = rng.choice(list(cluster.workers.values()))
                with suppress(ProcessLookupError, TypeError, AttributeError):
                    os.kill(worker.pid, signal.SIGKILL)
                    kills += 1

        with desk.job(SHARD):
            pass
        result = await desk.run(
            DaskExecutor(cluster, workers=2, secret_env="TEST_SECRET"), Rules(open_shards=OPEN), kill
        )
        assert result.state == "complete"
        assert set(desk.answers) == set(range(2, TOKENS + 2))
        assert verify(desk.directory) == []
        assert kills
        assert TOKENS <= server.stats.requests <= TOKENS + kills * OPEN * SHARD


@pytest.mark.parametrize("seed", range(5))
async def test_the_program_of_the_job_is_killed_at_random_moments(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    async with a_server(latency=Latency.fixed(0.01)) as server, a_cluster() as cluster:
        desk = Desk(tmp_path, server)
        desk.write(TOKENS)
        kills = 0
        while True:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", DRIVER, str(desk.directory), str(desk.path), server.base_url,
                cluster.scheduler_address, stdin=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stdin is not None
            process.stdin.write(SECRET.encode() + b"\n")
            await process.stdin.drain()
            begun = server.stats.requests
            with suppress(TimeoutError):
                if kills < 4:
                    while server.stats.requests == begun and process.returncode is None:
                        await asyncio.sleep(0.01)
                await asyncio.wait_for(process.wait(), rng.uniform(0.0, 1.5) if kills < 4 else 60.0)
            if process.returncode is not None:
                break
            process.kill()
            await process.wait()
            kills += 1
        assert process.returncode == 0
        assert set(desk.answers) == set(range(2, TOKENS + 2))
        assert verify(desk.directory) == []
        assert list((desk.directory / "spools").iterdir()) == []
        assert kills
        assert TOKENS <= server.stats.requests <= TOKENS + kills * 2 * OPEN * SHARD
