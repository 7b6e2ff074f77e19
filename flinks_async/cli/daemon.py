"""Blocking reads and writes of pipes, in a thread that never keeps the process alive.

The loop's own executor joins its threads at the end, so a read of a silent pipe would hang the exit.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThread:
    """One thread that does what it is given, in turn."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._started = False

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """What `function()` returns or raises, once it has."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put((future, function))
        return future

    def close(self) -> None:
        """Ends the thread after the job that it is at. Does not wait for it."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function = job
            outcome = _outcome_of(function)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                future.get_loop().call_soon_threadsafe(outcome, future)


def _outcome_of(function: Callable[[], Any]) -> Callable[[asyncio.Future[Any]], None]:
    """What to do with the future, in its loop."""
    try:
        result = function()
    except BaseException as error:
        failure = error  # `error` itself ends with the block
        return lambda future: None if future.done() else future.set_exception(failure)
    return lambda future: None if future.done() else future.set_result(result)
