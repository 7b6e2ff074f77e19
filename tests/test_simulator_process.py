"""The simulated Flinks in a process of its own, and in the foreground."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme

from flinks_async import FlinksClient
from flinks_async.testing import Faults, FlinksServer, ServeOptions, ServerProcess, expected_answer, serve_forever


async def fetch(server: ServerProcess | FlinksServer, token: str, **options: Any) -> dict[str, Any]:
    async with FlinksClient(auth_secret=server.auth_secret, base_url=server.base_url, **options) as flinks:
        return (await flinks.partner_access(token)).to_dict()


async def test_a_process_answers_and_counts() -> None:
    async with ServerProcess(ServeOptions(size="medium", seed=5)) as server:
        assert await fetch(server, "t") == expected_answer("t", size="medium", seed=5)
        stats = await asyncio.to_thread(server.stats)
        assert (stats["requests"], stats["tokens"], stats["answered"], stats["statuses"]) == (1, 1, 1, {"200": 1})
        assert server.returncode is None


def test_it_is_a_plain_context_manager_too_and_ends_cleanly() -> None:
    with ServerProcess(ServeOptions(auth_secret="s3cret")) as server:
        process = server._process
        assert process is not None
        assert "s3cret" not in repr(process.args)
        assert server.auth_secret == "s3cret"
        assert server.stats()["requests"] == 0
        assert "s3cret" not in repr(server.options)
    assert process.returncode == 0
    server.stop()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_the_secret_is_in_no_arguments_and_no_environment() -> None:
    with ServerProcess(ServeOptions(auth_secret="canary-s3cret")) as server:
        process = server._process
        assert process is not None
        for name in ("cmdline", "environ"):
            assert b"canary" not in Path(f"/proc/{process.pid}/{name}").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX process groups")
def test_ctrl_c_is_left_to_the_client() -> None:
    with ServerProcess() as server:
        assert server._process is not None
        assert os.getpgid(server._process.pid) != os.getpgrp()


def test_a_server_that_cannot_start_says_why() -> None:
    with ServerProcess() as running:
        port = int(running.base_url.rpartition(":")[2])
        with pytest.raises(RuntimeError, match=r"(?s)did not start.*in use"):
            ServerProcess(ServeOptions(port=port)).start()


def test_a_server_that_does_not_start_in_time_is_ended() -> None:
    server = ServerProcess(timeout=0.0)
    with pytest.raises(RuntimeError, match="did not start"):
        server.start()
    assert server._process is None


def test_it_ends_when_its_parent_is_killed() -> None:
    code = (
        "import os; from flinks_async.testing import ServerProcess; s = ServerProcess(); s.start();"
        "print(s._process.pid, s.base_url, flush=True); os._exit(9)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )  # run() waits for the end of standard error, which the simulator would hold open
    assert parent.returncode == 9
    host, port = parent.stdout.split()[1].removeprefix("http://").split(":")

    async def until_it_is_gone() -> None:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection(host, int(port))
                except OSError:
                    return
                writer.close()

    asyncio.run(until_it_is_gone())


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_runs_in_the_foreground_until_a_signal(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    ready: list[FlinksServer] = []

    def on_ready(server: FlinksServer) -> None:
        ready.append(server)
        os.kill(os.getpid(), number)

    server = await serve_forever(ServeOptions(), on_ready=on_ready)
    assert ready == [server]
    assert signal.getsignal(number) == before
    assert capsys.readouterr().out == ""


async def test_it_says_where_it_listens(capsys: pytest.CaptureFixture[str]) -> None:
    stop = asyncio.Event()
    stop.set()
    server = await serve_forever(stop=stop)
    assert capsys.readouterr().out == f'{{"base_url": "{server.base_url}"}}\n'


def test_options_go_through_a_pipe_unharmed() -> None:
    options = ServeOptions(
        auth_secret="s3cret", faults=0.1, kinds=("reset", "http_503"), latency=("lognormal", 0.2, 0.5), rate=10.0
    )
    assert ServeOptions.from_json(options.to_json()) == options
    assert "\n" not in options.to_json()


def test_options_make_the_server() -> None:
    assert ServeOptions(demo=True, faults=0.03, seed=4).plan() == Faults.demo(0.03, 4)
    assert ServeOptions(faults=0.1).plan() == Faults(share=0.1)
    assert ServeOptions(faults=0.1, kinds=("reset",), seed=2).plan() == Faults(share=0.1, kinds=("reset",), seed=2)
    assert ServeOptions().plan() is None
    limited = ServeOptions(rate=5, burst=2, retry_after=3).server()
    assert limited.rate_limit is not None
    refusals = [limited.rate_limit.take(0.0) for _ in range(3)]
    assert [refusal and (refusal.status, refusal.retry_after) for refusal in refusals] == [None, None, (429, 3)]


async def test_https_with_files(tmp_path: Path) -> None:
    from flinks_async.config import Connection

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    options = ServeOptions(cert_file=str(tmp_path / "server.pem"))
    async with options.server() as server:
        assert server.base_url.startswith("https://")
        answer = await fetch(server, "t", connection=Connection(ca_file=tmp_path / "ca.pem"))
        assert answer == server.expected("t")
