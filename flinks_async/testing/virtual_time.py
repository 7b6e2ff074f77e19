"""Clocks for tests that do not wait.

`FakeClock` suits tests of one call. For several tasks that wait for each other, `run_virtual` runs an event loop whose time
is virtual: when nothing is ready, it jumps to the next timer.

    def test_gives_up_after_an_hour():
        async def main():
            clock = VirtualClock()
            await asyncio.sleep(3600)
            assert clock.now() == 3600
        run_virtual(main())     # takes a millisecond

Everything that uses the loop's time jumps with it: `asyncio.sleep`, `asyncio.timeout`, `call_later`. Timers fire in the same
order as on a real loop. Sockets and threads need real time, during which the timers of this loop fire too early: use it
with `InMemoryTransport`, not with a server.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import selectors
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, TypeVar


class FakeClock:
    """A `Clock` that never waits: `sleep` advances its time and lets other tasks run once.

    Sleeps of several tasks add up; use `run_virtual` for those.

    Args:
        now: initial monotonic time, in seconds.
        time: initial wall clock, in seconds since 1970.
        random: the values of `random()`: one number, several numbers that repeat in turn, or None (default) for those
            of `random.Random(seed)`.
        seed: seed of the random numbers.

    Attributes:
        sleeps: the seconds of each `sleep`, in order.
    """

    def __init__(
        self,
        *,
        now: float = 0.0,
        time: float = 1_735_689_600.0,
        random: float | Iterable[float] | None = None,
        seed: int = 0,
    ) -> None:
        self._now = now
        self._time = time
        self._random = _seeded(seed) if random is None else _repeated(random)
        self.sleeps: list[float] = []

    def now(self) -> float:
        return self._now

    def time(self) -> float:
        return self._time

    async def sleep(self, seconds: float, /) -> None:
        self.sleeps.append(seconds)
        self.advance(max(0.0, seconds))
        await asyncio.sleep(0)

    def random(self) -> float:
        return next(self._random)

    def advance(self, seconds: float) -> None:
        """Advances both clocks."""
        self._now += seconds
        self._time += seconds

    def set_wall_clock(self, time: float) -> None:
        """Sets only the wall clock, as NTP does."""
        self._time = time


def _seeded(seed: int) -> Iterator[float]:
    rng = random.Random(seed)
    while True:
        yield rng.random()


def _repeated(numbers: float | Iterable[float]) -> Iterator[float]:
    numbers = (numbers,) if isinstance(numbers, (int, float)) else tuple(numbers)
    if not numbers:
        raise ValueError("random needs at least one number")
    return itertools.cycle(numbers)


T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait for timers: it counts the time until them as passed."""

    jumped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:  # no timers: only a thread or a socket can wake the loop
            return super().select(None)
        ready = super().select(0)
        if not ready and timeout > 0:
            self.jumped += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop with virtual time, which starts at 0 (see the module)."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Waits for threads without a timeout, because a timeout of this loop would fire at once."""
        await super().shutdown_default_executor()

    def time(self) -> float:
        now = self._jumping.jumped
        # asyncio runs timers due before now + resolution; with large times, floats are too coarse for the default.
        self._clock_resolution = max(1e-9, 2 * math.ulp(now))
        return now


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Like `asyncio.run`, on a `VirtualTimeLoop`."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


class VirtualClock:
    """A `Clock` that reads the time of the running loop.

    Args:
        epoch: the wall clock when the loop's time is 0, in seconds since 1970.
        seed: seed of `random()`.
    """

    def __init__(self, *, epoch: float = 1_735_689_600.0, seed: int = 0) -> None:
        self._epoch = epoch
        self._random = random.Random(seed)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def time(self) -> float:
        return self._epoch + self.now()

    async def sleep(self, seconds: float, /) -> None:
        await asyncio.sleep(seconds)

    def random(self) -> float:
        return self._random.random()
