"""A job in several worker processes has the same output, even if one of them fails."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from flinks_async import ConfigError, FlinksClient
from flinks_async.bulk import (
    InputChangedError,
    InputFile,
    Job,
    JSONLParts,
    Layout,
    Processes,
    Rules,
    StoreError,
    WorkerError,
    status,
    verify,
)
from flinks_async.testing import FakeClock, Fault, FlinksServer, InMemoryTransport, Latency

from ..support import until
from .server_desk import SECRET, Desk, Watch, a_server, assert_gives_what_one_process_gives, processes, workers

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="worker processes are found in /proc")

ONE, TWO = Processes(1), Processes(2)


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[Desk]:
    """Each answer takes 10 ms, so that 200 tokens take a quarter of a second."""
    async with a_server(latency=Latency.fixed(0.01)) as server:
        yield Desk(tmp_path, server)


# --- the output -------------------------------------------------------------------------------------------------------


async def test_two_processes_give_what_one_gives(desk: Desk, tmp_path: Path) -> None:
    await assert_gives_what_one_process_gives(desk, TWO, tmp_path / "two")


async def test_failed_tokens_are_retried_in_processes(desk: Desk) -> None:
    for number in range(1, 200, 7):
        desk.server.script(f"token-{number}", ["bad_request"])
    assert (await desk.run()).totals.failed == 29
    with Job.resume(desk.directory) as job:
        assert job.retry({"final"}) == 29
        async with desk.client() as client:
            result = await job.run(client, executor=TWO)
    assert (result.totals.fetched, result.totals.failed) == (200, 0)
    assert len(desk.answers) == 200


async def test_each_instance_has_its_own_client_in_each_process(desk: Desk, tmp_path: Path) -> None:
    rows = [(f"t-{number}", "ab"[number % 2]) for number in range(60)]
    desk.path.write_text("token,bank\n" + "".join(f"{token},{bank}\n" for token, bank in rows))
    source = InputFile(desk.path, Layout(column="token", instance_column="bank"))
    async with FlinksServer(seed=1) as other:
        with Job.start(desk.directory, source, JSONLParts(), {"a": "a", "b": "b"}, shard_size=10) as job:
            async with desk.client() as a, FlinksClient(auth_secret=other.auth_secret, base_url=other.base_url) as b:
                result = await job.run({"a": a, "b": b}, executor=TWO)
        assert result.totals.fetched == 60
        assert set(desk.server.stats.per_token) == {token for token, bank in rows if bank == "a"}
        assert set(other.stats.per_token) == {token for token, bank in rows if bank == "b"}


# --- deaths -----------------------------------------------------------------------------------------------------------


async def test_what_a_killed_worker_had_under_way_is_done_again_and_once_in_the_output(slow: Desk) -> None:
    async def kill(job: Job) -> None:
        await slow.both_have_begun(job)
        await slow.server.received(60)
        first, second = workers()
        os.kill(first, signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGTERM):  # these are the job's business
            os.kill(second, number)

    result = await slow.run(TWO, Rules(open_shards=4), kill)
    assert (result.state, result.totals.fetched) == ("complete", 200)
    assert set(slow.answers) == set(range(2, 202))
    assert verify(slow.directory) == []
    assert 200 <= slow.server.stats.requests <= 200 + 3 * 10 + 4, "its two open shards, one ahead, those in flight"
    assert (slow.directory / "job.log").read_text().count("died by signal SIGKILL") == 1
    assert result.progress.fetched == 200
    assert result.progress.requests <= slow.server.stats.requests
    (dead,) = [worker for worker in result.progress.workers if worker.note]
    assert dead.note == f"died by signal SIGKILL; its {dead.reassigned} shards are handed out again"
    assert 1 <= dead.reassigned <= 3
    assert status(slow.directory).latest is None or "workers" in status(slow.directory).latest


async def test_workers_that_die_again_and_again_end_the_run_and_another_one_goes_on(slow: Desk) -> None:
    async def kill(job: Job) -> None:
        while job.progress() is not None:
            for pid in workers():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)

    with pytest.raises(WorkerError, match="keep crashing, the last one by signal SIGKILL"):
        await slow.run(Processes(2, restarts=1), during=kill)
    assert (await slow.run()).state == "complete"
    assert len(slow.answers) == 200


async def test_a_worker_that_dies_last_is_replaced_when_the_others_are_gone(slow: Desk) -> None:
    """The shard of one slow token is handed out again after the input was exhausted."""
    slow.server.script("token-200", [Fault(name="late", mode="answer", delay=30.0)])

    async def kill(job: Job) -> None:
        await slow.server.received(200)
        # The server counts a request before it takes the fault; a kill in between would leave the fault to the next worker.
        await until(lambda: len(workers()) == 1 and slow.server.stats.faults)
        os.kill(workers()[0], signal.SIGKILL)

    assert (await slow.run(TWO, during=kill)).state == "complete"
    assert len(slow.answers) == 200


DRIVER = """
import asyncio, signal, sys
from flinks_async import FlinksClient, config
from flinks_async.bulk import *

async def main(directory, path, base_url):
    with Job.start(directory, InputFile(path, Layout(column="token", key_column="user")), JSONLParts(), {"": "here"},
                   shard_size=10) as job:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, job.stop)
        client = FlinksClient(auth_secret=sys.stdin.readline().strip(), base_url=base_url, settings=config.bulk(),
                              limits={"concurrency": 8})
        async with client:
            print((await job.run(client, executor=Processes(2))).state)

asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def a_job_elsewhere(desk: Desk) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A process, leader of its group, that runs the job with two workers."""
    command = [sys.executable, "-c", DRIVER, desk.directory, desk.path, desk.server.base_url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(SECRET.encode() + b"\n")
        process.stdin.flush()
        await desk.server.received(60)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


async def test_workers_end_with_their_parent_and_an_orphan_that_wakes_up_late_does_no_harm(slow: Desk) -> None:
    async with a_job_elsewhere(slow) as process:
        usual, slow.server.latency = slow.server.latency, Latency.fixed(30.0)  # so that the job is not done before
        quick, late = workers(process.pid)
        os.kill(late, signal.SIGSTOP)
        process.kill()
        process.wait()
        slow.server.latency = usual
        await gone(quick)
        await asyncio.sleep(0.3)  # what was sent before is counted when the server reads it
        before, requests = snapshot(slow.directory), slow.server.stats.requests
        await asyncio.sleep(0.2)
        assert (snapshot(slow.directory), slow.server.stats.requests) == (before, requests)

        async def wake(job: Job) -> None:
            os.kill(late, signal.SIGCONT)

        assert (await slow.run(during=wake)).state == "complete"
        await gone(late)
    assert set(slow.answers) == set(range(2, 202))
    assert verify(slow.directory) == []


def everybody() -> set[int]:
    return {pid for pid, _, command in processes() if b"executors.processes" in command}


async def gone(pid: int) -> None:
    await until(lambda: pid not in everybody())


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


# --- stops ------------------------------------------------------------------------------------------------------------


async def test_ctrl_c_drains_and_no_request_is_repeated_by_the_next_run(slow: Desk) -> None:
    async with a_job_elsewhere(slow) as process:
        slow.server.latency = Latency.fixed(0.25)  # a slow machine must not be done before it hears the signal
        os.killpg(process.pid, signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 10) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b"stopped\n"
    fetched = status(slow.directory).totals.fetched
    assert 60 <= fetched < 200
    assert (await slow.run()).state == "complete"
    assert set(slow.server.stats.per_token.values()) == {1}
    assert len(slow.answers) == 200


async def test_a_worker_that_hangs_does_not_hold_up_a_stop_for_ever(
    slow: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flinks_async.bulk.executors.processes.GRACE", 0.1)

    async def stop(job: Job) -> None:
        await slow.both_have_begun(job)
        await slow.server.received(60)
        os.kill(workers()[0], signal.SIGSTOP)
        job.stop()

    assert (await asyncio.wait_for(slow.run(TWO, Rules(drain=1.0), stop), 100)).state == "stopped"
    assert (await slow.run()).state == "complete"
    assert len(slow.answers) == 200


async def test_an_abort_kills_the_workers_and_keeps_what_is_committed(slow: Desk) -> None:
    async def abort(job: Job) -> None:
        await until(
            lambda: status(slow.directory).totals.shards_done >= 3
        )  # `job.totals` shares a connection with the run
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await slow.run(ONE, during=abort)
    assert status(slow.directory).totals.fetched >= 30
    assert (await slow.run()).state == "complete"
    assert len(slow.answers) == 200


async def test_a_refused_secret_in_one_stops_all(slow: Desk) -> None:
    slow.server.auth_secret = "another"
    result = await slow.run(TWO)
    assert result.state == "refused"
    assert "the AuthSecret is refused" in result.reason
    assert result.totals.pending == 200
    assert slow.server.stats.requests < 100


async def test_a_login_page_before_the_instance_stops_all_and_costs_no_token(slow: Desk) -> None:
    slow.server.script_all([Fault.reply(302, headers={"Location": "https://login.example/"})] * 200)
    result = await slow.run(TWO)
    assert result.state == "stopped"
    assert "a redirect to login.example" in result.reason
    assert (result.totals.pending, result.totals.failed) == (200, 0)
    async with a_server() as slow.server:
        assert (await slow.run(TWO)).state == "complete"
    assert len(slow.answers) == 200


async def test_what_concerns_every_token_in_one_stops_all(slow: Desk) -> None:
    slow.server.script_all([Fault.reply(407)] * 200)
    result = await slow.run(TWO)
    assert result.state == "stopped"
    assert "the proxy wants credentials" in result.reason
    assert (result.totals.pending, result.totals.failed) == (200, 0)
    assert slow.server.stats.requests < 50


async def test_the_last_trouble_is_told_at_the_end(slow: Desk) -> None:
    await slow.server.stop()
    result = await slow.run(TWO, Rules(unreachable_after=0.3))
    assert result.state == "stopped"
    assert [trouble.host for trouble in result.progress.troubles] == [slow.server.base_url.partition("//")[2]]


async def test_the_rules_hold_for_all_together(slow: Desk) -> None:
    slow.server.script_all(["bad_request"] * 200)
    result = await slow.run(TWO, Rules(max_failures=20))
    assert result.state == "stopped"
    assert "tokens failed, more than the 20 allowed" in result.reason
    assert 20 < result.totals.failed < 200


# --- what workers are made of ------------------------------------------------------------------------------------------


async def test_entries_of_the_search_path_that_are_no_text_or_no_unicode_do_no_harm(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: list[Any] = [*sys.path, Path("/nowhere"), "/nowhere/\udcff"]
    monkeypatch.setattr(sys, "path", entries)
    assert (await desk.run(ONE)).state == "complete"


async def test_a_class_of_the_users_own_is_refused_since_workers_would_not_have_it(desk: Desk) -> None:
    class Mine(FlinksClient):
        pass

    async with Mine(auth_secret=SECRET, base_url=desk.server.base_url) as client:
        with desk.job() as job, pytest.raises(ConfigError, match="the class Mine"):
            await job.run(client, executor=TWO)


# --- errors -----------------------------------------------------------------------------------------------------------


async def test_an_input_that_changed_ends_the_run_as_in_one_process(desk: Desk) -> None:
    async def change(job: Job) -> None:
        desk.write(200, "other")

    with pytest.raises(InputChangedError, match="file of tokens"):
        await desk.run(ONE, during=change)
    assert not desk.server.stats.requests


async def test_a_disk_that_cannot_be_written_ends_the_run_as_in_one_process(slow: Desk) -> None:
    async def remove(job: Job) -> None:
        spools = slow.directory / "spools"
        await until(lambda: list(spools.iterdir()))
        for folder in spools.iterdir():
            shutil.rmtree(folder)

    with pytest.raises(StoreError, match=r"spools/worker-\w+/\d+.spool cannot be written: No such file or directory"):
        await slow.run(ONE, during=remove)


async def test_a_problem_of_one_worker_does_not_cost_the_answers_of_the_others(tmp_path: Path) -> None:
    async with a_server(latency=Latency.fixed(0.05)) as server:
        desk = Desk(tmp_path, server)

        async def kill_one(job: Job) -> None:
            await desk.both_have_begun(job)
            await asyncio.sleep(0.1)
            os.kill(workers()[0], signal.SIGKILL)

        desk.job(shard_size=50).close()
        with pytest.raises(WorkerError, match="keep crashing"):
            await desk.run(Processes(2, restarts=0), during=kill_one)
        totals = status(desk.directory).totals
        assert 0 < totals.fetched < 50, "a part of a shard of the worker that was not killed"
        before = server.stats.requests
        assert (await desk.run()).state == "complete"
        assert len(desk.answers) == 200
        assert server.stats.requests - before == 200 - totals.fetched


async def test_a_store_that_fails_ends_all(slow: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Any:
        raise StoreError("the disk is full")

    monkeypatch.setattr(JSONLParts, "put", full)
    with pytest.raises(StoreError, match="the disk is full"):
        await slow.run(ONE)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"middleware": [lambda request, call_next: call_next(request)]}, "middleware"),
        ({"observers": [print], "clock": FakeClock()}, "observers, clock"),
        ({"transport": InMemoryTransport({})}, "transport"),
        ({"auth_secret": asyncio.sleep}, "auth_secret as a function"),
    ],
)
async def test_what_cannot_be_sent_to_another_process_is_named(desk: Desk, options: dict[str, Any], named: str) -> None:
    with desk.job() as job:
        async with FlinksClient(**{"auth_secret": SECRET, **options}) as client:
            with pytest.raises(ConfigError, match=f"cannot use these parts of yours: {named}"):
                await job.run(client, executor=TWO)


async def test_more_processes_than_requests_at_once_are_refused(desk: Desk) -> None:
    with pytest.raises(ConfigError, match="9 processes need a concurrency of at least 9 in all, not 8"):
        await desk.run(Processes(9))
    for wrong in (0, True, "2"):
        with pytest.raises(ConfigError, match="must be a whole number from 1"):
            Processes(wrong)


# --- what they share --------------------------------------------------------------------------------------------------


async def test_the_rate_is_one_for_all(tmp_path: Path) -> None:
    watch = Watch()
    async with a_server(faults=watch) as server:
        desk = Desk(tmp_path, server)
        desk.write(100)
        await desk.run(TWO, limits={"rate": 150.0, "burst": 1, "concurrency": 8})
        assert server.stats.connections > 1
    times = watch.times
    assert len(times) == 100
    assert times[-1] - times[0] > 0.95 * 99 / 150
    assert max(sum(start <= at < start + 0.2 for at in times) for start in times) <= 0.2 * 150 * 1.3 + 1


async def test_a_pause_for_one_is_a_pause_for_all(tmp_path: Path) -> None:
    watch = Watch({40: Fault.reply(503, {}, retry_after=2.5)})
    async with a_server(faults=watch, latency=Latency.fixed(0.02)) as server:
        desk = Desk(tmp_path, server)
        desk.write(100)
        seen = 0.0

        async def look(job: Job) -> None:
            nonlocal seen
            while (progress := job.progress()) is not None:
                seen = max(seen, progress.held_back)
                await asyncio.sleep(0.02)

        result = await desk.run(TWO, during=look, limits={"concurrency": 8})
    throttled = watch.times[39]
    assert [at for at in watch.times if throttled + 1.5 < at < throttled + 2.5] == []
    assert len(watch.times) == 101
    assert result.progress.retries == 1
    assert seen > 0.5


# --- secrets ----------------------------------------------------------------------------------------------------------


async def test_no_secret_can_be_seen_from_outside(slow: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLINKS_AUTH_SECRET", SECRET)
    monkeypatch.setenv("HEADER", f"Bearer {SECRET}")
    others = {name: f"another-{name}" for name in ("FLINKS_ACCESS_TOKEN", "PGPASSWORD")}
    for name, value in {**others, "OTHER": "stays"}.items():
        monkeypatch.setenv(name, value)
    found: dict[str, bytes] = {}

    async def look(job: Job) -> None:
        await slow.server.received(60)
        for pid in workers():
            for name in ("cmdline", "environ"):
                found[f"{pid} {name}"] = Path(f"/proc/{pid}/{name}").read_bytes()
        for path in slow.directory.rglob("*"):
            with suppress(OSError):
                found[str(path)] = path.read_bytes() if path.is_file() else b""

    await slow.run(ONE, during=look)
    assert len([name for name in found if name.endswith("environ")]) == 1
    assert any(".spool" in name or "parts/" in name for name in found)
    for name, data in found.items():
        assert SECRET.encode() not in data, name
        assert not any(value.encode() in data for value in others.values()), name
        assert b"token-" not in data.replace(b"token-bearing", b""), name
        assert not name.endswith("environ") or b"OTHER=stays" in data
