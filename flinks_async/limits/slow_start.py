"""The start: the pace doubles until the first refusals that mean something.

Pure: time is an argument.
"""

from __future__ import annotations

from math import inf, log

LN2 = log(2.0)

# Overshoot is 3.5 % of what was sent if the pace doubles in 20 times the time to an answer.
_ROUNDS, _QUICKEST_DOUBLING, _SLOWEST_DOUBLING = 20.0, 0.005, 1.0
_SHORT = 32  # a start that ends before so many requests may have met another client


class SlowStart:
    """The pace before the first signal: some requests at once, and twice as many after each `doubling`, also without answers.

    Time without a refusal is information too. Overshoot is the time to a refusal times ln 2 / `doubling`, as a share of what was
    sent. So the doubling follows the time of the first answers: a limit is passed by few requests, whether answers are quick or
    slow.

    Attributes:
        most: the pace grows no further.
        sent: requests of this start.
    """

    def __init__(self, initial: int, doubling: float) -> None:
        self._initial = initial
        self._slowest = self._doubling = doubling
        self.most = inf
        self.sent = 0
        self._scale = 1.0  # by which `sent` was multiplied since the first request
        self._usual = doubling / _ROUNDS  # seconds to an answer, smoothed, because some errors are quick
        self._even = False  # no requests at once
        self._at_once: float | None = None  # requests that were accepted at once, if not all were
        self._total = 0  # requests until the first signal
        self._doubled_in = doubling  # seconds, at its end
        self.doubt = 1.0  # factor of `burst_of`, raised when that was too small

    @property
    def rate(self) -> float:
        return min(self.most, LN2 / self._doubling * max(self.sent, self._initial))

    def pace_at(self, number: int) -> float:
        """The pace of this request, by its number."""
        return min(self.rate, LN2 / self._doubling * self._scale * max(number, self._initial))

    def next_at(self, now: float, before: float) -> float:
        """When the request after this one may be sent, if this one was due at `before`."""
        self.sent += 1
        gap = 1.0 / self.rate
        return max(before, now if self._even else now - (self._initial - 1) * gap) + gap

    def answered(self, seconds: float) -> None:
        """An answer took this time."""
        if self.most < inf:
            return
        self._usual += 0.25 * (seconds - self._usual)
        if 0.75 * seconds > self._doubling:
            doubling = min(0.75 * seconds, max(self._slowest, _SLOWEST_DOUBLING))
            self.sent = int(self.sent * doubling / self._doubling)
            self._scale *= doubling / self._doubling
            self._doubling = doubling
        else:
            self._doubling = min(self._doubling, max(_QUICKEST_DOUBLING, _ROUNDS * self._usual))

    def refused(self, number: int) -> None:
        """A refusal of one of the first requests tells how many are accepted at once."""
        if number <= self._initial:
            self._at_once = min(number - 1.0, inf if self._at_once is None else self._at_once)

    def in_first_burst(self, number: int) -> bool:
        return number <= self._initial

    def smooth(self) -> None:
        """Goes on one by one, because only the first requests at once were too many."""
        self._even = True

    def again(self, rate: float, most: float = inf, doubling: float = 0.0, *, even: bool = False) -> None:
        """Starts again from a rate."""
        self._doubling = max(self._slowest, doubling)
        self.sent = max(2, int(rate * self._doubling / LN2))
        self.most = most
        self._even = self._even or even

    def ended(self, requests: int) -> None:
        """The first signal came after this many requests."""
        if not self._total:
            self._total, self._doubled_in = max(1, requests), self._doubling

    @property
    def top(self) -> float:
        """The pace at the first signal; 0 before."""
        return LN2 / self._doubled_in * self._total

    @property
    def short(self) -> bool:
        """Few requests were accepted before the first signal. Perhaps other clients use the limit."""
        return self._total < _SHORT

    @property
    def strict(self) -> bool:
        """The instance accepts only one request at once."""
        return self._at_once is not None and self._at_once < 2

    def burst_of(self, limit: float) -> float:
        """Requests that an instance with this limit seems to take at once."""
        if self._at_once is not None:
            return max(1.0, self._at_once)
        if not self._total:
            return 3.0 * self.doubt
        at, count = limit * self._doubled_in / LN2, self._total
        base = max(at, float(self._initial))
        if count <= base:
            return self.doubt
        return self.doubt * max(1.0, count - (at if at > self._initial else 0.0) - at * log(count / base))
