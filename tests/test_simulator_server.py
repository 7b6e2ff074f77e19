"""The simulated Flinks on the wire, seen by a bare aiohttp client."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
import trustme
from yarl import URL

from flinks_async.testing import KINDS, Fault, FlinksServer, Latency, RateLimit, expected_answer, expected_body


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[tuple[FlinksServer, aiohttp.ClientSession]]:
    async with FlinksServer(**options) as server, aiohttp.ClientSession() as session:
        session.headers["flinks-auth-key"] = f"Bearer {server.auth_secret}"
        yield server, session


async def get(server: FlinksServer, session: aiohttp.ClientSession, token: str, **options: Any) -> tuple[int, bytes]:
    url = URL(f"{server.base_url}/partneraccess/{token}", encoded=True)
    async with session.get(url, **options) as response:
        return response.status, await response.read()


async def test_the_answer_is_the_expected_one() -> None:
    async with served(size="medium", seed=3) as (server, session):
        status, body = await get(server, session, "token-1")
        assert (status, body) == (200, expected_body("token-1", size="medium", seed=3))
        assert server.expected("token-1") == expected_answer("token-1", size="medium", seed=3)
        assert json.loads(body, parse_float=Decimal) == server.expected("token-1")


async def test_the_token_is_decoded_once() -> None:
    async with served() as (server, session):
        assert (await get(server, session, "a%2Fb%2525%3F"))[1] == expected_body("a/b%25?")
        assert server.stats.per_token == {"a/b%25?": 1}
        assert list(server.stats.paths) == ["/partneraccess/a%2Fb%2525%3F"]


FORMS = {
    "flinks-auth-key": ("flinks-auth-key", "Bearer s3cret"),
    "flinks-auth-key-raw": ("flinks-auth-key", "s3cret"),
    "bearer": ("Authorization", "Bearer s3cret"),
}


@pytest.mark.parametrize("accepted", [None, *FORMS])
async def test_the_forms_of_the_header(accepted: Any) -> None:
    async with FlinksServer(auth_secret="s3cret", auth_scheme=accepted) as server, aiohttp.ClientSession() as session:
        for form, header in FORMS.items():
            status, body = await get(server, session, "t", headers=dict([header]))
            if accepted in (None, form):
                assert status == 200
            else:
                assert status == 401
                assert json.loads(body)["FlinksCode"] == "UNAUTHORIZED"
        assert server.stats.refused_secret == (0 if accepted is None else 2)


async def test_a_missing_and_a_wrong_secret() -> None:
    async with FlinksServer() as server, aiohttp.ClientSession() as session:
        assert (await get(server, session, "t"))[0] == 401
        assert (await get(server, session, "t", headers={"flinks-auth-key": "Bearer other"}))[0] == 401
        assert (await get(server, session, "t", headers={"Authorization": server.auth_secret}))[0] == 401
        assert (server.stats.missing_secret, server.stats.refused_secret) == (1, 2)
        assert not server.stats.per_token, "who may not ask is not counted as asking for a token"


async def test_other_paths_and_other_methods() -> None:
    async with served(path_prefix="/prefix") as (server, session):
        root = server.base_url.removesuffix("/prefix")
        for path in ("/", "/partneraccess/t", "/prefix/partneraccess/", "/prefix/partneraccess/a/b", "/_sim/stats"):
            async with session.get(root + path) as response:
                assert response.status == 404, path
        for method in ("POST", "PUT", "DELETE", "HEAD"):
            async with session.request(method, f"{server.base_url}/partneraccess/t") as response:
                assert (response.status, response.headers["Allow"]) == (405, "GET")
        assert (await get(server, session, "t"))[0] == 200


async def test_known_tokens_can_be_restricted() -> None:
    async with served(tokens={"known"}) as (server, session):
        assert (await get(server, session, "known"))[0] == 200
        status, body = await get(server, session, "other")
        assert (status, json.loads(body)["FlinksCode"]) == (401, "SESSION_NONEXISTENT")
    async with served(tokens=(), unknown_token=Fault.envelope(400, "SESSION_EXPIRED")) as (server, session):
        status, body = await get(server, session, "other")
        assert (status, json.loads(body)["FlinksCode"]) == (400, "SESSION_EXPIRED")


async def test_a_script_is_consumed_in_order() -> None:
    async with served() as (server, session):
        server.script("t", ["http_503", None, Fault.reply(418, {"Message": "teapot"})])
        server.script_all(["bad_request"])
        assert (await get(server, session, "u")) == (400, b"{}")
        assert [(await get(server, session, "t"))[0] for _ in range(4)] == [503, 200, 418, 200]
        assert server.stats.faults == {"http_503": 1, "http_418": 1, "bad_request": 1}
        assert server.stats.statuses == {200: 2, 400: 1, 418: 1, 503: 1}
        assert server.stats.answered == 2


async def test_an_answer_of_your_own() -> None:
    async with served() as (server, session):
        server.set_answer("t", {"GetAccountsDetail": None, "RequestId": "r"})
        server.set_answer("u", b'{"money":12.30}')
        assert json.loads((await get(server, session, "t"))[1]) == {"GetAccountsDetail": None, "RequestId": "r"}
        assert (await get(server, session, "u"))[1] == b'{"money":12.30}'


async def test_the_rate_limit() -> None:
    async with served(rate_limit=RateLimit(rate=0.001, burst=2)) as (server, session):
        statuses = [(await get(server, session, "t"))[0] for _ in range(3)]
        assert (statuses, server.stats.throttled) == ([200, 200, 401], 1)
    async with served(rate_limit=RateLimit.status_429(0.001, retry_after=3)) as (server, session):
        await get(server, session, "t")
        async with session.get(f"{server.base_url}/partneraccess/t") as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "3")


async def test_compression_is_for_those_who_accept_it() -> None:
    async with served(compress=True, size="medium") as (server, session):
        for accepted, encoding in (("gzip, deflate", "gzip"), ("identity", None)):
            url = f"{server.base_url}/partneraccess/t"
            async with session.get(url, headers={"Accept-Encoding": accepted}) as response:
                assert response.headers.get("Content-Encoding") == encoding
                assert await response.read() == expected_body("t", size="medium")


async def test_counts_of_connections_and_of_requests_in_flight() -> None:
    async with served() as (server, session):
        server.script_all(["hang"] * 5)
        waiting = [asyncio.create_task(get(server, session, f"t{number}")) for number in range(5)]
        await server.received(5)
        assert (server.stats.in_flight, server.stats.max_in_flight, server.stats.connections) == (5, 5, 5)
        server.release()
        assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 5
        await get(server, session, "t")
        assert (server.stats.in_flight, server.stats.max_in_flight, server.stats.connections) == (0, 5, 5)
        server.stats.reset()
        assert (server.stats.requests, server.stats.max_in_flight, len(server.stats.paths)) == (0, 0, 0)
        await get(server, session, "t")
        assert server.stats.per_token == {"t": 1}


async def test_a_cancelled_request_ends_on_the_server_too() -> None:
    async with served() as (server, session):
        server.script("t", ["hang"])
        waiting = asyncio.create_task(get(server, session, "t"))
        await server.received(1)
        waiting.cancel()
        async with asyncio.timeout(5):
            while server.stats.in_flight:
                await asyncio.sleep(0)
        assert server.stats.requests == 1


async def test_requests_are_recorded_on_demand() -> None:
    async with served(record=2) as (server, session):
        for token in ("a", "b", "c"):
            await get(server, session, token, headers={"X-Trace": token})
        assert [request.header("x-trace") for request in server.requests] == ["b", "c"]
        assert server.requests[0].header("FLINKS-AUTH-KEY") == f"Bearer {server.auth_secret}"
        assert server.requests[0].header("x-other") is None
    async with served() as (server, session):
        await get(server, session, "a")
        assert not server.requests


async def test_latency_is_waited_for() -> None:
    async with served(latency=Latency.fixed(0.05)) as (server, session):
        loop = asyncio.get_running_loop()
        start = loop.time()
        await get(server, session, "t")
        assert loop.time() - start >= 0.04


async def test_it_starts_again_on_the_same_port_and_stops_twice() -> None:
    server = FlinksServer()
    with pytest.raises(RuntimeError, match="no address before start"):
        _ = server.base_url
    await server.start()
    await server.start()
    url = server.base_url
    await server.stop()
    await server.stop()
    async with server, aiohttp.ClientSession(headers={"flinks-auth-key": server.auth_secret}) as session:
        assert server.base_url == url
        assert (await get(server, session, "t"))[0] == 200


async def test_it_stops_while_requests_hang() -> None:
    async with served() as (server, session):
        server.script("t", ["hang"])
        waiting = asyncio.create_task(get(server, session, "t"))
        await server.received(1)
        async with asyncio.timeout(5):
            await server.stop()
            with pytest.raises(aiohttp.ClientError):
                await waiting


async def test_https() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    async with served(ssl_context=context) as (server, session):
        assert server.base_url.startswith("https://127.0.0.1:")
        assert (await get(server, session, "t", ssl=trust))[0] == 200


@pytest.mark.parametrize(
    "wrong", [{"size": "huge"}, {"shape": "tuple"}, {"auth_scheme": "basic"}, {"unknown_token": "x"}]
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        FlinksServer(**wrong)


def test_every_server_has_a_secret_of_its_own() -> None:
    assert FlinksServer().auth_secret != FlinksServer().auth_secret


def test_every_kind_of_fault_has_a_name_of_its_own() -> None:
    assert all(name == fault.name for name, fault in KINDS.items())
