"""Answers as tables of an SQLite database.

Tables `fetches`, `accounts`, `transactions` and `holders` (see `rows`), and a mark for each shard: rows and mark are one
transaction, so a shard is there as a whole or not at all.

- Amounts are text with all their digits. `sum(amount)` takes them as doubles; sums in cents are exact:
  `sum(CAST(round(amount * 100) AS INTEGER)) / 100.0`.
- Days are `YYYY-MM-DD`, points in time `YYYY-MM-DDTHH:MM:SS.ffffffZ`, with their exact text beside them.
- `job` is the number of a job in `flinks_jobs`: several may write to one database. Tables are joined by
  `job`, `line`, `detail`, `account`. `transaction` is a word of SQL: write it in double quotes.
"""

from __future__ import annotations

import datetime as dt
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

from ...tables import ColumnType, Row, Table
from ..errors import StoreError, StoreMissingError
from ..files import PRIVATE_FILE, cannot_write, sync_folder
from ..records import Commit
from .answer_rows import TABLES, does_not_fit
from .database import DatabaseStore
from .database_schema import MARKS, NAMES, VERSION, Database, add_columns, job_number, quoted, table_of
from .ownership import given_path, in_folder
from .protocol import Place, Problem

# [flinks_async.bulk.stores.sqlite_schema] The tables of an SQLite database of answers: made, brought up to date, or refused.


_WAIT: Final = 60.0
"""Seconds to wait for another job that writes to the same database."""

_INT64: Final = range(-(2**63), 2**63)


class SQLiteStore(DatabaseStore[sqlite3.Connection]):
    """A database, of this job alone or of several.

    Args:
        path: of the database (default `answers.sqlite` in the job's directory). It is made if it is missing; tables of
            somebody else in it are left alone, but for a name that both want: then the database is refused.

    Raises:
        ConfigError: the path cannot be the name of a file.
    """

    types: ClassVar[dict[ColumnType, str]] = {
        "text": "TEXT",
        "json": "TEXT",
        "amount": "TEXT",
        "integer": "INTEGER",
        "position": "INTEGER NOT NULL",
        "flag": "INTEGER",
        "date": "TEXT",
        "instant": "TEXT",
    }
    unique: ClassVar[bool] = True

    _library = sqlite3
    _begin: ClassVar[str] = "BEGIN IMMEDIATE"

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._given = given_path(path)
        self._path = Path()
        self._db: sqlite3.Connection | None = None
        self._own = False  # made by this job: here, or in its directory, which was empty when it began

    def describe(self) -> dict[str, Any]:
        return {"kind": "sqlite", "path": None if self._given is None else str(self._given)}

    def open(self, place: Place, *, existing: bool = False) -> None:
        self.close()
        self._path = self._given or place.folder / "answers.sqlite"
        made = not existing and _create(self._path)
        self._own = made or in_folder(self._path, place.folder)
        if existing and not self._path.exists():
            raise StoreMissingError(str(self._path))
        name = f"{self._path.as_uri()}?mode=rw"  # never makes it
        self._db = self._do(
            lambda: sqlite3.connect(name, uri=True, isolation_level=None, check_same_thread=False, timeout=_WAIT)
        )
        try:
            if existing:
                self._look(place.job)
                return
            with self._transaction():  # before anything is changed: it may be refused
                prepare(self)
                self._job = job_number(self, place.job)
            self._make_durable()
        except BaseException:
            self.close()
            raise

    def verify(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        try:
            found = [text for (text,) in self.fetch("PRAGMA integrity_check")]
        except StoreError as error:
            found = [error.message]
        if found == ["ok"]:
            yield from super().verify(commits)
        else:
            yield from (Problem(self.where, text) for text in found)

    def purge(self) -> list[str]:
        if self._own and self._alone() and names_in(self) <= NAMES:
            return [self._remove_files()]
        if self._bare:
            return []
        self.run("PRAGMA secure_delete = ON")
        removed = self._delete_rows()
        self.run("PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    def columns(self) -> list[Row]:
        query = (
            "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type IN ('table', 'view')"
        )
        return self.fetch(query)

    @property
    def where(self) -> str:
        return str(self._path)

    def _insert(self, table: Table, rows: list[Row]) -> list[Row]:
        db = self._opened
        converted = [stored(table, row) for row in rows]
        marks = ", ".join("?" * (len(table.columns) + 1))
        statement = f"INSERT INTO {table.name} (job, {', '.join(quoted(table))}) VALUES ({marks})"
        try:
            self._do(lambda: db.executemany(statement, [(self._job, *row) for row in converted]))
        except OverflowError:
            raise self._overflow(table, rows) from None
        return converted

    def _overflow(self, table: Table, rows: list[Row]) -> StoreError:
        for row in rows:
            for column, value in zip(table.columns, row, strict=True):
                if isinstance(value, int) and value not in _INT64:
                    return does_not_fit(self._path, table, column, row, "INTEGER (64 bits)")
        return StoreError(f"{self._path} cannot be written: a text in {table.name} is too long")

    def _add_mark(self, shard: int, mark: bytes) -> None:
        self.run(f"INSERT INTO {MARKS} VALUES (?, ?, ?)", self._job, shard, mark)  # its column is BLOB

    def _comparable(self, table: Table, rows: list[Row]) -> Iterable[Row]:
        return rows  # SQLite gives every value back as it was written

    def _make_durable(self) -> None:
        mode = self.fetch("PRAGMA journal_mode = WAL")[0][0]
        if mode != "wal":
            raise StoreError(f"{self._path}: this file system has no write-ahead log (it is {mode}); use a local disk")
        self.run("PRAGMA synchronous = FULL")
        self.run("PRAGMA fullfsync = ON")
        self.run("PRAGMA checkpoint_fullfsync = ON")

    def _remove_files(self) -> str:
        try:
            size = self._path.stat().st_size
            self.close()
            for suffix in ("", "-wal", "-shm", "-journal"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._path, error) from None
        return f"{self._path} ({size:,} bytes)"

    def _store_error(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"{self._path} {_reason(error)}")


def _create(path: Path) -> bool:
    """Makes the file with its mode, before SQLite makes it with another one; whether it did."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
        sync_folder(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise cannot_write(path, error) from None
    return True


def _reason(error: sqlite3.Error) -> str:
    """Why SQLite says no. Its texts name tables and columns, never values."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_NOTADB"):
        return "is not an SQLite database"
    if name.startswith("SQLITE_BUSY"):
        return "cannot be written: another program keeps it locked"
    if name.startswith("SQLITE_CORRUPT"):
        return f"is broken: {error}"
    return f"cannot be written: {error}"


_OWN: Final = (
    "CREATE TABLE flinks_meta (name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID",
    "CREATE TABLE flinks_jobs (number INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE) STRICT",
    f"CREATE TABLE {MARKS} (job INTEGER NOT NULL, shard INTEGER NOT NULL, mark BLOB NOT NULL, "
    "PRIMARY KEY (job, shard)) STRICT, WITHOUT ROWID",
    f"INSERT INTO flinks_meta VALUES ('schema_version', {VERSION})",
)


def _utc(value: dt.datetime) -> str:
    return value.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


_CONVERTERS: Final[dict[ColumnType, Callable[[Any], Any]]] = {
    "amount": "{:f}".format,
    "flag": int,
    "date": dt.date.isoformat,
    "instant": _utc,
}

_CONVERTED: Final = {
    table.name: [(n, _CONVERTERS[c.type]) for n, c in enumerate(table.columns) if c.type in _CONVERTERS]
    for table in TABLES
}


def prepare(db: Database) -> None:
    """Makes the tables, or adds what a newer version has. To be called in a transaction.

    Raises:
        StoreError: there are tables of somebody else, or of a newer version; or the database says no.
    """
    found = names_in(db)
    if "flinks_meta" not in found:
        if taken := sorted(NAMES & found):
            raise StoreError(f"{db.where} has a table {taken[0]!r} that is not of flinks-async. Take another database")
        _create_tables(db)
        return
    rows = db.fetch("SELECT value FROM flinks_meta WHERE name = 'schema_version'")
    version = rows[0][0] if rows else None
    if not isinstance(version, int) or NAMES - found:
        raise StoreError(f"{db.where} is not a database of flinks-async, or a part of it was removed")
    if version > VERSION:
        raise StoreError(f"{db.where} was written by a newer version of flinks-async (format {version}); update it")
    for table in TABLES:
        add_columns(db, table, {name for _, name, *_ in db.fetch(f"PRAGMA table_info({table.name})")})
    db.run("UPDATE flinks_meta SET value = ? WHERE name = 'schema_version'", VERSION)


def names_in(db: Database) -> set[str]:
    """The names of all tables and views, whosever they are."""
    return {name for (name,) in db.fetch("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")}


def stored(table: Table, row: Row) -> tuple[Any, ...]:
    """The row as SQLite keeps it: amounts as all their digits, days and times as ISO 8601."""
    values = list(row)
    for number, convert in _CONVERTED[table.name]:
        if values[number] is not None:
            values[number] = convert(values[number])
    return tuple(values)


def _create_tables(db: Database) -> None:
    for statement in (*_OWN, *(f"{table_of(db, table)} STRICT, WITHOUT ROWID" for table in TABLES)):
        db.run(statement)
    db.run('CREATE INDEX flinks_fetches_key ON fetches ("key")')
