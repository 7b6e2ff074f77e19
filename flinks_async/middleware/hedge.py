"""Hedging: if an attempt takes unusually long, a second one is sent, and the first good answer wins.

Source: Dean and Barroso, "The Tail at Scale", CACM 2013: a hedge after the 95th percentile costs 5 % more requests and
cuts the tail if slowness is random (one machine, one lost packet), and not caused by the request or by load.

Because of that condition, hedging is off by default and bounded: a hedge is paid from the retry quota, like a retry; none
is sent while requests are held back or all slots are in use, because then load is the cause; and none while the first
attempt still waits in the queue. It sits below the retry, which sees one outcome, and above the governor, for which a
hedge is a request like any other.
"""

from __future__ import annotations

import asyncio
from collections import deque

from attrs import evolve

from ..classify import verdict_of
from ..clock import Clock
from ..messages import Call, Handler, Request, Response
from ..protection import HEDGE_REMEMBERS, Hedge
from ..runtime import mark_retrieved, until_done
from ..verdict import Kind

_UPDATE_EVERY = 20  # samples


class LatencyPercentile:
    """A percentile of the latest good attempts' times. Pure.

    Attributes:
        delay: seconds after which a hedge is sent; None while too few attempts are known.
    """

    def __init__(self, settings: Hedge) -> None:
        self._settings = settings
        self._times: deque[float] = deque(maxlen=HEDGE_REMEMBERS)
        self._new = 0
        self.delay: float | None = None

    def add(self, seconds: float) -> None:
        self._times.append(seconds)
        self._new += 1
        if len(self._times) < self._settings.samples or (self.delay is not None and self._new < _UPDATE_EVERY):
            return
        self._new = 0
        ordered = sorted(self._times)
        place = min(len(ordered) - 1, int(len(ordered) * self._settings.percentile))
        self.delay = max(self._settings.minimum, ordered[place])


class _Branch:
    """One of two simultaneous attempts, with its own copy of the call."""

    def __init__(self, request: Request, call_next: Handler, *, number: int) -> None:
        call = request.call
        self._call = call
        self._before = call.copy(attempts=call.attempts + number)
        self._copy = evolve(self._before)
        self.task = asyncio.ensure_future(call_next(request.evolve(call=self._copy)))
        self.task.add_done_callback(mark_retrieved)  # the losing branch may end with an error

    @property
    def sent(self) -> bool:
        return self._copy.attempts > self._before.attempts

    @property
    def wire_time(self) -> float:
        return self._copy.wire_time - self._before.wire_time

    def add_to_call(self) -> None:
        """Adds this attempt to the call."""
        self._call.add(self._copy, since=self._before)


class HedgeMiddleware:
    """Sends a second attempt when the first takes too long."""

    def __init__(self, settings: Hedge, clock: Clock) -> None:
        self._clock = clock
        self.latencies = LatencyPercentile(settings)

    async def __call__(self, request: Request, call_next: Handler, /) -> Response:
        call, delay = request.call, self.latencies.delay
        if delay is None:
            wire_before = call.wire_time
            return self._note(await call_next(request), call.wire_time - wire_before)
        branches = [_Branch(request, call_next, number=0)]
        try:
            while not (await asyncio.wait([branches[0].task], timeout=delay))[0]:
                if branches[0].sent and self._may_hedge(call):
                    branches.append(_Branch(request, call_next, number=1))
                    break
            best = await _first_good(branches)
        finally:
            await _end(branches)
        return self._note(best.task.result(), best.wire_time)

    def _note(self, response: Response, seconds: float) -> Response:
        if verdict_of(response).kind is Kind.OK:
            self.latencies.add(seconds)
        return response

    def _may_hedge(self, call: Call) -> bool:
        governor, quota = call.local.governor, call.local.quota
        if not governor.has_room or (call.deadline is not None and call.deadline <= self._clock.now()):
            return False
        return quota is None or quota.take(Kind.TRANSIENT, self._clock.now()) is not None


async def _first_good(branches: list[_Branch]) -> _Branch:
    """The first branch that succeeds; if none does, the first attempt."""
    by_task = {branch.task: branch for branch in branches}
    pending = set(by_task)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.exception() is None and verdict_of(task.result()).kind is Kind.OK:
                return by_task[task]
    return branches[0]


async def _end(branches: list[_Branch]) -> None:
    """Cancels the branches that still run and waits for them, so that they release their slots."""
    running = [branch.task for branch in branches if not branch.task.done()]
    for task in running:
        task.cancel()
    try:
        await until_done(running)
    finally:
        for branch in branches:
            branch.add_to_call()
