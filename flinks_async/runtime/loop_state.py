"""State that the calls of one client share in one event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from attrs import define, field

from ..limits.governor import Governor
from ..limits.quota import RetryQuota
from .cancel_scope import CancelScope, DeadlineTimer


@define(eq=False)
class RequestCounters:
    """Totals of one client over all its event loops.

    Attributes:
        requests: attempts that were handed to the transport and have ended.
        retries: those of them that repeated a failed one.
        queue_time: seconds that attempts have waited for a free place.
    """

    requests: int = 0
    retries: int = 0
    queue_time: float = 0.0


@define(eq=False)
class LoopState:
    """State that the calls of one client share in one event loop.

    Attributes:
        loop: the event loop.
        timer: interrupts calls at their deadlines; one for each event loop.
        governor: where requests wait; shared by all clients with the same instance, secret and limits.
        quota: pays for retries; shared by all clients with the same instance, secret and quota. None for no limit.
        decoding: large bodies are decoded one at a time, a step at a time.
        now: the client's clock.
        counters: the client's totals.
        calls: the scopes of the calls in flight, so that `close()` can interrupt them.
        drained: set when the last call ends, if somebody waits for that.
        pid: the process that the loop runs in.
    """

    loop: asyncio.AbstractEventLoop
    timer: DeadlineTimer
    governor: Governor
    quota: RetryQuota | None
    decoding: asyncio.Lock
    now: Callable[[], float]
    counters: RequestCounters
    calls: set[CancelScope] = field(factory=set)
    drained: asyncio.Event | None = None
    pid: int = field(factory=os.getpid)

    def end(self, scope: CancelScope) -> None:
        """Removes a call that has ended."""
        self.calls.discard(scope)
        if self.drained is not None and not self.calls:
            self.drained.set()
            self.drained = None

    async def drain(self) -> None:
        """Waits until no call is in flight; several tasks may wait."""
        while self.calls:
            if self.drained is None:
                self.drained = asyncio.Event()
            await self.drained.wait()
