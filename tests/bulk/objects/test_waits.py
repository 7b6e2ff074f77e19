"""A storage that does not answer is told while the job waits for it: in the progress, the status, the log and the report."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from flinks_async.bulk import (
    InstanceTrouble,
    JSONLParts,
    Processes,
    Progress,
    StoreError,
    status,
    verify,
)
from flinks_async.bulk import counters as module
from flinks_async.bulk.counters import Counters, Waits, waits

from ...cli_support import cli
from ..server_desk import Desk
from .s3 import S3, Asked
from .support import csv_of, job_at, put_tokens


class Silence:
    """Holds requests back until it is over."""

    def __init__(self, s3: S3) -> None:
        self.begun, self._over = threading.Event(), threading.Event()
        self._s3 = s3

    def of(self, *methods: str) -> None:
        def hold(asked: Asked) -> None:
            if asked.method in methods:
                self.begun.set()
                self._over.wait(60)

        self._s3.fault = hold

    def end_when_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def tell(of: Waits, told: dict[str, float], lasting: Collection[InstanceTrouble]) -> None:
            real(of, told, lasting)
            if lasting:
                self.end()

        real = Waits.tell
        monkeypatch.setattr(Waits, "tell", tell)

    def end(self) -> None:
        self._over.set()


@pytest.fixture
def silence(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Silence]:
    monkeypatch.setattr(module, "SILENCE", 1.5)
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.05)
    silence = Silence(s3)
    yield silence
    silence.end()


async def until(found: Callable[[], Any]) -> Any:
    async with asyncio.timeout(50):
        while not (result := found()):  # in another thread
            await asyncio.sleep(0.02)
    return result


def told(progress: Progress | None, url: str) -> InstanceTrouble | None:
    return next((one for one in progress.troubles if one.host == url), None) if progress is not None else None


@pytest.mark.parametrize("method", ["PUT", "GET"])
async def test_a_storage_that_is_silent_is_in_progress_status_and_log_until_it_answers(
    desk: Desk, bucket: str, silence: Silence, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """PUT: parts. GET: the list with which the driver makes sure that nobody else has taken over."""
    with job_at(desk, JSONLParts(url=bucket)) as job:
        job._store._hold._clock = lambda: 1e9  # so the mark is renewed
        silence.of(method)
        async with desk.client() as client:
            running = asyncio.create_task(job.run(client))
            trouble = await until(lambda: told(job.progress(), bucket))
            assert 1.5 <= trouble.seconds < 40
            assert 250 < trouble.gives_up < 300
            progress = job.progress()
            assert progress is not None
            latest: dict[str, Any] = await until(lambda: (status(desk.directory).latest or {}).get("troubles"))
            assert latest[0]["host"] == bucket, "although the thread that writes to the ledger waits"
            await until(lambda: "still no answer" in (desk.directory / "job.log").read_text())
            silence.end()
            result = await running
        assert (result.state, result.progress.troubles) == ("complete", ())
        await until(lambda: "is over" in (desk.directory / "job.log").read_text())
    log = (desk.directory / "job.log").read_text()
    assert log.count(f"WARNING waiting: still no answer from {bucket}, ") == 1
    assert log.count(f"WARNING the wait for {bucket} is over") == 1
    assert sum("still no answer" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("phase", ["settling", "broken off"])
async def test_the_end_of_a_run_tells_that_it_waits(
    desk: Desk, bucket: str, s3: S3, silence: Silence, phase: str
) -> None:
    """Also `status` knows that the run is not over."""

    def fault(asked: Asked) -> Any:
        if phase == "broken off" and asked.method == "PUT":
            silence.of("GET")
            return 403
        if asked.path.endswith("_SUCCESS"):
            silence._over.wait(60)
        return None

    with job_at(desk, JSONLParts(url=bucket)) as job:
        s3.fault = fault
        async with desk.client() as client:
            running = asyncio.create_task(job.run(client))
            await until(lambda: told(job.progress(), bucket))
            await until(lambda: (status(desk.directory).latest or {}).get("troubles"))
            assert status(desk.directory).runs[-1]["ended"] is None
            silence.end()
            if phase == "settling":
                assert (await running).state == "complete"
            else:
                with pytest.raises(StoreError, match="permission is denied"):
                    await running


async def test_a_cancelled_run_tells_what_it_still_waits_for(
    desk: Desk, bucket: str, silence: Silence, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests on the wire must end, and meanwhile the event loop does not run."""
    with job_at(desk, JSONLParts(url=bucket)) as job:
        silence.of("PUT")
        async with desk.client() as client:
            running = asyncio.create_task(job.run(client))
            await until(silence.begun.is_set)
            silence.end_when_told(monkeypatch)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
    assert f"still no answer from {bucket}" in caplog.text


@pytest.mark.parametrize("what", ["open", "input", "verify", "export", "purge"])
async def test_commands_tell_what_they_wait_for(
    desk: Desk, bucket: str, silence: Silence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    tokens = put_tokens(f"{bucket}/in/tokens.csv", csv_of(30))
    out = f"{bucket}/out"
    fetch: list[Any] = ["fetch", tokens, "--column", "token", "--out", f"{out}/", "--job", tmp_path / "job"]
    assert (await cli(*fetch, server=desk.server)).exit_code == 0
    commands: dict[str, list[Any]] = {
        "open": fetch, "input": fetch, "verify": ["verify", tmp_path / "job"],
        "export": ["export", tmp_path / "job", "--out", "-"], "purge": ["purge", tmp_path / "job", "--yes"],
    }  # fmt: skip
    silence.of("HEAD" if what == "input" else "GET")
    silence.end_when_told(monkeypatch)
    done = await cli(*commands[what], server=desk.server)
    assert done.exit_code == 0
    place = f"{bucket}/in" if what in ("open", "input") else out
    assert f"WARNING: flinks_async.bulk.waits: waiting: still no answer from {place}, 1 attempt in" in done.stderr, (
        done.stderr
    )
    assert re.search("gives up in 29. s", done.stderr)


async def test_what_worker_processes_wait_for_is_told_by_the_job(
    desk: Desk, bucket: str, s3: S3, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the figures that they send, after the real 10 seconds."""
    silence = Silence(s3)
    with job_at(desk, JSONLParts(url=bucket)) as job:
        silence.of("PUT")
        async with desk.client() as client:
            running = asyncio.create_task(job.run(client, executor=Processes(2)))
            await until(lambda: (trouble := told(job.progress(), bucket)) and trouble.attempts >= 2)
            assert waits.troubles() == (), "it is not this process that waits"
            await until(lambda: "still no answer" in (desk.directory / "job.log").read_text())
            silence.end()
            result = await running
    assert (result.state, result.progress.troubles) == ("complete", ())
    assert "still no answer" not in "".join(capfd.readouterr())
    assert verify(desk.directory) == []


# --- the parts --------------------------------------------------------------------------------------------------------


def test_calls_are_troubles_after_ten_seconds_and_those_for_one_place_are_one() -> None:
    now = [100.0]
    calls = Waits(clock=lambda: now[0])
    calls.log = False
    with calls.call("s3://a", 300.0) as first, calls.call("PostgreSQL") as wait:
        first.thread, wait.thread = 1, 2
        now[0] += 6
        with calls.call("s3://a", 300.0):
            now[0] += 3.9
            assert calls.troubles() == ()
            now[0] += 6.1
            wait.reason, wait.until = "the server refuses", 180.0
            one, other = sorted(calls.troubles(), key=lambda trouble: trouble.host)
        assert str(one) == "the server refuses, 1 attempt in 16 s, gives up in 64 s"
        assert str(other) == "still no answer from s3://a, 2 attempts in 16 s, gives up in 284 s"
    assert calls.troubles() == ()


def test_a_call_that_fails_is_forgotten() -> None:
    calls = Waits(clock=lambda: 0.0)
    with pytest.raises(OSError, match="x"), calls.call("a"):
        raise OSError("x")
    assert calls._calls == set()


def test_the_log_has_a_wait_at_once_every_minute_and_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    calls = Waits(clock=lambda: now[0])
    calls.log = False
    told: dict[str, float] = {}
    with calls.call("s3://a"):
        for _ in range(135):
            now[0] += 1.0
            calls.tell(told, calls.troubles())
    calls.tell(told, calls.troubles())
    calls.tell(told, calls.troubles())
    assert [record.getMessage() for record in caplog.records] == [
        "waiting: still no answer from s3://a, 1 attempt in 10 s",
        "waiting: still no answer from s3://a, 1 attempt in 70 s",
        "waiting: still no answer from s3://a, 1 attempt in 130 s",
        "the wait for s3://a is over",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_waits_of_several_workers_are_added_up_until_the_workers_end() -> None:
    one = InstanceTrouble("s3://a", "still no answer from s3://a", 2, 20.0, gives_up=280.0)
    counters = Counters.sum_of(
        [Counters(waits=(one,)), Counters(waits=(evolve(one, attempts=1, seconds=30.0, gives_up=0.0),)), Counters()]
    )
    assert counters.waits == (evolve(one, attempts=3, seconds=30.0, gives_up=280.0),)
    assert counters.ended().waits == ()
    assert counters.without_troubles().waits == ()
    assert str(InstanceTrouble("h", "the cluster has no free worker", 0, 12.0, gives_up=288.0)) == (
        "the cluster has no free worker for 12 s, gives up in 288 s"
    )
