"""The circuit breaker, alone and in a client."""

from __future__ import annotations

import asyncio

import pytest

from flinks_async import (
    Breaker,
    CircuitOpenError,
    ConfigError,
    ConnectError,
    FlinksClient,
    FlinksError,
    Limits,
    Retry,
    ServerError,
    config,
)
from flinks_async.limits.breaker import AttemptRecord, BreakerState, CircuitBreaker
from flinks_async.middleware.retry import RetryState, count
from flinks_async.testing import FakeClock, InMemoryTransport
from flinks_async.testing.in_memory import make_response
from flinks_async.verdict import Kind, Verdict

OK = {"GetAccountsDetail": [], "RequestId": "r"}


def opened(settings: Breaker | None = None) -> CircuitBreaker:
    breaker = CircuitBreaker(settings or Breaker())
    while not breaker.failed(100.0, 0.0, probe=False):
        pass
    return breaker


def outcomes(breaker: CircuitBreaker, text: str) -> int | None:
    """The number of these outcomes after which it opens; `x` is a failure."""
    for number, outcome in enumerate(text, 1):
        if outcome == "x" and breaker.failed(0.0, 0.0, probe=False):
            return number
        if outcome == ".":
            breaker.succeeded(probe=False)
    return None


@pytest.mark.parametrize(
    ("text", "opens_after"),
    [
        ("." * 500, None),
        ("x" * 9, None),
        ("x" * 10, 10),
        ("." * 500 + "x" * 20, 510),
        ("x." * 9, None),  # too few outcomes
        (".x" * 10, 20),
        ("..x" * 100, None),
        (".xx" * 10, 20),
        ("." * 50 + "xxx." * 20, 50 + 34),  # until half of the latest 50 are failures
    ],
)
def test_when_it_opens(text: str, opens_after: int | None) -> None:
    breaker = CircuitBreaker(Breaker())
    found = outcomes(breaker, text)
    assert found == opens_after or (opens_after == 84 and found is not None and 80 < found < 88)


@pytest.mark.parametrize(
    ("ratio", "text", "opens_after"),
    [(0.5, "x..x", 4), (0.5, "x...x...x", None), (0.75, "..xxx", 5), (0.75, "....x.xx", 8)],
)
def test_a_ratio_is_that_of_the_window(ratio: float, text: str, opens_after: int | None) -> None:
    assert outcomes(CircuitBreaker(Breaker(window=4, volume=4, ratio=ratio)), text) == opens_after


def test_a_closed_breaker_holds_nothing_back() -> None:
    breaker = CircuitBreaker(Breaker())
    assert (breaker.closed, breaker.wait(0.0), breaker.probe_at) == (True, 0.0, 0.0)
    assert not breaker.take()
    assert not breaker.succeeded(probe=False)
    assert not breaker.failed(0.0, 0.0, probe=False)
    assert breaker.closed


def test_all_succeeded_is_a_full_window_of_successes() -> None:
    breaker = CircuitBreaker(Breaker(window=4, volume=4))
    seen = []
    for outcome in ".....x....":
        outcomes(breaker, outcome)
        seen.append(breaker.all_succeeded)
    assert seen == [False, False, False, True, True, False, False, False, False, True]


def test_a_failed_probe_cancels_the_successful_ones_before_it() -> None:
    breaker = opened(Breaker(successes=2))
    for outcome in ".x.":
        breaker.take()
        if outcome == ".":
            assert not breaker.succeeded(probe=True)
        else:
            assert breaker.failed(110.0, 0.0, probe=True)
    breaker.take()
    assert breaker.succeeded(probe=True)


def test_retry_after_is_never_zero() -> None:
    breaker = opened(Breaker(probe_interval=3.0))
    assert breaker.retry_after(100.5) == 1.0
    assert breaker.retry_after(101.5) == 3.0  # the probe is due: until the next one
    assert breaker.retry_after(200.0) == 3.0


def test_it_waits_for_the_probe() -> None:
    breaker = opened()
    assert breaker.state is BreakerState.OPEN
    assert breaker.wait(100.0) == pytest.approx(0.5)  # half of the first second, with the lowest random number
    assert breaker.wait(101.0) == 0.0
    assert breaker.take()
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.wait(101.0) == float("inf")  # one probe at a time


def test_the_interval_doubles_with_each_failed_probe() -> None:
    breaker, now, gaps = opened(), 100.0, []
    for _ in range(6):
        now = breaker.probe_at
        breaker.take()
        assert breaker.failed(now, 0.999999, probe=True)
        gaps.append(round(breaker.probe_at - now, 2))
    assert gaps == [2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_probe_times_are_jittered() -> None:
    times = set()
    for random in (0.0, 0.5, 0.9):
        breaker = CircuitBreaker(Breaker(in_a_row=1))
        breaker.failed(0.0, random, probe=False)
        times.add(breaker.probe_at)
    assert times == {0.5, 0.75, 0.95}


def test_successful_probes_close_it() -> None:
    breaker = opened()
    breaker.take()
    assert not breaker.succeeded(probe=True)
    assert breaker.wait(102.0) == 0.0
    breaker.take()
    assert breaker.succeeded(probe=True)
    assert breaker.closed
    assert outcomes(breaker, "x" * 9) is None  # nothing is left of the past


def test_a_breaker_closed_by_early_probes_holds_nothing_back() -> None:
    breaker = opened(Breaker(probe_interval=10.0, successes=1))
    breaker.take()
    assert breaker.succeeded(probe=True)
    assert breaker.wait(100.0) == 0.0


def test_it_closes_only_once() -> None:
    breaker = CircuitBreaker(Breaker(successes=1))
    assert not breaker.succeeded(probe=True)


def test_late_answers_change_nothing() -> None:
    breaker = opened()
    before = breaker.probe_at
    assert not breaker.failed(105.0, 0.0, probe=False)
    for _ in range(10):
        assert not breaker.succeeded(probe=False)
    assert breaker.state is BreakerState.OPEN
    assert breaker.probe_at == before


def test_an_abandoned_probe_lets_the_next_one_go() -> None:
    breaker = opened()
    breaker.take()
    breaker.abandoned(probe=True)
    assert breaker.wait(102.0) == 0.0


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"Breaker\.volume"):
        Breaker(window=10, volume=20)
    with pytest.raises(ConfigError, match=r"Breaker\.ratio"):
        Breaker(ratio=1.5)
    with pytest.raises(ConfigError, match=r"Limits\.breaker must be Breaker or None"):
        Limits(breaker=True)


NO_RETRY = Retry(attempts=1)


def service(answer: object, clock: FakeClock, retry: Retry = NO_RETRY) -> tuple[FlinksClient, InMemoryTransport]:
    transport = InMemoryTransport({}, default=answer)
    return FlinksClient(auth_secret="none in texts", transport=transport, clock=clock, retry=retry), transport


DOWN = [make_response({}, status=503), ConnectError("no connection"), make_response({}, status=500)]
NOT_DOWN = [
    make_response({}, status=404),
    make_response({}, status=501),
    make_response({"FlinksCode": "INVALID_LOGIN"}, status=401),
    make_response({"FlinksCode": "CARD_IN_USE"}, status=500),
    make_response({}, status=408),
    make_response(b"<html>", status=200),
    make_response(b"", status=200),
    make_response(b'{"RequestId": 1}', status=200),
]


@pytest.mark.parametrize("answer", DOWN, ids=repr)
async def test_a_service_fails_fast_while_the_instance_is_down_and_recovers(answer: object) -> None:
    clock = FakeClock(random=0.5)
    client, transport = service(answer, clock)
    async with client:
        for _ in range(10):
            with pytest.raises((ServerError, ConnectError)):
                await client.partner_access("t")
        for _ in range(100):
            with pytest.raises(CircuitOpenError, match="circuit is open") as caught:
                await client.partner_access("t")
        assert caught.value.retry_after == pytest.approx(0.75)
        assert caught.value.attempts == 0
        assert len(transport.requests) == 10
        assert clock.sleeps == []
        # The probe fails: all other calls still fail fast, and the next probe is later.
        clock.advance(0.8)
        with pytest.raises((ServerError, ConnectError)):
            await client.partner_access("t")
        with pytest.raises(CircuitOpenError) as caught:
            await client.partner_access("t")
        assert caught.value.retry_after == pytest.approx(1.5)
        # The instance is up again.
        transport.default = OK
        clock.advance(1.6)
        for _ in range(20):
            await client.partner_access("t")
        assert len(transport.requests) == 31


@pytest.mark.parametrize("answer", NOT_DOWN, ids=repr)
async def test_answers_that_do_not_mean_down(answer: object) -> None:
    client, transport = service(answer, FakeClock())
    async with client:
        for _ in range(60):
            with pytest.raises(FlinksError) as caught:
                await client.partner_access("t")
            assert not isinstance(caught.value, CircuitOpenError)
    assert len(transport.requests) == 60


async def test_a_call_that_finds_the_instance_down_is_not_retried_in_a_service() -> None:
    client, transport = service(make_response({}, status=503), FakeClock(), Retry(attempts=3, quota=None))
    async with client:
        for _ in range(4):
            with pytest.raises(ServerError):
                await client.partner_access("t")
        assert len(transport.requests) == 10  # 3 + 3 + 3 + 1: the tenth opened it


async def test_a_cancelled_probe_does_not_block_the_next_one() -> None:
    clock, hang = FakeClock(random=0.5), asyncio.Event()
    client, transport = service(make_response({}, status=503), clock)

    async def hanging(_: object) -> dict[str, object]:
        await hang.wait()
        return OK

    async with client:
        for _ in range(10):
            with pytest.raises(ServerError):
                await client.partner_access("t")
        clock.advance(1.0)
        transport.default = hanging
        probe = asyncio.ensure_future(client.partner_access("t"))
        for _ in range(5):
            await asyncio.sleep(0)
        with pytest.raises(CircuitOpenError, match="half-open"):
            await client.partner_access("t")
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        hang.set()
        await client.partner_access("t")


async def test_a_job_waits_and_probes_without_using_up_attempts() -> None:
    clock = FakeClock(random=0.5)
    # 9 failures that count, the one that opens, and 30 probes: far more than 6 attempts a token.
    answers = [make_response({}, status=503)] * 40 + [OK]
    transport = InMemoryTransport({}, default=answers)
    async with FlinksClient(auth_secret="s", transport=transport, settings=config.bulk(), clock=clock) as client:
        found = [await call for call in asyncio.as_completed([client.partner_access(f"t{i}") for i in range(3)])]
    assert len(found) == 3
    assert len(transport.requests) == 43
    assert clock.now() > 20 * 7.5


def test_attempts_in_an_outage_are_free_up_to_a_bound() -> None:
    state = RetryState()
    for _ in range(200):
        count(state, Kind.TRANSIENT, free=True)
    assert state.attempts == 0
    count(state, Kind.TRANSIENT, free=True)
    assert state.attempts == 1


async def test_the_breaker_can_be_switched_off() -> None:
    transport = InMemoryTransport({}, default=make_response({}, status=503))
    limits = Limits(breaker=None)
    async with FlinksClient(
        auth_secret="s", transport=transport, limits=limits, retry=Retry(attempts=1), clock=FakeClock()
    ) as client:
        for _ in range(100):
            with pytest.raises(ServerError):
                await client.partner_access("t")


@pytest.mark.parametrize(
    ("status", "kind", "reason", "down"),
    [
        (None, Kind.TRANSIENT, "connect", True),
        (500, Kind.TRANSIENT, "http_500", True),
        (499, Kind.TRANSIENT, "http_499", False),
        (503, Kind.TRANSIENT, "AGGREGATION_ERROR", False),
        (503, Kind.THROTTLED, "http_503", False),
        (503, Kind.FINAL, "http_503", False),
    ],
)
def test_only_failures_that_all_requests_would_have_say_that_an_instance_is_down(
    status: int | None, kind: Kind, reason: str, down: bool
) -> None:
    assert AttemptRecord(0.0, status=status, verdict=Verdict(kind, reason)).says_down is down
