"""The options that say where to ask and with which secret, and the clients made of them.

A job has one client, or one for each instance that its input names.

A file of instances is TOML with one table for each instance. It holds no secrets:

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
from ..bulk.executors.cluster import ClusterOptions
from ..bulk.inputs import STDIN
from ..client import FlinksClient
from ..config import AUTH_SCHEMES, Settings
from ..endpoint import INSTANCE_NAME
from ..errors import ConfigError
from ..secret import Secret
from .console import UsageError
from .options import file_name, grouped
from .secret_input import read_line, read_secret, read_text

_KEYS: Final = ("secret_env", "secret_file", "auth_scheme", "base_url")


@frozen
class Access:
    """Where to ask, and with which secret. Values of None come from the environment."""

    instance: str | None = None
    auth_scheme: str | None = None
    base_url: str | None = None
    allow_http: bool = False
    secret_file: str | None = None

    def client(self, settings: Settings) -> FlinksClient:
        """A client.

        Raises:
            ConfigError: a setting is wrong.
            UsageError: there is no instance, which has no default here: the secret of another instance could go to it.
                Also as `read_secret`.
        """
        chosen = config.from_env()
        if self.instance is not None and self.base_url is None:
            chosen.pop("base_url", None)  # --instance overrides FLINKS_BASE_URL
        named = {"instance": self.instance, "auth_scheme": self.auth_scheme, "base_url": self.base_url}
        chosen |= {name: value for name, value in named.items() if value is not None}
        chosen["auth_secret"] = read_secret(self.secret_file)
        if "instance" not in chosen and "base_url" not in chosen:
            raise UsageError(
                "No instance. Name the Flinks instance that the AuthSecret belongs to with --instance or FLINKS_INSTANCE, "
                "such as toolbox, the one for tests. Nothing was sent."
            )
        return FlinksClient(**chosen, settings=settings, allow_http=self.allow_http)


access_options = grouped(
    "access",
    Access,
    click.option("--instance", metavar="NAME", help="Flinks instance [FLINKS_INSTANCE]."),
    click.option(
        "--auth-scheme",
        type=click.Choice(AUTH_SCHEMES),
        help="Header that carries the AuthSecret [FLINKS_AUTH_SCHEME, else flinks-auth-key].",
    ),
    click.option("--base-url", metavar="URL", help="Address to use instead of the instance's [FLINKS_BASE_URL]."),
    click.option("--allow-http", is_flag=True, help="Send the secret unencrypted, to an http:// address."),
    file_name(
        "--secret-file",
        help="File with the AuthSecret, '-' for standard input [FLINKS_AUTH_SECRET].",
    ),
)

instances_option = file_name(
    "--instances",
    help="TOML file that says where the secret of each instance is, for --instance-column.",
)


@frozen
class Clients:
    """Clients that share a connection pool.

    Attributes:
        first: closing it closes all of them.
        by_instance: all clients by the name of their instance; empty if the input names none.
    """

    first: FlinksClient
    by_instance: Mapping[str, FlinksClient] = field(factory=dict)

    @property
    def for_job(self) -> FlinksClient | Mapping[str, FlinksClient]:
        return self.by_instance or self.first

    @property
    def origin(self) -> dict[str, str]:
        """Hosts by the name of the instance."""
        return {name: client.host for name, client in (self.by_instance or {"": self.first}).items()}


def make_clients(access: Access, settings: Settings, instances: str | None, column: str | None) -> Clients:
    """Reads the secrets, and makes the clients.

    Args:
        instances: the file, for an input with a column of instances.
        column: that column.

    Raises:
        UsageError, ConfigError: an option, the file or a secret is wrong. No message holds a secret.
    """
    if column is not None and instances is None:
        raise UsageError("--instance-column needs --instances FILE, which says where the secrets are.")
    if column is None and instances is not None:
        raise UsageError("--instances needs --instance-column, the column or field that names the instance of a token.")
    if instances is None:
        return Clients(access.client(settings))
    if access.instance or access.base_url or access.secret_file:
        raise UsageError(
            "--instance, --base-url and --secret-file do not go with --instances: its file has these values."
        )
    clients: dict[str, FlinksClient] = {}
    problem = ""
    for name, options in _read(instances, access.auth_scheme).items():
        try:
            if clients:
                clients[name] = next(iter(clients.values())).with_options(**options)
            else:
                clients[name] = FlinksClient(**options, settings=settings, allow_http=access.allow_http)
        except ConfigError as error:
            problem = f"[{name}]: {error.message}"
            break
    if problem:  # raised here, so that its context holds no secret
        raise UsageError(f"--instances: {problem}.")
    return Clients(next(iter(clients.values())), clients)


def _read(path: str, auth_scheme: str | None) -> dict[str, dict[str, Any]]:
    """The arguments of each client."""
    tables = _tables(path)
    default = auth_scheme or config.from_env().get("auth_scheme", AUTH_SCHEMES[0])
    return {name: _options(name, table, Path(path).parent, default) for name, table in tables.items()}


def _tables(path: str) -> dict[str, Any]:
    """The tables of the file of instances."""
    try:
        tables, where = tomllib.loads(read_text(path, "--instances")), None
    except tomllib.TOMLDecodeError as error:
        tables, where = None, re.search(r"\(at [a-z0-9, ]+\)$", str(error))
    if tables is None:  # raised here, because the error above holds the text
        raise UsageError(f"--instances: {path} is not TOML {where[0] if where else ''}".rstrip() + ".")
    if not tables:
        raise UsageError(f"--instances: {path} names no instance.")
    return tables


def secret_references(access: Access, instances: str | None) -> ClusterOptions:
    """Where the workers of a cluster find the secrets: at the same place as this process.

    Raises:
        UsageError: they cannot look there.
    """
    if instances is None:
        if access.secret_file == STDIN:
            raise UsageError("--executor: workers cannot read --secret-file -. Name a file that is on every machine.")
        if access.secret_file is None:
            return {"secret_env": "FLINKS_AUTH_SECRET"}
        return {"secret_file": str(Path(access.secret_file).absolute())}
    tables, folder = _tables(instances), Path(instances).absolute().parent
    files = {name: str(folder / table["secret_file"]) for name, table in tables.items() if "secret_file" in table}
    if files and len(files) < len(tables):
        raise UsageError("--executor: the secrets of all instances must be in files, or all in the environment.")
    if files:
        return {"secret_file": files}
    return {"secret_env": {name: table["secret_env"] for name, table in tables.items()}}


def _options(name: str, table: object, folder: Path, auth_scheme: str) -> dict[str, Any]:
    def refuse(problem: str) -> NoReturn:
        raise UsageError(f"--instances: [{name}] {problem}.")

    if not INSTANCE_NAME.fullmatch(name):
        raise UsageError("--instances: the name of a table must be that of a Flinks instance, such as [toolbox].")
    if not isinstance(table, dict):
        refuse("must be a table with secret_env or secret_file")
    for key, value in table.items():
        if key not in _KEYS:
            hint = " Never put a secret itself into this file" if "secret" in key.lower() else ""
            refuse(f"has an unknown key; the known ones are {', '.join(_KEYS)}.{hint}".rstrip("."))
        if not isinstance(value, str):
            refuse(f"must have a text as {key}")
    scheme = table.get("auth_scheme", auth_scheme)
    if scheme not in AUTH_SCHEMES:
        refuse(f"must have one of these as auth_scheme: {', '.join(AUTH_SCHEMES)}")
    if ("secret_env" in table) == ("secret_file" in table):
        refuse("must have secret_env or secret_file, and not both")
    if "secret_file" in table:
        secret = read_line(str(folder / table["secret_file"]), f"secret_file of [{name}]")
    else:
        secret = Secret(os.environ.get(table["secret_env"], "").strip())
    if not secret:  # the variable's name is not shown, because it may be a secret in the wrong place
        refuse("names an environment variable in secret_env that is not set or is empty")
    return {"instance": name, "auth_secret": secret, "auth_scheme": scheme, "base_url": table.get("base_url")}
