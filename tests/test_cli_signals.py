"""`flinks-async fetch` is interrupted: processes of their own, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from flinks_async.cli import Exit
from flinks_async.testing import FlinksServer

from .cli_support import records, said, start
from .support import until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


async def started(server: FlinksServer, tmp_path: Path, *more: object) -> asyncio.subprocess.Process:
    """A run over 50 tokens of which four hang."""
    server.script_all(["hang"] * 4)
    (tmp_path / "t.txt").write_text("".join(f"token-{n}\n" for n in range(50)))
    args = ("fetch", tmp_path / "t.txt", "--out", tmp_path / "answers.jsonl", "--concurrency", 4, *more)
    process = await start(*args, server=server)
    await server.received(4)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
async def test_the_first_signal_finishes_what_is_in_flight(
    flinks_server: FlinksServer, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = await started(flinks_server, tmp_path)
    process.send_signal(number)
    await said(process, b"4 requests in flight")
    flinks_server.release()
    _, stderr = await process.communicate()

    assert process.returncode == code
    assert len(flinks_server.stats.per_token) == 4, "no more tokens were taken"
    out = tmp_path / "answers.jsonl"
    assert sorted(record["line"] for record in records(out)) == [1, 2, 3, 4]
    assert b"46 tokens still to be fetched. Run the same command again to fetch them." in stderr
    again = await start("fetch", tmp_path / "t.txt", "--out", out, server=flinks_server)
    await again.communicate()
    assert again.returncode == Exit.OK
    assert sorted(record["line"] for record in records(out)) == [*range(1, 51)]
    assert set(flinks_server.stats.per_token.values()) == {1}, "the same command resumes"


async def test_the_second_signal_ends_it_at_once(flinks_server: FlinksServer, tmp_path: Path) -> None:
    process = await started(flinks_server, tmp_path)
    process.send_signal(signal.SIGINT)
    await said(process, b"A second signal stops at once")
    process.send_signal(signal.SIGINT)
    _, stderr = await process.communicate()
    assert process.returncode == Exit.SIGINT
    assert b"50 tokens still to be fetched" in stderr
    assert b"Traceback" not in stderr
    assert not records(tmp_path / "answers.jsonl")
    flinks_server.release()


async def test_a_silent_standard_input_does_not_hold_it_up(flinks_server: FlinksServer, tmp_path: Path) -> None:
    args = ("fetch", "-", "--out", tmp_path / "answers.jsonl")
    process = await start(*args, server=flinks_server, stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"token-1\n")
    await said(process, b"cannot be resumed")
    process.send_signal(signal.SIGINT)
    await said(process, b"Interrupted before anything was fetched")
    assert await process.wait() == Exit.SIGINT  # with the pipe still open
    assert flinks_server.stats.requests == 0
    process.stdin.close()


async def test_answers_are_printed_as_shards_complete(flinks_server: FlinksServer) -> None:
    flinks_server.script("token-150", ["hang"])
    command = (
        "fetch",
        "-",
        "--out",
        "-",
        "--concurrency",
        4,
    )  # the limit that adapts may be 1, and then all wait for one
    process = await start(*command, server=flinks_server, stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"".join(b"token-%d\n" % n for n in range(1, 201)))
    process.stdin.close()
    lines = {json.loads(await process.stdout.readline())["line"] for _ in range(100)}
    assert lines == {*range(1, 101)}, "while the second shard is in progress"
    await until(lambda: len(flinks_server.stats.per_token) == 200)
    flinks_server.release()
    await process.communicate()
    assert process.returncode == Exit.OK


async def test_a_reader_that_does_not_read_does_not_hold_up_the_second_signal(flinks_server: FlinksServer) -> None:
    """The answers are larger than the buffer of the pipe."""
    for number in range(200):
        flinks_server.set_answer(f"token-{number}", b'{"GetAccountsDetail":[],"New":"%b"}' % (b"x" * 5000))
    process = await start("fetch", "-", "--out", "-", server=flinks_server, stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"".join(b"token-%d\n" % n for n in range(200)))
    process.stdin.close()
    await flinks_server.received(200)
    process.send_signal(signal.SIGINT)
    await said(process, b"A second signal stops at once")
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(said(process, b"200 tokens still to be fetched"), 10)  # and nothing was read yet
    await process.communicate()
    assert process.returncode == Exit.SIGINT


async def test_get_is_interrupted(flinks_server: FlinksServer) -> None:
    flinks_server.script_all(["hang"])
    process = await start("get", server=flinks_server, env={"FLINKS_ACCESS_TOKEN": "token"})
    await flinks_server.received(1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = await process.communicate()
    assert (process.returncode, stdout) == (Exit.SIGINT, b"")
    assert stderr.decode().split() == ["Interrupted."]
    flinks_server.release()
