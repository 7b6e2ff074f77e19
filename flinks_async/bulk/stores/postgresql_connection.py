"""Connections to PostgreSQL: no password in what a job keeps, and no data in what an error says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ...errors import ConfigError
from ..errors import StoreError

if TYPE_CHECKING:
    import psycopg

_KEYS: Final = frozenset({"scram_client_key", "scram_server_key"})
_HIDDEN: Final = b"*"
"""How libpq marks an option that is not to be shown."""

# Conditions whose texts may quote a row: data exceptions, violated constraints, and what triggers raise.
_QUOTING: Final = ("22", "23", "P0")


def library() -> Any:
    """psycopg.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import psycopg

        return psycopg
    except ImportError as error:
        why = "" if isinstance(error, ModuleNotFoundError) else ", with libpq"
    raise ConfigError(f"PostgreSQL needs psycopg{why}: pip install 'flinks-async[postgresql]'")


def without_secrets(conninfo: str) -> str:
    """A connection string in one form, after a look that it holds no password: it is written into the job's manifest.

    Raises:
        ConfigError: it holds one, or cannot be understood. The message shows nothing of it.
    """
    pg = library()
    try:
        options = [option for option in pg.pq.Conninfo.parse(conninfo.encode()) if option.val is not None]
    except (pg.Error, UnicodeEncodeError):
        options = None
    if options is None:
        raise ConfigError(
            "the connection to PostgreSQL cannot be understood: it is postgresql://USER@HOST/DATABASE or "
            "'host=HOST dbname=DATABASE user=USER', without a password"
        )
    secret = [name for o in options if (name := o.keyword.decode()) in _KEYS or o.dispchar == _HIDDEN]
    if secret:
        raise ConfigError(
            f"the connection to PostgreSQL holds a secret ({', '.join(secret)}), and a job writes it to its manifest: "
            "put it into PGPASSWORD, ~/.pgpass or a service file instead"
        )
    given = {option.keyword.decode(): option.val.decode() for option in options}
    return str(pg.conninfo.make_conninfo(**given))


def connect(conninfo: str) -> psycopg.Connection[Any]:
    """A new connection. A password comes from PGPASSWORD, ~/.pgpass or a service file.

    Raises:
        StoreError: the server cannot be reached, or says no.
    """
    pg = library()
    try:
        connection: psycopg.Connection[Any] = pg.connect(
            conninfo, autocommit=True, fallback_application_name="flinks-async", client_encoding="UTF8"
        )
        return connection
    except pg.Error as error:
        problem = store_error(error)
    raise problem


def store_error(error: psycopg.Error) -> StoreError:
    """What stands for an error of the server or of libpq. To be raised outside of the `except` block."""
    state = error.sqlstate
    if state is None:
        return StoreError(f"PostgreSQL: {' '.join(str(error).split())}")
    name = type(error).__name__
    if state.startswith(_QUOTING) or error.diag.message_primary is None:
        return StoreError(f"PostgreSQL refuses the data: {name} ({state}) in the table {error.diag.table_name or '?'}")
    return StoreError(f"PostgreSQL: {error.diag.message_primary} ({name}, {state})")
