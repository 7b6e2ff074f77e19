"""What calls share: one pool for all clients derived from one another, and for each event loop what lives in it.

Governor and retry quota belong to an (instance, secret), to their settings and to an event loop; the sweeper to an event
loop. They go with the last client that uses them. Those of a secret that is a text stay for some minutes more: a client that
is derived for each request must know that its instance is down, or asked for a pause. A callable has no such memory, as a
new one is a new secret, and would be kept alive by it.
"""

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
    """What one client has sent, in all event loops together.

    Attributes:
        requests: attempts that were handed to the transport and have ended.
        retries: those of them that repeated a failed one.
        queue_time: seconds that attempts have waited for a free place, in all.
    """

    requests: int = 0
    retries: int = 0
    queue_time: float = 0.0


@define(eq=False)
class LoopState:
    """What the calls of one client share in one event loop.

    Attributes:
        governor: where requests wait; shared by all clients with the same instance, secret and limits.
        quota: what retries are paid from; shared by all clients with the same instance, secret and quota.
        decoding: large bodies are decoded one after the other, a step at a time.
        now: the client's clock.
        calls: the scopes of the calls under way, for closing.
        counters: of the client, in all loops.
        drained: set when the last call ends, if somebody waits for that.
        pid: the process that the loop runs in.
    """

    loop: asyncio.AbstractEventLoop
    sweeper: DeadlineTimer
    governor: Governor
    quota: RetryQuota | None
    decoding: asyncio.Lock
    now: Callable[[], float]
    calls: set[CancelScope] = field(factory=set)
    counters: RequestCounters = field(factory=RequestCounters)
    drained: asyncio.Event | None = None
    pid: int = field(factory=os.getpid)

    def end(self, scope: CancelScope) -> None:
        """A call has ended."""
        self.calls.discard(scope)
        if self.drained is not None and not self.calls:
            self.drained.set()
            self.drained = None

    async def drain(self) -> None:
        """Waits until no call is under way; several may wait."""
        while self.calls:
            if self.drained is None:
                self.drained = asyncio.Event()
            await self.drained.wait()


class LoopStates(dict[asyncio.AbstractEventLoop, LoopState]):
    """The states of one client, by event loop."""

    def drop_closed(self) -> None:
        """Drops the loops that are closed: a program that calls `asyncio.run` repeatedly makes many."""
        for loop in tuple(self):
            if loop.is_closed():
                self.pop(loop, None)
