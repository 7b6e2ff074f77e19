"""Jobs against a server on real sockets, for the tests of executors and of object storage."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from flinks_async import FlinksClient, config
from flinks_async.bulk import Executor, InputFile, Job, JSONLParts, Layout, Result, Rules, verify
from flinks_async.testing import Fault, FlinksServer, Latency

from ..support import answers_of, until

SECRET = "3f2a6f0c-7b0e-4d3a-9a51-0c8d4e5b6a79"


class Desk:
    """A folder with a file of tokens `token-1`, ... in a CSV, and a server that answers them."""

    def __init__(self, folder: Path, server: FlinksServer) -> None:
        self.path = folder / "tokens.csv"
        self.directory = folder / "job"
        self.server = server
        self.write(200)

    def write(self, tokens: int, name: str = "token") -> None:
        self.path.write_text("user,token\n" + "".join(f"u-{n},{name}-{n}\n" for n in range(1, tokens + 1)))

    def job(self, shard_size: int = 10) -> Job:
        source = InputFile(self.path, Layout(column="token", key_column="user"))
        return Job.start(self.directory, source, JSONLParts(), {"": "here"}, shard_size=shard_size)

    def client(self, **options: Any) -> FlinksClient:
        options = {"settings": config.bulk(), "limits": {"concurrency": 8}, **options}
        return FlinksClient(auth_secret=SECRET, base_url=self.server.base_url, **options)

    async def run(
        self,
        executor: Executor | None = None,
        rules: Rules | None = None,
        during: Callable[[Job], Any] | None = None,
        **options: Any,
    ) -> Result:
        with self.job() as job:
            async with self.client(**options) as client:
                running = asyncio.ensure_future(job.run(client, rules, executor=executor))
                try:
                    while job.progress() is None and not running.done():
                        await asyncio.sleep(0)
                    if during is not None:
                        await during(job)
                    return await running
                finally:
                    running.cancel()
                    with suppress(BaseException):
                        await running
                    assert workers() == [], "a worker was left behind"
                    assert list((self.directory / "spools").iterdir()) == [], "a spool was left behind"

    async def both_have_begun(self, job: Job) -> None:
        """The server is slow until two workers have sent something: a kill then finds none that still starts."""
        usual, self.server.latency = self.server.latency, Latency.fixed(0.5)
        await until(lambda: (at := job.progress()) and sum(one.requests > 0 for one in at.workers) >= 2)
        self.server.latency = usual

    @property
    def answers(self) -> dict[int, dict[str, Any]]:
        return answers_of(self.directory)

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "failed.jsonl").read_text().splitlines()]


def workers(of: int | None = None) -> list[int]:
    """The worker processes of a process."""
    of = of or os.getpid()
    return [pid for pid, parent, command in processes() if parent == of and b"executors.processes" in command]


def processes() -> Iterator[tuple[int, int, bytes]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            if state != "Z":
                yield int(folder.name), int(parent), (folder / "cmdline").read_bytes()


@asynccontextmanager
async def a_server(**options: Any) -> AsyncIterator[FlinksServer]:
    async with FlinksServer(auth_secret=SECRET, **options) as server:
        yield server


async def assert_gives_what_one_process_gives(desk: Desk, executor: Executor, directory: Path) -> None:
    with desk.path.open("a") as file:
        file.write("u-again,token-7\nu-bad,bad\x07token\n")
    for token, fault in {"token-20": "bad_request", "token-200": "unauthorized"}.items():
        desk.server.script(token, [fault] * 2)
    one = await desk.run()
    answers, failed, requests = desk.answers, desk.failed, desk.server.stats.per_token.copy()
    desk.directory = directory
    two = await desk.run(executor)
    assert (two.state, two.totals.fetched, two.totals.failures) == ("complete", 198, {"final": 2, "invalid": 1})
    assert two.totals == one.totals
    assert desk.answers == answers
    assert [without_fingerprint(row) for row in desk.failed] == [without_fingerprint(row) for row in failed]
    assert verify(desk.directory) == []
    assert desk.server.stats.per_token == {token: 2 * count for token, count in requests.items()}
    progress = two.progress
    assert (progress.requests, progress.fetched, progress.failed) == (200, 198, 2)
    assert progress.p50 is not None


def without_fingerprint(row: dict[str, Any]) -> dict[str, Any]:
    """It is keyed by job."""
    return {name: value for name, value in row.items() if name != "token_fingerprint"}


class Watch:
    """When requests came, and what to answer."""

    def __init__(self, faults: dict[int, Fault] | None = None) -> None:
        self.times: list[float] = []
        self.faults = faults or {}

    def for_request(self, token: str, number: int) -> Fault | None:
        self.times.append(time.monotonic())
        return self.faults.get(len(self.times))
