"""A clock for tests of one call at a time. For several tasks that wait for each other see `run_virtual`."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import selectors
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, TypeVar

# [flinks_async.testing.loop] An event loop whose time is virtual: when nothing is ready, it jumps to the next timer instead of waiting.
#
#     def test_gives_up_after_an_hour():
#         async def main():
#             clock = VirtualClock()
#             await asyncio.sleep(3600)
#             assert clock.now() == 3600
#         run_virtual(main())     # takes a millisecond
#
# Whatever goes by the loop's time goes along: `asyncio.sleep`, `asyncio.timeout`, `call_later`. The order of timers is
# exactly that of a real loop. What takes real time does not fit: while an answer of a real socket or the work of a
# thread is under way, the timers of this loop fire. So use it with `InMemoryTransport`, not with a server.


class FakeClock:
    """A `Clock` that never waits: `sleep` moves its time on and lets other tasks run once.

    With several tasks that sleep at the same time their waits add up; use a `VirtualTimeLoop` for those.

    Args:
        now: the monotonic time to begin with, in seconds.
        time: the wall clock to begin with, in seconds since 1970.
        random: what `random()` gives: a number for always the same, several to be taken in turn, for ever, or None
            (default) for the numbers of `random.Random(seed)`.
        seed: for the above.

    Attributes:
        sleeps: seconds of each `sleep`, in order.
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
        self._random = _seeded(seed) if random is None else _given(random)
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
        """Lets time pass, on both clocks."""
        self._now += seconds
        self._time += seconds

    def set_wall_clock(self, time: float) -> None:
        """Sets the wall clock alone, as an administrator or NTP does."""
        self._time = time


def _seeded(seed: int) -> Iterator[float]:
    rng = random.Random(seed)
    while True:
        yield rng.random()


def _given(numbers: float | Iterable[float]) -> Iterator[float]:
    numbers = (numbers,) if isinstance(numbers, (int, float)) else tuple(numbers)
    if not numbers:
        raise ValueError("random needs at least one number")
    return itertools.cycle(numbers)


T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits for a timer: says that the time to it has passed."""

    jumped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:  # no timer at all: only another thread or a socket can go on
            return super().select(None)
        ready = super().select(0)
        if not ready and timeout > 0:
            self.jumped += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module. Its time starts at 0."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Waits for threads however long they take: their time is real, and a timeout of this loop's would be over at
        once.
        """
        await super().shutdown_default_executor()

    def time(self) -> float:
        now = self._jumping.jumped
        # asyncio runs timers that are due before now + this; where floats get coarse, nothing would be before.
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
        seed: of `random()`.
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
