"""How a client ends: calls in flight have some time, then they are interrupted, and then the pool is closed.

Each loop ends its own calls. What a client has in a loop stays in its hands until its calls have ended, so that another
`close()` with a shorter grace finds them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress

from .local import Locals, LoopLocal, Pool


async def close(clients: Sequence[Locals], pool: Pool | None, grace: float) -> None:
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


async def _close_here(clients: Sequence[Locals], pool: Pool | None, grace: float) -> None:
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
        locals_.drop(loop)


async def _drain(ending: Sequence[LoopLocal], grace: float) -> None:
    """Waits until no call is under way, or the grace is over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(grace):
            for local in ending:
                await local.drain()
