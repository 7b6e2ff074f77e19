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
from collections.abc import Hashable, Sequence
from contextlib import suppress
from weakref import WeakValueDictionary

from attrs import define, field

from ..clock import Clock
from ..config import Settings
from ..limits.governor import Governor
from ..limits.quota import RetryQuota, make_quota
from ..messages import Transport
from ..runtime.cancel_scope import DeadlineTimer
from ..runtime.loop_state import LoopState, LoopStates
from ..secret import Secret, SecretProvider
from .session import SessionManager

# [flinks_async.closing] How a client ends: calls in flight have some time, then they are interrupted, and then the pool is closed.
#
# Each loop ends its own calls. What a client has in a loop stays in its hands until its calls have ended, so that another
# `close()` with a shorter grace finds them.


REMEMBERED = 1000
"""So many texts at most have their state kept while no client uses them."""

REMEMBERED_FOR = 600.0
"""Seconds after the latest client with the secret began; longer while requests are held back."""


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
    sweeper: DeadlineTimer
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
    ) -> LoopState:
        """The state of one client in one loop."""
        shared = self._loops.get(loop)
        if shared is None:
            for old in [old for old in tuple(self._loops) if old.is_closed()]:
                self._loops.pop(old, None)
            shared = self._loops[loop] = _LoopShared(DeadlineTimer(loop))
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
        return LoopState(loop, shared.sweeper, governor, quota, shared.decoding, clock.now)

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


async def close(clients: Sequence[LoopStates], pool: Pool | None, grace: float) -> None:
    """Ends the calls of some clients, in all loops.

    Args:
        clients: what each of them has, by loop.
        pool: closed as well, if given.
        grace: seconds.
    """
    here = asyncio.get_running_loop()
    found = [local for locals_ in clients for local in tuple(locals_.values())]
    # After a fork, the parent's loops look as if they ran here as well.
    loops = {local.loop for local in found if local.pid == os.getpid() and local.loop.is_running()} - {here}
    elsewhere = [  # loops of other threads end their own calls
        asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_close_here(clients, pool, grace), loop)) for loop in loops
    ]
    try:
        await _close_here(clients, pool, grace)
        if elsewhere:  # with a bound, since such a loop may end without a word
            done, _ = await asyncio.wait(elsewhere, timeout=grace + 2.0)
            for other in done:
                if not other.cancelled() and (problem := other.exception()) is not None:
                    raise problem
    finally:
        if pool is not None:
            pool.shut()


async def _close_here(clients: Sequence[LoopStates], pool: Pool | None, grace: float) -> None:
    loop = asyncio.get_running_loop()
    ending = [locals_[loop] for locals_ in clients if loop in locals_]
    try:
        await _drain(ending, grace)
    finally:
        for local in ending:
            for scope in tuple(local.calls):
                scope.interrupt()
        if pool is not None:
            await pool.close()
    await _drain(ending, 1.0)  # the interrupted calls tidy up; a user's middleware may take its time, but not ours
    for locals_ in clients:
        locals_.pop(loop, None)


async def _drain(ending: Sequence[LoopState], grace: float) -> None:
    """Waits until no call is under way, or the grace is over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(grace):
            for local in ending:
                await local.drain()
