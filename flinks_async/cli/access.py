"""The options that say where to ask and with which secret, how secrets are read, and the clients made of them.

A job has one client, or one for each instance that its input names.

A file of instances is TOML with one table for each instance. It holds no secrets:

    [acme]
    secret_env = "ACME_SECRET"
    [beta-ca]
    secret_file = "beta.secret"     # beside this file
    auth_scheme = "bearer"
"""

from __future__ import annotations

import errno
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

import click
from attrs import field, frozen

from .. import config
from ..bulk.compression import BY_SUFFIX
from ..bulk.errors import InputError
from ..bulk.executors.cluster import ClusterOptions
from ..bulk.inputs import STDIN
from ..bulk.inputs.formats import FORMATS
from ..bulk.selection import PSEUDONYM_KEY
from ..client import FlinksClient
from ..config import AUTH_SCHEMES, Settings
from ..endpoint import INSTANCE_NAME, WHERE_SECRETS_COME_FROM
from ..errors import ConfigError
from ..secret import Secret
from .console import UsageError
from .options import file_name, grouped

_MAX_FILE: Final = 64 * 1024
_PIECE: Final = 1024 * 1024
_BOM: Final = b"\xef\xbb\xbf"

_KEYS: Final = ("secret_env", "secret_file", "auth_scheme", "base_url")


@frozen
class Access:
    """Where to ask, and with which secret. Values of None come from the environment."""

    instance: str | None = None
    auth_scheme: str | None = None
    base_url: str | None = None
    allow_http: bool = False
    secret_file: str | None = None
    trust_env: bool = False

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
        return FlinksClient(**chosen, settings=settings, **self.way)

    @property
    def way(self) -> dict[str, Any]:
        """Arguments of a client that say how it connects."""
        return {"allow_http": self.allow_http, "connection": {"trust_env": self.trust_env}}


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
    click.option("--trust-env", is_flag=True, help="Use the proxy of HTTPS_PROXY, except for the hosts of NO_PROXY."),
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
                clients[name] = FlinksClient(**options, settings=settings, **access.way)
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
    if instances == STDIN:
        raise UsageError("--executor: --instances must be a file, because the names of files in it are relative to it.")
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


# --- secrets and tokens: from a file, standard input, the environment or a hidden prompt, never from an argument -----------

pseudonym_key_option = file_name(
    "--pseudonym-key-file",
    help="File with the key of --pseudonyms, '-' for standard input [FLINKS_PSEUDONYM_KEY].",
)


def read_secret(secret_file: str | None) -> Secret:
    """The AuthSecret: from --secret-file, else from FLINKS_AUTH_SECRET.

    Raises:
        UsageError: there is none, or the file cannot be read. The message shows no value.
    """
    if secret_file is not None:
        return read_line(secret_file, "--secret-file")
    if value := os.environ.get("FLINKS_AUTH_SECRET", "").strip():
        return Secret(value)
    raise UsageError(
        f"No AuthSecret. Set FLINKS_AUTH_SECRET, or name a file with --secret-file ('-' is standard input). "
        f"{WHERE_SECRETS_COME_FROM}."
    )


def read_pseudonym_key(key_file: str | None) -> Secret | None:
    """The key of pseudonyms: from --pseudonym-key-file, else from FLINKS_PSEUDONYM_KEY; None if there is none. Raises
    UsageError as `read_secret`.
    """
    if key_file is not None:
        return read_line(key_file, "--pseudonym-key-file")
    value = os.environ.get(PSEUDONYM_KEY, "").strip()
    return Secret(value) if value else None


def read_token(token_file: str | None) -> Secret:
    """The access token: from --token-file, else from FLINKS_ACCESS_TOKEN, else from a hidden prompt on a terminal.
    Raises UsageError as `read_secret`.
    """
    if token_file is not None:
        return read_line(token_file, "--token-file", "For many tokens there is 'fetch'.")
    if value := os.environ.get("FLINKS_ACCESS_TOKEN", "").strip(" \t\r\n"):
        return Secret(value)
    if stdin_is_terminal():
        return Secret(click.prompt("Access token", hide_input=True, err=True).strip(" \t\r\n"))
    raise UsageError(
        "No access token. Name a file with --token-file ('-' is standard input), or set FLINKS_ACCESS_TOKEN; "
        "on a terminal you are asked for it."
    )


def read_line(path: str, option: str, hint: str = "") -> Secret:
    """The only line of a file. Raises UsageError as `read_secret`.

    Args:
        option: how the file was given.
        hint: what to do if there are more lines.
    """
    lines = [line for line in (line.strip(" \t\r") for line in read_text(path, option).split("\n")) if line]
    if not lines:
        raise UsageError(f"The input for {option}{named(path)} is empty.")
    if len(lines) > 1:
        raise UsageError(f"The input for {option}{named(path)} has {len(lines):,} lines instead of one. {hint}".strip())
    return Secret(lines[0])


def read_text(path: str, option: str) -> str:
    """A small file, '-' for standard input. Raises UsageError as `read_secret`."""
    try:
        text = _read_bytes(path, option).removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if text is None:  # raised here, since the error above holds the text
        raise UsageError(f"The input for {option}{named(path)} is not UTF-8 text.")
    return text


def _read_bytes(path: str, option: str) -> bytes:
    try:
        if path == STDIN:
            data = _stdin().read(_MAX_FILE + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(_MAX_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a file"
        raise UsageError(f"The file given with {option}{named(path)} cannot be read: {reason}.") from None
    if len(data) > _MAX_FILE:
        raise UsageError(f"The file given with {option}{named(path)} is larger than {_MAX_FILE:,} bytes.")
    return data


_FILE_ENDS: Final = (*FORMATS, *BY_SUFFIX, ".json", ".toml")


def named(path: str) -> str:
    """The name of a file for a message, in brackets. Empty for a name without such a file and without a usual end: it may be
    a secret in the wrong place.
    """
    return f" ({path})" if path != STDIN and (os.path.exists(path) or path.lower().endswith(_FILE_ENDS)) else ""


def read_all_stdin() -> bytes:
    """Standard input to its end. Without a buffer, since a daemon thread that waits in one would hold its lock at exit.

    Raises:
        InputError: it is closed, or cannot be read.
    """
    try:
        try:
            number = _stdin().fileno()
        except ValueError:  # replaced by a test
            return _stdin().read()
        return b"".join(iter(partial(os.read, number, _PIECE), b""))
    except OSError as error:
        raise InputError(f"Standard input cannot be read: {error.strerror}.") from None


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise OSError(errno.EBADF, "it is closed")
    return sys.stdin.buffer


def stdin_is_terminal() -> bool:
    """Whether the user can be asked."""
    try:
        return sys.stdin is not None and sys.stdin.isatty()
    except ValueError:  # closed
        return False
