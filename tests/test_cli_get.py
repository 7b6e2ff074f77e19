"""`flinks-async get`, and what all commands share: where secrets come from, wrong usage, unexpected errors."""

from __future__ import annotations

import json
import os
import sys
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import pytest

from flinks_async import bulk
from flinks_async.cli import MEANING, Exit
from flinks_async.cli import fetch as get_module
from flinks_async.cli.app import app
from flinks_async.cli.console import escaped
from flinks_async.cli.options import OUTPUTS, path_name
from flinks_async.testing import FlinksServer

from .cli_support import SECRET, cli, start

TOKEN = "canary-token-77aa"

INPUT_PAIRS = [
    pytest.param(name, *pair, id=f"{name} {' '.join(one.opts[0] for one in pair)}")
    for name, command in app.commands.items()
    for pair in combinations(
        [one for one in command.params if one.callback is path_name and one.opts[0] not in OUTPUTS], 2
    )
]
"""Options that both read a file, or standard input."""


class TestGet:
    async def test_a_token_from_a_file(self, flinks_server: FlinksServer, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_bytes(b"\xef\xbb\xbf" + TOKEN.encode() + b"\r\n")
        result = await cli("get", "--token-file", file, server=flinks_server)
        assert result.exit_code == Exit.OK
        assert json.loads(result.stdout, parse_float=Decimal) == flinks_server.expected(TOKEN)
        assert result.stdout.count("\n") == 1
        assert result.stderr == ""

    async def test_a_token_from_standard_input(self, flinks_server: FlinksServer) -> None:
        result = await cli("get", "--token-file", "-", server=flinks_server, stdin=f"\n{TOKEN}\n")
        assert json.loads(result.stdout, parse_float=Decimal) == flinks_server.expected(TOKEN)

    async def test_a_token_from_the_environment(self, flinks_server: FlinksServer) -> None:
        result = await cli("get", server=flinks_server, FLINKS_ACCESS_TOKEN=TOKEN)
        assert json.loads(result.stdout, parse_float=Decimal) == flinks_server.expected(TOKEN)

    async def test_a_hidden_prompt_on_a_terminal(
        self, flinks_server: FlinksServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("flinks_async.cli.access.stdin_is_terminal", lambda: True)
        result = await cli("get", server=flinks_server, stdin=TOKEN + "\n")
        assert json.loads(result.stdout, parse_float=Decimal) == flinks_server.expected(TOKEN)
        assert result.stderr.startswith("Access token:")
        assert TOKEN not in result.stderr

    async def test_pretty_keeps_every_digit(self, flinks_server: FlinksServer) -> None:
        flinks_server.set_answer(TOKEN, b'{"GetAccountsDetail":{"New":12.30},"RequestId":null}')
        result = await cli("get", "--pretty", server=flinks_server, FLINKS_ACCESS_TOKEN=TOKEN)
        assert result.stdout == '{\n  "GetAccountsDetail": {\n    "New": 12.30\n  },\n  "RequestId": null\n}\n'

    async def test_a_terminal_gets_it_pretty(
        self, flinks_server: FlinksServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(get_module, "stdout_is_terminal", lambda: True)
        result = await cli("get", server=flinks_server, FLINKS_ACCESS_TOKEN=TOKEN)
        assert result.stdout.startswith("{\n  ")
        result = await cli("get", "--compact", server=flinks_server, FLINKS_ACCESS_TOKEN=TOKEN)
        assert result.stdout.startswith('{"')

    def test_an_answer_cannot_steer_the_terminal(self) -> None:
        text = '{"Name":"a\x9b31m\u202eb é\U000e0041"}'
        safe = escaped(text)
        assert safe.isascii() is False
        assert "\\u009b31m\\u202eb é\\udb40" in safe
        assert json.loads(safe) == json.loads(text)

    @pytest.mark.parametrize("data", [b"", b"\n \n", b"one\ntwo\n", b"\xff\xfe", b"x" * 70_000])
    async def test_a_file_that_does_not_hold_one_token(
        self, flinks_server: FlinksServer, tmp_path: Path, data: bytes
    ) -> None:
        (tmp_path / "token").write_bytes(data)
        result = await cli("get", "--token-file", tmp_path / "token", server=flinks_server)
        assert result.exit_code == Exit.USAGE
        assert "--token-file" in result.stderr
        assert flinks_server.stats.requests == 0

    async def test_without_a_token(self, flinks_server: FlinksServer) -> None:
        result = await cli("get", server=flinks_server)
        assert result.exit_code == Exit.USAGE
        assert "FLINKS_ACCESS_TOKEN" in result.stderr

    async def test_a_token_that_cannot_be_sent(self, flinks_server: FlinksServer) -> None:
        result = await cli("get", server=flinks_server, FLINKS_ACCESS_TOKEN="..")
        assert result.exit_code == Exit.USAGE
        assert flinks_server.stats.requests == 0

    async def test_exit_codes_of_answers(self, flinks_server: FlinksServer) -> None:
        flinks_server.script(TOKEN, ["bad_request"])
        failed = await cli("get", server=flinks_server, FLINKS_ACCESS_TOKEN=TOKEN)
        assert (failed.exit_code, failed.stdout) == (Exit.FAILED, "")
        assert failed.stderr.count("400") == 1, "the status is told once"
        assert "(1 attempt, after " in failed.stderr
        assert "Error: " in failed.stderr
        assert "BadRequestError" not in failed.stderr, "no names of classes"
        refused = await cli("get", server=flinks_server, FLINKS_ACCESS_TOKEN=TOKEN, FLINKS_AUTH_SECRET="wrong")
        assert refused.exit_code == Exit.REFUSED
        assert "bearer" in refused.stderr, "that the header has other forms is worth knowing now"

    async def test_a_timeout(self, flinks_server: FlinksServer) -> None:
        flinks_server.script(TOKEN, ["hang"] * 3)
        result = await cli("get", "--timeout", "0.05", server=flinks_server, FLINKS_ACCESS_TOKEN=TOKEN)
        assert result.exit_code == Exit.FAILED
        assert "no answer from 127.0.0.1" in result.stderr
        assert " 0.05 s (" in result.stderr


class TestAccess:
    async def test_a_secret_from_a_file_wins_over_the_environment(
        self, flinks_server: FlinksServer, tmp_path: Path
    ) -> None:
        (tmp_path / "secret").write_text(flinks_server.auth_secret + "\n")
        result = await cli(
            *("get", "--secret-file", tmp_path / "secret"),
            server=flinks_server,
            FLINKS_AUTH_SECRET="wrong",
            FLINKS_ACCESS_TOKEN=TOKEN,
        )
        assert result.exit_code == Exit.OK

    async def test_a_secret_from_standard_input(self, flinks_server: FlinksServer) -> None:
        secret = flinks_server.auth_secret
        env = {"FLINKS_AUTH_SECRET": None, "FLINKS_ACCESS_TOKEN": TOKEN}
        assert (await cli("get", "--secret-file", "-", server=flinks_server, stdin=secret, **env)).exit_code == Exit.OK

    async def test_no_secret_says_where_one_comes_from(self, flinks_server: FlinksServer) -> None:
        env: dict[str, str | None] = {"FLINKS_AUTH_SECRET": " ", "FLINKS_ACCESS_TOKEN": TOKEN}
        result = await cli("get", server=flinks_server, **env)
        assert result.exit_code == Exit.USAGE
        assert "A partner gets its AuthSecret from" in result.stderr

    @pytest.mark.parametrize("command", [("get",), ("fetch", "t.txt"), ("retry", "job")])
    async def test_without_an_instance_no_secret_is_sent_anywhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "t.txt").write_text("one\n")
        env = {"FLINKS_ACCESS_TOKEN": TOKEN, "FLINKS_AUTH_SECRET": SECRET}
        if command[0] == "retry":
            with bulk.Job.start("job", bulk.InputFile("t.txt"), bulk.JSONLParts()):
                pass
        before = sorted(tmp_path.iterdir())
        result = await cli(*command, **env)
        assert result.exit_code == Exit.USAGE
        assert "No instance. Name the Flinks instance that the AuthSecret belongs to" in result.stderr
        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.parametrize(("command", "one", "other"), INPUT_PAIRS)
    async def test_standard_input_cannot_be_two_things(
        self, tmp_path: Path, command: str, one: click.Parameter, other: click.Parameter
    ) -> None:
        directory = [tmp_path] if command in ("retry", "export", "report") else []
        tokens = ["tokens.txt"] if command == "fetch" and "tokens" not in (one.name, other.name) else []
        given = [
            part for each in (one, other) for part in ([*each.opts[:1], "-"] if each.opts[0] != "tokens" else ["-"])
        ]
        result = await cli(command, *directory, *tokens, *given)
        assert result.exit_code == Exit.USAGE
        assert "cannot both be '-', because standard input can be read only once" in result.stderr

    @pytest.mark.parametrize("scheme", ["flinks-auth-key", "flinks-auth-key-raw", "bearer"])
    async def test_the_header_forms(self, scheme: Any) -> None:
        async with FlinksServer(auth_scheme=scheme) as server:
            env = {"FLINKS_ACCESS_TOKEN": TOKEN, "FLINKS_AUTH_SCHEME": "bearer"}
            assert (await cli("get", "--auth-scheme", scheme, server=server, **env)).exit_code == Exit.OK

    async def test_an_instance_that_was_asked_for_wins_over_the_address_of_the_environment(
        self, flinks_server: FlinksServer
    ) -> None:
        env = {"FLINKS_ACCESS_TOKEN": TOKEN}
        result = await cli("get", "--instance", "not/an/instance", server=flinks_server, **env)
        assert result.exit_code == Exit.USAGE
        assert flinks_server.stats.requests == 0

    async def test_plain_http_to_another_machine_is_refused(self) -> None:
        env = {"FLINKS_ACCESS_TOKEN": TOKEN, "FLINKS_AUTH_SECRET": SECRET}
        result = await cli("get", "--base-url", "http://flinks.example", **env)
        assert result.exit_code == Exit.USAGE
        assert "unencrypted" in result.stderr


class TestWrongUsage:
    @pytest.mark.parametrize(
        "args",
        [
            ("get", TOKEN),
            ("get", "--token", TOKEN),
            ("get", f"--token={TOKEN}"),
            ("get", f"--{TOKEN}"),
            ("get", f"-{TOKEN}"),
            ("get", "--token-file", TOKEN),
            ("get", "--token-file", f"{TOKEN}\0"),
            ("get", "--secret-file", TOKEN),
            ("get", "--timeout", TOKEN),
            ("get", "--auth-scheme", TOKEN),
            ("fetch", TOKEN, "--out", "x.jsonl"),
            ("fetch", "-", "--out", "x.jsonl", TOKEN),
            ("fetch", "-", "--out", "x.jsonl", "--concurrency", TOKEN),
            ("fetch", "-", "--out", "x.jsonl", "--format", TOKEN),
            ("fetch", "-", "--out", "x.jsonl", "--delimiter", TOKEN, "--format", "csv"),
            ("simulate", "--port", TOKEN),
            ("demo", "--faults", TOKEN),
            (TOKEN,),
            (f"--{TOKEN}",),
            ("--debug", "get", TOKEN),
        ],
    )
    async def test_what_was_typed_is_not_repeated(self, args: tuple[str, ...]) -> None:
        env: dict[str, str | None] = {"FLINKS_AUTH_SECRET": SECRET}
        if "--secret-file" not in args and args[0] == "get" and "--token-file" not in args:
            env["FLINKS_ACCESS_TOKEN"] = "another-token"
        result = await cli(*args, **env)
        assert result.exit_code == Exit.USAGE
        assert "Error: " in result.stderr
        assert TOKEN not in result.output
        assert SECRET not in result.output

    async def test_it_helps_all_the_same(self) -> None:
        assert "Did you mean --token-file" in (await cli("get", "--token", TOKEN)).stderr
        assert "from 1 to 1000" in (await cli("fetch", "-", "--out", "x", "--concurrency", "0")).stderr
        assert "one of auto, text, csv, jsonl" in (await cli("fetch", "-", "--out", "x", "--format", "xml")).stderr
        assert "Commands: get, fetch, status" in (await cli("got")).stderr
        assert "Missing option '--out FILE'" in (await cli("fetch", "-")).stderr

    @pytest.mark.parametrize("args", [(), ("--help",), ("get", "-h"), ("fetch", "--help"), ("demo", "--help")])
    async def test_help_tells_the_exit_codes(self, args: tuple[str, ...]) -> None:
        result = await cli(*args)
        assert result.exit_code == (Exit.OK if args else Exit.USAGE), result.output
        output = " ".join(result.output.split())  # long lines are wrapped
        for code, meaning in MEANING.items():
            assert f" {code.value} {meaning}" in output


class TestUnexpected:
    @pytest.fixture
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def ask(*args: object) -> None:
            local = SECRET + TOKEN
            raise KeyError(f"GET https://h/partneraccess/{TOKEN} flinks-auth-key: Bearer {SECRET}", len(local))

        monkeypatch.setattr(get_module, "_ask", ask)

    @pytest.mark.usefixtures("broken")
    async def test_an_unexpected_error_shows_its_type_only(self) -> None:
        result = await cli("get", FLINKS_INSTANCE="toolbox", FLINKS_AUTH_SECRET=SECRET, FLINKS_ACCESS_TOKEN=TOKEN)
        assert result.exit_code == Exit.UNEXPECTED
        assert "unexpected KeyError" in result.stderr
        assert "--debug" in result.stderr
        assert "Traceback" not in result.stderr

    @pytest.mark.usefixtures("broken")
    async def test_debug_shows_where_without_secrets(self) -> None:
        result = await cli(
            "get", "--debug", FLINKS_INSTANCE="toolbox", FLINKS_AUTH_SECRET=SECRET, FLINKS_ACCESS_TOKEN=TOKEN
        )
        assert result.exit_code == Exit.UNEXPECTED
        assert "Traceback" in result.stderr
        assert "in ask" in result.stderr
        assert TOKEN not in result.output
        assert SECRET not in result.output


class TestInstallation:
    @pytest.mark.parametrize("missing", ["click", "rich"])
    async def test_a_missing_extra_is_named(self, missing: str, tmp_path: Path) -> None:
        (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{missing!r}] = None\n")
        path = os.pathsep.join([str(tmp_path), *sys.path])
        process = await start("--help", env={"PYTHONPATH": path})
        _, stderr = await process.communicate()
        assert process.returncode == Exit.USAGE
        assert f"{missing} is not installed" in stderr.decode()
        assert "flinks-async[cli]" in stderr.decode()
        assert "Traceback" not in stderr.decode()
