"""The benchmarks run, and a wrong answer does not pass for a right one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flinks_async.testing.data import expected_body

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts find the modules beside them."""
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def server() -> Iterator[Any]:
    import servers

    try:
        servers.compiler()
    except servers.Unavailable as problem:
        pytest.skip(str(problem))
    with servers.plain("small") as running:
        if running.kind == "simulator":
            pytest.skip("server.c is for Linux")
        yield running


def target_of(server: Any, body: bytes) -> Any:
    import clients
    import servers

    return clients.Target(server.base_url, servers.SECRET, None, 2, body)


def names() -> list[str]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import clients
    finally:
        sys.path.remove(str(BENCHMARKS))
    return list(clients.CLIENTS)


def skip_unless_installed(name: str) -> None:
    import fetch

    if name not in fetch.installed([name]):
        pytest.skip("not installed")


@pytest.mark.parametrize("name", names())
async def test_each_client_gets_the_right_answers(name: str, server: Any) -> None:
    import clients

    skip_unless_installed(name)
    target = target_of(server, server.body)
    async with clients.CLIENTS[name].open(target) as fetch:
        before = server.answers()
        await fetch(["one", "two", "three"], 2)
        assert server.counted(before) == 3
    assert [clients.summary(answer) for answer in target.samples] == [clients.summary(server.body)]


@pytest.mark.parametrize("name", names())
async def test_each_client_notices_a_wrong_answer(name: str, server: Any) -> None:
    import clients

    skip_unless_installed(name)
    async with clients.CLIENTS[name].open(target_of(server, expected_body("another token"))) as fetch:
        with pytest.raises(clients.WrongAnswer):
            await fetch(["one"], 1)


def test_a_summary_sees_every_transaction() -> None:
    import clients

    from flinks_async.codec import Codec

    body = expected_body("token", size="medium")
    whole = clients.summary(Codec().decode(body))
    assert whole == clients.summary(body)
    assert whole["transactions"] == 120
    changed = body.replace(b'"Balance":1', b'"Balance":2', 1)
    assert changed != body
    assert clients.summary(changed) != whole


def test_a_race_compares_what_was_asked_with_what_the_server_counted(server: Any) -> None:
    import clients
    import fetch

    class Idle:
        name = clients.BARE

        def run(self, order: dict[str, Any]) -> dict[str, Any]:
            return {"requests": 7, "warm": 0, "wall": 1.0, "cpu": 1.0}

    with pytest.raises(clients.WrongAnswer, match="7 requests were asked for and the server got 0"):
        fetch.race([Idle()], server, fetch.Case("small", 1, "asyncio", False), Path("unused"), 0.1, False)


def order_of(server: Any, body_file: Path) -> dict[str, Any]:
    return {
        "base_url": server.base_url,
        "ca_file": None,
        "any_token": True,
        "concurrency": 1,
        "body_file": str(body_file),
        "seconds": 0.01,
        "settle": False,
    }


async def test_a_run_checks_a_whole_answer_before_it_measures(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import clients
    import fetch

    @asynccontextmanager
    async def almost(target: Any) -> AsyncIterator[Any]:
        async def nothing(tokens: Any, concurrency: int) -> None:
            target.samples.append(server.body.replace(b'"LoginId":"', b'"LoginId":"0'))

        yield nothing

    body_file = tmp_path / "body"
    body_file.write_bytes(server.body)
    monkeypatch.setitem(clients.CLIENTS, "almost", clients.Client(almost, (), "bytes"))
    with pytest.raises(clients.WrongAnswer, match="logins"):
        await fetch.run("almost", order_of(server, body_file))


def test_a_client_process_runs_and_tells_what_went_wrong_in_it(server: Any, tmp_path: Path) -> None:
    import clients
    import fetch

    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_bytes(server.body)
    wrong.write_bytes(expected_body("another token"))
    child = fetch.Child(clients.BARE, "asyncio", None)
    try:
        case = fetch.Case("small", 1, "asyncio", False)
        assert fetch.race([child], server, case, right, 0.01, False)[clients.BARE].requests > 1
        with pytest.raises(clients.WrongAnswer, match="aiohttp, default session: WrongAnswer: expected"):
            child.run(order_of(server, wrong))
    finally:
        child.stop()


def test_without_a_compiler_the_simulator_serves_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import servers

    servers.note.cache_clear()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with servers.plain("small") as running:
        assert running.kind == "simulator"
        assert not running.any_token
    assert "no C compiler" in capsys.readouterr().out


def test_without_nginx_tls_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    import servers

    monkeypatch.setattr("servers.shutil.which", lambda *_, **__: None)
    with pytest.raises(servers.Unavailable, match="no nginx"), servers.tls("small"):
        pass


def test_a_ratio_is_of_the_same_rounds() -> None:
    import figures

    steady = figures.ratio([2.0, 20.0, 6.0], [1.0, 10.0, 3.0])
    assert (steady.median, steady.low, steady.high) == (2.0, 2.0, 2.0)
    uneven = figures.ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert uneven.low < uneven.median == 3.0 < uneven.high
    assert str(steady) == "2.00 (2.00-2.00)"


@pytest.mark.parametrize(
    ("own", "optional", "code"), [(40.0, [], 0), (41.0, [], 1), (40.0, ["rich"], 1)], ids=["good", "slow", "optional"]
)
def test_import_time_fails_over_its_limit(
    own: float, optional: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import import_time

    run = {"own": own, "dependencies": 155.0, "modules": 50, "optional": optional}
    monkeypatch.setattr(import_time, "one", lambda _: run)
    monkeypatch.setattr(sys, "argv", ["import_time.py", "--short"])
    assert import_time.main() == code


def test_nothing_optional_is_imported(tmp_path: Path) -> None:
    import import_time

    assert import_time.one(str(tmp_path))["optional"] == []


async def test_each_way_to_fan_out_sees_every_answer() -> None:
    import fanout

    assert [await way(fanout.tokens(500)) for way in fanout.WAYS.values()] == [500] * len(fanout.WAYS)


def test_fan_out_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import fanout

    less = subprocess.CompletedProcess([], 0, '{"seen": 9, "us": 1.0, "mb": 0.0}')
    monkeypatch.setattr("fanout.subprocess.run", lambda *_, **__: less)
    with pytest.raises(AssertionError, match="10 tokens and 9 answers"):
        fanout.measure("flinks_async", 10)


def test_a_benchmark_that_fails_is_named_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import run

    output = tmp_path / "report.md"
    failed = subprocess.CompletedProcess([], 1, "a table", "Traceback\nWrongAnswer: another one")
    monkeypatch.setattr("run.subprocess.run", lambda *_, **__: failed)
    monkeypatch.setattr(sys, "argv", ["run.py", "--only", "decode", "--output", str(output)])
    assert run.main() == 1
    report = output.read_text()
    assert "Failed: decode" in report
    assert "**Failed** (exit code 1): WrongAnswer: another one" in report


def test_a_run_of_the_benchmarks_can_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import run

    output = tmp_path / "report.md"
    commands: list[list[str]] = []
    run.machine()  # which runs a program the first time

    def interrupted(command: list[Any], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append([Path(command[1]).name, *command[2:]])
        if len(commands) == 4:
            raise KeyboardInterrupt
        return subprocess.CompletedProcess([], int(len(commands) == 2), f"table {len(commands)}", "a failure")

    monkeypatch.setattr("run.subprocess.run", interrupted)
    monkeypatch.setattr(sys, "argv", ["run.py", "--resume", "--only", "decode", "fetch", "--output", str(output)])
    with pytest.raises(KeyboardInterrupt):
        run.main()
    assert run.main() == 0
    assert commands[4:] == [commands[1], commands[3], commands[-1]]  # what failed, what was interrupted, and the rest
    report = output.read_text()
    assert [report.index(f"table {n}") for n in (1, 5, 3, 6, 7)] == sorted(
        report.index(f"table {n}") for n in range(1, 8) if n not in (2, 4)
    )
    assert "Failed" not in report
    assert run.main() == 0
    assert len(commands) == 7


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    ["decode", "fetch", "fanout", "stall", "profile_request", "overhead", "job", "processes", "congestion_sockets"],
)
def test_the_short_form_runs(name: str) -> None:
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--short"]
    ran = subprocess.run(command, check=False, capture_output=True, encoding="utf-8")
    assert ran.returncode == 0, ran.stderr
    assert "| --- |" in ran.stdout
