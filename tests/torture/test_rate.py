"""One rate and one pause for three workers that die and join, counted at the server. Run it alone on a quiet machine:

    python -m pytest tests/torture/test_rate.py -m torture -n 0 -s

It prints what `docs/many-machines.md` says of rates.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flinks_async.bulk import DaskExecutor, Job, Processes, RayExecutor, Rules
from flinks_async.testing import Fault

from ..bulk.server_desk import SECRET, Desk, Watch, a_server, workers
from ..bulk.test_ray import ENVIRONMENT, a_ray_cluster, ray_workers
from ..support import until
from ..test_redis import Redis

pytestmark = [
    pytest.mark.torture,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]

RATE, SECONDS = 400.0, 20.0
PAUSE = 2.0

SENDER = f"""
import asyncio, itertools, sys
from flinks_async import FlinksClient, RedisRateLimiter, config

async def main(base_url, redis):
    limiter = RedisRateLimiter(redis, "acme", rate={RATE})
    async with FlinksClient(auth_secret=sys.stdin.readline().strip(), base_url=base_url, settings=config.bulk(),
                            limits={{"rate_limiter": limiter, "concurrency": 50}}) as client:
        async for _ in client.partner_access_many(f"t-{{n}}" for n in itertools.count()):
            pass

asyncio.run(main(*sys.argv[1:]))
"""


class Run:
    """Three workers that send as fast as they may."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.watch = Watch()
        self.began = 0.0  # when all three had sent something
        self.folder = folder
        self.stack = stack

    async def begin(self) -> None:
        server = await self.stack.enter_async_context(a_server(faults=self.watch, size="small"))
        self.desk = Desk(self.folder, server)

    async def until(self, seconds: float) -> None:
        await until(lambda: self.began)
        await asyncio.sleep(max(0.0, self.began + seconds - time.monotonic()))

    async def job(self, executor: Any, kill: Any) -> None:
        self.desk.write(int(RATE * (SECONDS + 20)))

        async def during(job: Job) -> None:
            await until(lambda: (at := job.progress()) and sum(one.requests > 0 for one in at.workers) == 3)
            self.began = time.monotonic()
            await self.until(7.0)
            kill()
            await self.until(SECONDS + 3.0)
            job.stop()

        limits = {"rate": RATE, "concurrency": 150}
        self.stack.push_async_callback(self._end, asyncio.ensure_future(self._run(executor, during, limits)))

    async def _run(self, executor: Any, during: Any, limits: dict[str, Any]) -> None:
        with self.desk.job(100):
            pass
        await self.desk.run(executor, Rules(open_shards=12), during, limits=limits)

    async def _end(self, running: asyncio.Task[None]) -> None:
        await running

    async def processes(self) -> None:
        await self.job(Processes(3), lambda: os.kill(workers()[0], signal.SIGKILL))

    async def dask(self) -> None:
        distributed = pytest.importorskip("distributed")
        cluster = await self.stack.enter_async_context(
            distributed.LocalCluster(
                n_workers=3,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                silence_logs=60,
                asynchronous=True,
                env={"TEST_SECRET": SECRET},
            )
        )
        executor = DaskExecutor(cluster, workers=3, secret_env="TEST_SECRET")
        await self.job(executor, lambda: os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL))

    async def ray(self) -> None:
        if find_spec("ray") is None:
            pytest.skip("Ray is not installed")
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        address = self.stack.enter_context(a_ray_cluster())
        executor = RayExecutor(address, workers=3, secret_env="TEST_SECRET")
        await self.job(executor, lambda: os.kill(ray_workers()[0], signal.SIGKILL))

    async def redis(self) -> None:
        pytest.importorskip("redis")
        redis = Redis(self.folder)
        redis.start()
        self.stack.callback(redis.stop)
        first, *_ = [await self._sender(redis) for _ in range(3)]
        await until(lambda: self.watch.times)
        self.began = self.watch.times[0]

        async def change() -> None:
            await self.until(7.0)
            first.kill()
            await self.until(10.0)
            await self._sender(redis)

        changing = asyncio.ensure_future(change())
        self.stack.callback(changing.cancel)

    async def _sender(self, redis: Redis) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SENDER, self.desk.server.base_url, redis.url, stdin=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(f"{SECRET}\n".encode())
        await process.stdin.drain()

        async def end() -> None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

        self.stack.push_async_callback(end)
        return process


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    async with AsyncExitStack() as stack:
        run = Run(tmp_path, stack)
        await run.begin()
        yield run


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["processes", "dask", "ray", "redis"])
async def test_the_rate_of_three_that_die_and_join_is_what_was_asked(run: Run, how: str) -> None:
    await getattr(run, how)()
    await run.until(SECONDS + 2.5)
    times = run.watch.times
    first = run.began + 2.0
    counted = [at for at in times if first <= at < first + SECONDS]
    windows = [
        sum(start <= at < start + 1 for at in counted) for start in [first + n / 4 for n in range(int(SECONDS * 4) - 4)]
    ]
    print(f"\n{how}: {len(counted) / SECONDS:.1f}/s of {RATE:g}, {min(windows)}-{max(windows)} in a second")
    assert len(counted) == pytest.approx(RATE * SECONDS, rel=0.01)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["processes", "dask", "ray", "redis"])
async def test_a_pause_stops_all_with_few_requests_more(run: Run, how: str) -> None:
    number = int(RATE * 4)
    run.watch.faults[number] = Fault.reply(503, {}, retry_after=PAUSE)
    await getattr(run, how)()
    await run.until(9.0)
    times = run.watch.times
    begun = times[number - 1]
    more = [at for at in times if begun < at < begun + PAUSE - 0.05]
    again = min(at for at in times if at > begun + PAUSE - 0.05)
    print(f"\n{how}: {len(more)} requests after the pause, the last after {1000 * (max(more, default=begun) - begun):.0f} ms, "
          f"on again after {again - begun:.2f} s")  # fmt: skip
    assert len(more) <= 20
