"""Kept-alive connections: what a server sends unasked is never taken for the answer to the next request."""

from __future__ import annotations

import asyncio
import queue
import select
import threading
from typing import Any

import pytest
from aiohttp import ClientSession

from flinks_async import Connection, FlinksClient
from flinks_async.messages import Handler, Request, Response
from flinks_async.testing import FakeClock
from tests.raw_server import Close, RawConnection, RawServer, ReadHead, Repeat, Respond, Send

from .support import HEALTHY, OK, Authority, assert_clean, client_for, use_sessions

FOREIGN = Respond(200, b'{"GetAccountsDetail":[],"RequestId":"of-somebody-else"}').message
UNASKED = {
    "a whole answer": FOREIGN,
    "two answers": FOREIGN * 2,
    "an answer without its body": FOREIGN[:-20],
    "a 408 before closing": Respond(408, b"{}", {"Connection": "close"}).message,
    "half a head": FOREIGN[:30],
    "a line break": b"\r\n",
    "garbage": b"\x00\x01\x02 not HTTP\r\n\r\n",
    "100 Continue": b"HTTP/1.1 100 Continue\r\n\r\n",
}


class Unasked:
    """Answers once; then sends unsolicited data on demand."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.now = asyncio.Event()

    async def __call__(self, connection: RawConnection) -> None:
        await ReadHead()(connection)
        await OK(connection)
        await self.now.wait()
        await connection.send(self.data)
        await Repeat(ReadHead(), OK)(connection)


async def _arrived() -> None:
    for _ in range(10):
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("way", ["own connection", "session", "borrowed session"])
@pytest.mark.parametrize("data", UNASKED.values(), ids=UNASKED.keys())
async def test_data_on_an_idle_connection_never_becomes_an_answer(
    data: bytes, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "session":
        use_sessions(monkeypatch)
    unasked = Unasked(data)
    async with RawServer([unasked], HEALTHY) as server, ClientSession() as session:
        async with client_for(server, session=session if way == "borrowed session" else None) as client:
            await client.partner_access("first")
            unasked.now.set()
            await _arrived()
            for token in ("second", "third"):
                answer = await client.partner_access(token)
                assert answer.request_id == "r-1"
            if way != "borrowed session":
                await assert_clean(client)


async def test_a_connection_with_unasked_data_is_given_up_before_anything_is_sent_on_it() -> None:
    unasked = Unasked(FOREIGN)
    async with RawServer([unasked], HEALTHY) as server, client_for(server) as client:
        await client.partner_access("first")
        unasked.now.set()
        await _arrived()
        answer = await client.partner_access("second")
        assert answer.meta.attempts == 1
        assert (server.requests, server.connections) == (2, 2)
        assert client.stats().connections.created == 2


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("loop_is", ["asyncio", "uvloop"])
@pytest.mark.parametrize("unasked", [FOREIGN, b""], ids=["an answer", "an end"])
def test_what_came_while_the_loop_was_busy_is_no_answer_either(
    unasked: bytes, loop_is: str, scheme: str, authority: Authority
) -> None:
    """It lies in the system's buffer when the next request is about to be sent: the event loop has not seen it."""
    uvloop = pytest.importorskip("uvloop") if loop_is == "uvloop" else None
    port = queue.SimpleQueue[int]()
    speak, done = threading.Event(), threading.Event()

    async def serve() -> None:
        class Script:
            async def __call__(self, connection: RawConnection) -> None:
                await ReadHead()(connection)
                await OK(connection)
                await asyncio.to_thread(speak.wait, 5)
                if unasked:
                    await connection.send(unasked)
                await (Repeat(ReadHead(), OK) if unasked else Close())(connection)

        context = None if scheme == "http" else authority.context()
        async with RawServer([Script()], HEALTHY, ssl_context=context) as server:
            port.put(server.port)
            await asyncio.to_thread(done.wait, 20)

    async def fetch() -> None:
        try:
            url = f"{scheme}://127.0.0.1:{port.get(timeout=5)}"
            connection = Connection(ca_file=authority.file)
            async with FlinksClient(auth_secret="s", base_url=url, connection=connection) as client:
                await client.partner_access("first")
                assert client._pool.sessions is not None
                ((idle,),) = [pool.idle for pool in client._pool.sessions.pools.values()]
                assert idle.transport is not None
                speak.set()
                select.select([idle.transport.get_extra_info("socket")], [], [], 20)  # the loop does not turn meanwhile
                answer = await client.partner_access("second")
                assert (answer.request_id, answer.meta.attempts) == ("r-1", 1)
                assert client.stats().connections.created == 2
        finally:
            done.set()

    serving = threading.Thread(target=asyncio.run, args=(serve(),))
    serving.start()
    with asyncio.Runner(loop_factory=None if uvloop is None else uvloop.new_event_loop) as runner:
        runner.run(fetch())
    serving.join()


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_a_connection_is_kept_after_an_error_that_was_whole(status: int) -> None:
    turns: list[Any] = [ReadHead(), Respond(status, b"{}"), Repeat(ReadHead(), OK)]
    async with RawServer(turns) as server, client_for(server, clock=FakeClock(random=0.0)) as client:
        response = await client.with_options().partner_access_raw("first")
        assert response.status in (status, 200)
        await client.partner_access("second")
        assert server.connections == 1


async def test_a_keep_alive_that_has_run_out_makes_a_new_connection() -> None:
    async with RawServer(HEALTHY) as server:
        async with client_for(server, connection=Connection(keepalive=0.0)) as client:
            await client.partner_access("first")
            await client.partner_access("second")
            assert server.connections == 2


async def test_idle_connections_are_closed_when_their_time_is_over() -> None:
    async with RawServer(HEALTHY, HEALTHY) as server:
        async with client_for(server, connection=Connection(keepalive=0.05)) as client:
            await asyncio.gather(client.partner_access("one"), client.partner_access("other"))
            assert (client.stats().connections.idle, server.connections) == (2, 2)
            for _ in range(500):
                if client.stats().connections.open == 0:
                    break
                await asyncio.sleep(0.002)
            assert client.stats().connections.open == 0
            await assert_clean(client)


async def test_the_connection_that_was_used_last_is_used_first() -> None:
    scripts = [[Repeat(ReadHead(), Respond(200, OK.body.replace(b"r-1", name)))] for name in (b"first", b"second")]
    async with RawServer(*scripts) as server, client_for(server) as client:
        await asyncio.gather(client.partner_access("one"), client.partner_access("other"))
        used = [(await client.partner_access("again")).request_id for _ in range(4)]
        assert (server.connections, len(set(used))) == (2, 1)


async def test_requests_with_headers_of_their_own_share_the_connections() -> None:
    async with RawServer(HEALTHY) as server, client_for(server) as client:
        await client.partner_access("without")
        await client.partner_access("with", headers={"X-Own": "1"})
        await client.partner_access("without again")
        await client.partner_access("with again", headers={"X-Own": "1"})
        assert (server.connections, client.stats().connections.created) == (1, 1)
        await assert_clean(client)


@pytest.mark.parametrize("way", ["own connection", "session"])
async def test_an_attempt_on_a_fresh_connection_leaves_the_idle_ones_alone(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = []
    if way == "session":
        use_sessions(monkeypatch)

    async def fresh(request: Request, call_next: Handler) -> Response:
        request.call.fresh = bool(wanted)
        return await call_next(request)

    async with RawServer(*[HEALTHY] * 3) as server, client_for(server, attempt_middleware=[fresh]) as client:
        await asyncio.gather(*(client.partner_access(token) for token in ("one", "other")))
        assert server.connections == 2
        wanted.append(1)
        await client.partner_access("on a new one")
        assert (server.connections, client.stats().connections.idle) == (3, 3)
        wanted.clear()
        await client.partner_access("on an idle one")
        assert server.connections == 3
        await assert_clean(client)


async def test_cookies_are_not_kept() -> None:
    cookie = Send(Respond(200, OK.body, [("Set-Cookie", "id=1; Path=/"), ("Set-Cookie", "b=2")]).message)
    async with RawServer([Repeat(ReadHead(), cookie)]) as server, client_for(server) as client:
        await client.partner_access("first")
        await client.partner_access("second")
        assert b"cookie" not in b"".join(server.heads).lower()
