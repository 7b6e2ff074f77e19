"""Blocking work beside the event loop: one thing at a time, in the order in which it was given."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")


class Worker(Protocol):
    """Does blocking work in turn."""

    def do(self, function: Callable[..., T], /, *args: object) -> Awaitable[T]:
        """What `function(*args)` returns or raises. It is done even if nobody waits for it any more."""
        ...

    def close(self) -> None:
        """Finishes what was given."""
        ...


class Thread:
    """A thread of its own."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    def do(self, function: Callable[..., T], /, *args: object) -> asyncio.Future[T]:
        # Shielded: cancelling a call that waits in the queue would take it out of the queue.
        return asyncio.shield(asyncio.get_running_loop().run_in_executor(self._pool, function, *args))

    def close(self) -> None:
        self._pool.shutdown()


class Here:
    """No thread at all: the work is done at once. For tests in virtual time."""

    def do(self, function: Callable[..., T], /, *args: object) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass
