"""Tries again what may work the next time.

`decide` is pure: it sees what an attempt meant and what has been tried, and says whether and when to try again. The
middleware around it only waits, and pays for retries from the quota. It never holds a connection while it waits, since
an attempt returns whole responses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, frozen

from .. import config
from ..classify import classify_error, error_from, verdict_of
from ..clock import Clock
from ..errors import FlinksError, QuotaExhaustedError
from ..limits.quota import RetryQuota
from ..messages import Call, Handler, Request, Response
from ..observe import Observer, RetryScheduled, emit
from ..secret import fingerprint
from ..verdict import Kind, Verdict

# [flinks_async.middleware.backoff] How long to wait before the next attempt: exponential backoff with full jitter.
#
# Source: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015, updated 2023): of the variants compared there,
# full jitter needs the fewest calls under contention.


# Beyond Retry.attempts: an answer that is not HTTP, or not JSON, seldom gets better.
_MOST_RETRIES = {Kind.BROKEN: 2, Kind.MALFORMED: 1}

# Attempts of one call that may fail for free while its instance is down: so many probes are more than an hour, and a token
# that brings down whoever asks for it does not keep a job alive for ever.
_MOST_FREE = 200

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
        free: attempts that failed while the instance was down, and do not count.
        broken, malformed: attempts of the kinds that are limited by themselves.
        cost: what the last retry has cost; None before the first.
    """

    attempts: int = 0
    stale: int = 0
    broken: int = 0
    malformed: int = 0
    free: int = 0
    cost: int | None = None


def decide(
    settings: config.Retry,
    verdict: Verdict,
    state: RetryState,
    *,
    asked: float | None,
    left: float | None,
    random: Callable[[], float],
    waits: bool = False,
    down: bool = False,
) -> Again | Stop:
    """Whether and when to try again. Pure, but for `random`; `state` already counts the attempt that failed.

    Args:
        asked: seconds that the server asked to wait.
        left: seconds until the deadline.
        waits: `Limits.waits`.
        down: the instance counts as down.
    """
    kind = verdict.kind
    if kind not in _RETRIED:
        return Stop(f"{kind.value} answers are not retried")
    if kind is Kind.STALE and state.stale == 1:
        return Again(0.0, "a fresh connection")
    if state.attempts >= settings.attempts:
        return Stop(f"{state.attempts} of {settings.attempts} attempts made")
    if down and not waits:
        return Stop("the instance is down")
    if kind is Kind.BROKEN and state.broken > _MOST_RETRIES[kind]:
        return Stop("the answers are not HTTP")
    if kind is Kind.MALFORMED and state.malformed > _MOST_RETRIES[kind]:
        return Stop("the answers are not JSON")
    if asked is not None and asked > settings.retry_after_cap:
        if not waits:
            return Stop(f"the server asks to wait {asked:g} s, more than retry_after_cap")
        asked = None  # the governor pauses everybody
    base = settings.throttled_base if kind is Kind.THROTTLED else settings.base
    delay = full_jitter(max(1, state.attempts), base=base, cap=settings.cap, random=random())
    if asked is not None:
        delay = max(delay, asked)
    if left is not None and delay >= left:
        return Stop("the wait would pass the deadline")
    return Again(delay, verdict.reason)


def count(state: RetryState, kind: Kind, *, free: bool) -> None:
    """Enters an attempt in the books.

    Args:
        free: it failed while the instance was down, in a call that waits.
    """
    if kind is Kind.STALE:
        state.stale += 1
        state.attempts += state.stale > 1
        return
    if free and state.free < _MOST_FREE:
        state.free += 1
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
        call = request.call
        quota, state = call.local.quota, None
        if quota is not None:
            quota.request(self._clock.now())
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
                    if quota is not None:
                        quota.succeeded(None if state is None else state.cost)
                    return response
            else:
                assert error is not None
                verdict = classify_error(error)
            state = state or RetryState()
            free = call.down and call.local.governor.limits.waits
            count(state, verdict.kind, free=free)
            decision = self._decide(request, response, verdict, state)
            if isinstance(decision, Again) and quota is not None and not free and not _extra(state, verdict.kind):
                state.cost = await self._pay(quota, call, verdict.kind)
                if state.cost is None:
                    decision = Stop("the retry quota is used up")
                    if response is not None and not request.raw:
                        error = error_from(request, response, verdict, self._clock)
                    if error is not None:
                        error = _exhausted(error, request.endpoint.host)
            if isinstance(decision, Stop):
                if response is not None and not isinstance(error, QuotaExhaustedError):
                    return response
                try:
                    raise error or AssertionError
                finally:
                    error = None  # the error holds this frame, which must not hold the error
            call.fresh = verdict.kind is Kind.STALE
            self._announce(request, verdict, decision)
            error = None
            if decision.delay > 0:
                await self._clock.sleep(decision.delay)

    def _decide(self, request: Request, response: Response | None, verdict: Verdict, state: RetryState) -> Again | Stop:
        clock, call = self._clock, request.call
        if call.permit is not None and call.permit.revoked:
            return Stop("the caller wants no more requests")
        return decide(
            self._settings,
            verdict,
            state,
            asked=None if response is None else response.retry_after(clock),
            left=None if call.deadline is None else call.deadline - clock.now(),
            random=clock.random,
            waits=call.local.governor.limits.waits,
            down=call.down,
        )

    async def _pay(self, quota: RetryQuota, call: Call, kind: Kind) -> int | None:
        """What the retry costs; None if the quota is used up. A call that waits waits for it, if time brings it."""
        while True:
            now = self._clock.now()
            cost = quota.take(kind, now)
            if cost is not None or not call.local.governor.limits.waits:
                return cost
            wait = quota.wait(now)
            if wait is None or (call.deadline is not None and now + wait >= call.deadline):
                return None
            await self._clock.sleep(wait)

    def _announce(self, request: Request, verdict: Verdict, decision: Again) -> None:
        request.call.retries += 1
        request.call.retrying = True
        if self._observers:
            call = request.call
            event = RetryScheduled(
                request.endpoint.host, call.attempts, fingerprint(request.token), verdict, decision.delay
            )
            emit(self._observers, event)


def _extra(state: RetryState, kind: Kind) -> bool:
    """Whether the attempt that follows is the one that a dead kept-alive connection brings for free."""
    return kind is Kind.STALE and state.stale == 1


def _exhausted(last: FlinksError, host: str) -> QuotaExhaustedError:
    """The error of the last attempt, and why it was the last."""
    return QuotaExhaustedError(
        f"not retried, because the retry quota for {host} is used up; the last attempt: {last.message}",
        status=last.status,
        flinks_code=last.flinks_code,
        server_message=last.server_message,
        request_id=last.request_id,
        retry_after=last.retry_after,
    )


def full_jitter(retry: int, *, base: float, cap: float, random: float) -> float:
    """`random * min(cap, base * 2**(retry - 1))` seconds.

    Args:
        retry: 1 for the wait before the first retry.
        base, cap: seconds.
        random: in [0, 1).
    """
    # 2**1023 is the largest power of two that a float holds.
    return random * min(cap, base * 2.0 ** min(retry - 1, 1000))
