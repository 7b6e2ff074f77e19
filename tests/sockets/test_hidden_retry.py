"""aiohttp sends a GET a second time by itself when a connection breaks. Ours counts every request on the wire."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flinks_async import FlinksClient, ReadError, Retry
from tests.raw_server import Close, RawServer, ReadHead, Repeat, Reset
from tests.support import until

from .support import HEALTHY, OK, assert_clean, client_for, use_sessions

ONCE = (ReadHead(), OK, ReadHead(), Close())
"""Answers the first request of each connection; reads the second one and closes."""


async def _no_guard(request: Any, handler: Any) -> Any:
    return await handler(request)


def _without_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    # Requests through aiohttp's ClientSession, as with a borrowed session; ours by itself repeats nothing.
    use_sessions(monkeypatch)
    monkeypatch.setattr("flinks_async.transport.aiohttp._one_request", _no_guard)


async def _fetch(client: FlinksClient, number: int) -> int:
    """Fetches so many tokens, one after the other. Returns the attempts that the answers tell of."""
    return sum([(await client.partner_access(f"token-{n}")).meta.attempts for n in range(number)])


async def test_dropped_reused_connections_are_no_error_and_every_request_is_counted() -> None:
    async with RawServer(ONCE) as server, client_for(server) as client:
        told = await _fetch(client, 20)
        assert server.requests == client.stats().requests == told
        assert server.requests > 20  # some requests did meet a dead connection
        await assert_clean(client)


async def test_without_the_guard_the_server_counts_more_than_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_guard(monkeypatch)
    async with RawServer(ONCE) as server, client_for(server) as client:
        told = await _fetch(client, 20)
        assert client.stats().requests == told
        assert server.requests > told


@pytest.mark.parametrize("break_it", [Close(), Reset()], ids=["close", "reset"])
async def test_many_at_once_are_counted_too(break_it: Any) -> None:
    async with RawServer((ReadHead(), OK, ReadHead(), break_it)) as server, client_for(server) as client:
        for _ in range(3):
            answers = await asyncio.gather(*(client.partner_access(f"token-{n}") for n in range(15)))
            await assert_clean(client)
        assert server.requests == client.stats().requests
        assert all(answer.meta.attempts <= 2 for answer in answers)


async def test_a_dead_connection_is_free_of_the_attempts_and_its_successor_is_a_new_connection() -> None:
    async with RawServer(ONCE) as server, client_for(server, retry=Retry(attempts=1)) as client:
        await client.partner_access("first")
        answer = await client.partner_access("second")
        assert answer.meta.attempts == 2
        assert (server.requests, server.connections) == (3, 2)


async def test_a_break_on_a_new_connection_is_an_ordinary_failure() -> None:
    async with RawServer((ReadHead(), Close())) as server, client_for(server) as client:
        with pytest.raises(ReadError) as caught:
            await client.partner_access("token")
        assert caught.value.attempts == server.requests == client.stats().requests == 3


async def test_the_extra_attempt_that_breaks_as_well_counts() -> None:
    drop = (ReadHead(), Close())
    async with RawServer(ONCE, drop) as server, client_for(server, retry=Retry(attempts=1)) as client:
        await client.partner_access("first")
        with pytest.raises(ReadError) as caught:
            await client.partner_access("second")
        assert caught.value.attempts == 2
        assert server.requests == client.stats().requests == 3


async def test_a_connection_that_the_server_closed_while_idle_is_not_even_tried() -> None:
    async with RawServer((ReadHead(), OK, Close()), HEALTHY) as server, client_for(server) as client:
        await client.partner_access("first")
        await until(lambda: not server.open)
        await asyncio.sleep(0.01)
        answer = await client.partner_access("second")
        assert answer.meta.attempts <= 2  # it may be in the race, but is never an error
        assert server.requests == 2


async def test_the_guard_leaves_middlewares_of_a_healthy_session_alone() -> None:
    async with RawServer((Repeat(ReadHead(), OK),)) as server, client_for(server) as client:
        assert await _fetch(client, 5) == server.requests == 5
        assert server.connections == 1
        assert client.stats().connections.reused == 4
