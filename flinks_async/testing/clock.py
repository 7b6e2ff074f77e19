"""A clock for tests of one call at a time. For several tasks that wait for each other see `run_virtual`."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterable, Iterator


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
