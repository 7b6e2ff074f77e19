"""The log: its records have the fields of docs/logging.md, and FLINKS_LOG shows it."""

from __future__ import annotations

import ast
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from attrs import fields

from flinks_async import (
    AttemptFinished,
    AttemptStarted,
    BadRequestError,
    InstanceDown,
    InstanceUp,
    Limits,
    Paused,
    Response,
    RetryScheduled,
    ServerError,
    Verdict,
)
from flinks_async.config import Breaker
from flinks_async.limits.notices import LoggedEvent, Resumed, emit
from flinks_async.observe import Event
from flinks_async.testing import KINDS, FakeClock, InMemoryTransport
from flinks_async.verdict import OK, Kind

from .support import client_of

ROOT = Path(__file__).parent.parent
SECRET, TOKEN = "sk-live-canary-secret", "canary-token-0123456789"
VALUES: dict[str, Any] = {
    "host": "h",
    "attempt": 1,
    "token_fingerprint": "f",
    "call_id": "c",
    "verdict": Verdict(Kind.TRANSIENT, "http_503", ServerError),
    "reason": "r",
}


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.all: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append(record)

    def of(self, event: str) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in vars(record).items() if name.startswith("flinks_")}
            for record in self.all
            if vars(record).get("flinks_event") == event
        ]


@pytest.fixture
def records() -> Iterator[Records]:
    log, handler = logging.getLogger("flinks_async"), Records()
    level = log.level
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)


def made(event: type[LoggedEvent]) -> LoggedEvent:
    return event(**{field.name: VALUES.get(field.name, 1.5) for field in fields(event)})


def documented() -> dict[str, set[str]]:
    """The fields of each event, by docs/logging.md."""
    table = (ROOT / "docs" / "logging.md").read_text(encoding="utf-8").partition("## Fields")[2]
    rows = dict(re.findall(r"^\| `([A-Z]\w+)` \|(.*)\|.*\|$", table.partition("## What you see")[0], re.MULTILINE))
    found: dict[str, set[str]] = {}
    for event, listed in rows.items():
        names = set(re.findall(r"`(flinks_\w+)`", listed))
        found[event] = names | found["AttemptStarted"] if "these" in listed else names
    return found


def calls(name: str) -> Iterator[tuple[Path, ast.Call]]:
    for path in sorted((ROOT / "flinks_async").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and re.fullmatch(name, ast.unparse(node.func)):
                yield path, node


def test_the_page_lists_every_event_with_its_fields() -> None:
    said = {type(event).__name__: set(event.log_fields()) - {"flinks_event"} for event in map(made, get_args(Event))}
    for _, call in calls("log_fields"):
        if isinstance(call.args[0], ast.Constant):
            said[call.args[0].value] = {f"flinks_{keyword.arg}" for keyword in call.keywords}
    assert said == documented()


def test_every_record_of_the_package_has_fields() -> None:
    found = list(calls(r"(_log|_LOGGER|logging)\.(debug|info|warning|error|exception|critical|log)"))
    assert len(found) > 7
    for path, call in found:
        assert "extra" in {keyword.arg for keyword in call.keywords}, f"{path}:{call.lineno} logs without fields"


@pytest.mark.parametrize("event", [AttemptStarted, AttemptFinished, RetryScheduled, Paused, Resumed])
def test_an_event_is_a_record_at_its_level(event: type[LoggedEvent], records: Records) -> None:
    logging.getLogger("flinks_async").setLevel(event.level)
    emit([], made(event))
    logging.getLogger("flinks_async").setLevel(event.level + 1)
    emit([], made(event))
    (record,) = records.all
    assert record.levelno == event.level
    assert re.search(r"\bh\b", record.getMessage())
    assert "%(" not in record.getMessage()


async def test_the_records_of_a_call_tell_its_story_and_name_it(records: Records) -> None:
    logging.getLogger("flinks_async").setLevel(logging.DEBUG)
    transport = InMemoryTransport({TOKEN: [KINDS["http_503"], KINDS["bad_request"]]})
    async with client_of(transport) as client:
        with pytest.raises(BadRequestError) as caught:
            await client.partner_access(TOKEN)
    events = [vars(record)["flinks_event"] for record in records.all]
    assert events == ["AttemptStarted", "AttemptFinished", "RetryScheduled", "AttemptStarted", "AttemptFinished"]
    error = caught.value
    for record in records.all:
        assert vars(record)["flinks_call_id"] == error.call_id
        assert vars(record)["flinks_token_fingerprint"] == error.token_fingerprint
        assert vars(record)["flinks_host"] == error.host
        assert TOKEN not in f"{vars(record)}"
    first, second = records.of("AttemptFinished")
    assert (first["flinks_verdict"], first["flinks_reason"], first["flinks_status"]) == ("transient", "http_503", 503)
    assert (second["flinks_verdict"], second["flinks_attempt"]) == ("final", 2)
    (retry,) = records.of("RetryScheduled")
    assert retry["flinks_delay"] > 0


async def test_the_level_may_change_while_a_client_runs(records: Records) -> None:
    log = logging.getLogger("flinks_async")
    async with client_of(InMemoryTransport(default={})) as client:
        for level in (logging.WARNING, logging.DEBUG, logging.WARNING):
            log.setLevel(level)
            await client.partner_access("t")
    assert len(records.all) == 2


async def test_an_outage_is_a_record_with_its_cause(records: Records) -> None:
    clock = FakeClock()
    answers: list[Any] = [Response(503)] * 5
    transport = InMemoryTransport({"t": [*answers, {}, {}, {}]}, default={})
    limits = Limits(breaker=Breaker(in_a_row=5, probe_interval=1.0))
    async with client_of(transport, clock=clock, retry={"attempts": 1}, limits=limits) as client:
        for _ in range(5):
            with pytest.raises(ServerError):
                await client.partner_access("t")
        for _ in range(3):
            clock.advance(2.0)
            await client.partner_access("t")
    (down,), (up,) = records.of("InstanceDown"), records.of("InstanceUp")
    assert set(down) - {"flinks_event"} == documented()["InstanceDown"]
    assert down["flinks_attempts"] == 5
    assert "answered 503" in down["flinks_reason"]
    assert set(up) - {"flinks_event"} == documented()["InstanceUp"]
    assert InstanceDown.level == InstanceUp.level == logging.NOTSET  # logged by `Notices`, at most once a minute


async def test_what_observers_get_is_logged_too(records: Records) -> None:
    logging.getLogger("flinks_async").setLevel(logging.DEBUG)
    seen: list[Any] = []
    async with client_of(InMemoryTransport(default={}), observers=[seen.append]) as client:
        await client.partner_access("t")
    assert [type(event).__name__ for event in seen] == [vars(record)["flinks_event"] for record in records.all]
    assert seen[-1].verdict is OK


# --- FLINKS_LOG -------------------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, logging
from flinks_async import FlinksClient, FlinksError
from flinks_async.testing import KINDS, InMemoryTransport
{logging}
async def main():
    transport = InMemoryTransport({{"{token}": [KINDS["http_503"], KINDS["bad_request"]]}})
    async with FlinksClient(auth_secret="{secret}", transport=transport, headers={{"X-Key": "{secret}"}}) as client:
        try:
            await client.partner_access("{token}", headers={{"X-Own": "{secret}"}})
        except FlinksError:
            pass
        logging.getLogger("flinks_async").debug("GET /partneraccess/{token} flinks-auth-key: Bearer {secret}")
        logging.getLogger("urllib3").debug("not of this package")

asyncio.run(main())
"""


def run(value: str, program: str = "") -> subprocess.CompletedProcess[str]:
    code = PROGRAM.format(logging=program, token=TOKEN, secret=SECRET)
    environment = {"FLINKS_LOG": value, "PATH": "", "PYTHONDONTWRITEBYTECODE": "1", "SYSTEMROOT": ""}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60, check=False
    )


@pytest.mark.parametrize(("value", "lines"), [("debug", 6), (" DEBUG\n", 6), ("info", 1), ("warning", 0), ("", 0)])
def test_flinks_log_shows_the_log_on_standard_error_and_no_secret(value: str, lines: int) -> None:
    done = run(value)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == lines
    assert done.stdout == ""
    assert TOKEN not in done.stderr
    assert SECRET not in done.stderr
    assert all(" flinks_async: " in line for line in done.stderr.splitlines())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_program_with_logging_of_its_own_gets_each_line_once(when: str) -> None:
    ours = 'logging.basicConfig(format="mine: %(message)s", level=logging.WARNING)'
    if when == "after":
        ours = 'FlinksClient(auth_secret="x")\n' + ours
    done = run("debug", ours)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 6
    assert all(line.startswith("mine: ") for line in done.stderr.splitlines())


def test_a_wrong_level_is_refused_without_being_repeated() -> None:
    done = run("sk-live-wrong-place")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "ConfigError: FLINKS_LOG must be one of debug, info, warning, error (its value is not shown)"
    )
    assert "sk-live-wrong-place" not in done.stderr


def test_a_command_refuses_a_wrong_level_as_wrong_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flinks_async.cli", "get", "--instance", "toolbox"],
        capture_output=True,
        text=True,
        env={**os.environ, "FLINKS_LOG": "loud", "FLINKS_AUTH_SECRET": SECRET, "FLINKS_ACCESS_TOKEN": TOKEN},
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "Error: FLINKS_LOG must be one of debug, info, warning, error (its value is not shown)\n"
