"""The retry quota: how many retries all calls together may make.

Why: a retry costs nothing when failures are rare and independent, and is the worst that can be done when a server fails
because it is overloaded: with three attempts each, its load triples just then, and it may never recover (Bronson et
al., "Metastable Failures in Distributed Systems", HotOS 2021). A limit on attempts of one call does not help; a limit
on the retries of all calls does, since it bounds the extra load whatever the number of calls.

Two ways to bound it:

- a *token bucket* (AWS SDKs, standard retry mode): it starts full, retries take from it, successes put back. Healthy
  traffic never notices it; in an outage it empties after a few dozen retries, and then each call has one attempt;
- a *share of the traffic* (Finagle's `RetryBudget`, tower): each request allows a fifth of a retry for the next ten
  seconds, and some retries per second are always allowed.

Both are pure: time is an argument.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from ..config import Quota, ShareQuota, TokenBucketQuota
from ..verdict import Kind


class RetryQuota(Protocol):
    """What the retry asks."""

    def request(self, now: float, /) -> None:
        """A call begins."""
        ...

    def take(self, kind: Kind, now: float, /) -> int | None:
        """Pays for a retry after an attempt of this kind: what it cost, or None if there is not enough."""
        ...

    def succeeded(self, cost: int | None, /) -> None:
        """A call succeeded; `cost` is that of its last retry, None if it needed none."""
        ...

    def wait(self, now: float, /) -> float | None:
        """Seconds until there will be enough for a retry by time alone; None if time does not bring it."""
        ...

    def left(self, now: float, /) -> float:
        """How much there is."""
        ...


class TokenBucket:
    """The quota of AWS' standard retry mode."""

    def __init__(self, settings: TokenBucketQuota) -> None:
        self._settings = settings
        self._tokens = settings.capacity

    def request(self, now: float, /) -> None:
        pass

    def take(self, kind: Kind, now: float, /) -> int | None:
        settings = self._settings
        cost = settings.throttled_cost if kind is Kind.THROTTLED else settings.transient_cost
        if cost > self._tokens:
            return None
        self._tokens -= cost
        return cost

    def succeeded(self, cost: int | None, /) -> None:
        settings = self._settings
        self._tokens = min(settings.capacity, self._tokens + (settings.clean_success if cost is None else cost))

    def wait(self, now: float, /) -> float | None:
        return None

    def left(self, now: float, /) -> float:
        return self._tokens


_SLICES = 10


class Share:
    """A quota in proportion to the traffic of the last seconds, kept in ten slices of time."""

    def __init__(self, settings: ShareQuota) -> None:
        self._settings = settings
        self._slice = settings.window / _SLICES
        self._now = -1  # number of the current slice
        self._balances: deque[float] = deque([0.0], maxlen=_SLICES)  # of each slice: deposits less withdrawals
        self._reserve = settings.minimum * settings.window

    def request(self, now: float, /) -> None:
        self._turn(now)
        self._balances[-1] += self._settings.share

    def take(self, kind: Kind, now: float, /) -> int | None:
        if self.left(now) < 1.0 - 1e-9:
            return None
        self._balances[-1] -= 1.0
        return 1

    def succeeded(self, cost: int | None, /) -> None:
        pass

    def wait(self, now: float, /) -> float | None:
        """Until the next slice: then the oldest, with what was taken in it, is forgotten."""
        if self._reserve < 1.0:
            return None
        self._turn(now)
        return (self._now + 1) * self._slice - now + 1e-6  # rounding must not cost a turn

    def left(self, now: float, /) -> float:
        self._turn(now)
        return self._reserve + sum(self._balances)

    def _turn(self, now: float) -> None:
        number = int(now // self._slice)
        if number > self._now:
            self._balances.extend([0.0] * min(number - self._now, _SLICES))
            self._now = number


def make_quota(settings: Quota | None) -> RetryQuota | None:
    """The state that goes with the settings."""
    if settings is None:
        return None
    return TokenBucket(settings) if isinstance(settings, TokenBucketQuota) else Share(settings)
