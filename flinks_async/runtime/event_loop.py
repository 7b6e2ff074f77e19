"""Event loops: values that belong to one, and the fastest kind that is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

V = TypeVar("V")


class PerLoop(dict[asyncio.AbstractEventLoop, V]):
    """Values by event loop.

    Each `asyncio.run` makes a new loop. Call `take_closed` before you add an entry, so that closed loops do not pile up.
    The methods copy the keys first, because other threads may add their loops meanwhile.
    """

    def take_closed(self) -> list[V]:
        """Removes the entries of closed loops and returns their values."""
        closed = [self.pop(loop, None) for loop in tuple(self) if loop.is_closed()]
        return [value for value in closed if value is not None]

    def open_values(self) -> list[V]:
        """The values of loops that are not closed."""
        return [value for loop, value in tuple(self.items()) if not loop.is_closed()]


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """A loop factory for `asyncio.Runner(loop_factory=...)`: uvloop's if it is installed, else None (asyncio's own)."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
