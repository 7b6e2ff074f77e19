"""Coalescing: calls for the same token at the same time share one way to the server, and its answer.

Off by default: in a service that shows one user's accounts in several places it saves requests; in a job over distinct
tokens it is only overhead.

The first call makes a task that walks the rest of the chain; others with the same token wait for it. The task has no
deadline: each waiter keeps its own, and leaves when that comes or when it is cancelled, and nobody else notices. When the
last one leaves the task is cancelled. An error is copied for each waiter, since errors get the times and the traceback of
the call that raises them.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Hashable

from attrs import evolve

from ..errors import FlinksError
from ..messages import Call, Handler, Request, Response


class Flight:
    """A shared task and those who wait for it."""

    def __init__(self, request: Request, call_next: Handler) -> None:
        self.books = evolve(request.call, deadline=None)
        self.waiters = 0
        self._counted = False
        self.task = asyncio.ensure_future(call_next(request.evolve(call=self.books)))
        self.task.add_done_callback(_seen)

    def leave(self, call: Call) -> None:
        """Fills in a waiter's books. One of them counts the attempts as its own: the first to see the end."""
        books = self.books
        call.attempts, call.retries = books.attempts, books.retries
        call.queue_time, call.wire_time = books.queue_time, books.wire_time
        call.joined = self._counted or not self.task.done()
        self._counted = self._counted or self.task.done()


class CoalesceMiddleware:
    """Lets equal calls share."""

    async def __call__(self, request: Request, call_next: Handler, /) -> Response:
        call = request.call
        flights, key = call.local.flights, _key(request)
        flight = flights.get(key)
        if flight is None:
            flight = flights[key] = Flight(request, call_next)
        flight.waiters += 1
        try:
            await asyncio.wait([flight.task])
        finally:
            flight.waiters -= 1
            if flights.get(key) is flight and (flight.task.done() or not flight.waiters):
                del flights[key]
            try:
                if not flight.waiters and not flight.task.done():
                    flight.task.cancel()
                    await asyncio.wait([flight.task])  # it gives back its place before we are gone
            finally:
                flight.leave(call)
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
