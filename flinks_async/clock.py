"""Time and randomness; tests replace them."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Protocol


class Clock(Protocol):
    """The source of time and randomness. `flinks_async.testing.FakeClock` is one for tests."""

    def now(self) -> float:
        """Monotonic time in seconds; only differences have a meaning."""
        ...

    def time(self) -> float:
        """Wall-clock time: seconds since 1970-01-01T00:00Z."""
        ...

    async def sleep(self, seconds: float, /) -> None:
        """Waits. The wait can be cancelled."""
        ...

    def random(self) -> float:
        """A random number in [0, 1), for jitter."""
        ...


class SystemClock:
    """The machine's clock and the `random` module. It looks the functions up at each call, because test tools replace them."""

    def now(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    def random(self) -> float:
        return random.random()

    async def sleep(self, seconds: float, /) -> None:
        await asyncio.sleep(seconds)
