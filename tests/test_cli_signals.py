"""`flinks-async fetch` is interrupted: processes of their own, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from flinks_async.cli.exit_codes import Exit
from flinks_async.testing import FlinksServer

from .cli_support import records, start

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


async def started(server: FlinksServer, tmp_path: Path, *more: object) -> asyncio.subprocess.Process:
    """A run over 50 tokens of which four hang."""
    server.script_all(["hang"] * 4)
    (tmp_path / "t.txt").write_text("".join(f"token-{n}\n" for n in range(50)))
    args = ("fetch", tmp_path / "t.txt", "--out", tmp_path / "answers.jsonl", "--concurrency", 4, *more)
    process = await start(*args, server=server)
    await server.received(4)
    return process


async def said(process: asyncio.subprocess.Process, word: bytes) -> None:
    assert process.stderr is not None
    while word not in (line := await process.stderr.readline()):
        assert line, f"it ended without saying {word!r}"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
async def test_the_first_signal_finishes_what_is_in_flight(
    flinks_server: FlinksServer, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = await started(flinks_server, tmp_path)
    process.send_signal(number)
    await said(process, b"4 in flight")
    flinks_server.release()
    _, stderr = await process.communicate()

    assert process.returncode == code
    assert len(flinks_server.stats.per_token) == 4, "no more tokens were taken"
    part = tmp_path / "answers.jsonl.part"
    assert sorted(record["line"] for record in records(part)) == [1, 2, 3, 4]
    assert not (tmp_path / "answers.jsonl").exists()
    assert str(part).encode() in stderr
    assert b"--force" in stderr


async def test_the_second_signal_ends_it_at_once(flinks_server: FlinksServer, tmp_path: Path) -> None:
    process = await started(flinks_server, tmp_path)
    process.send_signal(signal.SIGINT)
    await said(process, b"Once more stops at once")
    process.send_signal(signal.SIGINT)
    _, stderr = await process.communicate()
    assert process.returncode == Exit.SIGINT
    assert b"unfinished          4" in stderr
    assert b"Traceback" not in stderr
    assert not list(tmp_path.glob("answers*")), "an empty part is of no use"
    flinks_server.release()


async def test_a_silent_standard_input_does_not_hold_it_up(flinks_server: FlinksServer, tmp_path: Path) -> None:
    args = ("fetch", "-", "--out", tmp_path / "answers.jsonl")
    process = await start(*args, server=flinks_server, stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"token-1\n")
    await flinks_server.received(1)
    process.send_signal(signal.SIGINT)
    await said(process, b"Interrupted")
    assert await process.wait() == Exit.SIGINT  # with the pipe still open
    assert len(records(tmp_path / "answers.jsonl.part")) == 1
    process.stdin.close()


async def test_lines_of_standard_input_are_fetched_as_they_come(flinks_server: FlinksServer) -> None:
    process = await start("fetch", "-", "--out", "-", server=flinks_server, stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for number in (1, 2):
        process.stdin.write(b"token-%d\n" % number)
        assert json.loads(await process.stdout.readline())["line"] == number
    process.stdin.close()
    await process.communicate()
    assert process.returncode == Exit.OK


async def test_get_is_interrupted(flinks_server: FlinksServer) -> None:
    flinks_server.script_all(["hang"])
    process = await start("get", server=flinks_server, env={"FLINKS_ACCESS_TOKEN": "token"})
    await flinks_server.received(1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = await process.communicate()
    assert (process.returncode, stdout) == (Exit.SIGINT, b"")
    assert stderr.decode().split() == ["Interrupted."]
    flinks_server.release()
