"""How the simulator behaves: which requests fail, how long replies take, and how many requests it accepts.

All decisions are pure functions of (seed, token, number of the request) or of the time that is passed in.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final, Literal, Protocol

from attrs import define, field, frozen

from .data import uniform
from .faults import KINDS, Fault, faults, kinds_that_clear


class Plan(Protocol):
    """Chooses the faults. It must be a pure function of its arguments, so that a run can be repeated."""

    def for_request(self, token: str, number: int, /) -> Fault | None:
        """The fault for the `number`-th request (from 1) of a token; None for a normal answer."""
        ...


# Without `hang`, which needs a client with short timeouts.
_DEFAULT_KINDS: Final = faults(
    kind for kind in kinds_that_clear("transient", "throttled", "malformed", "broken", "none") if kind != "hang"
)


@frozen(kw_only=True)
class Faults:
    """A share of all *requests* fails, independently of each other; one token may fail several times in a row.

    Attributes:
        share: share of the requests, 0 to 1.
        kinds: faults or names in `KINDS`, with equal chances; default: all that a retry clears.
        seed: another seed selects other requests.
    """

    share: float
    kinds: tuple[Fault, ...] = field(default=_DEFAULT_KINDS, converter=faults)
    seed: int = 0

    def for_request(self, token: str, number: int, /) -> Fault | None:
        if uniform(self.seed, "fails", token, number) >= self.share:
            return None
        return _pick(self.kinds, self.seed, "kind", token, number)

    @staticmethod
    def demo(share: float = 0.03, seed: int = 0, unfetchable: float = 0.002) -> DemoFaults:
        """Faults of every kind. Retries clear all of them, except for the share `unfetchable` of the tokens."""
        return DemoFaults(share=share, seed=seed, unfetchable=unfetchable)


@frozen
class TokenPlan:
    """The planned outcome of a token.

    Attributes:
        fetchable: whether it can be fetched. If not, its last fault answers all further requests.
        faults: the answers to its first requests.
    """

    fetchable: bool
    faults: tuple[Fault, ...] = ()


_NO_FAULT: Final = TokenPlan(True)

# `hang` ends by itself, because the bulk preset waits 230 s for an attempt.
_TRANSIENT: Final = tuple(
    KINDS[kind].evolve(hang_for=0.5) if kind == "hang" else KINDS[kind] for kind in kinds_that_clear("transient")
)

_THROTTLED: Final = faults(kinds_that_clear("throttled"))

_ONCE: Final = faults(kinds_that_clear("malformed", "broken", "none"))

_FINAL: Final = faults(kinds_that_clear("final"))


@frozen(kw_only=True)
class DemoFaults:
    """A share of all *tokens* gets faults, and the outcome of each token is known in advance (`plan`).

    A transient fault comes at most twice in a row, any other once, so three attempts clear each. One fault in twenty
    throttles, which pauses the whole client for a second.

    Attributes:
        share: share of the tokens, 0 to 1.
        seed: another seed selects other tokens.
        unfetchable: share of the tokens that are always refused (400 `{}`, 401 SESSION_NONEXISTENT, pending).
    """

    share: float = 0.03
    seed: int = 0
    unfetchable: float = 0.002

    def plan(self, token: str) -> TokenPlan:
        """The planned outcome of a token. It is pure, so a test can compute which tokens must arrive."""
        chance = uniform(self.seed, "fate", token)
        if chance < self.unfetchable:
            return TokenPlan(False, (_pick(_FINAL, self.seed, "final", token),))
        if chance >= self.unfetchable + self.share:
            return _NO_FAULT
        family = uniform(self.seed, "family", token)
        if family < 0.05:
            return TokenPlan(True, (_pick(_THROTTLED, self.seed, "kind", token),))
        if family < 0.25:
            return TokenPlan(True, (_pick(_ONCE, self.seed, "kind", token),))
        first = _pick(_TRANSIENT, self.seed, "kind", token)
        if family < 0.75:
            return TokenPlan(True, (first,))
        return TokenPlan(True, (first, _pick(_TRANSIENT, self.seed, "second kind", token)))

    def for_request(self, token: str, number: int, /) -> Fault | None:
        plan = self.plan(token)
        if number <= len(plan.faults):
            return plan.faults[number - 1]
        return None if plan.fetchable else plan.faults[-1]


def _pick(kinds: tuple[Fault, ...], *parts: object) -> Fault:
    return kinds[int(uniform(*parts) * len(kinds))]


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
