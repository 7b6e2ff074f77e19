"""Jobs without sockets and without waiting, for the tests of jobs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flinks_async import FlinksClient, config
from flinks_async.bulk import (
    InputFile,
    Job,
    JSONLParts,
    Layout,
    Result,
    Rules,
)
from flinks_async.bulk.fetching import NoThread
from flinks_async.testing import InMemoryTransport, VirtualClock, run_virtual

from ..support import answers_of

OK = {"GetAccountsDetail": [], "RequestId": "r"}
ORIGIN = {"": "toolbox-api.private.fin.ag"}
NO_THREADS = (NoThread(), NoThread())


class Desk:
    """A folder with a file of tokens `token-1`, ... in a CSV, and what answers them."""

    def __init__(self, folder: Path, tokens: int = 25) -> None:
        self.path = folder / "tokens.csv"
        self.directory = folder / "job"
        self.transport = InMemoryTransport({}, default=OK)
        self.write([f"token-{number}" for number in range(1, tokens + 1)])

    def write(self, tokens: list[str]) -> None:
        self.path.write_text("user,token\n" + "".join(f"u-{n},{token}\n" for n, token in enumerate(tokens, 2)))

    def source(self, **layout: Any) -> InputFile:
        return InputFile(self.path, Layout(**{"column": "token", "key_column": "user", **layout}))

    def job(self, **options: Any) -> Job:
        return Job.start(self.directory, self.source(), JSONLParts(), ORIGIN, shard_size=10, **options)

    def client(self) -> FlinksClient:
        clock = VirtualClock()
        self.transport.closed = False  # by the client of the run before
        return FlinksClient(
            auth_secret="s", transport=self.transport, settings=config.bulk(), retry={"attempts": 2}, clock=clock
        )

    def run(self, job: Job, rules: Rules | None = None, during: Callable[[Job], Any] | None = None) -> Result:
        async def main() -> Result:
            async with self.client() as client:
                running = asyncio.ensure_future(job.run(client, rules, clock=VirtualClock(), threads=NO_THREADS))
                if during is not None:
                    await during(job)
                return await running

        return run_virtual(main())

    def complete(self) -> Result:
        with self.job() as job:
            return self.run(job)

    @property
    def answers(self) -> dict[int, dict[str, Any]]:
        return answers_of(self.directory)

    @property
    def failed(self) -> dict[int, dict[str, Any]]:
        return {record["line"]: record for record in map(json.loads, self.failed_lines)}

    @property
    def failed_lines(self) -> list[str]:
        return (self.directory / "failed.jsonl").read_text().splitlines()
