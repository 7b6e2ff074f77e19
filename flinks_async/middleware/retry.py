"""Tries again what may work the next time.

`decide` is pure: it sees what an attempt meant and what has been tried, and says whether and when to try again. The
middleware around it only waits. It never holds a connection while it waits, since an attempt returns whole responses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, frozen

from .. import config
from ..classify import Kind, Verdict, classify_error, verdict_of
from ..clock import Clock
from ..errors import FlinksError
from ..messages import Handler, Request, Response
from ..observe import Observer, RetryScheduled, emit
from ..secret import fingerprint
from .backoff import full_jitter
from .retry_after import retry_after

# Beyond Retry.attempts: an answer that is not HTTP, or not JSON, seldom gets better.
_MOST_RETRIES = {Kind.BROKEN: 2, Kind.MALFORMED: 1}
_RETRIED = frozenset({Kind.TRANSIENT, Kind.THROTTLED, Kind.BROKEN, Kind.MALFORMED, Kind.STALE})


@frozen
class Again:
    """Make another attempt after `delay` seconds."""

    delay: float
    reason: str


@frozen
class Stop:
    """Make no other attempt, for a reason in words."""

    reason: str


@define
class RetryState:
    """What one call has tried so far.

    Attributes:
        attempts: attempts that count against `Retry.attempts`.
        stale: attempts that met a dead kept-alive connection; the first one does not count.
        by_kind: retries of the kinds that are limited by themselves.
    """

    attempts: int = 0
    stale: int = 0
    broken: int = 0
    malformed: int = 0


def decide(
    settings: config.Retry,
    verdict: Verdict,
    state: RetryState,
    *,
    asked: float | None,
    left: float | None,
    random: Callable[[], float],
) -> Again | Stop:
    """Whether and when to try again. Pure, but for `random`; `state` already counts the attempt that failed.

    Args:
        asked: seconds that the server asked to wait.
        left: seconds until the deadline.
    """
    kind = verdict.kind
    if kind not in _RETRIED:
        return Stop(f"{kind.value} answers are not retried")
    if kind is Kind.STALE and state.stale == 1:
        return Again(0.0, "a fresh connection")
    if state.attempts >= settings.attempts:
        return Stop(f"{state.attempts} of {settings.attempts} attempts made")
    if kind is Kind.BROKEN and state.broken > _MOST_RETRIES[kind]:
        return Stop("the answers are not HTTP")
    if kind is Kind.MALFORMED and state.malformed > _MOST_RETRIES[kind]:
        return Stop("the answers are not JSON")
    if asked is not None and asked > settings.retry_after_cap:
        return Stop(f"the server asks to wait {asked:g} s, more than retry_after_cap")
    base = settings.throttled_base if kind is Kind.THROTTLED else settings.base
    delay = full_jitter(state.attempts, base=base, cap=settings.cap, random=random())
    if asked is not None:
        delay = max(delay, asked)
    if left is not None and delay >= left:
        return Stop("the wait would pass the deadline")
    return Again(delay, verdict.reason)


def count(state: RetryState, kind: Kind) -> None:
    """Enters an attempt in the books."""
    if kind is Kind.STALE:
        state.stale += 1
        state.attempts += state.stale > 1
        return
    state.attempts += 1
    state.broken += kind is Kind.BROKEN
    state.malformed += kind is Kind.MALFORMED


class RetryMiddleware:
    """Repeats the rest of the chain as `decide` says."""

    def __init__(self, settings: config.Retry, clock: Clock, observers: Sequence[Observer] = ()) -> None:
        self._settings = settings
        self._clock = clock
        self._observers = observers

    async def __call__(self, request: Request, call_next: Handler, /) -> Response:
        state: RetryState | None = None
        while True:
            response: Response | None = None
            error: FlinksError | None = None
            try:
                response = await call_next(request)
            except FlinksError as raised:
                error = raised
            if response is not None:
                verdict = verdict_of(response, self._settings.throttle_statuses)
                if verdict.kind is Kind.OK:
                    return response
            else:
                assert error is not None
                verdict = classify_error(error)
            state = state or RetryState()
            count(state, verdict.kind)
            decision = self._decide(request, response, verdict, state)
            if isinstance(decision, Stop):
                if response is not None:
                    return response
                try:
                    raise error or AssertionError
                finally:
                    error = None  # the error holds this frame, which must not hold the error
            request.call.fresh = verdict.kind is Kind.STALE
            self._announce(request, verdict, decision)
            error = None
            if decision.delay > 0:
                await self._clock.sleep(decision.delay)

    def _decide(self, request: Request, response: Response | None, verdict: Verdict, state: RetryState) -> Again | Stop:
        clock, deadline = self._clock, request.call.deadline
        return decide(
            self._settings,
            verdict,
            state,
            asked=None if response is None else retry_after(response.headers, clock.time()),
            left=None if deadline is None else deadline - clock.now(),
            random=clock.random,
        )

    def _announce(self, request: Request, verdict: Verdict, decision: Again) -> None:
        request.call.retries += 1
        if self._observers:
            call = request.call
            event = RetryScheduled(
                request.endpoint.host, call.attempts, fingerprint(request.token), verdict, decision.delay
            )
            emit(self._observers, event)
