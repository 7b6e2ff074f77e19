"""Answers as tables of a PostgreSQL database. Needs psycopg.

Tables and marks as in SQLite, in a schema of their own, with PostgreSQL's types. Rows come by COPY into temporary tables;
from there, one transaction puts them into the tables, together with the shard's mark. Any earlier rows of the same lines
are replaced, so a repeat has no effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ...errors import ConfigError
from ...rows import ColumnType
from .. import crash_points
from ..errors import StoreError, StoreMissingError
from ..records import Commit
from .database import ROWS, DatabaseStore
from .database_schema import job_number, prepare, quoted
from .postgresql_connection import connect, library, store_error, without_secrets
from .postgresql_values import storable
from .protocol import Place
from .rows import FETCHES, TABLES, Row, Table

if TYPE_CHECKING:
    import psycopg

_LOCK: Final = 0x666C696E6B73
"""Of those who make or change the tables: "flinks" as a number."""


class PostgreSQLStore(DatabaseStore["psycopg.Connection[Any]"]):
    """A schema of a database, for any number of jobs.

    Args:
        conninfo: of libpq, as a URL or as `key=value` pairs, without a password: that comes from PGPASSWORD, ~/.pgpass or
            a service file, and is never written anywhere.
        schema: of the tables (default `flinks`). It is made if it is missing.

    Raises:
        ConfigError: psycopg is not installed, the connection holds a password, or cannot be understood.
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

    # Whatever the database is set to: each statement must see what another job did while this one waited for a lock.
    _begin: ClassVar[str] = "BEGIN ISOLATION LEVEL READ COMMITTED"

    def __init__(self, conninfo: str = "", schema: str = "flinks") -> None:
        self._library = library()
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
        # The connection was lost, perhaps hours ago and unnoticed. The mark tells whether the transaction was carried out.
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
            # Some databases are set to confirm a commit before it is on the disk.
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
            self.run("SET DateStyle TO 'ISO'")  # the only one in which psycopg reads points in time
            if existing:
                if not self._has_schema():
                    raise StoreMissingError(self.where)
                self._look(place.job)
                return
            with self._transaction():
                self.run(f"SELECT pg_advisory_xact_lock({_LOCK})")
                if not self._has_schema():
                    self.run(f"CREATE SCHEMA {name}")
                prepare(self)
                self._job = job_number(self, place.job)
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
    """Whether it can name a schema. `$user` in a search path is another one, the user's own."""
    try:
        return 1 <= len(schema.encode()) <= 63 and "\0" not in schema and schema != "$user"
    except UnicodeEncodeError:
        return False


def _native(sql: str, values: Sequence[Any]) -> bytes:
    return (sql.replace("?", "%s") if values else sql).encode()
