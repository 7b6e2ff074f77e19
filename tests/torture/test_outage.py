"""An instance that is down in the middle of a job: no token is lost, no attempts are used up, and the job resumes by itself."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from flinks_async import FlinksClient, bulk, config
from flinks_async.bulk import InputFile, Job, JSONLParts, Rules
from flinks_async.bulk.fetching import NoThread
from flinks_async.testing import ServeOptions, ServerProcess, VirtualClock, run_virtual

from ..simulation import Instance, client_of
from .expected import check_answers, make_tokens
from .job_driver import LAYOUT

HOUR = 3600.0


@pytest.mark.parametrize("failure", ["503", "refused"])
def test_an_hour_of_outage_costs_no_token_and_no_attempts(tmp_path: Path, failure: str) -> None:
    tokens = make_tokens(tmp_path / "tokens.csv", 2000)
    begins, ends = 10.0, 10.0 + HOUR
    instance = Instance(lambda now: not begins <= now < ends, latency=0.2, failure=failure)

    async def main() -> float:
        async with client_of(instance, config.bulk()) as client:
            with Job.start(
                tmp_path / "job", InputFile(tokens.source, LAYOUT), JSONLParts(), {"": "i"}, shard_size=100
            ) as job:
                result = await job.run(
                    client, Rules(concurrency=20), clock=VirtualClock(), threads=(NoThread(), NoThread())
                )
                assert (result.state, result.totals.fetched, result.totals.failed) == ("complete", 2000, 0)
                return result.progress.seconds

    seconds = run_virtual(main())
    before = instance.sent_between(0, begins)
    assert 500 < before < 1900, "the outage is not in the middle"
    assert HOUR < seconds < HOUR + 300, "it did not go on soon after the outage"
    assert instance.sent_between(begins + 60, ends) < HOUR / 5, "it did not wait, but asked all the time"
    lines = [json.loads(line) for line in bulk.export(tmp_path / "job")]
    assert {line["line"] for line in lines} == tokens.good.keys()
    attempts = [line["meta"]["attempts"] for line in lines]
    allowed = config.bulk().retry.attempts
    assert max(attempts) > allowed, "no token had more failures than attempts, so none shows that they are not burnt"
    assert sum(count > allowed for count in attempts) <= 20, "others than those that were in flight had to probe"


@pytest.mark.slow
def test_a_server_that_is_stopped_and_started_again(tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path / "tokens.csv", 300)

    async def main(server: ServerProcess, after: ServerProcess) -> None:
        async with FlinksClient(
            auth_secret=server.auth_secret, base_url=server.base_url, settings=config.bulk()
        ) as client:
            with Job.start(
                tmp_path / "job", InputFile(tokens.source, LAYOUT), JSONLParts(), {"": "i"}, shard_size=20
            ) as job:
                running = asyncio.ensure_future(job.run(client, Rules(concurrency=4)))
                while not (progress := job.progress()) or progress.fetched < 60:
                    await asyncio.sleep(0.005)
                await asyncio.to_thread(server.stop)
                await asyncio.to_thread(after.start)
                result = await running
                assert (result.state, result.totals.fetched, result.totals.failed) == ("complete", 300, 0)
                stats = client.stats()
                assert stats.requests > 300, "the outage was not noticed"

    # Slow enough to be stopped in the middle.
    options = ServeOptions(size="small", latency=("fixed", 0.01, 0.0), auth_secret="s")
    with ServerProcess(options) as server:
        port = int(server.base_url.rpartition(":")[2])
        after = ServerProcess(ServeOptions(size="small", auth_secret="s", port=port))
        try:
            asyncio.run(main(server, after))
        finally:
            after.stop()
    check_answers(bulk.export(tmp_path / "job"), tokens)
