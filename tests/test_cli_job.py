"""`flinks-async fetch --job`: begun, stopped in every way, and gone on with."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import stat
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from flinks_async import bulk
from flinks_async.cli import Exit
from flinks_async.testing import Fault, FlinksServer

from .bulk.input_support import write
from .cli_support import cli, records, said, start

NAMES = [f"token-{n}" for n in range(50)]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return tmp_path / "job"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write(tmp_path / "t.txt", "".join(f"{name}\n" for name in NAMES))


async def fetch(server: FlinksServer, tokens: object, job: object, *more: object, **options: Any) -> Result:
    return await cli("fetch", tokens, "--job", job, *more, server=server, **options)


def answers(job: Path) -> dict[int, Any]:
    """Answers by line, none of them twice."""
    found = [json.loads(line, parse_float=Decimal) for line in bulk.export(job)]
    assert len({record["line"] for record in found}) == len(found), "an answer is there twice"
    return {record["line"]: record["response"] for record in found}


def lines_of(database: Path) -> list[int]:
    with closing(sqlite3.connect(database)) as db:
        return [line for (line,) in db.execute("SELECT line FROM fetches ORDER BY line")]


def expected(server: FlinksServer, names: list[str] = NAMES) -> dict[int, Any]:
    return {line: server.expected(name) for line, name in enumerate(names, 1)}


class TestExitCodes:
    async def test_0_all_tokens_were_fetched_and_the_same_command_has_nothing_to_do(
        self, flinks_server: FlinksServer, tokens: Path, job: Path
    ) -> None:
        result = await fetch(flinks_server, tokens, job, "--shard-size", 7)
        assert result.exit_code == Exit.OK, result.stderr
        assert result.stdout == ""
        assert answers(job) == expected(flinks_server)
        again = await fetch(flinks_server, tokens, job, "--shard-size", 7)
        assert again.exit_code == Exit.OK
        assert flinks_server.stats.requests == len(NAMES)
        assert "fetched            50" in again.stderr

    async def test_1_some_tokens_failed(self, flinks_server: FlinksServer, tmp_path: Path, job: Path) -> None:
        flinks_server.script("expired", ["session_nonexistent"])
        tokens = write(tmp_path / "t.txt", "good\nexpired\n..\ngood\n")
        result = await fetch(flinks_server, tokens, job)
        assert result.exit_code == Exit.FAILED
        assert answers(job).keys() == {1}
        assert {r["line"]: r["kind"] for r in records(job / "failed.jsonl")} == {2: "final", 3: "invalid"}
        assert records(job / "duplicates.jsonl") == [{"line": 4, "first": 1}]
        assert "1 bad request error" in result.stderr
        assert "BadRequestError" not in result.stderr, "no names of classes"

    async def test_1_only_invalid_lines(self, flinks_server: FlinksServer, tmp_path: Path, job: Path) -> None:
        assert (await fetch(flinks_server, write(tmp_path / "t.txt", "good\n..\n"), job)).exit_code == Exit.FAILED

    async def test_3_too_many_failures_and_the_same_command_goes_on(
        self, flinks_server: FlinksServer, tokens: Path, job: Path
    ) -> None:
        for name in NAMES[:4]:
            flinks_server.script(name, ["session_nonexistent"])
        result = await fetch(flinks_server, tokens, job, "--max-failures", 2, "--concurrency", 1)
        assert result.exit_code == Exit.STOPPED
        assert "more than the 2 allowed" in result.stderr
        assert "Run the same command again" in result.stderr
        again = await fetch(flinks_server, tokens, job)
        assert again.exit_code == Exit.FAILED
        assert set(flinks_server.stats.per_token.values()) == {1}

    async def test_4_the_secret_is_refused_and_with_the_right_one_it_goes_on(
        self, flinks_server: FlinksServer, tokens: Path, job: Path
    ) -> None:
        result = await fetch(flinks_server, tokens, job, "--concurrency", 1, FLINKS_AUTH_SECRET="wrong-secret")
        assert result.exit_code == Exit.REFUSED
        assert "5 different tokens in a row" in result.stderr
        assert "--auth-scheme" in result.stderr
        assert "wrong-secret" not in result.output
        assert (await fetch(flinks_server, tokens, job)).exit_code == Exit.OK
        assert answers(job) == expected(flinks_server)

    async def test_3_something_else_answers_in_the_place_of_the_instance(
        self, flinks_server: FlinksServer, tokens: Path, job: Path
    ) -> None:
        flinks_server.script_all([Fault.reply(302, headers={"Location": "https://login.example/"})] * 5)
        result = await fetch(flinks_server, tokens, job, "--concurrency", 1)
        assert result.exit_code == Exit.STOPPED
        assert "a redirect to login.example" in result.stderr
        assert "(5 different tokens in a row). The job has 50 tokens." in result.stderr
        assert "Run the same command again" in result.stderr
        assert "a redirect to login.example" in (await cli("status", job)).stdout
        assert (await fetch(flinks_server, tokens, job)).exit_code == Exit.OK
        assert answers(job) == expected(flinks_server)

    async def test_3_a_proxy_wants_credentials(self, flinks_server: FlinksServer, tokens: Path, job: Path) -> None:
        flinks_server.script_all([Fault.reply(407)] * 50)
        result = await fetch(flinks_server, tokens, job)
        assert result.exit_code == Exit.STOPPED
        assert "the proxy wants credentials" in result.stderr
        assert "  failed              0" in result.stderr

    async def test_4_dead_tokens_at_the_beginning_of_the_file_can_be_passed(
        self, flinks_server: FlinksServer, tokens: Path, job: Path
    ) -> None:
        for name in NAMES[:5]:
            flinks_server.script(name, ["unauthorized"] * 2)
        result = await fetch(flinks_server, tokens, job, "--concurrency", 1)
        assert result.exit_code == Exit.REFUSED
        assert "a larger --refused-after continues after them" in result.stderr
        result = await fetch(flinks_server, tokens, job, "--concurrency", 1, "--refused-after", 6)
        assert (result.exit_code, len(answers(job))) == (Exit.FAILED, len(NAMES) - 5)

    async def test_5_the_store_cannot_be_written(
        self, flinks_server: FlinksServer, tokens: Path, job: Path, tmp_path: Path
    ) -> None:
        result = await fetch(flinks_server, tokens, job, "--out", tmp_path / "no" / "answers.jsonl")
        assert result.exit_code == Exit.OUTPUT
        assert "there is no folder" in result.stderr
        assert flinks_server.stats.requests == 0

    async def test_5_the_input_changes_under_the_run_and_with_the_old_one_it_goes_on(
        self, flinks_server: FlinksServer, tokens: Path, job: Path
    ) -> None:
        before = tokens.read_bytes()
        flinks_server.script("token-7", ["hang"])
        more = ("--shard-size", 5, "--open-shards", 1, "--concurrency", 2)
        running = asyncio.create_task(fetch(flinks_server, tokens, job, *more))
        await flinks_server.received(8)
        write(tokens, before.replace(b"token", b"other"))
        flinks_server.release()
        result = await running
        assert result.exit_code == Exit.OUTPUT, result.stderr
        assert "Committed answers are kept. Fix the cause and run the same command:" in result.stderr
        assert f"Error: {tokens}: " in result.stderr or "Error: Lines " in result.stderr
        write(tokens, before)
        assert (await fetch(flinks_server, tokens, job)).exit_code == Exit.OK
        assert answers(job) == expected(flinks_server)

    async def test_3_workers_that_die_again_and_again(
        self, flinks_server: FlinksServer, tokens: Path, job: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def die(*arguments: Any, **more: Any) -> Any:
            raise bulk.WorkerError("worker processes die again and again")

        monkeypatch.setattr(bulk.Job, "run", die)
        result = await fetch(flinks_server, tokens, job)
        assert result.exit_code == Exit.STOPPED
        assert "Committed answers are kept" in result.stderr
        assert "Error: worker processes die again and again\n" in result.stderr

    async def test_5_the_ledger_is_broken(self, flinks_server: FlinksServer, tokens: Path, job: Path) -> None:
        await fetch(flinks_server, tokens, job)
        write(job / "ledger.sqlite", b"\0" * 5000)
        for command in (
            ("fetch", tokens, "--job", job),
            ("status", job),
            ("verify", job),
            ("export", job, "--out", "-"),
        ):
            result = await cli(*command, server=flinks_server)
            assert result.exit_code == Exit.OUTPUT, command
            assert "ledger.sqlite" in result.stderr
            assert "LedgerError" not in result.stderr


class TestUsage:
    @pytest.mark.parametrize(
        ("more", "says"),
        [
            (("--max-failures", "many"), "a number such as 100, or a share such as 5%"),
            (("--max-failures", "101%"), "a number such as 100, or a share such as 5%"),
            (("--max-duration", "1 week"), "a time such as 90 (seconds), 45m, 2h or 1d"),
            (("--max-duration", "0"), "a time such as 90 (seconds), 45m, 2h or 1d"),
            (("--column", "x"), "A text file has no columns"),
            (("--out", "-"), "flinks-async export"),
            (("--store", "sqlite", "--out", "-"), "flinks-async export"),
            (("--store", "parquet", "--out", "x"), "its files are in DIR/parts"),
            (("--store", "postgresql", "--out", "x"), "PGDATABASE"),
            (("--fetched-on", "2026-11-28"), "--fetched-on needs --store parquet"),
            (("--store", "parquet", "--fetched-on", "28.11.2026"), "must be a day such as 2026-11-28"),
            (("--instances", "i.toml"), "--instance-column"),
            (("--format", "jsonl", "--instance-column", "i"), "--instances FILE"),
        ],
    )
    async def test_options_that_do_not_fit(
        self, flinks_server: FlinksServer, tokens: Path, job: Path, more: tuple[str, ...], says: str
    ) -> None:
        result = await fetch(flinks_server, tokens, job, *more)
        assert result.exit_code == Exit.USAGE
        assert says in result.stderr
        assert not job.exists()

    async def test_standard_input_may_be_the_input_of_a_job(self, flinks_server: FlinksServer, job: Path) -> None:
        result = await fetch(flinks_server, "-", job, stdin="one\n")
        assert result.exit_code == Exit.OK
        assert answers(job) == expected(flinks_server, ["one"])
        assert "input: standard input (4 bytes)" in (await cli("status", job)).stdout
        again = await cli("retry", job, "--class", "all", server=flinks_server)
        assert again.exit_code == Exit.USAGE
        assert "came from standard input and were not kept" in again.stderr

    async def test_worker_processes_cannot_read_standard_input(self, flinks_server: FlinksServer, job: Path) -> None:
        result = await fetch(flinks_server, "-", job, "--processes", 2, stdin="one\n")
        assert result.exit_code == Exit.USAGE
        assert "put the tokens into a file" in result.stderr
        assert flinks_server.stats.requests == 0

    async def test_more_processes_than_requests_at_once(
        self, flinks_server: FlinksServer, tokens: Path, job: Path
    ) -> None:
        result = await fetch(flinks_server, tokens, job, "--processes", 3, "--concurrency", 2)
        assert result.exit_code == Exit.USAGE
        assert "3 processes need a concurrency of at least 3 in all, not 2" in result.stderr

    async def test_parquet_files_of_a_day_are_a_hive_partition(
        self, flinks_server: FlinksServer, tokens: Path, job: Path
    ) -> None:
        pytest.importorskip("pyarrow")
        for _ in range(2):  # the second time, the same command resumes the job
            result = await fetch(flinks_server, tokens, job, "--store", "parquet", "--fetched-on", "2026-11-28")
            assert result.exit_code == Exit.OK
        (file,) = (job / "parts" / "accounts").rglob("*.parquet")
        assert file.parent.name == "fetched_on=2026-11-28"
        other = await fetch(flinks_server, tokens, job, "--store", "parquet", "--fetched-on", "2026-11-29")
        assert other.exit_code == Exit.USAGE
        assert "fetched_on of the store was 2026-11-28 and is now 2026-11-29" in other.stderr

    async def test_only_jsonl_is_printed(self, flinks_server: FlinksServer, tokens: Path) -> None:
        result = await cli("fetch", tokens, "--out", "-", "--store", "sqlite", server=flinks_server)
        assert result.exit_code == Exit.USAGE
        assert "--out - prints JSONL" in result.stderr

    @pytest.mark.parametrize(
        ("more", "says"),
        [
            (("--store", "jsonl.gz"), "compression"),
            (
                ("--store", "sqlite"),
                "another job: the store was one JSONL file per shard and is now sqlite. Use another",
            ),
            (("--base-url", "http://127.0.0.1:1"), "the host was 127.0.0.1:"),
            (("--encoding", "latin-1"), "--encoding was not set and is now iso8859-1"),
        ],
    )
    async def test_another_job_in_the_same_directory_is_refused_and_says_what_differs(
        self, flinks_server: FlinksServer, tokens: Path, job: Path, more: tuple[str, ...], says: str
    ) -> None:
        await fetch(flinks_server, tokens, job)
        result = await fetch(flinks_server, tokens, job, *more)
        assert result.exit_code == Exit.USAGE
        assert "JobMismatchError" not in result.stderr, "no names of classes"
        assert says in result.stderr

    async def test_other_tokens_in_the_same_directory_are_refused(
        self, flinks_server: FlinksServer, tokens: Path, job: Path
    ) -> None:
        await fetch(flinks_server, tokens, job)
        write(tokens, "another\n")
        result = await fetch(flinks_server, tokens, job)
        assert result.exit_code == Exit.USAGE
        assert "the file of tokens has changed" in result.stderr

    async def test_the_directory_of_something_else_is_left_alone(
        self, flinks_server: FlinksServer, tokens: Path, job: Path
    ) -> None:
        job.mkdir()
        write(job / "precious.txt", "precious")
        for command in (("fetch", tokens, "--job", job), ("status", job), ("purge", job, "--yes"), ("retry", job)):
            result = await cli(*command, server=flinks_server)
            assert result.exit_code == Exit.USAGE, command
            assert "not the directory of a job" in result.stderr
        assert os.listdir(job) == ["precious.txt"]

    async def test_a_job_that_another_process_works_on(
        self, flinks_server: FlinksServer, tokens: Path, job: Path
    ) -> None:
        await fetch(flinks_server, tokens, job)
        with bulk.Job.resume(job):
            for command in (("fetch", tokens, "--job", job), ("verify", job), ("purge", job, "--yes"), ("retry", job)):
                result = await cli(*command, server=flinks_server)
                assert result.exit_code == Exit.LOCKED == 6, command
                assert "another process works on the job" in result.stderr
            assert (await cli("status", job)).exit_code == Exit.OK


STORES = {
    "parts": (),
    "gz": ("--store", "jsonl.gz"),
    "file": ("--out", "answers.jsonl"),
    "sqlite": ("--store", "sqlite"),
    "database": ("--store", "sqlite", "--out", "answers.db"),
}


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
class TestInterruptions:
    """Processes of their own, real signals. `token-20` hangs, so that there is a middle to stop in."""

    async def started(self, server: FlinksServer, tokens: Path, job: Path, *more: object) -> asyncio.subprocess.Process:
        server.script("token-20", ["hang"])
        process = await start(
            *("fetch", tokens, "--job", job, "--shard-size", 5, "--open-shards", 2, "--concurrency", 4, *more),
            server=server,
        )
        await server.received(50)
        return process

    @pytest.mark.parametrize("store", STORES.values(), ids=STORES)
    async def test_after_a_kill_it_goes_on_and_has_every_answer_once(
        self, flinks_server: FlinksServer, tokens: Path, job: Path, store: tuple[str, ...]
    ) -> None:
        store = tuple(str(tokens.parent / word) if word.startswith("answers.") else word for word in store)
        process = await self.started(flinks_server, tokens, job, *store)
        process.kill()
        await process.communicate()
        assert (await cli("status", job)).exit_code == Exit.OK
        result = await fetch(flinks_server, tokens, job, "--shard-size", 5, *store)
        assert result.exit_code == Exit.OK, result.stderr
        if "sqlite" in store:
            database = job / "answers.sqlite" if len(store) == 2 else Path(store[-1])
            assert lines_of(database) == list(range(1, 51))
        else:
            assert answers(job) == expected(flinks_server)
        assert flinks_server.stats.requests <= 50 + 2 * 5, "more than the shards that were under way"
        assert (await cli("verify", job)).exit_code == Exit.OK
        flinks_server.release()

    @pytest.mark.parametrize("processes", [1, 2])
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    async def test_the_first_signal_finishes_what_is_in_flight_and_nothing_is_fetched_twice(
        self, flinks_server: FlinksServer, tokens: Path, job: Path, number: signal.Signals, code: int, processes: int
    ) -> None:
        flinks_server.script_all([*[None] * 20, *["hang"] * 4])
        more = ("--shard-size", 5, "--open-shards", 8, "--concurrency", 4, "--processes", processes)
        process = await start("fetch", tokens, "--job", job, *more, server=flinks_server)
        await flinks_server.received(24)
        process.send_signal(number)
        await said(process, b"A second signal stops at once")
        flinks_server.release()
        _, stderr = await process.communicate()
        assert process.returncode == code
        assert b"Run the same command again to fetch them." in stderr
        assert bulk.status(job).totals.pending == 50 - flinks_server.stats.requests > 0
        result = await fetch(flinks_server, tokens, job)
        assert result.exit_code == Exit.OK
        assert answers(job) == expected(flinks_server)
        assert set(flinks_server.stats.per_token.values()) == {1}

    async def test_what_is_in_flight_has_as_long_as_was_asked_for(
        self, flinks_server: FlinksServer, tokens: Path, job: Path
    ) -> None:
        process = await self.started(flinks_server, tokens, job, "--drain", "0.1")
        process.send_signal(signal.SIGTERM)
        _, stderr = await asyncio.wait_for(process.communicate(), 15)
        assert process.returncode == Exit.SIGTERM, stderr
        assert bulk.status(job).totals.pending > 0
        flinks_server.release()

    async def test_the_second_signal_ends_it_at_once(
        self, flinks_server: FlinksServer, tokens: Path, job: Path
    ) -> None:
        process = await self.started(flinks_server, tokens, job)
        process.send_signal(signal.SIGINT)
        await said(process, b"A second signal stops at once")
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
        assert process.returncode == Exit.SIGINT
        assert b"Traceback" not in stderr
        assert b"ERROR" not in stderr, "it was asked for"
        assert "INFO run interrupted" in (job / "job.log").read_text()
        result = await fetch(flinks_server, tokens, job)
        assert result.exit_code == Exit.OK
        assert answers(job) == expected(flinks_server)
        flinks_server.release()


class TestProgress:
    async def test_json_ends_with_how_it_ended(self, flinks_server: FlinksServer, tokens: Path, job: Path) -> None:
        result = await fetch(flinks_server, tokens, job, "--progress", "json")
        events = [json.loads(line) for line in result.stderr.splitlines()]
        end = events[-1]
        assert events[0] == {"event": "begin", "job": str(job), "answers": None}
        assert {event["event"] for event in events} <= {"begin", "planning", "progress", "end"}
        assert end.keys() == {"event", "state", "reason", "exit_code", "totals", "run"}
        assert (end["event"], end["state"], end["exit_code"], end["reason"]) == ("end", "complete", 0, "")
        assert end["totals"] == {
            "tokens": 50, "fetched": 50, "failed": 0, "pending": 0, "retrying": 0, "invalid_lines": 0, "by_kind": {},
            "by_error": {},
        }  # fmt: skip
        assert (end["run"]["phase"], end["run"]["requests"], end["run"]["done"]) == ("over", 50, 50)

    async def test_json_of_a_job_that_cannot_be_opened(
        self, flinks_server: FlinksServer, tmp_path: Path, job: Path
    ) -> None:
        result = await fetch(flinks_server, tmp_path / "none.txt", job, "--progress", "json")
        end, message = result.stderr.splitlines()
        assert json.loads(end) == {
            "event": "end", "state": "failed", "exit_code": 2, "totals": None, "run": None,
            "reason": json.loads(end)["reason"],
        }  # fmt: skip
        missing = f"{tmp_path / 'none.txt'}: The file of tokens cannot be read: No such file"
        assert missing in json.loads(end)["reason"]
        assert message.startswith(f"Error: {missing}")

    async def test_an_output_that_cannot_be_written_is_an_event(self, tokens: Path, tmp_path: Path) -> None:
        out = tmp_path / "nowhere" / "answers.jsonl"
        result = await cli(
            "fetch", tokens, "--column", "token", "--out", out, "--instance", "toolbox", "--progress", "json",
            FLINKS_AUTH_SECRET="canary-secret",
        )  # fmt: skip
        end = json.loads(result.stderr.splitlines()[0])
        assert (result.exit_code, end["event"], end["state"], end["exit_code"]) == (Exit.OUTPUT, "end", "failed", 5)
        assert f"there is no folder {out.parent}" in end["reason"]

    @pytest.mark.parametrize("command", ["fetch", "retry"])
    async def test_json_of_a_run_that_has_no_secret(
        self, flinks_server: FlinksServer, tokens: Path, job: Path, command: str
    ) -> None:
        await fetch(flinks_server, tokens, job)
        what = ("fetch", tokens, "--job", job) if command == "fetch" else ("retry", job)
        result = await cli(*what, "--progress", "json")
        assert result.exit_code == Exit.USAGE
        (end,) = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
        assert (end["event"], end["state"], end["exit_code"]) == ("end", "failed", 2)
        assert end["reason"].startswith("No AuthSecret.")

    async def test_json_of_a_run_with_a_fault_of_ours(
        self, flinks_server: FlinksServer, tokens: Path, job: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*arguments: Any, **more: Any) -> Any:
            raise LookupError

        monkeypatch.setattr(bulk.Job, "run", fail)
        result = await fetch(flinks_server, tokens, job, "--progress", "json")
        assert result.exit_code == Exit.UNEXPECTED
        end = json.loads([line for line in result.stderr.splitlines() if line.startswith("{")][-1])
        assert (end["state"], end["reason"], end["exit_code"]) == ("failed", "unexpected LookupError", 70)

    async def test_quiet_leaves_the_summary(self, flinks_server: FlinksServer, tokens: Path, job: Path) -> None:
        result = await fetch(flinks_server, tokens, job, "--quiet")
        assert result.stderr.startswith("Done. The job has 50 tokens.\n")


class TestOutput:
    async def test_one_file_of_jsonl(
        self, flinks_server: FlinksServer, tokens: Path, job: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "answers.jsonl"
        assert (await fetch(flinks_server, tokens, job, "--out", out)).exit_code == Exit.OK
        assert {record["line"]: record["response"] for record in records(out)} == expected(flinks_server)

    async def test_sqlite(self, flinks_server: FlinksServer, tokens: Path, job: Path, tmp_path: Path) -> None:
        out = tmp_path / "answers.db"
        result = await fetch(flinks_server, tokens, job, "--store", "sqlite", "--out", out)
        assert result.exit_code == Exit.OK, result.stderr
        assert lines_of(out) == list(range(1, 51))

    @pytest.mark.parametrize("count", [1, 2])
    async def test_worker_processes(
        self, flinks_server: FlinksServer, tokens: Path, job: Path, monkeypatch: pytest.MonkeyPatch, count: int
    ) -> None:
        counts: list[int] = []
        map_shards = bulk.Processes.map_shards

        def noted(processes: bulk.Processes, *args: Any) -> Any:
            counts.append(processes.count)
            return map_shards(processes, *args)

        monkeypatch.setattr(bulk.Processes, "map_shards", noted)
        result = await fetch(flinks_server, tokens, job, "--processes", count, "--shard-size", 5)
        assert result.exit_code == Exit.OK, result.stderr
        assert answers(job) == expected(flinks_server)
        assert flinks_server.stats.connections >= count
        assert counts == [count]

    async def test_keys_come_along(self, flinks_server: FlinksServer, tmp_path: Path, job: Path) -> None:
        tokens = write(tmp_path / "t.csv", "id;token\nc-1;one\nc-2;two\n")
        more = ("--column", "token", "--key-column", "id", "--delimiter", ";")
        assert (await fetch(flinks_server, tokens, job, *more)).exit_code == Exit.OK
        assert sorted(json.loads(line)["key"] for line in bulk.export(job)) == ["c-1", "c-2"]

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
    async def test_everything_is_for_its_owner_only(self, flinks_server: FlinksServer, tokens: Path, job: Path) -> None:
        await fetch(flinks_server, tokens, job)
        for path in (job, *job.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


class TestDryRun:
    async def test_it_needs_no_secret_and_writes_nothing(self, tmp_path: Path) -> None:
        rows = ["token,id", *(f"token-{n},{n}" for n in range(20)), "token-3,3", "x", "..,1", *["bad\x07,1"] * 6, ""]
        tokens = write(tmp_path / "t.csv", "\n".join(rows) + "\n")
        result = await cli("fetch", tokens, "--column", "token", "--dry-run", "--shard-size", 5, "--assume-rate", 2)
        assert result.exit_code == Exit.OK, result.stderr
        assert os.listdir(tmp_path) == ["t.csv"]
        counts = {
            name: int(count) for name, count in re.findall(r"^  ([a-z]+) +(\d+)(?:  .*)?$", result.stdout, re.MULTILINE)
        }
        assert counts == {"tokens": 20, "duplicates": 1, "invalid": 8, "blank": 1, "header": 1, "shards": 5}
        assert "line 23: the row has 1 fields, the header has 2" in result.stdout
        assert result.stdout.count("  line ") == 3 + 5
        assert "and 3 more" in result.stdout
        assert "it takes at least 10 s" in result.stdout
        assert "token-" not in result.output
        assert "bad" not in result.output

    async def test_of_standard_input(self) -> None:
        result = await cli("fetch", "-", "--dry-run", stdin="one\ntwo\n")
        assert result.exit_code == Exit.OK
        assert re.search(r"^  tokens +2 ", result.stdout, re.MULTILINE)

    async def test_it_shows_the_first_rows_masked(self, tmp_path: Path) -> None:
        rows = [
            "id,token",
            "user@mail.example,2b7e1516-28ae-d2a6-abf7-158809cf4f3c",
            "7,canary-4e3d" + "9" * 60,
            "8,a",
            "9,b",
        ]
        tokens = write(tmp_path / "t.csv", "\n".join(rows) + "\n")
        result = await cli("fetch", tokens, "--column", "token", "--key-column", "id", "--dry-run")
        assert re.findall(r"^  line .*$", result.stdout, re.MULTILINE) == [
            "  line 2: token 9x9x9999-99xx-x9x9-xxx9-999999xx9x9x, key xxxx@xxxx.xxxxxxx",
            f"  line 3: token xxxxxx-9x9x{'9' * 29}... (71 characters), key 9",
            "  line 4: token x, key 9",
        ]

    async def test_of_nothing(self, tmp_path: Path) -> None:
        result = await cli("fetch", write(tmp_path / "t.txt", ""), "--dry-run")
        assert (result.exit_code, "There are no tokens to fetch." in result.stdout) == (Exit.OK, True)

    async def test_only_a_dry_run_assumes_a_rate(self, tokens: Path, job: Path) -> None:
        result = await cli("fetch", tokens, "--job", job, "--assume-rate", 2)
        assert (result.exit_code, job.exists()) == (Exit.USAGE, False)
        assert "--assume-rate needs --dry-run" in result.stderr

    async def test_with_a_job_it_leaves_the_directory_alone(self, tokens: Path, job: Path) -> None:
        result = await cli("fetch", tokens, "--job", job, "--dry-run")
        assert result.exit_code == Exit.OK
        assert "--assume-rate" in result.stdout
        assert not job.exists()
