"""An event loop that the user's code blocks: what was answered meanwhile counts, and the server is not blamed."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flinks_async import AttemptTimeoutError, DeadlineExceededError, FlinksClient, Retry, Timeouts
from tests.raw_server import Hang, RawServer, ReadHead, Repeat

from .support import OK, SECRET

CALLS = 20


class Elsewhere:
    """A server in the event loop of another thread. It answers when `go` is set."""

    def __init__(self, *, answers: bool) -> None:
        self.go, self.asked = asyncio.Event(), threading.Semaphore(0)
        self._loop = asyncio.new_event_loop()
        answer = (self._wait, OK) if answers else (self._note, Hang())
        self._server = RawServer([Repeat(ReadHead(), *answer)])

    def __enter__(self) -> Elsewhere:
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._call(self._server.start())
        self.base_url = self._server.base_url
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def answer(self) -> None:
        self._loop.call_soon_threadsafe(self.go.set)

    async def until_asked(self, number: int) -> None:
        for _ in range(number):
            await asyncio.get_running_loop().run_in_executor(None, self.asked.acquire)

    async def _note(self, connection: Any) -> None:
        self.asked.release()

    async def _wait(self, connection: Any) -> None:
        self.asked.release()
        await self.go.wait()

    def _call(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def client_with(timer: str, server: Elsewhere) -> FlinksClient:
    """A client whose calls end after half a second, by the timeout of the attempt or by the deadline."""
    timeouts = Timeouts(attempt=0.5, deadline=None) if timer == "attempt" else Timeouts(attempt=None, deadline=0.5)
    return FlinksClient(auth_secret=SECRET, base_url=server.base_url, timeouts=timeouts, retry=Retry(attempts=1))


@pytest.mark.parametrize("timer", ["attempt", "deadline"])
def test_answers_that_arrived_while_the_loop_was_blocked_count(
    run: Callable[[Awaitable[Any]], Any], timer: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(server: Elsewhere) -> None:
        async with client_with(timer, server) as client:
            calls = [asyncio.create_task(client.partner_access(f"t{n}")) for n in range(CALLS)]
            await server.until_asked(CALLS)
            server.answer()
            time.sleep(0.9)  # the mistake that this is about
            assert len(await asyncio.gather(*calls)) == CALLS

    with Elsewhere(answers=True) as server:
        run(main(server))
    (warning,) = _warnings(caplog)
    assert "the event loop was blocked for at least 0." in warning


@pytest.mark.parametrize("timer", ["attempt", "deadline"])
def test_timeouts_of_a_blocked_loop_are_not_held_against_the_server(
    run: Callable[[Awaitable[Any]], Any], timer: str
) -> None:
    async def main(server: Elsewhere) -> None:
        async with client_with(timer, server) as client:
            calls = [asyncio.create_task(client.partner_access(f"t{n}")) for n in range(CALLS)]
            await server.until_asked(CALLS)
            limit = client.stats().limit
            time.sleep(0.9)
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(outcome, AttemptTimeoutError if timer == "attempt" else DeadlineExceededError)
            breaker = client.governor.breaker
            assert breaker is not None
            stats = client.stats()
            assert (breaker.closed, stats.trouble, stats.limit, stats.held_back) == (True, None, limit, 0.0)

    with Elsewhere(answers=False) as server:
        run(main(server))


def test_a_retry_after_a_blocked_loop_costs_no_quota(run: Callable[[Awaitable[Any]], Any]) -> None:
    async def main(server: Elsewhere) -> None:
        timeouts = Timeouts(attempt=0.3, deadline=None)
        async with FlinksClient(
            auth_secret=SECRET, base_url=server.base_url, timeouts=timeouts, retry=Retry(attempts=2)
        ) as client:
            call = asyncio.create_task(client.partner_access("t"))
            await server.until_asked(1)
            state = client._enter()
            assert state.quota is not None
            before = state.quota.left(0.0)
            time.sleep(0.6)
            await server.until_asked(1)
            assert state.quota.left(0.0) >= before
            with pytest.raises(AttemptTimeoutError):
                await call

    with Elsewhere(answers=False) as server:
        run(main(server))
