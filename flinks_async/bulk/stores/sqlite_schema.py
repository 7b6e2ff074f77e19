"""The tables of an SQLite database of answers: made, brought up to date, or refused."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ...rows import Column, ColumnType, Row, Table
from ..errors import StoreError
from .rows import TABLES

VERSION: Final = 1
"""Of the tables. A version may add columns, and nothing else."""

JOB: Final = "job"
MARKS: Final = "flinks_shards"

_OWN: Final = (
    "CREATE TABLE flinks_meta (name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID",
    "CREATE TABLE flinks_jobs (number INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE) STRICT",
    f"CREATE TABLE {MARKS} (job INTEGER NOT NULL, shard INTEGER NOT NULL, mark BLOB NOT NULL, "
    "PRIMARY KEY (job, shard)) STRICT, WITHOUT ROWID",
    f"INSERT INTO flinks_meta VALUES ('schema_version', {VERSION})",
)
NAMES: Final = frozenset({"flinks_meta", "flinks_jobs", MARKS, *(table.name for table in TABLES)})

_TYPES: Final[dict[ColumnType, str]] = {
    "text": "TEXT",
    "json": "TEXT",
    "amount": "TEXT",
    "integer": "INTEGER",
    "position": "INTEGER NOT NULL",
    "flag": "INTEGER",
    "date": "TEXT",
    "instant": "TEXT",
}


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


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Makes the tables, or adds what a newer version has. To be called in a transaction.

    Raises:
        StoreError: there are tables of somebody else, or of a newer version.
        sqlite3.Error: the database says no.
    """
    found = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")}
    if "flinks_meta" not in found:
        if taken := sorted(NAMES & found):
            raise StoreError(f"{path} has a table {taken[0]!r} that is not of flinks-async. Take another database")
        _create(db)
        return
    row = db.execute("SELECT value FROM flinks_meta WHERE name = 'schema_version'").fetchone()
    version = None if row is None else row[0]
    if not isinstance(version, int) or NAMES - found:
        raise StoreError(f"{path} is not a database of flinks-async, or a part of it was removed")
    if version > VERSION:
        raise StoreError(f"{path} was written by a newer version of flinks-async (format {version}); update it")
    for table in TABLES:
        _add_columns(db, path, table)
    db.execute("UPDATE flinks_meta SET value = ? WHERE name = 'schema_version'", (VERSION,))


def job_number(db: sqlite3.Connection, job: str) -> int:
    """The number that stands for a job in all tables. To be called in a transaction."""
    db.execute("INSERT OR IGNORE INTO flinks_jobs (job) VALUES (?)", (job,))
    (number,) = db.execute("SELECT number FROM flinks_jobs WHERE job = ?", (job,)).fetchone()
    return int(number)


def quoted(table: Table) -> list[str]:
    """The names of a table's columns, since `transaction` is a word of SQL."""
    return [f'"{name}"' for name in table.names]


def stored(table: Table, row: Row) -> tuple[Any, ...]:
    """The row as SQLite keeps it: amounts as all their digits, days and times as ISO 8601."""
    values = list(row)
    for number, convert in _CONVERTED[table.name]:
        if values[number] is not None:
            values[number] = convert(values[number])
    return tuple(values)


def _create(db: sqlite3.Connection) -> None:
    for statement in _OWN:
        db.execute(statement)
    for table in TABLES:
        columns = [f"{JOB} INTEGER NOT NULL", *(_definition(column) for column in table.columns)]
        identity = ", ".join((JOB, *(f'"{name}"' for name in table.identity)))
        db.execute(f"CREATE TABLE {table.name} ({', '.join(columns)}, PRIMARY KEY ({identity})) STRICT, WITHOUT ROWID")
    db.execute('CREATE INDEX flinks_fetches_key ON fetches ("key")')


def _add_columns(db: sqlite3.Connection, path: Path, table: Table) -> None:
    there = {name for _, name, *_ in db.execute(f"PRAGMA table_info({table.name})")}
    for column in table.columns:
        if column.name not in there:
            if column.type == "position":
                raise StoreError(f"the table {table.name!r} of {path} lacks {column.name!r}, and cannot be extended")
            db.execute(f"ALTER TABLE {table.name} ADD COLUMN {_definition(column)}")


def _definition(column: Column) -> str:
    return f'"{column.name}" {_TYPES[column.type]}'
