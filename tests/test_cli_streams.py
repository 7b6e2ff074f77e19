"""Closed and full standard streams: no abort, no lost exit code, and no file in their place."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from pathlib import Path

import pytest

from flinks_async.cli import Exit
from flinks_async.testing import FlinksServer

from .cli_support import environment, records

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


async def shell(arguments: str, server: FlinksServer | None, cwd: Path) -> tuple[int | None, str, str]:
    """A command with redirections, by a shell."""
    env = {name: value for name, value in {**os.environ, **environment(server)}.items() if value is not None}
    command = f"exec {shlex.quote(sys.executable)} -m flinks_async.cli {arguments}"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_shell(command, stdout=pipe, stderr=pipe, env=env, cwd=cwd)
    stdout, stderr = await process.communicate()
    return process.returncode, stdout.decode(), stderr.decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "t.txt").write_text("".join(f"token-{n}\n" for n in range(20)))
    return tmp_path


@pytest.mark.parametrize(
    "closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-", pytest.param("2>/dev/full", marks=FULL)]
)
async def test_a_fetch_into_a_file_needs_no_streams(flinks_server: FlinksServer, folder: Path, closed: str) -> None:
    code, *_ = await shell(f"fetch t.txt --out a.jsonl {closed}", flinks_server, folder)
    assert code == Exit.OK
    assert len(records(folder / "a.jsonl")) == 20, "and nothing but answers in it"


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [
        *(("fetch t.txt --out -", closed) for closed in (">&-", ">&- <&-")),
        *(("--version", closed) for closed in (">&-", ">&- <&-")),
        *(
            pytest.param(arguments, ">/dev/full", marks=FULL)
            for arguments in ("fetch t.txt --out -", "fetch t.txt --dry-run", "--help", "fetch --help")
        ),
    ],
)
async def test_output_that_cannot_be_written_is_told(
    flinks_server: FlinksServer, folder: Path, arguments: str, closed: str
) -> None:
    code, _, stderr = await shell(f"{arguments} {closed}", flinks_server, folder)
    assert code == Exit.OUTPUT
    assert stderr.splitlines()[-1].startswith("Error: standard output cannot be written: ")


async def test_a_closed_standard_input_is_told(flinks_server: FlinksServer, folder: Path) -> None:
    code, _, stderr = await shell("fetch - --out a.jsonl <&-", flinks_server, folder)
    assert code == Exit.USAGE
    assert "Standard input cannot be read" in stderr


@FULL
async def test_wrong_usage_keeps_its_exit_code(folder: Path) -> None:
    for arguments in ("", "fetch", "nothing", "get"):
        code, *_ = await shell(f"{arguments} 2>/dev/full", None, folder)
        assert code == Exit.USAGE, arguments
