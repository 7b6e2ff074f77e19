"""Sends clients to worker processes: a description that can be pickled, and apart from it the secrets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from attrs import evolve, field, fields, frozen

from ...client import FlinksClient
from ...client_options import ClientOptions
from ...clock import SystemClock
from ...codec import Codec
from ...config import RateLimiter, Settings
from ...errors import ConfigError
from ...secret import Secret

_OBJECTS: Final = ("middleware", "attempt_middleware", "observers", "session", "transport")
_NOT_SENT: Final = frozenset({*_OBJECTS, "auth_secret", "settings", "codec", "clock"})


@frozen
class Description:
    """Everything about a client but its secrets, in a form that can be pickled.

    Attributes:
        arguments: of `FlinksClient`; headers may hold another secret.
        settings: of the client, without the proxy.
    """

    arguments: dict[str, Any] = field(repr=False)
    settings: Settings


@frozen
class Secrets:
    """The secrets of one client.

    Attributes:
        auth_secret: the AuthSecret.
        proxy: URL of the proxy, or None.
    """

    auth_secret: Secret
    proxy: Secret | None

    @property
    def all(self) -> list[Secret]:
        return [secret for secret in (self.auth_secret, self.proxy) if secret]


def to_line(secrets: Iterable[Secrets]) -> bytes:
    """One line of plain text, to be written to a private pipe and nowhere else."""
    return msgspec.json.encode([[secret.reveal() for secret in one.all] for one in secrets]) + b"\n"


def from_line(line: bytes) -> list[Secrets]:
    """Reads the output of `to_line`.

    Raises:
        msgspec.DecodeError: the line is truncated.
    """
    rows = msgspec.json.decode(line, type=list[list[str]])
    return [Secrets(Secret(first), Secret(rest[0]) if rest else None) for first, *rest in rows]


def describe(client: FlinksClient) -> tuple[Description, Secrets]:
    """Splits a client into a description and its secrets.

    Raises:
        ConfigError: a part cannot be sent to another process; the message names it.
    """
    options, settings = client.options, client.settings
    found = [name for name in _OBJECTS if getattr(options, name)]
    if type(client) is not FlinksClient:
        found.append(f"the class {type(client).__name__}")
    secret, proxy = options.auth_secret, settings.connection.proxy
    if not isinstance(secret, Secret):
        found.append("auth_secret as a function")
    if not isinstance(options.clock, SystemClock):
        found.append("clock")
    if type(options.codec) is not Codec:
        found.append("codec")
    if settings.limits.rate_limiter is not None:
        found.append("limits.rate_limiter")
    if settings.connection.ssl_context is not None:
        found.append("connection.ssl_context")
    if found or not isinstance(secret, Secret):
        raise ConfigError(
            f"worker processes make their own clients and cannot use these parts of yours: {', '.join(found)}. "
            "Leave them out, or run the job in one process"
        )
    # A Secret refuses to be pickled. The URL was checked and holds no password.
    revealed = {
        "base_url": None if options.base_url is None else options.base_url.reveal(),
        "headers": {name: value.reveal() for name, value in (options.headers or {}).items()},
    }
    names = [attribute.name for attribute in fields(ClientOptions) if attribute.name not in _NOT_SENT]
    arguments = {name: revealed[name] if name in revealed else getattr(options, name) for name in names}
    sent = evolve(settings, connection=evolve(settings.connection, proxy=None))
    return Description(arguments, sent), Secrets(secret, proxy)


def make(description: Description, secrets: Secrets, rate: RateLimiter | None) -> FlinksClient:
    """Makes the client again.

    Args:
        rate: the limiter that all workers share, if there is one; it replaces the rate of the settings.
    """
    settings = description.settings
    return FlinksClient(
        **description.arguments,
        auth_secret=secrets.auth_secret,
        settings=evolve(
            settings,
            limits=evolve(settings.limits, rate=None, burst=None, rate_limiter=rate),
            connection=evolve(settings.connection, proxy=secrets.proxy),
        ),
    )
