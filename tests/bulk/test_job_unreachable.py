"""Jobs whose instance does not answer, or not yet, or no longer."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from flinks_async import ConnectError
from flinks_async.bulk import (
    Job,
    Rules,
    status,
)

from .memory_desk import OK, Desk

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
