"""The tables of a database of answers: created, extended with new columns, or refused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar, Final

from ...tables import Column, ColumnType, Row, Table
from ..errors import StoreError
from ..files import newer_version
from .answer_rows import TABLES

VERSION: Final = 1
"""Version of the tables. A newer version may only add columns."""

SHARD_COMMITS: Final = "flinks_shards"
"""The table that holds the commit mark of each shard: its `Commit` as JSON."""

NAMES: Final = frozenset({"flinks_meta", "flinks_jobs", SHARD_COMMITS, *(table.name for table in TABLES)})

VIEWS: Final = frozenset(f"current_{table.name}" for table in TABLES)
"""Views of the latest answers of each key and instance, from the newest job that has one. A user may drop them."""


class Database(ABC):
    """Runs SQL in which `?` stands for a value.

    Attributes:
        where: the name of the database in errors.
        types: the SQL type of each type of column.
        read_as: SQL that reads a column of a type, if it is more than the column's name; `{}` stands for the name.
        unique: whether the tables have primary keys: job and positions of a row.
        own_tables: statements that create the tables that hold no answers.
        table_options: SQL after the columns of a table of answers.
        indexes: statements that create further indexes.
    """

    types: ClassVar[dict[ColumnType, str]]
    read_as: ClassVar[dict[ColumnType, str]] = {}
    unique: ClassVar[bool]
    own_tables: ClassVar[tuple[str, ...]] = (
        "CREATE TABLE flinks_meta (name TEXT NOT NULL, value BIGINT NOT NULL)",
        "CREATE TABLE flinks_jobs (number BIGINT PRIMARY KEY, job TEXT NOT NULL UNIQUE)",
        f"CREATE TABLE {SHARD_COMMITS} (job BIGINT NOT NULL, shard BIGINT NOT NULL, mark TEXT NOT NULL, "
        "PRIMARY KEY (job, shard))",
    )
    table_options: ClassVar[str] = ""
    indexes: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def where(self) -> str: ...

    @abstractmethod
    def run(self, sql: str, *values: Any) -> int:
        """Runs a statement; returns the number of rows that it changed.

        Raises:
            StoreError: the database refuses it.
        """

    @abstractmethod
    def fetch(self, sql: str, *values: Any) -> list[Row]:
        """The rows of a query.

        Raises:
            StoreError: the database refuses it.
        """

    def columns(self) -> list[Row]:
        """(table, column) of all columns in the current schema, at least of `NAMES` and `VIEWS`.

        Raises:
            StoreError: the database refuses the query.
        """
        query = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema()"
        return self.fetch(query)


def prepare(db: Database, job: str) -> int:
    """Creates the tables in the current schema, or adds missing columns. Call it in a transaction.

    Returns:
        the number that stands for the job in all tables.

    Raises:
        StoreError: tables of these names belong to something else or to a newer version, or the database refuses.
    """
    there = set(db.columns())
    tables = {table for table, _ in there}
    if "flinks_meta" in tables:
        version = _version(db, tables)
        for table in TABLES:
            _add_columns(db, table, there)
        if version < VERSION:
            db.run("UPDATE flinks_meta SET value = ? WHERE name = 'schema_version'", VERSION)
    elif taken := sorted(NAMES & tables):
        raise StoreError(f"{db.where} has a table {taken[0]!r} that is not of flinks-async. Choose another place")
    else:
        for statement in (*db.own_tables, *(_create_table(db, table) for table in TABLES), *db.indexes):
            db.run(statement)
        db.run("INSERT INTO flinks_meta VALUES ('schema_version', ?)", VERSION)
        for table in TABLES:
            if f"current_{table.name}" not in tables:
                db.run(_create_view(table))
    number = _job_number(db, job)
    if number is None:
        db.run("INSERT INTO flinks_jobs SELECT coalesce(max(number), 0) + 1, ? FROM flinks_jobs", job)
        number = _job_number(db, job)
    assert number is not None
    return number


def look(db: Database, job: str) -> tuple[int, frozenset[Row]] | None:
    """Looks at a database without changing it.

    Returns:
        the number of the job (0 if the database does not know it) and the columns that exist, as (table, column); None
        if there are no tables of flinks-async.

    Raises:
        StoreError: the tables are incomplete or of a newer version, or the database refuses.
    """
    there = frozenset(db.columns())
    if ("flinks_meta", "value") not in there:
        return None
    _version(db, {table for table, _ in there})
    return _job_number(db, job) or 0, there


def _version(db: Database, tables: Collection[str]) -> int:
    rows = db.fetch("SELECT value FROM flinks_meta WHERE name = 'schema_version'")
    version = rows[0][0] if rows else None
    if not isinstance(version, int) or NAMES.difference(tables):
        raise StoreError(f"{db.where} is not a database of flinks-async, or a part of it was removed")
    if version > VERSION:
        raise StoreError(newer_version(db.where, version))
    return version


def _job_number(db: Database, job: str) -> int | None:
    found = db.fetch("SELECT number FROM flinks_jobs WHERE job = ?", job)
    return int(found[0][0]) if found else None


def quoted(table: Table) -> list[str]:
    """The quoted names of a table's columns, because `transaction` is a word of SQL."""
    return [f'"{name}"' for name in table.names]


def _create_table(db: Database, table: Table) -> str:
    columns = [f"job {db.types['position']}", *(_definition(db, column) for column in table.columns)]
    if db.unique:
        identity = ", ".join(("job", *(f'"{name}"' for name in table.identity)))
        columns.append(f"PRIMARY KEY ({identity})")
    return f"CREATE TABLE {table.name} ({', '.join(columns)}){db.table_options}"


def _create_view(table: Table) -> str:
    columns = ", ".join(f"t.{name}" for name in ("job", *quoted(table)))
    newest = (
        'SELECT max(job) AS job, "key", coalesce(instance, \'\') AS instance FROM fetches WHERE "key" IS NOT NULL '
        "GROUP BY 2, 3"
    )
    return (
        f"CREATE VIEW current_{table.name} AS SELECT {columns} FROM {table.name} t "
        f"JOIN fetches f ON f.job = t.job AND f.line = t.line JOIN ({newest}) newest "
        'ON newest.job = f.job AND newest."key" = f."key" AND newest.instance = coalesce(f.instance, \'\')'
    )


def _add_columns(db: Database, table: Table, there: Collection[Row]) -> None:
    for column in table.columns:
        if (table.name, column.name) in there:
            continue
        if column.type == "position":  # a part of the primary key
            raise StoreError(
                f"the table {table.name!r} of {db.where} lacks the column {column.name!r}, which cannot be added"
            )
        db.run(f"ALTER TABLE {table.name} ADD COLUMN {_definition(db, column)}")


def _definition(db: Database, column: Column) -> str:
    return f'"{column.name}" {db.types[column.type]}'
