"""When to ask an instance again that accepts nothing: the schedule of single requests after a run of refusals.

Nothing says when a limit opens again, so the gaps between two requests grow with the time that has passed: half of it, which
costs about 13 requests a minute, 20 an hour. Limits in use are per second, minute, hour or day, so a request is moved to the
nearest round moment: a round time after the window before opened, or a round time of the clock. If a limit has opened twice,
the time between is its period, and only its end is asked for; if that time is not round, a request half way to the last
refusal looks for an earlier opening.

A hint (`Retry-After`, `RateLimit-Reset`) is not believed at once. Some servers send a constant, and some a time that is far
too long. Two hints that were given some time apart and name the same moment are consistent. Until a consistent hint has been
right once, requests are also sent before it, at doubling times. After a hint that was too long, announced limits are ignored.

Pure: time is an argument.
"""

from __future__ import annotations

from math import ceil
from typing import Final

PERIODS: Final = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400)
"""Round times in seconds."""

_FIRST_GAP = 0.3  # seconds
_SAME_MOMENT = 1.1  # seconds: hints are whole seconds
_ROUND = 0.02  # a measured period within this share of a round one is that one


class Reopening:
    """The schedule.

    Attributes:
        opened: number of the request that found the limit open last, and when it was sent; 0 before the first.
        since: when the limit was used up.
        period: seconds between two openings; None while unknown.
        low: seconds after the last opening at which a request was still refused.
        hint_at: the moment that consistent hints name; None without one.
        lies: hints that were too long.
        lag: seconds to a refusal, smoothed.
    """

    def __init__(self, longest: float) -> None:
        self.opened = (0, 0.0)
        self.since = 0.0
        self.period: float | None = None
        self.low = 0.0
        self.hint_at: float | None = None
        self.lies = 0
        self.lag = 0.0
        self._longest = longest
        self._is_round = False
        self._trust = 0
        self._hint: tuple[float, float] | None = None

    def refused(self, now: float, sent: float) -> None:
        """Measures the time to a refusal."""
        lag = now - sent
        self.lag += lag if self.lag == 0 else 0.25 * (lag - self.lag)

    def hinted(self, now: float, retry_after: float) -> None:
        """Registers a hint of a refusal, in seconds."""
        moment = now + min(retry_after, self._longest)
        if self._hint is not None:
            at, before = self._hint
            if now - at < max(0.3, 0.1 * retry_after):
                return
            self.hint_at = min(moment, before) if abs(moment - before) <= _SAME_MOMENT else None
        self._hint = (now, moment)

    def trust(self, moment: float, now: float) -> None:
        """Takes a hint for consistent that cannot be compared with another one."""
        self.hint_at = min(moment, now + self._longest)

    def next_probe(self, now: float, wall: float) -> float:
        """When to send the next request.

        Args:
            wall: the wall clock less `now`.
        """
        passed = now - self.since
        gap = max(_FIRST_GAP, 2 * self.lag, 0.5 * passed)
        if self.hint_at is not None and self.hint_at > now:
            if self._trust > 0 or self.hint_at < now + gap:
                return self.hint_at
            return min(self.hint_at, now + max(0.1, passed))
        opened = self.opened[1]
        if self.period is not None:
            half = opened + 0.5 * (self.low + self.period)
            if now < half and not self._is_round and self.low < 0.95 * self.period:
                return half
            end = opened + self.period
            if now < end - 1e-6:
                return end
            late = now - end
            period = self.period
            if late > 0.5 * period:
                self.period = None
            return now + max(0.25, 2 * self.lag, 0.02 * period, 0.5 * late)
        low, high = now + 0.3 * gap, now + 1.6 * gap
        for period in reversed(PERIODS):
            if low <= opened + period <= high:
                return opened + period
        for period in reversed(PERIODS):
            at = ceil((low + wall) / period) * period - wall
            if at <= high:
                return at
        return now + gap

    def reopened(self, number: int, sent: float) -> float:
        """Registers that a request was accepted. Returns the seconds since the opening before."""
        if self.hint_at is not None:
            if abs(sent - self.hint_at) < 0.05:
                self._trust += 1
            elif sent < self.hint_at - _SAME_MOMENT:
                self._trust = 0
                self.lies += 1
        self._hint = self.hint_at = None
        cycle = max(1e-3, sent - self.opened[1])
        self.opened = (number, sent)
        self.period = None
        return cycle

    def learn(self, period: float) -> None:
        """The limit opens again after this time."""
        nearest = min(PERIODS, key=lambda one: abs(one - period))
        self._is_round = abs(nearest - period) < _ROUND * nearest
        self.period = float(nearest) if self._is_round else period
