"""What a call passes through: middleware, the id of the call, and observers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flinks_async import (
    BadRequestError,
    FlinksClient,
    ReadError,
    Request,
    Response,
    config,
)
from flinks_async.messages import Handler
from flinks_async.testing import (
    KINDS,
    InMemoryTransport,
    VirtualClock,
    run_virtual,
)

from .support import DOCUMENTED, SECRET, client_of, turns


async def test_middleware_sees_calls_and_attempt_middleware_sees_attempts() -> None:
    seen: list[str] = []

    async def per_call(request: Request, call_next: Handler) -> Response:
        seen.append("call")
        response = await call_next(request.evolve(headers={"X-Trace": "1"}))
        seen.append(f"answered {response.meta.attempts}")
        return response

    class PerAttempt:
        async def __call__(self, request: Request, call_next: Handler, /) -> Response:
            response = await call_next(request)
            seen.append(f"attempt {response.status}")
            return response

    transport = InMemoryTransport({"t": [KINDS["http_503"], DOCUMENTED]})
    async with client_of(transport, middleware=[per_call], attempt_middleware=[PerAttempt()]) as flinks:
        await flinks.partner_access("t")
    assert seen == ["call", "attempt 503", "attempt 200", "answered 2"]
    assert transport.requests[0].headers["x-trace"] == "1"


async def test_a_middleware_sees_the_headers_of_a_call_and_adds_to_them() -> None:
    async def trace(request: Request, call_next: Handler) -> Response:
        return await call_next(request.evolve(headers={**request.headers, "X-Trace": "1"}))

    transport = InMemoryTransport(default=DOCUMENTED)
    async with client_of(transport, middleware=[trace]) as flinks:
        await flinks.partner_access("t", headers={"X-Own": "2"})
        await flinks.partner_access("t")
    assert [(each.headers.get("x-own"), each.headers["x-trace"]) for each in transport.requests] == [
        ("2", "1"),
        (None, "1"),
    ]


async def test_all_attempts_of_a_call_have_one_id_which_its_events_and_its_error_name() -> None:
    events: list[Any] = []

    async def send_id(request: Request, call_next: Handler) -> Response:
        return await call_next(request.evolve(headers={**request.headers, "X-Request-Id": request.call.id}))

    transport = InMemoryTransport(
        {"t": [KINDS["http_503"], ReadError("broken"), KINDS["bad_request"]]}, default=DOCUMENTED
    )
    async with client_of(transport, observers=[events.append], attempt_middleware=[send_id]) as flinks:
        with pytest.raises(BadRequestError) as caught:
            await flinks.partner_access("t")
        await flinks.partner_access("u")
    first, second = caught.value.call_id, events[-1].call_id
    assert isinstance(first, str)
    assert len(first) == 32
    assert first != second
    assert [event.call_id for event in events] == [first] * 8 + [second] * 2
    assert [request.headers["X-Request-Id"] for request in transport.requests] == [first] * 3 + [second]


def test_both_attempts_of_a_hedged_call_have_its_id() -> None:
    ids: list[str] = []

    class SlowOnce:
        async def send(self, request: Request, /) -> Response:
            ids.append(request.call.id)
            await asyncio.sleep(1.0 if len(ids) == 21 else 0.01)
            return Response(200, {}, b'{"RequestId": "r"}')

        async def close(self) -> None:
            pass

    async def calls() -> None:
        async with FlinksClient(
            auth_secret=SECRET, transport=SlowOnce(), clock=VirtualClock(), hedge=config.Hedge(samples=20)
        ) as flinks:
            for _ in range(21):
                await flinks.partner_access("t")

    run_virtual(calls())
    assert len(ids) == 22
    assert len(set(ids)) == 21
    assert ids[20] == ids[21]


async def test_a_middleware_may_answer_by_itself() -> None:
    async def cached(request: Request, call_next: Handler) -> Response:
        return Response(200, {}, b'{"RequestId": "cached"}')

    transport = InMemoryTransport()
    async with client_of(transport, middleware=[cached]) as flinks:
        assert (await flinks.partner_access("t")).request_id == "cached"
    assert transport.requests == []


async def test_observers_see_attempts_and_retries_but_no_token() -> None:
    events: list[Any] = []

    def broken(event: object) -> None:
        raise asyncio.CancelledError("a bug in a hook")

    transport = InMemoryTransport({"canary": [KINDS["http_503"], DOCUMENTED]})
    async with client_of(transport, observers=[broken, events.append]) as flinks:
        await flinks.partner_access("canary")
    assert [type(event).__name__ for event in events] == [
        "AttemptStarted",
        "AttemptFinished",
        "RetryScheduled",
        "AttemptStarted",
        "AttemptFinished",
    ]
    assert [event.attempt for event in events] == [1, 1, 1, 2, 2]
    assert (events[1].status, events[1].verdict.reason) == (503, "http_503")
    assert events[4].body_size > 0
    assert "canary" not in repr(events)
    assert len({event.token_fingerprint for event in events}) == 1


async def test_an_attempt_that_is_cancelled_is_told_to_observers_without_a_verdict() -> None:
    events: list[Any] = []

    async def never(request: Request) -> Any:
        await asyncio.Event().wait()

    async with client_of(InMemoryTransport(default=never), observers=[events.append]) as flinks:
        task = asyncio.ensure_future(flinks.partner_access("t"))
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert events[-1].verdict is None
