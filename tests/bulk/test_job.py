"""A job as users have it: begun, stopped, gone on with, retried, checked, exported, removed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flinks_async import ClientClosedError, ConfigError, FlinksClient
from flinks_async.bulk import (
    Commit,
    InputBytes,
    InputError,
    InputFile,
    Job,
    JobError,
    JobMismatchError,
    JSONLFile,
    JSONLParts,
    Layout,
    LedgerError,
    Processes,
    Result,
    Rules,
    SQLiteStore,
    Store,
    StoreError,
    UnfitAnswerError,
    export,
    status,
    verify,
)
from flinks_async.bulk.ledger import Ledger
from flinks_async.testing import InMemoryTransport, VirtualClock, run_virtual
from flinks_async.testing.faults import KINDS

from ..support import until
from .memory_desk import NO_THREADS, OK, ORIGIN, Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_job_from_beginning_to_end(desk: Desk) -> None:
    result = desk.complete()
    assert (result.state, result.reason) == ("complete", "")
    assert (result.totals.tokens, result.totals.fetched, result.totals.failed) == (25, 25, 0)
    assert set(desk.answers) == set(range(2, 27))
    assert desk.answers[9]["key"] == "u-9"
    assert desk.failed == {}
    assert verify(desk.directory) == []
    assert status(desk.directory).totals == result.totals
    report = json.loads((desk.directory / "report.json").read_text())
    assert report["outcome"] == {
        "tokens": 25, "fetched": 25, "failed": 0, "pending": 0, "retrying": 0, "invalid_lines": 0, "by_kind": {},
        "by_error": {},
    }  # fmt: skip
    log = (desk.directory / "job.log").read_text()
    assert "run begins: 25 tokens in 3 shards" in log
    assert "run over: complete" in log


KEYS = (
    "1.10", "1e2", "-0", "-0.0", "1E400", "0.1000000000000000055511151231257827", "123456789012345678901234567890",
    "-9223372036854775809", "true", "null", '"1.10"', '[1.10,{"a":1e5}]', '{"b":-2.50}',
)  # fmt: skip


@pytest.mark.parametrize("status", [200, 401])
def test_keys_of_jsonl_come_back_as_they_were_written(desk: Desk, status: int) -> None:
    desk.path = desk.path.with_suffix(".jsonl")
    desk.path.write_text("".join(f'{{"token":"t-{n}","user":{key}}}\n' for n, key in enumerate(KEYS)))
    desk.transport.default = OK if status == 200 else InMemoryTransport().default
    with Job.start(desk.directory, desk.source(), JSONLParts(), ORIGIN, shard_size=10) as job:
        desk.run(job)
    lines = [line.decode() for line in export(desk.directory)] if status == 200 else desk.failed_lines
    found = [line.partition('"key":')[2] for line in lines]
    wrong = [text for text, key in zip(found, KEYS, strict=True) if not text.startswith(f"{key},")]
    assert wrong == ([] if status == 200 else [""]), "failed.jsonl leaves null out"


def test_two_jobs_in_one_process_have_their_own_logs(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Desk(tmp_path / "other", tokens=3)
    with desk.job() as job, other.job() as another:
        other.run(another)
        desk.run(job)
    assert (other.directory / "job.log").read_text().count("run over") == 1
    assert "25 tokens" not in (other.directory / "job.log").read_text()


def test_a_job_that_is_over_sends_nothing_more(desk: Desk) -> None:
    desk.complete()
    sent = len(desk.transport.requests)
    assert desk.complete().state == "complete"
    assert len(desk.transport.requests) == sent
    assert len(desk.answers) == 25


def test_a_job_that_was_stopped_goes_on(desk: Desk) -> None:
    async def slow(request: Any) -> Any:
        await asyncio.sleep(1)
        return OK

    async def stop(job: Job) -> None:
        await asyncio.sleep(3.5)
        job.stop("enough")

    desk.transport.default = slow
    with desk.job() as job:
        first = desk.run(job, Rules(concurrency=4), stop)
    assert (first.state, first.reason) == ("stopped", "enough")
    assert first.totals.fetched == len(desk.transport.requests) == 16
    assert len(desk.answers) == 16
    assert desk.complete().state == "complete"
    assert len(desk.answers) == 25
    assert len(desk.transport.requests) == 25, "a clean stop repeats no request"
    assert [run["state"] for run in status(desk.directory).runs] == ["stopped", "complete"]


def test_a_run_that_is_cancelled_keeps_what_was_committed(desk: Desk) -> None:
    async def slow_at_the_end(request: Any) -> Any:
        await asyncio.sleep(1000 if request.token.reveal() == "token-25" else 1)
        return OK

    desk.transport.default = slow_at_the_end

    async def main(job: Job) -> None:
        async with desk.client() as client:
            running = asyncio.ensure_future(
                job.run(client, Rules(concurrency=30), clock=VirtualClock(), threads=NO_THREADS)
            )
            await until(lambda: status(desk.directory).totals.shards_done >= 2)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    with desk.job() as job:
        run_virtual(main(job))
    assert status(desk.directory).totals.fetched == 20
    desk.transport.default = OK
    desk.complete()
    assert set(desk.answers) == set(range(2, 27))
    assert len(desk.transport.requests) == 30


@pytest.mark.parametrize("store", [JSONLFile, SQLiteStore])
def test_a_run_after_one_that_broke_off_between_store_and_ledger_doubles_nothing(
    desk: Desk, store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is full")

    with Job.start(desk.directory, desk.source(), store(), ORIGIN, shard_size=10) as job:
        with monkeypatch.context() as patched, pytest.raises(StoreError, match="the disk is full"):
            patched.setattr(Ledger, "commit", full)
            desk.run(job)
        (run,) = status(desk.directory).runs
        assert (run["state"], run["reason"], run["ended"] >= run["started"]) == ("failed", "the disk is full", True)
        desk.transport.answers["token-3"] = KINDS["bad_request"]  # so that a shard would not be the same again
        assert desk.run(job).state == "complete"
    assert verify(desk.directory) == []


def test_a_stop_in_an_outage_keeps_what_there_is_and_leaves_the_rest(desk: Desk) -> None:
    desk.transport.default = KINDS["http_503"]
    desk.transport.answers |= {f"token-{number}": OK for number in range(1, 4)}
    with desk.job() as job:
        result = desk.run(job, Rules(max_duration=600, drain=5))
    assert (result.state, result.reason) == ("stopped", "the time limit of 600 s is reached")
    assert result.totals.fetched == 3
    assert result.totals.pending > 0


def test_failed_tokens_and_their_retry(desk: Desk) -> None:
    desk.transport.answers["token-3"] = KINDS["http_503"]
    desk.transport.answers["token-7"] = KINDS["bad_request"]
    desk.transport.answers["token-20"] = KINDS["http_503"]
    result = desk.complete()
    assert (result.state, result.totals.fetched, result.totals.failed) == ("complete", 22, 3)
    assert {line: record["kind"] for line, record in desk.failed.items()} == {
        4: "exhausted", 8: "final", 21: "exhausted",
    }  # fmt: skip
    assert desk.failed[4]["key"] == "u-4"
    assert (desk.failed[4]["status"], desk.failed[4]["attempts"]) == (503, 2)
    del desk.transport.answers["token-3"]
    with Job.resume(desk.directory) as job:
        assert job.retry() == 2
        result = desk.run(job)
    assert (result.totals.tokens, result.totals.fetched, result.totals.failed) == (25, 23, 2)
    assert set(desk.failed) == {8, 21}
    assert desk.transport.sent("token-7") == 1
    desk.transport.answers.clear()
    with Job.resume(desk.directory) as job:
        assert job.retry({"final", "exhausted"}) == 2
        result = desk.run(job)
    assert (result.totals.fetched, result.totals.failed) == (25, 0)
    assert len(desk.answers) == 25
    assert desk.failed == {}
    assert verify(desk.directory) == []


def test_a_retry_waits_until_every_token_was_tried(desk: Desk) -> None:
    with desk.job() as job, pytest.raises(JobError, match="25 tokens are not fetched yet"):
        job.retry()


def test_a_token_that_comes_twice_is_fetched_once(desk: Desk) -> None:
    desk.write(["a-1", "a-2", "a-1", *[f"b-{n}" for n in range(30)], "a-2"])
    result = desk.complete()
    assert result.totals.tokens == 32
    assert desk.transport.sent("a-1") == desk.transport.sent("a-2") == 1
    duplicates = (desk.directory / "duplicates.jsonl").read_text().splitlines()
    assert list(map(json.loads, duplicates)) == [{"line": 4, "first": 2}, {"line": 35, "first": 3}]


def test_invalid_rows_are_named_by_line(desk: Desk) -> None:
    desk.write(["a-1", "", "a\x07b", "a-2"])
    result = desk.complete()
    assert (result.totals.tokens, result.totals.failures) == (2, {"invalid": 2})
    assert set(desk.failed) == {3, 4}


def test_several_instances(desk: Desk) -> None:
    desk.path.write_text("token,bank\nt-1,acme\nt-2,zeta\nt-1,zeta\nt-3,\n")
    source = InputFile(desk.path, Layout(column="token", instance_column="bank"))
    other = InMemoryTransport({}, default={**OK, "RequestId": "zeta"})

    async def main(job: Job) -> Result:
        async with desk.client() as acme, FlinksClient(auth_secret="z", transport=other) as zeta:
            return await job.run({"acme": acme, "zeta": zeta}, clock=VirtualClock(), threads=NO_THREADS)

    with Job.start(desk.directory, source, JSONLParts(), {"acme": "a", "zeta": "z"}) as job:
        result = run_virtual(main(job))
    assert (result.totals.fetched, result.totals.invalid) == (3, 1)
    assert (len(desk.transport.requests), len(other.requests)) == (1, 2)
    assert {line: (record["instance"], record["response"]["RequestId"]) for line, record in desk.answers.items()} == {
        2: ("acme", "r"), 3: ("zeta", "zeta"), 4: ("zeta", "zeta"),
    }  # fmt: skip
    assert desk.failed[5]["message"] == "the instance is missing"


def test_an_instance_without_a_client_is_named_before_anything_is_sent(desk: Desk) -> None:
    desk.path.write_text("token,bank\nt-1,acme\nt-2,zeta\nt-3,zeta\n")
    source = InputFile(desk.path, Layout(column="token", instance_column="bank"))

    async def main(job: Job) -> None:
        async with desk.client() as acme:
            await job.run({"acme": acme}, clock=VirtualClock(), threads=NO_THREADS)

    with Job.start(desk.directory, source, JSONLParts(), {"acme": "a"}) as job:
        assert job.scanned.instances == {"acme": 1, "zeta": 2}
        with pytest.raises(ConfigError, match=r"no settings for these instances of the input: 'zeta' \(2 tokens\)"):
            run_virtual(main(job))
    assert desk.transport.requests == []
    with Job.start(desk.directory, source, JSONLParts(), {"acme": "a", "zeta": "z"}):  # which was added now
        pass


def test_a_client_that_is_closed_breaks_a_run_off_and_fails_no_token(desk: Desk) -> None:
    async def main(job: Job) -> None:
        client = desk.client()
        await client.close()
        with pytest.raises(ClientClosedError):
            await job.run(client, clock=VirtualClock(), threads=NO_THREADS)

    with desk.job() as job:
        run_virtual(main(job))
        assert job.totals.pending == 25
        assert status(desk.directory).runs[0]["reason"] == "the client is closed"


def test_a_run_that_is_cancelled_or_cannot_even_note_its_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is full")

    async def main(job: Job) -> None:
        async with desk.client() as client:
            running = asyncio.create_task(job.run(client, clock=VirtualClock(), threads=NO_THREADS))
            await asyncio.sleep(0.1)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    desk.transport.default = KINDS["http_503"]
    with desk.job() as job:
        run_virtual(main(job))
        with monkeypatch.context() as patched:
            patched.setattr(Ledger, "end_run", full)
            run_virtual(main(job))
    first, second = status(desk.directory).runs
    assert (first["state"], first["reason"]) == ("interrupted", "it was cancelled")
    assert (second["state"], second["ended"]) == (None, None)


class Picky(JSONLParts):
    """A store that cannot hold the answers of some lines."""

    def __init__(self, *lines: int) -> None:
        super().__init__()
        self.unfit = lines

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        for record in map(json.loads, spool.read_bytes().splitlines()):
            if record["line"] in self.unfit:
                raise UnfitAnswerError("it does not fit", line=record["line"])
        return super().put(commit, spool)


def test_an_answer_that_the_store_cannot_hold_is_a_failed_token_and_the_others_go_on(desk: Desk) -> None:
    with Job.start(desk.directory, desk.source(), Picky(3, 4, 20), ORIGIN, shard_size=10) as job:
        result = desk.run(job)
    assert (result.state, result.totals.fetched, result.totals.failed) == ("complete", 22, 3)
    assert (result.progress.fetched, result.progress.failed) == (22, 3)
    assert set(desk.answers) == set(range(2, 27)) - {3, 4, 20}
    assert desk.failed.keys() == {3, 4, 20}
    assert desk.failed[20] == {
        "line": 20, "kind": "final", "error": "UnfitAnswerError", "message": "it does not fit", "key": "u-20",
        "token_fingerprint": None, "flinks_code": None, "status": 200, "attempts": 1,
    }  # fmt: skip
    assert verify(desk.directory) == []
    assert not list((desk.directory / "spools").iterdir())


def test_answers_that_do_not_fit_count_as_failures_for_the_rules(desk: Desk) -> None:
    with Job.start(desk.directory, desk.source(), Picky(*range(2, 12)), ORIGIN, shard_size=10) as job:
        result = desk.run(job, Rules(max_failures=5, open_shards=1, concurrency=1))
    assert (result.state, result.reason) == ("stopped", "10 tokens failed, more than the 5 allowed")
    assert result.totals.pending > 0


def test_a_store_that_calls_an_answer_unfit_which_it_was_not_given_ends_the_run(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: JSONLParts, commit: Commit, spool: Path) -> dict[str, Any]:
        raise UnfitAnswerError("it does not fit", line=999)

    monkeypatch.setattr(JSONLParts, "put", refuse)
    with desk.job() as job, pytest.raises(UnfitAnswerError):
        desk.run(job)


def test_a_start_that_was_refused_leaves_the_directory_for_the_right_one(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'tokne'"):
        Job.start(desk.directory, desk.source(column="tokne"), JSONLParts())
    with pytest.raises(StoreError):
        Job.start(desk.directory, desk.source(), SQLiteStore(tmp_path / "missing" / "answers.sqlite"))
    with desk.job() as job:
        assert desk.run(job).state == "complete"


def test_a_job_that_began_and_cannot_be_opened_now_keeps_its_directory(desk: Desk) -> None:
    desk.complete()
    (desk.directory / "ledger.sqlite").write_bytes(b"not a ledger")
    with pytest.raises(LedgerError):
        desk.job()
    assert (desk.directory / "manifest.json").exists()


class TestTokensInMemory:
    DATA = b"user,token\nu-1,canary-token-1\nu-2,canary-token-2\nu-1,canary-token-1\n"

    def start(self, desk: Desk, data: bytes = DATA) -> Job:
        source = InputBytes(data, Layout("csv", column="token", key_column="user"))
        return Job.start(desk.directory, source, JSONLParts(), ORIGIN, shard_size=1)

    def test_they_are_fetched_and_never_written(self, desk: Desk) -> None:
        with self.start(desk) as job:
            assert desk.run(job).totals.fetched == 2
        assert {line: record["key"] for line, record in desk.answers.items()} == {2: "u-1", 3: "u-2"}
        for path in desk.directory.rglob("*"):
            assert path.is_dir() or b"canary" not in path.read_bytes(), path

    def test_the_job_goes_on_with_the_same_bytes_and_refuses_others(self, desk: Desk) -> None:
        with self.start(desk):
            pass
        with pytest.raises(JobMismatchError, match="the file of tokens has changed"):
            self.start(desk, self.DATA + b"u-3,x\n")
        with self.start(desk) as job:
            assert desk.run(job).state == "complete"

    def test_a_job_is_resumed_with_a_file_of_the_same_bytes(self, desk: Desk) -> None:
        self.start(desk).close()
        with pytest.raises(InputError, match="came from standard input and were not kept"):
            Job.resume(desk.directory)
        desk.path.write_bytes(self.DATA)
        with Job.resume(desk.directory, path=desk.path) as job:
            assert desk.run(job).totals.fetched == 2

    def test_worker_processes_cannot_read_them(self, desk: Desk) -> None:
        async def main(job: Job) -> None:
            async with desk.client() as client:
                await job.run(client, executor=Processes(2))

        with self.start(desk) as job, pytest.raises(ConfigError, match="put the tokens into a file"):
            asyncio.run(main(job))


def test_totals_are_read_through_a_connection_of_their_own(desk: Desk) -> None:
    with desk.job() as job:
        statements: list[str] = []
        job._ledger._db.set_trace_callback(statements.append)  # a run writes through this connection in a thread
        assert job.totals.tokens == 25
        assert statements == []
