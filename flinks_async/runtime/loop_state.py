"""State that belongs to an event loop: what the calls of one client share in it, and maps that drop closed loops."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from attrs import define, field

from ..limits.governor import Governor
from ..limits.quota import RetryQuota
from .cancel_scope import CancelScope, DeadlineTimer

V = TypeVar("V")


class PerLoop(dict[asyncio.AbstractEventLoop, V]):
    """Values by event loop.

    Each `asyncio.run` makes a new loop. Call `take_closed` before you add an entry, so that closed loops do not pile up.
    The methods copy the keys first, because other threads may add their loops meanwhile.
    """

    def take_closed(self) -> list[V]:
        """Removes the entries of closed loops and returns their values."""
        closed = [self.pop(loop, None) for loop in tuple(self) if loop.is_closed()]
        return [value for value in closed if value is not None]

    def open_values(self) -> list[V]:
        """The values of loops that are not closed."""
        return [value for loop, value in tuple(self.items()) if not loop.is_closed()]


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """A loop factory for `asyncio.Runner(loop_factory=...)`: uvloop's if it is installed, else None (asyncio's own)."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


@contextmanager
def handled_signals(handle: Callable[[str], object], *names: str) -> Iterator[None]:
    """Calls `handle` with the name of each signal that arrives during the block, in the running loop; then restores the
    handlers. Signals that the platform lacks, a SIGHUP that `nohup` ignores, and threads other than the main one have none.
    """
    loop = asyncio.get_running_loop()
    before = {name: signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
    for name, handler in before.items():
        if name == "SIGHUP" and handler is signal.SIG_IGN:
            continue
        with suppress(RuntimeError, ValueError):  # not the main thread, which alone gets signals
            try:
                loop.add_signal_handler(getattr(signal, name), handle, name)
            except NotImplementedError:  # Windows
                signal.signal(getattr(signal, name), lambda *_, name=name: loop.call_soon_threadsafe(handle, name))
    try:
        yield
    finally:
        for name, handler in before.items():
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(getattr(signal, name))
            with suppress(ValueError, TypeError):  # not the main thread; a handler that was not set from Python
                signal.signal(getattr(signal, name), handler)


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
        observers: of the client; the governor tells them when the instance is down or asks for a pause.
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
    observers: Sequence[Callable[[Any], object]] = ()
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
