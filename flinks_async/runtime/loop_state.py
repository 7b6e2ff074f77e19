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
class LoopState:
    """What the calls of one client share in one event loop.

    Attributes:
        governor: where requests wait; shared by all clients with the same instance, secret and limits.
        quota: what retries are paid from; shared by all clients with the same instance, secret and quota.
        decoding: large bodies are decoded one after the other, a step at a time.
        now: the client's clock.
        calls: the scopes of the calls under way, for closing.
        queue_time: seconds that calls have spent waiting for a place, in all.
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
    queue_time: float = 0.0
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
    """What one client has, by event loop.

    Attributes:
        past_queue_time: `queue_time` of the loops that it has nothing of any more.
    """

    past_queue_time = 0.0

    @property
    def queue_time(self) -> float:
        """Of all loops there ever were."""
        return self.past_queue_time + sum(local.queue_time for local in tuple(self.values()))

    def drop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Lets go of a loop."""
        local = self.pop(loop, None)
        if local is not None:
            self.past_queue_time += local.queue_time

    def drop_closed(self) -> None:
        """Lets go of the loops that are closed: whoever calls `asyncio.run` again and again makes many."""
        for loop in tuple(self):
            if loop.is_closed():
                self.drop(loop)
