"""The adaptive limit against a model of a server: some workers and a queue in front of them."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from flinks_async import Adaptive, ConfigError, FlinksClient, Limits, config
from flinks_async.limits.concurrency import AdaptiveConcurrency, FixedConcurrency, make_concurrency
from flinks_async.messages import Request
from flinks_async.testing import InMemoryTransport, VirtualClock, run_virtual

from .support import client_of
from .test_concurrency_rules import lose

SERVICE_TIMES: dict[str, Callable[[random.Random, float], float]] = {
    "always the same": lambda rng, mean: mean * (1 + 0.01 * rng.random()),
    "exponential": lambda rng, mean: rng.expovariate(1 / mean),
    "log-normal": lambda rng, mean: mean * rng.lognormvariate(-0.5, 1.0),
}


def limits_by_second(
    state: AdaptiveConcurrency,
    *,
    workers: int = 50,
    times: str = "exponential",
    seconds: int = 120,
    slow: tuple[float, float] = (0.0, 0.0),
    demand: int = 1_000_000,
    failing: float = 0.0,
    seed: int = 1,
) -> list[int]:
    """The limit at each virtual second, with `demand` callers that send as soon as possible and a share of failed answers."""
    rng, service, mean = random.Random(seed), SERVICE_TIMES[times], 0.1
    now, in_use, free, number = 0.0, 0, workers, 0
    queue: deque[float] = deque()
    ends: list[tuple[float, int, float]] = []
    seen: list[int] = []

    def serve(sent: float) -> None:
        nonlocal number
        number += 1
        factor = 20.0 if slow[0] <= now < slow[1] else 1.0
        heapq.heappush(ends, (now + service(rng, mean) * factor, number, sent))

    while now < seconds:
        while in_use < min(state.limit, demand):
            in_use += 1
            if free:
                free -= 1
                serve(now)
            else:
                queue.append(now)
        now, _, sent = heapq.heappop(ends)
        in_use -= 1
        if queue:
            serve(queue.popleft())
        else:
            free += 1
        if rng.random() < failing:
            state.failed(in_use + 1)
        else:
            state.answered(now - sent, now, in_use + 1)
        while len(seen) <= now:
            seen.append(state.limit)
    return seen


def mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)


@pytest.mark.parametrize("times", SERVICE_TIMES)
@pytest.mark.parametrize("workers", [40, 60])
def test_the_limit_finds_its_level_and_stays_there(workers: int, times: str) -> None:
    after = limits_by_second(AdaptiveConcurrency(Adaptive()), workers=workers, times=times, seconds=180)[60:]
    steady = mean(after)
    within = sum(0.8 * steady <= limit <= 1.2 * steady for limit in after) / len(after)
    assert within >= (1.0 if times == "always the same" else 0.9)
    # With varying times the limit is lower, because some answers are slow without a queue.
    assert 0.7 * workers < steady < 2.6 * workers


@pytest.mark.parametrize("seed", range(5))
def test_within_a_fifth_of_its_steady_state_after_a_minute(seed: int) -> None:
    state = AdaptiveConcurrency(Adaptive())
    after = limits_by_second(state, workers=50, times="always the same", seconds=240, seed=seed)[60:]
    steady = mean(after)
    assert all(0.8 * steady <= limit <= 1.2 * steady for limit in after)


@pytest.mark.parametrize("times", SERVICE_TIMES)
def test_the_limit_shrinks_in_a_gray_failure_and_grows_back(times: str) -> None:
    seen = limits_by_second(AdaptiveConcurrency(Adaptive()), times=times, slow=(60, 120), seconds=240)
    before = mean(seen[45:60])
    assert mean(seen[100:120]) < 0.15 * before
    assert mean(seen[200:240]) == pytest.approx(before, rel=0.3)


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    for demand, expected in ((5, 20), (30, 40)):  # doubled once, in the slow start
        state = AdaptiveConcurrency(Adaptive())
        assert limits_by_second(state, times="always the same", demand=demand)[-1] == expected


def test_the_limit_keeps_within_its_bounds() -> None:
    assert max(limits_by_second(AdaptiveConcurrency(Adaptive(maximum=60)), workers=500)) == 60
    assert min(limits_by_second(AdaptiveConcurrency(Adaptive(minimum=8)), slow=(30, 90))) == 8


def test_a_lasting_slowness_becomes_the_new_baseline() -> None:
    state = AdaptiveConcurrency(Adaptive(remember=60.0, minimum=1))
    seen = limits_by_second(state, times="always the same", slow=(30, 10_000), seconds=900)
    assert min(seen[30:200]) <= 2
    assert state.baseline == pytest.approx(2.0, rel=0.3)
    assert seen[-1] > 15


def test_a_queue_that_we_cause_does_not_become_the_baseline() -> None:
    seen = limits_by_second(AdaptiveConcurrency(Adaptive(remember=60.0)), times="always the same", seconds=900)
    assert mean(seen[600:]) == pytest.approx(mean(seen[60:120]), rel=0.2)


def test_losses_of_one_round_count_once() -> None:
    state = AdaptiveConcurrency(Adaptive(initial=20, loss=0.7))
    for _ in range(20):
        lose(state, 20)
    assert state.limit == 14
    lose(state, 14)
    assert state.limit == 9


@pytest.mark.parametrize("share", [0.01, 0.03])
def test_a_few_logins_that_fail_do_not_slow_the_others(share: float) -> None:
    healthy = limits_by_second(AdaptiveConcurrency(Adaptive()), times="always the same", seconds=180)
    seen = limits_by_second(AdaptiveConcurrency(Adaptive()), times="always the same", seconds=180, failing=share)
    assert mean(seen[60:]) > 0.8 * mean(healthy[60:])


def test_many_failures_shrink_the_limit() -> None:
    seen = limits_by_second(AdaptiveConcurrency(Adaptive()), times="always the same", seconds=180, failing=0.3)
    assert mean(seen[60:]) < 5


def test_a_slow_token_moves_nothing() -> None:
    state = AdaptiveConcurrency(Adaptive())
    for number in range(200):
        state.answered(200.0 if number % 10 == 0 else 0.1, float(number), 20)
    assert state.limit >= 20


def test_after_an_outage_the_limit_starts_again() -> None:
    state = AdaptiveConcurrency(Adaptive())
    for _ in range(200):
        lose(state, state.limit)
    assert state.limit < 5
    state.restart()
    assert state.limit == 20


def test_fixed_is_fixed() -> None:
    state = make_concurrency(7)
    assert isinstance(state, FixedConcurrency)
    state.failed(7)
    state.answered(100.0, 0.0, 7)
    state.restart()
    assert state.limit == 7


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="between minimum and maximum"):
        Adaptive(initial=300)
    with pytest.raises(ConfigError, match=r"Adaptive\.tolerance must be greater than 1"):
        Adaptive(tolerance=1.0)
    with pytest.raises(ConfigError, match=r"Limits\.concurrency must be a whole number"):
        Limits(concurrency=0)
    assert Limits(concurrency=7).most_at_once == 7
    assert Limits().most_at_once == 200


async def test_both_are_settings_of_a_client() -> None:
    for setting, expected in ((3, 3), (Adaptive(initial=5), 5)):
        transport = InMemoryTransport({}, default={"GetAccountsDetail": []})
        async with FlinksClient(auth_secret="s", transport=transport, limits=Limits(concurrency=setting)) as client:
            await client.partner_access("t")
            assert client._state is not None
            assert client._state.governor.concurrency.limit == expected


@pytest.mark.parametrize("settings", [config.service(), config.bulk()])
def test_a_token_that_takes_minutes_does_not_hold_up_the_others_when_answers_are_slow(
    settings: config.Settings,
) -> None:
    async def answer(request: Request) -> dict[str, Any]:
        number = int(request.token.reveal())
        await asyncio.sleep(25 if number == 1500 else 0.01 if number < 500 else 0.5)
        return {"RequestId": "r"}

    async def times() -> list[float]:
        client = client_of(InMemoryTransport(default=answer), clock=VirtualClock(), settings=settings)
        async with client:
            return [client._clock.now() async for _ in client.partner_access_many(map(str, range(2000)))]

    done = run_virtual(times())
    assert max(later - before for before, later in pairwise(done[:-1])) < 5


def test_the_minimum_follows_a_small_start() -> None:
    assert [Adaptive(initial=initial).minimum for initial in (1, 3, 4, 20)] == [1, 3, 4, 4]


def test_an_instance_that_refuses_even_the_minimum_is_believed() -> None:
    state = AdaptiveConcurrency(Adaptive())
    state.bound(1)
    assert state.limit == 1
    state.bound(None)
    assert state.limit == 200
