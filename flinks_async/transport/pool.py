"""The pool that a client shares with the clients derived from it, and how clients are closed.

A governor and a retry quota belong to one (instance, secret), its settings and one event loop. They are freed with the
last client that uses them. For an AuthSecret given as a str they stay 10 minutes longer, because a client that is
derived for each request must still know that its instance is down or has asked for a pause. For a callable they do not:
each new callable is a new secret, and the entry would keep it alive.

Closing: calls in flight have a grace period, then they are interrupted, then the pool is closed. Each loop ends its own
calls. A client keeps its state in a loop until its calls there have ended, so that a second `close()` with a shorter
grace period finds them.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar
from weakref import WeakSet, WeakValueDictionary, ref

from attrs import define, field

from ..clock import Clock
from ..config import Settings
from ..endpoint import Endpoint
from ..limits.governor import Governor
from ..limits.quota import RetryQuota, make_quota
from ..messages import Transport
from ..observe import Observer
from ..runtime import DeadlineTimer, LoopState, PerLoop, RequestCounters
from ..secret import Secret, SecretProvider
from .aiohttp import AiohttpTransport
from .session import ConnectionStats, SessionManager

T = TypeVar("T")

REMEMBERED = 1000
"""The most secrets whose state is kept while no client uses them."""

REMEMBERED_FOR = 600.0
"""Seconds that the state of a secret is kept after its latest client started; longer while requests are held back."""


class _Recent:
    """Keeps the state of recently used secrets alive."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[float, Governor, RetryQuota | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, key: Hashable, governor: Governor, quota: RetryQuota | None, now: float) -> None:
        kept = self._kept
        kept[key] = now, governor, quota
        kept.move_to_end(key)
        while len(kept) > REMEMBERED or _is_expired(next(iter(kept.values())), now):
            kept.popitem(last=False)


def _is_expired(kept: tuple[float, Governor, RetryQuota | None], now: float) -> bool:
    since, governor, _ = kept
    return now - since > REMEMBERED_FOR and not governor.held_back


@define(eq=False, repr=False)
class _LoopShared:
    timer: DeadlineTimer
    governors: WeakValueDictionary[Hashable, Governor] = field(factory=WeakValueDictionary)
    quotas: WeakValueDictionary[Hashable, RetryQuota] = field(factory=WeakValueDictionary)
    recent: _Recent = field(factory=_Recent)
    decoding: asyncio.Lock = field(factory=asyncio.Lock)


class Pool:
    """Sessions or a transport, and the governors of each event loop."""

    def __init__(self, sessions: SessionManager | None, transport: Transport | None) -> None:
        self.sessions = sessions
        self.transport = transport
        self._loops: PerLoop[_LoopShared] = PerLoop()

    def transport_for(self, endpoint: Endpoint, settings: Settings) -> Transport:
        """The transport of one client.

        Raises:
            ConfigError: the proxy for this endpoint is wrong.
        """
        if self.sessions is None:
            assert self.transport is not None
            return self.transport
        self.sessions.proxy_for(endpoint)
        return AiohttpTransport(self.sessions, settings.timeouts, settings.limits.max_body)

    def stats(self) -> ConnectionStats:
        return ConnectionStats() if self.sessions is None else self.sessions.stats()

    def loop_state(
        self,
        loop: asyncio.AbstractEventLoop,
        endpoint: Endpoint,
        secret: Secret | SecretProvider,
        settings: Settings,
        clock: Clock,
        counters: RequestCounters,
        observers: Sequence[Observer],
    ) -> LoopState:
        """A new state for one client in one loop."""
        shared = self._loops.get(loop)
        if shared is None:
            self._loops.take_closed()
            shared = self._loops[loop] = _LoopShared(DeadlineTimer(loop))
        # Times of different clocks do not mix. The governor keeps its clock alive, so no other clock gets this id.
        key = endpoint.url, secret, id(clock)
        governed_by, paid_from = (*key, settings.limits), (*key, settings.retry.quota)
        governor = shared.governors.get(governed_by)
        if governor is None:
            governor = shared.governors[governed_by] = Governor(settings.limits, clock, endpoint.host)
        quota = shared.quotas.get(paid_from)
        if quota is None:
            quota = make_quota(settings.retry.quota)
            if quota is not None:
                shared.quotas[paid_from] = quota
        if isinstance(secret, Secret):
            shared.recent.keep((governed_by, paid_from), governor, quota, loop.time())
        state = LoopState(loop, shared.timer, governor, quota, shared.decoding, clock.now, counters, observers)
        if observers:
            governor.notices.listeners.add(state)
        return state

    async def close(self) -> None:
        """Closes the connections of the running loop; it gets no new ones."""
        self._loops.pop(asyncio.get_running_loop(), None)
        if self.sessions is not None:
            await self.sessions.close()
        if self.transport is not None:
            await self.transport.close()

    def shut(self) -> None:
        """Refuses new sessions in every loop, also in one that did not run while the others closed theirs."""
        if self.sessions is not None:
            self.sessions.shut()


@define(eq=False, repr=False)
class Lineage(Generic[T]):
    """Where a client comes from. It lives as long as the client or a client derived from it.

    Attributes:
        member: the client.
        parent: of the client that this one was derived from; None for the root.
        children: of the clients that were derived from this one; made for the first of them.
    """

    member: ref[T]
    parent: Lineage[T] | None
    children: WeakSet[Lineage[T]] | None = None

    @classmethod
    def add(cls, member: T, parent: Lineage[T] | None) -> Lineage[T]:
        """The lineage of a new client. Links to collected clients are dropped, so that a chain stays short."""
        made = cls(ref(member), parent)
        if parent is not None:
            parent._adopt(made)
            while parent.parent is not None and parent.parent.member() is None:
                parent.parent = parent.parent.parent
            if parent.parent is not None:
                parent.parent._adopt(parent)
        return made

    def _adopt(self, child: Lineage[T]) -> None:
        if self.children is None:
            self.children = WeakSet()
        self.children.add(child)

    def with_descendants(self) -> list[T]:
        """The client and all clients derived from it, directly or not."""
        found, left = list[T](), list[Lineage[T]]([self])
        while left:
            lineage = left.pop()
            left.extend(lineage.children or ())
            if (member := lineage.member()) is not None:
                found.append(member)
        return found


async def close(clients: Sequence[PerLoop[LoopState]], pool: Pool | None, grace: float) -> None:
    """Ends the calls of some clients in all loops.

    Args:
        clients: the states of each client, by loop.
        pool: closed as well, if given.
        grace: seconds that calls in flight may take.
    """
    here = asyncio.get_running_loop()
    states = [state for by_loop in clients for state in tuple(by_loop.values())]
    # After a fork, the parent's loops look as if they ran in this process as well.
    loops = {state.loop for state in states if state.pid == os.getpid() and state.loop.is_running()} - {here}
    elsewhere = [  # loops of other threads end their own calls
        asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_close_here(clients, pool, grace), loop)) for loop in loops
    ]
    try:
        await _close_here(clients, pool, grace)
        if elsewhere:  # with a timeout, because such a loop may stop without running the coroutine
            done, _ = await asyncio.wait(elsewhere, timeout=grace + 2.0)
            for other in done:
                if not other.cancelled() and (problem := other.exception()) is not None:
                    raise problem
    finally:
        if pool is not None:
            pool.shut()


async def _close_here(clients: Sequence[PerLoop[LoopState]], pool: Pool | None, grace: float) -> None:
    loop = asyncio.get_running_loop()
    ending = [by_loop[loop] for by_loop in clients if loop in by_loop]
    try:
        await _drain(ending, grace)
    finally:
        for state in ending:
            for scope in tuple(state.calls):
                scope.interrupt()
        if pool is not None:
            await pool.close()
    await _drain(ending, 1.0)  # interrupted calls clean up; a user's middleware may take longer, but `close` does not
    for by_loop in clients:
        by_loop.pop(loop, None)


async def _drain(ending: Sequence[LoopState], grace: float) -> None:
    """Waits until no call is in flight, at most `grace` seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(grace):
            for state in ending:
                await state.drain()
