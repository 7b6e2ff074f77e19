"""The shared pause: the latest end counts, and a ramp follows."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from attrs import evolve

from flinks_async import DeadlineExceededError, Failed, FlinksClient, Limits, Pause, RateLimitedError, config
from flinks_async.limits.pause import SharedPause
from flinks_async.messages import Request, Response
from flinks_async.testing import FakeClock, InMemoryTransport, VirtualClock, run_virtual
from flinks_async.testing.in_memory import make_response

OK = {"GetAccountsDetail": [], "RequestId": "r"}


def throttled(pause: SharedPause, now: float, *, sent: float | None = None, retry_after: float | None = None) -> None:
    pause.throttled(now, sent=now if sent is None else sent, retry_after=retry_after, rate=100.0, random=0.0)


def test_without_trouble_nothing_is_held_back() -> None:
    pause = SharedPause(Pause())
    assert pause.idle(0.0)
    assert (pause.wait(0.0), pause.in_a_row) == (0.0, 0)
    pause.took(0.0, 0.5)
    assert pause.wait(0.0) == 0.0


def test_nobody_sends_until_the_server_allows_it() -> None:
    pause = SharedPause(Pause())
    throttled(pause, 10.0, retry_after=5.0)
    assert pause.wait(10.0) == 5.0
    assert pause.wait(14.0) == 1.0
    assert pause.wait(15.0) == 0.0


def test_the_longest_wins() -> None:
    pause = SharedPause(Pause())
    throttled(pause, 10.0, retry_after=5.0)
    throttled(pause, 11.0, retry_after=1.0)
    assert pause.until == 15.0
    throttled(pause, 12.0, retry_after=20.0)
    assert pause.until == 32.0


def test_the_pause_of_another_process_is_joined_and_the_longest_wins() -> None:
    pause = SharedPause(Pause(ramp=0.0))
    pause.join(10.0, until=15.0, in_a_row=3, rate=100.0)
    assert (pause.wait(10.0), pause.in_a_row) == (5.0, 3)
    pause.join(11.0, until=12.0, in_a_row=1, rate=100.0)
    assert (pause.until, pause.in_a_row) == (15.0, 3)
    pause.join(12.0, until=18.0, in_a_row=1, rate=100.0)
    assert pause.until == 18.0
    throttled(pause, 13.0, sent=9.0)
    assert (pause.until, pause.in_a_row) == (18.0, 3), "sent before the pause: nothing new"
    throttled(pause, 18.0, sent=11.5)
    assert (pause.until, pause.in_a_row) == (18.0, 3), "nor is what was sent before it was joined"
    throttled(pause, 18.0)
    assert pause.in_a_row == 4
    pause.succeeded(sent=30.0)
    assert pause.in_a_row == 0


def test_after_a_joined_pause_the_rate_rises_in_a_ramp() -> None:
    pause = SharedPause(Pause(ramp=10.0))
    pause.join(10.0, until=15.0, in_a_row=1, rate=100.0)
    pause.took(15.0, 0.5)
    assert pause.wait(15.0) == pytest.approx(0.1), "a tenth of the rate"
    assert not pause.idle(24.9)
    assert pause.idle(25.0)
    short = SharedPause(Pause(ramp=10.0))
    short.join(10.0, until=11.0, in_a_row=1, rate=100.0)
    assert short.idle(15.0), "at most four times the pause"


def test_a_server_cannot_ask_for_more_than_the_longest() -> None:
    pause = SharedPause(Pause(longest=60.0))
    throttled(pause, 0.0, retry_after=1e9)
    assert pause.until == 60.0


def test_without_retry_after_the_pause_doubles() -> None:
    pause, now, lengths = SharedPause(Pause(base=1.0, cap=20.0, ramp=0.0)), 0.0, []
    for _ in range(7):
        throttled(pause, now)
        lengths.append(pause.until - now)
        now = pause.until
        assert pause.idle(now)
        pause.took(now, 0.5)
        assert pause.wait(now) == 0.0
    assert lengths == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]  # half of 1, 2, 4, ... with the lowest random number


def test_answers_to_requests_sent_before_the_pause_do_not_extend_it() -> None:
    pause = SharedPause(Pause(base=1.0))
    throttled(pause, 10.0, sent=9.0)
    until = pause.until
    for _ in range(50):
        throttled(pause, 10.1, sent=9.0)
    assert pause.until == until
    throttled(pause, 20.0, sent=9.5)  # a very late answer
    assert pause.until == until


def test_long_after_the_last_ramp_a_new_row_begins() -> None:
    pause = SharedPause(Pause(base=1.0, ramp=10.0, cap=20.0))
    throttled(pause, 0.0)
    throttled(pause, 1.0)
    throttled(pause, 100.0)
    assert pause.until == 100.5
    for now, length in ((22.4, 1.0), (22.5, 0.5)):  # a ramp to 2.5, and 20 seconds
        pause = SharedPause(Pause(base=1.0, ramp=10.0, cap=20.0))
        throttled(pause, 0.0)
        throttled(pause, now)
        assert pause.until == now + length


def test_half_of_the_length_is_random_without_retry_after() -> None:
    for random, until in ((0.0, 0.5), (0.5, 0.75), (0.8, 0.9)):
        pause = SharedPause(Pause(base=1.0))
        pause.throttled(0.0, sent=0.0, retry_after=None, rate=1.0, random=random)
        assert pause.until == pytest.approx(until)


def test_a_success_after_the_pause_ends_the_row_and_one_from_before_it_does_not() -> None:
    pause = SharedPause(Pause(base=1.0, ramp=10.0, cap=20.0))
    throttled(pause, 0.0)
    pause.succeeded(sent=0.0)
    throttled(pause, 1.0)
    assert pause.until == 2.0  # twice as long as the first, which was half a second
    pause.succeeded(sent=2.0)
    throttled(pause, 3.0)
    assert pause.until == 3.5


def test_a_short_pause_has_a_short_ramp() -> None:
    pause = SharedPause(Pause(base=1.0, ramp=10.0))
    throttled(pause, 0.0)
    assert not pause.idle(2.4)
    assert pause.idle(2.5)  # half a second, and four times that


def test_the_end_of_a_pause_is_spread_over_processes() -> None:
    ends = set()
    for random in (0.0, 0.3, 0.9):
        pause = SharedPause(Pause())
        pause.throttled(0.0, sent=0.0, retry_after=30.0, rate=1.0, random=random)
        ends.add(pause.until)
    assert len(ends) == 3
    assert all(30.0 <= end <= 31.0 for end in ends)
    pause = SharedPause(Pause())
    pause.throttled(0.0, sent=0.0, retry_after=2.0, rate=1.0, random=0.5)
    assert pause.until == pytest.approx(2.1)  # a tenth at most


def test_the_ramp() -> None:
    pause = SharedPause(Pause(ramp=10.0))
    throttled(pause, 0.0, retry_after=5.0)
    now, seconds = 5.0, Counter[int]()
    while now < 20.0 and not pause.idle(now):
        assert pause.wait(now) == 0.0
        seconds[int(now)] += 1
        pause.took(now, 0.5)
        now += pause.wait(now)
    per_second = [seconds[second] for second in range(5, 15)]
    assert per_second == pytest.approx(
        [14.5, 23.5, 32.5, 41.5, 50.5, 59.5, 68.5, 77.5, 86.5, 95.5], abs=1
    )  # from a tenth of 100 per second to all of it
    assert pause.idle(15.0)


def test_a_single_caller_does_not_notice_the_ramp_much() -> None:
    pause = SharedPause(Pause())
    pause.throttled(0.0, sent=0.0, retry_after=1.0, rate=0.01, random=0.0)
    pause.took(1.0, 0.5)
    assert pause.wait(1.0) == pytest.approx(0.5)
    pause.took(4.99, 0.5)
    assert pause.wait(4.99) == pytest.approx(0.05, rel=0.02)


def test_requests_are_spaced_while_little_of_a_limit_is_left() -> None:
    pause = SharedPause(Pause(longest=60.0))
    pause.space(10.0, gap=2.0, reset=8.0)
    assert (pause.wait(10.0), pause.wait(11.5), pause.wait(12.0)) == (2.0, 0.5, 0.0)
    pause.took(12.0, 0.5)
    assert pause.wait(12.0) == 2.0
    pause.took(14.0, 0.0)
    assert pause.wait(14.0) == 1.0
    assert pause.wait(17.0) == 0.0
    pause.took(17.0, 0.5)
    assert (pause.wait(17.9), pause.idle(17.9)) == (pytest.approx(1.1), False)
    assert (pause.wait(18.0), pause.idle(18.0)) == (0.0, True)
    pause.took(18.0, 0.5)
    assert pause.wait(18.0) == 0.0
    pause.space(18.0, gap=0.5, reset=8.0)
    assert pause.wait(18.0) == 0.5


def test_a_server_cannot_space_requests_for_longer_than_the_longest_pause() -> None:
    pause = SharedPause(Pause(longest=60.0))
    pause.space(0.0, gap=1e6, reset=1e9)
    assert pause.wait(0.0) == 60.0
    pause.took(0.0, 0.9)
    assert pause.wait(0.0) == 60.0
    assert pause.idle(60.0)


def test_the_wider_gap_wins_in_a_ramp_with_spacing() -> None:
    pause = SharedPause(Pause())
    pause.ramp(0.0, 100.0, 10.0)  # from 10 per second
    pause.space(0.0, gap=1.0, reset=5.0)
    pause.took(0.0, 0.5)
    assert pause.wait(0.0) == 1.0
    pause.space(0.0, gap=0.01, reset=5.0)
    pause.took(0.0, 0.5)
    assert pause.wait(0.0) == pytest.approx(0.1)


class Throttling:
    """A server that throttles for a while."""

    def __init__(self, start: float, end: float, retry_after: float) -> None:
        self._start, self._end, self._asked = start, end, retry_after
        self.times: list[float] = []

    async def send(self, request: Request, /) -> Response:
        now = asyncio.get_running_loop().time()
        self.times.append(now)
        await asyncio.sleep(0.1)
        if self._start <= now < self._end:
            return make_response({}, status=429, headers={"Retry-After": f"{self._asked:g}"})
        return make_response(OK)

    async def close(self) -> None:
        pass


def test_one_throttled_answer_slows_all_workers() -> None:
    async def main() -> tuple[Throttling, int]:
        server, failed = Throttling(2.0, 2.5, 10.0), 0
        client = FlinksClient(auth_secret="s", transport=server, settings=config.bulk(), clock=VirtualClock())
        async with client:
            async for outcome in client.partner_access_many(f"t{i}" for i in range(20_000)):
                failed += isinstance(outcome, Failed)
        return server, failed

    server, failed = run_virtual(main())
    assert failed == 0
    during = [time for time in server.times if 2.2 < time < 12.0]
    assert during == []  # after the first refusal, no request is sent for ten seconds
    before = sum(1.0 <= time < 2.0 for time in server.times)
    resumed = min(time for time in server.times if time > 12.0)
    assert resumed < 13.2
    first_second = sum(resumed <= time < resumed + 1 for time in server.times)
    assert 0 < first_second < before / 3  # the requests do not return all at once


async def test_a_service_fails_at_once_if_the_pause_would_pass_its_deadline() -> None:
    clock = FakeClock(random=0.0)
    refused = make_response({}, status=429, headers={"Retry-After": "50"})
    transport = InMemoryTransport({"a": refused}, default=OK)
    async with FlinksClient(auth_secret="s", transport=transport, clock=clock) as client:
        with pytest.raises(RateLimitedError) as stopped:
            await client.partner_access("a", timeout=5.0)
        assert stopped.value.retry_after == 50.0
        with pytest.raises(DeadlineExceededError, match="held back for another 50 s") as caught:
            await client.partner_access("b", timeout=5.0)
        assert caught.value.retry_after == 50.0
        assert caught.value.attempts == 0
        assert clock.sleeps == []


async def test_a_long_retry_after_stops_a_service_and_pauses_a_job() -> None:
    refused = make_response({}, status=429, headers={"Retry-After": "300"})
    clock = FakeClock(random=0.0)
    async with FlinksClient(auth_secret="s", transport=InMemoryTransport({}, default=refused), clock=clock) as client:
        with pytest.raises(RateLimitedError) as caught:
            await client.partner_access("a")
        assert caught.value.retry_after == 300.0
        assert caught.value.attempts == 1
    transport = InMemoryTransport({}, default=[refused, OK])
    async with FlinksClient(auth_secret="s", transport=transport, settings=config.bulk(), clock=clock) as client:
        await client.partner_access("a")
    assert sum(clock.sleeps) == pytest.approx(300.0)


async def test_a_pause_belongs_to_its_secret() -> None:
    clock = FakeClock(random=0.0)
    refused = make_response({}, status=429, headers={"Retry-After": "50"})
    transport = InMemoryTransport({"a": refused}, default=OK)
    limits = evolve(Limits(), pause=Pause())
    async with FlinksClient(auth_secret="s", transport=transport, clock=clock, limits=limits) as client:
        other = client.with_options(auth_secret="another")
        with pytest.raises(RateLimitedError):
            await client.partner_access("a", timeout=5.0)
        await other.partner_access("b", timeout=5.0)


async def test_a_job_pauses_an_hour_at_most_whatever_the_server_asks() -> None:
    clock = FakeClock(random=0.0)
    refused = make_response({}, status=429, headers={"Retry-After": "1000000000"})
    transport = InMemoryTransport({}, default=[refused, OK])
    async with FlinksClient(auth_secret="s", transport=transport, settings=config.bulk(), clock=clock) as client:
        await client.partner_access("a")
    assert sum(clock.sleeps) == pytest.approx(3600.0)
