"""A rate that several processes share: each takes turns in blocks from whoever keeps the rate."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

LATE: Final = 0.2
"""Seconds for which a turn can be used after its time. Turns that a pause made later are dropped, so none come in a burst."""


class TurnBlocks:
    """A `RateLimiter` that asks for turns in blocks, and for the next block when half of one is used.

    A process that cannot use its turns in time asks for fewer, so that others get them.

    Args:
        ask: asks for that many turns. `grant` takes the answer.
        most: turns in a block.
        now: the clock of `reserve`.
    """

    def __init__(self, ask: Callable[[int], object], most: int, now: Callable[[], float]) -> None:
        self._ask = ask
        self._most = self._block = most
        self._now = now
        self._turns = deque[float]()
        self._asked = False
        self._granted: asyncio.Future[None] | None = None

    def reserve(self, now: float, /) -> float | Awaitable[float]:
        turns = self._turns
        if turns and turns[0] < now - LATE:
            self._block = max(1, self._block // 2)
            while turns and turns[0] < now - LATE:
                turns.popleft()
        elif not turns:
            self._block = min(self._most, 2 * self._block)
        if len(turns) <= self._block // 2:
            self._want()
        return max(0.0, turns.popleft() - now) if turns else self._wait(now)

    def grant(self, waits: Sequence[float]) -> None:
        """Takes turns, as seconds from now."""
        now = self._now()
        self._turns.extend(now + wait for wait in waits)
        self._asked = False
        if self._granted is not None and not self._granted.done():
            self._granted.set_result(None)

    async def _wait(self, now: float) -> float:
        while not self._turns:
            self._want()
            self._granted = asyncio.get_running_loop().create_future()
            await self._granted
        return self._turns.popleft() - now

    def _want(self) -> None:
        if not self._asked:
            self._asked = True
            self._ask(self._block)
