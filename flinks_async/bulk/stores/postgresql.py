"""Answers as tables of a PostgreSQL database. Needs psycopg.

Tables and commit marks are as in SQLite, with PostgreSQL's types, in a schema of their own. Rows are copied into temporary
tables; one transaction moves them into the tables and adds the shard's commit mark. It replaces earlier rows of the same
lines, so a repetition has no effect.

PostgreSQL cannot hold some values; they are stored in another form, without loss:

- A text cannot contain U+0000. Its column has U+FFFD instead, and `extra` has the exact text, under `flinks_async.text`
  and the column's name.
- `jsonb` cannot contain U+0000, nor numbers beyond those of `numeric`. Such JSON becomes a JSON string that holds its text:
  `extra #>> '{}'` returns it.

A job stores no password, and errors show no data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from ...checks import optional_import
from ...codec.parse import decode_any
from ...errors import ConfigError
from ...tables import ColumnType, Row, Table, to_json
from .. import crash_points
from ..errors import StoreError, StoreMissingError
from ..records import Commit
from .answer_rows import FETCHES, TABLES, does_not_fit
from .database import ROWS, DatabaseStore
from .database_schema import prepare, quoted
from .protocol import Place

__all__ = ["PostgreSQLStore"]

if TYPE_CHECKING:
    import psycopg

_LOCK: Final = 0x666C696E6B73
"""The advisory lock for creating or changing the tables: "flinks" as a number."""

_KEYS: Final = frozenset({"scram_client_key", "scram_server_key"})

_HIDDEN: Final = b"*"
"""How libpq marks an option that must not be shown."""

_QUOTING: Final = ("22", "23", "P0")
"""Error classes whose texts may quote a row: data exceptions, violated constraints, errors raised by triggers."""

EXACT: Final = "flinks_async.text"

_INT64: Final = range(-(2**63), 2**63)

_SUSPECT: Final = re.compile(r"\\u0000|[0-9][eE][+-]?[0-9]{3}|[0-9]{1000}")

_MOST_DIGITS: Final = 10_000
"""Digits before or after the point. PostgreSQL allows 131,072 and 16,383."""


class PostgreSQLStore(DatabaseStore["psycopg.Connection[Any]"]):
    """A schema of a database, for any number of jobs.

    Args:
        conninfo: libpq's connection string, a URL or `key=value` pairs, without a password: that comes from PGPASSWORD,
            ~/.pgpass or a service file, and is never written anywhere.
        schema: the schema of the tables (default `flinks`). It is created if it is missing.

    Raises:
        ConfigError: psycopg is not installed, or the connection string holds a password or is invalid.
    """

    types: ClassVar[dict[ColumnType, str]] = {
        "text": "text",
        "json": "jsonb",
        "amount": "numeric",
        "integer": "bigint",
        "position": "bigint NOT NULL",
        "flag": "boolean",
        "date": "date",
        "instant": "timestamptz",
    }
    unique: ClassVar[bool] = True

    # Independent of the database's settings: a statement must see what another job did while this one waited for a lock.
    _begin: ClassVar[str] = "BEGIN ISOLATION LEVEL READ COMMITTED"

    def __init__(self, conninfo: str = "", schema: str = "flinks") -> None:
        self._library = optional_import("psycopg", extra="postgresql")
        self._conninfo = without_secrets(conninfo)
        if not _is_name(schema):
            raise ConfigError("schema must be a name of 1 to 63 bytes")
        self._schema = schema
        self._db: psycopg.Connection[Any] | None = None
        self._place: Place | None = None

    def describe(self) -> dict[str, Any]:
        return {"kind": "postgresql", "conninfo": self._conninfo, "schema": self._schema}

    def open(self, place: Place, *, existing: bool = False) -> None:
        self.close()
        self._place = place
        self._connect(place, existing=existing)

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        try:
            return super().put(commit, spool)
        except StoreError:
            if self._place is None or self._db is None or not self._db.closed:
                raise
        # The connection was lost, perhaps hours ago. The commit mark tells whether the transaction took effect.
        self._connect(self._place)
        return super().put(commit, spool)

    def purge(self) -> list[str]:
        return [] if self._bare else self._delete_rows()

    @property
    def where(self) -> str:
        return f"PostgreSQL ({self._conninfo or 'the default database'}), schema {self._schema}"

    def _execute(self, sql: str, values: tuple[Any, ...]) -> psycopg.Cursor[Any]:
        return self._opened.execute(_native(sql, values), values or None)

    def _stream(self, sql: str, *values: Any) -> Iterator[Sequence[Row]]:
        with self._transaction(), self._opened.cursor(name="flinks") as cursor:
            self._do(lambda: cursor.execute(_native(sql, values), values))
            while rows := self._do(lambda: cursor.fetchmany(ROWS)):
                yield rows

    def _select(self, table: Table) -> list[str]:
        return [
            f"t.{name}::text" if column.type == "json" else f"t.{name}"
            for name, column in zip(quoted(table), table.columns, strict=True)
        ]

    def _insert(self, table: Table, rows: list[Row]) -> list[Row]:
        stored = [storable(self.where, table, row) for row in rows]
        sql = f"COPY {_staged(table)} ({', '.join(quoted(table))}) FROM STDIN"
        self._do(lambda: self._copy(sql.encode(), stored))
        return stored

    def _copy(self, sql: bytes, rows: list[Row]) -> None:
        with self._opened.cursor().copy(sql) as copy:
            for row in rows:
                copy.write_row(row)

    def _inserted(self) -> None:
        lines = f"SELECT line FROM {_staged(FETCHES)}"
        for table in TABLES:
            columns = ", ".join(quoted(table))
            self.run(f"DELETE FROM {table.name} WHERE job = ? AND line IN ({lines})", self._job)
            self.run(f"INSERT INTO {table.name} (job, {columns}) SELECT {self._job}, {columns} FROM {_staged(table)}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with super()._transaction():
            # Some databases are configured to confirm a commit before it is on the disk.
            asynchronous = "current_setting('synchronous_commit') = 'off'"
            self.run(f"SELECT set_config('synchronous_commit', 'on', true) WHERE {asynchronous}")
            yield
        crash_points.reach("database committed")

    def _connect(self, place: Place, *, existing: bool = False) -> None:
        self.close()
        self._db = connect(self._conninfo)
        name = '"' + self._schema.replace('"', '""') + '"'
        try:
            self.run(f"SET search_path TO {name}")
            self.run("SET TimeZone TO 'UTC'")
            self.run("SET DateStyle TO 'ISO'")  # psycopg reads points in time only in this style
            if existing:
                if not self._has_schema():
                    raise StoreMissingError(self.where)
                self._look(place.job)
                return
            with self._transaction():
                self.run(f"SELECT pg_advisory_xact_lock({_LOCK})")
                if not self._has_schema():
                    self.run(f"CREATE SCHEMA {name}")
                self._job = prepare(self, place.job)
            for table in TABLES:
                columns = ", ".join(f'"{column.name}" {self.types[column.type]}' for column in table.columns)
                self.run(f"CREATE TEMPORARY TABLE {_staged(table)} ({columns}) ON COMMIT DELETE ROWS")
        except BaseException:
            self.close()
            raise

    def _has_schema(self) -> bool:
        return bool(self.fetch("SELECT 1 FROM pg_namespace WHERE nspname = ?", self._schema))

    def _store_error(self, error: psycopg.Error) -> StoreError:
        return store_error(error)


def _staged(table: Table) -> str:
    return f"flinks_staged_{table.name}"


def _is_name(schema: str) -> bool:
    """Whether it can name a schema. In a search path, `$user` would be the schema of the user."""
    try:
        return 1 <= len(schema.encode()) <= 63 and "\0" not in schema and schema != "$user"
    except UnicodeEncodeError:
        return False


def _native(sql: str, values: Sequence[Any]) -> bytes:
    return (sql.replace("?", "%s") if values else sql).encode()


# --- connections -------------------------------------------------------------------------------------------------------


def without_secrets(conninfo: str) -> str:
    """A connection string in a normal form. It must hold no password, because it is written to the job's manifest.

    Raises:
        ConfigError: it holds a password, or is invalid. The message does not show it.
    """
    pg = optional_import("psycopg", extra="postgresql")
    try:
        options = [option for option in pg.pq.Conninfo.parse(conninfo.encode()) if option.val is not None]
    except (pg.Error, UnicodeEncodeError):
        options = None
    if options is None:
        raise ConfigError(
            "the connection to PostgreSQL cannot be understood. Write postgresql://USER@HOST/DATABASE or "
            "'host=HOST dbname=DATABASE user=USER', without a password"
        )
    secret = [name for o in options if (name := o.keyword.decode()) in _KEYS or o.dispchar == _HIDDEN]
    if secret:
        raise ConfigError(
            f"the connection to PostgreSQL holds a secret ({', '.join(secret)}), but a job writes it to its manifest. "
            "Put the secret into PGPASSWORD, ~/.pgpass or a service file"
        )
    given = {option.keyword.decode(): option.val.decode() for option in options}
    return str(pg.conninfo.make_conninfo(**given))


def connect(conninfo: str) -> psycopg.Connection[Any]:
    """Opens a connection. A password comes from PGPASSWORD, ~/.pgpass or a service file.

    Raises:
        StoreError: the server cannot be reached or refuses.
    """
    pg = optional_import("psycopg", extra="postgresql")
    try:
        connection: psycopg.Connection[Any] = pg.connect(
            conninfo, autocommit=True, fallback_application_name="flinks-async", client_encoding="UTF8"
        )
        return connection
    except pg.Error as error:
        problem = store_error(error)
    raise problem


def store_error(error: psycopg.Error) -> StoreError:
    """Our error for an error of the server or of libpq. Raise it outside of the `except` block."""
    state = error.sqlstate
    if state is None:
        return StoreError(f"PostgreSQL: {' '.join(str(error).split())}")
    name = type(error).__name__
    if state.startswith(_QUOTING) or error.diag.message_primary is None:
        return StoreError(f"PostgreSQL refuses the data: {name} ({state}) in the table {error.diag.table_name or '?'}")
    return StoreError(f"PostgreSQL: {error.diag.message_primary} ({name}, {state})")


# --- values ------------------------------------------------------------------------------------------------------------


def storable(where: str, table: Table, row: Row) -> Row:
    """A row as PostgreSQL stores it.

    Args:
        where: name of the database, for the error.

    Raises:
        StoreError: a value does not fit its column.
    """
    exact: dict[str, str] = {}
    values = list(row)
    for number, column in enumerate(table.columns):
        value = values[number]
        if value is None:
            continue
        if column.type == "text":
            if "\0" in value:
                exact[column.name] = value
                values[number] = value.replace("\0", "\ufffd")
        elif column.type == "json":
            values[number] = _json(value)
        elif column.type == "integer" and value not in _INT64:
            raise does_not_fit(where, table, column, row, "bigint")
    if exact:
        number = table.names.index("extra")
        extra: dict[str, Any] = {} if row[number] is None else decode_any(row[number].encode())
        values[number] = _json(to_json({**extra, EXACT: exact}).decode())
    return tuple(values)


def _json(text: str) -> str:
    if _SUSPECT.search(text) and not _fits(decode_any(text.encode())):
        return msgspec.json.encode(text).decode()
    return text


def _fits(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" not in value
    if isinstance(value, dict):
        return all("\0" not in key and _fits(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_fits, value))
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        _, digits, exponent = Decimal(value).as_tuple()
        return isinstance(exponent, int) and len(digits) + abs(exponent) <= _MOST_DIGITS
    return True
