"""What calls share: one pool for all clients derived from one another, and for each event loop what lives in it.

Governor and retry quota belong to an (instance, secret), to their settings and to an event loop; the sweeper to an event
loop. They go with the last client that uses them. Those of a secret that is a text stay for some minutes more: a client that
is derived for each request must know that its instance is down, or asked for a pause. A callable has no such memory, as a
new one is a new secret, and would be kept alive by it.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from weakref import WeakValueDictionary

from attrs import define, field

from .clock import Clock
from .config import Settings
from .middleware.auth import SecretProvider
from .middleware.coalesce import Flight
from .middleware.governor import Governor
from .middleware.quota import RetryQuota, make_quota
from .scope import Scope, Sweeper
from .secret import Secret
from .session import SessionManager
from .transport import Transport

REMEMBERED = 1000
"""So many texts at most have their state kept while no client uses them."""
REMEMBERED_FOR = 600.0
"""Seconds after the latest client with the secret began; longer while requests are held back."""


@define(eq=False)
class LoopLocal:
    """What the calls of one client share in one event loop.

    Attributes:
        governor: where requests wait; shared by all clients with the same instance, secret and limits.
        quota: what retries are paid from; shared by all clients with the same instance, secret and quota.
        decoding: large bodies are decoded one after the other, a step at a time.
        now: the client's clock.
        calls: the scopes of the calls under way, for closing.
        flights: calls under way that others may join, by what they ask for.
        queue_time: seconds that calls have spent waiting for a place, in all.
        drained: set when the last call ends, if somebody waits for that.
        pid: the process that the loop runs in.
    """

    loop: asyncio.AbstractEventLoop
    sweeper: Sweeper
    governor: Governor
    quota: RetryQuota | None
    decoding: asyncio.Lock
    now: Callable[[], float]
    calls: set[Scope] = field(factory=set)
    flights: dict[Hashable, Flight] = field(factory=dict)
    queue_time: float = 0.0
    drained: asyncio.Event | None = None
    pid: int = field(factory=os.getpid)

    def end(self, scope: Scope) -> None:
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


class Locals(dict[asyncio.AbstractEventLoop, LoopLocal]):
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


class _Recent:
    """Keeps the state of secrets that were used lately."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[float, Governor, RetryQuota | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, key: Hashable, governor: Governor, quota: RetryQuota | None, now: float) -> None:
        kept = self._kept
        kept[key] = now, governor, quota
        kept.move_to_end(key)
        while len(kept) > REMEMBERED or _is_over(next(iter(kept.values())), now):
            kept.popitem(last=False)


def _is_over(kept: tuple[float, Governor, RetryQuota | None], now: float) -> bool:
    since, governor, _ = kept
    return now - since > REMEMBERED_FOR and not governor.held_back


@define(eq=False)
class _LoopShared:
    sweeper: Sweeper
    governors: WeakValueDictionary[Hashable, Governor] = field(factory=WeakValueDictionary)
    quotas: WeakValueDictionary[Hashable, RetryQuota] = field(factory=WeakValueDictionary)
    recent: _Recent = field(factory=_Recent)
    decoding: asyncio.Lock = field(factory=asyncio.Lock)


class Pool:
    """Shared by a client and those derived from it: sessions or a transport, and the governors of each event loop."""

    def __init__(self, sessions: SessionManager | None, transport: Transport | None) -> None:
        self.sessions = sessions
        self.transport = transport
        self._loops: dict[asyncio.AbstractEventLoop, _LoopShared] = {}

    def local(
        self,
        loop: asyncio.AbstractEventLoop,
        url: str,
        secret: Secret | SecretProvider,
        settings: Settings,
        clock: Clock,
    ) -> LoopLocal:
        """The state of one client in one loop."""
        shared = self._loops.get(loop)
        if shared is None:
            for old in [old for old in tuple(self._loops) if old.is_closed()]:
                self._loops.pop(old, None)
            shared = self._loops[loop] = _LoopShared(Sweeper(loop))
        # Times of different clocks do not mix; the governor keeps its clock, so the id stays its own.
        key = url, secret, id(clock)
        governed_by, paid_from = (*key, settings.limits), (*key, settings.retry.quota)
        governor = shared.governors.get(governed_by)
        if governor is None:
            governor = shared.governors[governed_by] = Governor(settings.limits, clock)
        quota = shared.quotas.get(paid_from)
        if quota is None:
            quota = make_quota(settings.retry.quota)
            if quota is not None:
                shared.quotas[paid_from] = quota
        if isinstance(secret, Secret):
            shared.recent.keep((governed_by, paid_from), governor, quota, loop.time())
        return LoopLocal(loop, shared.sweeper, governor, quota, shared.decoding, clock.now)

    async def close(self) -> None:
        """Closes what the running loop holds, for good."""
        self._loops.pop(asyncio.get_running_loop(), None)
        if self.sessions is not None:
            await self.sessions.close()
        if self.transport is not None:
            await self.transport.close()

    def shut(self) -> None:
        """No loop gets a session any more, not even one that stood still while the others closed theirs."""
        if self.sessions is not None:
            self.sessions.shut()
