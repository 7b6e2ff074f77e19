"""The pace: how many requests per second an instance accepts, learned from those that it refuses.

What can be seen of a server from outside is four things, and each has one meaning:

- The *time to first byte* rises when requests queue there. That is about the number of requests at once: `concurrency` reacts.
- A *refusal* says that a limit is used up. That is about the rate: this module reacts.
- A *hint* says when a limit opens again. It is right, constant, or wrong: `reopening` decides.
- What was *delivered* between two moments at which the limit was used up is the limit times the time between them, whatever
  its burst is. That is the estimate.

The states:

- *start*: `initial` requests at once, and twice as many every `doubling` seconds, also without answers, because time without a
  refusal is information too. Overshoot is the time to a refusal times ln 2 / `doubling`, as a share of what was sent.
- *hold*: after refusals. A cycle begins a little below the estimate, reaches it half-way, and then grows ever faster. So the
  limit is tested once a cycle, and a limit that has risen is found in seconds. The next refusals give the next estimate.
- *blocked*: nothing is accepted any more, so that one request at a time asks (`reopening`). If a long window was used up in a
  short time, the next one is spent as quickly, and then waited for.
- *free*: nothing is known to be refused. Nothing is paced, and this costs nothing.

A refusal by chance means nothing. Refusals count with a leak of 1 for 40 requests, and only about log10(rate) of them at a time
are a signal, so that false signals per second stay rare at any rate.

If requests are refused only with more in flight than those that are accepted, the instance limits the requests at once. That is
tested: the number is bounded instead of the rate, and three refusals within the bound disprove it.

Sources: delivered rate as the estimate: BBR (Cardwell et al., 2016). Growth around the last limit, slow near it and fast far
from it: CUBIC (RFC 9438), which AWS' adaptive retry mode uses too. Slow start: Jacobson, 1988.

Pure: time is an argument.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from math import inf, log, log10

from attrs import frozen

from ..config import Adaptive
from .rate import ServerLimit
from .reopening import Reopening

LN2 = log(2.0)


def signal_threshold(rate: float) -> float:
    """Refusals that are a signal at this rate. It grows with the rate, so that false signals per second stay rare."""
    return min(3.5, max(1.0, log10(max(rate, 1e-9)) - 0.1))


@frozen
class PaceState:
    """What a process tells the others that share an instance.

    Attributes:
        estimate: requests per second that it found to be its share; None while unknown.
        until: when the next request may be sent, by the monotonic clock of the machine; 0 for now.
    """

    estimate: float | None
    until: float


@frozen
class LearnedLimit:
    """What the refusals of an instance taught about its limit. `str` makes a line for people.

    Attributes:
        rate: requests per second that it allows; None if it limits the requests at once.
        at_once: requests at once that it allows; None if it limits the rate.
        refused_rate: requests per second at the last refusal that was a sign of the limit; None if there was none.
        seconds: since that refusal.
    """

    rate: float | None
    at_once: int | None = None
    refused_rate: float | None = None
    seconds: float = inf

    def joined(self, other: LearnedLimit | None) -> LearnedLimit:
        """The limit of an instance that several processes share: the sum of their shares."""
        if other is None:
            return self
        return LearnedLimit(
            _sum(self.rate, other.rate),
            None if (at_once := _sum(self.at_once, other.at_once)) is None else int(at_once),
            _sum(self.refused_rate, other.refused_rate),
            min(self.seconds, other.seconds),
        )

    @property
    def why(self) -> str:
        """Such as `refused at 1,520/s 12 s ago`."""
        if self.refused_rate is None:
            return "as the instance has allowed so far"
        return f"refused at {self.refused_rate:,.4g}/s {self.seconds:,.0f} s ago"

    def __str__(self) -> str:
        if self.rate is None:
            return f"at most {self.at_once:,} at once learned: more were refused"
        return f"{self.rate:,.4g}/s learned: {self.why}"


def _sum(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else one + other


class Mode(Enum):
    START = "start"
    FREE = "free"
    HOLD = "hold"
    BLOCKED = "blocked"


# Requests per second. A faster pace is not enforced, because that would cost each call a turn in the queue. Refusals at
# a higher rate are noticed, and begin to pace.
ENOUGH = 5000.0

TOLERATED = 1 / 40  # share of refusals that may be chance
RUN = (
    4  # refusals in a row after which nothing seems to be accepted: a bucket at twice its rate accepts every second one
)
MIN_CUT, MAX_CUT = 0.02, 0.15  # how far below the estimate a cycle begins
CYCLE, REQUESTS = 3.3, 100.0  # seconds and requests of a cycle at least; 100 requests for 1 % of refusals
FEW = 12.0  # requests of the first cycles, while the estimate is rough
LONG_HINT = 60.0  # seconds; a longer Retry-After ends a window of a minute or more
_MOST_COMPLETIONS = 3  # answers during a block that may ask for one more probe at once
_SLOWEST = 1 / 60  # a request per minute at least
_LONGEST_CYCLE = 600.0  # seconds

# While other clients seem to share the limit; chosen by simulation.
_BACK = 0.2  # the rate falls by this share with each signal
_STEP = 0.7  # and grows by this times its square root each second
_ALONE = 6.0  # seconds without a refusal after which it grows as for a single client


class Pace:
    """The pace of requests to one instance.

    Args:
        settings: of the start; a fixed number of requests at once has none.
        longest: seconds of a pause at most.

    Attributes:
        mode: the state.
        limit: the estimate, requests per second; infinity while unknown.
        until: nothing is sent before this time.
        refused_rate, refused_at: the pace of the request whose refusal was the last signal, and when it was sent.
        at_once: the most requests in flight, if the instance seems to limit them; None otherwise.
    """

    def __init__(self, settings: int | Adaptive, longest: float = 60.0) -> None:
        self._burst = settings.initial if isinstance(settings, Adaptive) else 1
        self._doubling = self._pace_doubling = settings.doubling if isinstance(settings, Adaptive) else 0.5
        self._longest = longest
        self.mode = Mode.START if isinstance(settings, Adaptive) else Mode.FREE
        self.until = -inf
        self.refused_rate: float | None = None
        self.refused_at = -inf
        self._told, self._told_at = PaceState(None, 0.0), -inf
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
        self._empty: tuple[int, float] | None = None  # number and time when the limit was last used up
        self._refused_since = 0
        self._start_burst: float | None = None
        self._even = False
        self._most = inf
        self._refused_open = self._more = self._used = 0
        self._accepted = self._accepted_before = 0
        self._resume: float | None = None
        self._average: float | None = None
        self._marks: deque[tuple[float, int, float]] = deque(maxlen=64)
        self._doubt = 1.0
        self._shared_until = self._early_at = -inf
        self._usual = 0.0
        self._start_count = 0
        self.limit = inf  # estimate
        self._paced = 0.0  # seconds of sending since the cut
        self._cut = MIN_CUT
        self._hold = 1.0
        self._step = 1.0
        self._opening = Reopening(longest)
        # blocked
        self._probe: int | None = None
        self._completion = False
        self._completions = 0
        self._open_rate = 0.0
        self._allowance: int | None = None
        self._wall = 0.0
        self._in_flight_then = 0
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
    def blocked(self) -> bool:
        return self.mode is Mode.BLOCKED

    def free(self, now: float) -> bool:
        """Whether no request is held back, and none will be without a new event."""
        return self.mode is Mode.FREE and now >= self.until

    def probing(self, number: int) -> bool:
        """Whether this request asks if the instance accepts requests again."""
        return self.mode is Mode.BLOCKED and number == self._probe

    def pause_until(self, until: float, now: float) -> None:
        """Nothing is sent until then."""
        self.until = max(self.until, min(until, now + self._longest))

    def restart(self, now: float, rate: float) -> None:
        """Begins again after an outage, with a tenth of the rate before it."""
        if self.mode is Mode.HOLD:
            self._most = self.limit
        self.mode = Mode.START
        self._pace_doubling = max(self._doubling, 1.0)
        self._sent = max(2, int(rate / 10 * self._pace_doubling / LN2))
        self._began = self._next_at = now
        self._level, self._cut_at, self._even = 0.0, now, True

    def abandoned(self, number: int, now: float) -> None:
        """The request ended without an answer of the instance."""
        if number == self._probe:
            self._probe = None
            self._next_at = max(now, self._next_at)

    def shared(self, now: float) -> PaceState | None:
        """What has changed since it was last asked; None if nothing has."""
        until = max(self.until, self._next_at if self.mode is Mode.BLOCKED and self._probe is None else 0.0, 0.0)
        state = PaceState(self.limit if self.mode is Mode.HOLD else None, until if until > now else 0.0)
        if state == self._told or (now < self._told_at + 0.2 and state.until <= self._told.until):
            return None
        self._told, self._told_at = state, now
        return state

    def join(self, state: PaceState, now: float) -> None:
        """Joins what another process has learned: its pause, and the mean of both rates, so that they become equal."""
        if state.until > now:
            self.until = max(self.until, min(state.until, now + self._longest))
        if state.estimate is not None:
            if self.mode is Mode.HOLD:
                self._hold_at((self.limit + state.estimate) / 2, now, evidence=REQUESTS)
            elif self.mode is not Mode.BLOCKED:
                self._hold_at(state.estimate, now, evidence=REQUESTS)

    def announced(self, limit: ServerLimit, now: float) -> bool:
        """A header says how much is left of a window. Returns whether nothing is sent until the next one."""
        if limit.remaining or limit.reset <= 0 or self._opening.lies or self.mode is Mode.BLOCKED:
            return False
        self._expect(now + limit.reset, now)
        return True

    def reason(self, now: float) -> str:
        """Why requests are paced, in words; empty if they are not."""
        if self.mode is Mode.START:
            return "the start: the rate doubles until the instance refuses a request"
        return "" if self.mode is not Mode.HOLD or (learned := self.learned(now)) is None else learned.why

    def learned(self, now: float) -> LearnedLimit | None:
        """The limit, as far as is known."""
        if self.at_once is not None:
            return LearnedLimit(None, self.at_once)
        if self.mode is not Mode.HOLD:
            return None
        return LearnedLimit(self.limit, None, self.refused_rate, now - self.refused_at)

    def wait(self, now: float) -> float:
        """Seconds until the next request may be sent; infinity while a single request asks whether the limit has opened."""
        if now < self.until:
            return self.until - now
        if self.mode is Mode.FREE:
            return 0.0
        if self.mode is Mode.BLOCKED and self._probe is not None:
            return inf
        return max(0.0, self._next_at - now)

    def took(self, number: int, now: float, in_flight: int) -> None:
        """Registers that a request is sent now.

        Args:
            number: of the request; they count up in the order of sending.
            in_flight: requests on the wire with this one.
        """
        self._last_number = number
        mode = self.mode
        if mode is Mode.FREE:
            return
        if mode is Mode.BLOCKED:
            self._probe = number
            return
        if mode is Mode.START:
            self._sent += 1
            if self._sent == 1 and not self._opening.opened[0]:
                self._began = now
                self._opening.opened = (0, now)
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
                self._marks.append((now, number, rate))
            slack = 0.01 if gap < 0.005 else 0.1 * gap
            self._next_at = max(self._next_at, now - slack) + gap
        if (
            self._allowance is not None
            and self._opening.period is not None
            and number - self._opening.opened[0] + 1 - self._refused_open >= self._allowance + self._more
        ):
            self._accepted = self._allowance = self._allowance + self._more
            self._used += self._allowance
            self._more = 0
            if self._used >= 2 * REQUESTS:
                self._used, self._more = 0, 1 + self._allowance // 200
            self._resume = self.limit if self.mode is Mode.HOLD else None
            self._empty = None
            self._stop(now, now, in_flight)
            self._completions = _MOST_COMPLETIONS

    def _burst_of(self, limit: float) -> float:
        """Requests that the server takes at once, from the start."""
        if self._start_burst is not None:
            return max(1.0, self._start_burst)
        if not self._start_count:
            return 3.0 * self._doubt
        at = limit * self._doubling / LN2
        count = self._start_count
        base = max(at, float(self._burst))
        if count <= base:
            return self._doubt
        return self._doubt * max(1.0, count - (at if at > self._burst else 0.0) - at * log(count / base))

    def _grow(self, gap: float) -> float:
        """The pace after another paced request."""
        t = self._paced = self._paced + gap
        if self._shared_until > self._cut_at and t < _ALONE:
            self._rate += min(_STEP * self._rate**0.5, 0.005 * self._rate**2) * gap
            return self._rate
        if t < self._hold:
            self._rate = self.limit * (1 - self._cut + self._cut * t / self._hold)
        else:
            since = max(self._hold, _ALONE) if self._shared_until > self._cut_at else self._hold
            speed = max(self._cut, MIN_CUT) / self._hold * 2.0 ** min(60.0, (t - since) / self._step)
            self._rate *= 1.0 + min(speed, LN2 / self._doubling) * gap
        return self._rate

    # --- answers ---

    def succeeded(self, number: int, now: float, *, sent: float, in_flight: int) -> None:
        """Registers an answer that is no refusal; the arguments are those of `took`, and when the request was sent."""
        mode = self.mode
        if mode is Mode.START and self._most == inf and 0.75 * (now - sent) > self._pace_doubling:
            doubling = min(0.75 * (now - sent), 1.0)
            self._sent = int(self._sent * doubling / self._pace_doubling)
            self._pace_doubling = doubling
        if mode is Mode.BLOCKED:
            if number == self._probe:
                self._reopened(number, now, sent)
            elif self._completions < _MOST_COMPLETIONS and self._probe is None:
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

    def refused(
        self,
        number: int,
        now: float,
        *,
        sent: float,
        in_flight: int,
        retry_after: float | None = None,
        wall: float = 0.0,
        rate: float = 1000.0,
    ) -> None:
        """Registers a refusal.

        Args:
            number, sent, in_flight: as in `succeeded`.
            retry_after: seconds, if the answer has a hint.
            wall: the wall clock, because windows begin at round times.
            rate: answers per second, as measured; used while nothing is paced.
        """
        self._wall = wall - now
        self._opening.refused(now, sent)
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
                self._completion = False
                self._opening.low = sent - self._opening.opened[1]
                self._next_at = self._opening.next_probe(now, self._wall)
            elif (
                self._completions == _MOST_COMPLETIONS
                and self._allowance is not None
                and number > self._opening.opened[0]
                and self._accepted > 1
            ):
                self._accepted -= 1
                self._allowance -= 1
            return
        if self._empty is not None and number > self._empty[0]:
            self._refused_since += 1
        if number > self._opening.opened[0] and self._opening.opened[0]:
            self._refused_open += 1
        if number <= self._burst and self.mode is not Mode.FREE:
            self._start_burst = min(number - 1.0, inf if self._start_burst is None else self._start_burst)
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
        if self._level >= signal_threshold(pace):
            self.refused_rate, self.refused_at = pace, sent
            self._signal(now, pace)

    def _run(self, number: int) -> int:
        """The refusals in a row around this one, by number, as far as `RUN`."""
        refused, low, high = self._refused, number, number
        while low - 1 in refused and number - low < RUN:
            low -= 1
        while high + 1 in refused and high - number < RUN:
            high += 1
        return high - low + 1

    def _signal(self, now: float, pace: float) -> None:
        """The limit is used up: makes the next estimate from what was accepted since it was used up before."""
        number, sent = self._first
        if self._average is not None:
            few = number - self._opening.opened[0] < max(10, 0.25 * self._accepted_before)
            average, self._average = self._average, None
            if few:
                self._hold_at(average, now, evidence=2.0 * self._accepted_before)
                self._empty, self._refused_since, self._level = (number, sent), self._clump, 0.0
                self._allowance = self._opening.period = None
                return
        if self._empty is None:
            self._start_count = max(1, number - 1)
            limit = 0.75 * pace
            start = 0.5 * pace
            evidence = 0.0
            if self.mode is Mode.START and number <= self._burst:  # only the burst was too large
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
                strict = self._start_burst is not None and self._start_burst < 2 and accepted >= 8
                for at, count, rate in self._marks:
                    if strict and self._cut_at < at <= sent:
                        limit = max(limit, 0.99 * rate)
                    if self._cut_at < at < sent and number - count > 8:
                        limit = max(limit, min(pace, (number - count - burst) / (sent - at)))
            if self._sample == REQUESTS and self._paced < self._hold / 2:
                self._doubt = min(64.0, self._doubt * 2)
            start, evidence = None, 2.0 * accepted
        early = self.mode is Mode.HOLD and pace < self.limit and now >= self._shared_until
        if early:
            if now - self._early_at < 20.0:
                self._shared_until = now + 60.0
            self._early_at = now
        if evidence >= REQUESTS and self.mode is Mode.HOLD:
            if limit < 0.97 * self._usual:
                self._shared_until = now + 60.0
            self._usual = limit if self._usual == 0 else self._usual + 0.2 * (limit - self._usual)
        shared = now < self._shared_until
        if shared:
            limit = min(limit, pace) if limit < 0.5 * pace else pace
        self._hold_at(limit, now, start, evidence)
        if shared:
            self._rate = limit * (1 - _BACK)
        else:
            self._shared_until = -inf
        self._empty, self._refused_since = (number, sent), self._clump
        self._level = 0.0

    def _hold_at(self, limit: float, now: float, start: float | None = None, evidence: float = FEW) -> None:
        """Begins a cycle around an estimate.

        Args:
            start: the pace to begin with; by default a little below the estimate.
            evidence: requests that the estimate rests on. A cycle after few of them is short.
        """
        self.limit = limit = max(_SLOWEST, limit)
        self._sample = min(REQUESTS, max(FEW, evidence))
        burst = self._burst_of(limit)
        level = signal_threshold(limit)
        few = self._sample / REQUESTS
        cycle = max(CYCLE * few, few * REQUESTS * level / limit, 6 * self._opening.lag)
        cycle = min(cycle, _LONGEST_CYCLE)
        self._hold = cycle / 2
        self._step = max(cycle / 8, 2 * self._opening.lag)
        self._cut = min(MAX_CUT, max(MIN_CUT, burst / (limit * self._hold)))
        if self._start_burst is not None and self._start_burst < 2:
            self._cut = MIN_CUT
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
        """Nothing is accepted any more, from the first refusal of the run on."""
        number, sent = self._first
        while number - 1 in self._refused:
            number -= 1
        if self._empty is None:
            self._start_count = max(1, number - 1)
        self._empty, self._refused_since = (number, sent), self._clump
        self._level = 0.0
        opened_no = self._opening.opened[0]
        run = sum(one >= number for one in self._refused)
        self._accepted = max(0, number - max(opened_no, 1) - max(0, self._refused_open - run))
        self._resume = self.limit if self.mode is Mode.HOLD else None
        if self._average is not None:
            average, self._average = self._average, None
            if number - opened_no < max(10, 0.25 * self._accepted_before):
                self._hold_at(average, now, evidence=2.0 * self._accepted_before)
                self._allowance = self._opening.period = None
                return
        self._stop(now, sent, in_flight)

    def _stop(self, now: float, sent: float, in_flight: int) -> None:
        """Sends nothing but probes from now on."""
        self.mode = Mode.BLOCKED
        self._open_rate = max(self._open_rate, min(self._rate, 1e6))
        self._opening.since = sent
        self._in_flight_then = in_flight
        self._probe, self._completions, self._completion = None, 0, False
        self._cut_at = now
        self._next_at = self._opening.next_probe(now, self._wall)

    def _note_hint(self, now: float, retry_after: float | None) -> None:
        if retry_after is None:
            return
        opening = self._opening
        if retry_after > LONG_HINT and self.mode is not Mode.BLOCKED and not opening.lies:
            self._expect(now + retry_after, now)
        opening.hinted(now, retry_after)

    def _expect(self, moment: float, now: float) -> None:
        """Stops, because the instance says that it accepts nothing until then."""
        self._resume = self.limit if self.mode is Mode.HOLD else None
        self._stop(now, now, 0)
        self._completions = _MOST_COMPLETIONS
        self._opening.trust(moment, now)
        self._next_at = self._opening.next_probe(now, self._wall)

    def _reopened(self, number: int, now: float, sent: float) -> None:
        """A probe was accepted: continues by window, at the average, or with a bound of requests at once."""
        self._probe = None
        if self._completion and self._in_flight_then >= 2 and now >= self._no_cap_until:
            self._try_cap(self._in_flight_then - 1, now)
            return
        before, first = self._opening.opened[1], not self._opening.opened[0]
        self._refused_open = 0
        cycle = self._opening.reopened(number, sent)
        average = max(1, self._accepted) / cycle
        self._level, self._cut_at, self._next_at = 0.0, now, now
        long = cycle >= 2.5 and self._accepted >= 10 and self._opening.since - before < 0.5 * cycle
        self._average, self._accepted_before = average, self._accepted
        if long and not first:
            self._opening.learn(cycle)
        self._allowance = self._accepted if long else None
        if not long:
            self._average = None
            number, sent = self._empty if self._empty is not None else (0, 0.0)
            for at, count, _ in self._marks:
                if at <= now - 1.0:
                    average = max(average, min(self._rate, (number - count) / (now - at)))
            self._hold_at(average, now, evidence=2.0 * self._accepted)
            self._cut, self._rate = MIN_CUT, average * (1 - MIN_CUT)
        elif self._resume is not None:
            self._hold_at(self._resume, now, evidence=REQUESTS)
        else:
            quick = max(10 * average, min(self._open_rate, 0.01 * self._accepted / max(self._opening.lag, 0.001)))
            if self._opening.period is not None or quick < 20:
                self._hold_at(quick, now, evidence=REQUESTS)
            else:
                self.mode = Mode.START
                self._most = quick
                self._rate = rate = max(2 / cycle, min(20.0, quick))
                self._sent = max(1, int(rate * self._doubling / LN2))

    # --- cap ---

    def _vote(self, in_flight: int, now: float) -> None:
        """Counts refusals that left with more in flight than each of the last accepted requests."""
        recent = self._recent
        if self._rate > 1.1 * self.limit:
            return
        if len(recent) < 20 or now < self._no_cap_until:
            return
        self._votes = self._votes + 1 if in_flight > max(recent) else 0
        if self._votes >= 2:
            self._try_cap(in_flight - 1, now)

    def _try_cap(self, at_once: int, now: float) -> None:
        """Assumes that the instance limits the requests at once, and bounds them instead of the rate."""
        self._saved = self.limit
        self.at_once = max(1, at_once)
        self._cap_refused = self._cap_ok = 0
        self._cap_since = now
        self._cut_at = now
        self._votes = 0
        self.mode = Mode.FREE

    def _cap_refusal(self, in_flight: int, now: float, sent: float) -> bool:
        """A refusal while a cap is assumed. Returns whether that explains it."""
        assert self.at_once is not None
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
