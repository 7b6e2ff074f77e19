"""A thread for blocking work beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Thread:
    """One thread that runs blocking functions one after the other, in the order of the calls."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    def do(self, function: Callable[..., T], /, *args: object) -> Awaitable[T]:
        """Returns or raises what `function(*args)` does. The function runs even if the caller is cancelled."""
        # Shielded: cancelling a call that waits in the queue would take it out of the queue.
        return asyncio.shield(asyncio.get_running_loop().run_in_executor(self._pool, function, *args))

    def close(self) -> None:
        """Finishes the calls that were made. Blocks until then."""
        self._pool.shutdown()


class NoThread(Thread):
    """Runs each function at once, in the caller's thread. For tests in virtual time."""

    def __init__(self) -> None:
        pass

    def do(self, function: Callable[..., T], /, *args: object) -> Awaitable[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass
