from __future__ import annotations

from collections import deque
from enum import Enum
from math import ceil, exp, inf, log, log10

LN2 = log(2.0)


def THETA(r):
    return min(3.5, max(1.9, log10(max(r, 1e-9))))


class Mode(Enum):
    START = "start"
    FREE = "free"
    HOLD = "hold"
    BLOCKED = "blocked"


ENOUGH = 20000.0  # a pace that no server of this kind limits: from here on nothing is paced
PERIODS = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400)
TOLERATED = 1 / 40
RUN = 4
MIN_CUT, MAX_CUT = 0.02, 0.15
CYCLE, REQUESTS = 3.3, 100.0
FEW = 12.0
TARGET = 0.012


class Pace:
    def __init__(self, settings) -> None:
        self._burst = settings.initial
        self._doubling = self._pace_doubling = settings.doubling
        self.mode = Mode.START
        self.at_once: int | None = None
        self._next_at = -inf
        self._sent = 0  # since the start began
        self._began = 0.0
        self._rate = inf  # pace
        # refusals
        self._level = 0.0
        self._level_at = 0
        self._clump = 0  # refusals of this clump
        self._first = (0, 0.0)
        self._refused: set[int] = set()
        self._cut_at = -inf
        self._lag = 0.0
        self._empty: tuple[int, float] | None = None  # number and time when the limit was last used up
        self._refused_since = 0
        self._start_burst: float | None = None
        self._even = False
        self._requests = REQUESTS
        self._most = inf
        self._low = 0.0
        self._round = False
        self._refused_open = self._more = self._used = 0
        self._accepted = self._accepted_before = 0
        self._resume: float | None = None
        self._average: float | None = None
        self._marks: deque[tuple[float, int]] = deque(maxlen=64)
        self._doubt = 1.0
        self._start_count = 0
        self._start_time = 0.0
        self.limit = inf  # estimate
        self._paced = 0.0  # seconds of sending since the cut
        self._cut = MIN_CUT
        self._hold = 1.0
        self._step = 1.0
        # blocked
        self._since = 0.0
        self._probe: int | None = None
        self._completion = False
        self._completions = 0
        self._last_refused = 0.0
        self._opened = (0, 0.0)
        self._open_rate = 0.0
        self._period: float | None = None
        self._allowance: int | None = None
        self._wall = 0.0
        self._hint: tuple[float, float] | None = None
        self._hint_at: float | None = None
        self._trust = 0
        self._in_flight_then = 0
        self._window_until = -inf
        # cap
        self._recent: deque[int] = deque(maxlen=60)
        self._votes = 0
        self._cap_refused = 0
        self._cap_ok = 0
        self._cap_since = 0.0
        self._sample = FEW
        self._no_cap_until = -inf
        self._cap_backoff = 30.0
        self._saved = 0.0
        self._last_number = 0

    # --- sending ---

    @property
    def starting(self) -> bool:
        return self.mode is Mode.START

    @property
    def free(self) -> bool:
        return self.mode is Mode.FREE

    def wait(self, now: float) -> float:
        mode = self.mode
        if mode is Mode.FREE:
            return 0.0
        if mode is Mode.BLOCKED:
            if self._probe is not None:
                return inf
            return max(0.0, self._next_at - now)
        if now < self._window_until:
            return self._window_until - now
        return max(0.0, self._next_at - now)

    def took(self, number: int, now: float, in_flight: int) -> None:
        self._last_number = number
        mode = self.mode
        if mode is Mode.FREE:
            return
        if mode is Mode.BLOCKED:
            self._probe = number
            return
        if mode is Mode.START:
            self._sent += 1
            if self._sent == 1:
                self._began = now
                self._opened = (0, now)
            k = max(self._sent, self._burst)
            rate = min(self._most, LN2 / self._pace_doubling * k)
            if rate >= ENOUGH:
                self.mode = Mode.FREE
                return
            self._rate = rate
            gap = 1 / rate
            self._next_at = max(self._next_at, now if self._even else now - (self._burst - 1) * gap) + gap
        else:
            gap = 1.0 / self._rate
            rate = self._grow(gap) if now - self._next_at < gap else self._rate
            if rate >= ENOUGH:
                self.mode = Mode.FREE
                return
            gap = 1 / rate
            if not self._marks or now - self._marks[-1][0] > self._hold / 16:
                self._marks.append((now, number))
            slack = 0.01 if gap < 0.005 else 0.1 * gap
            self._next_at = max(self._next_at, now - slack) + gap
        if self._allowance is not None and self._period is not None:
            if number - self._opened[0] + 1 - self._refused_open >= self._allowance + self._more:
                self._accepted = self._allowance = self._allowance + self._more
                self._used += self._allowance
                self._more = 0
                if self._used >= 2 * REQUESTS:
                    self._used, self._more = 0, 1 + self._allowance // 200
                self._resume = self.limit if self.mode is Mode.HOLD else None
                self._empty = None
                self._stop(now, now, in_flight)
                self._completions = 3

    def _burst_of(self, limit: float) -> float:
        """Requests that the server takes at once, from the start."""
        if self._start_burst is not None:
            return self._doubt * max(1.0, self._start_burst)
        if not self._start_count:
            return 3.0 * self._doubt
        at = limit * self._doubling / LN2
        count = self._start_count
        return self._doubt * max(1.0, count - at - at * log(count / at)) if count > at else self._doubt

    def _grow(self, gap: float) -> float:
        """The pace after another paced request."""
        t = self._paced = self._paced + gap
        if t < self._hold:
            self._rate = self.limit * (1 - self._cut + self._cut * t / self._hold)
        else:
            speed = max(self._cut, MIN_CUT) / self._hold * 2.0 ** min(60.0, (t - self._hold) / self._step)
            self._rate *= 1.0 + min(speed, LN2 / self._doubling) * gap
        return self._rate

    # --- answers ---

    def succeeded(self, number: int, now: float, *, sent: float, in_flight: int) -> None:
        mode = self.mode
        if mode is Mode.START and self._most == inf and 0.75 * (now - sent) > self._pace_doubling:
            doubling = min(0.75 * (now - sent), 1.0)
            self._sent = int(self._sent * doubling / self._pace_doubling)
            self._pace_doubling = doubling
        if mode is Mode.BLOCKED:
            if number == self._probe:
                self._reopened(number, now, sent)
            elif self._completions < 3 and self._probe is None and now - sent < inf:
                self._completions += 1
                self._completion = True
                self._next_at = min(self._next_at, now)
            return
        if mode is Mode.HOLD and sent > self._cut_at:
            self._recent.append(in_flight)
        if self.at_once is not None:
            self._cap_ok += 1
            if self._cap_ok >= 200 and now - self._cap_since > 2.0 and in_flight >= self.at_once:
                self.at_once += 1
                self._cap_ok, self._cap_since = 0, now

    def refused(self, number, now, *, sent, in_flight, retry_after=None, wall=0.0, rate=1000.0):
        self._wall = wall - now
        lag = now - sent
        self._lag = lag if self._lag == 0 else self._lag + 0.25 * (lag - self._lag)
        if self.at_once is not None and self._cap_refusal(in_flight, now, sent):
            return
        refused = self._refused
        refused.add(number)
        if len(refused) > 1000:
            self._refused = refused = {n for n in refused if n > number - 500}
        self._note_hint(now, retry_after)
        if self.mode is Mode.BLOCKED:
            if number == self._probe:
                self._probe = None
                self._last_refused = sent
                self._completion = False
                self._low = sent - self._opened[1]
                self._next_at = self._next_probe(now)
            elif self._completions == 3 and self._allowance is not None and number > self._opened[0] and self._accepted > 1:
                self._accepted -= 1
                self._allowance -= 1
            return
        if self._empty is not None and number > self._empty[0]:
            self._refused_since += 1
        if number > self._opened[0] and self._opened[0]:
            self._refused_open += 1
        if sent <= self._cut_at:
            return
        if self.mode is Mode.HOLD:
            self._vote(in_flight, now)
            if self.at_once is not None:
                return
        self._level = max(0.0, self._level - (self._last_number - self._level_at) * TOLERATED)
        self._level_at = self._last_number
        if self._level == 0.0:
            self._clump = 0
            self._first = (number, sent)
        self._level += 1.0
        self._clump += 1
        if number < self._first[0]:
            self._first = (number, sent)
        run = self._run(number)
        if run >= RUN:
            self._block(now, in_flight)
            return
        if run > 1 and run >= self._clump:
            return  # perhaps nothing is accepted any more
        pace = rate if self.mode is Mode.FREE else self._rate
        if self._level >= THETA(pace):
            self._signal(now, pace)

    def _run(self, number: int) -> int:
        refused, low, high = self._refused, number, number
        while low - 1 in refused and number - low < RUN:
            low -= 1
        while high + 1 in refused and high - number < RUN:
            high += 1
        return high - low + 1

    def _signal(self, now: float, pace: float) -> None:
        number, sent = self._first
        if self._average is not None:
            few = number - self._opened[0] < max(10, 0.25 * self._accepted_before)
            average, self._average = self._average, None
            if few:
                self._hold_at(average, now, evidence=2.0 * self._accepted_before)
                self._empty, self._refused_since, self._level = (number, sent), self._clump, 0.0
                self._allowance = self._period = None
                return
        if self._empty is None:
            self._start_count, self._start_time = max(1, number - 1), sent - self._began
            limit = 0.75 * pace
            start = 0.5 * pace
            evidence = 0.0
            if self.mode is Mode.START and number <= self._burst:  # only the burst was too large
                self._start_burst = number - 1.0
                self._even, self._next_at = True, now + 1 / pace
                self._level, self._cut_at = 0.0, now
                return
        else:
            since, at = self._empty
            accepted = (number - since) - (self._refused_since - self._clump)
            seconds = sent - at
            limit = 0.5 * pace
            if accepted > 0 and seconds > 0:
                limit = max(limit if accepted < 8 else 0.0, min(pace, (accepted + 0.5) / seconds))
                burst = self._burst_of(limit)
                if burst < 2:
                    limit = max(limit, 0.99 * pace)
                for at, count in self._marks:
                    if self._cut_at < at < sent and number - count > 8:
                        limit = max(limit, min(pace, (number - count - burst) / (sent - at)))
            if accepted >= 8:
                lost = self._refused_since / (number - since)
                self._requests = min(2 * REQUESTS, max(10.0, self._requests * (1.5 if lost > TARGET else 0.8)))
            if self._sample == REQUESTS and self._paced < self._hold / 2:
                self._doubt = min(64.0, self._doubt * 2)
            start, evidence = None, 2.0 * accepted
        self._hold_at(limit, now, start, evidence)
        self._empty, self._refused_since = (number, sent), self._clump
        self._level = 0.0

    def _hold_at(self, limit: float, now: float, start: float | None = None, evidence: float = FEW) -> None:
        self.limit = limit
        self._sample = min(REQUESTS, max(FEW, evidence))
        burst = self._burst_of(limit)
        level = THETA(limit)
        few = self._sample / REQUESTS
        cycle = max(CYCLE * few, few * self._requests * level / limit, 6 * self._lag)
        self._hold = cycle / 2
        self._step = max(cycle / 8, 2 * self._lag)
        self._cut = min(MAX_CUT, max(MIN_CUT, burst / (limit * self._hold)))
        if start is not None:
            self._cut = 1 - start / limit
        self._paced = 0.0
        self._cut_at = now
        self._rate = limit * (1 - self._cut)
        self._next_at = max(now, self._next_at)
        self.mode = Mode.HOLD
        self._votes = 0
        self._recent.clear()

    # --- blocked ---

    def _block(self, now: float, in_flight: int) -> None:
        number, sent = self._first
        while number - 1 in self._refused:
            number -= 1
        if self._empty is None:
            self._start_count, self._start_time = max(1, number - 1), sent - self._began
        self._empty, self._refused_since = (number, sent), self._clump
        self._level = 0.0
        opened_no, opened_at = self._opened
        run = sum(one >= number for one in self._refused)
        self._accepted = max(0, number - max(opened_no, 1) - max(0, self._refused_open - run))
        self._resume = self.limit if self.mode is Mode.HOLD else None
        if self._average is not None:
            average, self._average = self._average, None
            if number - opened_no < max(10, 0.25 * self._accepted_before):
                self._hold_at(average, now, evidence=2.0 * self._accepted_before)
                self._allowance = self._period = None
                return
        self._stop(now, sent, in_flight)

    def _stop(self, now: float, sent: float, in_flight: int) -> None:
        self.mode = Mode.BLOCKED
        self._open_rate = max(self._open_rate, min(self._rate, 1e6))
        self._since, self._last_refused = sent, sent
        self._in_flight_then = in_flight
        self._probe, self._completions, self._completion = None, 0, False
        self._cut_at = now
        self._window_until = -inf
        self._next_at = self._next_probe(now)

    def _next_probe(self, now: float) -> float:
        since = now - self._since
        gap = max(0.3, 2 * self._lag, 0.5 * since)
        if self._hint_at is not None and self._hint_at > now:
            if self._trust > 0 or self._hint_at < now + gap:
                return self._hint_at
            return min(self._hint_at, now + max(0.1, since))
        if self._period is not None:
            if self._period - self._low > 0.05 * self._period and not self._round:
                at = self._opened[1] + 0.5 * (self._low + self._period)
                if now < at:
                    return at
            at = self._opened[1] + self._period
            if now < at - 1e-6:
                return at
            late = now - at
            if late > 0.5 * self._period:
                self._period = None
            return now + max(0.25, 2 * self._lag, 0.02 * (self._period or 0.0), 0.5 * late)
        gap = max(0.3, 2 * self._lag, 0.5 * since)
        low, high = now + 0.6 * gap, now + 1.6 * gap
        opened = self._opened[1]
        for period in reversed(PERIODS):
            if low <= opened + period <= high:
                return opened + period
        for period in reversed(PERIODS):
            at = ceil((low + self._wall) / period) * period - self._wall
            if at <= high:
                return at
        return now + gap

    def _note_hint(self, now: float, retry_after: float | None) -> None:
        if retry_after is None:
            return
        moment = now + retry_after
        if self._hint is not None:
            at, before = self._hint
            if now - at < max(0.3, 0.1 * retry_after):
                return
            if abs(moment - before) <= 1.1:
                self._hint_at = min(moment, before)
            else:
                self._hint_at = None
        self._hint = (now, moment)

    def _reopened(self, number: int, now: float, sent: float) -> None:
        self._probe = None
        if self._hint_at is not None:
            if abs(sent - self._hint_at) < 0.05:
                self._trust += 1
            elif sent < self._hint_at - 1.1:
                self._trust = 0
        self._hint = self._hint_at = None
        if self._completion and self._in_flight_then >= 2 and now >= self._no_cap_until:
            self._try_cap(self._in_flight_then - 1, now)
            return
        before = self._opened[1]
        first = not self._opened[0]
        self._opened, self._refused_open = (number, sent), 0
        cycle = sent - before
        average = max(1, self._accepted) / cycle
        self._level, self._cut_at, self._next_at = 0.0, now, now
        long = cycle >= 2.5 and self._accepted >= 10 and self._since - before < 0.5 * cycle
        self._average, self._accepted_before = average, self._accepted
        self._period = None
        if long and not first:
            nearest = min(PERIODS, key=lambda one: abs(one - cycle))
            self._round = abs(nearest - cycle) < 0.02 * nearest
            self._period = float(nearest) if self._round else cycle
        self._allowance = self._accepted if long else None
        if not long:
            self._average = None
            self._hold_at(average, now, evidence=2.0 * self._accepted)
            self._cut, self._rate = MIN_CUT, average * (1 - MIN_CUT)
        elif self._resume is not None:
            self._hold_at(self._resume, now, evidence=REQUESTS)
        else:
            quick = max(10 * average, min(self._open_rate, 0.01 * self._accepted / max(self._lag, 0.001)))
            if self._period is not None or quick < 20:
                self._hold_at(quick, now, evidence=REQUESTS)
            else:
                self.mode = Mode.START
                self._most = quick
                self._rate = rate = max(2 / cycle, min(20.0, quick))
                self._sent = max(1, int(rate * self._doubling / LN2))

    # --- cap ---

    def _vote(self, in_flight: int, now: float) -> None:
        recent = self._recent
        if self._rate > 1.1 * self.limit:
            return
        if len(recent) < 20 or now < self._no_cap_until:
            return
        self._votes = self._votes + 1 if in_flight > max(recent) else 0
        if self._votes >= 2:
            self._try_cap(in_flight - 1, now)

    def _try_cap(self, at_once: int, now: float) -> None:
        self._saved = self.limit
        self.at_once = max(1, at_once)
        self._cap_refused = self._cap_ok = 0
        self._cap_since = now
        self._cut_at = now
        self._votes = 0
        self.mode = Mode.FREE

    def _cap_refusal(self, in_flight: int, now: float, sent: float) -> bool:
        """A refusal while a cap is assumed. Returns whether that explains it."""
        if sent <= self._cut_at or in_flight > self.at_once:
            return True
        if self._cap_ok < 200 and self._cap_since > self._cut_at and in_flight == self.at_once:
            self.at_once -= 1
            self._cap_ok, self._cap_since, self._cut_at = 0, now, now
            return True
        self._cap_refused += 1
        if self._cap_refused < 3:
            return True
        self.at_once = None
        self._no_cap_until = now + self._cap_backoff
        self._cap_backoff *= 2
        self._hold_at(self._saved if self._saved < inf else 0.5 * self._rate, now)
        return True
