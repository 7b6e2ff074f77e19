"""Settings that protect an instance and tell when to repeat a request: quotas of retries, the adaptive limit, the breaker,
pauses, rate limiters, hedges, polls. `flinks_async.config` has the records that hold them.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, Protocol

from attrs import Factory, field, frozen

from . import checks
from .errors import ConfigError
from .schema import Record


@frozen(kw_only=True, eq=False, repr=False)
class TokenBucketQuota(Record):
    """Retries take tokens from a bucket, and successes put tokens back.

    Source: the standard retry mode of the AWS SDKs (retry profile of 2026).

    Attributes:
        capacity: tokens in a full bucket; it starts full. 500.
        transient_cost: tokens for a retry after a failure. 14.
        throttled_cost: tokens for a retry after a throttled attempt. 5.
        clean_success: tokens that a call puts back if it succeeds at once. 1. A call that succeeds after retries puts
            back the cost of its last retry.
    """

    capacity: int = field(default=500, validator=checks.whole)
    transient_cost: int = field(default=14, validator=checks.count)
    throttled_cost: int = field(default=5, validator=checks.count)
    clean_success: int = field(default=1, validator=checks.whole)


@frozen(kw_only=True, eq=False, repr=False)
class ShareQuota(Record):
    """Retries may be a share of the recent requests, and always a few per second.

    Source: `RetryBudget` of Finagle (20 %, at least 10 per second, over 10 s); tower has the same.

    Attributes:
        share: allowed retries per recent request. 0.2.
        minimum: retries per second that are always allowed. 10.
        window: seconds that a request counts as recent. 10.
    """

    share: float = field(default=0.2, validator=checks.share)
    minimum: float = field(default=10.0, validator=checks.not_negative)
    window: float = field(default=10.0, validator=checks.positive)


Quota = TokenBucketQuota | ShareQuota
"""A limit of retries."""


def _minimum(adaptive: Adaptive) -> int:
    return min(4, adaptive.initial) if isinstance(adaptive.initial, int) else 4


@frozen(kw_only=True, eq=False, repr=False)
class Adaptive(Record):
    """A limit of concurrent requests that adapts between two bounds.

    Source: Netflix' concurrency-limits: `maximum` and `decrease` from its AIMD limit, `tolerance` from its gradient limits.
    `loss` is the factor of CUBIC (RFC 9438).

    Attributes:
        initial: requests that may be sent at once before anything is known; 20. bulk: 4.
        doubling: seconds in which the number of requests may double before the first refusal or slow answer. 0.08, so that
            200 calls are sent within 0.3 s; bulk: 0.5, so that a limit is passed by few requests.
        minimum: the lowest limit, unless the instance refuses so many. 4, but at most `initial`: with a limit of 1, a
            token that takes minutes would hold up all others.
        maximum: the highest limit. 200; at most 100,000.
        tolerance: the time to first byte may be this many times that of an idle instance. 2.0.
        decrease: the limit is multiplied by this when it takes longer, and by less when it takes much longer. 0.9.
        loss: the limit is multiplied by this when more than 10 % of attempts fail. 0.7.
        remember: seconds until the time of an idle instance is measured again. 600.
    """

    initial: int = field(default=20, validator=checks.at_once)
    doubling: float = field(default=0.08, validator=checks.positive)
    minimum: int = field(default=Factory(_minimum, takes_self=True), validator=checks.at_once)
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
"""The most outcomes that a breaker remembers, because each attempt shifts them all by one."""


@frozen(kw_only=True, eq=False, repr=False)
class Breaker(Record):
    """When an instance counts as down, and how often it is probed.

    Source: Nygard, "Release It!" (2nd edition, chapter 5); window by count, volume and ratio as in resilience4j.

    Attributes:
        window: the number of latest outcomes that count. 50; at most 10,000.
        volume: the breaker ignores the ratio until it has this many outcomes. 20.
        ratio: this share of failures opens the breaker. 0.5.
        in_a_row: this many consecutive failures open the breaker, even if the ratio is lower. 10; at most 10,000.
        probe_interval: seconds to the first probe; doubles with each failed probe. 1.
        probe_cap: the longest time between probes in seconds. 10.
        successes: this many consecutive successful probes close the breaker. 2.
    """

    window: int = field(default=50, validator=checks.validator(checks.integer, 1, BREAKER_REMEMBERS))
    volume: int = field(default=20, validator=checks.count)
    ratio: float = field(default=0.5, validator=checks.share)
    in_a_row: int = field(default=10, validator=checks.validator(checks.integer, 1, BREAKER_REMEMBERS))
    probe_interval: float = field(default=1.0, validator=checks.positive)
    probe_cap: float = field(default=10.0, validator=checks.positive)
    successes: int = field(default=2, validator=checks.count)

    def __attrs_post_init__(self) -> None:
        if self.volume > self.window:
            raise ConfigError(f"Breaker.volume ({self.volume}) must not be greater than Breaker.window ({self.window})")


@frozen(kw_only=True, eq=False, repr=False)
class Pause(Record):
    """The pause that a server can ask for.

    Attributes:
        longest: the longest pause that a server can ask for in seconds. 60; bulk: 3600.
    """

    longest: float = field(default=60.0, validator=checks.positive)


class RateLimiter(Protocol):
    """Decides when the next request may be sent. `Limits.rate` uses one for a single process."""

    def reserve(self, now: float, /) -> float | Awaitable[float]:
        """Reserves the next slot and returns the seconds from `now` until it comes.

        It may be async, to ask a store that several processes share. An exception ends the call, so fall back to a
        local limit when the store fails. It is called once per request, never concurrently.
        """
        ...


HEDGE_REMEMBERS: Final = 500
"""The number of attempts whose times are remembered."""


@frozen(kw_only=True, eq=False, repr=False)
class Hedge(Record):
    """Sends a second attempt when one takes unusually long; the first success wins.

    Source: Dean and Barroso, "The Tail at Scale", CACM 2013.

    Attributes:
        percentile: the second attempt is sent after this percentile of the recent attempts' times. 0.95.
        minimum: the shortest delay of the second attempt in seconds. 0.05.
        samples: attempts that must have been measured first. 20; at most 500, because no more are remembered.
    """

    percentile: float = field(default=0.95, validator=checks.share)
    minimum: float = field(default=0.05, validator=checks.not_negative)
    samples: int = field(default=20, validator=checks.validator(checks.integer, 1, HEDGE_REMEMBERS))


@frozen(kw_only=True, eq=False, repr=False)
class PollPending(Record):
    """Polls while the data is not ready (202, OPERATION_PENDING).

    Source: the interval that Flinks documents for a sibling endpoint; for this one nothing is documented.

    Attributes:
        interval: seconds between requests; longer if the server asks for it (`Retry-After`). 10.
        bound: it gives up this many seconds after the first pending response. 1800.
    """

    interval: float = field(default=10.0, validator=checks.positive)
    bound: float = field(default=1800.0, validator=checks.positive)
