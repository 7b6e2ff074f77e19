"""How long the client waits: for a connection, for a place, because the server asks for it."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import pytest

from flinks_async import ConnectTimeoutError, Limits, RateLimitedError, Retry, ServerError, Timeouts
from flinks_async.clock import SystemClock
from flinks_async.testing import FakeClock
from tests.raw_server import RawServer, ReadHead, Repeat, Respond

from .support import BODY, HEALTHY, OK, assert_clean, client_for

DATE = "Wed, 01 Jan 2025 00:00:00 GMT"
ASKS_FOR = {
    "seconds": ({"Retry-After": "7"}, 7.0),
    "a fraction": ({"Retry-After": "7.5"}, 7.5),
    "milliseconds": ({"Retry-After-Ms": "7000"}, 7.0),
    "an IMF date": ({"Retry-After": "Wed, 01 Jan 2025 00:00:07 GMT", "Date": DATE}, 7.0),
    "an RFC 850 date": ({"Retry-After": "Wednesday, 01-Jan-25 00:00:07 GMT", "Date": DATE}, 7.0),
    "an asctime date": ({"Retry-After": "Wed Jan  1 00:00:07 2025", "Date": DATE}, 7.0),
    "a date, by a server whose clock is a year ahead": (
        {"Retry-After": "Thu, 01 Jan 2026 00:00:07 GMT", "Date": "Thu, 01 Jan 2026 00:00:00 GMT"},
        7.0,
    ),
}
ASKS_FOR_NOTHING = {
    "nothing": {},
    "a date in the past": {"Retry-After": "Tue, 31 Dec 2024 23:59:00 GMT", "Date": DATE},
    "a negative number": {"Retry-After": "-7"},
    "garbage": {"Retry-After": "soon"},
    "a hexadecimal number": {"Retry-After": "0x7"},
    "Arabic digits": {"Retry-After": "\u0667"},
    "an impossible date": {"Retry-After": "Wed, 99 Foo 2025 25:61:61 GMT"},
    "an empty value": {"Retry-After": ""},
    "zero": {"Retry-After": "0"},
}


def answers_with(status: int, headers: Any) -> list[Any]:
    return [ReadHead(), Respond(status, b"{}", headers), *HEALTHY]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ASKS_FOR)
async def test_at_least_as_long_as_the_server_asks(form: str, status: int) -> None:
    headers, seconds = ASKS_FOR[form]
    clock = FakeClock(random=0.0)
    async with RawServer(answers_with(status, headers)) as server, client_for(server, clock=clock) as client:
        await client.partner_access("t")
        assert server.requests == 2
        assert seconds <= sum(clock.sleeps) < seconds + 1.5


@pytest.mark.parametrize("form", ASKS_FOR_NOTHING)
async def test_nonsense_is_ignored(form: str) -> None:
    clock = FakeClock(random=1.0)
    async with (
        RawServer(answers_with(503, ASKS_FOR_NOTHING[form])) as server,
        client_for(server, clock=clock) as client,
    ):
        await client.partner_access("t")
        assert (server.requests, clock.sleeps) == (2, [0.05])


async def test_what_is_asked_beyond_the_cap_ends_the_call_and_is_told() -> None:
    for status, error in ((429, RateLimitedError), (503, ServerError)):
        async with RawServer(answers_with(status, {"Retry-After": "999999999"})) as server:
            async with client_for(server) as client:
                with pytest.raises(error) as caught:
                    await client.partner_access("t")
                assert caught.value.retry_after == 999999999
                assert server.requests == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems answer a full backlog in another way")
async def test_a_connect_that_gets_no_answer_ends_with_connect_timeout() -> None:
    """Row 3: SYNs are dropped, here by a full backlog."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            timeouts = Timeouts(connect=0.1, attempt=10, deadline=None)
            async with client_for(f"http://127.0.0.1:{port}", timeouts=timeouts) as client:
                with pytest.raises(ConnectTimeoutError) as caught:
                    await client.partner_access("t")
                assert caught.value.attempts == 3
                assert caught.value.sent is False
                await assert_clean(client)
        finally:
            for filler in fillers:
                filler.close()


async def test_the_time_in_the_queue_does_not_count_against_the_attempt() -> None:
    """Row 55: 30 calls, one place, 0.05 s each: the last one waits longer than an attempt may take."""

    async def slowly(connection: Any) -> None:
        await asyncio.sleep(0.05)

    options: dict[str, Any] = {
        "limits": Limits(concurrency=1),
        "timeouts": Timeouts(connect=5, attempt=1.4, deadline=None),
        "retry": Retry(attempts=1),
        "clock": SystemClock(),
    }
    async with RawServer([Repeat(ReadHead(), slowly, OK)]) as server, client_for(server, **options) as client:
        answers = await asyncio.gather(*(client.partner_access(f"t{n}") for n in range(30)))
        assert max(answer.meta.queue_time for answer in answers) > 1.4
        assert server.connections == 1
        assert client.stats().queue_time > 1.4


async def test_no_connection_is_held_while_a_retry_waits() -> None:
    """A large body of an error, one place, and a wait: others get their turn."""
    big = Respond(503, b"x" * 1_000_000, {"Retry-After": "1"})

    class Clock(FakeClock):
        async def sleep(self, seconds: float, /) -> None:
            stats = client.stats()
            assert stats.requests_in_flight == 0
            assert stats.connections.open == stats.connections.idle
            await super().sleep(seconds)

    clock = Clock(random=1.0)
    async with RawServer([ReadHead(), big, *HEALTHY]) as server:
        async with client_for(server, limits=Limits(concurrency=1), clock=clock) as client:
            assert (await client.partner_access("t")).to_json() == BODY
            assert clock.sleeps
            assert server.connections == 1
