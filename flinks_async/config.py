"""Settings: a few frozen records, and the two presets that fill them.

`service()` suits a call that somebody waits for: it fails fast. `bulk()` suits a job over many tokens: it waits.
Arguments win over the environment, the environment over the preset.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Iterable, Mapping
from functools import wraps
from types import MappingProxyType, NoneType
from typing import Any, Final, Literal, TypeVar, get_args
from urllib.parse import quote, urlsplit

from attrs import Attribute, evolve, field, fields, frozen
from attrs.validators import optional

from . import checks
from .errors import ConfigError, InvalidTokenError
from .policies import Adaptive, Breaker, Pause, Quota, RateLimiter, ShareQuota, TokenBucketQuota
from .secret import NotText, Secret, out_of_sight, plain

AuthScheme = Literal["flinks-auth-key", "flinks-auth-key-raw", "bearer"]
C = TypeVar("C")

AUTH_SCHEMES: Final[tuple[AuthScheme, ...]] = get_args(AuthScheme)

MIB: Final = 1024 * 1024
WHERE_SECRETS_COME_FROM: Final = (
    "An AuthSecret is given to a partner by its client: the Flinks customer whose users' data is shared"
)
OTHER_HEADER_FORMS: Final = (
    "Which header carries it in production is not documented beyond doubt: the setting auth_scheme takes "
    + ", ".join(repr(scheme) for scheme in AUTH_SCHEMES)
)


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
    value = out_of_sight(value)
    if value is not None and not isinstance(value, Secret):
        raise ConfigError("Connection.proxy must be a str or a Secret")
    return value


_path_or_none = checks.one_of(str, os.PathLike, NoneType)


def _proxy_out_of_sight(cls: type[C]) -> type[C]:
    """The frame of attrs' own `__init__` holds its arguments as they came when one of them is wrong."""
    init: Any = cls.__init__

    @wraps(init)
    def __init__(self: C, **options: Any) -> None:
        if "proxy" in options:
            options["proxy"] = out_of_sight(options["proxy"])
        init(self, **options)

    cls.__init__ = __init__  # type: ignore[assignment]
    return cls


@_proxy_out_of_sight
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


@frozen(eq=False)
class Endpoint:
    """One instance: where requests go and how they authenticate. `host` is fit for messages.

    Attributes:
        url: scheme, host, port and path prefix, without a trailing slash.
        host: host and port.
        auth_scheme: the form of the authentication header.
        headers: sent with every request.
    """

    url: str
    host: str
    auth_scheme: AuthScheme
    headers: Mapping[str, str] = field(repr=lambda headers: f"<{', '.join(headers)}>")

    def auth_header(self, secret: Secret) -> tuple[str, str]:
        """Name and value of the authentication header. The value is a secret: reveal it where it is sent."""
        value = secret.reveal() if self.auth_scheme == "flinks-auth-key-raw" else f"Bearer {secret.reveal()}"
        return ("Authorization" if self.auth_scheme == "bearer" else "flinks-auth-key"), value


INSTANCE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,57}[A-Za-z0-9])?")
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_RESERVED_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "flinks-auth-key", "authorization", "cookie"}
)
_OWN_HEADERS = MappingProxyType(
    # Only the encodings that this package inflates itself, with a cap.
    {"Accept": "application/json", "Content-Type": "application/json", "Accept-Encoding": "gzip, deflate"}
)


def make_endpoint(
    instance: str,
    *,
    auth_scheme: str,
    base_url: str | Secret | None,
    allow_http: bool,
    app_name: str | None,
    headers: Mapping[str, str | Secret] | None,
    user_agent: str,
) -> Endpoint:
    """Checks the settings that make up the URL and the headers.

    Raises:
        ConfigError: one of them is wrong; the message names it.
    """
    base_url, headers = out_of_sight(base_url), headers_out_of_sight(headers)
    if auth_scheme not in AUTH_SCHEMES:
        raise ConfigError(f"auth_scheme must be one of {', '.join(map(repr, AUTH_SCHEMES))}, not {auth_scheme!r}")
    if base_url is None:
        if not isinstance(instance, str) or not INSTANCE_NAME.fullmatch(instance):
            raise ConfigError(
                f"instance must be the name of a Flinks instance such as 'toolbox' (letters, digits and hyphens), "
                f"not {instance!r}; for another address use base_url"
            )
        base_url = Secret(f"https://{plain(instance).lower()}-api.private.fin.ag")
    url, host = _check_base_url(base_url, allow_http)
    agent = user_agent
    if app_name is not None:
        name = plain(app_name).strip() if isinstance(app_name, str) else ""
        if not name or not name.isascii() or _CONTROL.search(plain(app_name)):
            raise ConfigError("app_name must be printable ASCII text, such as 'acme-lending/2.1'")
        agent = f"{name} {agent}"
    return Endpoint(url, host, auth_scheme, _check_headers(headers or {}, agent))


def headers_out_of_sight(headers: object) -> Any:
    """The argument `headers` with its values as `out_of_sight` makes them; what is no mapping becomes a `NotText`."""
    if not headers or isinstance(headers, NotText):
        return headers
    if not isinstance(headers, Mapping):
        return NotText(headers)
    return {name: out_of_sight(value) for name, value in headers.items()}


def _check_base_url(url: object, allow_http: bool) -> tuple[str, str]:
    problem = ConfigError("base_url must be a URL such as 'https://toolbox-api.private.fin.ag', without spaces")
    if isinstance(url, Secret):
        try:
            return _read_base_url(url.reveal(), allow_http)
        except ConfigError as error:
            problem = error
    # Without the frames that hold the URL, perhaps with a password.
    problem.__traceback__ = problem.__context__ = None
    raise problem


def _read_base_url(base_url: str, allow_http: bool) -> tuple[str, str]:
    if _CONTROL.search(base_url) or " " in base_url or "\\" in base_url:
        raise ConfigError("base_url must be a URL such as 'https://toolbox-api.private.fin.ag', without spaces")
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError("base_url is not a URL: its host or port cannot be read") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError("base_url must not hold a user or password; the AuthSecret is sent in a header")
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError("base_url must start with https:// and name a host")
    if parts.query or parts.fragment or "?" in base_url or "#" in base_url:
        raise ConfigError("base_url must not have a query or a fragment")
    if any(part in (".", "..") for part in parts.path.replace("%2e", ".").replace("%2E", ".").split("/")):
        raise ConfigError("the path of base_url must not contain '.' or '..'")
    if parts.scheme == "http" and not (allow_http or _is_loopback(host)):
        raise ConfigError(
            f"base_url is http:// to {host}, which would send the secret unencrypted; "
            "use https://, or allow_http=True inside a network that you trust"
        )
    try:
        host = host.encode("idna").decode("ascii")  # of ASCII it looks at the lengths of the labels
    except UnicodeError:
        raise ConfigError("the host of base_url is not a valid (international) domain name") from None
    if not _HOST_NAME.fullmatch(host) and not _is_address(host):
        raise ConfigError("the host of base_url is neither a domain name nor an address")
    place = f"[{host}]" if ":" in host else host
    place = place if port is None else f"{place}:{port}"
    try:
        path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~-._")
    except UnicodeError:
        raise ConfigError("the path of base_url is not valid Unicode") from None
    return f"{parts.scheme}://{place}{path}", place


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_headers(headers: Mapping[Any, Any] | NotText, agent: str) -> Mapping[str, str]:
    if isinstance(headers, NotText):
        raise ConfigError(f"headers must be a mapping, not {headers.type_name}")
    checked = {**_OWN_HEADERS, "User-Agent": agent}
    own = {name.lower(): name for name in checked}
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"headers: {name!r} is not the name of an HTTP header")
        if plain(name).lower() in _RESERVED_HEADERS:
            raise ConfigError(f"headers: {name!r} is set by this package and cannot be replaced")
        if plain(name).lower() == "accept-encoding":
            raise ConfigError("headers: 'Accept-Encoding' is fixed, since bodies are inflated by this package")
        if not isinstance(value, Secret) or not value.reveal().isascii() or _CONTROL.search(value.reveal()):
            raise ConfigError(f"headers: the value of {name!r} must be printable ASCII text (it is not shown here)")
    for name, value in headers.items():  # not before all are right: no frame of an error holds a bare one
        text = plain(name)
        checked.pop(own.get(text.lower(), text), None)
        checked[text] = value.reveal()
    return MappingProxyType(checked)


def check_secret(value: object) -> Secret:
    """An AuthSecret that can be a header's value.

    Raises:
        ConfigError: it is missing, or holds characters that a header cannot; the value is never shown.
    """
    value = out_of_sight(value)
    if value is None or (isinstance(value, Secret) and not value):
        raise ConfigError(f"auth_secret is missing. {WHERE_SECRETS_COME_FROM}.")
    if not isinstance(value, Secret):
        name = value.type_name if isinstance(value, NotText) else type(value).__name__
        raise ConfigError(f"auth_secret must be a str, a Secret or an async callable that returns one, not {name}")
    if not value.reveal().strip():
        raise ConfigError(f"auth_secret is blank. {WHERE_SECRETS_COME_FROM}.")
    if not value.reveal().isascii() or _CONTROL.search(value.reveal()):
        raise ConfigError(
            "auth_secret holds a line break, a control character or a non-ASCII character, which a header cannot "
            "carry (a stray newline from a file? its value is not shown)"
        )
    if value.reveal() != value.reveal().strip():
        raise ConfigError("auth_secret starts or ends with a space (its value is not shown)")
    if value.reveal()[:7].lower() == "bearer ":
        raise ConfigError("auth_secret starts with 'Bearer ': give the bare secret, the word is added by auth_scheme")
    return value


MAX_TOKEN: Final = 1024
_PLAIN_TOKEN = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9_.~-]{{0,{MAX_TOKEN - 1}}}")


def check_token(token: object) -> Secret:
    """An access token that can be the last segment of the URL's path without changing the rest.

    Raises:
        InvalidTokenError: it cannot. The message does not show it.
    """
    if not isinstance(token, Secret):
        token = out_of_sight(token)
        if not isinstance(token, Secret):
            name = token.type_name if isinstance(token, NotText) else type(token).__name__
            raise InvalidTokenError(f"an access token must be a str, not {name}")
    if _PLAIN_TOKEN.fullmatch(token.reveal()):
        return token
    size = len(token)
    if size > MAX_TOKEN:
        raise InvalidTokenError(f"an access token may have at most {MAX_TOKEN} characters, this one has {size}")
    if size == 0:
        raise InvalidTokenError("the access token is empty")
    if _CONTROL.search(token.reveal()) or any("\x80" <= c <= "\x9f" for c in token.reveal()):
        raise InvalidTokenError("the access token holds a line break or another control character")
    if re.fullmatch(r"(?:\.|%(?:25)*2e)+", token.reveal(), re.IGNORECASE):
        raise InvalidTokenError("the access token consists of dots, which would change the URL")
    if not token.reveal().isprintable() and any("\ud800" <= c <= "\udfff" for c in token.reveal()):
        raise InvalidTokenError("the access token is not valid Unicode")
    return token


def encode_token(token: Secret) -> Secret:
    """The token as one path segment: every character but A-Z a-z 0-9 - . _ ~ percent-encoded, once (RFC 3986)."""
    return token if _PLAIN_TOKEN.fullmatch(token.reveal()) else Secret(quote(token.reveal(), safe=""))


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
