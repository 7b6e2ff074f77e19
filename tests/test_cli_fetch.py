"""`flinks-async fetch` without `--job`: the job lies beside the output, or nowhere."""

from __future__ import annotations

import gzip
import json
import os
import re
import stat
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import Result

from flinks_async import ConfigError, bulk
from flinks_async.bulk.compression import Compression
from flinks_async.cli import Exit
from flinks_async.cli.options import Workers
from flinks_async.testing import KINDS, Fault, Faults, FlinksServer

from .bulk.input_support import compressed, write
from .cli_support import by_line, cli, records, start


async def fetch(server: FlinksServer, tokens: object, out: object, *more: object, **options: Any) -> Result:
    return await cli("fetch", tokens, "--out", out, *more, server=server, **options)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def beside(out: Path, name: str) -> Path:
    """A file in the directory of the job."""
    return out.with_name(f"{out.name}.job") / name


def write_folder(path: Path) -> Path:
    path.mkdir()
    return path


def numbers(stderr: str) -> dict[str, int]:
    """The counts in a summary, such as `  fetched   9,984  (a remark)`."""
    found = re.findall(r"^  ([a-z]+) +([\d,]+)(?:  .*)?$", stderr, re.MULTILINE)
    return {name: int(count.replace(",", "")) for name, count in found}


class TestFiles:
    async def test_a_text_file_with_everything_that_can_be_wrong(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path
    ) -> None:
        lines = [
            b"\xef\xbb\xbfalpha",
            b"",
            b"beta",
            b"alpha",  # duplicate
            b"..",  # hostile: another resource
            b"bad\x00token",  # hostile: control character
            b"x" * 9000,  # hostile: too long
            b"\xff\xfe\xfa",  # not UTF-8
            b"a/b?c#d%2e",  # strange, but fit to send
            b"y" * (2 << 20),  # huge
            b"  beta\t",  # duplicate
            b"gamma",
        ]
        tokens = write(tmp_path / "tokens.txt", b"\r\n".join(lines))

        result = await fetch(flinks_server, tokens, out)

        assert result.exit_code == Exit.FAILED
        answers = by_line(out)
        sent = {1: "alpha", 3: "beta", 9: "a/b?c#d%2e", 12: "gamma"}
        assert {line: record["response"] for line, record in answers.items()} == {
            line: flinks_server.expected(token) for line, token in sent.items()
        }
        failed = by_line(beside(out, "failed.jsonl"))
        assert {line: record["kind"] for line, record in failed.items()} == dict.fromkeys([5, 6, 7, 8, 10], "invalid")
        duplicates = {record["line"]: record["first"] for record in records(beside(out, "duplicates.jsonl"))}
        assert duplicates == {4: 1, 11: 3}
        assert sorted([*answers, *failed, *duplicates, 2]) == list(range(1, 13)), "a line was lost"
        # Nothing wrong was sent: on the wire are the four tokens, once each, encoded once.
        assert sorted(flinks_server.stats.paths) == sorted(
            "/partneraccess/" + quote(token, safe="") for token in sent.values()
        )
        assert numbers(result.stderr) == {"fetched": 4, "failed": 0, "invalid": 5, "duplicates": 2, "blank": 1}
        assert sum(numbers(result.stderr).values()) == 12, "the numbers add up to the lines of the file"

    async def test_csv_with_keys(self, flinks_server: FlinksServer, tmp_path: Path, out: Path) -> None:
        tokens = write(tmp_path / "tokens.csv", 'id,token\nc-1,one\nc-2\n"c\n3",two\nc-4,one\n')
        result = await fetch(flinks_server, tokens, out, "--column", "token", "--key-column", "id")
        assert result.exit_code == Exit.FAILED
        assert {line: record["key"] for line, record in by_line(out).items()} == {2: "c-1", 4: "c\n3"}
        assert by_line(beside(out, "failed.jsonl"))[3]["message"] == "the row has 1 fields, the header has 2"
        assert records(beside(out, "duplicates.jsonl")) == [{"line": 6, "first": 2}]
        expected = {"fetched": 2, "failed": 0, "invalid": 1, "duplicates": 1, "header": 1, "continued": 1}
        assert numbers(result.stderr) == expected

    async def test_jsonl_keeps_the_type_of_keys(self, flinks_server: FlinksServer, tmp_path: Path, out: Path) -> None:
        tokens = write(tmp_path / "tokens.jsonl", '{"n": 7, "token": "one"}\n{"n": null, "token": "two"}\n')
        assert (await fetch(flinks_server, tokens, out, "--key-column", "n")).exit_code == Exit.OK
        assert {line: record["key"] for line, record in by_line(out).items()} == {1: 7, 2: None}

    async def test_standard_input_and_output(self, flinks_server: FlinksServer) -> None:
        result = await fetch(flinks_server, "-", "-", stdin="one\n..\ntwo\none\n")
        assert result.exit_code == Exit.FAILED
        assert sorted(json.loads(line)["line"] for line in result.stdout.splitlines()) == [1, 3]
        on_stderr = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
        assert [(record["line"], record.get("kind"), record.get("first")) for record in on_stderr] == [
            (2, "invalid", None),
            (4, None, 1),
        ]

    async def test_standard_input_as_json_for_programs(self, flinks_server: FlinksServer) -> None:
        result = await fetch(flinks_server, "-", "-", "--progress", "json", stdin="one\n..\none\n")
        events = [json.loads(line) for line in result.stderr.splitlines()]
        assert events[0] == {"event": "begin", "job": None, "answers": "-"}
        assert [event["event"] for event in events if event["event"] != "progress"][1:] == [
            "failed",
            "duplicate",
            "end",
        ]
        assert events[-1]["exit_code"] == Exit.FAILED

    async def test_standard_input_into_a_file_says_that_it_is_not_kept(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path
    ) -> None:
        stopped = ("--max-failures", 0, "--concurrency", 1)
        flinks_server.script("canary-1", ["session_nonexistent"])
        stdin = "".join(f"canary-{n}\n" for n in range(1, 30))
        result = await fetch(flinks_server, "-", out, *stopped, stdin=stdin)
        assert result.exit_code == Exit.STOPPED
        assert "cannot be resumed without the same input" in result.stderr.splitlines()[0]
        assert "run the same command with the same input" in result.stderr
        assert len(records(beside(out, "failed.jsonl"))) == 1
        for path in tmp_path.rglob("*"):
            assert path.is_dir() or b"canary" not in path.read_bytes(), "a token on the disk"
        again = await fetch(flinks_server, "-", out, stdin=stdin)
        assert again.exit_code == Exit.FAILED
        assert set(flinks_server.stats.per_token.values()) == {1}
        other = await fetch(flinks_server, "-", out, stdin="other\n")
        assert other.exit_code == Exit.USAGE
        assert "has changed" in other.stderr

    async def test_without_out_the_answers_lie_beside_the_tokens(
        self, flinks_server: FlinksServer, tmp_path: Path
    ) -> None:
        tokens = write(tmp_path / "users.csv.gz", compressed(b"token\none\n", "gzip"))
        result = await cli("fetch", tokens, server=flinks_server)
        assert result.exit_code == Exit.OK
        assert f"Answers go to {tmp_path / 'users.answers.jsonl'}. " in result.stderr
        assert len(records(tmp_path / "users.answers.jsonl")) == 1
        assert sorted(os.listdir(tmp_path)) == ["users.answers.jsonl", "users.answers.jsonl.job", "users.csv.gz"]

    async def test_a_format_that_was_asked_for_wins_over_the_name(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path
    ) -> None:
        tokens = write(tmp_path / "tokens.txt", "t\tu\none\t1\n")
        more = ("--format", "csv", "--delimiter", "tab", "--column", "t")
        assert (await fetch(flinks_server, tokens, out, *more)).exit_code == Exit.OK
        assert flinks_server.stats.per_token == {"one": 1}

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("tokens.csv", "a,b\n1,2\n", "'a', 'b'"),
            ("tokens.csv", "", "no header row"),
            ("tokens.txt", b"\xff\xfea\x00", "UTF-16"),
            ("tokens.txt", b"\x1f\x8b\x08\x00", "compressed data ends too early"),
            ("tokens.csv", b"PK\x03\x04aa", "export it as CSV"),
        ],
    )
    async def test_a_file_that_is_wrong_as_a_whole(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path, name: str, content: str | bytes, says: str
    ) -> None:
        result = await fetch(flinks_server, write(tmp_path / name, content), out)
        assert result.exit_code == Exit.USAGE
        assert says in result.stderr
        assert f"{tmp_path / name}: " in result.stderr, "the file is named"
        assert os.listdir(tmp_path) == [name], "nothing is made before the file is known to be right"
        assert flinks_server.stats.requests == 0

    @pytest.mark.parametrize("kind", ["gzip", "zstd"])
    async def test_compressed_files_whatever_their_name(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path, kind: Compression
    ) -> None:
        tokens = write(tmp_path / "tokens.csv.gz", compressed(b"id,token\nc-1,one\nc-2,two\n", kind))
        result = await fetch(flinks_server, tokens, out, "--key-column", "id")
        assert result.exit_code == Exit.OK, result.output
        assert {line: record["key"] for line, record in by_line(out).items()} == {2: "c-1", 3: "c-2"}

    async def test_compressed_standard_input(self, flinks_server: FlinksServer) -> None:
        result = await fetch(flinks_server, "-", "-", stdin=compressed(b"one\ntwo\n", "zstd"))
        assert result.exit_code == Exit.OK
        assert len(result.stdout.splitlines()) == 2

    @pytest.mark.parametrize("kind", ["gzip", "zstd"])
    async def test_a_compressed_file_that_was_cut_short_is_not_taken_for_whole(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path, kind: Compression
    ) -> None:
        tokens = write(tmp_path / "tokens.txt", compressed(b"one\ntwo\n", kind)[:-1])
        result = await fetch(flinks_server, tokens, out)
        assert result.exit_code == Exit.USAGE
        assert f"{tokens}: " in result.stderr
        assert "after line 2: the compressed data ends too early" in result.stderr
        assert flinks_server.stats.requests == 0

    @pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n"])
    async def test_a_file_without_tokens_is_told(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path, content: bytes
    ) -> None:
        tokens = write(tmp_path / "tokens.txt", content)
        result = await fetch(flinks_server, tokens, out, "--quiet")
        assert result.exit_code == Exit.OK
        assert f"{tokens} holds no tokens, so there is nothing to fetch." in result.stderr
        assert out.read_bytes() == b""


class TestOutput:
    async def test_amounts_keep_their_digits(self, flinks_server: FlinksServer, tmp_path: Path, out: Path) -> None:
        body = b'{"GetAccountsDetail":{"Accounts":[{"Balance":{"Current":12.30,"Limit":123456789012345678.90}}],"New":1.0}}'
        flinks_server.set_answer("one", body)
        assert (await fetch(flinks_server, write(tmp_path / "t.txt", "one\n"), out)).exit_code == Exit.OK
        line = out.read_bytes()
        assert b'"Current":12.30' in line
        assert b'"Limit":123456789012345678.90' in line
        (record,) = [json.loads(line, parse_float=Decimal)]
        assert record["response"] == json.loads(body, parse_float=Decimal)
        assert record["meta"] == {"status": 200, "attempts": 1}

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
    async def test_files_are_for_their_owner_only(self, flinks_server: FlinksServer, tmp_path: Path, out: Path) -> None:
        await fetch(flinks_server, write(tmp_path / "t.txt", "one\n\n..\n"), out)
        for path in (out, *beside(out, "").iterdir()):
            if path.is_file():
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path

    async def test_when_everything_was_fetched_the_job_is_not_needed_any_more(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path
    ) -> None:
        tokens = write(tmp_path / "t.txt", "one\n")
        result = await fetch(flinks_server, tokens, out)
        assert result.exit_code == Exit.OK
        assert result.stderr.splitlines()[-1] == (
            f"{out}.job is not needed to resume any more: delete it, or keep it for status, verify and report."
        )
        assert (await cli("verify", f"{out}.job")).exit_code == Exit.OK
        again = await fetch(flinks_server, tokens, out)
        assert (again.exit_code, flinks_server.stats.requests, len(records(out))) == (Exit.OK, 1, 1)
        assert "this run: nothing was left to fetch, so nothing was sent" in again.stderr
        assert "so nothing was sent" not in result.stderr
        for_programs = await fetch(flinks_server, tokens, out, "--progress", "json")
        assert [json.loads(line)["event"] for line in for_programs.stderr.splitlines()][-1] == "end"
        flinks_server.script("two", ["session_nonexistent"])
        failed = await fetch(flinks_server, write(tokens, "two\n"), tmp_path / "other.jsonl")
        assert "delete it" not in failed.stderr

    @pytest.mark.parametrize("kind", ["file", "folder"])
    async def test_a_file_that_no_job_has_written_is_not_overwritten(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path, kind: str
    ) -> None:
        tokens = write(tmp_path / "t.txt", "one\n")
        name = out if kind == "file" else write_folder(beside(out, "")) / "precious"
        write(name, "precious\n")
        result = await fetch(flinks_server, tokens, out)
        assert result.exit_code == Exit.USAGE
        assert (f"{out} exists" if kind == "file" else "not the directory of a job") in result.stderr
        assert ("If that directory was moved, name it with --job" in result.stderr) is (kind == "file")
        assert name.read_text() == "precious\n"
        assert flinks_server.stats.requests == 0

    async def test_other_tokens_do_not_go_to_the_same_file(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path
    ) -> None:
        tokens = write(tmp_path / "t.txt", "one\n")
        await fetch(flinks_server, tokens, out)
        result = await fetch(flinks_server, write(tokens, "two\n"), out)
        assert result.exit_code == Exit.USAGE
        assert "has changed" in result.stderr
        assert len(records(out)) == 1

    async def test_the_status_of_an_output_says_where_its_job_is(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path
    ) -> None:
        flinks_server.script("one", ["session_nonexistent"])
        await fetch(flinks_server, write(tmp_path / "t.txt", "one\n"), out)
        result = await cli("status", out)
        assert result.exit_code == Exit.USAGE
        assert f"it has no manifest.json. The job of this output is in {out}.job" in result.stderr

    async def test_the_file_of_tokens_is_no_output(self, flinks_server: FlinksServer, tmp_path: Path) -> None:
        tokens = write(tmp_path / "t.jsonl", '"one"\n')
        result = await fetch(flinks_server, tokens, tokens)
        assert result.exit_code == Exit.USAGE
        assert tokens.read_text() == '"one"\n'

    @pytest.mark.parametrize(
        ("name", "kind"),
        [("a.sqlite", "sqlite"), ("a.DB", "sqlite"), ("a.duckdb", "duckdb"), ("a.jsonl.gz", "jsonl"), ("a", "jsonl")],
    )
    async def test_the_name_of_the_file_chooses_the_store(
        self, flinks_server: FlinksServer, tmp_path: Path, name: str, kind: str
    ) -> None:
        if kind == "duckdb":
            pytest.importorskip("duckdb")
        result = await fetch(flinks_server, write(tmp_path / "t.txt", "one\n"), tmp_path / name)
        assert result.exit_code == Exit.OK, result.stderr
        assert bulk.status(tmp_path / f"{name}.job").manifest.store["kind"] == kind
        if name.endswith(".gz"):
            assert len(gzip.decompress((tmp_path / name).read_bytes()).splitlines()) == 1

    @pytest.mark.parametrize(
        ("name", "more"),
        [
            ("a.csv", ()),
            ("a.json", ()),
            ("a.parquet", ()),
            ("a.xlsx.gz", ()),
            ("a.jsonl.bz2", ()),
            ("a.csv", ("--store", "jsonl")),
            ("a.sqlite", ("--store", "jsonl")),
            ("a.jsonl", ("--store", "sqlite")),
            ("a.duckdb", ("--store", "sqlite")),
            ("a.jsonl.gz", ("--store", "jsonl")),
        ],
    )
    async def test_a_name_that_promises_another_format_is_refused(
        self, flinks_server: FlinksServer, tmp_path: Path, name: str, more: tuple[str, ...]
    ) -> None:
        result = await fetch(flinks_server, write(tmp_path / "t.txt", "one\n"), tmp_path / name, *more)
        assert result.exit_code == Exit.USAGE
        assert "the name of the file ends in ." in result.stderr
        assert os.listdir(tmp_path) == ["t.txt"]

    async def test_a_folder_that_is_not_there(self, flinks_server: FlinksServer, tmp_path: Path) -> None:
        tokens = write(tmp_path / "t.txt", "one\n")
        result = await fetch(flinks_server, tokens, tmp_path / "no" / "answers.jsonl")
        assert result.exit_code == Exit.OUTPUT
        assert "there is no folder" in result.stderr
        assert flinks_server.stats.requests == 0

    async def test_a_folder_in_place_of_a_file_is_left_alone(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path
    ) -> None:
        out.mkdir()
        result = await fetch(flinks_server, write(tmp_path / "t.txt", "one\n"), out)
        assert result.exit_code == Exit.OUTPUT
        assert out.is_dir()

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    async def test_a_full_disk_behind_standard_output(self, flinks_server: FlinksServer, tmp_path: Path) -> None:
        tokens = write(tmp_path / "t.txt", "one\n")
        with open("/dev/full", "wb") as full:
            process = await start("fetch", tokens, "--out", "-", server=flinks_server, stdout=full)
            _, stderr = await process.communicate()
        assert process.returncode == Exit.OUTPUT
        assert b"Error: standard output cannot be written: No space left on device" in stderr
        assert b"are kept" not in stderr, "the job's directory is removed"
        assert b"Traceback" not in stderr

    @pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
    async def test_a_reader_that_goes_away_ends_the_run_in_silence(
        self, flinks_server: FlinksServer, tmp_path: Path
    ) -> None:
        tokens = write(tmp_path / "t.txt", "".join(f"token-{n}\n" for n in range(500)))
        read_end, write_end = os.pipe()
        os.close(read_end)
        try:
            process = await start("fetch", tokens, "--out", "-", "--quiet", server=flinks_server, stdout=write_end)
        finally:
            os.close(write_end)
        _, stderr = await process.communicate()
        assert (process.returncode, stderr) == (Exit.OUTPUT, b"")


class TestFailures:
    async def test_failures_say_what_happened_and_never_the_token(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path
    ) -> None:
        flinks_server.script("expired-1", ["session_nonexistent"])
        flinks_server.script("broken-1", ["http_503"] * 2)
        flinks_server.script("waiting-1", ["operation_pending"])
        tokens = write(tmp_path / "t.txt", "good-1\nexpired-1\nbroken-1\nwaiting-1\n")
        result = await fetch(flinks_server, tokens, out, "--attempts", 2)
        assert result.exit_code == Exit.FAILED
        failed = by_line(beside(out, "failed.jsonl"))
        assert {line: (r["error"], r["kind"], r["attempts"]) for line, r in failed.items()} == {
            2: ("BadRequestError", "final", 1),
            3: ("ServerError", "exhausted", 2),
            4: ("PendingError", "exhausted", 1),
        }
        assert failed[2]["flinks_code"] == "SESSION_NONEXISTENT"
        assert failed[3]["status"] == 503
        assert all(len(record["token_fingerprint"]) == 16 for record in failed.values())
        everything = beside(out, "failed.jsonl").read_text() + result.output
        assert not any(token in everything for token in ("expired-1", "waiting-1"))

    async def test_retries_are_counted(self, flinks_server: FlinksServer, tmp_path: Path, out: Path) -> None:
        flinks_server.script("one", ["http_503"])
        result = await fetch(flinks_server, write(tmp_path / "t.txt", "one\n"), out)
        assert result.exit_code == Exit.OK
        assert re.search("2 requests in .*, 1 retried, 0 throttled, p50", result.stderr)
        assert records(out)[0]["meta"] == {"status": 200, "attempts": 2}

    async def test_a_share_of_faults_loses_nothing(self, tmp_path: Path, out: Path) -> None:
        plan = Faults.demo(0.5, seed=4, unfetchable=0.05)
        names = [f"token-{n}" for n in range(40)]
        async with FlinksServer(faults=plan) as server:
            await fetch(server, write(tmp_path / "t.txt", "\n".join(names)), out)
            fetchable = {line for line, token in enumerate(names, 1) if plan.plan(token).fetchable}
            assert by_line(out).keys() == fetchable
            for line, record in by_line(out).items():
                assert record["response"] == server.expected(names[line - 1])


class TestWhatConcernsAll:
    @pytest.mark.parametrize(
        ("fault", "says"),
        [
            (Fault.reply(407), "The proxy wants credentials"),
            (Fault.reply(302, headers={"Location": "https://login.example/"}), "(5 different tokens in a row)"),
            (KINDS["html_200"], "(5 different tokens in a row)"),
        ],
    )
    async def test_it_stops_the_run(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path, fault: Fault, says: str
    ) -> None:
        flinks_server.script_all([fault] * 500)
        tokens = write(tmp_path / "t.txt", "".join(f"token-{n}\n" for n in range(500)))
        result = await fetch(flinks_server, tokens, out, "--concurrency", 2)
        assert result.exit_code == Exit.STOPPED
        assert says.lower() in result.stderr.lower()
        assert "Stopped: " in result.stderr
        assert flinks_server.stats.requests < 20
        assert not records(out)
        assert bulk.status(f"{out}.job").totals.pending == 500, "no token is blamed"


class TestNames:
    @pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b"], ids=["empty", "too long", "a NUL"])
    @pytest.mark.parametrize(
        "arguments",
        [
            *(("fetch", name, "--out", "o.jsonl") for name in ("@",)),
            *(("fetch", "t.txt", option, "@") for option in ("--out", "--job", "--secret-file", "--instances")),
            *((command, "@") for command in ("status", "report", "verify", "retry", "purge")),
            ("export", "@", "--out", "o.jsonl"),
            ("get", "--token-file", "@"),
            ("simulate", "--secret-file", "@"),
            ("demo", "--tokens", "1", "--dir", "@"),
        ],
        ids=" ".join,
    )
    async def test_that_cannot_exist_are_wrong_usage(self, arguments: tuple[str, ...], name: str) -> None:
        result = await cli(*(name if one == "@" else one for one in arguments), FLINKS_AUTH_SECRET="s")
        assert result.exit_code == Exit.USAGE
        assert "Error: " in result.stderr
        assert name[:100] not in result.stderr or not name

    @pytest.mark.parametrize("command", ["report", "export"])
    async def test_of_output_that_cannot_exist(self, tmp_path: Path, command: str) -> None:
        for name in ("", "x" * 5000):
            assert (await cli(command, tmp_path, "--out", name)).exit_code == Exit.USAGE

    @pytest.mark.parametrize("name", ["tokens", "none.txt", "file"])
    async def test_of_the_file_is_in_every_message_about_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        if name != "none.txt":
            (tmp_path / name).mkdir()
        result = await cli("fetch", name, "--dry-run")
        assert result.exit_code == Exit.USAGE
        assert f"Error: {name}: The file of tokens cannot be read" in result.stderr

    async def test_a_rate_of_0_is_refused_with_the_right_bound(self, tmp_path: Path) -> None:
        result = await cli("fetch", tmp_path, "--rate", "0")
        assert "expected a number greater than 0" in result.stderr


async def test_an_empty_input_is_told_once(flinks_server: FlinksServer, tmp_path: Path, out: Path) -> None:
    result = await fetch(flinks_server, write(tmp_path / "t.txt", "\n\n"), out)
    assert result.exit_code == Exit.OK
    assert result.stderr.count("holds no tokens") == 1


class TestUnreachable:
    @pytest.mark.parametrize("address", ["http://127.0.0.1:1", "https://no-such-host.invalid"])
    async def test_nobody_answers_and_the_reason_is_told(self, tmp_path: Path, out: Path, address: str) -> None:
        tokens = write(tmp_path / "t.txt", "".join(f"token-{n}\n" for n in range(50)))
        result = await cli(
            *("fetch", tokens, "--out", out, "--unreachable-after", "1s"),
            FLINKS_BASE_URL=address,
            FLINKS_AUTH_SECRET="s",
        )
        assert result.exit_code == Exit.STOPPED
        host = address.partition("//")[2]
        assert re.search(rf"^Stopped: .*{host.partition(':')[0]}.*", result.stderr, re.MULTILINE), result.stderr
        assert len(re.findall(r" attempts in \d+ s", result.stderr)) == 1, "the reason is told once"
        assert "Check --instance, --base-url and the network; 'flinks-async doctor' tests them" in result.stderr
        assert bulk.status(f"{out}.job").totals.pending == 50

    async def test_a_server_without_tls_is_told_in_words(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path
    ) -> None:
        address = flinks_server.base_url.replace("http:", "https:")
        result = await cli(
            *(
                "fetch",
                write(tmp_path / "t.txt", "".join(f"token-{n}\n" for n in range(50))),
                "--out",
                out,
                "--unreachable-after",
                "1s",
            ),
            FLINKS_BASE_URL=address,
            FLINKS_AUTH_SECRET="s",
        )
        assert result.exit_code == Exit.STOPPED
        assert "(the answer is not TLS; the server may expect http://)" in result.stderr


class TestRefusedSecret:
    async def test_it_stops_the_run(self, flinks_server: FlinksServer, tmp_path: Path, out: Path) -> None:
        tokens = write(tmp_path / "t.txt", "".join(f"token-{n}\n" for n in range(500)))
        result = await fetch(flinks_server, tokens, out, "--concurrency", 2, FLINKS_AUTH_SECRET="wrong-secret")
        assert result.exit_code == Exit.REFUSED
        assert "The AuthSecret is refused" in result.stderr
        assert "--auth-scheme" in result.stderr
        assert flinks_server.stats.requests < 15
        assert not records(out)
        assert "wrong-secret" not in result.output

    async def test_one_dead_token_does_not(self, flinks_server: FlinksServer, tmp_path: Path, out: Path) -> None:
        names = [f"token-{n}" for n in range(30)]
        for dead in names[3:12:2]:
            flinks_server.script(dead, ["unauthorized"] * 9)
        tokens = write(tmp_path / "t.txt", "\n".join(names))
        result = await fetch(flinks_server, tokens, out, "--concurrency", 1)
        assert result.exit_code == Exit.FAILED
        assert len(records(out)) == 25

    async def test_neither_does_the_same_dead_token_many_times(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path
    ) -> None:
        flinks_server.script("dead", ["unauthorized"] * 20)
        result = await fetch(flinks_server, write(tmp_path / "t.txt", "dead\n" * 10 + "good\n"), out)
        assert result.exit_code == Exit.FAILED
        assert [record["line"] for record in records(out)] == [11]

    async def test_a_short_file_of_which_everything_is_refused(
        self, flinks_server: FlinksServer, tmp_path: Path, out: Path
    ) -> None:
        result = await fetch(flinks_server, write(tmp_path / "t.txt", "one\ntwo\n"), out, FLINKS_AUTH_SECRET="wrong")
        assert result.exit_code == Exit.REFUSED
        assert bulk.status(f"{out}.job").totals.pending == 2, "they did not fail"

    async def test_the_number_is_a_setting(self, flinks_server: FlinksServer, tmp_path: Path, out: Path) -> None:
        for number in range(8):
            flinks_server.script(f"dead-{number}", ["unauthorized"])
        tokens = write(tmp_path / "t.txt", "".join(f"dead-{n}\n" for n in range(8)) + "good\n")
        result = await fetch(flinks_server, tokens, out, "--concurrency", 1, "--refused-after", 9)
        assert result.exit_code == Exit.FAILED
        assert len(records(out)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--executor", "dask://scheduler:8786"], "has no TLS.*--insecure-cluster"),
        (["--executor", "ray://head:10001"], "without token authentication.*--insecure-cluster"),
        (
            ["--executor", "http://scheduler:8786"],
            "must be dask://HOST:PORT, dask\\+tls://HOST:PORT or ray://HOST:PORT",
        ),
        (["--executor", "dask://user:canary-word@scheduler:8786"], "must be dask://HOST:PORT"),
        (["--executor", "dask://127.0.0.1:8786", "--processes", "2"], "does not go with --processes"),
        (["--workers", "2"], "need --executor"),
        (["--wait-for-workers", "5"], "need --executor"),
        (["--insecure-cluster"], "need --executor"),
        (["--executor", "dask://127.0.0.1:8786", "--secret-file", "-"], "workers cannot read --secret-file -"),
    ],
)
async def test_a_cluster_that_cannot_be_used_is_refused_before_anything_is_read(
    flinks_server: FlinksServer, tmp_path: Path, out: Path, options: list[str], message: str
) -> None:
    result = await fetch(
        flinks_server, write(tmp_path / "t.txt", "token-1\n"), out, *options, stdin="s", RAY_AUTH_MODE=None
    )
    assert result.exit_code == Exit.USAGE
    assert re.search(message, result.stderr.replace("\n", " ")), result.stderr
    assert "canary-word" not in result.output
    assert not out.with_name(f"{out.name}.job").exists()


async def test_the_cluster_can_be_named_by_the_environment_and_an_extra_that_is_missing_is_named(
    flinks_server: FlinksServer, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    tokens = write(tmp_path / "t.txt", "token-1\n")
    result = await fetch(flinks_server, tokens, out, FLINKS_EXECUTOR="dask://127.0.0.1:8786")
    assert result.exit_code == Exit.USAGE
    assert "pip install 'flinks-async[dask]'" in result.stderr
    result = await fetch(flinks_server, tokens, out, "--processes", 1, FLINKS_EXECUTOR="dask://127.0.0.1:8786")
    assert result.exit_code == Exit.OK, "an option counts more"


def test_the_options_of_a_cluster_reach_its_executor_and_a_missing_engine_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Workers(None, "dask://127.0.0.1:8786", 3, False, 7.0)
    executor = asked.executor(lambda: {"secret_env": "TEST_SECRET"})
    assert isinstance(executor, bulk.DaskExecutor)
    assert (executor.workers, executor.patience) == (3, 7.0)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'flinks-async\[dask\]'"):
        asked.executor(lambda: {"secret_env": "TEST_SECRET"})
