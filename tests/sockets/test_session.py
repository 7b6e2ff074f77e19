"""The session manager: one aiohttp session per event loop, owned or borrowed, counted, closed."""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
import sys
import time
from typing import Any

import aiohttp
import pytest

from flinks_async import (
    ClientClosedError,
    ConfigError,
    ConnectError,
    Connection,
    Retry,
    Timeouts,
)
from flinks_async.transport import http1
from flinks_async.transport.http1 import ConnectionPool
from tests.raw_server import Hang, RawServer, ReadHead, Respond, Send
from tests.support import turns, until

from .support import BODY, HEALTHY, OK, assert_clean, client_for, healthy, in_thread, use_sessions


def test_a_client_made_outside_a_loop_works_in_two_loops_one_after_the_other() -> None:
    client = client_for("http://127.0.0.1:1")  # nothing is opened before it is needed
    assert client.stats().connections.created == 0

    async def main() -> int:
        async with healthy() as server:
            derived = client.with_options(base_url=server.base_url)
            await derived.partner_access("first")
            await derived.partner_access("second")
            await assert_clean(derived)
            return client.stats().connections.open

    assert asyncio.run(main()) == 1
    assert asyncio.run(main()) == 1  # those of the first loop are gone
    asyncio.run(client.close())
    stats = client.stats().connections
    assert (stats.created, stats.reused, stats.open, stats.idle) == (2, 2, 0, 0)


@pytest.mark.parametrize("way", ["pool", "session"])
async def test_first_calls_together_make_one_pool_or_session(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    cls: Any = ConnectionPool
    if way == "session":
        cls = aiohttp.ClientSession
        use_sessions(monkeypatch)
    real = cls.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        real(self, *args, **kwargs)

    monkeypatch.setattr(cls, "__init__", counted)
    async with healthy() as server, client_for(server) as client:
        await asyncio.gather(*(client.partner_access(f"t{n}") for n in range(10)))
        assert len(made) == 1


async def test_connections_are_spread_over_the_addresses_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.3")
    names.answer.set()
    tried: list[str] = []

    async def refuse(addresses: list[Any], **_: Any) -> Any:
        tried.append(addresses[0][4][0])
        raise ConnectionRefusedError

    monkeypatch.setattr(http1, "start_connection", refuse)
    options: dict[str, Any] = {"allow_http": True, "retry": Retry(attempts=1)}
    async with client_for("http://flinks.test", **options) as client:
        for _ in range(2):
            with pytest.raises(ConnectError):
                await client.partner_access("t")
    assert tried[:3] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]  # after a failure, the next one
    assert tried[3] == "127.0.0.2"


async def test_the_numbers_of_the_pool() -> None:
    release = asyncio.Event()

    async def held(connection: Any) -> None:
        await connection.read_head()
        await release.wait()
        await OK(connection)

    async with RawServer([held, *HEALTHY]) as server, client_for(server) as client:

        def numbers() -> tuple[int, ...]:
            stats = client.stats().connections
            return stats.open, stats.idle, stats.created, stats.reused

        assert numbers() == (0, 0, 0, 0)
        calls = [asyncio.create_task(client.partner_access(f"t{n}")) for n in range(3)]
        await until(lambda: server.requests >= 3)
        assert numbers() == (3, 0, 3, 0)
        assert client.stats().requests_in_flight == client.stats().calls_in_flight == 3
        release.set()
        await asyncio.gather(*calls)
        assert numbers() == (3, 3, 3, 0)
        await client.partner_access("t")
        assert numbers() == (3, 3, 3, 1)
    assert numbers() == (0, 0, 3, 1)


def test_a_thread_with_a_loop_of_its_own_has_connections_of_its_own() -> None:
    async def main() -> None:
        async with healthy() as server, client_for(server) as client:
            await client.partner_access("here")

            async def there() -> str | None:
                answer = (await client.partner_access("there")).request_id
                await client._pool.close()
                return answer

            assert await asyncio.to_thread(in_thread, there) == "r-1"
            await client.partner_access("here again")
            assert server.connections == 2
            await assert_clean(client)

    asyncio.run(main())


def test_loops_do_not_read_into_the_same_buffer() -> None:
    """Loops of several threads read at the same time."""

    async def main() -> Any:
        async with healthy() as server, client_for(server) as client:
            await client.partner_access("t")
            assert client._pool.sessions is not None
            ((connection,),) = [pool.idle for pool in client._pool.sessions.pools.values()]
            return connection.get_buffer(-1).obj

    assert asyncio.run(main()) is not asyncio.run(main())


class Names:
    """Replaces the running loop's `getaddrinfo` by one that answers when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
        self.asked = 0
        self.answer = asyncio.Event()
        self._addresses = addresses or ("127.0.0.1",)
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self.look_up)

    async def look_up(self, host: Any, port: int, **_: Any) -> list[Any]:
        self.asked += 1
        await self.answer.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self._addresses]


@pytest.mark.parametrize(("dns_cache", "lookups"), [(60.0, 1), (0.0, 2)])
async def test_a_name_is_looked_up_once_for_all_who_wait(
    dns_cache: float, lookups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(monkeypatch)
    async with healthy() as server:
        options: dict[str, Any] = {"base_url": f"http://flinks.test:{server.port}", "allow_http": True}
        async with client_for(server, connection=Connection(dns_cache=dns_cache), **options) as client:
            first, *others = (asyncio.create_task(client.partner_access(f"t{n}")) for n in range(4))
            await turns()
            first.cancel()  # the others still wait for the lookup that it began
            await turns()
            names.answer.set()
            await asyncio.gather(*others)
            assert names.asked == 1
            await asyncio.gather(*(client.partner_access(f"t{n}") for n in range(4)))
            assert names.asked == lookups


class TestABorrowedSession:
    async def test_it_is_used_and_not_closed(self) -> None:
        async with healthy() as server, aiohttp.ClientSession(headers={"X-Theirs": "1"}) as session:
            async with client_for(server, session=session) as client:
                await client.partner_access("t")
            assert not session.closed
            assert b"X-Theirs: 1" in server.heads[0]
            assert client.stats().connections.open == 0

    async def test_of_another_loop_it_is_refused(self) -> None:
        async with healthy() as server, aiohttp.ClientSession() as session:
            client = client_for(server, session=session)

            async def there() -> None:
                await client.partner_access("t")

            outcome = await asyncio.to_thread(in_thread, there)
            assert isinstance(outcome, ConfigError)
            assert "event loop" in str(outcome)
            await client.close()

    async def test_closed_it_is_refused(self) -> None:
        async with healthy() as server:
            session = aiohttp.ClientSession()
            async with client_for(server, session=session) as client:
                await session.close()
                with pytest.raises(ClientClosedError):
                    await client.partner_access("t")
            assert server.connections == 0

    async def test_its_redirects_retries_and_middlewares_are_left_out(self) -> None:
        seen: list[str] = []

        async def theirs(request: Any, handler: Any) -> Any:
            seen.append(str(request.url))
            return await handler(request)

        away = Respond(302, b"", {"Location": "/elsewhere"})
        async with RawServer([ReadHead(), away]) as server, aiohttp.ClientSession(middlewares=(theirs,)) as session:
            async with client_for(server, session=session) as client:
                response = await client.partner_access_raw("t")
                assert (response.status, server.requests, seen) == (302, 1, [])

    async def test_closed_while_a_request_is_under_way(self) -> None:
        async with RawServer([ReadHead(), Hang()]) as server:
            session = aiohttp.ClientSession()
            async with client_for(server, session=session) as client:
                call = asyncio.create_task(client.partner_access("t"))
                await until(lambda: server.requests)
                await session.close()
                (outcome,) = await asyncio.gather(call, return_exceptions=True)
                from flinks_async import FlinksError

                assert isinstance(outcome, FlinksError)

    async def test_raise_for_status_of_the_session_does_not_matter(self) -> None:
        async with RawServer([ReadHead(), Respond(404)]) as server:
            async with aiohttp.ClientSession(raise_for_status=True) as session:
                async with client_for(server, session=session) as client:
                    assert (await client.partner_access_raw("t")).status == 404

    async def test_a_total_timeout_of_the_session_does_not_matter(self) -> None:
        async with RawServer(
            [ReadHead(), Send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY)), _pause, Send(BODY)]
        ) as server:
            timeout = aiohttp.ClientTimeout(total=0.01)
            async with aiohttp.ClientSession(timeout=timeout) as session:
                async with client_for(server, session=session, timeouts=Timeouts()) as client:
                    assert (await client.partner_access_raw("t")).body == BODY


async def _pause(connection: Any) -> None:
    await asyncio.sleep(0.05)


def _forked(child: Any) -> int:
    """The exit code of a forked child that runs a coroutine: 0 if that is true. -1 if it takes too long."""
    pid = os.fork()
    if pid:
        for _ in range(6000):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        return -1
    code = 1
    try:
        code = 0 if asyncio.run(child()) else 2
    finally:
        os._exit(code)


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    "closes",
    [
        False,
        True,
    ],
    ids=["child", "child that closes"],
)
def test_a_forked_child_has_connections_of_its_own(closes: bool) -> None:
    async def main() -> None:
        async with healthy() as server, client_for(server) as client:
            await client.partner_access("parent")

            async def child() -> bool:
                answer = await client.partner_access("child")
                opened = client.stats().connections.open
                if closes:
                    await client.close()
                return answer.request_id == "r-1" and opened == 1

            assert await asyncio.to_thread(_forked, child) == 0
            await client.partner_access("again")
            assert [head.split()[1][-6:] for head in server.heads] == [b"parent", b"/child", b"/again"]
            assert server.connections == 2
            await assert_clean(client)

    asyncio.run(main())


async def test_a_call_may_be_closed_from_another_context() -> None:
    async with RawServer([ReadHead(), Hang()]) as server, client_for(server, retry=Retry(attempts=1)) as client:
        call = client.partner_access("token-1")
        context = contextvars.copy_context()
        step: Any = context.run(call.send, None)
        while not server.requests:
            await asyncio.sleep(0.01)
            if step is not None and step.done():
                step = context.run(call.send, None)
        call.close()
        assert client.stats().requests_in_flight == 0
        assert client.stats().calls_in_flight == 0
