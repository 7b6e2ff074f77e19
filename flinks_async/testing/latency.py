"""Latency and rate limit of the simulator, both without a clock of their own."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final, Literal, Protocol

from attrs import define, field, frozen

from .faults import KINDS, Fault

Distribution = Literal["fixed", "uniform", "lognormal"]

_NORMAL: Final = NormalDist()


class Throttle(Protocol):
    """Accepts a request (None), or returns the fault that answers it."""

    def take(self, now: float, /) -> Fault | None: ...


@frozen
class Latency:
    """The time before a reply, in seconds. Use one of the three class methods.

    Attributes:
        distribution: name of the distribution.
        a: the fixed time, the minimum, or the median.
        b: the maximum, or sigma of the logarithm.
    """

    distribution: Distribution
    a: float
    b: float = 0.0

    @classmethod
    def fixed(cls, seconds: float) -> Latency:
        return cls("fixed", seconds)

    @classmethod
    def uniform(cls, low: float, high: float) -> Latency:
        return cls("uniform", low, high)

    @classmethod
    def lognormal(cls, median: float, sigma: float = 0.5) -> Latency:
        """Like many real services: most answers near the median, and a long tail. With `sigma` 0.5, p99 is 3.2 medians."""
        return cls("lognormal", median, sigma)

    def seconds(self, chance: float) -> float:
        """The latency for a random number `chance` in [0, 1)."""
        if self.distribution == "fixed":
            return self.a
        if self.distribution == "uniform":
            return self.a + (self.b - self.a) * chance
        return self.a * math.exp(self.b * _NORMAL.inv_cdf(min(max(chance, 1e-9), 1 - 1e-9)))


@define
class RateLimit:
    """A token bucket: `burst` requests at once, refilled at `rate` per second.

    Attributes:
        rate: requests per second.
        burst: size of the bucket.
        answer: reply to a request above the limit; default 401 TOO_MANY_REQUESTS, as documented.
            `RateLimit.status_429()` replies with 429 instead.
    """

    rate: float
    burst: float = 1.0
    answer: Fault = KINDS["too_many_requests"]
    _level: float = field(init=False)
    _at: float | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._level = self.burst

    @classmethod
    def status_429(cls, rate: float, burst: float = 1.0, retry_after: float | None = 1) -> RateLimit:
        """A limit that replies with 429 and `Retry-After` in seconds (None: no such header)."""
        return cls(rate, burst, KINDS["http_429"].evolve(retry_after=retry_after))

    def take(self, now: float, /) -> Fault | None:
        """Counts one request at `now` (monotonic seconds)."""
        if self._at is not None:
            self._level = min(self.burst, self._level + (now - self._at) * self.rate)
        self._at = now
        if self._level < 1.0:
            return self.answer
        self._level -= 1.0
        return None
