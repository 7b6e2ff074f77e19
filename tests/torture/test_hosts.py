"""A Dask cluster on several hosts, which are network namespaces of this machine, with a network that fails for ten seconds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from flinks_async.bulk import export, status, verify

pytest.importorskip("distributed")
pytestmark = [pytest.mark.torture, pytest.mark.timeout(400)]

SECRET = "canary-5c1e-hosts"
TOKENS, SHARD, OPEN = 3000, 20, 4
HUB = "10.77.31.1"
OTHERS = {"worker-1": "10.77.31.2", "worker-2": "10.77.31.3", "driver": "10.77.31.4"}

SERVER = f"""
import asyncio, sys
from pathlib import Path
from flinks_async.testing import FlinksServer, Latency

async def main(count):
    async with FlinksServer(auth_secret="{SECRET}", host="{HUB}", latency=Latency.fixed(0.05), size="small") as server:
        while True:
            written = Path(count + ".new")
            written.write_text(f"{{server.stats.requests}} {{server.base_url}}")
            written.replace(count)
            await asyncio.sleep(0.1)

asyncio.run(main(sys.argv[1]))
"""

DRIVER = f"""
import asyncio, sys
from flinks_async import FlinksClient, config
from flinks_async.bulk import *

async def main(directory, path, base_url):
    executor = DaskExecutor("tcp://{HUB}:8786", workers=2, secret_env="TEST_SECRET", allow_plaintext=True, patience=60.0)
    with Job.start(directory, InputFile(path), JSONLParts(), {{"": "here"}}, shard_size={SHARD}) as job:
        async with FlinksClient(auth_secret="{SECRET}", base_url=base_url, allow_http=True, settings=config.bulk(),
                                limits={{"concurrency": 8, "rate": 150.0}}) as client:
            await job.run(client, Rules(open_shards={OPEN}), executor=executor)

asyncio.run(main(*sys.argv[1:]))
"""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr)


class Hosts:
    """A hub with the scheduler and the server, two workers and a driver; all see the same disk."""

    scheduler: subprocess.Popen[bytes]

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.prefix = f"fa{os.getpid() % 10000}"
        stack.callback(self._remove)
        self._add("hub")
        self._inside("hub", "link", "add", "bridge", "type", "bridge")
        self._inside("hub", "addr", "add", f"{HUB}/24", "dev", "bridge")
        self._inside("hub", "link", "set", "bridge", "up")
        for name, address in OTHERS.items():
            self._add(name)
            here, there = f"v-{name}", f"{self.prefix}-{name[-5:]}"
            ip("link", "add", there, "type", "veth", "peer", "name", f"{there}p")
            ip("link", "set", there, "netns", self._name("hub"))
            ip("link", "set", f"{there}p", "netns", self._name(name))
            self._inside("hub", "link", "set", there, "name", here, "master", "bridge", "up")
            self._inside(name, "link", "set", f"{there}p", "up")
            self._inside(name, "addr", "add", f"{address}/24", "dev", f"{there}p")

    def _name(self, host: str) -> str:
        return f"{self.prefix}-{host}"

    def _add(self, host: str) -> None:
        ip("netns", "add", self._name(host))
        self._inside(host, "link", "set", "lo", "up")

    def _inside(self, host: str, *words: str) -> None:
        ip("-n", self._name(host), *words)

    def _remove(self) -> None:
        for host in ("hub", *OTHERS):
            with suppress(OSError):
                ip("netns", "del", self._name(host))

    def start(self, host: str, *words: object, **more: str) -> subprocess.Popen[bytes]:
        command = ["ip", "netns", "exec", self._name(host), *map(str, words)]
        with (self.folder / f"{host}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **more}, start_new_session=True
            )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def partition(self, host: str, seconds: float) -> None:
        self._inside("hub", "link", "set", f"v-{host}", "down")
        time.sleep(seconds)
        self._inside("hub", "link", "set", f"v-{host}", "up")

    def server(self) -> tuple[int, str]:
        """Requests so far, and the URL."""
        with suppress(OSError, ValueError):
            count, url = (self.folder / "count").read_text().split()
            return int(count), url
        return 0, ""

    def sent(self, count: int) -> None:
        until = time.monotonic() + 60
        while self.server()[0] < count:
            assert time.monotonic() < until, self.logs()
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in self.folder.glob("*.log"))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if shutil.which("ip") is None or os.getuid() != 0:
        pytest.skip("network namespaces need root and ip")
    with ExitStack() as stack:
        try:
            hosts = Hosts(tmp_path, stack)
        except OSError as error:
            pytest.skip(f"no network namespaces here: {error}")
        hosts.start("hub", sys.executable, "-c", SERVER, tmp_path / "count")
        hosts.scheduler = hosts.start(
            *("hub", sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", HUB, "--port", 8786),
            *("--no-dashboard", "--no-jupyter"),
        )
        for worker in ("worker-1", "worker-2"):
            hosts.start(
                *(worker, sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://{HUB}:8786", "--nthreads", 1),
                *("--no-dashboard", "--local-directory", tmp_path / worker, "--death-timeout", 120),
                TEST_SECRET=SECRET,
            )
        (tmp_path / "tokens.txt").write_text("".join(f"canary-token-{number}-x\n" for number in range(TOKENS)))
        yield hosts


def drive(hosts: Hosts) -> subprocess.Popen[bytes]:
    while not hosts.server()[1]:
        time.sleep(0.1)
    folder = hosts.folder
    return hosts.start("driver", sys.executable, "-c", DRIVER, folder / "job", folder / "tokens.txt", hosts.server()[1])


def is_whole(hosts: Hosts, most: int) -> None:
    job = hosts.folder / "job"
    assert verify(job) == []
    assert len(list(export(job))) == status(job).totals.fetched == TOKENS
    assert list((job / "spools").iterdir()) == []
    assert TOKENS <= hosts.server()[0] <= most


def test_a_worker_is_cut_off_for_twelve_seconds_and_no_secret_is_in_the_scheduler(hosts: Hosts) -> None:
    driver = drive(hosts)
    hosts.sent(300)
    hosts.partition("worker-1", 12.0)
    assert memory_holds(hosts.scheduler.pid, b"distributed.scheduler"), "the search finds what is there"
    assert not memory_holds(hosts.scheduler.pid, SECRET.encode())
    assert not memory_holds(hosts.scheduler.pid, b"canary-token-")
    assert driver.wait(120) == 0, hosts.logs()
    is_whole(hosts, TOKENS + 2 * OPEN * SHARD)
    log = (hosts.folder / "job" / "job.log").read_text()
    assert re.search(r"its \d+ shards are handed out again", log)
    assert SECRET not in log + hosts.logs()


def test_the_driver_is_cut_off_for_ten_seconds_and_a_run_elsewhere_goes_on_if_it_gives_up(hosts: Hosts) -> None:
    driver = drive(hosts)
    hosts.sent(300)
    hosts.partition("driver", 10.0)
    code, runs = driver.wait(120), 1
    while code != 0:
        assert "the job again to resume" in hosts.logs()
        assert runs < 3, hosts.logs()
        runs += 1
        code = drive(hosts).wait(120)
    is_whole(hosts, TOKENS + (runs + 1) * 2 * OPEN * SHARD)


def memory_holds(pid: int, what: bytes) -> bool:
    """Whether the memory of a process holds these bytes."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        bounds, access = line.split()[:2]
        if "r" not in access or "[v" in line:
            continue
        first, last = (int(part, 16) for part in bounds.split("-"))
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory, suppress(OSError, OverflowError):
            memory.seek(first)
            while first < last:
                piece = memory.read(min(last - first, 1 << 24))
                if not piece:
                    break
                if what in piece:
                    return True
                first += len(piece)
    return False
