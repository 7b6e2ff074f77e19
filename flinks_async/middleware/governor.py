"""The one place that waits before the wire. Here: a fixed number of requests at a time.

There is one governor for each instance, secret and event loop, so that one instance in trouble never slows another.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Governor:
    """Gives out places, in the order in which they were asked for."""

    __slots__ = ("_free", "_waiting", "concurrency")

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self._free = concurrency
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def in_use(self) -> int:
        """Places that are taken."""
        return self.concurrency - self._free

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return sum(not waiter.done() for waiter in self._waiting)

    def try_acquire(self) -> bool:
        """Takes a place if one is free and nobody waits for it."""
        if self._free > 0 and not self._waiting:
            self._free -= 1
            return True
        return False

    async def acquire(self) -> None:
        """Waits for a place. Cancelled, it leaves the queue, and passes on a place it was already given."""
        if self.try_acquire():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release()
            else:
                self._waiting.remove(waiter)
            raise

    def release(self) -> None:
        """Gives a place back: to the one who has waited longest, if there is one."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1
