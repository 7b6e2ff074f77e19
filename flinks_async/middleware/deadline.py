"""The end of a call: everything in it, the queue and the waits included, is over by then."""

from __future__ import annotations

from ..clock import Clock
from ..errors import DeadlineExceededError
from ..messages import Handler, Request, Response
from ..scope import Scope


class DeadlineMiddleware:
    """Ends a call that takes longer than `request.timeout` seconds.

    It also writes the deadline into the call's books, where the retry reads it: a wait that would pass it is not begun.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def __call__(self, request: Request, call_next: Handler, /) -> Response:
        timeout, call = request.timeout, request.call
        if timeout is None:
            return await call_next(request)
        call.deadline = self._clock.now() + timeout
        scope = Scope()
        call.local.sweeper.arm(scope, timeout)
        with scope:
            return await call_next(request)
        raise DeadlineExceededError(
            f"no answer from {request.endpoint.host} within {timeout:g} s ({call.attempts} attempts sent)"
        )
