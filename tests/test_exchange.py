"""Requests on connections of our own, and by aiohttp's session while a mock replaces its methods."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any
from unittest.mock import create_autospec

import aiohttp
import pytest

from flinks_async import FlinksClient, ReadError, Retry, Secret
from flinks_async.testing import KINDS, FlinksServer

ONE = Retry(attempts=1)


async def test_both_paths_send_and_receive_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FlinksServer(record=10) as server:
        async with FlinksClient(
            auth_secret=server.auth_secret, base_url=server.base_url, headers={"X-Extra": "1"}, app_name="acme/1"
        ) as flinks:
            short = await flinks.partner_access("a/b c")
            monkeypatch.setattr("flinks_async.transport.aiohttp.session_is_untouched", lambda: False)
            long = await flinks.partner_access("a/b c")
            assert flinks.stats().connections.created == 2
        one, other = server.requests
    assert short == long
    assert one.path == other.path
    assert sorted(one.headers) == sorted(other.headers)


@pytest.mark.parametrize("way", ["own connection", "session", "borrowed session"])
async def test_headers_of_one_call_reach_the_server_and_replace_those_of_the_client(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "session":
        monkeypatch.setattr("flinks_async.transport.aiohttp.session_is_untouched", lambda: False)
    async with FlinksServer(record=10) as server, aiohttp.ClientSession() as session:
        server.script("t", [KINDS["http_503"]])
        async with FlinksClient(
            auth_secret=server.auth_secret,
            base_url=server.base_url,
            headers={"X-Own": "client", "X-Other": "client"},
            session=session if way == "borrowed session" else None,
            retry=Retry(base=0.001),
        ) as flinks:
            await flinks.partner_access("t", headers={"x-own": "call", "User-Agent": "mine"})
            async for outcome in flinks.partner_access_many(["u"], headers={"X-Own": Secret("many")}):
                outcome.unwrap()
            await flinks.partner_access_raw("v", headers={"X-Own": "raw"})
            await flinks.partner_access("w")
        requests = server.requests
    sent = [[value for name, value in request.headers if name.lower() == "x-own"] for request in requests]
    assert sent == [["call"], ["call"], ["many"], ["raw"], ["client"]]  # the first call was retried
    headers = [{name.lower(): value for name, value in request.headers} for request in requests]
    assert {each["x-other"] for each in headers} == {"client"}
    assert [each["user-agent"] == "mine" for each in headers] == [True, True, False, False, False]
    assert {each["flinks-auth-key"] for each in headers} == {f"Bearer {server.auth_secret}"}


async def test_no_session_is_used_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*args: object, **options: object) -> None:
        raise AssertionError("went through ClientSession")

    monkeypatch.setattr("flinks_async.transport.aiohttp.AiohttpTransport._send_by_session", never)
    async with FlinksServer() as server:
        async with FlinksClient(auth_secret=server.auth_secret, base_url=server.base_url) as flinks:
            assert (await flinks.partner_access("t")).meta.attempts == 1


@pytest.mark.parametrize("method", ["_request", "get", "request"])
@pytest.mark.parametrize("kind", ["function", "method of a mock", "wrapt"])
async def test_a_replaced_method_of_a_session_is_always_used(
    method: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FlinksServer(record=10) as server:
        async with FlinksClient(auth_secret=server.auth_secret, base_url=server.base_url, retry=ONE) as flinks:
            await flinks.partner_access("before")
            assert len(server.requests) == 1
            used = []

            async def fake(*args: object, **options: object) -> None:
                used.append(args)
                raise aiohttp.ClientPayloadError

            own: Any = getattr(aiohttp.ClientSession, method)
            replacement: Any = functools.wraps(own)(fake)  # copies name and module, as vcrpy does
            if kind == "method of a mock":
                replacement = create_autospec(own, side_effect=fake)  # as aioresponses does
            if kind == "wrapt":
                replacement = pytest.importorskip("wrapt").FunctionWrapper(own, lambda *_: fake())
            monkeypatch.setattr(aiohttp.ClientSession, method, replacement)
            with pytest.raises(ReadError):
                await flinks.partner_access("during")
            assert len(used) == 1
            monkeypatch.undo()
            await flinks.partner_access("after")
            assert len(server.requests) == 2


IMPORTED_INSIDE = """
import asyncio, sys
import aiohttp

def mocked():
    if sys.argv[1] == "aioresponses":
        from aioresponses import aioresponses
        return aioresponses()
    if sys.argv[1] == "vcr":
        import vcr
        return vcr.VCR(record_mode="none").use_cassette("/nonexistent/cassette.yaml")
    from unittest.mock import patch
    return patch("aiohttp.ClientSession.get", autospec=True, side_effect=aiohttp.ClientError)

async def main():
    with mocked():
        from flinks_async import FlinksClient, FlinksError
        from flinks_async.testing import FlinksServer
        async with FlinksServer(record=10) as server, FlinksClient(
            auth_secret=server.auth_secret, base_url=server.base_url, retry={"attempts": 1}
        ) as flinks:
            try:
                await flinks.partner_access("t")
            except FlinksError:
                pass
            print(len(server.requests))

asyncio.run(main())
"""


@pytest.mark.parametrize("tool", ["aioresponses", "vcr", "unittest.mock"])
def test_a_mock_is_used_even_if_the_package_is_imported_inside(tool: str) -> None:
    pytest.importorskip(tool)
    run = subprocess.run(
        [sys.executable, "-c", IMPORTED_INSIDE, tool], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "0\n"


FROZEN = """
import sys, time
if sys.argv[2] == "before":
    import flinks_async.clock
if sys.argv[1] == "freezegun":
    import freezegun
    frozen = freezegun.freeze_time("2001-01-01")
elif sys.argv[1] == "time-machine":
    import time_machine
    frozen = time_machine.travel(978307200, tick=False)
else:
    from unittest.mock import patch
    frozen = patch.multiple("time", time=lambda: 978307200.0, monotonic=lambda: 5.0)
with frozen:
    from flinks_async.clock import SystemClock
    clock = SystemClock()
    inside = clock.time()
assert inside == 978307200.0, inside
assert abs(clock.time() - time.time()) < 5
assert abs(clock.now() - time.monotonic()) < 5
"""


@pytest.mark.parametrize("imported", ["before", "inside"])
@pytest.mark.parametrize("tool", ["freezegun", "time-machine", "unittest.mock"])
def test_a_test_stops_the_clock_and_it_runs_again_afterwards(tool: str, imported: str) -> None:
    if tool != "unittest.mock":
        pytest.importorskip(tool.replace("-", "_"))
    run = subprocess.run([sys.executable, "-c", FROZEN, tool, imported], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
