"""Hedging: when an attempt takes unusually long, a second one is sent, and the first good answer wins.

Source: Dean and Barroso, "The Tail at Scale", CACM 2013: a hedge after the 95th percentile costs 5 % more requests and
cuts the tail, where slowness is a matter of chance (one machine, one lost packet) and not of the request or of load.

That condition is why it is off by default, and why it is bounded: a hedge is paid like a retry, from the retry quota; none
is sent while requests are held back or all places are taken, since then slowness *is* load; and none while the first
attempt still stands in the queue. It lives below the retry, which sees one outcome, and above the governor, for which a
hedge is a request like any other.
"""

from __future__ import annotations

import asyncio
from collections import deque

from attrs import evolve

from ..classify import verdict_of
from ..clock import Clock
from ..config import HEDGE_REMEMBERS, Hedge
from ..messages import Call, Handler, Request, Response
from ..runtime.cancel_scope import until_done
from ..verdict import Kind

_SORTED_EVERY = 20


class Latencies:
    """The times of the latest good attempts, and one of their percentiles. Pure."""

    def __init__(self, settings: Hedge) -> None:
        self._settings = settings
        self._times: deque[float] = deque(maxlen=HEDGE_REMEMBERS)
        self._new = 0
        self.delay: float | None = None
        """Seconds after which a hedge is sent; None while too little is known."""

    def add(self, seconds: float) -> None:
        self._times.append(seconds)
        self._new += 1
        if len(self._times) < self._settings.samples or (self.delay is not None and self._new < _SORTED_EVERY):
            return
        self._new = 0
        ordered = sorted(self._times)
        place = min(len(ordered) - 1, int(len(ordered) * self._settings.percentile))
        self.delay = max(self._settings.minimum, ordered[place])


class _Branch:
    """One of two attempts at the same time, with books of its own."""

    def __init__(self, request: Request, call_next: Handler, *, number: int) -> None:
        call = request.call
        self._call = call
        self._before = evolve(call, attempts=call.attempts + number)
        self._books = evolve(self._before)
        self.task = asyncio.ensure_future(call_next(request.evolve(call=self._books)))
        self.task.add_done_callback(_seen)  # the one that loses may end with an error

    @property
    def sent(self) -> bool:
        return self._books.attempts > self._before.attempts

    @property
    def wire_time(self) -> float:
        return self._books.wire_time - self._before.wire_time

    def enter(self) -> None:
        """Adds to the call's books what happened here."""
        call, books, before = self._call, self._books, self._before
        call.attempts += books.attempts - before.attempts
        call.queue_time += books.queue_time - before.queue_time
        call.wire_time += books.wire_time - before.wire_time
        call.down = books.down


class HedgeMiddleware:
    """Sends the second attempt."""

    def __init__(self, settings: Hedge, clock: Clock) -> None:
        self._clock = clock
        self.latencies = Latencies(settings)

    async def __call__(self, request: Request, call_next: Handler, /) -> Response:
        call, delay = request.call, self.latencies.delay
        if delay is None:
            wired = call.wire_time
            return self._good(await call_next(request), call.wire_time - wired)
        branches = [_Branch(request, call_next, number=0)]
        try:
            while not (await asyncio.wait([branches[0].task], timeout=delay))[0]:
                if branches[0].sent and self._may_hedge(call):
                    branches.append(_Branch(request, call_next, number=1))
                    break
            best = await _first_good(branches)
        finally:
            await _end(branches)
        return self._good(best.task.result(), best.wire_time)

    def _good(self, response: Response, seconds: float) -> Response:
        if verdict_of(response).kind is Kind.OK:
            self.latencies.add(seconds)
        return response

    def _may_hedge(self, call: Call) -> bool:
        governor, quota = call.local.governor, call.local.quota
        if not governor.has_room or (call.deadline is not None and call.deadline <= self._clock.now()):
            return False
        return quota is None or quota.take(Kind.TRANSIENT, self._clock.now()) is not None


async def _first_good(branches: list[_Branch]) -> _Branch:
    """The first that succeeds; if none does, the first attempt, which is the one that was asked for."""
    by_task = {branch.task: branch for branch in branches}
    pending = set(by_task)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.exception() is None and verdict_of(task.result()).kind is Kind.OK:
                return by_task[task]
    return branches[0]


async def _end(branches: list[_Branch]) -> None:
    """Cancels what still runs and waits for it, so that no place stays taken."""
    running = [branch.task for branch in branches if not branch.task.done()]
    for task in running:
        task.cancel()
    try:
        await until_done(running)
    finally:
        for branch in branches:
            branch.enter()


def _seen(task: asyncio.Task[Response]) -> None:
    if not task.cancelled():
        task.exception()
