"""Closing a client: what still runs ends, nothing is left open, and what was never closed warns."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import warnings
from typing import Any

import pytest

from flinks_async import (
    ClientClosedError,
    FlinksClient,
    Handler,
    Request,
    Response,
)
from tests.raw_server import Hang, RawServer, ReadHead, Respond, Send
from tests.support import turns, until

from .support import OK, client_for, healthy, in_thread


def test_a_client_left_open_by_its_loop_can_still_be_closed() -> None:
    client = client_for("http://127.0.0.1:1")

    async def main() -> None:
        async with healthy() as server:
            await client.with_options(base_url=server.base_url).partner_access("t")

    asyncio.run(main())
    asyncio.run(client.close())
    asyncio.run(client.close())
    assert client.closed


async def test_closing_twice_and_at_once_is_fine() -> None:
    async with healthy() as server:
        client = client_for(server)
        await client.partner_access("t")
        await asyncio.gather(client.close(), client.close())
        await client.close()
        assert client.stats().connections.open == 0


async def test_a_closed_client_says_so() -> None:
    async with healthy() as server:
        client = client_for(server)
        await client.close()
        for use in (client.partner_access, client.partner_access_raw):
            with pytest.raises(ClientClosedError):
                await use("t")
        with pytest.raises(ClientClosedError):
            await client.__aenter__()
        with pytest.raises(ClientClosedError):
            client.with_options()
        with pytest.raises(ClientClosedError):
            [outcome async for outcome in client.partner_access_many(["t"])]
        assert server.connections == 0


class Told:
    """Answers when the event is set."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    async def __call__(self, connection: Any) -> None:
        await self._event.wait()
        await OK(connection)


async def test_closing_lets_calls_in_flight_end() -> None:
    answer = asyncio.Event()
    async with RawServer([ReadHead(), Told(answer)]) as server:
        client = client_for(server)
        call = asyncio.create_task(client.partner_access("t"))
        await until(lambda: server.requests)
        closing = asyncio.create_task(client.close(grace=10))
        await turns()
        with pytest.raises(ClientClosedError):
            await client.partner_access("too late")
        assert not closing.done()
        answer.set()
        assert (await call).request_id == "r-1"
        await closing
        assert client.stats().connections.open == 0


@pytest.mark.parametrize("where", ["head", "body"])
async def test_after_the_grace_calls_end_with_client_closed(where: str) -> None:
    part = (Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),) if where == "body" else ()
    async with RawServer([ReadHead(), *part, Hang()]) as server:
        client = client_for(server)
        calls = [asyncio.create_task(client.partner_access(f"t{n}")) for n in range(3)]
        await until(lambda: server.requests >= 3)
        await client.close(grace=0.02)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ClientClosedError] * 3
        assert not any(call.cancelled() or call.cancelling() for call in calls)
        assert client.stats().connections.open == 0
        assert server.requests == 3  # nothing was tried again


@pytest.mark.parametrize("derived", [False, True], ids=["the same", "its parent"])
async def test_closing_again_with_a_shorter_grace_ends_what_still_runs(derived: bool) -> None:
    async with RawServer([ReadHead(), Hang()]) as server:
        parent = client_for(server)
        client = parent.with_options() if derived else parent
        call = asyncio.create_task(client.partner_access("t"))
        await until(lambda: server.requests)
        patient = [asyncio.create_task(client.close(grace=50)) for _ in range(2)]
        await turns()
        async with asyncio.timeout(5):
            await parent.close(grace=0)
            assert call.done()
            with pytest.raises(ClientClosedError, match="in flight"):
                await call
            await asyncio.gather(*patient)
        assert (server.requests, server.connections) == (1, 1)
        assert parent.stats().connections.open == 0


async def test_all_who_close_return_when_the_last_call_has_ended() -> None:
    answer = asyncio.Event()
    async with RawServer([ReadHead(), Told(answer)]) as server:
        client = client_for(server)
        call = asyncio.create_task(client.partner_access("t"))
        await until(lambda: server.requests)
        closings = [asyncio.create_task(client.close(grace=50)) for _ in range(3)]
        await turns()
        answer.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*closings)
        assert (await call).request_id == "r-1"


async def test_a_middleware_that_goes_on_after_closing_gets_no_new_connection() -> None:
    async def stubborn(request: Request, call_next: Handler) -> Response:
        with contextlib.suppress(asyncio.CancelledError):
            return await call_next(request)
        assert client._pool.sessions is not None
        while client._pool.sessions.pools:
            await asyncio.sleep(0)
        return await call_next(request)

    async with RawServer([ReadHead(), Hang()]) as server:
        client = client_for(server, middleware=[stubborn])
        call = asyncio.create_task(client.partner_access("t"))
        await until(lambda: server.requests)
        await client.close(grace=0)
        with pytest.raises(ClientClosedError):
            await call
        assert (server.requests, server.connections) == (1, 1)


def test_a_loop_that_stood_still_while_the_client_was_closed_gets_no_connection() -> None:
    async def not_yet(request: Request, call_next: Handler) -> Response:
        await told.wait()
        return await call_next(request)

    client, told = client_for("http://127.0.0.1:1", middleware=[not_yet]), asyncio.Event()
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        call = loop.create_task(client.partner_access("t"))
        runner.run(turns())
        in_thread(client.close)
        told.set()
        with pytest.raises(ClientClosedError):
            loop.run_until_complete(call)


async def test_closing_ends_calls_that_wait_for_a_place_or_a_retry() -> None:
    from flinks_async import Limits, Retry
    from flinks_async.clock import SystemClock

    async with RawServer([ReadHead(), Respond(429, b"", {"Retry-After": "50"})]) as server:
        client = client_for(server, clock=SystemClock(), retry=Retry(), limits=Limits(concurrency=1))
        calls = [asyncio.create_task(client.partner_access(f"t{n}")) for n in range(3)]
        await until(lambda: server.requests)
        await turns()
        await client.close(grace=0)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ClientClosedError] * 3


async def test_a_derived_client_closes_only_itself() -> None:
    async with healthy() as server:
        parent = client_for(server)
        child = parent.with_options(auth_scheme="bearer")
        sibling = parent.with_options()
        await child.partner_access("t")
        await child.close()
        with pytest.raises(ClientClosedError):
            await child.partner_access("t")
        await sibling.partner_access("t")
        await parent.partner_access("t")
        assert server.connections == 1  # one pool
        await parent.close()
        with pytest.raises(ClientClosedError):
            await sibling.partner_access("t")
        assert parent.stats().connections.open == 0


@pytest.mark.parametrize(
    "ends",
    [
        False,
        True,
    ],
    ids=["the loop goes on", "the loop ends with its call"],
)
def test_closing_ends_what_runs_in_the_loop_of_another_thread(ends: bool) -> None:
    outcomes: list[Any] = []

    async def main() -> None:
        closed = threading.Event()
        async with RawServer([ReadHead(), Hang()]) as server:
            client = client_for(server)

            async def there() -> None:
                try:
                    await client.partner_access("t")
                except BaseException as error:
                    outcomes.append(error)
                await until(lambda: ends or closed.is_set())

            thread = asyncio.create_task(asyncio.to_thread(in_thread, there))
            await until(lambda: server.requests)
            try:
                await client.close(grace=0.02)
            finally:
                closed.set()
                await thread
            await until(lambda: not server.open)
            assert client.stats().connections.open == 0

    asyncio.run(main())
    assert [type(outcome) for outcome in outcomes] == [ClientClosedError]


async def test_a_client_that_is_never_closed_warns() -> None:
    async with healthy() as server:
        client = client_for(server)
        await client.partner_access("t")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del client
            for _ in range(3):
                gc.collect()
                await turns()
        assert any(issubclass(warning.category, ResourceWarning) for warning in caught)
        # `proxy_auth=None` is in the text of aiohttp's own warning.
        texts = [str(warning.message).lower().replace("proxy_auth=none", "") for warning in caught]
        assert not any("auth" in text for text in texts)


async def test_a_client_that_was_never_used_needs_no_closing() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FlinksClient(auth_secret="s")
        gc.collect()
    assert [str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning)] == []
