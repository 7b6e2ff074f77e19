"""The clients of a job: one, or one for each instance that its input names.

An instances file is TOML, with a table for each instance and no secret in it:

    [acme]
    secret_env = "ACME_SECRET"
    [beta-ca]
    secret_file = "beta.secret"     # beside this file
    auth_scheme = "bearer"
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from attrs import field, frozen

from .. import config
from ..client import FlinksClient
from ..config import AUTH_SCHEMES, Settings
from ..endpoint import INSTANCE_NAME
from ..errors import ConfigError
from ..secret import Secret
from .options import Access
from .secret_input import read_line, read_text
from .usage import UsageError

_KEYS: Final = ("secret_env", "secret_file", "auth_scheme", "base_url")

instances_option = click.option(
    "--instances",
    metavar="FILE",
    help="TOML file that says where the secret of each instance is; for --instance-column.",
)


@frozen
class Clients:
    """Clients on one connection pool.

    Attributes:
        first: closing it closes all of them.
        by_instance: all of them, by the name of their instance; empty if the input names none.
    """

    first: FlinksClient
    by_instance: Mapping[str, FlinksClient] = field(factory=dict)

    @property
    def for_job(self) -> FlinksClient | Mapping[str, FlinksClient]:
        return self.by_instance or self.first

    @property
    def origin(self) -> dict[str, str]:
        """Hosts, by the name of the instance."""
        return {name: client.host for name, client in (self.by_instance or {"": self.first}).items()}


def make_clients(access: Access, settings: Settings, instances: str | None, column: str | None) -> Clients:
    """Reads the secrets, and makes the clients.

    Args:
        instances: the file, for an input with a column of instances.
        column: that column.

    Raises:
        Wrong, ConfigError: an option, the file, or a secret. No message holds a secret.
    """
    if column is not None and instances is None:
        raise UsageError("The tokens name their instance: --instances FILE must say where the secrets are.")
    if column is None and instances is not None:
        raise UsageError("--instances is for tokens that name their instance, in --instance-column.")
    if instances is None:
        return Clients(access.client(settings))
    if access.instance or access.base_url or access.secret_file:
        raise UsageError("With --instances, its file has what --instance, --base-url and --secret-file are for.")
    clients: dict[str, FlinksClient] = {}
    for name, options in _read(instances, access.auth_scheme).items():
        try:
            if clients:
                clients[name] = next(iter(clients.values())).with_options(**options)
            else:
                clients[name] = FlinksClient(**options, settings=settings, allow_http=access.allow_http)
        except ConfigError as error:
            problem = error.message
        else:
            continue
        raise UsageError(f"--instances: [{name}]: {problem}.")
    return Clients(next(iter(clients.values())), clients)


def _read(path: str, auth_scheme: str | None) -> dict[str, dict[str, Any]]:
    """The arguments of each client."""
    try:
        tables, where = tomllib.loads(read_text(path, "--instances")), None
    except tomllib.TOMLDecodeError as error:
        tables, where = None, re.search(r"\(at [a-z0-9, ]+\)$", str(error))
    if tables is None:  # raised here, since the error above holds the text
        raise UsageError(f"--instances: the file is not TOML {where[0] if where else ''}".rstrip() + ".")
    if not tables:
        raise UsageError("--instances: the file names no instance.")
    default = auth_scheme or config.from_env().get("auth_scheme", AUTH_SCHEMES[0])
    return {name: _options(name, table, Path(path).parent, default) for name, table in tables.items()}


def _options(name: str, table: object, folder: Path, auth_scheme: str) -> dict[str, Any]:
    def refuse(problem: str) -> NoReturn:
        raise UsageError(f"--instances: [{name}] {problem}.")

    if not INSTANCE_NAME.fullmatch(name):
        raise UsageError("--instances: a table's name must be that of a Flinks instance, such as [toolbox].")
    if not isinstance(table, dict):
        refuse("must be a table with secret_env or secret_file")
    for key, value in table.items():
        if key not in _KEYS:
            hint = " A secret itself does not belong into this file" if "secret" in key.lower() else ""
            refuse(f"has a key that is not known; it may have {', '.join(_KEYS)}.{hint}".rstrip("."))
        if not isinstance(value, str):
            refuse(f"has no text for {key}")
    if table.get("auth_scheme", auth_scheme) not in AUTH_SCHEMES:
        refuse(f"has another auth_scheme than {', '.join(AUTH_SCHEMES)}")
    return {
        "instance": name,
        "auth_secret": _secret(name, table, folder, refuse),
        "auth_scheme": table.get("auth_scheme", auth_scheme),
        "base_url": table.get("base_url"),
    }


def _secret(name: str, table: Mapping[str, str], folder: Path, refuse: Any) -> Secret:
    if ("secret_env" in table) == ("secret_file" in table):
        refuse("must have either secret_env or secret_file")
    if "secret_file" in table:
        return read_line(str(folder / table["secret_file"]), f"secret_file of [{name}]")
    value = Secret(os.environ.get(table["secret_env"], "").strip())
    if not value:
        # Without the variable's name: somebody may have put the secret in its place.
        refuse("names an environment variable in secret_env that is not set")
    return value
