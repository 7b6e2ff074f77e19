"""Jobs that are not running: `status`, `verify`, `retry`, `export`, `purge`."""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest

from flinks_async import bulk
from flinks_async.bulk.ledger import Ledger
from flinks_async.bulk.records import Commit, Failure, Shard, Written
from flinks_async.cli import Exit
from flinks_async.cli import status as status_module
from flinks_async.testing import FlinksServer

from .cli_support import cli, records
from .test_cli_job import NAMES, answers, expected, fetch, write


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write(tmp_path / "t.txt", "".join(f"{name}\n" for name in NAMES))


@pytest.fixture
async def job(flinks_server: FlinksServer, tokens: Path, tmp_path: Path) -> Path:
    """A job that is done."""
    result = await fetch(flinks_server, tokens, tmp_path / "job", "--shard-size", 10)
    assert result.exit_code == Exit.OK, result.stderr
    return tmp_path / "job"


class TestStatus:
    async def test_in_words(self, job: Path) -> None:
        result = await cli("status", job)
        assert result.exit_code == Exit.OK
        assert "50 tokens in 5 shards, 5 done:" in result.stdout
        assert "ended: complete." in result.stdout

    async def test_as_json(self, job: Path, tokens: Path) -> None:
        found = json.loads((await cli("status", job, "--json")).stdout)
        assert found.keys() == {
            "directory", "job", "created", "input", "origin", "store", "selection", "outcome", "shards", "runs", "latest",
        }  # fmt: skip
        assert found["input"]["path"] == str(tokens)
        assert found["input"]["scanned"]["lines"] == 50
        assert found["outcome"]["fetched"] == 50
        assert found["runs"][0]["state"] == "complete"
        assert found["latest"]["done"] == 50

    @pytest.mark.parametrize(
        ("age", "said"),
        [
            (
                4.0,
                "is running. 4 s ago: 812 tokens/s, 60 of 64 in flight, p50 20 ms, about 3 min left.",
            ),
            (59.0, "is running."),
            (61.0, "has no end, and was silent for 1 min 1 s: it was killed, or its machine stopped."),
        ],
    )
    async def test_of_a_run_without_an_end(
        self, job: Path, monkeypatch: pytest.MonkeyPatch, age: float, said: str
    ) -> None:
        figures = {
            "rate": 812.4,
            "in_flight": 60,
            "limit": 64,
            "p50": 0.02,
            "p95": None,
            "held_back": 0.0,
            "eta": 180.0,
        }
        with closing(Ledger(job / "ledger.sqlite")) as ledger:
            run = ledger.begin_run(1000.0)
            for at in (2000.0, 2010.0, 1990.0):
                ledger.add_sample(run, at, figures)
        monkeypatch.setattr(status_module, "time", SimpleNamespace(time=lambda: 2010.0 + age))
        assert said in (await cli("status", job)).stdout

    async def test_of_a_run_that_has_noted_nothing_yet(self, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with closing(Ledger(job / "ledger.sqlite")) as ledger:
            ledger.begin_run(1000.0)
        for now, said in ((1001.0, "is running."), (1061.0, "was silent for 1 min 1 s")):
            monkeypatch.setattr(status_module, "time", SimpleNamespace(time=lambda now=now: now))
            assert said in (await cli("status", job)).stdout

    async def test_while_a_retry_is_open_the_numbers_add_up(self, job: Path) -> None:
        with closing(Ledger(job / "ledger.sqlite")) as ledger:
            shard = Shard(9, 51, 60, 0, 10, "")
            with ledger.planning() as planner:
                planner.shard(shard)
            failures = tuple(Failure(line, "exhausted", "ServerError", "no") for line in range(51, 55))
            ledger.commit(Commit(shard, Written(6, 1, ""), failures), run=1, now=0.0)
            assert ledger.retry({"exhausted"}, 10) == 4
        result = await cli("status", job)
        assert (
            "left                4  (still to be fetched; all of them failed before, and count as failed too)"
            in result.stdout
        )
        outcome = json.loads((await cli("status", job, "--json")).stdout)["outcome"]
        assert (outcome["tokens"], outcome["retrying"]) == (60, 4)
        assert outcome["fetched"] + outcome["failed"] + outcome["pending"] - outcome["retrying"] == 60

    @pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8")
    async def test_of_a_directory_whose_name_is_not_text(
        self, flinks_server: FlinksServer, tokens: Path, tmp_path: Path
    ) -> None:
        directory = tmp_path / os.fsdecode(b"job-\xff\x1b[31m")
        assert (await fetch(flinks_server, tokens, directory)).exit_code == Exit.OK
        result = await cli("status", directory)
        assert (result.exit_code, "\x1b" in result.stdout) == (Exit.OK, False)
        assert "job-\N{REPLACEMENT CHARACTER}" in result.stdout
        assert "job-" in json.loads((await cli("status", directory, "--json")).stdout)["directory"]


class TestVerify:
    async def test_all_is_well(self, job: Path) -> None:
        result = await cli("verify", job)
        assert (result.exit_code, result.stdout) == (Exit.OK, "")

    async def test_a_flipped_bit_and_a_part_that_is_gone(self, job: Path) -> None:
        first, second, *_ = sorted((job / "parts").iterdir())
        data = bytearray(first.read_bytes())
        data[100] ^= 1
        first.write_bytes(data)
        second.unlink()
        result = await cli("verify", job)
        assert result.exit_code == Exit.FAILED
        lines = result.stdout.splitlines()
        assert len(lines) == 2
        assert lines[0].startswith(f"{first}: ")
        assert lines[1].startswith(f"{second}: ")


class TestRetry:
    @pytest.fixture
    async def failed(self, flinks_server: FlinksServer, tmp_path: Path) -> Path:
        """A job of which line 2 may succeed the next time, and line 3 will not."""
        flinks_server.script("broken", ["http_503"] * 2)
        flinks_server.script("expired", ["session_nonexistent"])
        tokens = write(tmp_path / "u.txt", "good\nbroken\nexpired\n..\n")
        result = await fetch(flinks_server, tokens, tmp_path / "failed", "--attempts", 2)
        assert result.exit_code == Exit.FAILED
        assert "flinks-async retry" in result.stderr
        return tmp_path / "failed"

    @pytest.mark.parametrize(
        ("more", "fetched", "left"),
        [
            ((), {1, 2}, {3, 4}),
            (("--class", "exhausted"), {1, 2}, {3, 4}),
            (("--class", "final"), {1, 3}, {2, 4}),
            (("--class", "all"), {1, 2, 3}, {4}),
        ],
    )
    async def test_by_class(
        self, flinks_server: FlinksServer, failed: Path, more: tuple[str, ...], fetched: set[int], left: set[int]
    ) -> None:
        result = await cli("retry", failed, *more, server=flinks_server)
        assert result.exit_code == Exit.FAILED, result.stderr
        assert answers(failed).keys() == fetched
        assert {record["line"] for record in records(failed / "failed.jsonl")} == left
        assert (await cli("verify", failed)).exit_code == Exit.OK

    async def test_tokens_that_lie_somewhere_else_now(
        self, flinks_server: FlinksServer, failed: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "u.txt").rename(tmp_path / "moved.txt")
        result = await cli("retry", failed, server=flinks_server)
        assert result.exit_code == Exit.USAGE
        result = await cli("retry", failed, "--tokens", tmp_path / "moved.txt", server=flinks_server)
        assert answers(failed).keys() == {1, 2}, result.stderr

    async def test_from_another_host_it_is_refused(self, flinks_server: FlinksServer, failed: Path) -> None:
        result = await cli("retry", failed, "--base-url", "http://127.0.0.1:1", server=flinks_server)
        assert result.exit_code == Exit.USAGE
        assert "would come from 127.0.0.1:1 now" in result.stderr

    async def test_a_job_that_is_not_done_is_to_be_finished_first(
        self, flinks_server: FlinksServer, tokens: Path, tmp_path: Path
    ) -> None:
        flinks_server.script(NAMES[0], ["session_nonexistent"])
        job = tmp_path / "job"
        stopped = await fetch(flinks_server, tokens, job, "--max-failures", 0, "--concurrency", 1)
        assert stopped.exit_code == Exit.STOPPED
        result = await cli("retry", job, server=flinks_server)
        assert result.exit_code == Exit.USAGE
        assert "finish the job before you retry" in result.stderr

    async def test_a_retry_that_was_stopped_goes_on(self, flinks_server: FlinksServer, tmp_path: Path) -> None:
        job, names = tmp_path / "job", [f"token-{n}" for n in range(10)]
        for name in names:
            flinks_server.script(name, ["session_nonexistent"] * 2)
        await fetch(flinks_server, write(tmp_path / "t.txt", "\n".join(names)), job)
        more = ("--class", "final", "--concurrency", 1)
        stopped = await cli("retry", job, *more, "--max-failures", 3, server=flinks_server)
        assert stopped.exit_code == Exit.STOPPED
        result = await cli("retry", job, *more, server=flinks_server)
        assert set(flinks_server.stats.per_token.values()) == {2}
        assert re.search(
            r"An interrupted retry of \d tokens? is resumed first; --class applies to the next one\.", result.stderr
        )

    async def test_a_retry_that_goes_on_says_so(self, flinks_server: FlinksServer, failed: Path) -> None:
        with bulk.Job.resume(failed) as opened:
            assert opened.retry() == 1
        result = await cli("retry", failed, "--progress", "json", server=flinks_server)
        warnings = [event for event in map(json.loads, result.stderr.splitlines()) if event["event"] == "warning"]
        assert warnings == [{"event": "warning", "text": "An interrupted retry of 1 token is resumed first."}]


class TestExport:
    @pytest.mark.parametrize("out", ["-", "all.jsonl"])
    async def test_of_a_job_that_is_not_done_says_so(
        self, flinks_server: FlinksServer, tokens: Path, tmp_path: Path, out: str
    ) -> None:
        for name in NAMES[:20]:
            flinks_server.script(name, ["bad_request"])
        limits = ("--shard-size", 10, "--max-failures", 3, "--concurrency", 2)
        assert (await fetch(flinks_server, tokens, tmp_path / "job", *limits)).exit_code == Exit.STOPPED
        result = await cli("export", tmp_path / "job", "--out", out if out == "-" else tmp_path / out)
        assert result.exit_code == Exit.OK
        assert "The job is not done: " in result.stderr

    async def test_to_standard_output(self, flinks_server: FlinksServer, job: Path) -> None:
        result = await cli("export", job, "--out", "-")
        found = {
            record["line"]: record["response"]
            for record in (json.loads(line, parse_float=Decimal) for line in result.stdout.splitlines())
        }
        assert found == expected(flinks_server)

    @pytest.mark.parametrize("suffix", ["gz", "GZ"])
    async def test_compressed_by_its_name(self, job: Path, tmp_path: Path, suffix: str) -> None:
        out = tmp_path / f"answers.jsonl.{suffix}"
        assert (await cli("export", job, "--out", out)).exit_code == Exit.OK
        assert gzip.decompress(out.read_bytes()) == b"".join(bulk.export(job))

    async def test_nothing_is_overwritten_unless_asked(self, job: Path, tmp_path: Path) -> None:
        out = write(tmp_path / "answers.jsonl", "precious\n")
        assert (await cli("export", job, "--out", out)).exit_code == Exit.USAGE
        assert out.read_text() == "precious\n"
        assert (await cli("export", job, "--out", out, "--force")).exit_code == Exit.OK
        assert len(records(out)) == 50

    async def test_it_is_whole_or_not_there(self, job: Path, tmp_path: Path) -> None:
        sorted((job / "parts").iterdir())[3].unlink()
        result = await cli("export", job, "--out", tmp_path / "answers.jsonl")
        assert result.exit_code == Exit.OUTPUT
        assert not list(tmp_path.glob("answers*"))


NOT_TO_BE_OVERWRITTEN = (
    "job/ledger.sqlite",
    "job/ledger.sqlite-wal",
    "job/manifest.json",
    "job/out.jsonl",
    "job/parts/x",
)


class TestWhereTo:
    """`export --out` and `report --out` take the place of nothing that the job has or needs."""

    @pytest.fixture(params=["export", "report"])
    def command(self, request: pytest.FixtureRequest) -> str:
        if request.param == "report":
            pytest.importorskip("matplotlib")
        return str(request.param)

    @pytest.mark.parametrize("name", NOT_TO_BE_OVERWRITTEN)
    async def test_in_the_directory_of_the_job(self, job: Path, tmp_path: Path, command: str, name: str) -> None:
        before = {path: path.read_bytes() for path in job.rglob("*") if path.is_file()}
        result = await cli(command, job, "--out", tmp_path / name, "--force")
        assert result.exit_code == Exit.USAGE
        assert "is in the directory of the job" in result.stderr
        assert {path: path.read_bytes() for path in job.rglob("*") if path.is_file()} == before

    @pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
    async def test_a_file_of_the_jobs_by_another_name(self, job: Path, tmp_path: Path, command: str) -> None:
        (tmp_path / "link").symlink_to(job)
        (tmp_path / "out").symlink_to(job / "ledger.sqlite")
        for name in ("link/ledger.sqlite", "out"):
            result = await cli(command, job, "--out", tmp_path / name, "--force")
            assert result.exit_code == Exit.USAGE
            assert "is in the directory of the job" in result.stderr

    async def test_the_file_of_tokens(self, job: Path, tokens: Path, tmp_path: Path, command: str) -> None:
        os.link(tokens, tmp_path / "linked")
        for out in (tokens, tmp_path / "linked"):
            result = await cli(command, job, "--out", out, "--force")
            assert result.exit_code == Exit.USAGE
            assert "is the job's file of tokens" in result.stderr
        assert tokens.read_text().startswith("token-0\n")

    async def test_the_answers_of_the_job(
        self, flinks_server: FlinksServer, tokens: Path, tmp_path: Path, command: str
    ) -> None:
        out = tmp_path / "answers.db"
        await fetch(flinks_server, tokens, tmp_path / "job", "--store", "sqlite", "--out", out)
        for name in ("answers.db", "answers.db-wal"):
            result = await cli(command, tmp_path / "job", "--out", tmp_path / name, "--force")
            assert result.exit_code == Exit.USAGE
            assert "is where the job's answers are" in result.stderr

    async def test_a_file_that_exists(self, job: Path, tmp_path: Path, command: str) -> None:
        out = write(tmp_path / "out", "precious")
        result = await cli(command, job, "--out", out)
        assert result.exit_code == Exit.USAGE
        assert "overwrite it with --force" in result.stderr
        assert out.read_text() == "precious"
        assert (await cli(command, job, "--out", out, "--force")).exit_code == Exit.OK
        assert out.read_bytes()[:1] in b"{<"

    @pytest.mark.skipif(os.name == "nt", reason="needs a pipe with a name")
    async def test_what_is_no_file(self, job: Path, tmp_path: Path, command: str) -> None:
        os.mkfifo(tmp_path / "pipe")
        result = await cli(command, job, "--out", tmp_path / "pipe", "--force")
        assert result.exit_code == Exit.OUTPUT
        assert "is not a file" in result.stderr
        assert (tmp_path / "pipe").is_fifo()

    async def test_a_directory_without_a_job(self, tmp_path: Path, command: str) -> None:
        result = await cli(command, tmp_path, "--out", tmp_path / "out")
        assert (result.exit_code, os.listdir(tmp_path)) == (Exit.USAGE, [])

    async def test_the_page_to_standard_output_and_to_its_own_place(
        self, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("matplotlib")
        monkeypatch.chdir(tmp_path)
        result = await cli("report", job, "--out", "-")
        assert (result.exit_code, result.stdout[:15].lower()) == (Exit.OK, "<!doctype html>")
        assert not (tmp_path / "-").exists()
        for out in ((), ("--out", job / "report.html")):
            assert (await cli("report", job, *out)).exit_code == Exit.OK
        assert (job / "report.html").exists()


class TestPurge:
    async def test_it_says_what_was_removed_and_leaves_what_is_not_the_jobs(self, job: Path, tokens: Path) -> None:
        write(job / "notes.txt", "mine")
        result = await cli("purge", job, "--yes")
        assert result.exit_code == Exit.OK
        assert "removed: 5 files of answers" in result.stderr
        assert "removed: ledger.sqlite" in result.stderr
        assert "left, because it does not belong to the job: notes.txt" in result.stderr
        assert os.listdir(job) == ["notes.txt"]
        assert tokens.exists()

    async def test_without_a_terminal_it_wants_to_be_sure(self, job: Path) -> None:
        result = await cli("purge", job, stdin="y\n")
        assert result.exit_code == Exit.USAGE
        assert "--yes" in result.stderr
        assert len(answers(job)) == 50

    @pytest.mark.parametrize(("answer", "left"), [("n\n", True), ("y\n", False)])
    async def test_on_a_terminal_it_asks(
        self, job: Path, monkeypatch: pytest.MonkeyPatch, answer: str, left: bool
    ) -> None:
        monkeypatch.setattr("flinks_async.cli.status.stdin_is_terminal", lambda: True)
        result = await cli("purge", job, stdin=answer)
        assert result.exit_code == Exit.OK
        assert "its 50 answers permanently?" in result.stderr
        assert job.exists() == left

    async def test_answers_that_were_moved_away_stop_it_unless_they_are_to_be_forgotten(
        self, flinks_server: FlinksServer, tokens: Path, tmp_path: Path
    ) -> None:
        job, out = tmp_path / "job", tmp_path / "q.sqlite"
        await fetch(flinks_server, tokens, job, "--store", "sqlite", "--out", out)
        out.rename(tmp_path / "archive.sqlite")
        found = await cli("verify", job)
        assert (found.exit_code, found.stdout) == (Exit.FAILED, f"{out}: it is missing\n")
        stopped = await cli("purge", job, "--yes")
        assert stopped.exit_code == Exit.OUTPUT
        assert (
            f"Nothing was removed: 50 answers of the job are not where it put them ({out} is missing)" in stopped.stderr
        )
        assert (await cli("status", job)).exit_code == Exit.OK
        result = await cli("purge", job, "--yes", "--forget-answers")
        assert result.exit_code == Exit.OK
        assert f"left, because they could not be found: answers of the job ({out} is missing)" in result.stderr
        assert sorted(os.listdir(tmp_path)) == ["archive.sqlite", "t.txt"]

    async def test_an_output_that_was_mistyped_can_be_corrected(
        self, flinks_server: FlinksServer, tokens: Path, tmp_path: Path
    ) -> None:
        job = tmp_path / "job"
        wrong = await fetch(flinks_server, tokens, job, "--out", tmp_path / "nodir" / "o.jsonl")
        assert wrong.exit_code == Exit.OUTPUT
        right = await fetch(flinks_server, tokens, job, "--out", tmp_path / "o.jsonl")
        assert right.exit_code == Exit.OK, right.stderr
        assert (await cli("purge", job, "--yes")).exit_code == Exit.OK
        assert os.listdir(tmp_path) == ["t.txt"]
