"""Settings of what protects an instance in trouble, one frozen record each. `config.Retry` and `config.Limits` hold them.

The theory is beside the code that obeys them, in `flinks_async.middleware`; here are the numbers and their sources.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, Protocol

from attrs import field, frozen

from . import checks
from .errors import ConfigError


@frozen(kw_only=True)
class TokenBucketQuota:
    """Retries are paid from a bucket that successes fill.

    Source: the standard retry mode of the AWS SDKs (retry profile of 2026).

    Attributes:
        capacity: tokens in a full bucket; it starts full. 500.
        transient_cost: tokens of a retry after a failure. 14.
        throttled_cost: tokens of a retry after an answer that throttles. 5.
        clean_success: tokens put back by a call that succeeds at once. 1. A call that succeeds after retries puts back
            what its last retry has cost.
    """

    capacity: int = field(default=500, validator=checks.whole)
    transient_cost: int = field(default=14, validator=checks.count)
    throttled_cost: int = field(default=5, validator=checks.count)
    clean_success: int = field(default=1, validator=checks.whole)


@frozen(kw_only=True)
class ShareQuota:
    """Retries may be a share of the traffic, and always a few per second.

    Source: Finagle's `RetryBudget` (20 %, at least 10 per second, remembered for 10 s), taken over by tower.

    Attributes:
        share: retries for each request of the recent past. 0.2.
        minimum: retries per second that are always allowed. 10.
        window: seconds of traffic that count. 10.
    """

    share: float = field(default=0.2, validator=checks.share)
    minimum: float = field(default=10.0, validator=checks.not_negative)
    window: float = field(default=10.0, validator=checks.positive)


Quota = TokenBucketQuota | ShareQuota


@frozen(kw_only=True)
class Adaptive:
    """Concurrency that finds its own level between two bounds.

    Source: Netflix' concurrency-limits: the bounds, and 10 % less when it takes too long, of its AIMD limit; the
    tolerance of its gradient limits. 30 % less on a loss is CUBIC's factor (RFC 9438).

    Attributes:
        initial: requests at once, to begin with. 20.
        minimum: at least. 1.
        maximum: at most. 200; 100,000 is the most that can be set.
        tolerance: the time to first byte may be so many times that of an idle instance. 2.0.
        decrease: the limit is multiplied by this when it takes longer, or by less when it takes much longer. 0.9.
        loss: the limit is multiplied by this after a throttled attempt, and when more than a tenth of them fail. 0.7.
        remember: seconds for which the time of an idle instance is believed; then it is measured again. 600.
    """

    initial: int = field(default=20, validator=checks.at_once)
    minimum: int = field(default=1, validator=checks.at_once)
    maximum: int = field(default=200, validator=checks.at_once)
    tolerance: float = field(default=2.0, validator=checks.number)
    decrease: float = field(default=0.9, validator=checks.share)
    loss: float = field(default=0.7, validator=checks.share)
    remember: float = field(default=600.0, validator=checks.positive)

    def __attrs_post_init__(self) -> None:
        if not self.minimum <= self.initial <= self.maximum:
            raise ConfigError(
                "Adaptive.initial must lie between minimum and maximum, not "
                f"{self.minimum} <= {self.initial} <= {self.maximum}"
            )
        if not self.tolerance > 1:
            raise ConfigError(f"Adaptive.tolerance must be greater than 1, not {self.tolerance!r}")


BREAKER_REMEMBERS: Final = 10_000
"""So many outcomes at most: each attempt moves them all on by one."""


@frozen(kw_only=True)
class Breaker:
    """When an instance counts as down, and how often it is asked whether it is up again.

    Source: Nygard, "Release It!" (2nd edition, chapter 5); window by count, volume and ratio as in resilience4j.

    Attributes:
        window: the latest outcomes that count. 50; at most 10,000, since each of them is remembered.
        volume: outcomes needed before the ratio means anything. 20.
        ratio: of failures among them that opens it. 0.5.
        in_a_row: failures without a success between that open it whatever came before. 10; at most 10,000.
        probe_interval: seconds to the first probe; doubles with each that fails. 1.
        probe_cap: seconds, the longest time between probes. 10.
        successes: probes in a row that close it. 2.
    """

    window: int = field(default=50, validator=checks.whole_number(1, BREAKER_REMEMBERS))
    volume: int = field(default=20, validator=checks.count)
    ratio: float = field(default=0.5, validator=checks.share)
    in_a_row: int = field(default=10, validator=checks.whole_number(1, BREAKER_REMEMBERS))
    probe_interval: float = field(default=1.0, validator=checks.positive)
    probe_cap: float = field(default=10.0, validator=checks.positive)
    successes: int = field(default=2, validator=checks.count)

    def __attrs_post_init__(self) -> None:
        if self.volume > self.window:
            raise ConfigError(f"Breaker.volume ({self.volume}) must not be greater than Breaker.window ({self.window})")


@frozen(kw_only=True)
class Pause:
    """How long all requests wait after an answer that throttles, and how they come back.

    Attributes:
        base: seconds, where the server does not say how long; doubles with each pause in a row. 1, as AWS' throttled
            backoff.
        cap: seconds, the longest of these. 20.
        longest: seconds, the longest pause that a server can ask for. 60; bulk: an hour.
        ramp: seconds in which the rate then rises from a tenth of what it was to the whole; at most four times the
            pause. 10.
        low: remaining requests in a `RateLimit-Remaining` header from which the rest of the window is spread out, as
            a share of the limit. 0.1.
    """

    base: float = field(default=1.0, validator=checks.positive)
    cap: float = field(default=20.0, validator=checks.positive)
    longest: float = field(default=60.0, validator=checks.positive)
    ramp: float = field(default=10.0, validator=checks.not_negative)
    low: float = field(default=0.1, validator=checks.share)


class RateLimiter(Protocol):
    """Says when the next request may go. `flinks_async.middleware.rate.GCRA` is the one for a single process."""

    def reserve(self, now: float, /) -> float | Awaitable[float]:
        """Takes the next turn: seconds from `now` until it comes.

        It may be async, for one that asks a store which several processes share. What it raises ends the call, so it
        should fall back to a local limit when the store fails. It is called once a request, one at a time.
        """
        ...


HEDGE_REMEMBERS: Final = 500
"""The times of so many attempts are remembered."""


@frozen(kw_only=True)
class Hedge:
    """A second attempt for one that takes unusually long; the first good answer wins.

    Source: Dean and Barroso, "The Tail at Scale", CACM 2013.

    Attributes:
        percentile: of recent attempts' times, after which the second is sent. 0.95.
        minimum: seconds, never sooner. 0.05.
        samples: attempts that must be known first. 20; at most 500, since no more are remembered.
    """

    percentile: float = field(default=0.95, validator=checks.share)
    minimum: float = field(default=0.05, validator=checks.not_negative)
    samples: int = field(default=20, validator=checks.whole_number(1, HEDGE_REMEMBERS))


@frozen(kw_only=True)
class PollPending:
    """Asks again after a "not yet" (202, OPERATION_PENDING) until there is an answer.

    Source: the rhythm that Flinks documents for a sibling endpoint; for this one nothing is documented.

    Attributes:
        interval: seconds between questions; more if the server asks for more (`Retry-After`). 10.
        bound: seconds after the first "not yet" when it gives up. 1800.
    """

    interval: float = field(default=10.0, validator=checks.positive)
    bound: float = field(default=1800.0, validator=checks.positive)
