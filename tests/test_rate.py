"""The rate limit, and the RateLimit headers of servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from multidict import CIMultiDict

from flinks_async import ConfigError, DeadlineExceededError, FlinksClient, Limits
from flinks_async.limits.governor import Governor
from flinks_async.limits.rate import GCRA, LearnedLimit, ServerLimit, read_rate_limit
from flinks_async.testing import FakeClock, InMemoryTransport, VirtualClock, run_virtual
from flinks_async.testing.in_memory import make_response

OK = {"GetAccountsDetail": [], "RequestId": "r"}


def test_permits_are_evenly_spread() -> None:
    limit = GCRA(rate=10, burst=1)
    assert [limit.reserve(0.0) for _ in range(4)] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_a_burst_goes_at_once() -> None:
    limit = GCRA(rate=10, burst=3)
    assert [limit.reserve(0.0) for _ in range(5)] == pytest.approx([0.0, 0.0, 0.0, 0.1, 0.2])


def test_idle_time_is_not_saved_up_beyond_the_burst() -> None:
    limit = GCRA(rate=10, burst=2)
    limit.reserve(0.0)
    assert [limit.reserve(100.0) for _ in range(4)] == pytest.approx([0.0, 0.0, 0.1, 0.2])


def test_the_burst_is_a_tenth_of_a_second_unless_given() -> None:
    limit = GCRA(rate=200)
    assert sum(limit.reserve(0.0) == 0.0 for _ in range(50)) == 20
    slow = GCRA(rate=5)
    assert [slow.reserve(0.0), slow.reserve(0.0)] == pytest.approx([0.0, 0.2])


def test_many_calls_keep_to_the_rate() -> None:
    async def main() -> list[float]:
        loop, times = asyncio.get_running_loop(), list[float]()

        def answer(request: object) -> Mapping[str, object]:
            times.append(loop.time())
            return OK

        transport = InMemoryTransport({}, default=answer)
        limits = Limits(rate=200.0, burst=1)
        async with FlinksClient(auth_secret="s", transport=transport, limits=limits, clock=VirtualClock()) as client:
            async for _ in client.partner_access_many(f"t{i}" for i in range(1000)):
                pass
        return times

    times = run_virtual(main())
    assert times[-1] == pytest.approx(999 / 200, rel=0.01)
    assert all(later - earlier > 0.0049 for earlier, later in pairwise(times))


class SharedLimiter:
    """A limiter like one that asks a store: async, with permits a second apart."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def reserve(self, now: float, /) -> float:
        await asyncio.sleep(0)
        self.asked.append(now)
        return 1.0


async def test_a_users_limiter_is_called_once_per_request() -> None:
    limiter, clock = SharedLimiter(), FakeClock()
    transport = InMemoryTransport({}, default=OK)
    limits = Limits(rate_limiter=limiter)
    async with FlinksClient(auth_secret="s", transport=transport, limits=limits, clock=clock) as client:
        for _ in range(3):
            await client.partner_access("t")
    assert clock.sleeps == [1.0, 1.0, 1.0]
    assert len(limiter.asked) == 3


def answers_per_second(arrivals: Callable[[float], float], seconds: int, **limits: Any) -> list[int]:
    """Calls with a deadline of half a second each, `arrivals(now)` of them per second."""

    async def main() -> list[int]:
        loop, answers = asyncio.get_running_loop(), [0] * (seconds + 1)
        transport = InMemoryTransport({}, default=OK)
        client = FlinksClient(auth_secret="s", transport=transport, limits=Limits(**limits), clock=VirtualClock())

        async def call() -> None:
            with suppress(DeadlineExceededError):
                await client.partner_access("t", timeout=0.5)
                answers[int(loop.time() - began)] += 1

        async with client, asyncio.TaskGroup() as calls:
            began = loop.time()
            while (now := loop.time() - began) < seconds:
                calls.create_task(call())
                await asyncio.sleep(1 / arrivals(now))
        return answers[:seconds]

    return run_virtual(main())


class OfOnesOwn:
    """Calls another limiter after a turn of the event loop."""

    def __init__(self, rate: float) -> None:
        self._limit = GCRA(rate, 1)

    async def reserve(self, now: float, /) -> float:
        await asyncio.sleep(0)
        return self._limit.reserve(now)


@pytest.mark.parametrize("limits", [{"rate": 50.0, "burst": 1}, {"rate_limiter": OfOnesOwn(50.0)}], ids=["ours", "own"])
def test_calls_that_do_not_wait_for_their_turn_do_not_use_it_up(limits: dict[str, Any]) -> None:
    answers = answers_per_second(lambda now: 200.0 if now < 2 else 25.0, 6, **limits)
    assert answers[:2] == pytest.approx([50, 50], abs=2)
    assert sum(answers[3:]) == pytest.approx(75, abs=3)


def test_the_turn_of_a_cancelled_call_goes_to_the_next_one() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        governor = Governor(Limits(rate=1.0, burst=1), VirtualClock())
        await governor.acquire()
        for _ in range(10):
            waiting = asyncio.ensure_future(governor.acquire())
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.wait([waiting])
        began = loop.time()
        await governor.acquire()
        return loop.time() - began

    assert run_virtual(main()) == pytest.approx(0.9, abs=0.01)


def test_rate_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="either rate or rate_limiter"):
        Limits(rate=1.0, rate_limiter=SharedLimiter())
    with pytest.raises(ConfigError, match="burst needs"):
        Limits(burst=3)
    with pytest.raises(ConfigError, match="no method reserve"):
        Limits(rate_limiter=object())
    with pytest.raises(ConfigError, match=r"Limits\.rate must be greater than 0"):
        Limits(rate=0)
    assert Limits(rate_limiter=(one := SharedLimiter())) == Limits(rate_limiter=one)
    assert Limits(rate_limiter=one) != Limits(rate_limiter=SharedLimiter())
    assert hash(Limits(rate_limiter=one)) == hash(Limits(rate_limiter=one))


HEADERS = [
    ({"RateLimit-Remaining": "5", "RateLimit-Reset": "30", "RateLimit-Limit": "100"}, ServerLimit(5, 100, 30.0)),
    (
        {"RateLimit-Limit": "100, 100;w=60", "RateLimit-Remaining": "5", "RateLimit-Reset": "30"},
        ServerLimit(5, 100, 30.0),
    ),
    ({"RateLimit-Remaining": "5", "RateLimit-Reset": "30", "RateLimit-Policy": "100;w=60"}, ServerLimit(5, 100, 30.0)),
    ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1735689630"}, ServerLimit(0, None, 30.0)),
    ({"x-ratelimit-remaining": "7", "x-ratelimit-reset": "4", "x-ratelimit-limit": "9"}, ServerLimit(7, 9, 4.0)),
    ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1735689000"}, ServerLimit(0, None, 0.0)),
    ({"RateLimit": "limit=100, remaining=50, reset=5"}, ServerLimit(50, 100, 5.0)),
    ({"RateLimit": '"default";r=3;t=20', "RateLimit-Policy": '"default";q=100;w=60'}, ServerLimit(3, 100, 20.0)),
    ({"RateLimit": '"burst";r=1;t=2, "daily";r=900;t=3600'}, ServerLimit(1, None, 2.0)),
    ({}, None),
    ({"RateLimit-Remaining": "many", "RateLimit-Reset": "30"}, None),
    ({"RateLimit-Remaining": "5"}, None),
    ({"RateLimit-Remaining": "-1", "RateLimit-Reset": "30"}, None),
    ({"RateLimit": "garbage"}, None),
    ({"RateLimit": "remaining=5"}, None),
    ({"RateLimit": '"default";t=5'}, None),
    ({"RateLimit": ""}, None),
    ({"RateLimit-Remaining": "٣", "RateLimit-Reset": "1"}, None),
    ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1735689630000"}, None),
    ({"RateLimit-Remaining": "1234567890123", "RateLimit-Reset": "1"}, None),
    ({"RateLimit": '"default";r=0;t=1735689630000'}, None),
]


@pytest.mark.parametrize(("headers", "expected"), HEADERS)
def test_headers_of_every_kind(headers: dict[str, str], expected: ServerLimit | None) -> None:
    assert read_rate_limit(CIMultiDict(headers), FakeClock()) == expected


def test_a_large_reset_is_a_timestamp() -> None:
    clock = FakeClock(time=999_999_995.0)
    for reset, seconds in (("1000000000", 5.0), ("999999999", 999_999_999.0)):
        said = read_rate_limit({"RateLimit-Remaining": "5", "RateLimit-Reset": reset}, clock)
        assert said == ServerLimit(5, None, seconds)


@pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0])
@pytest.mark.parametrize(
    "fields",
    [
        {"RateLimit-Remaining": "5", "RateLimit-Reset": "1735689630"},
        {"X-RateLimit-Remaining": "5", "X-RateLimit-Reset": "1735689630"},
        {"RateLimit": "remaining=5, reset=1735689630"},
    ],
)
def test_a_reset_that_is_a_timestamp_is_compared_with_the_clock_of_the_server(
    fields: Mapping[str, str], skew: float
) -> None:
    headers = CIMultiDict({**fields, "Date": "Wed, 01 Jan 2025 00:00:00 GMT"})
    assert read_rate_limit(headers, FakeClock(time=1735689600.0 + skew)) == ServerLimit(5, None, 30.0)


async def test_a_client_asks_again_now_and_then_when_an_announced_limit_is_used_up() -> None:
    clock = FakeClock(random=0.5)
    low = make_response(OK, headers={"RateLimit-Remaining": "0", "RateLimit-Reset": "12"})
    transport = InMemoryTransport({}, default=[low, OK])
    async with FlinksClient(auth_secret="s", transport=transport, clock=clock) as client:
        await client.partner_access("a")
        assert clock.sleeps == []
        await client.partner_access("b")
        assert 0.0 < sum(clock.sleeps) <= 12.0


def test_a_learned_limit_is_told_in_plain_words() -> None:
    learned = LearnedLimit(1470.0, refused_rate=1520.0, seconds=12.4)
    assert str(learned) == "1,470/s learned: refused at 1,520/s 12 s ago"
    assert str(LearnedLimit(None, at_once=29)) == "at most 29 at once learned: more were refused"
    assert str(LearnedLimit(50.0)) == "50/s learned: as the instance has allowed so far"
    assert learned.joined(None) == learned
    both = learned.joined(LearnedLimit(530.0, refused_rate=480.0, seconds=3.0))
    assert both == LearnedLimit(2000.0, None, 2000.0, 3.0), "two processes share the limit"
    assert LearnedLimit(None, 29).joined(LearnedLimit(None, 30)) == LearnedLimit(None, 59)
    assert learned.joined(LearnedLimit(50.0)) == LearnedLimit(1520.0, None, 1520.0, 12.4)
