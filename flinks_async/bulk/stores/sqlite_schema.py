"""The tables of an SQLite database of answers: made, brought up to date, or refused."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, Final

from ...rows import ColumnType, Row, Table
from ..errors import StoreError
from .database_schema import MARKS, NAMES, VERSION, Database, add_columns, table_of
from .rows import TABLES

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
        _create(db)
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


def _create(db: Database) -> None:
    for statement in (*_OWN, *(f"{table_of(db, table)} STRICT, WITHOUT ROWID" for table in TABLES)):
        db.run(statement)
    db.run('CREATE INDEX flinks_fetches_key ON fetches ("key")')
