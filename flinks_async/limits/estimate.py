"""The estimate of a rate limit: which refusals are a signal, how a cycle of the pace tests the limit, and what follows.

A limit is used up at the moment of a signal. Between two such moments an instance accepts its limit times the time between,
whatever its burst is. So the estimate needs no model of the server: accepted requests, divided by the seconds between two signals.

A *cycle* of the pace begins at a signal. The pace starts a little below the estimate, reaches it half-way, and then grows ever
faster until the next signal. If more was sent than the estimate allows and nothing was refused, then the limit has risen, and
the pace doubles as it does at the start.

Other clients may use the same limit. The estimate falls then. So the client leaves half of the limit unused for some seconds, and
goes on with additive increase and multiplicative decrease, which make the shares equal (Chiu and Jain, 1989).

Pure: time is an argument.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from math import inf

from .reopening import Refusals, UsedUp, signal_threshold
from .slow_start import LN2, SlowStart

CYCLE, REQUESTS = 3.3, 100.0  # seconds and requests of a cycle at least; 100 requests for 1 % of refusals
FEW = 12.0  # requests of the first cycles, while the estimate is rough
SLOWEST = 1 / 60  # requests per second at least

_MIN_CUT, _MAX_CUT = 0.02, 0.03
_FIRST_GROWTH = 0.04  # of the pace in half a cycle, when it passes the estimate
COUNTABLE = 8  # accepted requests that give an estimate
_FIRM = 0.4  # seconds of a firm estimate at least, because the times of two requests to the server differ by some 10 ms
_LONG_AGO = 10.0  # seconds
_LONGEST_CYCLE = 600.0  # seconds
_UNUSED = 5.0  # a block is followed by a cycle of this many times its seconds, because the next test may block again
# Seconds: a client that starts beside others tests its limit often, and is not left behind.
_YOUNG, _ROUGH_CYCLE = 60.0, 2.0
_WINDOW = 1.1  # seconds; the growth doubles no faster, so that a pace beyond a window of a second is noticed at its end
# Requests above the estimate that are accepted before the limit counts as risen: 3, or those of 50 ms, or of 5 % of a window.
_RISEN, _RISEN_FOR = 3.0, 0.05
_RISING = 0.75  # seconds in which the pace then doubles at least

# Other clients; chosen by simulation.
_AGREES, _REQUESTS = 0.03, 3.0  # estimates that differ by this share, or by so many requests, agree
_DOUBTS = 3.0  # seconds after which a client that has just begun may share
_PUSHED_OUT = 0.25  # of the pace at the end of the start: with less, others may have taken the rest
_SHARES = 60.0  # seconds at most, without new signs of others
_ROOM, _ROOM_FOR = 0.5, 5.0  # share of the limit that is left to them, and seconds
_SLOW = 0.5  # seconds to a refusal
_ROOM_EVERY = 30.0  # seconds
_BACK = 0.25  # the rate falls by this share with each signal
_CALM = 0.85  # of the pace at the signal; below it, refusals of our own pace are not expected
_SETTLE = 1.0  # seconds in which more refusals say nothing
_STEP, _LOW_STEP, _STEP_DOUBLES = 1.0, 0.2, 2.0  # and grows by the root of it, ever faster
# At this rate and below it, signals are rare. Each lowers the rate by `_MORE_BACK` more, and the rate grows slower and evenly.
_RARE_SIGNALS, _MORE_BACK, _LESS_STEP, _LATER = 15.0, 0.12, 0.5, 4.0


class Growth(Enum):
    """How the pace of a cycle grows."""

    TEST = "test"  # slowly to the estimate, then ever faster
    MAKE_ROOM = "make room"  # half of the limit for some seconds, then quickly back
    SHARE = "share"  # with the square root of the pace


class Cycle:
    """The pace while a limit is known.

    Attributes:
        limit: the estimate, requests per second; infinity while unknown.
        rate: the pace.
        began: when the cycle began. Refusals of older requests say nothing of it.
        evidence: requests that the estimate rests on, from `FEW` to `REQUESTS`.
        growth: of the pace.
        rising: more was sent than the limit allows, and nothing was refused.
        idle: seconds in which a request might have been sent, and was not, for lack of tokens or of requests at once.
        marks: when some of the last requests were sent, their numbers, the pace, and `idle` then.
        shortest: seconds of a cycle at least: the period of a sliding window, which shows what was sent a period later.
    """

    def __init__(self) -> None:
        self.limit = inf
        self.rate = inf
        self.began = -inf
        self.evidence = FEW
        self.idle = 0.0
        self.growth = Growth.TEST
        self._used_up: deque[UsedUp] = deque(maxlen=8)
        self._refused = 0  # in all
        self._cost = 0.0  # half of the refusals of the last signal, if the limit has not changed
        self._paced = 0.0  # seconds of sending since the cycle began
        self._extra = 0.0  # requests above the estimate since then
        self._cut = _MIN_CUT
        self._half = 1.0  # seconds until the pace reaches the estimate
        self._step = 1.0  # seconds in which the growth doubles above the estimate
        self._lag = 0.0
        self.shortest = 0.0
        self.marks: deque[tuple[float, int, float, float]] = deque(maxlen=64)
        self._born = inf  # when the first cycle began
        self._before = self._usual = 0.0  # the estimate of the signal before
        self._rose_from = inf  # the estimate before it, if that signal ended a rise, so that its estimate is a guess
        self._firm = False  # that estimate rests on enough requests
        self._agreed = 0.0  # estimates in a row that agree with the one before
        self._differed = 0  # that do not
        self._settled = False  # estimates have agreed since the client began
        self.rising = False
        self._rare = 0.0  # how rare signals are: 1 at `_RARE_SIGNALS` and below
        self._shared_until = self._made_room_at = -inf
        self._calm_to = 0.0  # below this pace, only chance and other clients refuse
        self._calm = self._calm_refused = 0  # requests below it in this cycle, and those refused one by one

    def begin(
        self,
        limit: float,
        now: float,
        *,
        lag: float,
        burst: float = 3.0,
        evidence: float = FEW,
        start: float | None = None,
        growth: Growth = Growth.TEST,
        unused: float = 0.0,
    ) -> None:
        """Begins a cycle around an estimate.

        Args:
            lag: seconds to a refusal.
            burst: requests that the server takes at once.
            evidence: requests that the estimate rests on. A cycle after few of them is short.
            start: the pace to begin with; by default a little below the estimate.
            growth: of the pace.
            unused: seconds without requests before, of which the server may have stored the limit.
        """
        self.limit = max(SLOWEST, limit)
        limit = self.limit
        self.evidence = min(REQUESTS, max(FEW, evidence))
        few = self.evidence / REQUESTS
        refusals = max(signal_threshold(limit), self._cost)
        length = min(max(CYCLE * few, few * REQUESTS * refusals / limit, 6 * lag), _LONGEST_CYCLE)
        if unused > 1.0:
            length = max(length, min(few * _UNUSED * unused, _LONGEST_CYCLE))
        elif self.shortest:
            length = max(length, self.shortest)
        elif not self._settled and now < self._born + _YOUNG and lag <= _SLOW:
            length = max(6 * lag, min(length, max(_ROUGH_CYCLE, 5.0 / limit)))
        self._half = length / 2
        self._step = max(min(_WINDOW, length / 3), length / 12, 2 * lag)
        self._cut = min(_MAX_CUT, max(_MIN_CUT, burst / (limit * self._half)))
        if start is not None:
            self._cut = 1 - start / limit
        self.growth = growth
        self._lag = lag
        self._paced, self._extra = 0.0, -limit * unused
        self.rising = False
        self.began = now
        self._born = min(self._born, now)
        self.rate = limit * (1 - self._cut)
        if growth is Growth.MAKE_ROOM:
            self.rate = _ROOM * limit
        elif growth is Growth.SHARE:
            self._rare = min(1.0, _RARE_SIGNALS / limit)
            self.rate = (1 - _BACK - _MORE_BACK * self._rare) * limit
            self.began = now + _SETTLE
        self._calm_to = limit if growth is Growth.TEST else _CALM * limit
        self._calm = self._calm_refused = 0

    def mark(self, now: float, number: int, rate: float) -> None:
        """Remembers the pace of this request."""
        self._calm += rate < self._calm_to
        if not self.marks or now - self.marks[-1][0] > self._half / 16 or rate < self.marks[-1][2] == inf:
            self.marks.append((now, number, rate, self.idle))

    def grow(self, seconds: float) -> float:
        """Registers seconds of sending; returns the pace after them."""
        t = self._paced = self._paced + seconds
        limit, rate = self.limit, self.rate
        self._extra += (rate - limit) * seconds
        if self.growth is Growth.SHARE:
            doubled = min(20.0, t / (_STEP_DOUBLES + _LATER * self._rare))
            rate += min((_STEP - _LESS_STEP * self._rare) * rate**0.5, _LOW_STEP * rate) * 2.0**doubled * seconds
        elif self.growth is Growth.MAKE_ROOM and rate < limit:
            if t > _ROOM_FOR:
                rate *= 1.0 + LN2 / 2 * seconds
        elif t < self._half:
            rate = limit * (1 - self._cut + self._cut * t / self._half)
        elif (
            self._extra > max(_RISEN, _RISEN_FOR * limit * max(1.0, self.shortest)) + max(0.0, rate - limit) * self._lag
        ):
            self.rising = True
            rate *= 1.0 + LN2 / max(_RISING, 4 * self._lag) * seconds
        else:
            first = min(max(self._cut, _MIN_CUT), _FIRST_GROWTH) / self._half
            rate *= 1.0 + min(first * 2.0 ** min(60.0, (t - self._half) / self._step), LN2) * seconds
        self.rate = rate
        return rate

    def refused(self, sent: float, run: int) -> None:
        """Registers any refusal; `run` is how many it makes in a row."""
        self._refused += 1
        if run <= 2 and self.pace_at(sent) < self._calm_to:
            self._calm_refused += 1 if run == 1 else -1

    @property
    def known(self) -> bool:
        """The limit was used up before."""
        return bool(self._used_up)

    @property
    def last_refused(self) -> int:
        """The number of the request at which the limit was used up last."""
        return self._used_up[-1].number if self._used_up else 0

    @property
    def confirmed(self) -> float:
        """The limit as the signals so far have confirmed it, which a single refusal hardly changes."""
        return self._usual if self._settled or self.growth is Growth.SHARE else self.limit

    def recently(self, now: float, number: int) -> float:
        """Requests per second over the last second or more that were sent before this one."""
        rates = [
            (number - count) / (now - at)
            for at, count, _, _ in self.marks
            if at <= now - 1.0 and number - count >= 2 * COUNTABLE
        ]
        return max(0.0, min(self.rate, max(rates, default=0.0)))

    def sent_lately(self, number: int, sent: float) -> float:
        """Requests per second that were sent in the last 0.2 s or more before this one; 0 if nothing is known of them."""
        for at, count, *_ in reversed(self.marks):
            if at <= sent - 0.2:
                return max(0.0, number - count) / (sent - at)
        return 0.0

    def interrupted(self, now: float) -> None:
        """Nothing was sent for a while, so that the next estimate cannot rest on what was accepted before."""
        self._used_up.clear()
        self._firm, self.shortest = False, 0.0
        self.began = now

    def now_used_up(self, number: int, sent: float, refused: int) -> None:
        """The limit was used up by this request; `refused` of those from it on were refused so far."""
        self._used_up.append(UsedUp(number, sent, self._refused - refused, self._idle_until(sent)))

    def pace_at(self, moment: float) -> float:
        """The pace of a request that was sent then."""
        return next((rate for at, _, rate, _ in reversed(self.marks) if at <= moment), self.rate)

    def _idle_until(self, moment: float) -> float:
        return next((idle for at, _, _, idle in reversed(self.marks) if at <= moment), 0.0)

    def signal(
        self, refusals: Refusals, now: float, pace: float, lag: float, start: SlowStart, *, closed: bool = False
    ) -> None:
        """The limit is used up: makes the next estimate from what was accepted since it was used up before."""
        number, sent = refusals.first
        full = self.evidence == REQUESTS
        stopped = refusals.level if self.rate < self._calm_to else 0.0  # refusals that are why the cycle ends now
        refusals.below(self._calm, max(0.0, self._calm_refused - stopped))
        if not self._used_up and self.limit < inf and not self.rising:  # after an outage, or known from another process
            self.begin(min(pace, self.limit), now, lag=lag, burst=start.burst_of(self.limit), evidence=self.evidence)
        elif not self._used_up:
            start.ended(number - 1)
            # A strict limit stores nothing, so that the pace at its first refusal is the limit.
            first, limit = (0.75, 0.85) if start.strict and not start.in_first_burst(number - 2) else (0.5, 0.75)
            self.begin(limit * pace, now, lag=lag, burst=start.burst_of(limit * pace), start=first * pace)
        else:
            refused = self._refused - refusals.clump
            accepted, seconds = self._accepted_until(number, sent, refused, start.burst_of(self.limit))
            seconds *= 1.0 - refusals.by_chance
            limit = self._estimate(number, sent, accepted, seconds, pace, start)
            if full and self._paced < self._half and self.growth is Growth.TEST:  # before the pace reached the estimate
                start.doubt = min(64.0, start.doubt * 2)
            evidence = min(2.0 * accepted, REQUESTS * seconds / _FIRM)
            self._cost = 0.0
            if 0.75 * self.limit < limit < 1.33 * self.limit:
                evidence = max(evidence, 1.5 * self.evidence)
                self._cost = 0.5 * (refused - self._used_up[-1].refused)
            if closed:
                limit = max(limit, min(pace, self.recently(now, number)))
            growth = self._judge(limit, now, accepted, start, closed=closed)
            if refusals.by_chance:
                growth, self._shared_until = Growth.TEST, -inf
            if self.rising:
                if growth is Growth.TEST:
                    limit = max(limit, 0.75 * pace)
                if pace > 2 * self.limit:  # what was accepted before says nothing about the new limit
                    evidence = FEW
                    self._used_up.clear()
                if pace > 3 * self.limit and not self._settled and self.evidence > FEW and not refusals.by_chance:
                    self._shared_until = now + 60.0
                    growth = Growth.SHARE
            if growth is Growth.SHARE and limit > 0.5 * pace:
                limit = pace
            self.begin(limit, now, lag=lag, burst=start.burst_of(limit), evidence=evidence, growth=growth)
        self.now_used_up(number, sent, refusals.clump)

    def _accepted_until(self, number: int, sent: float, refused: int, burst: float) -> tuple[int, float]:
        """Accepted requests since the limit was used up before, and the seconds. After few of them, since an earlier time.

        If the client was idle, the server has stored a burst meanwhile, and not the limit of that time.
        """
        accepted, seconds, idle = 0, 0.0, 0.0
        for before in reversed(self._used_up):
            if accepted >= COUNTABLE or (accepted > 0 and sent - before.sent > _LONG_AGO):
                break
            accepted = max(0, number - before.number - (refused - before.refused))  # refusals may overtake each other
            seconds = sent - before.sent
            idle = self._idle_until(sent) - before.idle
        if idle * self.limit > burst and accepted > 2 * burst and seconds > idle:
            return accepted - int(burst), seconds - idle
        return accepted, seconds

    def _estimate(
        self, number: int, sent: float, accepted: int, seconds: float, pace: float, start: SlowStart
    ) -> float:
        """Requests per second that were accepted since the limit was used up before."""
        limit = 0.5 * pace
        if accepted <= 0 or seconds <= 0:
            return limit
        limit = max(limit if accepted < COUNTABLE else 0.0, min(pace, (accepted + 0.5) / seconds))
        burst = start.burst_of(limit)
        for at, count, rate, _ in self.marks:
            if start.strict and accepted >= COUNTABLE and self.began < at and count <= number - 3:
                limit = max(limit, min(pace, rate))
            if self.began < at < sent and number - count > 8:
                limit = max(limit, min(pace, (number - count - burst) / (sent - at)))
        return limit

    def _judge(self, limit: float, now: float, accepted: int, start: SlowStart, *, closed: bool) -> Growth:
        """Whether other clients seem to use the same limit. Then its estimates differ, or fall."""
        full, tolerance = self.evidence == REQUESTS, max(_AGREES, _REQUESTS / max(1, accepted))
        agrees = abs(limit - self._before) <= tolerance * limit
        self._before = limit
        before, self._firm = self._firm, full and not self.rising
        if self._settled and before and self._firm:
            # It falls slowly, so that a slow fall is noticed too.
            self._usual += (0.2 if limit > self._usual else 0.05) * (limit - self._usual)
            agrees = agrees and limit > self._usual * (1 - tolerance)
        else:
            self._usual = limit
        sharing = now < self._shared_until
        # An estimate of few requests agrees by chance.
        weight = min(1.0, (accepted / REQUESTS) ** 0.5) if sharing else 1.0
        self._agreed = self._agreed + weight if agrees else 0.0
        explained = (
            agrees or closed or self.rising or limit > self._rose_from or (self._settled and limit > self._usual)
        )
        self._rose_from = self.limit if self.rising else inf
        self._differed = 0 if explained else self._differed + 1
        young = not self._settled and now > self._born + _DOUBTS
        if sharing:
            if self._agreed >= 2:  # nobody else is there, or the shares are settled
                self._settled, self._shared_until, self._usual = True, -inf, limit
        elif young and start.short and not self.shortest:
            self._shared_until = now + _SHARES
        elif young and limit < _PUSHED_OUT * start.top and not self.shortest:
            self._shared_until, self._agreed = now + _SHARES, 0.0  # few requests agreed by chance
        elif full and self._agreed >= 2:
            self._settled = True
        elif (young or self._settled) and self._differed >= 2:
            self._shared_until, self._agreed = now + _SHARES, 0.0
            if self._settled and now > self._made_room_at + _ROOM_EVERY:
                self._made_room_at = now
                return Growth.MAKE_ROOM
        return self.shares(now)

    def shares(self, now: float) -> Growth:
        """How the pace grows: whether other clients seem to be there."""
        slow = self._lag > _SLOW  # a pace that reacts so late to a refusal would swing
        return Growth.SHARE if now < self._shared_until and not slow else Growth.TEST
