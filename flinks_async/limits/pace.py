"""The pace: how many requests per second an instance accepts, learned from those that it refuses.

What can be seen of a server from outside is four things, and each has one meaning:

- The *time to first byte* rises when requests queue there. That is about the number of requests at once: `concurrency` reacts.
- A *refusal* says that a limit is used up. That is about the rate: this module reacts. If requests are refused only with more
  in flight than those that are accepted, the number is bounded instead of the rate (`concurrency.AtOnceCap`).
- A *hint* says when a limit opens again. It is right, constant, or wrong: `reopening` decides.
- What was *delivered* between two moments at which the limit was used up is the limit times the time between: `estimate`.

The states, and what leads from one to another:

- START to HOLD: a signal. The pace doubles again and again until then.
- HOLD to HOLD: a signal begins a new cycle around a new estimate.
- Any to BLOCKED: a run of refusals, a long hint, or a window that is spent. Single requests ask (`reopening`).
- BLOCKED to HOLD at the average, or to START towards the quick pace of a window: a request is accepted.
- HOLD to FREE: a cap of requests at once explains the refusals.
- Any to FREE: the pace is above `ENOUGH`. Nothing is paced, and this costs nothing.
- FREE to HOLD: a signal.

Sources: delivered rate as the estimate: BBR (Cardwell et al., 2016). Growth around the last limit, slow near it and fast far
from it: CUBIC (RFC 9438), which AWS' adaptive retry mode uses too. Slow start: Jacobson, 1988.

Pure: time is an argument.
"""

from __future__ import annotations

from enum import Enum
from math import inf

from ..config import Adaptive
from .breaker import AttemptRecord as AttemptRecord
from .concurrency import AtOnceCap
from .estimate import COUNTABLE, REQUESTS, Cycle, Growth
from .rate import LearnedLimit, PaceState, ServerLimit
from .reopening import RUN, Refusals, Reopening, signal_threshold
from .slow_start import SlowStart

# Requests per second. A faster pace is not enforced, because that would cost each call a turn in the queue. Refusals at
# a higher rate are noticed, and begin to pace.
ENOUGH = 5000.0

_END = 0.1  # seconds without accepted requests that do not stop the client near a known limit
_LONG_HINT = 60.0  # seconds; a longer Retry-After ends a window of a minute or more
_MOST_COMPLETIONS = 3  # answers during a block that may ask for one more probe at once


class Mode(Enum):
    START = "start"
    FREE = "free"
    HOLD = "hold"
    BLOCKED = "blocked"


class Pace:
    """The pace of requests to one instance.

    Args:
        settings: of the start; a fixed number of requests at once has none.
        longest: seconds of a pause at most.

    Attributes:
        mode: the state.
        until: nothing is sent before this time.
        cap: whether the instance limits the requests at once.
    """

    def __init__(self, settings: int | Adaptive, longest: float = 60.0) -> None:
        adaptive = isinstance(settings, Adaptive)
        self.mode = Mode.START if adaptive else Mode.FREE
        self.until = -inf
        self.cap = AtOnceCap()
        self._longest = longest
        self._start = (
            SlowStart(settings.initial, settings.doubling) if isinstance(settings, Adaptive) else SlowStart(1, 0.5)
        )
        self._cycle = Cycle()
        self._refusals = Refusals()
        self._opening = Reopening(longest)
        self._next_at = -inf
        self._last_number = 0
        self._refused_rate: float | None = None  # the pace of the request whose refusal was the last signal
        self._refused_at = -inf
        self._probe: int | None = None  # the request that asks whether the limit has opened
        self._completion = False  # an answer made room for the probe
        self._refused_probe = False  # one was refused since nothing is accepted any more
        self._completions = 0
        self._average, self._average_until = 0.0, -inf  # of a sliding window, and until when it is kept
        self._closed_at = 0.0  # the pace at which nothing was accepted any more
        self._told, self._told_at = PaceState(None, 0.0), -inf

    # --- sending ---

    @property
    def starting(self) -> bool:
        return self.mode is Mode.START

    @property
    def bounds(self) -> bool:
        """Requests at once need no other bound, because the pace is one."""
        return self.mode is Mode.START or self.mode is Mode.HOLD

    @property
    def _grows_back(self) -> bool:
        """It starts again after an outage, and knew a limit before."""
        return self.mode is Mode.START and self._start.most < inf and not self._opening.window.found

    @property
    def blocked(self) -> bool:
        return self.mode is Mode.BLOCKED

    def free(self, now: float) -> bool:
        """Whether no request is held back, and none will be without a new event."""
        return self.mode is Mode.FREE and now >= self.until

    def probing(self, number: int) -> bool:
        """Whether this request asks if the instance accepts requests again."""
        return self.mode is Mode.BLOCKED and number == self._probe

    def wait(self, now: float) -> float:
        """Seconds until the next request may be sent; infinity while a single request asks whether the limit has opened."""
        if now < self.until:
            return self.until - now
        if self.mode is Mode.FREE:
            return 0.0
        if self.mode is Mode.BLOCKED and self._probe is not None:
            return max(0.0, self._opening.silent_until - now)
        return max(0.0, self._next_at - now)

    def took(self, number: int, now: float) -> None:
        """Registers that this request is sent now; numbers count up in the order of sending."""
        self._last_number = number
        if self.mode is Mode.FREE:
            if not number % 32:  # enough for `sent_lately`
                self._cycle.mark(now, number, inf)
            return
        if self.mode is Mode.BLOCKED:
            if self._probe is None:
                self._probe = number
                self._opening.asks(now)
                return
            # A refusal would have come by now.
            self._reopened(self._probe, now, self._opening.asked)
            if self.free(now):
                return
        due = self._next_at
        if self.mode is Mode.START:
            self._opening.begins(now)
            self._next_at = self._start.next_at(now, self._next_at)
            rate = self._start.rate
        else:
            gap = 1.0 / self._cycle.rate
            rate = self._cycle.grow(gap) if now - due < gap else self._cycle.rate
            gap = 1.0 / rate
            self._next_at = max(due, now - (0.01 if gap < 0.005 else 0.1 * gap)) + gap
        if due > -inf:
            self._cycle.idle += max(0.0, self._next_at - 1.0 / rate - due)
        self._cycle.mark(now, number, rate)
        if rate >= max(ENOUGH, 1.5 * (self._refused_rate or 0.0)):
            self.mode = Mode.FREE
        elif self.mode is Mode.START and rate >= self._start.most:
            self._hold(self._start.most, now, REQUESTS if self._grows_back else 0.0)
        elif self._opening.window.spent(number):
            self._stop(now, now)
            self._completions = _MOST_COMPLETIONS

    def abandoned(self, number: int, now: float) -> None:
        """The request ended without an answer of the instance."""
        if number == self._probe:
            self._probe = None
            self._next_at = max(now, self._next_at)

    def pause_until(self, until: float, now: float) -> None:
        """Nothing is sent until then."""
        self.until = max(self.until, min(until, now + self._longest))

    def restart(self, now: float, rate: float) -> None:
        """Begins again after an outage, with a tenth of the rate before it, and grows to the limit that was known."""
        most = inf if self.mode is Mode.FREE else self._cycle.limit
        self._start.again(rate / 10, most, 1.0, even=True)
        self.mode = Mode.START
        self._next_at = now
        self._refusals.level = 0.0
        self._cycle.interrupted(now)

    # --- what is learned ---

    @property
    def limit(self) -> float:
        """The estimate, requests per second; infinity while unknown."""
        return self._cycle.limit

    def shared(self, now: float) -> PaceState | None:
        """What has changed since it was last asked; None if nothing has."""
        until = max(self.until, self._next_at if self.mode is Mode.BLOCKED and self._probe is None else 0.0, 0.0)
        state = PaceState(self._cycle.limit if self.mode is Mode.HOLD else None, until if until > now else 0.0)
        if state == self._told or (now < self._told_at + 0.2 and state.until <= self._told.until):
            return None
        self._told, self._told_at = state, now
        return state

    def join(self, state: PaceState, now: float) -> None:
        """Joins what another process has learned: its pause, and the mean of both rates, so that they become equal."""
        if state.until > now:
            self.until = max(self.until, min(state.until, now + self._longest))
        if state.estimate is not None and self.mode is not Mode.BLOCKED:
            own = self._cycle.limit if self.mode is Mode.HOLD else state.estimate
            self._hold((own + state.estimate) / 2, now, REQUESTS)

    def reason(self, now: float) -> str:
        """Why requests are paced, in words; empty if they are not."""
        if self._grows_back:
            return f"an outage: the rate grows back to {self._cycle.confirmed:,.4g}/s"
        if self.mode is Mode.START:
            return "the start: the rate doubles until the instance refuses a request"
        if self.mode is not Mode.HOLD or (learned := self.learned(now)) is None:
            return ""
        return learned.why if learned.refused_rate is not None else f"about {learned.rate:,.4g}/s, {learned.why}"

    def learned(self, now: float) -> LearnedLimit | None:
        """The limit, as far as is known."""
        if self.cap.at_once is not None:
            return LearnedLimit(None, self.cap.at_once)
        window = self._opening.window
        if self.mode is Mode.FREE or not (window.found or self._cycle.limit < inf):
            return None
        return LearnedLimit(
            window.rate if window.found else self._cycle.confirmed, None, self._refused_rate, now - self._refused_at
        )

    # --- answers ---

    def succeeded(self, record: AttemptRecord) -> None:
        """Registers an answer that is no refusal."""
        now, number = record.ended, record.number
        explains = (self.mode is not Mode.FREE or self.cap.at_once is not None) and self.cap.accepted(record)
        if self.mode is Mode.BLOCKED:
            if number == self._probe:
                self._reopened(number, now, record.sent)
            elif self._completions < _MOST_COMPLETIONS and self._probe is None:
                self._completions += 1
                self._completion = True
                self._next_at = min(self._next_at, now)
            return
        if self.mode is Mode.START:
            self._start.answered(now - record.sent)
        elif explains and self.mode is Mode.HOLD:
            self._assume_cap(now)

    def _assume_cap(self, now: float) -> None:
        """Bounds the requests at once instead of the rate."""
        self.cap.assume(now)
        self._cycle.began = now
        self.mode = Mode.FREE

    def refused(self, record: AttemptRecord, wall: float = 0.0, rate: float = 1000.0) -> None:
        """Registers a refusal.

        Args:
            wall: the wall clock, because windows begin at round times.
            rate: answers per second, as measured; used while nothing is paced.
        """
        number, now, sent = record.number, record.ended, record.sent
        refusals, opening, cycle = self._refusals, self._opening, self._cycle
        opening.refused(now, sent, wall)
        capped = self.cap.at_once is not None
        if self.cap.refused(record, held=self.mode is Mode.HOLD and sent > cycle.began):
            return
        if capped:  # disproved
            self._hold(cycle.limit if cycle.limit < inf else 0.5 * rate, now)
            return
        refusals.note(number)
        self._note_hint(number, now, record.retry_after)
        if self.mode is Mode.BLOCKED:
            self._still_blocked(number, sent, now)
            return
        run, longest, near = refusals.run(number), RUN, False
        cycle.refused(sent, run)
        opening.window.refused(number)
        if self.mode is not Mode.FREE:
            self._start.refused(number)
        if sent <= cycle.began:
            return
        refusals.add(number, sent, self._last_number)
        if self.mode is Mode.FREE:
            pace = max(rate, cycle.sent_lately(number, sent))
        elif self.mode is Mode.START:
            pace = self._start.pace_at(refusals.first[0])
            # A pace of many times the limit has runs that long, also where some requests are accepted.
            longest = max(RUN, int(2 * self._start.pace_at(number) / pace))
        else:
            pace = cycle.pace_at(sent)
            if cycle.growth is not Growth.TEST:  # another client may take all for a moment
                longest = 4 * RUN
            elif near := cycle.evidence == REQUESTS and pace < 1.5 * cycle.limit:  # perhaps the end of a short window
                longest = max(RUN, int(_END * pace))
        if run >= longest or opening.window.as_before(number):
            self._block(now)
            return
        if 1 < run < RUN and run >= refusals.clump:
            return  # perhaps nothing is accepted any more
        if run >= RUN and refusals.first_of_run() <= cycle.last_refused:
            return  # the same end of a window
        if refusals.level >= signal_threshold(pace):
            self._signal(pace, sent, now, closed=near and run >= RUN)

    def _signal(self, pace: float, sent: float, now: float, *, closed: bool) -> None:
        """The limit is used up at this pace."""
        self._refused_rate, self._refused_at = pace, sent
        refusals, cycle = self._refusals, self._cycle
        number, window = refusals.first[0], self._opening.window
        if (average := window.no_window(number)) is not None:
            self._spread(average, number, now)
            cycle.now_used_up(*refusals.first, refusals.clump)
        elif sent < self._average_until:
            cycle.now_used_up(*refusals.first, refusals.clump)
        elif self.mode is Mode.START and not cycle.known and self._start.in_first_burst(number):
            self._start.smooth()
            self._next_at = now + 1.0 / pace
        else:
            cycle.signal(refusals, now, pace, self._opening.lag, self._start, closed=closed)
            self._holds(now)
        refusals.level = 0.0

    def _hold(self, limit: float, now: float, evidence: float = 0.0, unused: float = 0.0) -> None:
        """Begins a cycle around an estimate that other requests gave."""
        lag, burst = self._opening.lag, self._start.burst_of(limit)
        self._cycle.begin(
            limit, now, lag=lag, burst=burst, evidence=evidence, unused=unused, growth=self._cycle.shares(now)
        )
        self._holds(now)

    def _holds(self, now: float) -> None:
        self.mode = Mode.HOLD
        self._next_at = max(now, self._next_at)

    # --- blocked ---

    def _block(self, now: float) -> None:
        """Nothing is accepted any more, from the first refusal of the run on."""
        refusals, window = self._refusals, self._opening.window
        number, sent = refusals.first_of_run(), refusals.first[1]
        self._now_used_up(number, sent, refusals.clump)
        refusals.level = 0.0
        if (average := window.no_window(number)) is not None:
            self._spread(average, number, now)
            return
        window.used_up(number, refusals.since(number))
        self._stop(now, sent)

    def _spread(self, average: float, number: int, now: float) -> None:
        """Sends evenly at the average of a sliding window.

        Requests come back to the limit as they were sent a period ago: few at first, if the pace grew. So the even pace begins when
        it will never be ahead of them, and not before what was sent too quickly just now has been waited for. Refusals within a
        period after that say how requests were distributed, and nothing about the rate.
        """
        window, opened = self._opening.window, self._opening.opened or 0.0
        period, sent = window.accepted / average, number - window.first
        begins = [
            at + period - max(0, count - window.first_before - sent) / average
            for at, count, _, _ in self._cycle.marks
            if window.first_before <= count < window.first
        ]
        self._cycle.shortest = period
        self._hold(average, now, 2.0 * window.accepted, period)
        self._next_at = max(now, opened + sent / average, *begins)
        self._opening.period = None
        self._average, self._average_until = average, self._next_at + period

    def _now_used_up(self, number: int, sent: float, refused: int) -> None:
        if not self._cycle.known:
            self._start.ended(number - 1)
        self._cycle.now_used_up(number, sent, refused)

    def _stop(self, now: float, sent: float) -> None:
        """Sends nothing but probes from now on."""
        self._opening.window.resume = self._cycle.limit if self.mode is Mode.HOLD else None
        self.mode = Mode.BLOCKED
        self._opening.stops(sent, self._cycle.rate)
        self._closed_at = self._cycle.pace_at(sent)
        self._probe, self._completion, self._refused_probe = None, False, False
        self._completions = 0 if self._cycle.evidence < REQUESTS else _MOST_COMPLETIONS
        self._cycle.began = now
        self._next_at = self._opening.next_probe(now)

    def _still_blocked(self, number: int, sent: float, now: float) -> None:
        if number == self._probe:
            self._probe, self._completion, self._refused_probe = None, False, True
            self._opening.still_closed(sent)
            self._next_at = self._opening.next_probe(now)
        elif self._completions == _MOST_COMPLETIONS:
            self._opening.window.smaller(number)

    def announced(self, limit: ServerLimit, now: float) -> bool:
        """A header says how much is left of a window. Returns whether nothing is sent until the next one."""
        if limit.remaining or limit.reset <= 0 or self._opening.distrusts(now) or self.mode is Mode.BLOCKED:
            return False
        self._expect(now + limit.reset, now, self._last_number + 1)
        return True

    def _note_hint(self, number: int, now: float, retry_after: float | None) -> None:
        if retry_after is None:
            return
        if retry_after > _LONG_HINT and self.mode is not Mode.BLOCKED and not self._opening.distrusts(now):
            self._expect(now + retry_after, now, number)
        self._opening.hinted(now, retry_after)

    def _expect(self, moment: float, now: float, number: int) -> None:
        """Stops, because the instance says that it accepts nothing until then, from this request on."""
        self._now_used_up(number, now, 0)
        self._opening.window.used_up(number, self._refusals.since(number))
        self._stop(now, now)
        self._completions = _MOST_COMPLETIONS
        self._opening.trust(moment, now)
        self._next_at = self._opening.next_probe(now)

    def _reopened(self, number: int, now: float, sent: float) -> None:
        """A probe was accepted: goes on by windows, at the average, or with a bound of requests at once."""
        self._probe = None
        if self._completion and self._refused_probe and self.cap.possible(now):
            self._assume_cap(now)
            return
        window, cycle = self._opening.window, self._cycle
        since = self._opening.since
        seconds, blocked = self._opening.reopened(number, sent, now), sent - since
        self._refusals.level, cycle.began, self._next_at = 0.0, now, now
        average = max(1, window.accepted) / seconds
        steady = seconds if window.is_known else 0.0
        cycle.shortest = steady or cycle.shortest
        # Enough were accepted, or the first refusal came late.
        countable = window.accepted >= COUNTABLE or self._opening.lag > seconds - blocked
        if countable and blocked > 0.3 * seconds and not window.is_usual:  # too many requests block it for a while
            average = max(1, window.accepted) / max(1.0, seconds - blocked)
        if now < self._average_until:
            self._hold(self._average, now, REQUESTS, self._average_until - now)
        elif not window.found:
            if window.accepted < COUNTABLE:  # too few to tell the rate
                average = min(average, cycle.limit)
            average = max(average, cycle.recently(now, cycle.last_refused))
            self._hold(average, now, 2.0 * window.accepted, now - since)
        elif window.resume is not None:
            self._hold(window.resume * window.slower, now, REQUESTS, steady)
        else:
            quick = max(2 * average, min(0.5 * self._closed_at, 0.01 * window.accepted / max(self._opening.lag, 0.001)))
            if self._opening.period is not None or quick < 20:
                self._hold(quick, now, REQUESTS, steady)
            else:
                self._start.again(max(2 / seconds, average), quick)
                self.mode = Mode.START
