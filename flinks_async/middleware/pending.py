"""Polling: asks again while the answer is "not yet" (202, OPERATION_PENDING, OPERATION_DISPATCHED).

Off by default, since it is not documented that this endpoint ever answers so. For a sibling endpoint Flinks documents the
rhythm: every 10 seconds, for at most 30 minutes. A server that asks for a longer wait gets it. A question that would come
after the bound or after the call's deadline is not asked: the call ends with the last "not yet", a `PendingError`. Each
question is a call of its own for the retry.
"""

from __future__ import annotations

from ..classify import verdict_of
from ..clock import Clock
from ..config import PollPending
from ..messages import Handler, Request, Response
from ..verdict import Kind


def ask_again(settings: PollPending, *, wait: float, waited: float, left: float | None) -> bool:
    """Whether to wait once more and ask. Pure.

    Args:
        wait: seconds until the next question.
        waited: seconds since the first "not yet".
        left: seconds until the call's deadline.
    """
    return waited + wait <= settings.bound and (left is None or wait < left)


class PollPendingMiddleware:
    """Repeats the rest of the chain until there is an answer."""

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
            left = None if call.deadline is None else call.deadline - now
            if not ask_again(settings, wait=wait, waited=now - first, left=left):
                return response
            await clock.sleep(wait)
