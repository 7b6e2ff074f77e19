"""Coalescing: calls for the same token at the same time share one way to the server, and its answer.

Off by default: in a service that shows one user's accounts in several places it saves requests; in a job over distinct
tokens it is only overhead.

The first call makes a task that walks the rest of the chain; others with the same token wait for it. Each waiter keeps its
own deadline, and leaves when that comes or when it is cancelled, and nobody else notices. The task's deadline is the latest
of theirs, for as long as they wait, so that what goes by deadlines (retry, polling, queue) goes as in a call of its own.
When the last one leaves the task is cancelled. An error is copied for each waiter, since errors get the times and the
traceback of the call that raises them.
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
from ..runtime.cancel_scope import until_done
from ..runtime.loop_state import LoopState


class Flight:
    """A shared task and those who wait for it."""

    def __init__(self, request: Request, call_next: Handler) -> None:
        self.waiting: list[Call] = []
        self._deadline = SharedDeadline(request.call.deadline)
        self._before = request.call.attempts, request.call.retries, request.call.queue_time, request.call.wire_time
        self._books = evolve(request.call, shared=self._deadline)
        self.task = asyncio.ensure_future(call_next(request.evolve(call=self._books)))
        self.task.add_done_callback(_seen)

    def join(self, call: Call) -> None:
        """Another one waits."""
        self.waiting.append(call)
        self._deadline.at = _later(self._deadline.at, call.deadline)

    def leave(self, call: Call) -> None:
        """One waits no more. The last one leaves the deadline as it is: that it has passed may be why the task ends."""
        self.waiting.remove(call)
        if self.waiting and not self.task.done() and call.deadline == self._deadline.at:
            self._deadline.at = reduce(_later, (waiting.deadline for waiting in self.waiting))

    def enter(self, call: Call) -> None:
        """Fills in a waiter's books."""
        books, (attempts, retries, queue_time, wire_time) = self._books, self._before
        call.attempts += books.attempts - attempts
        call.retries += books.retries - retries
        call.queue_time += books.queue_time - queue_time
        call.wire_time += books.wire_time - wire_time
        # Errors made of the answer hide the secret that was sent, and it may have been asked for on the way.
        call.secret, call.fresh, call.headers_at, call.down = books.secret, books.fresh, books.headers_at, books.down


def _later(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)


class CoalesceMiddleware:
    """Lets equal calls share one task."""

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
                    await until_done([flight.task])  # it gives back its place before we are gone
            finally:
                flight.enter(call)
        if not flight.task.cancelled() and isinstance(error := flight.task.exception(), FlinksError):
            problem = copy.copy(error)
            del error
            raise problem
        return flight.task.result()


def _seen(task: asyncio.Task[Response]) -> None:
    """Keeps asyncio from complaining of an error that came when the last waiter had just left."""
    if not task.cancelled():
        task.exception()


def _key(request: Request) -> Hashable:
    return request.endpoint, request.token, request.raw, tuple(sorted(request.headers.items()))
