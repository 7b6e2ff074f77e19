"""`VirtualTimeLoop`: hours in milliseconds, in the order of a real loop."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest

from flinks_async.clock import Clock
from flinks_async.testing import VirtualClock, VirtualTimeLoop, run_virtual


def test_a_year_takes_no_time() -> None:
    async def main() -> float:
        for _ in range(365):
            await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    start = time.monotonic()
    assert run_virtual(main()) == pytest.approx(365 * 86_400)
    assert time.monotonic() - start < 1000


def test_timers_fire_in_order_and_at_their_time() -> None:
    rng = random.Random(1)
    delays = [rng.choice([0.0, 1e-6, 0.001, 0.5, 60.0, 7200.0]) * (1 + rng.random()) for _ in range(2000)]

    async def main() -> list[tuple[float, float]]:
        fired: list[tuple[float, float]] = []
        loop = asyncio.get_running_loop()

        async def one(delay: float) -> None:
            due = loop.time() + delay
            await asyncio.sleep(delay)
            fired.append((due, loop.time()))

        await asyncio.gather(*map(one, delays))
        return fired

    fired = run_virtual(main())
    assert [due for due, _ in fired] == sorted(due for due, _ in fired)
    assert all(at == pytest.approx(due, abs=1e-8) for due, at in fired)


def test_timeouts_of_asyncio_go_along() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(300):
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(500), 200)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(500)


def test_a_timer_that_is_cancelled_does_not_move_time() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(1000, lambda: None).cancel()
        await asyncio.sleep(1)
        return loop.time()

    assert run_virtual(main()) == pytest.approx(1)


def test_what_is_ready_comes_before_time_moves() -> None:
    async def main() -> list[str]:
        order: list[str] = []
        loop = asyncio.get_running_loop()
        loop.call_later(0.001, order.append, "timer")
        for number in range(100):
            await asyncio.sleep(0)
            order.append(str(number))
        await asyncio.sleep(1)
        return order

    assert run_virtual(main())[-1] == "timer"


def test_without_timers_it_waits_for_threads() -> None:
    async def main() -> str:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(done.set,))
        loop.call_soon(thread.start)
        await done.wait()
        thread.join()
        return f"{loop.time():g}"

    assert run_virtual(main()) == "0"


def test_the_clock_reads_the_loop() -> None:
    async def main() -> None:
        clock: Clock = VirtualClock(epoch=1000.0)
        assert (clock.now(), clock.time()) == (0.0, 1000.0)
        await asyncio.gather(clock.sleep(30), clock.sleep(60))
        assert (clock.now(), clock.time()) == pytest.approx((60.0, 1060.0))
        assert 0 <= clock.random() < 1
        assert VirtualClock(seed=1).random() == VirtualClock(seed=1).random()

    run_virtual(main())


def test_errors_come_out_and_the_loop_is_closed() -> None:
    loops = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(1)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run_virtual(main())
    assert isinstance(loops[0], VirtualTimeLoop)
    assert loops[0].is_closed()


def test_at_its_end_it_waits_for_threads_in_their_own_time() -> None:
    done, go_on = threading.Event(), threading.Event()

    def work() -> None:
        go_on.wait(30)
        done.set()

    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(None, work)

    threading.Timer(0.05, go_on.set).start()
    run_virtual(main())
    assert done.is_set()
