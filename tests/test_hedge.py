"""Hedging: a second attempt for one that takes unusually long."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from flinks_async import ConfigError, FlinksClient, Hedge, Limits, NotFoundError, Retry, Timeouts, TokenBucketQuota
from flinks_async.errors import ReadError
from flinks_async.messages import Handler, Request, Response
from flinks_async.middleware.hedge import LatencyPercentile
from flinks_async.testing import VirtualClock, run_virtual
from flinks_async.testing.in_memory import make_response

OK = {"GetAccountsDetail": [], "RequestId": "r"}


class Paced:
    """A transport whose answer to request `number` (from 1) takes `seconds(number)`."""

    def __init__(self, seconds: Callable[[int], float], status: Callable[[int], int] = lambda number: 200) -> None:
        self._seconds, self._status = seconds, status
        self.sent = self.cancelled = self.in_flight = 0

    async def send(self, request: Request, /) -> Response:
        self.sent += 1
        self.in_flight += 1
        number = self.sent
        try:
            await asyncio.sleep(self._seconds(number))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1
        status = self._status(number)
        return make_response(OK if status == 200 else {}, status=status)

    async def close(self) -> None:
        pass


def client_of(transport: Paced, **options: object) -> FlinksClient:
    options = {"hedge": Hedge(), "retry": Retry(attempts=1), "limits": Limits(breaker=None), **options}
    return FlinksClient(auth_secret="s", transport=transport, clock=VirtualClock(), **options)


async def learn(client: FlinksClient, calls: int = 20) -> None:
    for _ in range(calls):
        await client.partner_access("t")


def test_the_percentile() -> None:
    latencies = LatencyPercentile(Hedge(percentile=0.95, minimum=0.05, samples=20))
    for number in range(19):
        latencies.add(number / 10)
    assert latencies.delay is None
    latencies.add(1.9)
    assert latencies.delay == 1.9
    for _ in range(500):
        latencies.add(0.001)
    assert latencies.delay == 0.05


def test_any_percentile_looked_up_again_after_twenty_more() -> None:
    latencies = LatencyPercentile(Hedge(percentile=0.5, minimum=0.05, samples=20))
    for number in range(20):
        latencies.add(number / 10)
    assert latencies.delay == 1.0
    latencies = LatencyPercentile(Hedge(percentile=1.0, minimum=0.05, samples=5))
    for number in range(5):
        latencies.add(number / 10)
    assert latencies.delay == 0.4
    for _ in range(19):
        latencies.add(7.0)
    assert latencies.delay == 0.4
    latencies.add(7.0)
    assert latencies.delay == 7.0


def test_as_many_samples_as_are_remembered_are_the_most_that_can_be_asked_for() -> None:
    latencies = LatencyPercentile(Hedge(samples=500))
    for _ in range(499):
        latencies.add(1.0)
    assert latencies.delay is None
    latencies.add(1.0)
    assert latencies.delay == 1.0
    with pytest.raises(ConfigError, match=r"Hedge\.samples must be a whole number from 1 to 500, not 501"):
        Hedge(samples=501)


def test_a_time_is_that_of_one_attempt_and_without_a_deadline_there_is_a_hedge_too() -> None:
    async def main() -> None:
        transport = Paced(lambda number: 100.0 if number == 22 else 0.1, lambda number: 503 if number == 1 else 200)
        timeouts = Timeouts(attempt=None, deadline=None)
        retry = Retry(attempts=2, base=0.0)
        async with client_of(transport, hedge=Hedge(percentile=1.0), retry=retry, timeouts=timeouts) as client:
            await learn(client)
            started = asyncio.get_running_loop().time()
            await client.partner_access("t")
            assert asyncio.get_running_loop().time() - started == pytest.approx(0.2, abs=0.01)

    run_virtual(main())


def test_the_counts_of_consecutive_attempts_are_added_up() -> None:
    async def main() -> None:
        transport = Paced(lambda number: 0.1, lambda number: 503 if 20 < number <= 24 else 200)
        retry, limits = Retry(attempts=3, base=0.0), Limits(breaker=None, concurrency=1)
        async with client_of(transport, retry=retry, limits=limits) as client:
            await learn(client)
            both = await asyncio.gather(client.partner_access("a"), client.partner_access("b"))
            assert [one.meta.attempts for one in both] == [3, 3]
            assert [one.meta.wire_time for one in both] == pytest.approx([0.3, 0.3])
            assert [one.meta.queue_time for one in both] == pytest.approx([0.2, 0.3])

    run_virtual(main())


@pytest.mark.parametrize("stubborn", [False, True])
def test_the_losing_attempt_is_not_logged_by_asyncio(stubborn: bool) -> None:
    class Loses(Paced):
        """Ends with an error of its own when cancelled, if stubborn."""

        async def send(self, request: Request, /) -> Response:
            try:
                return await super().send(request)
            except asyncio.CancelledError:
                if stubborn:
                    raise ReadError("broke") from None
                raise

    async def main() -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        transport = Loses(lambda number: 100.0 if number == 21 else 0.1)
        async with client_of(transport) as client:
            await learn(client)
            await client.partner_access("t")
            assert transport.cancelled == 1
        gc.collect()
        await asyncio.sleep(0)
        assert complaints == []

    run_virtual(main())


def test_a_slow_attempt_is_overtaken_and_cancelled() -> None:
    async def main() -> None:
        transport = Paced(lambda number: 100.0 if number == 21 else 0.1)
        async with client_of(transport) as client:
            await learn(client)
            loop = asyncio.get_running_loop()
            started = loop.time()
            answer = await client.partner_access("t")
            assert loop.time() - started == pytest.approx(0.2, abs=0.01)
            assert (transport.sent, transport.cancelled, transport.in_flight) == (22, 1, 0)
            assert client.stats().requests == 22
            assert client.stats().requests_in_flight == 0
            assert answer.meta.attempts == 2

    run_virtual(main())


def test_nothing_is_hedged_before_enough_attempts_are_known() -> None:
    async def main() -> None:
        transport = Paced(lambda number: 5.0)
        async with client_of(transport) as client:
            await learn(client, 20)
            assert transport.sent == 20

    run_virtual(main())


def test_the_first_good_answer_wins_not_the_first() -> None:
    async def main() -> None:
        transport = Paced(
            lambda number: {21: 1.0, 22: 0.1}.get(number, 0.1), lambda number: 503 if number == 22 else 200
        )
        async with client_of(transport) as client:
            await learn(client)
            assert (await client.partner_access("t")).request_id == "r"
            assert transport.sent == 22

    run_virtual(main())


def test_two_failures_are_one_outcome() -> None:
    async def main() -> None:
        transport = Paced(
            lambda number: 1.0 if number >= 21 else 0.1, lambda number: {21: 404, 22: 503}.get(number, 200)
        )
        async with client_of(transport) as client:
            await learn(client)
            with pytest.raises(NotFoundError) as caught:
                await client.partner_access("t")
            assert caught.value.attempts == 2

    run_virtual(main())


def test_hedges_are_paid_from_the_quota() -> None:
    async def main() -> None:
        transport = Paced(lambda number: 10.0 if number > 20 else 0.1)
        retry = Retry(attempts=1, quota=TokenBucketQuota(capacity=28, clean_success=0))
        async with client_of(transport, retry=retry) as client:
            await learn(client)
            for _ in range(5):
                await client.partner_access("t", timeout=30.0)
            assert transport.sent == 25 + 2

    run_virtual(main())


def test_no_hedge_before_the_first_attempt_is_sent() -> None:
    async def slow(request: Request, call_next: Handler) -> Response:
        entered.append(request)
        await asyncio.sleep(0.45 if transport.sent == 20 else 0.0)
        return await call_next(request)

    async def main() -> None:
        async with client_of(transport, attempt_middleware=[slow]) as client:
            await learn(client)
            await client.partner_access("t")
            assert len(entered) == 21

    entered: list[Request] = []
    transport = Paced(lambda number: 0.01 if number == 21 else 0.1)
    run_virtual(main())


def test_with_hedging_attempts_while_the_instance_is_down_cost_a_job_nothing() -> None:
    async def main() -> None:
        transport = Paced(lambda number: 0.1, lambda number: 503 if 20 < number <= 60 else 200)
        retry = Retry(attempts=20, quota=TokenBucketQuota(capacity=9 * 14))
        timeouts = Timeouts(attempt=None, deadline=None)
        async with client_of(transport, retry=retry, limits=Limits(waits=True), timeouts=timeouts) as client:
            await learn(client, 21)
            assert transport.sent == 61

    run_virtual(main())


def test_a_time_after_a_retry_is_that_of_one_attempt_too() -> None:
    async def main() -> None:
        def seconds(number: int) -> float:
            return 0.2 if number <= 20 else 100.0 if number == 42 else 0.1

        transport = Paced(seconds, lambda number: 503 if number == 21 else 200)
        async with client_of(transport, hedge=Hedge(percentile=1.0), retry=Retry(attempts=2, base=0.0)) as client:
            await learn(client, 40)
            started = asyncio.get_running_loop().time()
            await client.partner_access("t")
            assert asyncio.get_running_loop().time() - started == pytest.approx(0.3, abs=0.01)

    run_virtual(main())


def test_no_hedge_while_all_slots_are_in_use() -> None:
    async def main() -> None:
        transport = Paced(lambda number: 5.0 if number > 20 else 0.1)
        async with client_of(transport, limits=Limits(breaker=None, concurrency=2)) as client:
            await learn(client)
            await asyncio.gather(*(client.partner_access("t") for _ in range(6)))
            # Three rounds of two: all slots are always in use, and queued calls are not hedged.
            assert transport.sent == 26

    run_virtual(main())


def test_cancelled_both_attempts_end() -> None:
    async def main() -> None:
        transport = Paced(lambda number: 100.0 if number > 20 else 0.1)
        async with client_of(transport) as client:
            await learn(client)
            for wait in (0.05, 0.15, 0.5):
                call = asyncio.ensure_future(client.partner_access("t"))
                await asyncio.sleep(wait)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                assert transport.in_flight == 0
                assert client.stats().requests_in_flight == 0
            assert len(asyncio.all_tasks()) == 1

    run_virtual(main())


def test_it_is_a_setting_of_a_client() -> None:
    with pytest.raises(ConfigError, match="hedge must be Hedge or None"):
        FlinksClient(auth_secret="s", hedge=True)
    with pytest.raises(ConfigError, match=r"Hedge\.percentile"):
        Hedge(percentile=95)
