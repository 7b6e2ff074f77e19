"""The one place that waits before the wire. It composes four pure states: concurrency, shared pause, breaker and rate.

There is one governor for each instance, secret and event loop, so that one instance in trouble never slows another.

Those who must wait stand in one queue, in the order in which they came. In fair weather (no pause, no rate limit, the
breaker closed) a place that is given back goes straight to the first of them. In all other weather the first one leads:
it waits for a place and for whatever holds requests back, goes, and makes the next one the leader. So there is never
more than one timer and no task, and a wait that is cancelled leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from inspect import isawaitable
from types import MappingProxyType

from attrs import frozen

from ..clock import Clock
from ..config import Limits, RateLimiter
from ..errors import CircuitOpenError, DeadlineExceededError
from ..verdict import Kind, Verdict
from .breaker import UNTIL_TOLD, BreakerState, CircuitBreaker
from .concurrency import make_concurrency
from .pause import SharedPause
from .rate import GCRA, remaining, spacing

_METERED_OVER = 1.0  # seconds

# Answers between two looks for a server's RateLimit headers, as long as it sends none; each look costs a third of a us.
_LOOK_EVERY = 16

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})

# Answers with 5xx that come from an instance that is up: what they say concerns one login or its institution.
_OF_ONE_TOKEN = frozenset({"AGGREGATION_ERROR", "CARD_IN_USE", "CONCURRENT_SESSION"})


@frozen
class Trouble:
    """The problem that an instance has: its latest requests failed, or were answered with "slow down".

    Attributes:
        reason: of the latest of them, in words that name the host.
        attempts: how many there were, with no success between.
        since: when the first of them ended, by the client's clock.
    """

    reason: str
    attempts: int
    since: float


class Governor:
    """Gives out places on the wire.

    Attributes:
        answered: the instance has answered a request, with whatever status.
        trouble: the problem that the latest requests met; None while they succeed.
        on_pause: told of each pause that an answer begins or prolongs: until when, and how many there were in a row. For
            processes that share one instance; see `pause_until`.
    """

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self.limits = limits
        self.concurrency = make_concurrency(limits.concurrency)
        self.pause = SharedPause(limits.pause)
        self.breaker = None if limits.breaker is None else CircuitBreaker(limits.breaker)
        self.limiter = limits.rate_limiter or (None if limits.rate is None else GCRA(limits.rate, limits.burst))
        self.in_use = 0
        self.throttled = 0
        self.trouble: Trouble | None = None
        self.answered = False
        self.on_pause: Callable[[float, int], object] | None = None
        self._clock = clock
        self._calm = self.limiter is None
        self._queue: deque[asyncio.Future[bool]] = deque()
        self._led = False
        self._stirred: asyncio.Future[None] | None = None
        self._turn: float | None = None  # of the limiter: when it comes; whoever leads uses it
        self._answers = 0
        self._metered_from = clock.now()
        self._metered = 0.0
        self._tells = False  # the server sends RateLimit headers
        self._rate_before = 0.0

    @property
    def waiting(self) -> int:
        """Requests that wait to be sent."""
        return sum(not turn.done() for turn in self._queue) + self._led

    @property
    def held_back(self) -> float:
        """Seconds that nothing is sent for; 0 while all is well."""
        return 0.0 if self._calm else self._held_back(self._clock.now())

    @property
    def has_room(self) -> bool:
        """Whether a request could be sent at once, and nothing is wrong with the instance."""
        return self._calm and self.in_use < self.concurrency.limit and not self._queue and not self._led

    def try_acquire(self) -> bool:
        """Takes a place, if that needs no waiting."""
        if self._calm and self.in_use < self.concurrency.limit and not self._queue and not self._led:
            self.in_use += 1
            return True
        return False

    async def acquire(self, deadline: float | None = None) -> bool:
        """Waits for a place: whether the request is a probe. Cancelled, it leaves no trace.

        Args:
            deadline: of the call; a wait that would pass it is not begun.

        Raises:
            CircuitOpenError: the instance is down, and `Limits.waits` is not set.
            DeadlineExceededError: the wait would be longer than the deadline leaves.
        """
        if self.try_acquire():
            return False
        self._refuse_if_down()
        if self._queue or self._led or self._calm:
            turn = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            try:
                placed = await turn
            except asyncio.CancelledError:
                if not turn.done() or turn.cancelled():
                    with suppress(ValueError):  # who gave a place back just now has passed it over
                        self._queue.remove(turn)
                elif turn.result():
                    self.release()
                else:
                    self._pass_on()
                raise
            if placed:
                return False
        self._led = True
        try:
            return await self._lead(deadline)
        finally:
            self._pass_on()

    def release(self) -> None:
        """Gives a place back."""
        self.in_use -= 1
        if self._queue or self._led:
            self._move()

    def record(
        self,
        verdict: Verdict,
        *,
        sent: float,
        status: int | None = None,
        time_to_first_byte: float | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
        retry_after: float | None = None,
        probe: bool = False,
        now: float | None = None,
        problem: str = "",
    ) -> bool:
        """Learns from an attempt that was on the wire: whether it failed while the instance is down.

        Args:
            verdict: what came of it.
            sent: when it was sent.
            status: of the answer; None if there was none.
            time_to_first_byte: seconds; None if no answer came.
            headers: of the answer; read for RateLimit fields.
            retry_after: seconds that the answer asks to wait.
            probe: what `acquire` said.
            now: the time, if the caller has just looked.
            problem: what was wrong, in words, if something was.
        """
        if now is None:
            now = self._clock.now()
        kind, down = verdict.kind, False
        if self._tells or not self._answers % _LOOK_EVERY:
            self._read(headers, now)
        self._answers += 1
        if status is not None:
            self.answered = True
        if kind is Kind.OK:
            self.trouble = None
            if time_to_first_byte is not None:
                self.concurrency.answered(time_to_first_byte, now, self.in_use + 1)
            if self.pause.in_a_row:
                self.pause.succeeded(sent=sent)
            if self.breaker is not None and not self.breaker.spotless:
                self._succeeded(now, probe)
        elif kind is Kind.TRANSIENT and (status is None or (status >= 500 and verdict.reason not in _OF_ONE_TOKEN)):
            down = self._failed(now, probe)
            self._note(problem, now)
            if status == 503 and self.limits.waits and retry_after is not None:
                self._pause(retry_after, now, sent)
        elif kind is Kind.THROTTLED:
            self._note(problem, now)
            self._throttled(retry_after, now, sent)
            self._succeeded(now, probe)
        elif status is not None:
            self.trouble = None
            self.concurrency.refused()
            self._succeeded(now, probe)
        elif probe and kind is not Kind.STALE:
            down = self._failed(now, probe)
            self._note(problem, now)
        else:
            self.abandon(probe=probe)
            if kind is Kind.BROKEN:
                self._note(problem, now)
        if now - self._metered_from >= _METERED_OVER:
            self._metered = self._answers / (now - self._metered_from)
            self._metered_from, self._answers = now, 0
        if self._queue or self._led:
            self._move()
        return down

    def _note(self, problem: str, now: float) -> None:
        before = self.trouble
        attempts, since = (1, now) if before is None else (before.attempts + 1, before.since)
        self.trouble = Trouble(problem, attempts, since)

    def _read(self, headers: Mapping[str, str], now: float) -> None:
        """Slows down where the server says that little is left."""
        said = remaining(headers, self._clock)
        self._tells = said is not None
        gap = None if said is None else spacing(said, self.limits.pause.low)
        if said is not None and gap is not None:
            self.pause.space(now, gap=gap, reset=said.reset)
            self._calm = False

    def abandon(self, *, probe: bool) -> None:
        """An attempt ended before it could say anything, for example because it was cancelled."""
        if probe and self.breaker is not None:
            self.breaker.abandoned(probe=True)
            self._move()

    @property
    def rate_now(self) -> float:
        """Answers per second, as lately measured."""
        elapsed = self._clock.now() - self._metered_from
        return max(self._metered if elapsed < 10 else 0.0, self._answers / max(elapsed, _METERED_OVER))

    def _failed(self, now: float, probe: bool) -> bool:
        self.concurrency.failed(self.in_use + 1)
        breaker = self.breaker
        if breaker is None:
            return False
        was_closed = breaker.closed
        if breaker.failed(now, self._clock.random(), probe=probe):
            self._calm = False
            if was_closed:
                self._rate_before = self.rate_now
        return not breaker.closed

    def _succeeded(self, now: float, probe: bool) -> None:
        if self.breaker is not None and self.breaker.succeeded(probe=probe):
            self.concurrency.restart()
            self.pause.ramp(now, self._rate_before)

    def _throttled(self, retry_after: float | None, now: float, sent: float) -> None:
        self.throttled += 1
        self.concurrency.lost(self.in_use + 1)
        self._pause(retry_after, now, sent)

    def pause_until(self, until: float, in_a_row: int) -> None:
        """Joins the pause of another process with the same clock. The one that ends last wins."""
        now = self._clock.now()
        if until > now:
            self.pause.join(now, until=until, in_a_row=in_a_row, rate=self.rate_now)
            self._calm = False

    def _pause(self, asked: float | None, now: float, sent: float) -> None:
        before = self.pause.until
        self.pause.throttled(now, sent=sent, asked=asked, rate=self.rate_now, random=self._clock.random())
        self._calm = False
        if self.on_pause is not None and self.pause.until > before:
            self.on_pause(self.pause.until, self.pause.in_a_row)

    def _refuse_if_down(self) -> None:
        breaker = self.breaker
        if breaker is None or breaker.closed or self.limits.waits:
            return
        now = self._clock.now()
        if breaker.wait(now) > 0:
            raise CircuitOpenError(
                f"not sent: too many of the latest requests failed (the circuit is {breaker.state.value})",
                retry_after=round(breaker.retry_after(now), 3),
            )

    def _held_back(self, now: float) -> float:
        """Seconds until pause and breaker let the next request go."""
        held = self.pause.wait(now)
        if self.breaker is not None and self.breaker.state is not BreakerState.CLOSED:
            held = max(held, self.breaker.wait(now))
        return held

    async def _lead(self, deadline: float | None) -> bool:
        """Waits at the head of the queue and takes a place."""
        while True:
            self._refuse_if_down()
            now = self._clock.now()
            held = self._held_back(now)
            if self.in_use >= self.concurrency.limit or held == UNTIL_TOLD:
                await self._news()
            elif held > 0:
                await self._sleep(held, now, deadline)
            elif self.limiter is not None and (wait := await self._rate(self.limiter, now)) > 0:
                await self._sleep(wait, now, deadline)
            else:
                break
        self.in_use += 1
        self._turn = None
        if not self.pause.idle(now):
            self.pause.took(now, self._clock.random())
        probe = self.breaker is not None and self.breaker.take()
        self._calm = self.limiter is None and self.pause.idle(now) and (self.breaker is None or self.breaker.closed)
        return probe

    async def _rate(self, limiter: RateLimiter, now: float) -> float:
        """Seconds until the limiter's turn. One that its call does not use is left to the next: none is lost."""
        if self._turn is None:
            wait = limiter.reserve(now)
            self._turn = now + (await wait if isawaitable(wait) else wait)
        return self._turn - now

    async def _sleep(self, seconds: float, now: float, deadline: float | None) -> None:
        if deadline is not None and now + seconds >= deadline:
            raise DeadlineExceededError(
                f"not sent: requests are held back for another {seconds:.3g} s, longer than the deadline leaves",
                retry_after=round(seconds, 3),
            )
        await self._clock.sleep(seconds)

    async def _news(self) -> None:
        self._stirred = asyncio.get_running_loop().create_future()
        await self._stirred

    def _pass_on(self) -> None:
        """The leader leaves: the next one takes over."""
        self._led = False
        self._move()

    def _move(self) -> None:
        """Lets those go who can."""
        if self._led:
            if self._stirred is not None and not self._stirred.done():
                self._stirred.set_result(None)
            return
        queue = self._queue
        while queue and (not self._calm or self.in_use < self.concurrency.limit):
            turn = queue.popleft()
            if turn.done():
                continue
            if self._calm:
                self.in_use += 1
                turn.set_result(True)
            else:
                self._led = True
                turn.set_result(False)
                return
