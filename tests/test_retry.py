"""Retries: the decision alone, and the waiting and paying around it."""

from __future__ import annotations

from typing import Any

import pytest

from flinks_async import (
    BadRequestError,
    ConnectError,
    DeadlineExceededError,
    FlinksError,
    Limits,
    ProtocolError,
    QuotaExhaustedError,
    Retry,
    Secret,
    ServerError,
    ShareQuota,
    Timeouts,
    TokenBucketQuota,
)
from flinks_async.errors import StaleConnectionError
from flinks_async.messages import Request, Response, SendPermit
from flinks_async.middleware.retry import Backoff, RetryState, Stop, count, decide
from flinks_async.testing import FakeClock, InMemoryTransport
from flinks_async.verdict import Kind, Verdict

from .support import DOCUMENTED, client_of

RETRY = Retry(attempts=10, base=1.0, throttled_base=4.0, cap=20.0, retry_after_cap=60.0)


def decision(kind: Kind, state: RetryState | None = None, **changes: Any) -> Backoff | Stop:
    arguments: dict[str, Any] = {"retry_after": None, "remaining": None, "random": lambda: 1.0, **changes}
    return decide(RETRY, Verdict(kind, "why"), state or RetryState(attempts=1), **arguments)


TOO_LATE = Stop("the wait of 1 s would pass the deadline", DeadlineExceededError)

WAITS = [
    # kind, state, arguments, seconds or the reason to stop
    pytest.param(Kind.TRANSIENT, RetryState(attempts=1), {}, 1.0, id="the first retry"),
    pytest.param(Kind.TRANSIENT, RetryState(attempts=3), {}, 4.0, id="the third retry"),
    pytest.param(Kind.TRANSIENT, RetryState(attempts=9), {}, 20.0, id="the cap, and the last retry"),
    pytest.param(Kind.TRANSIENT, RetryState(attempts=10), {}, "10 of 10 attempts made", id="no attempt is left"),
    pytest.param(Kind.TRANSIENT, RetryState(free=50), {}, 1.0, id="free attempts do not lengthen the wait"),
    pytest.param(Kind.TRANSIENT, RetryState(attempts=1), {"random": lambda: 0.25}, 0.25, id="it is jittered"),
    pytest.param(Kind.THROTTLED, RetryState(attempts=1), {}, 4.0, id="throttled"),
    pytest.param(Kind.STALE, RetryState(stale=1), {}, 0.0, id="a dead connection: at once"),
    pytest.param(Kind.STALE, RetryState(attempts=10, stale=1), {}, 0.0, id="and beyond the last attempt"),
    pytest.param(Kind.STALE, RetryState(attempts=1, stale=2), {}, 1.0, id="a second dead one is as any other"),
    pytest.param(Kind.TRANSIENT, RetryState(attempts=1, stale=1), {}, 1.0, id="an old dead one is over"),
    pytest.param(Kind.BROKEN, RetryState(attempts=2, broken=2), {}, 2.0, id="not HTTP: twice more"),
    pytest.param(Kind.BROKEN, RetryState(attempts=3, broken=3), {}, "the answers are not HTTP", id="not thrice"),
    pytest.param(Kind.MALFORMED, RetryState(attempts=1, malformed=1), {}, 1.0, id="not JSON: once more"),
    pytest.param(Kind.MALFORMED, RetryState(attempts=2, malformed=2), {}, "the answers are not JSON", id="not twice"),
    pytest.param(Kind.TRANSIENT, RetryState(attempts=3, broken=3, malformed=2), {}, 4.0, id="each kind for itself"),
    pytest.param(Kind.TRANSIENT, None, {"down": True}, "the instance is down", id="down: a service stops"),
    pytest.param(Kind.TRANSIENT, None, {"down": True, "waits": True}, 1.0, id="down: a job goes on"),
    pytest.param(Kind.TRANSIENT, None, {"retry_after": 0.5}, 1.0, id="asked for less"),
    pytest.param(Kind.TRANSIENT, None, {"retry_after": 30.0}, 30.0, id="asked for more"),
    pytest.param(Kind.TRANSIENT, None, {"retry_after": 60.0}, 60.0, id="asked for the most that is waited for"),
    pytest.param(
        Kind.THROTTLED,
        None,
        {"retry_after": 61.0},
        "the server asks to wait 61 s, more than retry_after_cap",
        id="asked for too much: a service stops",
    ),
    pytest.param(Kind.THROTTLED, None, {"retry_after": 61.0, "waits": True}, 4.0, id="a job leaves that to the pause"),
    pytest.param(Kind.TRANSIENT, None, {"remaining": 1.1}, 1.0, id="in time"),
    pytest.param(Kind.TRANSIENT, None, {"remaining": 1.0}, TOO_LATE, id="just too late"),
    pytest.param(Kind.OK, None, {}, "ok answers are not retried", id="a success"),
    pytest.param(Kind.FINAL, None, {}, "final answers are not retried", id="final"),
    pytest.param(Kind.REFUSED, None, {}, "refused answers are not retried", id="refused"),
    pytest.param(Kind.PENDING, None, {}, "pending answers are not retried", id="pending"),
]


@pytest.mark.parametrize(("kind", "state", "arguments", "expected"), WAITS)
def test_the_decision(
    kind: Kind, state: RetryState | None, arguments: dict[str, Any], expected: float | str | Stop
) -> None:
    found = decision(kind, state, **arguments)
    if isinstance(expected, str | Stop):
        assert found == (Stop(expected) if isinstance(expected, str) else expected)
    else:
        reason = "a fresh connection" if expected == 0.0 else "why"
        assert found == Backoff(expected, reason)


def counted(*attempts: Kind, free: bool = False) -> RetryState:
    state = RetryState()
    for kind in attempts:
        count(state, kind, free=free)
    return state


def test_what_counts() -> None:
    assert counted() == RetryState(attempts=0, stale=0, broken=0, malformed=0, free=0, cost=None)
    assert counted(Kind.TRANSIENT, Kind.THROTTLED) == RetryState(attempts=2)
    assert counted(Kind.BROKEN, Kind.BROKEN, Kind.MALFORMED) == RetryState(attempts=3, broken=2, malformed=1)
    assert counted(Kind.STALE) == RetryState(attempts=0, stale=1)
    assert counted(Kind.STALE, Kind.STALE, Kind.STALE) == RetryState(attempts=2, stale=3)
    assert counted(Kind.STALE, free=True) == RetryState(attempts=0, stale=1)
    assert counted(Kind.BROKEN, free=True) == RetryState(free=1)
    assert counted(*[Kind.BROKEN] * 202, free=True) == RetryState(free=200, attempts=2, broken=2)


@pytest.mark.parametrize(("dead", "left"), [(1, 20), (2, 6)])
async def test_the_first_dead_connection_costs_nothing_and_the_second_does(dead: int, left: int) -> None:
    transport = InMemoryTransport(default=[*[StaleConnectionError()] * dead, BadRequestError("no")])
    async with client_of(transport, retry=Retry(quota=TokenBucketQuota(capacity=20))) as client:
        with pytest.raises(BadRequestError):
            await client.partner_access("t")
        assert client._state is not None
        assert client._state.quota is not None
        assert client._state.quota.left(0.0) == left
    assert len(transport.requests) == dead + 1


async def test_a_connection_is_fresh_after_a_dead_one_and_only_then() -> None:
    fresh: list[bool] = []

    def answer(request: Request) -> Any:
        fresh.append(request.call.fresh)
        return [StaleConnectionError(), ConnectError("no connection"), DOCUMENTED][len(fresh) - 1]

    async with client_of(InMemoryTransport(default=answer)) as client:
        await client.partner_access("t")
    assert fresh == [False, True, False]


async def test_a_wait_that_would_pass_the_deadline_is_not_started() -> None:
    clock = FakeClock(random=1.0)
    clock.advance(100.0)
    transport = InMemoryTransport(default=ConnectError("no connection"))
    async with client_of(transport, clock=clock, retry=Retry(base=2.0)) as client:
        with pytest.raises(
            DeadlineExceededError, match=r"the wait of 2 s .*; the last attempt: no connection \["
        ) as caught:
            await client.partner_access("t", timeout=1.9)
    assert isinstance(caught.value.__cause__, ConnectError)
    assert clock.sleeps == []


async def test_a_service_does_not_wait_for_its_quota() -> None:
    clock = FakeClock(random=0.0)
    quota = ShareQuota(share=0.01, minimum=0.1, window=10.0)  # one retry in ten seconds
    transport = InMemoryTransport(default=ConnectError("no connection"))
    async with client_of(transport, clock=clock, retry=Retry(attempts=9, quota=quota)) as client:
        with pytest.raises(QuotaExhaustedError):
            await client.partner_access("t")
    assert len(transport.requests) == 2
    assert clock.sleeps == []


NO_TIMEOUTS = Timeouts(attempt=None, deadline=None)
WAITING = Limits(breaker=None, waits=True)


@pytest.mark.parametrize(("timeout", "made"), [(9.9, 2), (10.1, 3)])
async def test_a_job_does_not_wait_for_its_quota_beyond_its_deadline(timeout: float, made: int) -> None:
    clock = FakeClock(random=0.0)
    quota = ShareQuota(share=0.01, minimum=0.1, window=10.0)
    transport = InMemoryTransport(default=ConnectError("no connection"))
    retry = Retry(attempts=3, quota=quota)
    async with client_of(transport, clock=clock, retry=retry, limits=WAITING) as client:
        with pytest.raises(FlinksError) as caught:
            await client.partner_access("t", timeout=timeout)
    assert isinstance(caught.value, QuotaExhaustedError) == (made == 2)
    assert len(transport.requests) == made
    assert clock.now() <= timeout


async def test_a_job_whose_quota_does_not_come_back_with_time_stops() -> None:
    retry = Retry(attempts=3, quota=TokenBucketQuota(capacity=14))
    transport = InMemoryTransport(default=ConnectError("no connection"))
    async with client_of(transport, retry=retry, limits=WAITING) as client:
        with pytest.raises(QuotaExhaustedError):
            await client.partner_access("t")
    assert len(transport.requests) == 2


async def test_attempts_while_the_instance_is_down_cost_a_job_nothing() -> None:
    transport = InMemoryTransport(default=[*[ConnectError("no connection")] * 40, DOCUMENTED])
    retry = Retry(attempts=20, quota=TokenBucketQuota(capacity=9 * 14))
    async with client_of(transport, retry=retry, limits=Limits(waits=True), timeouts=NO_TIMEOUTS) as client:
        await client.partner_access("t")  # the tenth failure opens the breaker: it and the others are free
    assert len(transport.requests) == 41


async def test_observers_get_an_event_for_each_retry() -> None:
    events: list[Any] = []
    transport = InMemoryTransport(default=[ConnectError("no connection"), ProtocolError("not HTTP"), DOCUMENTED])
    async with client_of(transport, observers=[events.append], base_url="https://x.example") as client:
        await client.partner_access("t")
    retries = [event for event in events if type(event).__name__ == "RetryScheduled"]
    assert [(one.host, one.attempt, one.verdict.reason) for one in retries] == [
        ("x.example", 1, "ConnectError"),
        ("x.example", 2, "ProtocolError"),
    ]
    assert [one.delay for one in retries] == pytest.approx([0.05, 0.1])
    assert client.stats().retries == 2


async def test_a_call_whose_permit_is_revoked_ends_without_a_wait() -> None:
    clock, permit = FakeClock(random=1.0), SendPermit()

    async def revoke(request: Request) -> Response:
        permit.revoked = True
        return Response(503)

    async with client_of(InMemoryTransport(default=revoke), clock=clock) as client:
        with pytest.raises(ServerError):
            await client.respond(Secret("t"), permit)
    assert clock.sleeps == []


async def test_each_call_is_registered_with_the_quota_once() -> None:
    # Each call allows half a retry; nothing else adds to the quota.
    quota = ShareQuota(share=0.5, minimum=0.0, window=10.0)
    transport = InMemoryTransport({"bad": ServerError(status=503)}, default=DOCUMENTED)
    async with client_of(transport, clock=FakeClock(random=0.0), retry=Retry(attempts=9, quota=quota)) as client:
        for _ in range(3):
            await client.partner_access("good")
        with pytest.raises(QuotaExhaustedError):
            await client.partner_access("bad")
        assert transport.sent("bad") == 3
