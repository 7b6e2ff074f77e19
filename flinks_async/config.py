"""Settings: frozen records, and the two presets that fill them.

`service()` suits a call inside a service: it fails fast. `bulk()` suits a job over many tokens: it waits. Arguments win
over the environment, the environment over the preset. The modules in `flinks_async.limits` and `flinks_async.middleware`
explain the algorithms; here are the numbers and their sources.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Mapping
from functools import wraps
from types import NoneType
from typing import Any, Final, Literal, TypedDict, TypeVar, get_args

from attrs import Attribute, evolve, field, fields, frozen
from attrs.validators import optional

from . import checks
from .errors import ConfigError
from .protection import Adaptive, Breaker, Hedge, Pause, PollPending, Quota, RateLimiter, ShareQuota, TokenBucketQuota
from .schema import Record
from .secret import Secret, wrap_secret

__all__ = [
    "AUTH_SCHEMES",
    "Adaptive",
    "AuthScheme",
    "Breaker",
    "Connection",
    "ConnectionFields",
    "Hedge",
    "Limits",
    "LimitsFields",
    "Pause",
    "PollPending",
    "Quota",
    "RateLimiter",
    "Retry",
    "RetryFields",
    "Settings",
    "ShareQuota",
    "Timeouts",
    "TimeoutsFields",
    "TokenBucketQuota",
    "bulk",
    "choose",
    "from_env",
    "service",
]


AuthScheme = Literal["flinks-auth-key", "flinks-auth-key-raw", "bearer"]
"""The form of the authentication header; `FlinksClient` documents it."""

C = TypeVar("C")

AUTH_SCHEMES: Final[tuple[AuthScheme, ...]] = get_args(AuthScheme)
"""All values of `AuthScheme`."""

MIB: Final = 1024 * 1024
THROTTLE_STATUSES: Final = frozenset({429})


def _as_set(values: Any) -> Any:
    try:
        return frozenset(values)
    except TypeError:  # the validator refuses it
        return values


def _statuses(instance: object, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, frozenset) or not all(type(status) is int for status in value):
        raise ConfigError("Retry.throttle_statuses must be whole numbers, such as {403, 429}")


@frozen(kw_only=True, eq=False, repr=False)
class Retry(Record):
    """When and how often a failed attempt is retried.

    The backoff before retry n (1, 2, ...) has full jitter: a random time between 0 and `min(cap, base * 2**(n-1))`,
    with `throttled_base` instead of `base` after a throttled attempt.
    Source: AWS Architecture Blog, "Exponential Backoff And Jitter"; base and cap are those of the AWS SDKs'
    standard retry mode of 2026.

    Attributes:
        attempts: the most attempts, including the first. 1 switches retries off.
        base: seconds.
        throttled_base: seconds, after a throttled attempt.
        cap: the longest backoff in seconds.
        retry_after_cap: the longest `Retry-After` in seconds that a retry waits for. A longer one ends the call with an
            error that has `retry_after` set; with `Limits.waits`, all calls wait instead.
        throttle_statuses: statuses that count as throttling, unless the body has a FlinksCode that this package knows.
        quota: limits the retries of all calls for one (instance, secret): a `TokenBucketQuota`, a `ShareQuota`, or None
            for no limit.
    """

    attempts: int = field(default=3, validator=checks.count)
    base: float = field(default=0.05, validator=checks.not_negative)
    throttled_base: float = field(default=1.0, validator=checks.not_negative)
    cap: float = field(default=20.0, validator=checks.not_negative)
    retry_after_cap: float = field(default=60.0, validator=checks.not_negative)
    throttle_statuses: frozenset[int] = field(default=THROTTLE_STATUSES, converter=_as_set, validator=_statuses)
    quota: Quota | None = field(
        default=TokenBucketQuota(), validator=checks.one_of(TokenBucketQuota, ShareQuota, NoneType)
    )


@frozen(kw_only=True, eq=False, repr=False)
class Timeouts(Record):
    """Seconds; None means no limit.

    Attributes:
        connect: for a new connection: DNS, TCP and TLS together.
        attempt: for one attempt, from the end of its time in the queue to the last byte of the response.
        deadline: for the whole call: queue, attempts and backoff. `partner_access(timeout=...)` replaces it.
    """

    connect: float | None = field(default=5.0, validator=checks.positive_or_none)
    attempt: float | None = field(default=30.0, validator=checks.positive_or_none)
    deadline: float | None = field(default=60.0, validator=checks.positive_or_none)


def _concurrency(instance: object, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, Adaptive):
        checks.at_once(instance, attribute, value)


@frozen(kw_only=True, eq=False, repr=False)
class Limits(Record):
    """Limits of concurrency, rate and size, and the behaviour while an instance is in trouble.

    All but `waits` and `max_body` apply to one (instance, secret) in one event loop, so that an instance in trouble never
    slows another.

    Attributes:
        concurrency: concurrent requests on the wire: a number up to 100,000, or `Adaptive(...)`. A number is lowered only while the
            instance refuses so many at once.
        rate: requests per second, evenly spaced; None for no limit.
        burst: requests that may be sent at once before `rate` applies; None for those of a tenth of a second.
        rate_limiter: your own limiter instead of `rate`, for example one that processes share.
        pause: the longest pause that the server can ask for.
        breaker: when the instance counts as down; None for never.
        waits: the behaviour while the instance is down or asks for a long pause. False: calls fail at once, with a
            `CircuitOpenError` or the server's error. True: calls wait, and attempts that fail meanwhile do not count.
        max_body: the largest body in bytes, decompressed.
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
        """The highest value of `concurrency`."""
        return self.concurrency.maximum if isinstance(self.concurrency, Adaptive) else self.concurrency


def _is_proxy(instance: object, attribute: Attribute[Any], value: Any) -> None:
    if value is not None and not isinstance(value, Secret):
        raise ConfigError("Connection.proxy must be a str or a Secret")


_path_or_none = checks.one_of(str, os.PathLike, NoneType)


def _wraps_proxy(cls: type[C]) -> type[C]:
    """Wraps the proxy before attrs' own `__init__`, whose frame is in the traceback when an argument is wrong."""
    init: Any = cls.__init__

    @wraps(init)
    def __init__(self: C, **options: Any) -> None:
        if "proxy" in options:
            options["proxy"] = wrap_secret(options["proxy"])
        init(self, **options)

    cls.__init__ = __init__  # type: ignore[assignment]
    return cls


@_wraps_proxy
@frozen(kw_only=True, eq=False, repr=False)
class Connection(Record):
    """How connections are made. Derived clients share it, because it belongs to the pool.

    Attributes:
        keepalive: seconds that an idle connection is kept open.
        dns_cache: seconds that a resolved address is cached; 0 resolves each time.
        ca_file: PEM file with the certificate authorities to trust instead of the system's.
        client_cert: PEM file with a client certificate (and its key, if `client_key` is None).
        client_key: PEM file with the key of the client certificate.
        ssl_context: your own context; then the three files above must be None.
        proxy: URL of an HTTP proxy, with an optional user and password; it is kept as a `Secret`.
        trust_env: read the proxy from HTTPS_PROXY, HTTP_PROXY and NO_PROXY, once when the client is made.
    """

    keepalive: float = field(default=15.0, validator=checks.not_negative)
    dns_cache: float = field(default=10.0, validator=checks.not_negative)
    ca_file: str | os.PathLike[str] | None = field(default=None, validator=_path_or_none)
    client_cert: str | os.PathLike[str] | None = field(default=None, validator=_path_or_none)
    client_key: str | os.PathLike[str] | None = field(default=None, validator=_path_or_none)
    ssl_context: ssl.SSLContext | None = field(default=None, validator=checks.one_of(ssl.SSLContext, NoneType))
    proxy: Secret | None = field(default=None, converter=wrap_secret, validator=_is_proxy)
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


@frozen(kw_only=True, eq=False, repr=False)
class Settings(Record):
    """The four records together, as a preset returns them.

    A record passed to a client replaces the preset's whole record; a mapping changes only the fields that it names:
    `FlinksClient(settings=config.bulk(), limits={"concurrency": 500})`.
    """

    retry: Retry = Retry()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    connection: Connection = Connection()


def service() -> Settings:
    """For a call inside a service: 3 attempts and a deadline of 60 s. It fails at once while the instance is down."""
    return Settings()


def bulk() -> Settings:
    """For many tokens: 6 attempts, longer backoff, no deadline. It waits while the instance is down.

    An attempt may take 230 s, because a sibling endpoint is documented to answer within 210 s.
    """
    return Settings(
        retry=Retry(attempts=6, cap=60.0, quota=ShareQuota()),
        timeouts=Timeouts(connect=10.0, attempt=230.0, deadline=None),
        limits=Limits(waits=True, concurrency=Adaptive(initial=4, doubling=0.5), pause=Pause(longest=3600.0)),
    )


def choose(settings: Settings | None, records: Mapping[str, Any]) -> Settings:
    """Applies changes to a preset.

    Args:
        settings: the preset; None for `service()`.
        records: by name: a record replaces the preset's, a mapping changes some of its fields, None changes nothing.

    Raises:
        ConfigError: a value is neither the record nor a mapping of its fields.
    """
    chosen = service() if settings is None else settings
    if not isinstance(chosen, Settings):
        raise ConfigError(
            f"settings must be what config.service() or config.bulk() returns, not {type(chosen).__name__}"
        )
    changed = {
        name: _changed(name, getattr(chosen, name), record) for name, record in records.items() if record is not None
    }
    return evolve(chosen, **changed) if changed else chosen


def _changed(name: str, preset: Any, change: Any) -> Any:
    cls = type(preset)
    if isinstance(change, cls):
        return change
    if not isinstance(change, Mapping):
        raise ConfigError(
            f"{name} must be a {cls.__name__} record, or a mapping of some of its fields, not {type(change).__name__}"
        )
    known = [attribute.name for attribute in fields(cls)]
    unknown = [key for key in change if key not in known]
    if unknown:
        raise ConfigError(f"{name}: {cls.__name__} has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}")
    return evolve(preset, **change)


_ENVIRONMENT = {
    "instance": "FLINKS_INSTANCE",
    "auth_secret": "FLINKS_AUTH_SECRET",
    "auth_scheme": "FLINKS_AUTH_SCHEME",
    "base_url": "FLINKS_BASE_URL",
}


def from_env(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Reads arguments of `FlinksClient` from the environment: FLINKS_INSTANCE, FLINKS_AUTH_SECRET, FLINKS_AUTH_SCHEME
    and FLINKS_BASE_URL. Empty variables count as not set.
    """
    environ = os.environ if environ is None else environ
    found: dict[str, Any] = {
        argument: Secret(text) if argument == "auth_secret" else text
        for argument, variable in _ENVIRONMENT.items()
        if (text := environ.get(variable, "").strip())
    }
    return found
