"""The retry quota: how many retries all calls together may make.

A retry is cheap when failures are rare and independent. It is the worst reaction when a server fails because it is
overloaded: with three attempts per call its load triples at that moment, and it may never recover (Bronson et al.,
"Metastable Failures in Distributed Systems", HotOS 2021). A limit on the attempts of one call does not prevent this; a
limit on the retries of all calls does, because it bounds the extra load for any number of calls.

There are two usual ways to bound it:

- A *token bucket* (AWS SDKs, standard retry mode) starts full; retries take from it and successes put back. Healthy
  traffic never notices it. In an outage it is empty after a few dozen retries, and then each call has one attempt.
- A *share of the traffic* (Finagle's `RetryBudget`, tower): each request allows a fifth of a retry for the next ten
  seconds, and a few retries per second are always allowed.

Both are pure: time is an argument.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from ..config import Quota, ShareQuota, TokenBucketQuota
from ..verdict import Kind


class RetryQuota(Protocol):
    """The interface that `RetryMiddleware` uses."""

    def request(self, now: float, /) -> None:
        """Registers that a call begins."""
        ...

    def take(self, kind: Kind, now: float, /) -> int | None:
        """Pays for a retry after an attempt of this kind. Returns the cost, or None if the quota is used up."""
        ...

    def succeeded(self, cost: int | None, /) -> None:
        """Registers that a call succeeded. `cost` is what its last retry cost; None without a retry."""
        ...

    def wait(self, now: float, /) -> float | None:
        """Seconds until time alone has restored enough for a retry; None if it never does."""
        ...

    def left(self, now: float, /) -> float:
        """Units left."""
        ...


class TokenBucket:
    """The quota of AWS' standard retry mode: a token bucket without a refill by time."""

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
        if self._tokens < settings.capacity:
            self._tokens = min(settings.capacity, self._tokens + (settings.clean_success if cost is None else cost))

    def wait(self, now: float, /) -> float | None:
        return None

    def left(self, now: float, /) -> float:
        return self._tokens


_SLICES = 10


class TrafficShare:
    """A share of the requests of the last seconds, counted in ten slices of time."""

    def __init__(self, settings: ShareQuota) -> None:
        self._settings = settings
        self._slice = settings.window / _SLICES
        self._index = -1  # index of the current slice
        self._balances: deque[float] = deque([0.0], maxlen=_SLICES)  # per slice: deposits less withdrawals
        self._reserve = settings.minimum * settings.window

    def request(self, now: float, /) -> None:
        self._advance(now)
        self._balances[-1] += self._settings.share

    def take(self, kind: Kind, now: float, /) -> int | None:
        if self.left(now) < 1.0 - 1e-9:
            return None
        self._balances[-1] -= 1.0
        return 1

    def succeeded(self, cost: int | None, /) -> None:
        pass

    def wait(self, now: float, /) -> float | None:
        """Seconds until the next slice, when the oldest slice and its withdrawals are dropped."""
        if self._reserve < 1.0:
            return None
        self._advance(now)
        return (self._index + 1) * self._slice - now + 1e-6  # a margin for rounding

    def left(self, now: float, /) -> float:
        self._advance(now)
        return self._reserve + sum(self._balances)

    def _advance(self, now: float) -> None:
        index = int(now // self._slice)
        if index > self._index:
            self._balances.extend([0.0] * min(index - self._index, _SLICES))
            self._index = index


def make_quota(settings: Quota | None) -> RetryQuota | None:
    """The state for these settings; None for no quota."""
    if settings is None:
        return None
    return TokenBucket(settings) if isinstance(settings, TokenBucketQuota) else TrafficShare(settings)
