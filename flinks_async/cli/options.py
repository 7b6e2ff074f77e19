"""The options that `get` and `fetch` share: which instance, and how to authenticate."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click
from attrs import frozen

from .. import config
from ..client import FlinksClient
from ..config import AUTH_SCHEMES, Settings
from ..observe import Observer
from ..secret import Secret
from .one_value import read_secret

F = TypeVar("F", bound=Callable[..., Any])


@frozen
class Access:
    """Where to ask, and with which secret. Values of None come from the environment, else from the preset."""

    instance: str | None = None
    auth_scheme: str | None = None
    base_url: str | None = None
    allow_http: bool = False
    secret_file: str | None = None

    def client(self, settings: Settings, *observers: Observer, secret: Secret | None = None) -> FlinksClient:
        """A client. Without a `secret`, it is read now.

        Raises:
            ConfigError: a setting is wrong. Usage errors as in `read_secret`.
        """
        chosen = config.from_env()
        if self.instance is not None and self.base_url is None:
            chosen.pop("base_url", None)  # an instance that was asked for wins over the environment's address
        named = {"instance": self.instance, "auth_scheme": self.auth_scheme, "base_url": self.base_url}
        chosen |= {name: value for name, value in named.items() if value is not None}
        chosen["auth_secret"] = secret or read_secret(self.secret_file)
        return FlinksClient(**chosen, settings=settings, allow_http=self.allow_http, observers=observers)


_OPTIONS = (
    click.option("--instance", metavar="NAME", help="Flinks instance [FLINKS_INSTANCE, else toolbox]."),
    click.option(
        "--auth-scheme",
        type=click.Choice(AUTH_SCHEMES),
        help="Header that carries the AuthSecret [FLINKS_AUTH_SCHEME, else flinks-auth-key].",
    ),
    click.option("--base-url", metavar="URL", help="Another address than the instance's [FLINKS_BASE_URL]."),
    click.option("--allow-http", is_flag=True, help="Send the secret unencrypted, to an http:// address."),
    click.option(
        "--secret-file",
        metavar="FILE",
        help="File with the AuthSecret, '-' for standard input. Without it: FLINKS_AUTH_SECRET.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="For one token, all attempts and waits included.",
    ),
)


def access_options(command: F) -> F:
    """Adds the options above; the command gets them as `access`, and `timeout`."""

    @wraps(command)
    def with_access(
        instance: str | None,
        auth_scheme: str | None,
        base_url: str | None,
        allow_http: bool,
        secret_file: str | None,
        **arguments: Any,
    ) -> Any:
        return command(access=Access(instance, auth_scheme, base_url, allow_http, secret_file), **arguments)

    decorated: Any = with_access
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]
