"""Answers as tables of a PostgreSQL database. Needs psycopg and pyarrow.

Tables and commit marks are as in SQLite, with PostgreSQL's types, in a schema of their own. One transaction replaces rows
of the same lines, copies the rows of a shard and adds its commit mark, so a repetition has no effect. Arrow writes the rows
as CSV, which PostgreSQL's COPY reads. All settings are those of a transaction, so a pooler may give each transaction another
session.

PostgreSQL cannot hold some values; they are stored in another form, without loss:

- A text cannot contain U+0000. Its column has U+FFFD instead, and `extra` has the exact text, under `flinks_async.text`
  and the column's name. If the answer has a field of this name, underscores are added to ours.
- `jsonb` cannot contain U+0000, nor numbers beyond those of `numeric`. Such JSON becomes a JSON string that holds its text:
  `extra #>> '{}'` returns it.

A job stores no password, and errors show no data.
"""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from ...checks import kind, optional_import, seconds
from ...codec.parse import decode_any
from ...errors import ConfigError
from ...limits.notices import log_fields
from ...tables import ColumnType, Row, Table, to_json
from ..counters import waits
from ..errors import StoreError, StoreMissingError
from ..files import crash_points
from ..records import Commit
from .answer_rows import FETCHES, TABLES, Rows, does_not_fit, joined
from .database import ROWS, DatabaseStore, T
from .database_schema import prepare, quoted
from .protocol import Place

__all__ = ["PostgreSQLStore"]

if TYPE_CHECKING:
    import psycopg
    import pyarrow

_LOCK: Final = 0x666C696E6B73
"""The advisory lock for creating or changing the tables: "flinks" as a number."""

_QUOTING: Final = ("22", "23", "P0")
"""Error classes whose texts may quote a row: data exceptions, violated constraints, errors raised by triggers."""

EXACT: Final = "flinks_async.text"

_DELAYS: Final = 0.1, 5.0
"""The first and the longest seconds between two attempts."""

_MAY_PASS: Final = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "55P03",  # lock_not_available
        "57014",  # query_canceled
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
        "53300",  # too_many_connections
        "25006",  # read_only_sql_transaction
    }
)

# Independent of the database's settings: a statement must see what another job did while this one waited for a lock.
_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"

_PATIENCE: Final = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
"""Options of libpq, so that a server that vanishes without a word counts as lost after about a minute."""

_log: Final = logging.getLogger("flinks_async.bulk")

_ODD: Final[dict[ColumnType, str]] = {
    "text": r"\x00",
    "json": r"\\u0000|[0-9][eE][+-]?[0-9]{3}|[0-9]{1000}",
    "amount": r"^-[0.]+$",  # `numeric` has no negative zero
}
"""Regular expressions that find the values that PostgreSQL may not store as they are."""

_MOST_DIGITS: Final = 10_000
"""Digits before or after the point. PostgreSQL allows 131,072 and 16,383."""


class PostgreSQLStore(DatabaseStore["psycopg.Connection[Any]"]):
    """A schema of a database, for any number of jobs.

    Args:
        conninfo: libpq's connection string, a URL or `key=value` pairs, without a password: that comes from PGPASSWORD,
            ~/.pgpass or a service file, and is never written anywhere.
        schema: the schema of the tables (default `flinks`). It is created if it is missing.
        retry_for: seconds for which a shard is written again (default 120) after a deadlock or a timeout, or while the
            server cannot be reached. It is not part of the description.

    Raises:
        ConfigError: psycopg or pyarrow is not installed, or the connection string holds a password or is invalid.
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
    read_as: ClassVar[dict[ColumnType, str]] = {
        "json": "{}::text",
        "amount": "{}::text",
        "date": "{}::text",
        "instant": """to_char({}, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')""",
    }
    unique: ClassVar[bool] = True

    def __init__(self, conninfo: str = "", schema: str = "flinks", *, retry_for: float = 120.0) -> None:
        self._library = optional_import("psycopg", extra="postgresql")
        optional_import("pyarrow", extra="postgresql")
        self._conninfo = without_secrets(conninfo)
        if not _is_name(schema):
            raise ConfigError("schema must be a name of 1 to 63 bytes")
        self._schema = schema
        self._name = '"' + schema.replace('"', '""') + '"'
        self._begin = f"{_BEGIN}; {_settings(self._name)}"
        seconds("retry_for", retry_for)
        self._retry_for = retry_for
        self._db: psycopg.Connection[Any] | None = None
        self._place: Place | None = None
        self._may_pass = False

    def describe(self) -> dict[str, Any]:
        return {"kind": "postgresql", "conninfo": self._conninfo, "schema": self._schema}

    def open(self, place: Place, *, existing: bool = False) -> None:
        self._place = place
        self._gets_rows = place.gets_rows
        self._patiently("opening the tables", lambda: self._connect(place, existing=existing))

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        def write() -> dict[str, Any]:
            if self._place is not None and (self._db is None or self._db.closed):  # lost, perhaps hours ago
                self._may_pass = True
                self._connect(self._place)
                self._may_pass = False
            return super(PostgreSQLStore, self).put(commit, spool)

        # The commit mark tells whether a transaction took effect whose end was not seen.
        return self._patiently(f"writing shard {commit.shard.id}", write)

    @property
    def where(self) -> str:
        return f"PostgreSQL ({self._conninfo or 'the default database'}), schema {self._schema}"

    def columns(self) -> list[Row]:
        # Unlike information_schema, the catalog also shows what this user may not read.
        return self.fetch(
            "SELECT c.relname, a.attname FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid "
            "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = ? AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND a.attnum > 0 AND NOT a.attisdropped",
            self._schema,
        )

    def _execute(self, sql: str, values: tuple[Any, ...]) -> psycopg.Cursor[Any]:
        return self._opened.execute(_native(sql, values), values or None)

    def _stream(self, sql: str, *values: Any) -> Iterator[Sequence[Row]]:
        with self._some_transaction(), self._opened.cursor(name="flinks") as cursor:
            self._do(lambda: cursor.execute(_native(sql, values), values))
            while rows := self._do(lambda: cursor.fetchmany(ROWS)):
                yield rows

    def _storable(self, table: Table, rows: Rows) -> Rows:
        assert not isinstance(rows, list)  # pyarrow is installed
        return storable(table, rows)

    def _insert(self, table: Table, rows: Rows) -> None:
        assert not isinstance(rows, list)
        if table is FETCHES:  # the first table: it has a row for each answer
            lines = rows["line"].to_pylist()  # ascending
            one = "(SELECT 1 FROM {} WHERE job = ? AND line BETWEEN ? AND ? LIMIT 1)"
            some = " UNION ALL ".join(one.format(each.name) for each in TABLES)
            for each in TABLES if self.fetch(some, *(self._job, lines[0], lines[-1]) * len(TABLES)) else ():
                self.run(f"DELETE FROM {each.name} WHERE job = ? AND line = ANY(?)", self._job, lines)
        try:
            self._copy(table, rows)
        except self._library.Error as error:
            problem = self._store_error(error)
            unfit = _is_of_value(error)
        else:
            return
        raise (self._find_unfit(table, rows) if unfit else None) or problem

    def _copy(self, table: Table, rows: pyarrow.Table) -> None:
        pa, csv = optional_import("pyarrow", extra="postgresql"), optional_import("pyarrow.csv", extra="postgresql")
        sql = f"COPY {table.name} (job, {', '.join(quoted(table))}) FROM STDIN (FORMAT csv)"
        text = pa.BufferOutputStream()
        # All texts are in quotes, and null is not, so that COPY can tell null from an empty text.
        options = csv.WriteOptions(include_header=False, quoting_style="needed")
        csv.write_csv(rows.add_column(0, "job", pa.repeat(self._job, len(rows))), text, options)
        with self._opened.cursor().copy(sql.encode()) as copy:
            copy.write(text.getvalue())

    def _find_unfit(self, table: Table, rows: pyarrow.Table) -> StoreError | None:
        """The error for the first value that the server refuses; None if it refuses none of them alone."""
        with suppress(self._library.Error):
            self._opened.execute("ROLLBACK")
        while len(rows) > 1:
            half = rows.slice(0, len(rows) // 2)
            rows = half if self._refuses(table, half) else rows.slice(len(half))
        (row,) = rows.to_pylist()
        for column in table.columns:
            alone = {name: row[name] for name in (column.name, *table.identity)}
            if row[column.name] is not None and self._refuses(table, rows.from_pylist([alone], rows.schema)):
                encoding = self._opened.info.parameter_status("server_encoding")
                type_ = f"{self.types[column.type]} in a database with the encoding {encoding}"
                return does_not_fit(self.where, table, column, tuple(row.values()), type_)
        return None

    def _refuses(self, table: Table, rows: pyarrow.Table) -> bool:
        """Whether a value of these rows cannot be stored. Stores nothing."""
        self._do(lambda: self._execute(self._begin, ()))
        try:
            self._copy(table, rows)
        except self._library.Error as error:
            return _is_of_value(error)
        finally:
            with suppress(self._library.Error):
                self._opened.execute("ROLLBACK")
        return False

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with super()._transaction():
            yield
        crash_points.reach("database committed")

    def _some_transaction(self) -> AbstractContextManager[None]:
        """The current transaction, or one of its own. Nothing runs outside of a transaction, because a pooler may give each
        one another session."""
        idle = self._opened.info.transaction_status == self._library.pq.TransactionStatus.IDLE
        return super()._transaction() if idle else nullcontext()

    def _connect(self, place: Place, *, existing: bool = False) -> None:
        self.close()
        self._db = connect(self._conninfo)
        try:
            usable = self.fetch(
                "SELECT pg_catalog.has_schema_privilege(oid, 'USAGE') FROM pg_catalog.pg_namespace WHERE nspname = ?",
                self._schema,
            )
            if usable == [(False,)]:  # PostgreSQL would skip the schema silently
                raise StoreError(f"PostgreSQL: permission denied for schema {self._schema}: it lacks USAGE")
            if existing:
                if not usable:
                    raise StoreMissingError(self.where)
                self._look(place.job)
                return
            with self._transaction():
                self.run(f"SELECT pg_advisory_xact_lock({_LOCK})")
                if not usable:
                    self.run(f"CREATE SCHEMA IF NOT EXISTS {self._name}")
                self._job = prepare(self, place.job)
        except BaseException:
            self.close()
            raise

    # --- what may pass ------------------------------------------------------------------------------------------------

    def _patiently(self, what: str, work: Callable[[], T]) -> T:
        """Repeats work that fails for a reason that may pass."""
        end = time.monotonic() + self._retry_for
        delay, longest = _DELAYS
        with waits.call(self.where) as wait:
            while True:
                self._may_pass = False
                try:
                    return work()
                except StoreError as error:
                    if not self._may_pass or time.monotonic() + delay > end:
                        raise
                    wait.reason, wait.until = error.message, end
                    fields = log_fields("StoreRetry", reason=error.message)
                    _log.warning("%s failed and is repeated: %s", what, error.message, extra=fields)
                time.sleep(random.uniform(delay / 2, delay))  # two jobs in a deadlock must not meet again
                delay = min(2 * delay, longest)

    def _store_error(self, error: psycopg.Error) -> StoreError:
        lost, state = self._db is not None and self._db.closed, error.sqlstate or ""
        self._may_pass = self._may_pass or lost or state in _MAY_PASS or state.startswith("08")
        if state == "25006" and self._db is not None:  # a standby, after a failover
            self._db.close()
        return store_error(error)


def _settings(schema: str) -> str:
    """SQL for the settings of one transaction; the settings of the session are left alone."""
    current = "current_setting('synchronous_commit')"
    settings = {
        "search_path": "'" + schema.replace("'", "''") + "'",
        "TimeZone": "'UTC'",
        "DateStyle": "'ISO'",  # psycopg reads points in time only in this style
        "row_security": "'off'",  # an error instead of hidden rows
        # Some databases are configured to confirm a commit before it is on the disk.
        "synchronous_commit": f"CASE {current} WHEN 'off' THEN 'on' ELSE {current} END",
    }
    return "SELECT " + ", ".join(f"set_config('{name}', {value}, true)" for name, value in settings.items())


def _is_of_value(error: psycopg.Error) -> bool:
    """Whether a value causes the error: it has no form in the database, or exceeds a limit."""
    return (error.sqlstate or "").startswith(("22", "54"))


def _is_name(schema: str) -> bool:
    """Whether it can name a schema. In a search path, `$user` would be the schema of the user."""
    try:
        return isinstance(schema, str) and 1 <= len(schema.encode()) <= 63 and "\0" not in schema and schema != "$user"
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
    kind("conninfo", conninfo, str)
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
    given = {option.keyword.decode(): option.val.decode() for option in options}
    hidden = {o.keyword.decode() for o in options if o.dispchar == b"*"}  # libpq shows stars instead of them
    secret = sorted(hidden | {"scram_client_key", "scram_server_key"} & given.keys())
    if secret:
        raise ConfigError(
            f"the connection to PostgreSQL holds a secret ({', '.join(secret)}), but a job writes it to its manifest. "
            "Put the secret into PGPASSWORD, ~/.pgpass or a service file"
        )
    return str(pg.conninfo.make_conninfo(**given))


def connect(conninfo: str) -> psycopg.Connection[Any]:
    """Opens a connection. A password comes from PGPASSWORD, ~/.pgpass or a service file.

    Raises:
        StoreError: the server cannot be reached or refuses.
    """
    pg = optional_import("psycopg", extra="postgresql")
    try:
        given = pg.conninfo.conninfo_to_dict(conninfo)
        if "PGCONNECT_TIMEOUT" in os.environ:
            given["connect_timeout"] = os.environ["PGCONNECT_TIMEOUT"]
        options = {"fallback_application_name": "flinks-async", **_PATIENCE, **given, "client_encoding": "UTF8"}
        # A prepared statement would belong to one session.
        connection: psycopg.Connection[Any] = pg.connect(**options, autocommit=True, prepare_threshold=None)
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


def storable(table: Table, rows: pyarrow.Table) -> pyarrow.Table:
    """Rows as PostgreSQL stores them."""
    if not any(c.type in _ODD and _has_odd(rows[c.name], c.type) for c in table.columns):
        return rows
    found: list[dict[str, Any]] = rows.to_pylist()
    for row in found:
        if exact := {c.name: row[c.name] for c in table.columns if c.type == "text" and "\0" in (row[c.name] or "")}:
            extra, name = {} if row["extra"] is None else decode_any(row["extra"].encode()), EXACT
            while name in extra:
                name += "_"
            row["extra"] = to_json({**extra, name: exact}).decode()
        for column in table.columns:
            if column.type in _STORABLE and row[column.name] is not None:
                row[column.name] = _STORABLE[column.type](row[column.name])
    return rows.from_pylist(found, rows.schema)


def _has_odd(values: pyarrow.ChunkedArray, type_: ColumnType) -> bool:
    pc = optional_import("pyarrow.compute", extra="postgresql")
    # A search that takes all values for one is fast, and finds nothing in most columns.
    found = any(pc.match_substring_regex(joined(one), _ODD[type_].strip("^$"))[0].as_py() for one in values.chunks)
    return found and bool(pc.any(pc.match_substring_regex(values, _ODD[type_])).as_py())


def _json(text: str) -> str:
    is_odd = re.search(_ODD["json"], text) and not _fits(decode_any(text.encode()))
    return msgspec.json.encode(text).decode() if is_odd else text


_STORABLE: Final[dict[ColumnType, Callable[[str], str]]] = {
    "text": lambda text: text.replace("\0", "\ufffd"),
    "json": _json,
    "amount": lambda text: text.removeprefix("-") if re.fullmatch(_ODD["amount"], text) else text,
}


def _fits(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" not in value
    if isinstance(value, (dict, list)):
        return all(map(_fits, chain(value, value.values()) if isinstance(value, dict) else value))
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        _, digits, exponent = Decimal(value).as_tuple()
        return isinstance(exponent, int) and len(digits) + abs(exponent) <= _MOST_DIGITS
    return True
