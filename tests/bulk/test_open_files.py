"""Jobs within the limit of open files: raised, kept with fewer connections, or refused before anything is sent."""

from __future__ import annotations

import asyncio
import resource
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flinks_async import ShortageError
from flinks_async.bulk import Job, JSONLFile, JSONLParts, Rules, SQLiteStore, verify
from flinks_async.bulk.executors import protocol
from flinks_async.bulk.executors.protocol import within_open_files
from flinks_async.bulk.files import allow_open_files
from flinks_async.bulk.stores.duckdb import DuckDBStore
from flinks_async.bulk.stores.parquet import ParquetStore
from flinks_async.cli import Exit
from flinks_async.config import Adaptive, Limits
from flinks_async.testing import FlinksServer, Latency

from ..cli_support import environment, records
from ..sockets.test_shortage import no_descriptor_left
from ..support import until
from .memory_desk import OK, ORIGIN, Desk

PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
del sys.argv[1:3]
from flinks_async.cli.app import app
app()
"""


async def fetch(
    server: FlinksServer, folder: Path, soft: int, hard: int, *options: object, tokens: int = 600, **env: str
) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit code, standard error and answers of a run under a limit of open files."""
    path = folder / "tokens.txt"
    if not path.exists():
        path.write_text("".join(f"token-{number}\n" for number in range(tokens)))
    values = {"PATH": "/usr/bin:/bin", **environment(server, **env)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(soft), str(hard),
        *map(str, ("fetch", path, "--out", folder / "out.jsonl", "--shard-size", 100, "--quiet", *options)),
        env={name: value for name, value in values.items() if value is not None},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(40):
        _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode(), records(folder / "out.jsonl")


@pytest.fixture
async def slow_server() -> Any:
    async with FlinksServer(latency=Latency.fixed(0.3)) as server:
        yield server


async def test_the_soft_limit_is_raised(slow_server: FlinksServer, tmp_path: Path) -> None:
    slow_server.script_all(["hang"] * 201)
    running = asyncio.create_task(fetch(slow_server, tmp_path, 64, 1024, "--concurrency", 300))
    await until(lambda: slow_server.stats.faults["hang"] > 200 or running.done())
    slow_server.release()
    code, said, answers = await running
    assert (code, len(answers)) == (Exit.OK, 600)
    assert "WARNING" not in said
    assert slow_server.stats.max_in_flight > 200


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_connections_stay_below_the_hard_limit(slow_server: FlinksServer, tmp_path: Path, processes: int) -> None:
    limit = 160 if processes == 1 else 90
    code, said, answers = await fetch(
        slow_server, tmp_path, limit, limit, "--concurrency", 300, "--processes", processes
    )
    assert (code, len(answers)) == (Exit.OK, 600)
    assert said.count("requests are sent at once, not") == 1
    assert "Raise the limit of open files (ulimit -n)" in said
    assert slow_server.stats.max_in_flight < limit * processes
    assert verify(tmp_path / "out.jsonl.job") == []


async def test_a_limit_that_is_too_low_is_refused_before_anything_is_sent(
    slow_server: FlinksServer, tmp_path: Path
) -> None:
    code, said, answers = await fetch(slow_server, tmp_path, 40, 40)
    assert (code, answers) == (Exit.USAGE, [])
    assert "a run needs at least 49 more open files (16 for shards under way), and this process may open " in said
    assert slow_server.stats.requests == 0


def test_every_client_gets_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "allow_open_files", lambda count: 16 + 32 + 100)
    adaptive = Limits(concurrency=Adaptive(minimum=30, initial=60, maximum=150))
    small, large = within_open_files([Limits(concurrency=50), adaptive], Rules(), print)
    assert small.concurrency == 25
    assert large.concurrency == Adaptive(minimum=30, initial=60, maximum=75)
    six = within_open_files([Limits(concurrency=200)] * 6, Rules(), print)
    assert sum(one.most_at_once for one in six) <= 100
    one = within_open_files([Limits(concurrency=150)], Rules(concurrency=100), print)
    assert one == [Limits(concurrency=150)], "no more than `Rules.concurrency` connections are opened"


def test_the_limits_of_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"soft": 256}

    def setrlimit(kind: int, new: tuple[int, int]) -> None:
        if new[0] == resource.RLIM_INFINITY:
            raise ValueError("current limit exceeds maximum limit")
        limits["soft"] = new[0]

    monkeypatch.setitem(
        sys.modules,
        "resource",
        SimpleNamespace(
            RLIMIT_NOFILE=1,
            RLIM_INFINITY=resource.RLIM_INFINITY,
            getrlimit=lambda kind: (limits["soft"], resource.RLIM_INFINITY),
            setrlimit=setrlimit,
        ),
    )
    assert allow_open_files(20) >= 20
    assert limits["soft"] == 256, "it is enough"
    assert allow_open_files(400) > 10_000
    assert limits["soft"] == 10_240


def test_a_shortage_during_the_run_stops_it_and_what_was_fetched_is_kept(tmp_path: Path) -> None:
    desk = Desk(tmp_path, tokens=60)
    short = None

    def answer(request: Any) -> dict[str, Any]:
        nonlocal short
        if len(desk.transport.requests) > 25:
            if short is None:
                short = no_descriptor_left()
                short.__enter__()
            raise ShortageError("no connection to x, because of a shortage: Too many open files")
        return OK

    desk.transport.default = answer
    with desk.job() as job:
        try:
            result = desk.run(job, Rules(concurrency=1))
        finally:
            if short is not None:
                short.__exit__(None, None, None)
        assert result.state == "stopped"
        assert result.reason.endswith("Too many open files. Raise the limit, or lower the concurrency")
        assert (result.totals.fetched, result.totals.failed) == (25, 0)


@pytest.mark.parametrize("store", [JSONLParts, JSONLFile, SQLiteStore, DuckDBStore, ParquetStore])
def test_a_shortage_that_first_hits_a_file_of_the_job_stops_it_and_what_was_fetched_is_kept(
    tmp_path: Path, store: Any
) -> None:
    desk = Desk(tmp_path, tokens=60)
    with ExitStack() as short:

        def answer(request: Any) -> dict[str, Any]:
            if len(desk.transport.requests) == 25:
                short.enter_context(no_descriptor_left())
            return OK

        desk.transport.default = answer
        made = store(tmp_path / "out") if store in (JSONLFile, SQLiteStore, DuckDBStore) else store()
        with Job.start(desk.directory, desk.source(), made, ORIGIN, shard_size=10) as job:
            result = desk.run(job, Rules(concurrency=1))
            short.close()
            assert result.state == "stopped"
            assert result.reason.startswith("this process may open no more files. Raise the limit (ulimit -n)")
            assert result.totals.fetched >= 25
            assert desk.run(job).state == "complete"
    assert verify(desk.directory) == []
    assert len(desk.transport.requests) == 60, "a token was fetched twice"
