"""State that belongs to an event loop: cancel scopes and their timer, what the calls of one client share, and maps that drop
closed loops.

A cancel scope is a block of a task that a deadline or the closing of the client can interrupt. The rules are those of
`asyncio.timeout`: the task is cancelled, and the scope swallows the `CancelledError` and sets `interrupted`, unless
something else cancelled the task too. But `asyncio.timeout` costs about 5 us, because it makes and cancels a timer handle
each time. Here all scopes that are due at about the same time share one handle, and to leave a scope is to remove it from
a set.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from asyncio import current_task
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from heapq import heappop, heappush
from types import TracebackType
from typing import Any, TypeVar

from attrs import define, field

from .limits.governor import Governor
from .limits.notices import log_fields
from .limits.quota import RetryQuota

V = TypeVar("V")

LATE = 0.1
"""Seconds after which a timer counts as late, because the event loop was blocked."""

# Turns of the loop before late scopes end. A turn reads each socket once; TLS, headers and body may need one each, and
# uvloop runs callbacks before it reads.
_PASSES = 5

_log = logging.getLogger("flinks_async")


class CancelScope:
    """A block, `with scope: ...`, that `interrupt()` ends. Use it once, in one task.

    Args:
        loop: the running event loop, if it is known; to look it up costs time.

    Attributes:
        interrupted: whether `interrupt()` ended the block.
        late: the deadline timer ended it late, because the event loop was blocked. The server is not the cause.
    """

    __slots__ = ("_before", "_bucket", "_loop", "_task", "interrupted", "late")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._task: asyncio.Task[object] | None = None
        self._bucket: set[CancelScope] | None = None
        self.interrupted = self.late = False

    def __enter__(self) -> CancelScope:
        task = current_task(self._loop)
        if task is None:
            raise RuntimeError("flinks_async must be called from an asyncio task")
        self._task = task
        self._before = task.cancelling()
        return self

    def interrupt(self) -> None:
        """Ends the block, if it still runs. Call it in the event loop of the task."""
        if self._task is not None and not self.interrupted:
            self.interrupted = True
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        task, self._task = self._task, None
        if self._bucket is not None:
            self._bucket.discard(self)
            self._bucket = None
        if not self.interrupted:
            return False
        assert task is not None
        ours = task.uncancel() <= self._before
        if ours and kind is asyncio.CancelledError:
            return True
        # Something else cancelled the task as well, or the block ended with its own exception, which propagates.
        self.interrupted = False
        return False


class DeadlineTimer:
    """Interrupts scopes at their deadlines. There is one for each event loop.

    A scope ends up to 5 % late (at least 10 ms, at most 500 ms), never early. If the timer itself is late, the loop was
    blocked, and answers may have arrived meanwhile. So the loop does its I/O first, and only then scopes end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buckets: dict[int, set[CancelScope]] = {}
        self._due: list[int] = []
        self._handle: asyncio.Handle | None = None

    def scope(self, seconds: float | None) -> CancelScope:
        """A scope that is interrupted after this many seconds, unless it is left before; never for None."""
        scope = CancelScope(self._loop)
        if seconds is None:
            return scope
        tick = 10 if seconds < 1 else 50 if seconds < 10 else 500
        due = (int((self._loop.time() + seconds) * 1000.0) // tick + 1) * tick
        bucket = self._buckets.get(due)
        if bucket is None:
            bucket = self._buckets[due] = set()
            heappush(self._due, due)
            if self._due[0] == due:
                self._schedule()
        bucket.add(scope)
        scope._bucket = bucket
        return scope

    def _schedule(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_at(self._due[0] / 1000.0, self._sweep)

    def _sweep(self) -> None:
        self._handle = None
        late = self._loop.time() - self._due[0] / 1000.0
        if late < LATE:
            self._interrupt_due(late=False)
            return
        if any(self._buckets[due] for due in self._due if due <= self._loop.time() * 1000.0):
            _log.warning(
                "the event loop was blocked for at least %.1f s, so timeouts are late; move blocking work to a thread",
                late,
                extra=log_fields("LoopBlocked", seconds=late),
            )
        self._after_io(_PASSES)

    def _after_io(self, passes: int) -> None:
        if passes:
            self._handle = self._loop.call_soon(self._after_io, passes - 1)
        else:
            self._handle = None
            self._interrupt_due(late=True)

    def _interrupt_due(self, *, late: bool) -> None:
        now = self._loop.time() * 1000.0 + 1e-3
        while self._due and self._due[0] <= now:
            # A copy, because an interrupted scope removes itself from its bucket.
            for scope in tuple(self._buckets.pop(heappop(self._due))):
                scope.late = late
                scope.interrupt()
        if self._due:
            self._schedule()


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


@define(eq=False, repr=False)
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

    def call_ended(self) -> None:
        """Wakes those who wait for the last call, if it has ended."""
        if self.drained is not None and not self.calls:
            self.drained.set()
            self.drained = None

    async def drain(self) -> None:
        """Waits until no call is in flight; several tasks may wait."""
        while self.calls:
            if self.drained is None:
                self.drained = asyncio.Event()
            await self.drained.wait()


@asynccontextmanager
async def repeated(interval: float, action: Callable[[], object]) -> AsyncIterator[None]:
    """Calls `action` every `interval` seconds during the block."""

    async def repeat() -> None:
        while True:
            await asyncio.sleep(interval)
            action()

    task = asyncio.ensure_future(repeat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def in_daemon_thread(function: Callable[[], V]) -> V:
    """Calls `function()` in a thread. If the function blocks forever, the process can still end."""
    future = Future[V]()
    future.set_running_or_notify_cancel()  # so that whoever waits can give up, but not cancel it

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return await asyncio.wrap_future(future)


async def until_done(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Waits until all tasks are done, even if it is cancelled meanwhile; then it raises that cancellation."""
    cancelled: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        try:
            raise cancelled
        finally:
            del cancelled


def cut(connected: socket.socket) -> None:
    """Ends a connection that is given up during the handshake of TLS. The event loop would wait for the server, or forget it."""
    with suppress(OSError):  # it is closed already
        connected.shutdown(socket.SHUT_RDWR)


def mark_retrieved(future: asyncio.Future[Any]) -> None:
    """Keeps asyncio from logging that the exception of a task or future was never retrieved."""
    if not future.cancelled():
        future.exception()
