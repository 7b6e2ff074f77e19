"""An outage and a pause are told: in the log, to observers, and in the errors of the calls that are not sent."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from flinks_async import (
    AttemptFinished,
    AttemptStarted,
    CircuitOpenError,
    ConnectError,
    DeadlineExceededError,
    Event,
    FlinksClient,
    FlinksError,
    InstanceDown,
    InstanceUp,
    Limits,
    Paused,
    QuotaExhaustedError,
    Resumed,
    Retry,
    RetryScheduled,
    TokenBucketQuota,
    config,
)
from flinks_async.limits.governor import Governor
from flinks_async.limits.rate import GCRA, PaceState
from flinks_async.testing import FakeClock, InMemoryTransport, VirtualClock, run_virtual
from flinks_async.testing.in_memory import make_response
from flinks_async.verdict import Kind, Verdict

from .support import DOCUMENTED, SECRET, client_of, record

HOST = "toolbox-api.private.fin.ag"
DOWN = ConnectError(f"{HOST} cannot be looked up")
ONE_ATTEMPT = Retry(attempts=1)


async def outage(client: FlinksClient, clock: FakeClock, seconds: float = 1.2) -> None:
    """Ten failures, so that the breaker opens, in nine steps."""
    for number in range(10):
        clock.advance(seconds if number else 0.0)
        with pytest.raises(ConnectError):
            await client.partner_access("canary-token")


async def recover(client: FlinksClient, clock: FakeClock) -> None:
    clock.advance(10.0)
    await client.partner_access("canary-token")
    await client.partner_access("canary-token")


def of_instance(events: list[Event]) -> list[Event]:
    return [one for one in events if not isinstance(one, (AttemptStarted, AttemptFinished, RetryScheduled))]


class TestTheLog:
    async def test_says_when_an_instance_is_down_and_when_it_is_back(self, caplog: pytest.LogCaptureFixture) -> None:
        clock, transport = FakeClock(random=0.5), InMemoryTransport(default=DOWN)
        async with client_of(transport, clock=clock, retry=ONE_ATTEMPT) as client:
            await outage(client, clock)
            for _ in range(5):
                with pytest.raises(CircuitOpenError):
                    await client.partner_access("canary-token")
            transport.default = DOCUMENTED
            await recover(client, clock)
        assert [(one.name, one.levelno, one.getMessage()) for one in caplog.records] == [
            (
                "flinks_async",
                logging.WARNING,
                f"{HOST} counts as down: {HOST} cannot be looked up, 10 attempts in 11 s, next try in 1 s",
            ),
            ("flinks_async", logging.WARNING, f"{HOST} is up again, after 10 s"),
        ]
        assert "canary" not in caplog.text
        assert SECRET not in caplog.text

    async def test_is_not_filled_by_an_instance_that_goes_up_and_down(self, caplog: pytest.LogCaptureFixture) -> None:
        clock, transport = FakeClock(random=0.5), InMemoryTransport()
        async with client_of(transport, clock=clock, retry=ONE_ATTEMPT) as client:
            for _ in range(12):  # 15 s each, so 3 minutes
                transport.default = DOWN
                await outage(client, clock, seconds=0.0)
                transport.default = DOCUMENTED
                await recover(client, clock)
                clock.advance(5.0)
        said = [one.getMessage() for one in caplog.records]
        assert [("counts as down" in one, "up again" in one) for one in said] == [(True, False), (False, True)] * 3

    async def test_names_an_outage_late_that_it_had_left_out(self, caplog: pytest.LogCaptureFixture) -> None:
        clock, transport = FakeClock(random=0.5), InMemoryTransport(default=DOWN)
        async with client_of(transport, clock=clock, retry=ONE_ATTEMPT) as client:
            await outage(client, clock, seconds=0.0)
            transport.default = DOCUMENTED
            await recover(client, clock)
            transport.default = DOWN
            await outage(client, clock, seconds=0.0)
            assert len(caplog.records) == 2
            clock.advance(55.0)
            with pytest.raises(ConnectError):  # a probe
                await client.partner_access("canary-token")
        assert "counts as down" in caplog.records[2].getMessage()

    async def test_is_silent_while_all_is_well(self, caplog: pytest.LogCaptureFixture) -> None:
        async with client_of(InMemoryTransport(default=DOCUMENTED)) as client:
            for _ in range(50):
                await client.partner_access("t")
        assert not caplog.records


class TestObservers:
    async def test_are_told_of_an_outage(self) -> None:
        clock, transport, events = FakeClock(random=0.5), InMemoryTransport(default=DOWN), list[Event]()
        async with client_of(transport, clock=clock, retry=ONE_ATTEMPT, observers=[events.append]) as client:
            await outage(client, clock)
            transport.default = DOCUMENTED
            await recover(client, clock)
        down, up = of_instance(events)
        assert down == InstanceDown(HOST, f"{HOST} cannot be looked up", 10, pytest.approx(10.8), pytest.approx(0.75))
        assert up == InstanceUp(HOST, pytest.approx(10.0))

    async def test_are_told_of_a_failed_probe_only_as_an_attempt(self) -> None:
        clock, transport, events = FakeClock(random=0.5), InMemoryTransport(default=DOWN), list[Event]()
        async with client_of(transport, clock=clock, retry=ONE_ATTEMPT, observers=[events.append]) as client:
            await outage(client, clock)
            for _ in range(5):
                clock.advance(60.0)
                with pytest.raises(ConnectError):
                    await client.partner_access("t")
        assert len(of_instance(events)) == 1

    async def test_are_told_of_a_pause_and_its_end(self) -> None:
        clock, events = FakeClock(random=0.0), list[Event]()
        busy = make_response({}, status=503, headers={"Retry-After": "4"})
        transport = InMemoryTransport({"t": [busy, DOCUMENTED, DOCUMENTED]})
        settings = config.bulk()
        async with client_of(transport, clock=clock, settings=settings, observers=[events.append]) as client:
            await client.partner_access("t")
            await client.partner_access("t")
        assert of_instance(events) == [Paused(HOST, f"{HOST} answered 503", 4.0), Resumed(HOST, pytest.approx(4.0))]
        assert [type(one) for one in events][:4] == [AttemptStarted, Paused, AttemptFinished, RetryScheduled]

    async def test_are_told_once_by_all_clients_that_share_them(self) -> None:
        clock, transport = FakeClock(random=0.5), InMemoryTransport(default=DOWN)
        shared, own, gone = list[Event](), list[Event](), list[Event]()
        async with client_of(transport, clock=clock, retry=ONE_ATTEMPT, observers=[shared.append]) as client:
            derived = client.with_options(observers=[shared.append, own.append])
            short = client.with_options(observers=[gone.append])
            for one in (derived, short):
                with pytest.raises(ConnectError):
                    await one.partner_access("t")
            await short.close()
            del short, one
            gc.collect()
            await outage_of_the_rest(client)
        assert [type(one) for one in of_instance(shared)] == [InstanceDown]
        assert [type(one) for one in of_instance(own)] == [InstanceDown]
        assert of_instance(gone) == []

    def test_a_pause_that_is_made_longer_is_told_once(self) -> None:
        clock, events = FakeClock(random=0.0), list[Any]()
        governor = Governor(Limits(waits=True), clock, HOST)

        class Client:
            observers: tuple[Callable[[Any], object], ...] = (events.append,)

        client = Client()
        governor.notices.listeners.add(client)
        busy = Verdict(Kind.TRANSIENT, "http_503")
        record(governor, busy, sent=0.0, status=503, retry_after=4.0, problem="busy")
        clock.advance(1.0)
        record(governor, busy, sent=0.0, status=503, retry_after=9.0, problem="busy")
        governor.join(PaceState(None, 12.0))
        assert events == [Paused(HOST, "busy", 4.0)]

    def test_hear_of_the_pause_of_another_process(self) -> None:
        events, governor = list[Any](), Governor(Limits(), FakeClock(), HOST)

        class Client:
            observers: tuple[Callable[[Any], object], ...] = (events.append,)

        client = Client()
        governor.notices.listeners.add(client)
        governor.join(PaceState(None, 5.0))
        assert events == [Paused(HOST, "another process met a limit of the instance", 5.0)]


async def outage_of_the_rest(client: FlinksClient) -> None:
    for _ in range(8):
        with pytest.raises(ConnectError):
            await client.partner_access("t")


class TestErrors:
    async def test_a_request_that_is_not_sent_names_the_cause(self) -> None:
        clock, transport = FakeClock(random=0.5), InMemoryTransport(default=DOWN)
        limits = {"breaker": config.Breaker(in_a_row=10, probe_interval=10.0)}
        async with client_of(transport, clock=clock, retry=ONE_ATTEMPT, limits=limits) as client:
            await outage(client, clock)
            clock.advance(1.2)
            with pytest.raises(CircuitOpenError) as caught:
                await client.partner_access("t")
        assert caught.value.message == (
            "not sent, because too many of the latest requests failed (the circuit is open): "
            f"{HOST} cannot be looked up, 10 attempts in 12 s, next try in 6 s"
        )
        assert caught.value.retry_after == pytest.approx(6.3)
        assert caught.value.fields()["class"] == "CircuitOpenError"
        assert caught.value.fields()["host"] == HOST

    async def test_so_does_one_while_a_first_probe_has_succeeded(self) -> None:
        clock, transport = FakeClock(random=0.5), InMemoryTransport(default=DOWN)
        async with client_of(transport, clock=clock, retry=ONE_ATTEMPT) as client:
            await outage(client, clock)
            transport.default = DOCUMENTED
            clock.advance(10.0)
            await client.partner_access("t")
            assert client.stats().trouble is None
            assert client.governor.breaker is not None
            client.governor.breaker.take()  # another call has the probe
            with pytest.raises(CircuitOpenError, match=r"half-open.*cannot be looked up, 10 attempts"):
                await client.partner_access("t")

    @pytest.mark.parametrize(
        ("answers", "limits", "why"),
        [
            (DOWN, {"waits": True}, f"the instance counts as down: {HOST} cannot be looked up, 10 attempts in 9 s"),
            (
                make_response({}, status=429, headers={"Retry-After": "300"}),
                {},
                f"requests are paused: {HOST} answered 429",
            ),
            (
                make_response(DOCUMENTED, headers={"RateLimit-Remaining": "0", "RateLimit-Reset": "50"}),
                {},
                "about 1/s, as the instance has allowed so far",
            ),
            (DOCUMENTED, {"rate": 0.01, "burst": 1}, "Limits.rate = 0.01"),
            (DOCUMENTED, {"rate_limiter": GCRA(0.01, 1)}, "Limits.rate_limiter"),
        ],
    )
    async def test_a_wait_that_would_pass_the_deadline_names_its_cause(
        self, answers: Any, limits: Any, why: str
    ) -> None:
        clock, transport = FakeClock(random=0.0), InMemoryTransport(default=answers)
        async with client_of(transport, clock=clock, retry=ONE_ATTEMPT, limits=limits) as client:
            for _ in range(10):
                clock.advance(1.0)
                with suppress(FlinksError):
                    await client.partner_access("t", timeout=0.01)
            with pytest.raises(DeadlineExceededError, match="not sent") as caught:
                await client.partner_access("t", timeout=0.01)
        assert caught.value.message.endswith(f" s, which would pass the deadline ({why})")

    def test_a_deadline_that_passes_names_the_latest_failure(self) -> None:
        busy, sent = make_response({"FlinksCode": "RETRY_LATER"}, status=503), list[object]()

        async def hang_at_last(request: object) -> Any:
            sent.append(request)
            if len(sent) == 3:
                await asyncio.sleep(30)
            return busy

        async def main() -> None:
            async with client_of(transport, clock=VirtualClock(), retry=Retry(attempts=5, base=0.0)) as client:
                await client.partner_access("t", timeout=0.05)

        transport = InMemoryTransport(default=hang_at_last)
        with pytest.raises(DeadlineExceededError) as caught:
            run_virtual(main())
        assert caught.value.message == (
            f"no answer from {HOST} within 0.05 s (3 attempts sent; {HOST} answered 503 RETRY_LATER)"
        )

    async def test_a_deadline_that_passes_in_the_queue_names_what_holds_requests_back(self) -> None:
        transport = InMemoryTransport(default=DOCUMENTED)
        async with FlinksClient(auth_secret=SECRET, transport=transport, limits={"rate": 0.1, "burst": 1}) as client:
            await client.partner_access("t")
            waiting = [asyncio.ensure_future(client.partner_access("t", timeout=seconds)) for seconds in (15, 0.05)]
            results = await asyncio.gather(*waiting[1:], return_exceptions=True)
            waiting[0].cancel()
        (late,) = results
        assert isinstance(late, DeadlineExceededError)
        assert late.message == f"no answer from {HOST} within 0.05 s (0 attempts sent; Limits.rate = 0.1)"

    async def test_a_call_without_quota_for_a_retry_says_how_long_nothing_succeeds(self) -> None:
        clock, transport = FakeClock(random=0.5), InMemoryTransport(default=DOWN)
        retry = Retry(attempts=3, quota=TokenBucketQuota(capacity=0))
        async with client_of(transport, clock=clock, retry=retry) as client:
            for _ in range(4):
                clock.advance(3.0)
                with pytest.raises(QuotaExhaustedError) as caught:
                    await client.partner_access("t")
        assert caught.value.message == (
            f"not retried, because the retry quota for {HOST} is used up; "
            f"the last attempt: {HOST} cannot be looked up (4 attempts failed in 9 s)"
        )

    def test_one_attempt_is_one_attempt(self) -> None:
        async def slow(_: object) -> dict[str, Any]:
            await asyncio.sleep(30)
            return DOCUMENTED

        async def main() -> None:
            async with client_of(InMemoryTransport(default=slow), clock=VirtualClock()) as client:
                await client.partner_access("t", timeout=0.05)

        with pytest.raises(FlinksError, match=r"within 0\.05 s \(1 attempt sent\)"):
            run_virtual(main())
