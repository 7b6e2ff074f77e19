"""Canaries: no secret and no token in anything that a command writes, nor in its arguments."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flinks_async.cli import Exit
from flinks_async.cli.app import app
from flinks_async.testing import FlinksServer

from .cli_support import cli, start

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


SECRETS = ["3f2a1b5c-0d9e-4f6a-8b7c-1a2b3c4d5e6f", "c2VjcmV0OjEyMzQ1Njc4OTAx=="]
MADE = {"--out", "--job", "--dir"}  # these name a file to make, and messages name that file
BASE = {
    "get": (),
    "fetch": ("t.csv", "--column", "token", "--dry-run"),
    "export": ("j", "--out", "e.jsonl"),
    "simulate": ("--port", "-1"),
    "demo": ("--tokens", "0"),
}
IN_OPTIONS = [
    pytest.param(name, option, secret, id=f"{name} {option} {secret[:4]}")
    for name, command in app.commands.items()
    for parameter in command.params
    for option in (parameter.opts if parameter.opts[0].startswith("-") else [""])
    for secret in SECRETS
    if option not in MADE
]


@pytest.mark.parametrize(("command", "option", "secret"), IN_OPTIONS)
async def test_a_secret_typed_in_the_wrong_place_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, option: str, secret: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("token,id\nabc-1,1\n")
    (tmp_path / "j").mkdir()
    base = BASE.get(command, ("j",))
    typed = (f"{option}={secret}",) if option else (secret,)
    result = await cli(command, *base, *typed, FLINKS_BASE_URL="http://127.0.0.1:9", FLINKS_AUTH_SECRET="s")
    assert result.exit_code != Exit.UNEXPECTED
    assert secret not in result.output


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("variable", ["FLINKS_INSTANCE", "FLINKS_BASE_URL", "FLINKS_AUTH_SCHEME"])
async def test_a_secret_in_the_wrong_variable_is_not_repeated(variable: str, secret: str) -> None:
    more = {"FLINKS_INSTANCE": "toolbox", "FLINKS_AUTH_SECRET": "s", "FLINKS_ACCESS_TOKEN": "t", variable: secret}
    result = await cli("get", **more)
    assert result.exit_code == Exit.USAGE
    assert secret not in result.output


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
