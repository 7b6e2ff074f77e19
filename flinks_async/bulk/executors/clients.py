"""Clients that are made again in another process: a description that can be sent, and their secrets beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from attrs import evolve, field, frozen

from ...client import FlinksClient
from ...clock import SystemClock
from ...codec import Codec
from ...config import RateLimiter, Settings
from ...errors import ConfigError
from ...secret import Secret

_OBJECTS: Final = ("middleware", "attempt_middleware", "observers", "session", "transport")


@frozen
class Description:
    """How to make a client.

    Attributes:
        options: arguments of `FlinksClient`; headers may hold a secret of another kind.
        settings: of the client, without the proxy.
    """

    options: dict[str, Any] = field(repr=False)
    settings: Settings


@frozen
class Secrets:
    """What a description leaves out.

    Attributes:
        auth_secret: the AuthSecret.
        proxy: URL of the proxy, if there is one.
    """

    auth_secret: Secret
    proxy: Secret | None

    @property
    def all(self) -> list[Secret]:
        return [secret for secret in (self.auth_secret, self.proxy) if secret]


def to_line(secrets: Iterable[Secrets]) -> bytes:
    """Secrets in plain text, one line: for a private pipe and nothing else."""
    return msgspec.json.encode([[secret.reveal() for secret in one.all] for one in secrets]) + b"\n"


def from_line(line: bytes) -> list[Secrets]:
    """What `to_line` has made a line of.

    Raises:
        msgspec.DecodeError: it was cut short.
    """
    rows = msgspec.json.decode(line, type=list[list[str]])
    return [Secrets(Secret(first), Secret(rest[0]) if rest else None) for first, *rest in rows]


def describe(client: FlinksClient) -> tuple[Description, Secrets]:
    """Takes a client apart.

    Raises:
        ConfigError: something of it cannot be sent to another process; the message names it.
    """
    options, settings = client.options, client.settings
    found = [name for name in _OBJECTS if options.pop(name)]
    if type(client) is not FlinksClient:
        found.append(f"the class {type(client).__name__}")
    if not isinstance(options["auth_secret"], Secret):
        found.append("auth_secret as a function")
    if not isinstance(options.pop("clock"), SystemClock):
        found.append("clock")
    if type(options.pop("codec")) is not Codec:
        found.append("codec")
    if settings.limits.rate_limiter is not None:
        found.append("limits.rate_limiter")
    if settings.connection.ssl_context is not None:
        found.append("connection.ssl_context")
    if found:
        raise ConfigError(
            f"worker processes make clients of their own, and cannot have these of yours: {', '.join(found)}. "
            "Leave them out, or run the job in one process"
        )
    secret: Secret = options.pop("auth_secret")
    proxy = settings.connection.proxy
    del options["settings"]
    sent = evolve(settings, connection=evolve(settings.connection, proxy=None))
    # A Secret refuses to be pickled. These have been checked: the URL holds no password.
    options["headers"] = {name: value.reveal() for name, value in (options["headers"] or {}).items()}
    options["base_url"] = None if options["base_url"] is None else options["base_url"].reveal()
    return Description(options, sent), Secrets(secret, proxy)


def make(description: Description, secrets: Secrets, rate: RateLimiter | None) -> FlinksClient:
    """The client again.

    Args:
        rate: the limit that it shares, if there is one; it takes the place of the settings' own.
    """
    settings = description.settings
    return FlinksClient(
        **description.options,
        auth_secret=secrets.auth_secret,
        settings=evolve(
            settings,
            limits=evolve(settings.limits, rate=None, burst=None, rate_limiter=rate),
            connection=evolve(settings.connection, proxy=secrets.proxy),
        ),
    )
