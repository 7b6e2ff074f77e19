"""The tables of a database of answers: made, brought up to date, or refused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container
from typing import Any, ClassVar, Final

from ...tables import Column, ColumnType, Row, Table
from ..errors import StoreError
from .answer_rows import TABLES

VERSION: Final = 1
"""Of the tables. A version may add columns, and nothing else."""

MARKS: Final = "flinks_shards"
NAMES: Final = frozenset({"flinks_meta", "flinks_jobs", MARKS, *(table.name for table in TABLES)})

_OWN: Final = (
    "CREATE TABLE flinks_meta (name TEXT NOT NULL, value BIGINT NOT NULL)",
    "CREATE TABLE flinks_jobs (number BIGINT PRIMARY KEY, job TEXT NOT NULL UNIQUE)",
    f"CREATE TABLE {MARKS} (job BIGINT NOT NULL, shard BIGINT NOT NULL, mark TEXT NOT NULL, PRIMARY KEY (job, shard))",
    f"INSERT INTO flinks_meta VALUES ('schema_version', {VERSION})",
)


class Database(ABC):
    """Runs statements. A value stands where a statement has a `?`.

    Attributes:
        where: what the database is called in errors.
        types: of columns.
        unique: each row of a table is found by its job and its positions.
    """

    types: ClassVar[dict[ColumnType, str]]
    unique: ClassVar[bool]

    @property
    @abstractmethod
    def where(self) -> str: ...

    @abstractmethod
    def run(self, sql: str, *values: Any) -> int:
        """Runs a statement; how many rows it has changed.

        Raises:
            StoreError: the database says no.
        """

    @abstractmethod
    def fetch(self, sql: str, *values: Any) -> list[Row]:
        """The rows of a query.

        Raises:
            StoreError: the database says no.
        """

    def columns(self) -> list[Row]:
        """Table and name of each column in the current schema, whosever it is.

        Raises:
            StoreError: the database says no.
        """
        query = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema()"
        return self.fetch(query)


def prepare(db: Database) -> None:
    """Makes the tables in the current schema, or adds what a newer version has. To be called in a transaction.

    Raises:
        StoreError: there are tables of somebody else, or of a newer version; or the database says no.
    """
    query = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
    found = {name for (name,) in db.fetch(query)}
    if "flinks_meta" not in found:
        if taken := sorted(NAMES & found):
            raise StoreError(f"{db.where} has a table {taken[0]!r} that is not of flinks-async. Take another place")
        for statement in (*_OWN, *(table_of(db, table) for table in TABLES)):
            db.run(statement)
        return
    rows = db.fetch("SELECT value FROM flinks_meta WHERE name = 'schema_version'")
    if not rows or NAMES - found:
        raise StoreError(f"{db.where} is not a database of flinks-async, or a part of it was removed")
    version = rows[0][0]
    if version > VERSION:
        raise StoreError(f"{db.where} was written by a newer version of flinks-async (format {version}); update it")
    if version < VERSION:
        query = (
            "SELECT column_name FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND table_name = ?"
        )
        for table in TABLES:
            add_columns(db, table, {name for (name,) in db.fetch(query, table.name)})
        db.run("UPDATE flinks_meta SET value = ? WHERE name = 'schema_version'", VERSION)


def job_number(db: Database, job: str) -> int:
    """The number that stands for a job in all tables. To be called in a transaction."""
    query = "SELECT number FROM flinks_jobs WHERE job = ?"
    if not db.fetch(query, job):
        db.run("INSERT INTO flinks_jobs SELECT coalesce(max(number), 0) + 1, ? FROM flinks_jobs", job)
    return int(db.fetch(query, job)[0][0])


def look(db: Database, job: str) -> tuple[int, frozenset[tuple[str, str]]] | None:
    """The number of a job (0 if the database does not know it), and the columns that are there (table, name), where
    nothing may be made or added; None if there are no tables of flinks-async.

    Raises:
        StoreError: they are of a newer version; or the database says no.
    """
    there = frozenset((table, name) for table, name in db.columns() if table in NAMES)
    if ("flinks_meta", "value") not in there:
        return None
    if NAMES - {table for table, _ in there}:
        raise StoreError(f"{db.where} is not a database of flinks-async, or a part of it was removed")
    rows = db.fetch("SELECT value FROM flinks_meta WHERE name = 'schema_version'")
    version = rows[0][0] if rows else None
    if not isinstance(version, int):
        raise StoreError(f"{db.where} is not a database of flinks-async, or a part of it was removed")
    if version > VERSION:
        raise StoreError(f"{db.where} was written by a newer version of flinks-async (format {version}); update it")
    found = db.fetch("SELECT number FROM flinks_jobs WHERE job = ?", job)
    return int(found[0][0]) if found else 0, there


def quoted(table: Table) -> list[str]:
    """The names of a table's columns, since `transaction` is a word of SQL."""
    return [f'"{name}"' for name in table.names]


def table_of(db: Database, table: Table) -> str:
    """The statement that makes a table."""
    columns = [f"job {db.types['position']}", *(_definition(db, column) for column in table.columns)]
    if db.unique:
        identity = ", ".join(("job", *(f'"{name}"' for name in table.identity)))
        columns.append(f"PRIMARY KEY ({identity})")
    return f"CREATE TABLE {table.name} ({', '.join(columns)})"


def add_columns(db: Database, table: Table, there: Container[str]) -> None:
    """Adds the columns that are not there.

    Raises:
        StoreError: a table has no such column, and cannot get it; or the database says no.
    """
    for column in table.columns:
        if column.name not in there:
            if column.type == "position":
                raise StoreError(
                    f"the table {table.name!r} of {db.where} lacks {column.name!r}, and cannot be extended"
                )
            db.run(f"ALTER TABLE {table.name} ADD COLUMN {_definition(db, column)}")


def _definition(db: Database, column: Column) -> str:
    return f'"{column.name}" {db.types[column.type]}'
