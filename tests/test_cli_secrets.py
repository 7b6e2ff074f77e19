"""Canaries: no secret and no token in anything that a command writes, nor in its arguments."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flinks_async.cli import Exit
from flinks_async.testing import FlinksServer

from .cli_support import start

SECRET = "canary-secret-5c1e"
CANARY = "canary-token"


def shown(*texts: bytes) -> list[bytes]:
    """The canaries that are in one of the texts."""
    return [canary for canary in (SECRET.encode(), CANARY.encode()) if any(canary in text for text in texts)]


@pytest.mark.parametrize("debug", [(), ("--debug",)], ids=["plain", "debug"])
@pytest.mark.parametrize("source", ["environment", "file", "stdin"])
async def test_fetch_with_every_kind_of_failure(tmp_path: Path, source: str, debug: tuple[str, ...]) -> None:
    async with FlinksServer(auth_secret=SECRET) as server:
        faults = [
            "bad_request",
            "session_nonexistent",
            "html_200",
            "garbage",
            "reset",
            "truncated_json",
            "unauthorized",
        ]
        for number, fault in enumerate(faults):
            server.script(f"{CANARY}-{number}", [fault] * 5)
        server.script(f"{CANARY}-hangs", ["hang"])
        rows = [
            *(f"{CANARY}-{n},{n}" for n in range(12)),
            f"{CANARY}-hangs,x",
            f"{CANARY}\x07,8",
            f"{CANARY},of {CANARY}",
        ]
        (tmp_path / "tokens.csv").write_text("token,id\n" + "\n".join([*rows, rows[-4], f"{CANARY}-ragged"]))
        (tmp_path / "secret").write_text(SECRET)
        secret_file = {
            "environment": (),
            "file": ("--secret-file", tmp_path / "secret"),
            "stdin": ("--secret-file", "-"),
        }
        process = await start(
            *("fetch", tmp_path / "tokens.csv", "--column", "token", "--key-column", "id"),
            *("--out", tmp_path / "out.jsonl", "--attempts", 2, *secret_file[source], *debug),
            server=server,
            env={"FLINKS_AUTH_SECRET": SECRET if source == "environment" else None},
            stdin=-1 if source == "stdin" else -3,
        )
        if process.stdin is not None:
            process.stdin.write(SECRET.encode())
            process.stdin.close()
        while not server.stats.per_token[f"{CANARY}-hangs"]:
            await server.received(server.stats.requests + 1)
        arguments = Path(f"/proc/{process.pid}/cmdline")
        if arguments.exists():
            assert shown(arguments.read_bytes()) == []
        server.release()
        stdout, stderr = await process.communicate()

    assert process.returncode == Exit.FAILED, stderr.decode()
    written = {
        path.name: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.name not in ("tokens.csv", "secret") and path.is_file()
    }
    assert {"out.jsonl", "failed.jsonl", "duplicates.jsonl", "ledger.sqlite", "job.log"} <= written.keys()
    assert shown(stdout, stderr, *written.values()) == []


async def test_get_and_its_failures(tmp_path: Path) -> None:
    async with FlinksServer(auth_secret=SECRET) as server:
        server.script(CANARY, ["bad_request"])
        for extra, wrong in [((), ""), ((), "-wrong"), ((CANARY,), ""), (("--base-url", f"ftp://{SECRET}@x/"), "")]:
            process = await start(
                *("get", "--debug", *extra),
                server=server,
                env={"FLINKS_ACCESS_TOKEN": CANARY, "FLINKS_AUTH_SECRET": SECRET + wrong},
            )
            stdout, stderr = await process.communicate()
            assert process.returncode in (Exit.FAILED, Exit.REFUSED, Exit.USAGE)
            assert shown(stdout, stderr) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
async def test_the_simulator_shows_only_a_secret_of_its_own() -> None:
    process = await start("simulate", env={"FLINKS_AUTH_SECRET": SECRET})
    assert process.stdout is not None
    lines = [await process.stdout.readline() for _ in range(3)]
    assert lines[1] == b"AuthSecret: from FLINKS_AUTH_SECRET\n"
    assert shown(Path(f"/proc/{process.pid}/cmdline").read_bytes()) == []
    process.terminate()
    stdout, stderr = await process.communicate()
    assert shown(*lines, stdout, stderr) == []
