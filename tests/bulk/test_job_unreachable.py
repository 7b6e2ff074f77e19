"""Jobs whose instance does not answer, or not yet, or no longer; or whose store takes long."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from flinks_async import ConnectError, FlinksClient, config
from flinks_async.bulk import Commit, Job, JSONLParts, Rules, counters, status

from ..support import until
from .memory_desk import OK, ORIGIN, Desk

UNKNOWN_HOST = ConnectError("the host toolbxx.example cannot be looked up")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_an_instance_that_never_answers_ends_the_run_with_the_reason_and_fails_no_token(desk: Desk) -> None:
    desk.transport.default = UNKNOWN_HOST
    with desk.job() as job:
        result = desk.run(job)
        assert (result.state, result.totals.failed, result.totals.pending) == ("stopped", 0, 25)
        assert re.fullmatch(
            r"the host toolbxx.example cannot be looked up, \d+ attempts in 12\d s; \S+ has never answered",
            result.reason,
        )
        assert 120 <= result.progress.seconds < 125
        assert desk.run(job, Rules(unreachable_after=10)).progress.seconds < 15
    log = (desk.directory / "job.log").read_text()
    assert log.count("WARNING the host toolbxx.example cannot be looked up") == 3, "twice in 120 s, once in 10 s"


async def wait_for_ever(request: Any) -> Any:
    await asyncio.Event().wait()


def test_an_instance_that_accepts_requests_and_never_answers_ends_the_run_with_the_reason(desk: Desk) -> None:
    desk.transport.default = wait_for_ever
    seen: list[Any] = []

    async def watch(job: Job) -> None:
        for seconds in (9, 21, 180):
            await asyncio.sleep(seconds)
            found = job.progress()
            assert found is not None
            seen.append([str(trouble) for trouble in found.troubles])
            assert found.eta is None

    with desk.job() as job:
        result = desk.run(job, None, watch)
    silent = "still no answer from toolbox-api.private.fin.ag, 25 attempts in {} s"
    assert seen == [[], [silent.format(30)], [silent.format(210)]]
    assert (result.state, result.totals.failed, result.totals.pending) == ("stopped", 0, 25)
    assert re.fullmatch(
        r"no complete answer from (\S+) within 230 s, \d+ attempts in 23\d s; \1 has never answered", result.reason
    )
    log = (desk.directory / "job.log").read_text()
    assert log.count("WARNING still no answer from toolbox-api.private.fin.ag") == 4, "every minute"


def test_an_instance_whose_first_answers_take_minutes_is_not_unreachable(desk: Desk) -> None:
    async def answer(request: Any) -> Any:
        await asyncio.sleep(210)  # documented for a sibling endpoint
        return OK

    desk.transport.default = answer
    with desk.job() as job:
        result = desk.run(job)
    assert (result.state, result.totals.fetched) == ("complete", 25)


def test_a_silence_ends_with_the_first_answer_and_an_instance_that_has_answered_is_waited_for(desk: Desk) -> None:
    seen: list[Any] = []

    async def watch(job: Job) -> None:
        for seconds in (30, 150, 30):
            await asyncio.sleep(seconds)
            found = job.progress()
            assert found is not None
            seen.append([trouble.reason for trouble in found.troubles])
        job.stop("enough")

    async def answer(request: Any) -> Any:
        await asyncio.sleep(1 if len(desk.transport.requests) <= 3 else 200)
        return OK

    desk.transport.default = answer
    with desk.job() as job:
        result = desk.run(job, Rules(concurrency=3), watch)
    silent = ["still no answer from toolbox-api.private.fin.ag"]
    assert seen == [silent, silent, []]
    assert result.reason == "enough"


def test_an_instance_that_has_answered_is_waited_for_also_by_a_later_run(desk: Desk) -> None:
    async def stop_after_an_hour(job: Job) -> None:
        await asyncio.sleep(3600)
        job.stop("enough")

    def answer(request: Any) -> Any:
        return OK if len(desk.transport.requests) <= 14 else UNKNOWN_HOST

    desk.transport.default = answer
    with desk.job() as job:
        assert desk.run(job, None, stop_after_an_hour).reason == "enough"
        assert (job.totals.fetched, job.totals.failed) == (14, 0)
        desk.transport.default = UNKNOWN_HOST
        assert desk.run(job, None, stop_after_an_hour).reason == "enough"


def test_the_trouble_of_an_instance_is_in_progress_and_status_until_it_answers(desk: Desk) -> None:
    seen: list[Any] = []

    async def watch(job: Job) -> None:
        await asyncio.sleep(2)
        (early,) = (status(desk.directory).latest or {"troubles": []})["troubles"]
        assert (early["reason"], early["seconds"]) == (UNKNOWN_HOST.message, 1.0), "it is shown at once"
        await asyncio.sleep(23)
        found = job.progress()
        assert found is not None
        seen.extend(found.troubles)
        seen.append((status(desk.directory).latest or {})["troubles"][0])
        desk.transport.default = OK

    desk.transport.default = UNKNOWN_HOST
    with desk.job() as job:
        result = desk.run(job, None, watch)
    trouble, sampled = seen
    assert (trouble.host, trouble.reason) == ("toolbox-api.private.fin.ag", UNKNOWN_HOST.message)
    assert trouble.attempts >= 10
    assert 24 < trouble.seconds <= 25
    assert str(trouble).startswith(f"{UNKNOWN_HOST.message}, {trouble.attempts} attempts in 25 s")
    assert sampled["reason"] == UNKNOWN_HOST.message
    assert 20 < sampled["seconds"] <= 21
    assert (result.state, result.progress.troubles) == ("complete", ())
    assert "toolbox-api.private.fin.ag answers again" in (desk.directory / "job.log").read_text()


class Held(JSONLParts):
    """Stores nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        assert self.go.wait(60)
        return super().put(commit, spool)


async def test_a_store_that_takes_long_slows_the_fetching_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "SILENCE", 1.2)
    monkeypatch.setattr(counters, "_LOOK_EVERY", 0.05)
    desk, store = Desk(tmp_path, 200), Held()
    with Job.start(desk.directory, desk.source(), store, ORIGIN, shard_size=10) as job:
        async with FlinksClient(auth_secret="s", transport=desk.transport, settings=config.bulk()) as client:
            running = asyncio.ensure_future(job.run(client, Rules(open_shards=3)))
            try:
                await until(lambda: (progress := job.progress()) is not None and progress.troubles)
                progress = job.progress()
                assert progress is not None
                (told,) = map(str, progress.troubles)
                assert re.fullmatch(r"JSONL has been storing shard 0 for \d+ s", told)
                await until(lambda: (status(desk.directory).latest or {}).get("troubles"))
                await until(lambda: "waiting: JSONL has been storing" in (desk.directory / "job.log").read_text())
                await until(lambda: len(list((desk.directory / "spools").iterdir())) == 3)
                await until(lambda: len(desk.transport.requests) >= 30)
                assert len(desk.transport.requests) == 30, "three shards are open, and no more are fetched"
            finally:
                store.go.set()
            result = await running
    assert (result.state, result.totals.fetched, result.progress.troubles) == ("complete", 200, ())
