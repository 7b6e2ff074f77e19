"""The cancel scope behind deadlines and timeouts of attempts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flinks_async.runtime import CancelScope, DeadlineTimer
from flinks_async.testing import VirtualTimeLoop, run_virtual

from .support import turns


async def test_an_interrupted_block_ends_and_the_code_after_it_goes_on() -> None:
    scope = CancelScope()
    asyncio.get_running_loop().call_soon(scope.interrupt)
    with scope:
        await asyncio.Event().wait()
    assert scope.interrupted
    await asyncio.sleep(0)  # the task is not left cancelled


async def test_a_block_that_ends_in_time_is_not_interrupted() -> None:
    scope = CancelScope()
    with scope:
        await asyncio.sleep(0)
    scope.interrupt()
    assert not scope.interrupted
    await asyncio.sleep(0)


async def test_cancelling_the_task_is_not_taken_for_an_interruption() -> None:
    scope = CancelScope()

    async def run() -> None:
        with scope:
            await asyncio.Event().wait()

    task = asyncio.ensure_future(run())
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not scope.interrupted


async def test_when_both_happen_the_cancellation_wins() -> None:
    scope = CancelScope()

    async def run() -> str:
        with scope:
            await asyncio.Event().wait()
        return "went on"

    for first in (scope.interrupt, None):
        scope = CancelScope()
        task = asyncio.ensure_future(run())
        await turns()
        if first:
            scope.interrupt()
            task.cancel()
        else:
            task.cancel()
            scope.interrupt()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_an_outer_timeout_is_the_callers_own() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            with CancelScope():
                await asyncio.Event().wait()


async def test_nested_scopes_end_the_one_that_was_asked() -> None:
    outer, inner = CancelScope(), CancelScope()
    seen = []
    asyncio.get_running_loop().call_soon(inner.interrupt)
    with outer:
        with inner:
            await asyncio.Event().wait()
        seen.append("inner")
        asyncio.get_running_loop().call_soon(outer.interrupt)
        await asyncio.Event().wait()
    assert seen == ["inner"]
    assert outer.interrupted


async def test_another_error_of_the_block_comes_through() -> None:
    scope = CancelScope()
    with pytest.raises(ZeroDivisionError), scope:
        asyncio.get_running_loop().call_soon(scope.interrupt)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ZeroDivisionError from None
    assert not scope.interrupted
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("seconds", "latest"), [(0.02, 0.031), (0.5, 0.511), (5, 5.051), (30, 30.501), (230, 230.501), (0, 0.011)]
)
def test_a_sweeper_is_never_early_and_hardly_late(seconds: float, latest: float) -> None:
    async def main() -> tuple[float, bool]:
        loop = asyncio.get_running_loop()
        scope, begun = DeadlineTimer(loop).scope(seconds), loop.time()
        with scope:
            await asyncio.Event().wait()
        return loop.time() - begun, scope.interrupted

    passed, interrupted = run_virtual(main())
    assert interrupted
    assert seconds <= passed <= latest


def test_many_scopes_share_few_timers_and_each_ends_at_its_time() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        sweeper, ends = DeadlineTimer(loop), {}

        async def run(number: int) -> None:
            seconds = 1 + (number * 7919 % 1000) / 100
            scope, begun = sweeper.scope(seconds), loop.time()
            with scope:
                if number % 3 == 0:
                    return  # left in time
                await asyncio.Event().wait()
            ends[number] = loop.time() - begun - seconds

        await asyncio.gather(*(run(number) for number in range(1000)))
        assert len(ends) == 666
        assert all(0 <= late <= 0.6 for late in ends.values())
        assert sum(1 for handle in loop._scheduled if not handle.cancelled()) <= 1

    run_virtual(main())
