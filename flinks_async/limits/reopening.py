"""When to ask an instance again that accepts nothing: the schedule of single requests after a run of refusals.

Nothing says when a limit opens again, so the gaps between two requests grow with the time that has passed: a quarter of it and
half a second, which costs about 14 requests a minute, 30 an hour. Limits in use are per second, minute, hour or day, so a
request is moved to the nearest round moment: a round time after the window before opened, or a round time of the clock.

An opening lies between the last refusal and the first accepted request. Two openings bound the period: it is longer than from the
first accepted request of one to the last refusal before the next, and shorter than from refusal to acceptance. It is the round
time between these bounds, or the measured one. Then only its end is asked for. While the bounds are far apart, or the moment is
rough, a request half-way is asked too: accepted or not, it halves what is unknown. After a single opening the lower bound alone
saves the requests up to it.

A hint (`Retry-After`, `RateLimit-Reset`) is not believed at once. Some servers send a constant, and some a time that is far
too long. Two hints that were given some time apart and name the same moment are consistent. Until a consistent hint has been
right once, requests are also sent before it, at doubling times. After a hint that was too long, announced limits are ignored
for a while: a minute, and twice as long each time.

If a limit was used up in a short part of the time between two openings, it is a *window*. Then the next one is spent as quickly,
and the client waits for the one after it.

Pure: time is an argument.
"""

from __future__ import annotations

from collections import deque
from math import ceil, inf, log, sqrt
from typing import Final

from attrs import frozen

PERIODS: Final = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400)
"""Round times in seconds."""

CHANCE = 0.01  # share of requests that may be refused by chance
_ODDS = (0.05 / 0.95) / (0.01 / 0.99)  # a rise of the odds of a refusal from 1 to 5 % is noticed
_BLOCK, _BLOCKS = 80, 4  # requests of a block below the estimate, and blocks; with 3 % a block has 2 refusals or more
RUN = 4  # refusals in a row: nothing is accepted; a bucket at twice its rate accepts every second request
_FIRST_GAP = 0.5  # seconds
_SAME_MOMENT = 1.1  # seconds: hints are whole seconds
_BRIEF = 1.0  # seconds
_GROWTH = 0.25  # of the gaps, as a share of the time that has passed
_DISTRUST = 60.0  # seconds
_SHORTEST_WINDOW = 1.5  # seconds; the allowance of a shorter one is spent evenly
_USED_IN = 0.7  # of the period at most: otherwise another client may have used up the limit
_TRIED_IN = 0.85  # the same, if a window is tried: at twice the average it is used up in half of it, after a wait
_EARLIER = 0.05  # of the period: if a window may have opened so much earlier, that is tried
_EQUAL = 0.03  # allowances that differ by this share agree: refusals on their way hide some requests


def signal_threshold(rate: float) -> float:
    """Refusals that are a signal at this rate. It grows with the rate, so that false signals per second stay rare."""
    return max(1.0, 0.6 + sqrt(rate) / 8.0)


def _leak(chance: float) -> float:
    """Refusals for each request that mean nothing: the reference value of a CUSUM of a Bernoulli variable."""
    return log(1.0 + (_ODDS - 1.0) * chance) / log(_ODDS)


class Refusals:
    """Refusals of the current pace.

    Refusals by chance mean nothing. So the count is a CUSUM (Page, 1954): it leaks for each request what makes it grow if the
    odds of a refusal are `_ODDS` times those of chance, and shrink if they are less; 1/40 for a chance of 1 %.

    Refusals that go on below the estimate are by chance, or another client causes them. Chance refuses single requests, and
    the same share at every pace. Another client fills a limit at some times, and at others nothing is refused. So the share
    counts as chance if blocks of requests below the estimate are alike: their index of dispersion is not above that of a
    Poisson distribution by more than its standard deviation (Fisher, 1950), and the share is above `CHANCE` by its standard error.

    Attributes:
        by_chance: share of requests that is refused by chance; 0 if it is not above `CHANCE`.
        level: the count.
        clump: refusals since the level was 0.
        first: number of the first request of the clump, and when it was sent.
    """

    def __init__(self) -> None:
        self.level = 0.0
        self.clump = 0
        self.first = (0, 0.0)
        self.by_chance = 0.0
        self._leak = _leak(CHANCE)
        self._blocks: deque[tuple[int, float]] = deque([(0, 0.0)], maxlen=2 * _BLOCKS + 1)  # requests, and refusals
        self._counted_at = 0  # the request up to which the level has leaked
        self._numbers: set[int] = set()

    def note(self, number: int) -> None:
        """Remembers a refusal for `run`, also one of an older pace."""
        self._numbers.add(number)
        if len(self._numbers) > 1000:
            self._numbers = {one for one in self._numbers if one > number - 500}

    def add(self, number: int, sent: float, last_number: int) -> None:
        """Counts a refusal; `last_number` is that of the last request sent."""
        self.level = max(0.0, self.level - (last_number - self._counted_at) * self._leak)
        self._counted_at = last_number
        if self.level == 0.0:
            self.clump = 0
        if self.clump == 0 or number < self.first[0]:
            self.first = (number, sent)
        self.level += 1.0
        self.clump += 1

    def below(self, requests: int, refused: float) -> None:
        """Registers requests that were sent below the estimate, and how many of them were refused one by one."""
        blocks = self._blocks
        blocks[-1] = (blocks[-1][0] + requests, blocks[-1][1] + refused)
        if blocks[-1][0] < _BLOCK:
            return
        requests, refused = (sum(one) for one in zip(*blocks, strict=True))
        share, least = refused / requests, (refused - sqrt(refused)) / requests
        dispersion = sum((some - share * count) ** 2 / count for count, some in blocks)
        free = len(blocks) - 1
        alike = len(blocks) >= _BLOCKS and dispersion <= share * (free + sqrt(2 * free))  # chi-squared: its deviation
        self.by_chance = share if alike and least > CHANCE else 0.0
        self._leak = _leak(max(CHANCE, self.by_chance))
        blocks.append((0, 0.0))

    def run(self, number: int) -> int:
        """Refusals in a row around this one, by number."""
        low = high = number
        while low - 1 in self._numbers:
            low -= 1
        while high + 1 in self._numbers:
            high += 1
        return high - low + 1

    def first_of_run(self) -> int:
        """The number of the first refusal in a row that ends with the clump's first."""
        number = self.first[0]
        while number - 1 in self._numbers:
            number -= 1
        return number

    def since(self, number: int) -> int:
        """Refused requests from this number on."""
        return sum(one >= number for one in self._numbers)


@frozen
class UsedUp:
    """A moment at which the limit was used up.

    Attributes:
        number: of the first request that was refused.
        sent: when it was sent.
        refused: refusals before it.
        idle: seconds before it in which a request might have been sent, and was not.
    """

    number: int
    sent: float
    refused: int
    idle: float


class Window:
    """What is known about the windows of a limit.

    Attributes:
        found: the limit seems to have windows.
        accepted: requests of the last window that were accepted.
        is_usual: they are enough, and about as many as in the window before.
        resume: the pace before the limit was used up; None while no rate was known.
        rate: accepted requests per second between the last two openings.
        first, first_before: numbers of the requests that found it open, and the one before.
        slower: factor of the next pace after refusals within the allowance. A sliding window repeats what was sent, so that the
            same pace meets the same refusals again.
        shrank: fewer requests were accepted than were allowed. Perhaps two windows were taken for one.
    """

    def __init__(self) -> None:
        self.found = False
        self.accepted = 0
        self.is_usual = False
        self.resume: float | None = None
        self.rate = 0.0
        self.first = self.first_before = 0
        self.slower = 1.0
        self.shrank = False
        self._agreed = False  # as many were accepted as in the window before
        self._allowance: int | None = None  # requests of each window; None while the period is unknown
        self._average: float | None = None  # requests per second, in case that it is no window
        self._refused = 0  # since then
        self._spent = 0  # of windows whose size was not tested
        self._more = 0  # requests beyond the allowance, as a test
        self._tested = 0  # those of the last window, if none was refused; then four times as many are tried
        self._may_be_two = True  # a window may have opened while the first requests were sent, and added its own

    def refused(self, number: int) -> None:
        """Registers a refusal while the window is open."""
        if number > self.first and self.first:
            self._refused += 1

    def used_up(self, number: int, run: int) -> None:
        """A run of refusals began with this request."""
        before, self.accepted = self.accepted, max(0, number - max(self.first, 1) - max(0, self._refused - run))
        self.shrank = self._allowance is not None and self.accepted < 0.9 * self._allowance
        self._agreed = self._agree(self.accepted, before)
        least = before / 2.2 if self._may_be_two else before / 1.5
        self._may_be_two = not before
        self.is_usual = self.accepted >= 10 and (not before or least < self.accepted < 1.5 * before)

    def spent(self, number: int) -> bool:
        """Whether the allowance is spent with this request. Then nothing is sent until the next window."""
        allowance = self._allowance
        if allowance is None or number - self.first + 1 - self._refused < allowance + self._more:
            return False
        self.slower = allowance / (allowance + 2 * self._refused)
        self.accepted = self._allowance = allowance + self._more
        self.shrank, self._agreed = False, True
        self._spent += self._allowance
        self._tested, self._more = self._more, 0
        if self._spent >= 200:
            self._spent, self._more = 0, 1 + self._allowance // 200
        return True

    def smaller(self, number: int) -> None:
        """A request of a window that was thought to be spent was refused."""
        if self._allowance is not None and number > self.first and self.accepted > 1:
            self.accepted -= 1
            self._allowance -= 1
            self._tested = 0

    def as_before(self, number: int) -> bool:
        """As many requests were accepted as in the window before, so that the first refusal is its end."""
        few = self._refused <= max(2.0, _EQUAL * self.accepted)  # a window refuses nothing before its end
        return self.found and few and self._agree(number - self.first - self._refused + 1, self.accepted)

    @staticmethod
    def _agree(one: int, other: int) -> bool:
        return abs(one - other) <= _EQUAL * other

    @property
    def is_known(self) -> bool:
        """Its allowance is known, so that nothing is sent once it is spent."""
        return self._allowance is not None

    def no_window(self, number: int) -> float | None:
        """The average rate, if the limit was used up long before it should be, so that it has no windows."""
        average, self._average = self._average, None
        if average is None or number - self.first >= max(10, 0.25 * self.accepted):
            return None
        self.found, self._allowance = False, None
        return average

    def opened(self, number: int, seconds: float, *, found: bool, known: bool) -> None:
        """A request was accepted again.

        Args:
            seconds: since the opening before.
            found: the limit was used up in a short part of them.
            known: also when the opening before was.
        """
        self.found = found
        self.first_before, self.first, self._refused = self.first, number, 0
        self._allowance = self.accepted if found and known and self._agreed else None
        if self._tested:
            self._more = 4 * self._tested
        self.rate = max(1, self.accepted) / seconds
        self._average = self.rate if found else None


class Reopening:
    """The schedule.

    Attributes:
        since: when the limit was used up.
        period: seconds between two openings; None while unknown.
        hint_at: the moment that consistent hints name; None without one.
        lag: seconds to a refusal, smoothed.
        opened: when a request found the limit open last.
        window: what is known about windows.
    """

    def __init__(self, longest: float) -> None:
        self.since = 0.0
        self.period: float | None = None
        self.hint_at: float | None = None
        self.lag = 0.0
        self.window = Window()
        self.opened: float | None = None
        self._resumed = 0.0  # when others followed it
        self._opened_twice = False
        self._low = 0.0  # when a request was refused last
        self._earliest = 0.0  # the window opened after this
        self._least, self._most = 0.0, inf  # bounds of the period
        self._wall = 0.0  # the wall clock less the time
        self._distrusts_until = -inf
        self._distrust = _DISTRUST
        self._longest = longest
        self._trust = 0
        self._hint: tuple[float, float] | None = None
        self._first_gap = _FIRST_GAP
        self.asked = self.silent_until = 0.0

    def stops(self, since: float, rate: float) -> None:
        """The limit was used up at this rate."""
        self.since = self._low = since
        if self.period is not None and since > (self.opened or 0.0) + self.period:  # it was not used up in time
            self.period, self.window.found = None, False
        self._first_gap = max(0.03, min(_FIRST_GAP, 10 / rate)) if rate < inf else _FIRST_GAP

    def asks(self, now: float) -> None:
        """A single request is sent."""
        self.asked = now
        quick = self.lag > 0 and (self.window.found or now - self.since < _BRIEF)
        self.silent_until = now + 3 * self.lag + 0.02 if quick else inf

    def begins(self, now: float) -> None:
        """The first request is sent, and finds the limit open."""
        if self.opened is None:
            self.opened = now

    def still_closed(self, sent: float) -> None:
        """A single request that was sent then was refused."""
        self._low = sent

    def distrusts(self, now: float) -> bool:
        """Whether hints were too long lately."""
        return now < self._distrusts_until

    def refused(self, now: float, sent: float, wall: float) -> None:
        """Measures the time to a refusal; `wall` is the wall clock."""
        self._wall = wall - now
        lag = now - sent
        self.lag += lag if self.lag == 0 else 0.25 * (lag - self.lag)

    def hinted(self, now: float, retry_after: float) -> None:
        """Registers a hint of a refusal, in seconds."""
        moment = now + min(retry_after, self._longest)
        if self._hint is not None:
            at, before = self._hint
            if now - at < max(0.3, 0.1 * retry_after):
                return
            same = abs(moment - before) <= min(_SAME_MOMENT, 0.5 * (now - at))  # a constant moves with the time
            self.hint_at = min(moment, before) if same else None
        self._hint = (now, moment)

    def trust(self, moment: float, now: float) -> None:
        """Takes a hint for consistent that cannot be compared with another one."""
        self.hint_at = min(moment, now + self._longest)

    def next_probe(self, now: float) -> float:
        """When to send the next request."""
        opened, begin = self.opened or 0.0, now
        if self.hint_at is None and self.period is None and self.window.found:
            begin = max(now, self._earliest + self._least)
        passed = begin - self.since
        gap = max(2 * self.lag, min(_FIRST_GAP, self._first_gap + 0.5 * passed) + _GROWTH * passed)
        if self.hint_at is not None and self.hint_at > now:
            if self._trust > 0 or self.hint_at < now + gap:
                return self.hint_at
            return min(self.hint_at, now + max(0.1, passed))
        if self.period is not None:
            return self._expected(now, opened, self.period)
        low, high = max(begin, now + min(0.3 * gap, max(0.02, self.lag))), begin + 1.6 * gap
        if self.window.found:
            rough = 0.5 * (opened - self._earliest)
            back = [opened + one - (rough if rough > _EARLIER * one else 0.0) for one in PERIODS]
            ends = [opened + one for one in PERIODS]
            return min((at for at in back + ends if low <= at <= high), default=high)
        for period in reversed(PERIODS):
            if low <= opened + period <= high:
                return opened + period
        for period in reversed(PERIODS):
            at = ceil((low + self._wall) / period) * period - self._wall
            if at <= high:
                return at
        return begin + gap

    def _expected(self, now: float, opened: float, period: float) -> float:
        """When to send the next request, if the period is known."""
        end = opened + period
        half = 0.5 * (self._least + period) + opened
        if now < half and self._least < (1 - _EARLIER) * period:
            return half
        half = 0.5 * (end + self._earliest + self._surely(period))
        if now < half and end - half > _EARLIER * period:
            return half
        if now < end - 1e-6:
            return end
        late = now - end
        if late > 0.5 * period:
            self.period = None
        return now + max(0.25, 2 * self.lag, 0.02 * period, 0.5 * late)

    def _surely(self, period: float | None) -> float:
        """The period, if it is a round one, or its lower bound."""
        return period if period in PERIODS else self._least

    def reopened(self, number: int, sent: float, now: float) -> float:
        """Registers that a request was accepted. Returns the seconds since the opening before."""
        if self.hint_at is not None:
            if abs(sent - self.hint_at) < 0.05:
                self._trust += 1
                self._distrust = _DISTRUST
            elif sent < self.hint_at - _SAME_MOMENT:
                self._trust = 0
                self._distrusts_until = sent + self._distrust
                self._distrust *= 2
        self._hint = self.hint_at = None
        before = self.opened or 0.0
        seconds = max(1e-3, sent - before)
        found = (
            seconds >= _SHORTEST_WINDOW
            and self.window.is_usual
            and self.since - self._resumed < (_TRIED_IN if self.window.found else _USED_IN) * seconds
        )
        expected, self.period = self.period, None
        if found:
            self._bound(sent, before, seconds, expected)
        else:
            self._least, self._most = 0.0, inf
        self.window.opened(number, seconds, found=found, known=self.period is not None)
        self.opened, self._opened_twice, self._resumed = sent, True, now
        earliest = self._earliest + self._surely(self.period)
        self._earliest = self._low if expected is None else max(self._low, min(sent, earliest))
        return seconds

    def _bound(self, sent: float, before: float, seconds: float, expected: float | None) -> None:
        """Bounds the period by an opening. The first requests of all find no opening, and give no upper bound."""
        closed = self._low - self.since
        self._least = max(self._least, self._low - before if self._opened_twice else closed)
        self._most = min(self._most, sent - self._earliest) if self._opened_twice else inf
        if self._most <= self._least or self.window.shrank:
            self._least, self._most = closed, inf
        if self._opened_twice:
            # A request that was accepted by the end of the period says that it is no longer.
            most = seconds if expected is not None and seconds < expected + 0.01 else self._most
            possible = [float(one) for one in PERIODS if self._least < one <= most + 0.05]
            self.period = min(possible, key=lambda one: abs(one - seconds), default=seconds)
