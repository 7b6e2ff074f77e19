"""The governor: the only place that waits before a request is sent.

There is one governor for each instance, secret and event loop, so that one instance in trouble never slows another. It
composes four pure states: concurrency, pace, rate and breaker.

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

from attrs import frozen

from ..clock import Clock
from ..config import Limits, RateLimiter
from ..errors import CircuitOpenError, ConfigError, DeadlineExceededError
from ..schema import Record
from ..verdict import OK, Kind
from .breaker import BreakerState, CircuitBreaker
from .concurrency import make_concurrency
from .notices import Notices, trouble_line
from .pace import AttemptRecord, Pace
from .rate import GCRA, LearnedLimit, PaceState, read_rate_limit
from .shared import RedisRateLimiter

_RATE_WINDOW = 1.0  # seconds over which the rate of answers is measured

# While a server sends no RateLimit headers, only every 16th answer is checked for them; a check costs a third of a us.
_CHECK_EVERY = 16

# Waits from this on are told as a pause; shorter ones are part of holding a rate.
_LONG = 1.0


@frozen(eq=False, repr=False)
class Trouble(Record):
    """The current problem of an instance: its latest requests failed or were throttled.

    Attributes:
        reason: of the latest failure, in words that name the host.
        attempts: failures in a row.
        since: when the first of them ended, or was sent if the instance has never answered; by the client's clock.
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
        sent: requests sent so far.
        pace: what was learned from refusals.
        on_pace: called with a new `PaceState`, for processes that share one instance (see `join`).
    """

    def __init__(self, limits: Limits, clock: Clock, host: str = "the instance") -> None:
        self.notices = Notices(host)
        self.limits = limits
        self.concurrency = make_concurrency(limits.concurrency)
        self.pace = Pace(limits.concurrency, limits.pause.longest)
        self.breaker = None if limits.breaker is None else CircuitBreaker(limits.breaker)
        self.limiter = limits.rate_limiter or (None if limits.rate is None else GCRA(limits.rate, limits.burst))
        self.in_use = 0
        self.sent = 0
        self.throttled = 0
        self.trouble: Trouble | None = None
        self._why_down: Trouble | None = None  # also while probes succeed, when there is no trouble any more
        self._why_paused = ""  # also after another request on the wire has succeeded
        self.answered = False
        self.on_pace: Callable[[PaceState], object] | None = None
        if isinstance(self.limiter, RedisRateLimiter):
            self.limiter.attach(self)
        self._clock = clock
        # Only slots limit sending: no pause, no rate limit, breaker closed.
        self._unrestricted = self.limiter is None and self.pace.free(clock.now())
        # Waiting requests. A result of True means "you have a slot", False "you are the leader now".
        self._queue: deque[asyncio.Future[bool]] = deque()
        self._has_leader = False
        self._leader_wakeup: asyncio.Future[None] | None = None
        self._permit_at: float | None = None  # the limiter's next permit; a cancelled leader leaves it to the next
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
        if self._unrestricted:
            return 0.0
        now, pace = self._clock.now(), self.pace
        return self._down_for(now, pace.wait(now) if now < pace.until or pace.blocked else 0.0)

    @property
    def has_room(self) -> bool:
        """Whether a request could be sent at once, with no pause, rate limit or open breaker."""
        if self._queue or self._has_leader or self.in_use >= self.concurrency.limit:
            return False
        return self._unrestricted or (
            self.limiter is None
            and self.pace.starting
            and self.pace.wait(self._clock.now()) <= 0
            and (self.breaker is None or self.breaker.closed)
        )

    def try_acquire(self) -> bool:
        """Takes a slot, if that needs no waiting."""
        if self._unrestricted and self.in_use < self.concurrency.limit and not self._queue and not self._has_leader:
            self.in_use += 1
            self.sent += 1
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

    def record(self, record: AttemptRecord) -> bool:
        """Updates the states with the result of an attempt. Returns whether it failed as a probe: while the
        instance is down or accepts nothing.
        """
        now, kind = record.ended, record.verdict.kind
        if self._sends_rate_limit or not self._answers % _CHECK_EVERY:
            self._follow_rate_limit(record.headers, now)
        self._answers += 1
        if record.status is not None:
            self.answered = True
        down = False
        if record.verdict is OK or kind is Kind.OK:
            self.trouble = None
            if record.time_to_first_byte is not None:
                self.concurrency.answered(record.time_to_first_byte, now, self.in_use + 1)
            if not self._unrestricted or self.pace.cap.at_once is not None:
                self._accepted(record)
            if self.breaker is not None and not self.breaker.all_succeeded:
                self._succeeded(record)
        elif kind is Kind.THROTTLED:
            down = self._throttled(record)
        elif record.says_down or (record.status is None and record.probe and kind is not Kind.STALE):
            down = self._failed(record)
        elif record.status is not None:
            self.trouble = None
            self.concurrency.refused()
            self._accepted(record)
            self._succeeded(record)
        else:
            self.abandon(record)
            if kind is Kind.BROKEN:
                self._note(record)
        if now - self._measured_from >= _RATE_WINDOW:
            self._measured_rate = self._answers / (now - self._measured_from)
            self._measured_from, self._answers = now, 0
        if self._queue or self._has_leader:
            self._wake()
        return down

    def _throttled(self, record: AttemptRecord) -> bool:
        """Returns whether it was a probe of an instance that accepts nothing, which costs the token no attempt."""
        now, pace = record.ended, self.pace
        self._note(record)
        self.throttled += 1
        probe = self.limits.waits and pace.probing(record.number)
        pace.refused(record, self._clock.time(), self.rate_now)
        self.concurrency.bound(pace.cap.at_once)
        self._restrict(now, record.problem)
        self._succeeded(record)
        return probe

    def _note(self, record: AttemptRecord) -> Trouble:
        before = self.trouble
        first = record.ended if self.answered else record.sent
        attempts, since = (1, first) if before is None else (before.attempts + 1, before.since)
        self.trouble = noted = Trouble(record.problem, attempts, since)
        return noted

    def _follow_rate_limit(self, headers: Mapping[str, str], now: float) -> None:
        """Waits for the next window if the server announces that nothing is left of this one."""
        announced = read_rate_limit(headers, self._clock)
        self._sends_rate_limit = announced is not None
        if announced is not None and self.pace.announced(announced, now):
            self._restrict(now, "the instance announced that no requests are left")

    def abandon(self, record: AttemptRecord) -> None:
        """Registers that an attempt ended without a verdict, for example because it was cancelled."""
        self.pace.abandoned(record.number, self._clock.now())
        if record.probe and self.breaker is not None:
            self.breaker.abandoned(probe=True)
            self._wake()

    @property
    def rate_now(self) -> float:
        """Answers per second, measured over the last seconds."""
        elapsed = self._clock.now() - self._measured_from
        return max(self._measured_rate if elapsed < 10 else 0.0, self._answers / max(elapsed, _RATE_WINDOW))

    def _failed(self, record: AttemptRecord) -> bool:
        now = record.ended
        trouble = self._note(record)
        self.concurrency.failed(self.in_use + 1)
        self.pace.abandoned(record.number, now)
        if record.status == 503 and self.limits.waits and record.retry_after is not None:
            self.pace.pause_until(now + record.retry_after, now)
            self._restrict(now, trouble.reason)
        breaker = self.breaker
        if breaker is None:
            return False
        was_closed = breaker.closed
        opened = breaker.failed(now, self._clock.random(), probe=record.probe)
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

    def _succeeded(self, record: AttemptRecord) -> None:
        if self.breaker is not None and self.breaker.succeeded(probe=record.probe):
            now = record.ended
            self.concurrency.restart()
            self.pace.restart(now, self._rate_before_outage)
            self._unrestricted = False
            self._why_down = None
            self.notices.up(now)

    def join(self, state: PaceState) -> None:
        """Joins what another process with the same clock has learned."""
        now = self._clock.now()
        self.pace.join(state, now)
        self.pace.shared(now)  # the others know
        self._restrict(now, "another process met a limit of the instance")

    def _accepted(self, record: AttemptRecord) -> None:
        self.pace.succeeded(record)
        self.concurrency.bound(self.pace.cap.at_once)

    def _restrict(self, now: float, why: str) -> None:
        """Something holds requests back now. Tells other processes, and the observers of a longer pause."""
        self._unrestricted = False
        self._why_paused = why
        if self.on_pace is not None and (state := self.pace.shared(now)) is not None:
            self.on_pace(state)
        seconds = self.pace.wait(now)
        if (now < self.pace.until or self.pace.blocked) and _LONG <= seconds < inf and not self.notices.paused:
            self.notices.pause(now, reason=why, seconds=seconds)

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

    def _down_for(self, now: float, held: float) -> float:
        """Seconds until the breaker and something else let the next request pass."""
        if self.breaker is not None and self.breaker.state is not BreakerState.CLOSED:
            held = max(held, self.breaker.wait(now))
        return held

    @property
    def learned(self) -> LearnedLimit | None:
        """The limit of the instance, as far as refusals have shown it."""
        return self.pace.learned(self._clock.now())

    def why_held(self, now: float) -> str:
        """Why requests are held back now, in words; empty if they are not."""
        breaker, pace = self.breaker, self.pace
        if breaker is not None and not breaker.closed:
            why = self._why_down
            line = "" if why is None else f": {trouble_line(why.reason, why.attempts, now - why.since)}"
            return f"the instance counts as down{line}"
        if now < pace.until or pace.blocked:
            return f"requests are paused: {self._why_paused}"
        if not pace.free(now) and not (pace.starting and pace.wait(now) <= 0):
            return pace.reason(now)
        if self.limiter is not None:
            if isinstance(self.limiter, RedisRateLimiter):
                return f"Limits.rate_limiter: {self.limiter.state}"
            return f"Limits.rate = {rate:g}" if (rate := self.limits.rate) else "Limits.rate_limiter"
        return ""

    async def _lead(self, deadline: float | None) -> bool:
        """Waits at the head of the queue for a slot and for what restricts sending, then takes the slot."""
        while True:
            self._refuse_if_down()
            now = self._clock.now()
            held = self._down_for(now, self.pace.wait(now))
            if held == inf or (
                self.in_use >= self.concurrency.limit
                and not (self.pace.bounds and self.concurrency.widen(self.in_use + 1))
            ):
                self._leader_wakeup = asyncio.get_running_loop().create_future()
                await self._leader_wakeup
            elif held > 0:
                await self._sleep(held, now, deadline)
            elif self.limiter is not None and (wait := await self._until_permit(self.limiter, now)) > 0:
                await self._sleep(wait, now, deadline)
            else:
                break
        if self.notices.paused and not self.pace.blocked:
            self.notices.resume(now)
        self.in_use += 1
        self.sent += 1
        self._permit_at = None
        self.pace.took(self.sent, now)
        probe = self.breaker is not None and self.breaker.take()
        self._unrestricted = (
            self.limiter is None and self.pace.free(now) and (self.breaker is None or self.breaker.closed)
        )
        return probe

    async def _until_permit(self, limiter: RateLimiter, now: float) -> float:
        """Seconds until the limiter's permit. A cancelled call leaves its permit to the next one, so that none is lost."""
        if self._permit_at is None:
            reserved: object = limiter.reserve(now)
            wait = await reserved if isawaitable(reserved) else reserved
            if not isinstance(wait, (int, float)) or isinstance(wait, bool) or wait != wait:
                name = type(limiter).__qualname__
                raise ConfigError(
                    f"Limits.rate_limiter: {name}.reserve must return seconds, and returned {type(wait).__name__}"
                )
            self._permit_at = now + wait
        return self._permit_at - now

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
                self.sent += 1
                waiter.set_result(True)
            else:
                self._has_leader = True
                waiter.set_result(False)
                return
