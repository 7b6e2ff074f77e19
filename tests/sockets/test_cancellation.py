"""Cancelling at every point at which a call can be suspended: nothing is left, and nothing is swallowed."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any

import pytest

from flinks_async import ClientClosedError, FlinksClient, FlinksError, Hedge, Limits, Timeouts
from flinks_async.testing import KINDS, FakeClock, InMemoryTransport
from tests.raw_server import Hang, RawServer, ReadHead, Repeat, Respond, Send
from tests.support import turns, until

from .support import BODY, HEALTHY, OK, SECRET, assert_clean, client_for

MOST = 400
"""More suspensions than any of these coroutines has."""


class CancelAt:
    """Awaits something and cancels its own task at the n-th suspension. `seen` counts the suspensions."""

    def __init__(self, awaitable: Awaitable[Any], n: int) -> None:
        self._steps = awaitable.__await__()
        self._n = n
        self.seen = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        send: Any = None
        while True:
            try:
                suspended = self._steps.send(send)
            except StopIteration as stop:
                return stop.value
            self.seen += 1
            if self.seen == self._n:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                send = yield suspended
            except BaseException as error:
                try:
                    suspended = self._steps.throw(error)
                except StopIteration as stop:
                    return stop.value
                yield suspended


async def _torture(make: Callable[[], Awaitable[Any]], after: Callable[[], Awaitable[None]]) -> int:
    """Cancels at suspension 1, 2, ... until the whole runs through. Returns how many there were."""
    for n in range(1, MOST):
        watched = CancelAt(make(), n)

        async def run(watched: CancelAt = watched) -> Any:
            return await watched

        task = asyncio.create_task(run())
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if watched.seen < n:
            assert not isinstance(outcome, BaseException), outcome
            await after()
            return n - 1
        assert isinstance(outcome, asyncio.CancelledError), f"at suspension {n}: {outcome!r}"
        await after()
    raise AssertionError("it never ran through")


def _tasks() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


@contextlib.contextmanager
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


class Waiting(InMemoryTransport):
    """An in-memory transport that suspends a few times in each attempt, and counts those inside."""

    inside = 0

    async def send(self, request: Any, /) -> Any:
        self.inside += 1
        try:
            await turns(3)
            return await super().send(request)
        finally:
            self.inside -= 1


async def test_a_call_with_retries() -> None:
    def scripted() -> list[Any]:
        return [KINDS["http_503"], KINDS["http_429"], {"RequestId": "r"}]

    transport = Waiting()
    async with FlinksClient(auth_secret=SECRET, transport=transport, clock=FakeClock()) as client:

        def call() -> Awaitable[Any]:
            transport.answers["t"] = scripted()
            return client.partner_access("t")

        async def after() -> None:
            stats = client.stats()
            assert (stats.calls_in_flight, stats.requests_in_flight, stats.queued, transport.inside) == (0, 0, 0, 0)
            assert not _tasks()

        assert await _torture(call, after) >= 9


async def test_a_call_with_a_secret_that_is_asked_for_and_a_queue() -> None:
    async def provider() -> str:
        await turns(2)
        return SECRET

    transport = Waiting(default={"RequestId": "r"})
    options: dict[str, Any] = {"transport": transport, "clock": FakeClock(), "limits": Limits(concurrency=1)}

    async def both() -> Any:
        client = FlinksClient(auth_secret=provider, **options)
        other = asyncio.create_task(client.partner_access("other"))
        try:
            return await client.partner_access("t")
        finally:
            with contextlib.suppress(FlinksError):
                await other
            stats = client.stats()
            assert (stats.calls_in_flight, stats.requests_in_flight, stats.queued) == (0, 0, 0)

    async def after() -> None:
        transport.closed = False
        assert transport.inside == 0
        assert not _tasks()

    assert await _torture(both, after) >= 3


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_fan_out(kind: str) -> None:
    transport = Waiting(default={"RequestId": "r"})
    transport.answers["t3"] = KINDS["bad_request"]
    async with FlinksClient(auth_secret=SECRET, transport=transport, clock=FakeClock()) as client:
        names, closed = [f"t{n}" for n in range(8)], []

        async def pages() -> AsyncIterator[str]:
            try:
                for name in names:
                    await turns(1)
                    yield name
            finally:
                await turns(2)
                closed.append(True)

        async def all_of_them() -> int:
            tokens: Any = iter(names) if kind == "sync" else pages()
            async with contextlib.aclosing(client.partner_access_many(tokens, concurrency=3)) as outcomes:
                return len([outcome async for outcome in outcomes])

        async def after() -> None:
            stats = client.stats()
            assert (stats.calls_in_flight, stats.requests_in_flight, stats.queued, transport.inside) == (0, 0, 0, 0)
            assert not _tasks()

        assert (suspensions := await _torture(all_of_them, after)) >= 3
        # All but the one that was cancelled before its first step.
        assert len(closed) == (suspensions + 1 if kind == "async" else 0)


class Tidying(InMemoryTransport):
    """An in-memory transport that takes its time when it is cancelled."""

    inside = 0

    async def send(self, request: Any, /) -> Any:
        self.inside += 1
        try:
            return await super().send(request)
        finally:
            await turns(5)
            self.inside -= 1


@pytest.mark.parametrize("options", [{"coalesce": True}, {"hedge": Hedge(samples=1, minimum=0.001)}], ids=str)
async def test_a_shared_or_hedged_call_that_is_cancelled_again_and_again(options: dict[str, Any]) -> None:
    async def hang(request: Any) -> Any:
        await asyncio.Event().wait()

    transport = Tidying({"first": {"RequestId": "r"}}, default=hang)
    async with FlinksClient(auth_secret=SECRET, transport=transport, **options) as client:
        await client.partner_access("first")
        call = asyncio.create_task(client.partner_access("t"))
        while transport.inside <= ("hedge" in options):
            await asyncio.sleep(0)
        while not call.done():
            call.cancel()
            await asyncio.sleep(0)
        assert call.cancelled()
        stats = client.stats()
        assert (stats.calls_in_flight, stats.requests_in_flight, transport.inside) == (0, 0, 0)
        assert not _tasks()


async def test_closing_with_a_call_in_flight() -> None:
    ended: list[Any] = []

    async def closing() -> None:
        transport = InMemoryTransport(default=_hang)
        client = FlinksClient(auth_secret=SECRET, transport=transport, clock=FakeClock())
        call = asyncio.create_task(client.partner_access("t"))
        ended.append((client, call, transport))
        await turns(3)
        await client.close(grace=0.01)

    async def after() -> None:
        client, call, transport = ended[-1]
        if not client.closed:  # cancelled before close() began
            await client.close(grace=0)
        (outcome,) = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(outcome, ClientClosedError)
        assert client.stats().calls_in_flight == 0
        assert transport.closed
        assert not _tasks()

    assert await _torture(closing, after) >= 4


async def _hang(request: Any) -> Any:
    await asyncio.Event().wait()


async def test_a_call_on_real_sockets(caplog: pytest.LogCaptureFixture) -> None:
    script = [
        ReadHead(), Respond(503), ReadHead(), Send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY[:9]),
        Send(BODY[9:]), *HEALTHY,
    ]  # fmt: skip
    async with RawServer(script) as server:
        with nothing_logged(caplog):
            made: list[FlinksClient] = []

            def call() -> Awaitable[Any]:
                made.append(client_for(server))
                return made[-1].partner_access("t")

            async def after() -> None:
                client = made.pop()
                await assert_clean(client)
                await client.partner_access("next")
                await client.close()
                assert client.stats().connections.open == 0

            assert await _torture(call, after) >= 2


@pytest.mark.parametrize(
    "steps", [(Hang(),), (Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), Hang())], ids=["head", "body"]
)
async def test_many_that_wait_for_the_server(steps: Any) -> None:
    sick = True

    async def turn(connection: Any) -> None:
        for step in steps if sick else (OK,):
            await step(connection)

    async with RawServer([Repeat(ReadHead(), turn)]) as server, client_for(server) as client:
        calls = [asyncio.create_task(client.partner_access(f"t{n}")) for n in range(15)]
        await until(lambda: server.requests >= 15)
        for call in calls:
            call.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        await assert_clean(client)
        sick = False
        await client.partner_access("next")
        assert client.stats().requests == server.requests == 16


async def test_a_timeout_around_us_stays_the_callers() -> None:
    async with RawServer([ReadHead(), Hang()]) as server, client_for(server) as client:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.05):
                await client.partner_access("t")
        assert not isinstance(caught.value, FlinksError)
        await assert_clean(client)


async def test_a_timeout_of_ours_is_no_timeout_error() -> None:
    async with RawServer([ReadHead(), Hang()]) as server:
        async with client_for(server, timeouts=Timeouts(connect=1, attempt=1, deadline=0.05)) as client:
            async with asyncio.timeout(5):
                with pytest.raises(FlinksError) as caught:
                    await client.partner_access("t")
            assert not isinstance(caught.value, TimeoutError)
            assert asyncio.current_task().cancelling() == 0
            await assert_clean(client)


async def test_a_failing_task_group_cancels_its_calls() -> None:
    async with RawServer([ReadHead(), Hang()]) as server, client_for(server) as client:

        async def fails() -> None:
            await until(lambda: server.requests >= 3)
            raise LookupError

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                for n in range(3):
                    group.create_task(client.partner_access(f"t{n}"))
                group.create_task(fails())
        assert [type(error) for error in caught.value.exceptions] == [LookupError]
        await assert_clean(client)


async def test_a_cancelled_call_is_not_tried_again() -> None:
    async with RawServer([ReadHead(), Hang()]) as server, client_for(server) as client:
        call = asyncio.create_task(client.partner_access("t"))
        await until(lambda: server.requests)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await turns()
        assert (server.requests, server.connections) == (1, 1)


async def test_a_fan_out_left_early_cancels_what_is_in_flight() -> None:
    async def odd_ones_hang(connection: Any) -> None:
        head = await connection.read_head()
        await (Hang() if b"/odd" in head else OK)(connection)

    async with RawServer([Repeat(odd_ones_hang)]) as server, client_for(server) as client:
        tokens = ["odd1", "odd2", "even"]
        async with contextlib.aclosing(client.partner_access_many(tokens, concurrency=3)) as outcomes:
            async for outcome in outcomes:
                assert outcome.key == 2
                break
        await assert_clean(client)
        assert not {task for task in _tasks() if "work" in repr(task.get_coro())}


def test_debug_mode_finds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with RawServer([ReadHead(), OK, ReadHead(), Hang()]) as server, client_for(server) as client:
            await client.partner_access("first")
            call = asyncio.create_task(client.partner_access("second"))
            await until(lambda: server.requests >= 2)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await assert_clean(client)

    with nothing_logged(caplog), asyncio.Runner(debug=True) as runner:
        runner.run(main())


def test_a_call_that_is_in_flight_when_the_loop_ends_is_cancelled() -> None:
    clients: list[FlinksClient] = []
    outcomes: list[Any] = []

    async def call(client: FlinksClient) -> None:
        try:
            await client.partner_access("t")
        except BaseException as error:
            outcomes.append(type(error))
            raise

    async def main() -> None:
        server = RawServer([ReadHead(), Hang()])
        await server.start()
        clients.append(client_for(server))
        asyncio.create_task(call(clients[0]))  # noqa: RUF006
        await until(lambda: server.requests)
        await server.stop_listening()  # the connection stays

    asyncio.run(main())
    assert outcomes == [asyncio.CancelledError]
    asyncio.run(clients[0].close())
    assert clients[0].stats().connections.open == 0


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop is not for Windows")
@pytest.mark.parametrize("script", [[Repeat(ReadHead(), OK)], [ReadHead(), Hang()]], ids=["answers", "hangs"])
def test_uvloop(script: Any) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with RawServer(script) as server, client_for(server) as client:
            for _ in range(3):
                calls = [asyncio.create_task(client.partner_access(f"t{n}")) for n in range(5)]
                await asyncio.sleep(0.01)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
                await assert_clean(client)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
