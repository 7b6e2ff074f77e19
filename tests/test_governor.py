"""The governor: order, slots, cancellation, and how it learns from answers."""

from __future__ import annotations

import asyncio

import pytest

from flinks_async import Adaptive, CircuitOpenError, DeadlineExceededError, FlinksClient, Limits, config
from flinks_async.limits.governor import Governor, Trouble
from flinks_async.limits.pace import AttemptRecord, Mode
from flinks_async.limits.rate import LearnedLimit, PaceState
from flinks_async.messages import Request, Response
from flinks_async.testing import FakeClock, VirtualClock, run_virtual
from flinks_async.testing.in_memory import make_response
from flinks_async.verdict import OK, Kind, Verdict

from .support import record

FAILED = Verdict(Kind.TRANSIENT, "ConnectError")
FAILED_BUSY = Verdict(Kind.TRANSIENT, "http_503")
THROTTLED = Verdict(Kind.THROTTLED, "http_429")
ANSWER = {"GetAccountsDetail": [], "RequestId": "r"}


def governor_of(clock: FakeClock | VirtualClock | None = None, **limits: object) -> Governor:
    return Governor(Limits(**{"concurrency": 2, **limits}), clock or FakeClock(random=0.5))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_slots_are_given_in_fifo_order() -> None:
    governor, order = governor_of(), list[int]()

    async def one(number: int) -> None:
        await governor.acquire()
        order.append(number)
        await asyncio.sleep(0)
        governor.release()

    await asyncio.gather(*(one(number) for number in range(50)))
    assert order == list(range(50))
    assert (governor.in_use, governor.waiting) == (0, 0)


async def test_nobody_overtakes_those_who_wait() -> None:
    governor = governor_of(concurrency=1)
    assert governor.try_acquire()
    waiting = asyncio.ensure_future(governor.acquire())
    await settle()
    assert governor.waiting == 1
    governor.release()
    assert not governor.try_acquire()
    assert await waiting is False
    assert governor.in_use == 1


async def test_fifo_order_holds_during_a_pause_too() -> None:
    clock = FakeClock(random=0.5)
    governor, order = governor_of(clock, concurrency=3), list[int]()
    throttled(governor)

    async def one(number: int) -> None:
        await governor.acquire()
        order.append(number)
        await asyncio.sleep(0)
        governor.release()

    await asyncio.gather(*(one(number) for number in range(50)))
    assert order == list(range(50))
    assert (governor.in_use, governor.waiting) == (0, 0)


async def test_waiting_counts_the_queue_and_its_leader() -> None:
    governor = governor_of(concurrency=1)
    assert governor.has_room
    assert governor.try_acquire()
    assert not governor.has_room
    throttled(governor)
    waiting = [asyncio.ensure_future(governor.acquire()) for _ in range(3)]
    await settle()
    assert governor.waiting == 3
    for one in waiting:
        one.cancel()


def test_the_rate_is_that_of_the_last_second_or_of_the_time_since_then() -> None:
    clock = FakeClock()
    clock.advance(50.0)
    governor = governor_of(clock)
    assert governor.rate_now == 0.0
    for _ in range(20):
        record(governor, OK, sent=50.0, status=200)
    assert governor.rate_now == 20.0
    clock.advance(0.5)
    assert governor.rate_now == 20.0
    clock.advance(0.5)
    for _ in range(10):
        record(governor, OK, sent=50.0, status=200)
    assert governor.rate_now == 21.0
    clock.advance(4.0)
    assert governor.rate_now == 21.0
    record(governor, OK, sent=50.0, status=200)
    assert governor.rate_now == 2.5
    clock.advance(9.9)
    assert governor.rate_now == 2.5
    clock.advance(0.1)
    assert governor.rate_now == 0.0


class Told:
    """Records its calls, in place of a concurrency state."""

    limit = 10

    def __init__(self) -> None:
        self.all: list[tuple[str, int]] = []

    def answered(self, time_to_first_byte: float, now: float, in_use: int) -> None:
        self.all.append(("answered", in_use))

    def refused(self) -> None:
        self.all.append(("refused", 4))

    def bound(self, most: int | None) -> None:
        pass

    def failed(self, in_use: int) -> None:
        self.all.append(("failed", in_use))


def test_the_slot_just_released_counts_as_in_use() -> None:
    for verdict, status, what in (
        (OK, 200, "answered"),
        (Verdict(Kind.FINAL, "http_404"), 404, "refused"),
        (FAILED, None, "failed"),
        (FAILED, 500, "failed"),
        (FAILED, 499, "refused"),
        (Verdict(Kind.TRANSIENT, "AGGREGATION_ERROR"), 500, "refused"),
    ):
        governor, told = governor_of(), Told()
        governor.concurrency = told
        governor.in_use = 3
        record(governor, verdict, sent=0.0, status=status, time_to_first_byte=0.1)
        assert told.all == [(what, 4)]


def test_every_sixteenth_answer_is_checked_for_headers_until_there_are_some() -> None:
    governor = governor_of()
    little = {"RateLimit-Remaining": "0", "RateLimit-Reset": "7"}
    record(governor, OK, sent=0.0, status=200)
    for _ in range(15):
        record(governor, OK, sent=0.0, status=200, headers=little)
    assert governor.held_back == 0.0
    record(governor, OK, sent=0.0, status=200, headers=little)
    assert 0.0 < governor.held_back <= 7.0
    plenty = governor_of()
    record(plenty, OK, sent=0.0, status=200, headers={**little, "RateLimit-Remaining": "99", "RateLimit-Limit": "100"})
    assert plenty.has_room


async def test_what_is_learned_is_told_once_and_joining_it_tells_nothing() -> None:
    clock = FakeClock(random=0.0)
    one, other = governor_of(clock, concurrency=3), governor_of(clock, concurrency=3)
    told: list[tuple[str, PaceState]] = []
    one.on_pace = lambda state: told.append(("one", state))
    other.on_pace = lambda state: told.append(("other", state))
    now = clock.now()
    record(one, FAILED_BUSY, sent=now, status=503, retry_after=5.0)
    record(one, FAILED_BUSY, sent=now, status=503, retry_after=5.0)
    assert told == []  # a service does not wait for a 503
    one, other = governor_of(clock, waits=True), governor_of(clock, waits=True)
    one.on_pace = lambda state: told.append(("one", state))
    other.on_pace = lambda state: told.append(("other", state))
    for _ in range(3):
        record(one, FAILED_BUSY, sent=now, status=503, retry_after=5.0)
    assert told == [("one", PaceState(None, now + 5.0))]
    other.join(PaceState(None, now))
    assert other.held_back == 0.0, "that one is over"
    other.join(told[0][1])
    assert not other.has_room
    assert other.held_back == one.held_back == 5.0
    await other.acquire()
    assert clock.now() == now + 5.0
    assert [who for who, _ in told] == ["one"]


def test_processes_that_tell_each_other_their_rates_get_the_same_rate() -> None:
    clock = FakeClock()
    one, other = governor_of(clock), governor_of(clock)
    one.join(PaceState(80.0, 0.0))
    other.join(PaceState(20.0, 0.0))
    one.join(PaceState(20.0, 0.0))
    assert one.learned == LearnedLimit(50.0)
    assert other.learned == LearnedLimit(20.0)


def fair(governor: Governor) -> None:
    pass


def throttled(governor: Governor) -> None:
    governor.pace.pause_until(5.0, 0.0)
    governor.join(PaceState(None, 5.0))


def down(governor: Governor) -> None:
    for _ in range(10):
        record(governor, FAILED, sent=0.0)


WEATHER = {"fair": fair, "throttled": throttled, "down": down}


@pytest.mark.parametrize("weather", WEATHER)
@pytest.mark.parametrize("rate", [None, 1000.0])
@pytest.mark.parametrize("victim", range(5))
@pytest.mark.parametrize("steps", range(12))
def test_cancelling_anywhere_loses_no_slot_and_blocks_nobody(
    steps: int, victim: int, rate: float | None, weather: str
) -> None:
    async def main() -> None:
        governor = governor_of(VirtualClock(), waits=True, rate=rate)
        WEATHER[weather](governor)

        async def one() -> None:
            probe = await governor.acquire()
            try:
                await asyncio.sleep(0.01)
                record(governor, OK, sent=0.0, status=200, time_to_first_byte=0.01, probe=probe)
            except asyncio.CancelledError:
                governor.abandon(AttemptRecord(0.0, probe=probe))
                raise
            finally:
                governor.release()

        tasks = [asyncio.ensure_future(one()) for _ in range(5)]
        for _ in range(steps):
            await asyncio.sleep(0)
        tasks[victim].cancel()
        ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 120)
        assert sum(isinstance(one, asyncio.CancelledError) for one in ended) <= 1
        assert all(one is None for number, one in enumerate(ended) if number != victim)
        assert (governor.in_use, governor.waiting) == (0, 0)
        assert await asyncio.wait_for(governor.acquire(), 60) is False

    run_virtual(main())


async def test_a_waiter_cancelled_with_a_slot_passes_it_on() -> None:
    governor = governor_of(concurrency=1)
    assert governor.try_acquire()
    first, second = (asyncio.ensure_future(governor.acquire()) for _ in range(2))
    await settle()
    governor.release()  # the slot is the first waiter's now, which has not run yet
    first.cancel()
    await settle()
    assert first.cancelled()
    assert second.done()
    governor.release()
    assert (governor.in_use, governor.waiting) == (0, 0)


@pytest.mark.parametrize("raining", [False, True], ids=["fair weather", "bad weather"])
async def test_a_waiter_cancelled_before_a_release_is_skipped(raining: bool) -> None:
    governor = governor_of(concurrency=1)
    assert governor.try_acquire()
    first, second = (asyncio.ensure_future(governor.acquire()) for _ in range(2))
    await settle()
    if raining:
        record(governor, THROTTLED, sent=0.0, status=429, retry_after=1.0)
    first.cancel()
    governor.release()  # before the first waiter has run
    await asyncio.wait([first, second])
    assert first.cancelled()
    assert second.result() is False
    assert (governor.in_use, governor.waiting) == (1, 0)


async def test_a_waiter_cancelled_as_the_new_leader_passes_the_lead_on() -> None:
    governor = governor_of(concurrency=1)
    assert governor.try_acquire()
    first, second = (asyncio.ensure_future(governor.acquire()) for _ in range(2))
    await settle()
    throttled(governor)  # the first waiter is the leader now, and has not run yet
    first.cancel()
    governor.release()
    await settle()
    assert first.cancelled()
    assert second.done()
    governor.release()
    assert (governor.in_use, governor.waiting) == (0, 0)


@pytest.mark.parametrize("weather", WEATHER)
def test_all_cancelled_at_once(weather: str) -> None:
    async def main() -> None:
        governor = governor_of(VirtualClock(), waits=True)
        WEATHER[weather](governor)
        tasks = [asyncio.ensure_future(governor.acquire()) for _ in range(10)]
        await settle()
        taken = governor.in_use
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert sum(task.cancelled() for task in tasks) == 10 - taken, "a cancellation must come out as one"
        for _ in range(taken):
            governor.release()
        assert (governor.in_use, governor.waiting) == (0, 0)

    run_virtual(main())


async def test_queued_requests_fail_fast_when_the_instance_goes_down() -> None:
    governor = governor_of(concurrency=1)
    assert governor.try_acquire()
    waiting = [asyncio.ensure_future(governor.acquire()) for _ in range(5)]
    await settle()
    down(governor)
    await settle()
    governor.release()
    await settle()
    assert all(isinstance(one.exception(), CircuitOpenError) for one in waiting)
    assert (governor.in_use, governor.waiting) == (0, 0)


def test_while_the_instance_is_down_nobody_queues_behind_a_request_that_waits_for_its_turn() -> None:
    async def main() -> None:
        clock = VirtualClock()
        governor, began = governor_of(clock, rate=0.01), clock.now()
        await governor.acquire()
        first = asyncio.ensure_future(governor.acquire())
        await settle()
        down(governor)
        with pytest.raises(CircuitOpenError):
            await governor.acquire()
        assert clock.now() == began
        first.cancel()

    run_virtual(main())


async def test_a_wait_that_would_pass_the_deadline_is_not_started() -> None:
    clock = FakeClock(random=0.0)
    governor = governor_of(clock, waits=True)
    throttled(governor)
    with pytest.raises(DeadlineExceededError, match="another 5 s"):
        await governor.acquire(deadline=5.0)
    assert clock.sleeps == []
    assert (governor.in_use, governor.waiting) == (0, 0)
    await governor.acquire(deadline=6.0)
    assert clock.now() == 5.0


@pytest.mark.parametrize(("kind", "held_back"), [(Kind.BROKEN, 1.5), (Kind.STALE, 0.0)])
async def test_a_probe_without_an_answer_has_failed_unless_its_connection_was_dead(
    kind: Kind, held_back: float
) -> None:
    clock = FakeClock(random=0.5)
    governor = governor_of(clock)
    down(governor)
    clock.advance(1.0)
    assert await governor.acquire()
    record(governor, Verdict(kind, "no answer"), sent=1.0, probe=True)
    assert governor.held_back == held_back


async def test_a_late_answer_is_no_probe() -> None:
    clock = FakeClock(random=0.5)
    governor = governor_of(clock)
    down(governor)
    held = governor.held_back
    record(governor, FAILED, sent=0.0)
    assert governor.held_back == held > 0
    clock.advance(1.0)
    assert await governor.acquire()
    governor.abandon(AttemptRecord(0.0, probe=False))
    assert governor.held_back == float("inf"), "the probe is still under way"


@pytest.mark.parametrize(
    ("verdict", "status"), [(OK, 200), (THROTTLED, 429), (Verdict(Kind.FINAL, "http_404"), 404)], ids=str
)
async def test_any_answer_of_an_instance_that_is_up_ends_an_outage_and_resets_concurrency(
    verdict: Verdict, status: int
) -> None:
    clock = FakeClock(random=0.5)
    governor = governor_of(clock, concurrency=Adaptive(initial=20))
    down(governor)
    assert governor.concurrency.limit == 14
    clock.advance(1.0)
    for _ in range(2):
        assert await governor.acquire()
        record(governor, verdict, sent=clock.now(), status=status, probe=True)
        governor.release()
    assert governor.breaker is not None
    assert governor.breaker.closed
    assert governor.concurrency.limit == 20
    assert governor.throttled == (2 if verdict is THROTTLED else 0)


def test_without_a_breaker_no_instance_is_down() -> None:
    governor = governor_of(breaker=None)
    assert not any(record(governor, FAILED, sent=0.0) for _ in range(50))
    assert governor.has_room


async def test_an_abandoned_probe_makes_room_for_the_next_one() -> None:
    clock = FakeClock(random=0.5)
    governor = governor_of(clock, waits=True)
    down(governor)
    clock.advance(1.0)
    assert await governor.acquire()
    waiting = asyncio.ensure_future(governor.acquire())
    await settle()
    assert not waiting.done()
    governor.abandon(AttemptRecord(0.0, probe=True))
    await settle()
    assert waiting.done()
    assert waiting.result() is True


async def test_after_an_outage_the_rate_rises_from_a_tenth_of_what_it_was_before() -> None:
    clock = FakeClock(random=0.5)
    governor = governor_of(clock, concurrency=1000)
    for _ in range(990):
        record(governor, OK, sent=0.0, status=200)
    down(governor)
    clock.advance(1.0)
    for _ in range(2):
        assert await governor.acquire()
        record(governor, OK, sent=1.0, status=200, probe=True)
        governor.release()
    started = clock.now()
    for _ in range(50):
        await governor.acquire()
    assert 0.3 < clock.now() - started < 0.6, "about 100 per second"


async def test_a_turn_that_has_come_needs_no_wait() -> None:
    clock = FakeClock()
    governor = governor_of(clock, rate=1.0)
    await governor.acquire()
    assert clock.sleeps == []
    await governor.acquire()
    assert clock.sleeps == pytest.approx([1.0])


async def test_sending_is_unrestricted_again_after_a_pause() -> None:
    clock = FakeClock(random=0.0)
    governor = governor_of(clock)
    throttled(governor)
    assert not governor.try_acquire()
    clock.advance(100.0)
    assert not governor.try_acquire()  # the next waiter finds out
    await governor.acquire()
    assert governor.try_acquire()


async def test_a_limit_that_grows_lets_waiters_in() -> None:
    governor = Governor(Limits(concurrency=Adaptive(initial=2)), FakeClock())
    governor.pace.mode = Mode.FREE
    governor.concurrency.slow_start = False
    governor.in_use = 2
    waiting = asyncio.ensure_future(governor.acquire())
    await settle()
    assert not waiting.done()
    for _ in range(60):
        record(governor, OK, sent=0.0, status=200, time_to_first_byte=0.1)
    await settle()
    assert waiting.done()
    assert governor.in_use == 3


async def test_a_job_pauses_for_a_503_that_says_how_long() -> None:
    clock = FakeClock(random=0.0)
    governor = governor_of(clock, waits=True)
    record(governor, Verdict(Kind.TRANSIENT, "http_503"), sent=0.0, status=503, retry_after=30.0)
    await governor.acquire()
    assert clock.now() == 30.0


@pytest.mark.parametrize(("status", "waits"), [(503, False), (500, True)], ids=["a service", "another status"])
def test_retry_after_of_other_failures_is_no_pause(status: int, waits: bool) -> None:
    governor = governor_of(waits=waits)
    record(governor, Verdict(Kind.TRANSIENT, f"http_{status}"), sent=0.0, status=status, retry_after=30.0)
    assert governor.held_back == 0.0


class SlowBody:
    """A transport with fast headers and slow bodies."""

    def __init__(self, headers: float, body: float) -> None:
        self._headers, self._body = headers, body

    async def send(self, request: Request, /) -> Response:
        await asyncio.sleep(self._headers)
        request.call.headers_came()
        await asyncio.sleep(self._body)
        return make_response(ANSWER)

    async def close(self) -> None:
        pass


def test_large_answers_do_not_shrink_the_limit() -> None:
    async def main() -> tuple[float, int]:
        transport = SlowBody(0.1, 0.0)
        client = FlinksClient(auth_secret="s", transport=transport, settings=config.bulk(), clock=VirtualClock())
        async with client:
            async for _ in client.partner_access_many(f"t{i}" for i in range(500)):
                pass
            transport._body = 20.0
            async for _ in client.partner_access_many(f"t{i}" for i in range(2000)):
                pass
            assert client._state is not None
            concurrency = client._state.governor.concurrency
            return concurrency.baseline, concurrency.limit

    baseline, limit = run_virtual(main())
    assert baseline == pytest.approx(0.1)
    assert limit > 30


class DeadTokensFirst:
    """Refuses the first tokens at once, and answers the others slowly with data."""

    def __init__(self, dead: int) -> None:
        self._dead = dead

    async def send(self, request: Request, /) -> Response:
        if int(request.token.reveal()[1:]) < self._dead:
            return make_response({}, status=404)
        await asyncio.sleep(0.1)
        return make_response(ANSWER)

    async def close(self) -> None:
        pass


def test_quick_refusals_do_not_set_the_baseline() -> None:
    async def main(dead: int) -> tuple[float, int]:
        transport = DeadTokensFirst(dead)
        client = FlinksClient(auth_secret="s", transport=transport, settings=config.bulk(), clock=VirtualClock())
        async with client:
            async for _ in client.partner_access_many(f"t{i}" for i in range(2000)):
                pass
            assert client._state is not None
            concurrency = client._state.governor.concurrency
            return concurrency.baseline, concurrency.limit

    assert run_virtual(main(100)) == pytest.approx(run_virtual(main(0)), rel=0.2)


def test_a_deadline_on_the_wire_counts_as_a_timeout() -> None:
    async def main() -> None:
        client = FlinksClient(auth_secret="s", transport=SlowBody(1e6, 0.0), clock=VirtualClock())
        async with client:
            for _ in range(10):
                with pytest.raises(DeadlineExceededError):
                    await client.partner_access("t", timeout=2.0)
            with pytest.raises(CircuitOpenError):
                await client.partner_access("t", timeout=2.0)

    run_virtual(main())


def test_trouble_counts_failures_in_a_row_and_ends_with_a_success() -> None:
    governor = governor_of()
    governor.record(AttemptRecord(0.0, ended=1.0, verdict=FAILED, problem="the host is not known"))
    governor.record(AttemptRecord(verdict=THROTTLED, sent=0.0, status=429, ended=3.0, problem="the host answered 429"))
    assert (governor.trouble, governor.answered) == (Trouble("the host answered 429", 2, 0.0), True)
    governor.record(AttemptRecord(verdict=OK, sent=0.0, status=200, ended=4.0))
    assert governor.trouble is None
    governor.record(
        AttemptRecord(
            verdict=Verdict(Kind.STALE, "a dead connection"), sent=0.0, ended=5.0, problem="the connection was closed"
        )
    )
    assert governor.trouble is None
    governor.record(
        AttemptRecord(
            verdict=Verdict(Kind.BROKEN, "ProtocolError"), sent=0.0, ended=6.0, problem="the answer is not HTTP"
        )
    )
    assert governor.trouble == Trouble("the answer is not HTTP", 1, 6.0)
    governor.record(AttemptRecord(verdict=Verdict(Kind.FINAL, "http_404"), sent=0.0, status=404, ended=7.0))
    assert governor.trouble is None
    governor.record(
        AttemptRecord(
            verdict=Verdict(Kind.BROKEN, "ProtocolError"), sent=0.0, ended=8.0, probe=True, problem="a failed probe"
        )
    )
    assert governor.trouble == Trouble("a failed probe", 1, 8.0)


def test_the_trouble_of_an_instance_that_has_never_answered_begins_when_its_first_request_was_sent() -> None:
    governor = governor_of()
    governor.record(AttemptRecord(0.0, ended=1.0, verdict=FAILED, problem="no connection"))
    assert (governor.trouble, governor.answered) == (Trouble("no connection", 1, 0.0), False)
