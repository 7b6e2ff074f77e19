"""Runs commands for the tests of the command line: in this process, or in one of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from flinks_async.cli.app import app
from flinks_async.testing import FlinksServer

SECRET = "canary-secret-5c1e"


def environment(server: FlinksServer | None = None, **more: str | None) -> dict[str, str | None]:
    """Variables for a command: those of the server, and none that this machine happens to have."""
    own: dict[str, str | None] = dict.fromkeys(name for name in os.environ if name.startswith("FLINKS_"))
    if server is not None:
        own |= {"FLINKS_BASE_URL": server.base_url, "FLINKS_AUTH_SECRET": server.auth_secret}
    return own | more


async def cli(*args: object, server: FlinksServer | None = None, stdin: str | bytes = b"", **env: str | None) -> Result:
    """A command in this process, in a thread, since the server needs the loop."""
    runner = CliRunner()
    return await asyncio.to_thread(
        runner.invoke, app, list(map(str, args)), input=stdin, env=environment(server, **env)
    )


async def start(*args: object, server: FlinksServer | None = None, **options: Any) -> asyncio.subprocess.Process:
    """A command in a process of its own."""
    given = environment(server, **options.pop("env", {}))
    env = {name: value for name, value in {**os.environ, **given}.items() if value is not None}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "flinks_async.cli",
        *map(str, args),
        env=env,
        preexec_fn=_usual_signals if os.name == "posix" else None,
        stdin=options.pop("stdin", asyncio.subprocess.DEVNULL),
        stdout=options.pop("stdout", asyncio.subprocess.PIPE),
        stderr=options.pop("stderr", asyncio.subprocess.PIPE),
        **options,
    )


def _usual_signals() -> None:
    """In the child. Tests that run under nohup or in the background ignore some signals, and children inherit that."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file; none if it is not there."""
    return [json.loads(line, parse_float=Decimal) for line in path.read_bytes().splitlines()] if path.exists() else []


def by_line(path: Path) -> dict[int, dict[str, Any]]:
    found = records(path)
    assert len({record["line"] for record in found}) == len(found), "a line was reported twice"
    return {record["line"]: record for record in found}


async def said(process: asyncio.subprocess.Process, word: bytes) -> None:
    """Waits until a command says something on standard error."""
    assert process.stderr is not None
    while word not in (line := await process.stderr.readline()):
        assert line, f"it ended without saying {word!r}"
