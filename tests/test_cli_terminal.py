"""What a server or a file name may not do to a terminal. The commands run on a real one, a pseudo-terminal."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from flinks_async.cli.app import app
from flinks_async.testing import FlinksServer

from .cli_support import cli, environment

pty = pytest.importorskip("pty")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")

TITLE = "\x1b]0;evil\x07"
EVIL = "\x9b\x7f\x85\u202e\u2066\u061c\u200f\u2028\U000e0041"
"""C1 controls, delete, marks of direction, a line separator and an invisible tag."""

FORGED = "Error: forged"
"""A line of its own behind the line break in the name of the folder."""

ANSWER = {"GetAccountsDetail": [{"LoginId": "l", "CustomerId": f"a{TITLE}{EVIL}b"}], "RequestId": "r"}


@pytest.fixture
def server(flinks_server: FlinksServer) -> FlinksServer:
    for number in range(3):
        flinks_server.set_answer(f"token-{number}", json.dumps(ANSWER, ensure_ascii=False).encode())
    return flinks_server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / f"dir{TITLE}{EVIL}\n{FORGED}"
    folder.mkdir()
    rows = "".join(f"token-{number},k{number}{EVIL}\n" for number in range(3))
    (folder / "t.csv").write_text(f"token,key\n{rows}token-3,\n,\n" + "bad token\x01,k\n")
    return folder


async def on_terminal(*args: object, server: FlinksServer | None = None, **env: str) -> str:
    """What a terminal gets from a command in this process, on both streams."""
    master, slave = pty.openpty()
    reading = asyncio.ensure_future(asyncio.to_thread(lambda: b"".join(read_all(master))))
    with ExitStack() as stack:
        stack.callback(os.close, master)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in environment(server, TERM="xterm", COLUMNS="400", **env).items():
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
        with open(slave, "w", encoding="utf-8") as terminal, open(os.devnull, encoding="utf-8") as nothing:
            for name, stream in (("stdin", nothing), ("stdout", terminal), ("stderr", terminal)):
                patch.setattr(sys, name, stream)
            await asyncio.to_thread(run, [str(arg) for arg in args])
        return (await reading).decode("utf-8", "backslashreplace")


def run(args: list[str]) -> None:
    with suppress(SystemExit):
        app.main(args, prog_name="flinks-async")


def read_all(file: int) -> Iterator[bytes]:
    with suppress(OSError):  # Linux raises EIO at the end
        while piece := os.read(file, 65536):
            yield piece


def assert_harmless(text: str) -> None:
    assert [c for c in EVIL if c in text] == []
    assert TITLE not in text
    assert "\x1b]" not in text
    assert [line for line in text.splitlines() if line.startswith(FORGED)] == []


@pytest.mark.parametrize("options", [[], ["--progress", "json"], ["--progress", "plain"], ["--quiet"]])
async def test_a_run_and_its_job(server: FlinksServer, folder: Path, options: list[str]) -> None:
    tokens, out = folder / "t.csv", folder / "a.jsonl"
    columns = ["--column", "token", "--key-column", "key"]
    said = await on_terminal("fetch", tokens, "--out", out, *columns, *options, server=server)
    assert out.exists(), said
    assert_harmless(said)
    assert EVIL in out.read_text(), "a file gets the data as it is"
    job = folder / "a.jsonl.job"
    for command in (
        ["status", job], ["status", job, "--json"], ["verify", job], ["export", job, "--out", "-"], ["purge", job],
        ["report", job, "--json"], ["report", job, "--out", "-"], ["report", job], ["retry", job], ["doctor", "--job", job],
    ):  # fmt: skip
        assert_harmless(await on_terminal(*command, server=server))


async def test_answers_that_are_printed(server: FlinksServer, folder: Path) -> None:
    args = ("fetch", folder / "t.csv", "--out", "-", "--column", "token", "--key-column", "key", "--quiet")
    said = await on_terminal(*args, server=server)
    assert_harmless(said)
    answers = [json.loads(line) for line in said.splitlines() if '"response"' in line]
    assert {answer["line"]: answer["response"] for answer in answers if answer["line"] < 5} == {
        2: ANSWER,
        3: ANSWER,
        4: ANSWER,
    }
    assert {answer["key"] for answer in answers if answer["line"] < 5} == {f"k{n}{EVIL}" for n in range(3)}
    piped = await cli(*args, server=server)
    assert piped.stdout.count(EVIL) >= 3, "a pipe gets the data as it is"


@pytest.mark.parametrize("option", ["--pretty", "--compact"])
async def test_one_answer(server: FlinksServer, option: str) -> None:
    said = await on_terminal("get", option, server=server, FLINKS_ACCESS_TOKEN="token-0")
    assert_harmless(said)
    assert json.loads(said)["GetAccountsDetail"] == ANSWER["GetAccountsDetail"]


async def test_failed_rows_keep_their_keys_in_events(server: FlinksServer, folder: Path) -> None:
    args = ("fetch", folder / "t.csv", "--out", "-", "--column", "token", "--key-column", "key", "--progress", "json")
    server.script("token-1", ["bad_request"])
    said = await cli(*args, server=server)
    events = [json.loads(line) for line in said.stderr.splitlines()]
    assert f"k1{EVIL}" in {event.get("key") for event in events if event["event"] == "failed"}
    assert_harmless(said.stderr)


@pytest.mark.parametrize("command", ["fetch", "status", "verify", "report", "purge", "retry", "export"])
async def test_errors(server: FlinksServer, folder: Path, command: str) -> None:
    for name in (folder, folder / "none"):
        more = ["--out", "-"] if command == "export" else ["--yes"] if command == "purge" else []
        said = await on_terminal(command, name, *more, server=server)
        assert_harmless(said)
        assert "Error: " in said
