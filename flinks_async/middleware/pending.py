"""Polling: asks again while the answer is "not yet" (202, OPERATION_PENDING, OPERATION_DISPATCHED).

Off by default, since it is not documented that this endpoint ever answers so. For a sibling endpoint Flinks documents the
rhythm: every 10 seconds, for at most 30 minutes. A question that would come after the bound or after the call's deadline
is not asked: the call ends with the last "not yet", a `PendingError`. Each question is a call of its own for the retry.
"""

from __future__ import annotations

from ..classify import Kind, verdict_of
from ..clock import Clock
from ..messages import Handler, Request, Response
from ..policies import PollPending


def ask_again(settings: PollPending, *, waited: float, left: float | None) -> bool:
    """Whether to wait once more and ask. Pure.

    Args:
        waited: seconds since the first "not yet".
        left: seconds until the call's deadline.
    """
    return waited + settings.interval <= settings.bound and (left is None or settings.interval < left)


class PollPendingMiddleware:
    """Repeats the rest of the chain until there is an answer."""

    def __init__(self, settings: PollPending, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    async def __call__(self, request: Request, call_next: Handler, /) -> Response:
        clock, deadline = self._clock, request.call.deadline
        first: float | None = None
        while True:
            response = await call_next(request)
            if verdict_of(response).kind is not Kind.PENDING:
                return response
            now = clock.now()
            first = now if first is None else first
            left = None if deadline is None else deadline - now
            if not ask_again(self._settings, waited=now - first, left=left):
                return response
            await clock.sleep(self._settings.interval)
