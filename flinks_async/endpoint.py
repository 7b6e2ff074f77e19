"""The endpoint of an instance, and the checks of everything that goes into a request: URL, headers, AuthSecret, token."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from attrs import field, frozen

from .checks import shown
from .config import AUTH_SCHEMES, AuthScheme
from .errors import ConfigError, InvalidTokenError
from .schema import Record
from .secret import NotText, Secret, plain, wrap_header_values, wrap_secret

WHERE_SECRETS_COME_FROM: Final = "A partner gets its AuthSecret from the Flinks customer whose users' data is shared"

OTHER_HEADER_FORMS: Final = (
    "The documentation does not say for certain which header carries it in production. 'flinks-async doctor --header-forms' "
    "tries the three forms: the setting auth_scheme takes " + ", ".join(repr(scheme) for scheme in AUTH_SCHEMES)
)


@frozen(eq=False)
class Endpoint:
    """One instance: where requests go and how they authenticate.

    Attributes:
        url: scheme, host, port and path prefix, without a trailing slash.
        host: host and port; messages may show it.
        auth_scheme: the form of the authentication header.
        headers: sent with every request.
    """

    url: str
    host: str
    auth_scheme: AuthScheme
    headers: Mapping[str, str] = field(repr=lambda headers: f"<{', '.join(headers)}>")

    def auth_header(self, secret: Secret) -> tuple[str, str]:
        """Name and value of the authentication header. The value is a secret in plain text."""
        value = secret.reveal() if self.auth_scheme == "flinks-auth-key-raw" else f"Bearer {secret.reveal()}"
        return ("Authorization" if self.auth_scheme == "bearer" else "flinks-auth-key"), value


INSTANCE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,57}[A-Za-z0-9])?")

# Strings, which `re` compiles on first use, so that an import does not.
_GUID: Final = r"[0-9A-Fa-f]{8}-?(?:[0-9A-Fa-f]{4}-?){3}[0-9A-Fa-f]{12}"

_HOST_NAME: Final = r"[A-Za-z0-9._-]+"

_HEADER_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"

_CONTROL: Final = r"[\x00-\x1f\x7f]"

_RESERVED_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "flinks-auth-key", "authorization", "cookie"}
)

_OWN_HEADERS = MappingProxyType(
    # Only the encodings that this package decompresses itself, up to `Limits.max_body`.
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
    """Makes the URL and the headers of an instance from checked settings.

    Raises:
        ConfigError: a setting is wrong; the message names it.
    """
    base_url, headers = wrap_secret(base_url), wrap_header_values(headers)
    if auth_scheme not in AUTH_SCHEMES:
        raise ConfigError(f"auth_scheme must be one of {', '.join(map(repr, AUTH_SCHEMES))}, not {shown(auth_scheme)}")
    if base_url is None:
        if not isinstance(instance, str) or not INSTANCE_NAME.fullmatch(instance):
            raise ConfigError(
                f"instance must be the name of a Flinks instance such as 'toolbox' (letters, digits and hyphens), "
                f"not {shown(instance)}; for another address use base_url"
            )
        if re.search(_GUID, instance):  # it would be sent to name servers
            raise ConfigError(
                "instance looks like a token or a secret; it is the name of a Flinks instance such as 'toolbox'"
            )
        base_url = Secret(f"https://{plain(instance).lower()}-api.private.fin.ag")
    url, host = _check_base_url(base_url, allow_http)
    agent = user_agent
    if app_name is not None:
        name = plain(app_name).strip() if isinstance(app_name, str) else ""
        if not name or not name.isascii() or re.search(_CONTROL, plain(app_name)):
            raise ConfigError("app_name must be printable ASCII text, such as 'acme-lending/2.1'")
        agent = f"{name} {agent}"
    return Endpoint(url, host, auth_scheme, _own_headers(headers, agent))


def _check_base_url(url: object, allow_http: bool) -> tuple[str, str]:
    problem = ConfigError("base_url must be a URL such as 'https://toolbox-api.private.fin.ag', without spaces")
    if isinstance(url, Secret):
        try:
            return _read_base_url(url.reveal(), allow_http)
        except ConfigError as error:
            problem = error
    # Without the frames below, which hold the URL and perhaps a password.
    problem.__traceback__ = problem.__context__ = None
    raise problem


def _read_base_url(base_url: str, allow_http: bool) -> tuple[str, str]:
    if re.search(_CONTROL, base_url) or " " in base_url or "\\" in base_url:
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
        host = host.encode("idna").decode("ascii")  # for an ASCII name, it checks the lengths of the labels
    except UnicodeError:
        raise ConfigError("the host of base_url is not a valid (international) domain name") from None
    # The operating system takes 127.1 and 2130706433 for addresses; an address must not look like another one.
    if _address(host) is None and (not re.fullmatch(_HOST_NAME, host) or host.replace(".", "").isdigit()):
        raise ConfigError("the host of base_url is neither a domain name nor an address")
    place = f"[{host}]" if ":" in host else host
    place = place if port is None else f"{place}:{port}"
    try:
        path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~-._")
    except UnicodeError:
        raise ConfigError("the path of base_url is not valid Unicode") from None
    return f"{parts.scheme}://{place}{path}", place


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host.endswith(".localhost") or host == "localhost" if address is None else address.is_loopback


def _own_headers(headers: object, agent: str) -> Mapping[str, str]:
    """The headers of every request; those of the user replace ours."""
    given = check_headers(headers)
    replaced = {name.lower() for name in given}
    own = {**_OWN_HEADERS, "User-Agent": agent}
    return MappingProxyType({**{name: own[name] for name in own if name.lower() not in replaced}, **given})


def check_headers(headers: object) -> Mapping[str, str]:
    """Checks headers that a user adds to requests, and reveals their values.

    Args:
        headers: with their values wrapped by `wrap_header_values`; None is no headers.

    Raises:
        ConfigError: they cannot be sent, or would change how requests are sent. The message shows no value.
    """
    if isinstance(headers, NotText):
        raise ConfigError(f"headers must be a mapping, not {headers.type_name}")
    given: Mapping[Any, Any] = headers or {}  # type: ignore[assignment]
    names: set[str] = set()
    for name, value in given.items():
        if not isinstance(name, str) or not re.fullmatch(_HEADER_NAME, name):
            raise ConfigError(f"headers: {shown(name)} is not the name of an HTTP header")
        if plain(name).lower() in names:
            raise ConfigError(f"headers: {name!r} is given twice; the case of letters does not matter")
        names.add(plain(name).lower())
        if plain(name).lower() in _RESERVED_HEADERS:
            raise ConfigError(f"headers: {name!r} is set by this package and cannot be replaced")
        if plain(name).lower() == "accept-encoding":
            raise ConfigError("headers: 'Accept-Encoding' is fixed, because this package decompresses bodies itself")
        if not isinstance(value, Secret) or not value.reveal().isascii() or re.search(_CONTROL, value.reveal()):
            raise ConfigError(f"headers: the value of {name!r} must be printable ASCII text (it is not shown here)")
    # Revealed after all checks, so that the frame of an error holds no value.
    return MappingProxyType({plain(name): value.reveal() for name, value in given.items()})


def check_secret(value: object) -> Secret:
    """Checks that an AuthSecret can be the value of a header.

    Raises:
        ConfigError: it is missing, or has a character that a header cannot carry. The message does not show it.
    """
    value = wrap_secret(value)
    if value is None or (isinstance(value, Secret) and not value):
        raise ConfigError(f"auth_secret is missing. {WHERE_SECRETS_COME_FROM}.")
    if not isinstance(value, Secret):
        name = value.type_name if isinstance(value, NotText) else type(value).__name__
        raise ConfigError(f"auth_secret must be a str, a Secret or an async callable that returns one, not {name}")
    if not value.reveal().strip():
        raise ConfigError(f"auth_secret is blank. {WHERE_SECRETS_COME_FROM}.")
    if not value.reveal().isascii() or re.search(_CONTROL, value.reveal()):
        raise ConfigError(
            "auth_secret has a line break, a control character or a non-ASCII character, which a header cannot "
            "carry (perhaps the newline at the end of a file; its value is not shown)"
        )
    if value.reveal() != value.reveal().strip():
        raise ConfigError("auth_secret starts or ends with a space (its value is not shown)")
    if not any(map(str.isalnum, value.reveal())):
        raise ConfigError(
            f"auth_secret has no letter and no digit, like '...' in an example. {WHERE_SECRETS_COME_FROM}."
        )
    if value.reveal()[:7].lower() == "bearer ":
        raise ConfigError("auth_secret starts with 'Bearer ': pass the secret without it, because auth_scheme adds it")
    return value


@frozen(eq=False, repr=False)
class Proxy(Record):
    """A proxy: its URL without credentials, and the header that carries the credentials."""

    url: str
    authorization: Secret | None


def make_proxy(url: Secret, setting: str) -> Proxy:
    """Checks the URL of a proxy.

    Args:
        setting: where it comes from, for the message.

    Raises:
        ConfigError: it is not the URL of an HTTP proxy.
    """
    proxy = None
    with suppress(ValueError):  # includes UnicodeError; the texts contain the credentials
        proxy = _split_proxy(url)
    if proxy is None:
        raise ConfigError(f"{setting} must be the URL of an HTTP proxy, such as 'http://proxy.example:3128'")
    return proxy


def _split_proxy(url: Secret) -> Proxy | None:
    parts = urlsplit(url.reveal() if "://" in url.reveal() else f"http://{url.reveal()}")
    host, port, user = parts.hostname, parts.port, parts.username
    if not host or not host.isprintable() or " " in host or parts.scheme not in ("http", "https"):
        return None
    authorization = None
    if user is not None:
        if ":" in unquote(user):
            return None  # RFC 7617
        pair = f"{unquote(user)}:{unquote(parts.password or '')}".encode()
        authorization = Secret(f"Basic {b64encode(pair).decode()}")
    place = f"[{host}]" if ":" in host else host
    return Proxy(urlunsplit((parts.scheme, place if port is None else f"{place}:{port}", "", "", "")), authorization)


def is_exempt(url: str, exceptions: Secret) -> bool:
    """Whether NO_PROXY exempts a URL: `*`, or a list of host names (with their subdomains, also written `.example` and
    `*.example`), addresses and networks such as `10.0.0.0/8`, each but a network with an optional port.
    """
    parts = urlsplit(url)
    host, port = (parts.hostname or "").rstrip("."), parts.port or (443 if parts.scheme == "https" else 80)
    for item in re.split(r"[\s,]+", exceptions.reveal().lower()):
        with_port = re.fullmatch(r"(\[[^]]*\]|[^:]*):([0-9]+)", item)
        name = (with_port[1] if with_port else item).strip("[]").removeprefix("*.").strip(".")
        if with_port and int(with_port[2]) != port:
            continue
        if item == "*" or (name and (host == name or host.endswith(f".{name}"))) or _is_in_network(host, name):
            return True
    return False


def _is_in_network(host: str, network: str) -> bool:
    address = _address(host)
    try:
        return address is not None and address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


MAX_TOKEN: Final = 1024

_QUOTES: Final = frozenset("\"'`\u00ab\u00bb\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a")
_PLAIN_TOKEN = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9_.~-]{{0,{MAX_TOKEN - 1}}}")


def check_token(token: object) -> Secret:
    """Checks that an access token can be the last segment of the URL's path without changing the rest.

    Raises:
        InvalidTokenError: it cannot. The message does not show it.
    """
    if not isinstance(token, Secret):
        token = wrap_secret(token)
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
    if re.search(_CONTROL, token.reveal()) or any("\x80" <= c <= "\x9f" for c in token.reveal()):
        raise InvalidTokenError("the access token has a line break or another control character")
    if re.fullmatch(r"(?:\.|%(?:25)*2e)+", token.reveal(), re.IGNORECASE):
        raise InvalidTokenError("the access token consists of dots, which would change the URL")
    if not token.reveal().isprintable() and any("\ud800" <= c <= "\udfff" for c in token.reveal()):
        raise InvalidTokenError("the access token is not valid Unicode")
    text = token.reveal()
    if text != text.strip():
        raise InvalidTokenError("the access token begins or ends with a blank; nothing is stripped")
    if text[0] in _QUOTES or text[-1] in _QUOTES:
        raise InvalidTokenError("the access token begins or ends with a quotation mark; give the bare token")
    if re.match(r"bearer\s", text, re.IGNORECASE):
        raise InvalidTokenError("the access token begins with 'Bearer '; give the bare token")
    if invisible := next((c for c in text if unicodedata.category(c) == "Cf"), None):
        raise InvalidTokenError(f"the access token holds an invisible character (U+{ord(invisible):04X})")
    return token


def encode_token(token: Secret) -> Secret:
    """The token as one path segment: all characters except A-Z a-z 0-9 - . _ ~ percent-encoded, once (RFC 3986)."""
    return token if _PLAIN_TOKEN.fullmatch(token.reveal()) else Secret(quote(token.reveal(), safe=""))
