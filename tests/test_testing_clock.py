"""`FakeClock`: time passes only when a test advances it."""

from __future__ import annotations

import asyncio

import pytest

from flinks_async.clock import Clock
from flinks_async.testing import FakeClock


async def test_sleeping_takes_no_time_and_moves_both_clocks() -> None:
    clock = FakeClock(now=5.0, time=1000.0)
    start = asyncio.get_running_loop().time()
    await clock.sleep(3600)
    await clock.sleep(0.5)
    assert (clock.now(), clock.time(), clock.sleeps) == (3605.5, 4600.5, [3600, 0.5])
    assert asyncio.get_running_loop().time() - start < 1000


async def test_sleeping_lets_other_tasks_run() -> None:
    ran = asyncio.Event()
    asyncio.get_running_loop().call_soon(ran.set)
    await FakeClock().sleep(1)
    assert ran.is_set()


async def test_a_sleep_can_be_cancelled() -> None:
    task = asyncio.create_task(FakeClock().sleep(1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_negative_sleep_does_not_turn_time_back() -> None:
    clock = FakeClock()
    await clock.sleep(-1)
    assert (clock.now(), clock.sleeps) == (0.0, [-1])


def test_time_can_be_moved_by_hand() -> None:
    clock = FakeClock(time=100.0)
    clock.advance(7)
    assert (clock.now(), clock.time()) == (7.0, 107.0)
    clock.set_wall_clock(50.0)
    assert (clock.now(), clock.time()) == (7.0, 50.0)


def test_random_numbers_are_constant_listed_or_seeded() -> None:
    clock: Clock = FakeClock(random=0.25)
    assert [clock.random() for _ in range(3)] == [0.25] * 3
    listed = FakeClock(random=[0.1, 0.9])
    assert [listed.random() for _ in range(4)] == [0.1, 0.9, 0.1, 0.9]
    one, same, other = FakeClock(), FakeClock(), FakeClock(seed=1)
    numbers = [one.random() for _ in range(5)]
    assert numbers == [same.random() for _ in range(5)]
    assert numbers != [other.random() for _ in range(5)]
    assert all(0 <= number < 1 for number in numbers)


def test_no_random_numbers_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one"):
        FakeClock(random=[])
