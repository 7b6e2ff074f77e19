"""Answers as tables of an SQLite database.

The tables are `fetches`, `accounts`, `transactions` and `holders` (see `answer_rows`), made by Arrow if pyarrow is
installed. The rows of a shard and its commit mark are written in one transaction, so a shard is stored completely or not at
all.

- Amounts are text with all their digits. `sum(amount)` computes with doubles; sums in cents are exact:
  `sum(CAST(round(amount * 100) AS INTEGER)) / 100.0`.
- Dates are `YYYY-MM-DD`, points in time `YYYY-MM-DDTHH:MM:SS.ffffffZ`, with their exact text beside them.
- `job` is the number of a job in `flinks_jobs`, because several jobs may write to one database. Join tables by
  `job`, `line`, `detail`, `account`. `transaction` is a word of SQL: write it in double quotes.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from math import nan
from typing import Any, ClassVar, Final

from ...tables import ColumnType, Row, Table
from ..errors import StoreError
from ..files import PRIVATE_FILE, SQLITE_SUFFIXES, cannot_write, connect_to_look, is_own, sync_every_commit, sync_folder
from ..records import Commit
from .answer_rows import Rows
from .database import DatabaseFile
from .database_schema import NAMES, SHARD_COMMITS, quoted
from .protocol import Problem

_WAIT: Final = 60.0
"""Seconds to wait for another job that writes to the same database."""

_VALUES: Final = 12_000
"""Values in one statement, which is faster than one statement for each row; SQLite allows 32,766. A thread that begins a statement
waits for the interpreter's lock, which the event loop often holds."""


class SQLiteStore(DatabaseFile[sqlite3.Connection]):
    """A database of this job alone or of several jobs.

    Args:
        path: the database (default `answers.sqlite` in the job's directory). It is created if it is missing. Other tables
            in it are not touched; if one has a name of ours, the database is refused.

    Raises:
        ConfigError: the path cannot be the name of a file.
    """

    kind: ClassVar[str] = "sqlite"
    suffixes: ClassVar[tuple[str, ...]] = SQLITE_SUFFIXES
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
    own_tables: ClassVar[tuple[str, ...]] = (
        "CREATE TABLE flinks_meta (name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID",
        "CREATE TABLE flinks_jobs (number INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE) STRICT",
        f"CREATE TABLE {SHARD_COMMITS} (job INTEGER NOT NULL, shard INTEGER NOT NULL, mark BLOB NOT NULL, "
        "PRIMARY KEY (job, shard)) STRICT, WITHOUT ROWID",
    )
    table_options: ClassVar[str] = " STRICT, WITHOUT ROWID"
    indexes: ClassVar[tuple[str, ...]] = ('CREATE INDEX flinks_fetches_key ON fetches ("key")',)

    _library = sqlite3
    _begin = "BEGIN IMMEDIATE"

    def verify(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        try:
            found = [text for (text,) in self.fetch("PRAGMA integrity_check")]
        except StoreError as error:
            found = [error.message]
        if found == ["ok"]:
            yield from super().verify(commits)
        else:
            yield from (Problem(self.where, text) for text in found)

    def columns(self) -> list[Row]:
        return self.fetch(
            f"SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.name IN {tuple(sorted(NAMES))} "
            "UNION ALL SELECT name, '' FROM sqlite_master WHERE type = 'view'"
        )

    def _create_file(self) -> bool:
        try:
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
            sync_folder(self._path.parent)
        except FileExistsError:
            found = self._path.lstat()
            if not found.st_size and not is_own(found):
                raise StoreError(f"{self._path} is an empty file of another user. Choose another file") from None
            return False
        except OSError as error:
            raise cannot_write(self._path, error) from None
        return True

    def _connect(self, *, look: bool) -> sqlite3.Connection:
        if look:
            return connect_to_look(self._path, timeout=_WAIT)
        name = f"{self._path.as_uri()}?mode=rw"  # never creates the file
        # Statements with thousands of values are large, so only a few are kept.
        return sqlite3.connect(
            name, uri=True, isolation_level=None, check_same_thread=False, timeout=_WAIT, cached_statements=8
        )

    def _prepared(self) -> None:
        self._do(lambda: sync_every_commit(self._opened, self._path))

    def _table_names(self) -> set[str]:
        return {name for (name,) in self.fetch("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")}

    def _insert(self, table: Table, rows: Rows) -> None:
        if isinstance(rows, list):
            found = [(values, sum(value is None for value in values)) for values in zip(*rows, strict=True)]
        else:
            found = [(column.to_pylist(), column.null_count) for column in rows.columns]
        used = [(name, *one) for name, one in zip(quoted(table), found, strict=True) if one[1] < len(rows)]
        width = len(used)
        values: list[Any] = [None] * (width * len(rows))
        for number, (_, column, nulls) in enumerate(used):
            # NaN becomes NULL in SQLite, while sqlite3 takes longer for a None, for which it looks for an adapter.
            values[number::width] = [nan if value is None else value for value in column] if nulls else column
        columns = ", ".join(("job", *(name for name, *_ in used)))
        places = f"({self._job}, {', '.join('?' * width)})"
        most = _VALUES // width * width
        for start in range(0, len(values), most):
            some = values[start : start + most]
            self.run(f"INSERT INTO {table.name} ({columns}) VALUES {', '.join([places] * (len(some) // width))}", *some)

    def _add_mark(self, shard: int, mark: bytes) -> None:
        self.run(f"INSERT INTO {SHARD_COMMITS} VALUES (?, ?, ?)", self._job, shard, mark)  # its column is BLOB

    def _delete_rows(self) -> list[str]:
        self.run("PRAGMA secure_delete = ON")
        removed = super()._delete_rows()
        (busy, *_) = self.fetch("PRAGMA wal_checkpoint(TRUNCATE)")[0]
        if busy:
            text = (
                "other programs have the database open, so the files still hold the removed rows; close these programs"
            )
            removed.append(f"left: {self._path}-wal, because {text}")
        return removed

    def _store_error(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"{self._path} {_reason(error)}")


def _reason(error: sqlite3.Error) -> str:
    """Why SQLite fails. Its texts name tables and columns, never values."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_NOTADB"):
        return "is not an SQLite database"
    if name.startswith("SQLITE_BUSY"):
        return "cannot be written: another program keeps it locked"
    if name.startswith("SQLITE_CORRUPT"):
        return f"is broken: {error}"
    if name == "SQLITE_READONLY_ROLLBACK":
        return "holds an interrupted change; the next run of the job undoes it"
    return f"cannot be written: {error}"
