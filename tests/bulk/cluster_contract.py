"""What a job on any cluster must do. The tests of an engine import these, and have the fixtures `executor`, `pids` and `url`:
an executor with two workers that find the secret in `TEST_SECRET`, a function that lists their processes, and `url`, the
address of a cluster for `--executor`.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from flinks_async import ConfigError, __version__
from flinks_async.bulk import InputChangedError, Job, Progress, Rules, StoreError, export_files, status, verify
from flinks_async.bulk.executors import cluster as executor_module
from flinks_async.bulk.executors.cluster import ClusterExecutor
from flinks_async.cli import Exit
from flinks_async.testing import Fault, Latency

from ..cli_support import by_line, said, start
from ..support import until
from .server_desk import SECRET, Desk, Watch, a_server, assert_gives_what_one_process_gives
from .test_executors import assert_called_for_each_task
from .test_reading import with_a_pipe


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[Desk]:
    async with a_server(latency=Latency.fixed(0.02)) as server:
        yield Desk(tmp_path, server)


def free_ports(count: int) -> list[int]:
    """Ports that no outgoing connection takes."""
    found = list[int]()
    for port in range(20000, 30000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            break
    return found


@asynccontextmanager
async def forwarded(port: int, to: int) -> AsyncIterator[None]:
    """Forwards one port to another."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError), closing(writer):
            while data := await reader.read(65536):
                writer.write(data)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        others, other = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(pump(reader, other), pump(others, writer))

    async with await asyncio.start_server(forward, "127.0.0.1", port):
        yield


async def test_a_cluster_gives_what_one_process_gives(desk: Desk, executor: ClusterExecutor, tmp_path: Path) -> None:
    await assert_gives_what_one_process_gives(desk, executor, tmp_path / "two")


async def test_what_a_killed_worker_had_is_done_again_and_once_in_the_output(
    slow: Desk, executor: ClusterExecutor, pids: Callable[[], list[int]]
) -> None:
    async def kill(job: Job) -> None:
        await slow.both_have_begun(job)
        await slow.server.received(60)
        await until(lambda: len(pids()) == 2)  # those of the test before have ended
        os.kill(pids()[0], signal.SIGKILL)

    result = await slow.run(executor, Rules(open_shards=4), kill)
    assert (result.state, result.totals.fetched) == ("complete", 200)
    assert set(slow.answers) == set(range(2, 202))
    assert verify(slow.directory) == []
    assert 200 <= slow.server.stats.requests <= 200 + 4 * 10
    assert (slow.directory / "job.log").read_text().count("died by a lost connection") == 1


@pytest.mark.slow
async def test_a_frozen_worker_is_given_up_and_does_no_harm_when_it_wakes(
    slow: Desk, executor: ClusterExecutor, pids: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cluster", "dispatch"):
        monkeypatch.setattr(f"flinks_async.bulk.executors.{name}.SILENCE", 4.0)
    frozen: list[int] = []
    slow.write(1000)  # more than the other worker fetches until then

    async def freeze(job: Job) -> None:
        await slow.both_have_begun(job)
        await until(lambda: len(pids()) == 2)
        frozen.append(pids()[0])
        os.kill(frozen[0], signal.SIGSTOP)
        async with asyncio.timeout(30):
            while not (told := [str(one) for one in job.progress().troubles if "no answer from the" in one.reason]):
                await asyncio.sleep(0.1)
        assert re.fullmatch(r"no answer from the (Dask|Ray) worker .* for [34] s, gives up in 1 s", told[0])

    try:
        result = await slow.run(executor, Rules(open_shards=4), freeze)
        before = {path: path.stat().st_size for path in slow.directory.rglob("*")}
    finally:
        with suppress(ProcessLookupError):  # Ray has killed it
            os.kill(frozen[0], signal.SIGCONT)
    assert (result.state, len(slow.answers)) == ("complete", 1000)
    await asyncio.sleep(0.5)
    assert {path: path.stat().st_size for path in slow.directory.rglob("*")} == before
    assert verify(slow.directory) == []
    assert "died by silence for 4 s" in (slow.directory / "job.log").read_text()


async def test_a_stop_drains_and_no_request_is_repeated_by_the_next_run(slow: Desk, executor: ClusterExecutor) -> None:
    async def stop(job: Job) -> None:
        await slow.server.received(60)
        slow.server.latency = Latency.fixed(0.25)  # the rest is not done before the workers hear of it
        job.stop()

    assert (await slow.run(executor, during=stop)).state == "stopped"
    assert 60 <= status(slow.directory).totals.fetched < 200
    assert (await slow.run()).state == "complete"
    assert set(slow.server.stats.per_token.values()) == {1}


async def test_a_refused_secret_in_one_stops_all(slow: Desk, executor: ClusterExecutor) -> None:
    slow.server.auth_secret = "another"
    result = await slow.run(executor)
    assert (result.state, result.totals.pending) == ("refused", 200)
    assert "the AuthSecret is refused" in result.reason


async def test_the_rules_hold_for_all_together(slow: Desk, executor: ClusterExecutor) -> None:
    slow.server.script_all(["bad_request"] * 200)
    result = await slow.run(executor, Rules(max_failures=20))
    assert result.state == "stopped"
    assert "tokens failed, more than the 20 allowed" in result.reason
    assert 20 < result.totals.failed < 200


async def test_the_rate_is_one_for_all(tmp_path: Path, executor: ClusterExecutor) -> None:
    watch = Watch()
    async with a_server(faults=watch) as server:
        desk = Desk(tmp_path, server)
        desk.write(100)
        await desk.run(executor, limits={"rate": 50.0, "burst": 1, "concurrency": 8})
    times = watch.times
    assert len(times) == 100
    assert times[-1] - times[0] > 0.9 * 99 / 50
    assert max(sum(start <= at < start + 0.5 for at in times) for start in times) <= 0.5 * 50 * 1.2 + 2


async def test_a_pause_for_one_is_a_pause_for_all(tmp_path: Path, executor: ClusterExecutor) -> None:
    watch = Watch({40: Fault.reply(503, {}, retry_after=2.0)})
    async with a_server(faults=watch, latency=Latency.fixed(0.02)) as server:
        desk = Desk(tmp_path, server)
        desk.write(300)
        await desk.run(executor, limits={"concurrency": 8})
    paused = watch.times[39]
    assert [at for at in watch.times if paused + 1.2 < at < paused + 1.98] == []
    assert len(watch.times) == 301


async def test_an_input_that_changed_and_a_store_that_fails_end_the_run_as_in_one_process(
    slow: Desk, executor: ClusterExecutor, monkeypatch: pytest.MonkeyPatch
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


# --- a function ---


async def test_a_function_is_called_for_each_task_and_again_if_its_worker_is_killed(
    tmp_path: Path, executor: ClusterExecutor
) -> None:
    await assert_called_for_each_task(executor, tmp_path, kills=True)


async def test_a_job_is_verified_and_copied_and_a_killed_worker_changes_nothing(
    desk: Desk, executor: ClusterExecutor, pids: Callable[[], list[int]], tmp_path: Path
) -> None:
    await desk.run()
    changed = sorted((desk.directory / "parts").iterdir())[2]
    assert await asyncio.to_thread(verify, desk.directory, executor=executor) == []
    copy = tmp_path / "copy"

    async def kill() -> None:
        for pid in pids():  # one of them waits for the pipe
            os.kill(pid, signal.SIGKILL)

    def call(told: list[Progress]) -> list[str]:
        return export_files(desk.directory, copy.as_uri(), executor=executor, on_progress=told.append)

    names = await with_a_pipe(desk, kill, call)
    assert sorted(path.name for path in copy.iterdir()) == ["_SUCCESS", *sorted(names)]
    for name in names:
        assert (copy / name).read_bytes() == (desk.directory / "parts" / name).read_bytes()
    changed.write_bytes(b"{}\n")
    (problem,) = await asyncio.to_thread(verify, desk.directory, executor=executor)
    assert problem.where == str(changed)


# --- the command line ---


async def test_the_command_line_verifies_on_a_cluster_without_the_secret(desk: Desk, url: str) -> None:
    await desk.run()
    options = ("--executor", url, "--workers", 2, "--wait-for-workers", "60s", "--progress", "json")
    process = await start("verify", desk.directory, *options, env={"FLINKS_AUTH_SECRET": None})
    _, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()[-2000:]


async def fetch(desk: Desk, url: str, *more: object) -> asyncio.subprocess.Process:
    """A command that fetches to `answers.jsonl` in a folder named after the port of the cluster."""
    folder = desk.path.parent / url.rpartition(":")[2]
    folder.mkdir()
    (folder / "secret").write_text(SECRET)
    return await start(
        "fetch", desk.path, "--out", folder / "answers.jsonl", "--column", "token", "--shard-size", 10,
        "--executor", url, "--workers", 2, "--wait-for-workers", "60s", "--secret-file", folder / "secret", *more,
        server=desk.server, env={"FLINKS_AUTH_SECRET": None},
    )  # fmt: skip


def elsewhere(url: str, port: int) -> str:
    return f"{url.rpartition(':')[0]}:{port}"


async def test_the_command_line_fetches_on_a_cluster_that_comes_late(desk: Desk, url: str) -> None:
    """It says that the cluster is not there yet, and waits."""
    (port,) = free_ports(1)
    process = await fetch(desk, elsewhere(url, port), "--progress", "json")
    await said(process, b"(Connection refused)")
    async with forwarded(port, int(url.rpartition(":")[2])):
        _, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()[-2000:]
    assert set(by_line(desk.path.parent / str(port) / "answers.jsonl")) == set(range(2, 202))


async def test_a_cluster_that_never_comes_is_given_up_and_a_signal_ends_the_wait(desk: Desk, url: str) -> None:
    """Whether nothing listens there or something that never answers."""

    async def assert_given_up(port: int) -> None:
        process = await fetch(desk, elsewhere(url, port), "--wait-for-workers", "2s", "--progress", "none")
        _, stderr = await process.communicate()
        assert process.returncode == Exit.STOPPED
        told = r"no connection to the (Dask|Ray) cluster at \S+ for 2 s \(Connection refused\)\. Start it"
        assert re.search(told, stderr.decode())

    async def ended(port: int, reason: bytes) -> None:
        process = await fetch(desk, elsewhere(url, port), "--progress", "json")
        await said(process, reason)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await process.communicate()
        assert process.returncode == Exit.SIGTERM

    first, second = free_ports(2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with asyncio.TaskGroup() as together:
            together.create_task(assert_given_up(first))
            together.create_task(ended(second, b"Connection refused"))
            together.create_task(ended(silent.getsockname()[1], b"connecting to the "))


async def test_a_missing_worker_is_waited_for_as_long_as_others_fetch(slow: Desk, executor: ClusterExecutor) -> None:
    executor.workers, executor.patience = 5, 60.0

    async def wait(job: Job) -> None:
        await slow.both_have_begun(job)
        executor.patience = 1.0
        slow.server.latency = Latency.fixed(4.0)
        await asyncio.sleep(3.0)
        slow.server.latency = None

    assert (await slow.run(executor, during=wait)).totals.fetched == 200


async def test_the_doctor_asks_the_workers_whether_they_could_fetch(desk: Desk, url: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)

    async def look(*more: object) -> list[dict[str, str]]:
        process = await start("doctor", "--json", "--executor", url, *more, server=desk.server)
        stdout, stderr = await process.communicate()
        assert SECRET not in stdout.decode() + stderr.decode()
        return [one for one in json.loads(stdout)["findings"] if one["check"] == "cluster"]

    (works,), broken = await asyncio.gather(look("--secret-file", secret), look())
    assert works["state"] == "ok", works
    assert "can fetch: same version" in works["text"]
    for one in broken:
        assert "finds no secret in the environment variable FLINKS_AUTH_SECRET" in one["text"]
        assert one["advice"].startswith("Provide it on every machine")


# --- secrets ---


async def test_a_worker_without_the_secret_ends_the_run_with_its_name(
    desk: Desk, executor: ClusterExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_names", "NOT_THERE")
    with pytest.raises(ConfigError, match="finds no secret in the environment variable NOT_THERE"):
        await desk.run(executor)


async def test_a_worker_with_another_version_ends_the_run_with_both_versions(
    desk: Desk, executor: ClusterExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "__version__", "0.0.1")
    with pytest.raises(ConfigError, match=rf"has flinks-async {__version__}, and the job 0\.0\.1\. Install the same"):
        await desk.run(executor)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"headers": {"X-Gateway-Key": "k"}}, "headers"),
        ({"connection": {"proxy": "http://user:word@proxy.example:3128"}}, "connection.proxy"),
        ({"middleware": [lambda request, call_next: call_next(request)]}, "middleware"),
    ],
)
async def test_what_cannot_be_sent_to_a_cluster_is_named(
    desk: Desk, executor: ClusterExecutor, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        await desk.run(executor, **options)


async def test_neither_secret_nor_tokens_are_in_what_is_sent(
    desk: Desk, executor: ClusterExecutor, monkeypatch: pytest.MonkeyPatch
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
