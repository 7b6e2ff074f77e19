"""Asks again: retries failed attempts, and polls while the data is not ready.

`decide` is pure: from the verdict on an attempt and what was tried before it decides whether and when to try again. The
middleware around it only waits, and pays for retries from the retry quota. It holds no connection while it waits, because
an attempt returns complete responses.

Polling (202, OPERATION_PENDING, OPERATION_DISPATCHED) is off by default, because it is not documented that this endpoint
ever answers so. For a sibling endpoint Flinks documents a poll every 10 seconds, for at most 30 minutes. If the server asks
for a longer wait, it gets it. A poll that would pass the bound or the call's deadline is not made; the call then ends with
the last "not yet", a `PendingError`. Each poll is a call of its own for the retry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, frozen

from .. import config
from ..checks import counted
from ..classify import classify_error, error_from, verdict_of
from ..clock import Clock
from ..errors import DeadlineExceededError, FlinksError, QuotaExhaustedError, drop_internal_frames
from ..limits.notices import emit, is_watched
from ..limits.quota import RetryQuota
from ..messages import Call, Handler, Request, Response
from ..observe import Observer, RetryScheduled
from ..schema import Record
from ..secret import fingerprint
from ..verdict import OK, Kind, Verdict

# Beyond `Retry.attempts`: an answer that is not HTTP, or not JSON, seldom improves.
_MAX_RETRIES = {Kind.BROKEN: 2, Kind.MALFORMED: 1}

# Attempts of one call that may fail for free while its instance is down. As probes they last for more than an hour; the
# bound keeps a token that crashes the instance from holding up a job without end.
_MAX_FREE_ATTEMPTS = 200

_RETRIED = frozenset({Kind.TRANSIENT, Kind.THROTTLED, Kind.BROKEN, Kind.MALFORMED, Kind.STALE})


@frozen(eq=False, repr=False)
class Backoff(Record):
    """Make another attempt after `delay` seconds."""

    delay: float
    reason: str


@frozen(eq=False, repr=False)
class Stop(Record):
    """Make no other attempt.

    Attributes:
        reason: why.
        error: the class of the error that the call ends with; None to end with the outcome of the last attempt.
    """

    reason: str
    error: type[FlinksError] | None = None


@define
class RetryState:
    """The attempts of one call so far.

    Attributes:
        attempts: attempts that count against `Retry.attempts`.
        stale: attempts that met a dead kept-alive connection; the first one does not count as an attempt.
        free: attempts that failed while the instance was down and do not count as attempts.
        broken, malformed: attempts of these kinds, which have limits of their own.
        cost: what the last retry cost; None before the first.
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
    retry_after: float | None,
    remaining: float | None,
    random: Callable[[], float],
    waits: bool = False,
    down: bool = False,
) -> Backoff | Stop:
    """Whether and when to try again. Pure except for `random`.

    Args:
        state: already counts the attempt that failed.
        retry_after: seconds that the server asked to wait.
        remaining: seconds until the deadline.
        waits: `Limits.waits`.
        down: the instance counts as down.
    """
    kind = verdict.kind
    if kind not in _RETRIED:
        return Stop(f"{kind.value} answers are not retried")
    if kind is Kind.STALE and state.stale == 1:
        return Backoff(0.0, "a fresh connection")
    if state.attempts >= settings.attempts:
        return Stop(f"{state.attempts} of {settings.attempts} attempts made")
    if down and not waits:
        return Stop("the instance is down")
    if kind is Kind.BROKEN and state.broken > _MAX_RETRIES[kind]:
        return Stop("the answers are not HTTP")
    if kind is Kind.MALFORMED and state.malformed > _MAX_RETRIES[kind]:
        return Stop("the answers are not JSON")
    if retry_after is not None and retry_after > settings.retry_after_cap:
        if not waits:
            return Stop(f"the server asks to wait {retry_after:g} s, more than retry_after_cap")
        retry_after = None  # the governor pauses all requests
    base = settings.throttled_base if kind is Kind.THROTTLED else settings.base
    delay = full_jitter(max(1, state.attempts), base=base, cap=settings.cap, random=random())
    if retry_after is not None:
        delay = max(delay, retry_after)
    if remaining is not None and delay >= remaining:
        return Stop(f"the wait of {delay:.3g} s would pass the deadline", DeadlineExceededError)
    return Backoff(delay, verdict.reason)


def count(state: RetryState, kind: Kind, *, free: bool) -> None:
    """Counts a failed attempt.

    Args:
        free: it failed while the instance was down, in a call that waits.
    """
    if kind is Kind.STALE:
        state.stale += 1
        state.attempts += state.stale > 1
        return
    if free and state.free < _MAX_FREE_ATTEMPTS:
        state.free += 1
        return
    state.attempts += 1
    state.broken += kind is Kind.BROKEN
    state.malformed += kind is Kind.MALFORMED


def full_jitter(retry: int, *, base: float, cap: float, random: float) -> float:
    """`random * min(cap, base * 2**(retry - 1))` seconds: exponential backoff with full jitter.

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015, updated 2023): of the variants compared there,
    full jitter needs the fewest calls under contention.

    Args:
        retry: 1 for the wait before the first retry.
        base, cap: seconds.
        random: in [0, 1).
    """
    # 2**1023 is the largest power of two that a float holds.
    return random * min(cap, base * 2.0 ** min(retry - 1, 1000))


class RetryMiddleware:
    """Repeats the rest of the chain as `decide` says."""

    def __init__(self, settings: config.Retry, clock: Clock, observers: Sequence[Observer] = ()) -> None:
        self._settings = settings
        self._clock = clock
        self._now = clock.now
        self._observers = observers

    async def __call__(self, request: Request, call_next: Handler, /) -> Response:
        call = request.call
        quota, state = call.local.quota, None
        if quota is not None:
            quota.request(self._now())
        while True:
            response: Response | None = None
            error: FlinksError | None = None
            try:
                response = await call_next(request)
            except FlinksError as raised:
                error = raised
                verdict = classify_error(error)
            else:
                verdict = response.verdict or verdict_of(response, self._settings.throttle_statuses)
                if verdict is OK or verdict.kind is Kind.OK:
                    if quota is not None:
                        quota.succeeded(None if state is None else state.cost)
                    return response
            state = state or RetryState()
            decision = await self._next_step(request, response, verdict, state)
            if isinstance(decision, Backoff):
                self._keep_failure(request, error, response, verdict)
                error = None
                self._prepare_retry(request, verdict, decision)
                if decision.delay > 0:
                    await self._clock.sleep(decision.delay)
                continue
            if decision.error is not None and (error is not None or not request.raw):
                failure = self._keep_failure(request, error, response, verdict)
                row = self._row_of(call) if decision.error is QuotaExhaustedError else ""
                error = _not_retried(decision.error, decision.reason, failure, row)
            if error is None:
                assert response is not None
                return response
            try:
                raise error
            finally:
                error = None  # the error holds this frame, which must not hold the error

    async def _next_step(
        self, request: Request, response: Response | None, verdict: Verdict, state: RetryState
    ) -> Backoff | Stop:
        """Counts the failed attempt, decides about another one, and pays for it."""
        clock, call = self._clock, request.call
        waits, quota = call.local.governor.limits.waits, call.local.quota
        free = call.down and waits
        count(state, verdict.kind, free=free)
        if call.permit is not None and call.permit.revoked:
            return Stop("the caller wants no more requests")
        decision = decide(
            self._settings,
            verdict,
            state,
            retry_after=None if response is None else response.retry_after(clock),
            remaining=None if call.deadline is None else call.deadline - clock.now(),
            random=clock.random,
            waits=waits,
            down=call.down,
        )
        if (
            isinstance(decision, Stop)
            or quota is None
            or free
            or call.blocked
            or (verdict.kind is Kind.STALE and state.stale == 1)
        ):
            return decision
        state.cost = await self._pay(quota, call, verdict.kind)
        if state.cost is None:
            return Stop(f"the retry quota for {request.endpoint.host} is used up", QuotaExhaustedError)
        return decision

    def _keep_failure(
        self, request: Request, error: FlinksError | None, response: Response | None, verdict: Verdict
    ) -> FlinksError:
        """The error of a failed attempt. The call keeps it, without our frames, as the cause of the error that may follow."""
        if error is None:
            assert response is not None
            error = error_from(request, response, verdict, self._clock)
        drop_internal_frames(error)
        request.call.failure = error
        return error

    async def _pay(self, quota: RetryQuota, call: Call, kind: Kind) -> int | None:
        """Pays for a retry. Returns the cost, or None if the quota is used up. With `Limits.waits`, it waits for the quota."""
        while True:
            now = self._clock.now()
            cost = quota.take(kind, now)
            if cost is not None or not call.local.governor.limits.waits:
                return cost
            wait = quota.wait(now)
            if wait is None or (call.deadline is not None and now + wait >= call.deadline):
                return None
            await self._clock.sleep(wait)

    def _row_of(self, call: Call) -> str:
        """The failures in a row of all calls to the instance, such as ` (14 attempts failed in 12 s)`."""
        trouble = call.local.governor.trouble
        if trouble is None:
            return ""
        return f" ({counted(trouble.attempts, 'attempt')} failed in {self._clock.now() - trouble.since:,.0f} s)"

    def _prepare_retry(self, request: Request, verdict: Verdict, decision: Backoff) -> None:
        """Prepares the call for another attempt, and tells the observers."""
        call = request.call
        call.fresh = verdict.kind is Kind.STALE
        call.retrying = True
        if is_watched(self._observers, RetryScheduled.level):
            event = RetryScheduled(
                request.endpoint.host, call.attempts, fingerprint(request.token), verdict, decision.delay, call.id
            )
            emit(self._observers, event)


def _not_retried(cls: type[FlinksError], reason: str, last: FlinksError, row: str) -> FlinksError:
    """An error that says why the last attempt was the last.

    Args:
        last: the error of that attempt.
        row: how many attempts of all calls have failed in a row, in brackets; empty to leave it out.
    """
    return cls(
        f"not retried, because {reason}; the last attempt: {last.message}{row}",
        status=last.status,
        flinks_code=last.flinks_code,
        server_message=last.server_message,
        request_id=last.request_id,
        retry_after=last.retry_after,
    )


def may_poll(settings: config.PollPending, *, wait: float, waited: float, remaining: float | None) -> bool:
    """Whether to wait once more and poll again. Pure.

    Args:
        wait: seconds until the next poll.
        waited: seconds since the first "not yet".
        remaining: seconds until the call's deadline.
    """
    return waited + wait <= settings.bound and (remaining is None or wait < remaining)


class PollPendingMiddleware:
    """Repeats the rest of the chain until the answer is not pending."""

    def __init__(self, settings: config.PollPending, clock: Clock) -> None:
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
