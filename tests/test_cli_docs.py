"""docs/command-line.md says what the commands do."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flinks_async.cli import MEANING
from flinks_async.cli.app import app

from .cli_support import start

DOCUMENT = (Path(__file__).resolve().parent.parent / "docs" / "command-line.md").read_text(encoding="utf-8")
KNOWN = {option for command in app.commands.values() for p in command.params for option in (*p.opts, *p.secondary_opts)}


def test_exit_codes() -> None:
    table = re.findall(r"^\| (\d+) \| (.*) \|$", DOCUMENT, re.MULTILINE)
    assert table == [(str(code.value), meaning) for code, meaning in MEANING.items()]


def test_every_option_in_it_exists() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", DOCUMENT))
    assert named <= KNOWN


@pytest.mark.parametrize("command", ["fetch", "simulate", "demo"])
def test_every_option_of_its_own_is_in_it(command: str) -> None:
    shared = {"--debug", "--allow-http", "--auth-scheme", "--base-url", "--concurrency"}
    own = {option for p in app.commands[command].params if isinstance(p, click.Option) for option in p.opts} - shared
    assert [option for option in sorted(own) if option not in DOCUMENT] == []


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete"), ("zsh", "compdef"), ("fish", "complete")])
async def test_completion(shell: str, word: str) -> None:
    assert f"_FLINKS_ASYNC_COMPLETE={shell}_source flinks-async" in DOCUMENT
    process = await start(env={"_FLINKS_ASYNC_COMPLETE": f"{shell}_source"})
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert word in output.decode()
    line = (
        {"COMP_WORDS": "flinks-async do", "COMP_CWORD": "1"}
        if shell != "fish"
        else {"COMP_WORDS": "flinks-async", "COMP_CWORD": "do"}
    )
    process = await start(env={"_FLINKS_ASYNC_COMPLETE": f"{shell}_complete", **line})
    output, _ = await process.communicate()
    assert "doctor" in output.decode()


def test_help_is_not_cut_and_fits_the_terminal() -> None:
    for command in ((), *((name,) for name in app.commands)):
        text = CliRunner().invoke(app, [*command, "--help"], terminal_width=80).output
        assert "RANGE" not in text, "a name of click"
        assert "..." not in text.replace("[ARGS]...", "")
        assert max(map(len, text.splitlines())) <= 80
