"""The governor: the only place that waits before a request is sent.

There is one governor for each instance, secret and event loop, so that one instance in trouble never slows another. It
composes four pure states: concurrency, rate, shared pause and breaker.

Waiting requests stand in one FIFO queue. While nothing restricts sending except the number of slots (no pause, no rate
limit, breaker closed), a released slot goes straight to the first waiter. Otherwise the first waiter becomes the leader:
it waits for a slot and for the restriction, is sent, and makes the next waiter the leader. So there is never more than
one timer and never a task, and a cancelled wait leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from inspect import isawaitable
from math import inf
from types import MappingProxyType

from attrs import frozen

from ..clock import Clock
from ..config import Limits, RateLimiter
from ..errors import CircuitOpenError, ConfigError, DeadlineExceededError
from ..verdict import Kind, Verdict
from .breaker import BreakerState, CircuitBreaker
from .concurrency import make_concurrency
from .notices import Notices, trouble_line
from .pause import SharedPause
from .rate import GCRA, read_rate_limit, spacing

_RATE_WINDOW = 1.0  # seconds over which the rate of answers is measured

# While a server sends no RateLimit headers, only every 16th answer is checked for them; a check costs a third of a us.
_CHECK_EVERY = 16

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})

# Codes of a 5xx that concern one login or its institution: the instance is up.
_TOKEN_CODES = frozenset({"AGGREGATION_ERROR", "CARD_IN_USE", "CONCURRENT_SESSION"})


@frozen
class Trouble:
    """The current problem of an instance: its latest requests failed or were throttled.

    Attributes:
        reason: of the latest failure, in words that name the host.
        attempts: failures in a row.
        since: when the first of them ended, by the client's clock.
    """

    reason: str
    attempts: int
    since: float


class Governor:
    """Gives out slots for requests on the wire.

    Attributes:
        in_use: slots taken.
        throttled: throttled answers so far.
        answered: the instance has answered a request, with any status.
        trouble: the problem of the latest requests; None while they succeed.
        notices: tells observers and the log when the instance is down or asks for a pause.
        on_pause: called with `(until, in_a_row)` when an answer begins or extends a pause, for processes that share one
            instance (see `pause_until`).
    """

    def __init__(self, limits: Limits, clock: Clock, host: str = "the instance") -> None:
        self.notices = Notices(host)
        self.limits = limits
        self.concurrency = make_concurrency(limits.concurrency)
        self.pause = SharedPause(limits.pause)
        self.breaker = None if limits.breaker is None else CircuitBreaker(limits.breaker)
        self.limiter = limits.rate_limiter or (None if limits.rate is None else GCRA(limits.rate, limits.burst))
        self.in_use = 0
        self.throttled = 0
        self.trouble: Trouble | None = None
        self._why_down: Trouble | None = None  # also while probes succeed, when there is no trouble any more
        self._why_paused = ""  # also after another request on the wire has succeeded
        self.answered = False
        self.on_pause: Callable[[float, int], object] | None = None
        self._clock = clock
        self._unrestricted = self.limiter is None  # only slots limit sending: no pause, no rate limit, breaker closed
        # Waiting requests. A result of True means "you have a slot", False "you are the leader now".
        self._queue: deque[asyncio.Future[bool]] = deque()
        self._has_leader = False
        self._leader_wakeup: asyncio.Future[None] | None = None
        self._turn_at: float | None = None  # the limiter's next turn; a leader that is cancelled leaves it to the next
        self._answers = 0
        self._measured_from = clock.now()
        self._measured_rate = 0.0
        self._sends_rate_limit = False  # the server sends RateLimit headers
        self._rate_before_outage = 0.0

    @property
    def waiting(self) -> int:
        """Requests that wait to be sent."""
        return sum(not waiter.done() for waiter in self._queue) + self._has_leader

    @property
    def held_back(self) -> float:
        """Seconds until pause and breaker let the next request pass; 0 while nothing is held back."""
        return 0.0 if self._unrestricted else self._held_back(self._clock.now())

    @property
    def has_room(self) -> bool:
        """Whether a request could be sent at once, with no pause, rate limit or open breaker."""
        return self._unrestricted and self.in_use < self.concurrency.limit and not self._queue and not self._has_leader

    def try_acquire(self) -> bool:
        """Takes a slot, if that needs no waiting."""
        if self._unrestricted and self.in_use < self.concurrency.limit and not self._queue and not self._has_leader:
            self.in_use += 1
            return True
        return False

    async def acquire(self, deadline: float | None = None) -> bool:
        """Waits for a slot. Returns whether the request is a probe.

        Args:
            deadline: of the call; a wait that would pass it is not started.

        Raises:
            CircuitOpenError: the instance is down, and `Limits.waits` is not set.
            DeadlineExceededError: the wait would pass the deadline.
        """
        if self.try_acquire():
            return False
        self._refuse_if_down()
        if (self._queue or self._has_leader or self._unrestricted) and await self._wait_in_queue():
            return False
        self._has_leader = True
        try:
            return await self._lead(deadline)
        finally:
            self._hand_over()

    async def _wait_in_queue(self) -> bool:
        """Waits for a slot (True) or for the lead of the queue (False)."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._queue.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.done() or waiter.cancelled():
                with suppress(ValueError):  # `_wake` may have removed it already
                    self._queue.remove(waiter)
            elif waiter.result():
                self.release()
            else:
                self._hand_over()
            raise

    def release(self) -> None:
        """Gives a slot back."""
        self.in_use -= 1
        if self._queue or self._has_leader:
            self._wake()

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
        """Updates the states with the result of an attempt. Returns whether it failed while the instance is down.

        Args:
            verdict: the result.
            sent: when the request was sent.
            status: of the answer; None without an answer.
            time_to_first_byte: seconds; None without an answer.
            headers: of the answer, read for RateLimit fields.
            retry_after: seconds that the answer asks to wait.
            probe: the return value of `acquire`.
            now: the current time, if the caller has just read the clock.
            problem: what went wrong, in words.
        """
        if now is None:
            now = self._clock.now()
        kind, down = verdict.kind, False
        if self._sends_rate_limit or not self._answers % _CHECK_EVERY:
            self._follow_rate_limit(headers, now)
        self._answers += 1
        if status is not None:
            self.answered = True
        if kind is Kind.OK:
            self.trouble = None
            if time_to_first_byte is not None:
                self.concurrency.answered(time_to_first_byte, now, self.in_use + 1)
            if self.pause.in_a_row:
                self.pause.succeeded(sent=sent)
            if self.breaker is not None and not self.breaker.all_succeeded:
                self._succeeded(now, probe)
        elif kind is Kind.TRANSIENT and (status is None or (status >= 500 and verdict.reason not in _TOKEN_CODES)):
            down = self._failed(problem, now, probe)
            if status == 503 and self.limits.waits and retry_after is not None:
                self._pause(retry_after, now, sent)
        elif kind is Kind.THROTTLED:
            self._note(problem, now)
            self.throttled += 1
            self.concurrency.lost(self.in_use + 1)
            self._pause(retry_after, now, sent)
            self._succeeded(now, probe)
        elif status is not None:
            self.trouble = None
            self.concurrency.refused()
            self._succeeded(now, probe)
        elif probe and kind is not Kind.STALE:
            down = self._failed(problem, now, probe)
        else:
            self.abandon(probe=probe)
            if kind is Kind.BROKEN:
                self._note(problem, now)
        if now - self._measured_from >= _RATE_WINDOW:
            self._measured_rate = self._answers / (now - self._measured_from)
            self._measured_from, self._answers = now, 0
        if self._queue or self._has_leader:
            self._wake()
        return down

    def _note(self, problem: str, now: float) -> Trouble:
        before = self.trouble
        attempts, since = (1, now) if before is None else (before.attempts + 1, before.since)
        self.trouble = noted = Trouble(problem, attempts, since)
        return noted

    def _follow_rate_limit(self, headers: Mapping[str, str], now: float) -> None:
        """Spaces requests out if the server announces that few are left."""
        announced = read_rate_limit(headers, self._clock)
        self._sends_rate_limit = announced is not None
        gap = None if announced is None else spacing(announced, self.limits.pause.low)
        if announced is not None and gap is not None:
            self.pause.space(now, gap=gap, reset=announced.reset)
            self._unrestricted = False

    def abandon(self, *, probe: bool) -> None:
        """Registers that an attempt ended without a verdict, for example because it was cancelled."""
        if probe and self.breaker is not None:
            self.breaker.abandoned(probe=True)
            self._wake()

    @property
    def rate_now(self) -> float:
        """Answers per second, measured over the last seconds."""
        elapsed = self._clock.now() - self._measured_from
        return max(self._measured_rate if elapsed < 10 else 0.0, self._answers / max(elapsed, _RATE_WINDOW))

    def _failed(self, problem: str, now: float, probe: bool) -> bool:
        trouble = self._note(problem, now)
        self.concurrency.failed(self.in_use + 1)
        breaker = self.breaker
        if breaker is None:
            return False
        was_closed = breaker.closed
        opened = breaker.failed(now, self._clock.random(), probe=probe)
        if breaker.closed:
            return False
        self._why_down = trouble
        if opened:
            self._unrestricted = False
            if was_closed:
                self._rate_before_outage = self.rate_now
            self.notices.down(
                now,
                reason=trouble.reason,
                attempts=trouble.attempts,
                since=trouble.since,
                retry_after=breaker.retry_after(now),
                opened=was_closed,
            )
        return True

    def _succeeded(self, now: float, probe: bool) -> None:
        if self.breaker is not None and self.breaker.succeeded(probe=probe):
            self.concurrency.restart()
            self.pause.ramp(now, self._rate_before_outage)
            self._why_down = None
            self.notices.up(now)

    def pause_until(self, until: float, in_a_row: int) -> None:
        """Joins the pause of another process with the same clock. The later end counts."""
        now, before = self._clock.now(), self.pause.until
        if until > now:
            self.pause.join(now, until=until, in_a_row=in_a_row, rate=self.rate_now)
            self._unrestricted = False
            self._why_paused = "another process met a limit of the instance"
            self._tell_pause(now, before)

    def _pause(self, retry_after: float | None, now: float, sent: float) -> None:
        before = self.pause.until
        self.pause.throttled(now, sent=sent, retry_after=retry_after, rate=self.rate_now, random=self._clock.random())
        self._unrestricted = False
        if self.pause.until > before:
            if self.on_pause is not None:
                self.on_pause(self.pause.until, self.pause.in_a_row)
            self._why_paused = "" if self.trouble is None else self.trouble.reason
            self._tell_pause(now, before)

    def _tell_pause(self, now: float, before: float) -> None:
        """Tells the observers of a pause that begins. One that ended `before` without a request is over now."""
        if not self.notices.paused or now >= before:
            self.notices.pause(now, reason=self._why_paused, seconds=self.pause.until - now)

    def _refuse_if_down(self) -> None:
        breaker = self.breaker
        if breaker is None or breaker.closed or self.limits.waits:
            return
        now = self._clock.now()
        if breaker.wait(now) > 0:
            retry_after, why = breaker.retry_after(now), self._why_down
            line = "" if why is None else f": {trouble_line(why.reason, why.attempts, now - why.since, retry_after)}"
            raise CircuitOpenError(
                f"not sent, because too many of the latest requests failed (the circuit is {breaker.state.value}){line}",
                retry_after=round(retry_after, 3),
            )

    def _held_back(self, now: float) -> float:
        held = self.pause.wait(now)
        if self.breaker is not None and self.breaker.state is not BreakerState.CLOSED:
            held = max(held, self.breaker.wait(now))
        return held

    def why_held(self, now: float) -> str:
        """Why requests are held back now, in words; empty if they are not."""
        breaker, pause = self.breaker, self.pause
        if breaker is not None and not breaker.closed:
            why = self._why_down
            line = "" if why is None else f": {trouble_line(why.reason, why.attempts, now - why.since)}"
            return f"the instance counts as down{line}"
        if now < pause.until:
            return f"requests are paused: {self._why_paused}"
        if now < pause.ramp_end:
            return "the rate rises slowly after a pause or an outage"
        if not pause.idle(now):
            return "the instance announced that few requests are left"
        if self.limiter is not None:
            return f"Limits.rate = {rate:g}" if (rate := self.limits.rate) else "Limits.rate_limiter"
        return ""

    async def _lead(self, deadline: float | None) -> bool:
        """Waits at the head of the queue for a slot and for what restricts sending, then takes the slot."""
        while True:
            self._refuse_if_down()
            now = self._clock.now()
            held = self._held_back(now)
            if self.in_use >= self.concurrency.limit or held == inf:
                self._leader_wakeup = asyncio.get_running_loop().create_future()
                await self._leader_wakeup
            elif held > 0:
                await self._sleep(held, now, deadline)
            elif self.limiter is not None and (wait := await self._until_turn(self.limiter, now)) > 0:
                await self._sleep(wait, now, deadline)
            else:
                break
        if self.notices.paused:
            self.notices.resume(now)
        self.in_use += 1
        self._turn_at = None
        if not self.pause.idle(now):
            self.pause.took(now, self._clock.random())
        probe = self.breaker is not None and self.breaker.take()
        self._unrestricted = (
            self.limiter is None and self.pause.idle(now) and (self.breaker is None or self.breaker.closed)
        )
        return probe

    async def _until_turn(self, limiter: RateLimiter, now: float) -> float:
        """Seconds until the limiter's turn. A cancelled call leaves its turn to the next one, so that none is lost."""
        if self._turn_at is None:
            reserved: object = limiter.reserve(now)
            wait = await reserved if isawaitable(reserved) else reserved
            if not isinstance(wait, (int, float)) or isinstance(wait, bool) or wait != wait:
                name = type(limiter).__qualname__
                raise ConfigError(
                    f"Limits.rate_limiter: {name}.reserve must return seconds, and returned {type(wait).__name__}"
                )
            self._turn_at = now + wait
        return self._turn_at - now

    async def _sleep(self, seconds: float, now: float, deadline: float | None) -> None:
        if deadline is not None and now + seconds >= deadline:
            raise DeadlineExceededError(
                f"not sent: requests are held back for another {seconds:.3g} s, which would pass the deadline"
                f" ({self.why_held(now)})",
                retry_after=round(seconds, 3),
            )
        await self._clock.sleep(seconds)

    def _hand_over(self) -> None:
        """The leader is done: the next waiter takes over."""
        self._has_leader = False
        self._wake()

    def _wake(self) -> None:
        """Wakes the leader, or gives free slots (or the lead) to the first waiters."""
        if self._has_leader:
            if self._leader_wakeup is not None and not self._leader_wakeup.done():
                self._leader_wakeup.set_result(None)
            return
        queue = self._queue
        while queue and (not self._unrestricted or self.in_use < self.concurrency.limit):
            waiter = queue.popleft()
            if waiter.done():
                continue
            if self._unrestricted:
                self.in_use += 1
                waiter.set_result(True)
            else:
                self._has_leader = True
                waiter.set_result(False)
                return
