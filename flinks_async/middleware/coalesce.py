"""Coalescing (single flight): simultaneous calls for one token share one request and its answer.

Off by default: it saves requests in a service that shows one user's accounts in several places, and is only overhead in a
job over distinct tokens.

The first call starts a task that runs the rest of the chain; other calls with the same token wait for it. Each waiter keeps
its own deadline and leaves at that time, or when it is cancelled, without any effect on the others. The task's deadline is
the latest one among its waiters, so that retry, polling and queue treat it like a call of its own. When the last waiter
leaves, the task is cancelled. Each waiter gets a copy of the error, because errors carry the times and the traceback of the
call that raises them.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Hashable
from functools import reduce
from weakref import WeakKeyDictionary

from attrs import evolve

from ..errors import FlinksError
from ..messages import Call, Handler, Request, Response, SharedDeadline
from ..runtime import LoopState, mark_retrieved, until_done
from ..secret import Secret


class Flight:
    """A shared task and the calls that wait for it."""

    def __init__(self, request: Request, call_next: Handler) -> None:
        self.waiting: list[Call] = []
        self._deadline = SharedDeadline(request.call.deadline)
        self._before = evolve(request.call)
        self._call = request.call.copy(shared=self._deadline)
        self.task = asyncio.ensure_future(call_next(request.evolve(call=self._call)))
        self.task.add_done_callback(mark_retrieved)

    def join(self, call: Call) -> None:
        """Adds a waiter."""
        self.waiting.append(call)
        self._deadline.at = _later(self._deadline.at, call.deadline)

    def leave(self, call: Call) -> None:
        """Removes a waiter. The last one leaves the deadline unchanged, because its passing may be what ends the task."""
        self.waiting.remove(call)
        if self.waiting and not self.task.done() and call.deadline == self._deadline.at:
            self._deadline.at = reduce(_later, (waiting.deadline for waiting in self.waiting))

    def add_to(self, call: Call) -> None:
        """Adds the attempts of the shared task to a waiter's call."""
        shared = self._call
        call.add(shared, since=self._before)
        # An error made from the answer redacts the secret that was sent, which the task may have fetched.
        call.secret, call.fresh, call.headers_at = shared.secret, shared.fresh, shared.headers_at


def _later(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)


class CoalesceMiddleware:
    """Lets simultaneous calls with the same token and headers share one task."""

    def __init__(self) -> None:
        self._flights: WeakKeyDictionary[LoopState, dict[Hashable, Flight]] = WeakKeyDictionary()

    async def __call__(self, request: Request, call_next: Handler, /) -> Response:
        call = request.call
        flights, key = self._flights.setdefault(call.local, {}), _key(request)
        flight = flights.get(key)
        if flight is None or flight.task.done():
            flight = flights[key] = Flight(request, call_next)
        flight.join(call)
        try:
            await asyncio.wait([flight.task])
        finally:
            flight.leave(call)
            if flights.get(key) is flight and (flight.task.done() or not flight.waiting):
                del flights[key]
            try:
                if not flight.waiting and not flight.task.done():
                    flight.task.cancel()
                    await until_done([flight.task])  # so that its slot is released before we leave
            finally:
                flight.add_to(call)
        if not flight.task.cancelled() and isinstance(error := flight.task.exception(), FlinksError):
            problem = copy.copy(error)
            del error
            raise problem
        return flight.task.result()


def _key(request: Request) -> Hashable:
    # Wrapped, because the key is in frames of tracebacks.
    headers = frozenset((name.lower(), Secret(value)) for name, value in request.headers.items())
    return request.endpoint, request.token, request.raw, headers
