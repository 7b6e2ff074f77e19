"""Polling: asks again while the answer is "not yet" (202, OPERATION_PENDING, OPERATION_DISPATCHED).

Off by default, because it is not documented that this endpoint ever answers so. For a sibling endpoint Flinks documents a
poll every 10 seconds, for at most 30 minutes. If the server asks for a longer wait, it gets it. A poll that would pass the
bound or the call's deadline is not made; the call then ends with the last "not yet", a `PendingError`. Each poll is a call
of its own for the retry.
"""

from __future__ import annotations

from ..classify import verdict_of
from ..clock import Clock
from ..config import PollPending
from ..messages import Handler, Request, Response
from ..verdict import Kind


def may_poll(settings: PollPending, *, wait: float, waited: float, remaining: float | None) -> bool:
    """Whether to wait once more and poll again. Pure.

    Args:
        wait: seconds until the next poll.
        waited: seconds since the first "not yet".
        remaining: seconds until the call's deadline.
    """
    return waited + wait <= settings.bound and (remaining is None or wait < remaining)


class PollPendingMiddleware:
    """Repeats the rest of the chain until the answer is not pending."""

    def __init__(self, settings: PollPending, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    async def __call__(self, request: Request, call_next: Handler, /) -> Response:
        settings, clock, call = self._settings, self._clock, request.call
        first: float | None = None
        while True:
            response = await call_next(request)
            if verdict_of(response).kind is not Kind.PENDING:
                return response
            now = clock.now()
            first = now if first is None else first
            wait = max(settings.interval, response.retry_after(clock) or 0.0)
            remaining = None if call.deadline is None else call.deadline - now
            if not may_poll(settings, wait=wait, waited=now - first, remaining=remaining):
                return response
            await clock.sleep(wait)
