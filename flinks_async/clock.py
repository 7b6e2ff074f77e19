"""Time and randomness, in the one place that tests replace."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Protocol


class Clock(Protocol):
    """What the chain knows of time. `flinks_async.testing.FakeClock` is the one for tests."""

    def now(self) -> float:
        """Monotonic seconds; only differences mean anything."""
        ...

    def time(self) -> float:
        """Wall clock: seconds since 1970-01-01T00:00Z."""
        ...

    async def sleep(self, seconds: float, /) -> None:
        """Waits; cancellable."""
        ...

    def random(self) -> float:
        """A random number in [0, 1), for jitter."""
        ...


class SystemClock:
    """The machine's clock and the `random` module."""

    now = staticmethod(time.monotonic)
    time = staticmethod(time.time)
    random = staticmethod(random.random)

    async def sleep(self, seconds: float, /) -> None:
        await asyncio.sleep(seconds)
