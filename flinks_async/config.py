"""Settings of what protects an instance in trouble, one frozen record each. `config.Retry` and `config.Limits` hold them.

The theory is beside the code that obeys them, in `flinks_async.middleware`; here are the numbers and their sources.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Iterable, Mapping
from functools import wraps
from types import NoneType
from typing import Any, Final, Literal, Protocol, TypedDict, TypeVar, get_args

from attrs import Attribute, evolve, field, fields, frozen
from attrs.validators import optional

from . import checks
from .errors import ConfigError
from .secret import Secret, wrap_secret

# [flinks_async.config] Settings: a few frozen records, and the two presets that fill them.
#
# `service()` suits a call that somebody waits for: it fails fast. `bulk()` suits a job over many tokens: it waits.
# Arguments win over the environment, the environment over the preset.


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


AuthScheme = Literal["flinks-auth-key", "flinks-auth-key-raw", "bearer"]

C = TypeVar("C")

AUTH_SCHEMES: Final[tuple[AuthScheme, ...]] = get_args(AuthScheme)

MIB: Final = 1024 * 1024


def _statuses(values: Iterable[int]) -> frozenset[int]:
    if isinstance(values, Iterable):
        given = list(values)
        if all(type(value) is int for value in given):
            return frozenset(given)
    raise ConfigError("Retry.throttle_statuses must be whole numbers, such as {403, 429}")


@frozen(kw_only=True)
class Retry:
    """When and how often a failed attempt is made again.

    The wait before retry n (1, 2, ...) is full jitter: a random time between 0 and `min(cap, base * 2**(n-1))`,
    with `throttled_base` instead of `base` after an answer that throttles.
    Source: AWS Architecture Blog, "Exponential Backoff And Jitter"; base and cap are those of the AWS SDKs'
    standard retry mode of 2026.

    Attributes:
        attempts: attempts in all, the first included. 1 switches retrying off.
        base: seconds.
        throttled_base: seconds, after a throttled attempt.
        cap: seconds, the longest wait of the backoff.
        retry_after_cap: seconds, the longest `Retry-After` that is waited for; one that asks for more ends the call
            with an error whose `retry_after` says so (unless `Limits.waits`: then everybody waits).
        throttle_statuses: statuses that mean "slow down", whatever the body says.
        quota: what retries are paid from, shared by all calls for one (instance, secret): a `TokenBucketQuota`, a
            `ShareQuota`, or None for no such bound.
    """

    attempts: int = field(default=3, validator=checks.count)
    base: float = field(default=0.05, validator=checks.not_negative)
    throttled_base: float = field(default=1.0, validator=checks.not_negative)
    cap: float = field(default=20.0, validator=checks.not_negative)
    retry_after_cap: float = field(default=60.0, validator=checks.not_negative)
    throttle_statuses: frozenset[int] = field(default=frozenset({429}), converter=_statuses)
    quota: Quota | None = field(
        default=TokenBucketQuota(), validator=checks.one_of(TokenBucketQuota, ShareQuota, NoneType)
    )


@frozen(kw_only=True)
class Timeouts:
    """Seconds; None means no limit.

    Attributes:
        connect: for a new connection: DNS, TCP and TLS together.
        attempt: for one attempt, from the moment it has a place to the last byte of its answer.
        deadline: for the whole call: queue, attempts and waits. `partner_access(timeout=...)` replaces it.
    """

    connect: float | None = field(default=5.0, validator=checks.positive_or_none)
    attempt: float | None = field(default=30.0, validator=checks.positive_or_none)
    deadline: float | None = field(default=60.0, validator=checks.positive_or_none)


def _concurrency(instance: object, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, Adaptive):
        checks.at_once(instance, attribute, value)


@frozen(kw_only=True)
class Limits:
    """What this client takes at most, and what it does while an instance is in trouble.

    The first six belong to one (instance, secret) and one event loop: one instance in trouble never slows another.

    Attributes:
        concurrency: requests on the wire at the same time: a number up to 100,000, or `Adaptive(...)`.
        rate: requests per second, evenly; None for no limit.
        burst: requests that may go at once before `rate` holds; None for a tenth of a second's worth.
        rate_limiter: a limiter of your own instead of `rate`, for example one shared by processes.
        pause: after an answer that throttles.
        breaker: when the instance counts as down; None for never.
        waits: what a call does while the instance is down, or asks for a long pause. False: it fails at once, with a
            `CircuitOpenError` or the answer. True: it waits, and attempts that fail meanwhile do not count.
        max_body: bytes of one body, inflated.
    """

    concurrency: int | Adaptive = field(default=Adaptive(), validator=_concurrency)
    rate: float | None = field(default=None, validator=checks.positive_or_none)
    burst: int | None = field(default=None, validator=optional(checks.count))
    rate_limiter: RateLimiter | None = field(default=None, eq=id)
    pause: Pause = field(default=Pause(), validator=checks.one_of(Pause))
    breaker: Breaker | None = field(default=Breaker(), validator=checks.one_of(Breaker, NoneType))
    waits: bool = field(default=False, validator=checks.one_of(bool))
    max_body: int = field(default=64 * MIB, validator=checks.count)

    def __attrs_post_init__(self) -> None:
        if self.rate is not None and self.rate_limiter is not None:
            raise ConfigError("Limits takes either rate or rate_limiter, not both")
        if self.burst is not None and self.rate is None:
            raise ConfigError("Limits.burst needs Limits.rate")
        if self.rate_limiter is not None and not callable(getattr(self.rate_limiter, "reserve", None)):
            raise ConfigError(f"Limits.rate_limiter has no method reserve(now): {type(self.rate_limiter).__name__}")

    @property
    def most_at_once(self) -> int:
        """The number that `concurrency` never passes."""
        return self.concurrency.maximum if isinstance(self.concurrency, Adaptive) else self.concurrency


def _secret_or_none(value: str | Secret | None) -> Secret | None:
    value = wrap_secret(value)
    if value is not None and not isinstance(value, Secret):
        raise ConfigError("Connection.proxy must be a str or a Secret")
    return value


_path_or_none = checks.one_of(str, os.PathLike, NoneType)


def _wraps_proxy(cls: type[C]) -> type[C]:
    """The frame of attrs' own `__init__` holds its arguments as they came when one of them is wrong."""
    init: Any = cls.__init__

    @wraps(init)
    def __init__(self: C, **options: Any) -> None:
        if "proxy" in options:
            options["proxy"] = wrap_secret(options["proxy"])
        init(self, **options)

    cls.__init__ = __init__  # type: ignore[assignment]
    return cls


@_wraps_proxy
@frozen(kw_only=True)
class Connection:
    """How connections are made. It belongs to the pool, so derived clients share it.

    Attributes:
        keepalive: seconds that an idle connection is kept.
        dns_cache: seconds that an address is remembered; 0 asks each time.
        ca_file: PEM file with the authorities to trust instead of the system's.
        client_cert: PEM file with a client certificate (and its key, if `client_key` is None).
        client_key: PEM file with the key of the client certificate.
        ssl_context: a context of your own; then the three files above must be None.
        proxy: URL of an HTTP proxy, which may hold a user and password; it is kept as a `Secret`.
        trust_env: take the proxy from HTTPS_PROXY, HTTP_PROXY and NO_PROXY, read once when the client is made.
    """

    keepalive: float = field(default=15.0, validator=checks.not_negative)
    dns_cache: float = field(default=10.0, validator=checks.not_negative)
    ca_file: str | os.PathLike[str] | None = field(default=None, validator=_path_or_none)
    client_cert: str | os.PathLike[str] | None = field(default=None, validator=_path_or_none)
    client_key: str | os.PathLike[str] | None = field(default=None, validator=_path_or_none)
    ssl_context: ssl.SSLContext | None = field(default=None, validator=checks.one_of(ssl.SSLContext, NoneType))
    proxy: Secret | None = field(default=None, converter=_secret_or_none)
    trust_env: bool = field(default=False, validator=checks.one_of(bool))

    def __attrs_post_init__(self) -> None:
        if self.ssl_context is not None and (self.ca_file or self.client_cert or self.client_key):
            raise ConfigError("Connection takes either ssl_context or ca_file, client_cert and client_key, not both")
        if self.client_key is not None and self.client_cert is None:
            raise ConfigError("Connection.client_key needs Connection.client_cert")


class RetryFields(TypedDict, total=False):
    """Some fields of `Retry`, for `FlinksClient(retry={...})`."""

    attempts: int
    base: float
    throttled_base: float
    cap: float
    retry_after_cap: float
    throttle_statuses: Iterable[int]
    quota: Quota | None


class TimeoutsFields(TypedDict, total=False):
    """Some fields of `Timeouts`, for `FlinksClient(timeouts={...})`."""

    connect: float | None
    attempt: float | None
    deadline: float | None


class LimitsFields(TypedDict, total=False):
    """Some fields of `Limits`, for `FlinksClient(limits={...})`."""

    concurrency: int | Adaptive
    rate: float | None
    burst: int | None
    rate_limiter: RateLimiter | None
    pause: Pause
    breaker: Breaker | None
    waits: bool
    max_body: int


class ConnectionFields(TypedDict, total=False):
    """Some fields of `Connection`, for `FlinksClient(connection={...})`."""

    keepalive: float
    dns_cache: float
    ca_file: str | os.PathLike[str] | None
    client_cert: str | os.PathLike[str] | None
    client_key: str | os.PathLike[str] | None
    ssl_context: ssl.SSLContext | None
    proxy: str | Secret | None
    trust_env: bool


@frozen(kw_only=True)
class Settings:
    """The four records together; the presets return one.

    A record given to a client beside its preset replaces the preset's whole record; a mapping changes only the fields
    that it names: `FlinksClient(settings=config.bulk(), limits={"concurrency": 500})`.
    """

    retry: Retry = Retry()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    connection: Connection = Connection()


def service() -> Settings:
    """For a call inside a service: 3 attempts, a deadline of 60 s; it fails at once while the instance is down."""
    return Settings()


def bulk() -> Settings:
    """For many tokens: 6 attempts, longer waits, no deadline; while the instance is down it waits and loses nothing.

    The attempt may take 230 s, since a sibling endpoint is documented to answer within 210 s.
    """
    return Settings(
        retry=Retry(attempts=6, cap=60.0, quota=ShareQuota()),
        timeouts=Timeouts(connect=10.0, attempt=230.0, deadline=None),
        limits=Limits(waits=True, pause=Pause(cap=60.0, longest=3600.0)),
    )


def choose(settings: Settings | None, records: Mapping[str, Any]) -> Settings:
    """The preset, `service()` if none is given, with changes.

    Args:
        records: by name: a record takes the place of the preset's, a mapping changes some of its fields, None nothing.

    Raises:
        ConfigError: something is not the record that it should be.
    """
    chosen = service() if settings is None else settings
    if not isinstance(chosen, Settings):
        raise ConfigError(
            f"settings must be what config.service() or config.bulk() returns, not {type(chosen).__name__}"
        )
    given = {
        name: _changed(name, getattr(chosen, name), record) for name, record in records.items() if record is not None
    }
    return evolve(chosen, **given)


def _changed(name: str, preset: Any, given: Any) -> Any:
    cls = type(preset)
    if isinstance(given, cls):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{name} must be a {cls.__name__} record, or a mapping of some of its fields, not {type(given).__name__}"
        )
    known = [attribute.name for attribute in fields(cls)]
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ConfigError(f"{name}: {cls.__name__} has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}")
    return evolve(preset, **given)


_ENVIRONMENT = {
    "instance": "FLINKS_INSTANCE",
    "auth_secret": "FLINKS_AUTH_SECRET",
    "auth_scheme": "FLINKS_AUTH_SCHEME",
    "base_url": "FLINKS_BASE_URL",
}


def from_env(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The arguments of `FlinksClient` that the environment sets: FLINKS_INSTANCE, FLINKS_AUTH_SECRET,
    FLINKS_AUTH_SCHEME and FLINKS_BASE_URL. Empty variables count as not set.
    """
    environ = os.environ if environ is None else environ
    found: dict[str, Any] = {}
    for argument, variable in _ENVIRONMENT.items():
        if environ.get(variable):
            found[argument] = (
                Secret(environ[variable].strip()) if argument == "auth_secret" else environ[variable].strip()
            )
    return found
