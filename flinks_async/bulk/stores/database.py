"""The base of all stores in a database. A shard's rows and its commit mark are written in one transaction.

A subclass says how rows are inserted, and overrides what differs; the SQL here is understood by every database.
`DatabaseFile` is the base of databases that are one file: SQLite and DuckDB.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, NoReturn, Protocol, TypeVar

import msgspec
from attrs import evolve

from ... import checks
from ...tables import Row, Table
from ..compression import Compression
from ..errors import StoreError, StoreMissingError
from ..files import cannot_write, crash_points, is_inside, size_of
from ..records import Commit
from .answer_rows import TABLES, Rows, ShardDigest, cannot_export
from .answer_tables import read_tables
from .database_schema import NAMES, SHARD_COMMITS, VIEWS, Database, look, prepare, quoted
from .protocol import Place, Problem, opened, receipt_as

ROWS: Final = 2_000
"""Rows that are read at once."""

_LINES: Final = 1_000
"""Lines of the input whose rows one query of `verify` reads and sorts."""

commit_to_json: Final = msgspec.json.Encoder().encode
"""A commit as the JSON of a commit mark. It holds no token."""

_decode: Final = msgspec.json.Decoder(Commit).decode


def commit_from_json(mark: bytes | str) -> Commit:
    """Reads a commit mark. Fields of a newer version are ignored.

    Raises:
        ValueError: the mark is broken.
    """
    return _decode(mark)


class DatabaseConnection(Protocol):
    """The common interface of the database connections."""

    def execute(self, sql: Any, values: Any = ..., /) -> Any: ...

    def cursor(self) -> Any: ...

    def close(self) -> None: ...


T = TypeVar("T")

ConnectionT = TypeVar("ConnectionT", bound=DatabaseConnection)


class _Rows(msgspec.Struct):
    """A receipt."""

    rows: dict[str, int]
    digest: str


class DatabaseStore(Database, ABC, Generic[ConnectionT]):
    """A store in a database that several jobs may share.

    A receipt is `{"rows": number of rows by table, "digest": digest of these rows}`.
    """

    spool_compression: Compression = "none"
    keeps_spools = False

    _library: Any
    """The library for the database. All its errors are subclasses of its `Error`."""

    _texts = True
    """Whether `_insert` takes amounts, dates and points in time as texts."""

    _begin = "BEGIN"
    """The statement that begins a transaction."""

    _db: ConnectionT | None
    """The connection, or None. It commits each statement by itself, unless a transaction was begun."""

    _job = 0
    """The number of the job in all tables; 0 if the database does not know the job."""

    _there: frozenset[Row] | None = None
    """Existing columns (table, column) of a database that is opened to be looked at; None if all columns exist."""

    _gets_rows: Callable[[str], bool]
    """`Place.gets_rows`."""

    _bare = False
    """Whether the database is opened to be looked at and has none of the tables."""

    @abstractmethod
    def _store_error(self, error: Any) -> StoreError:
        """Our error for an error of the library. It shows no value of a row."""

    def _storable(self, table: Table, rows: Rows) -> Rows:
        """Rows as they are stored. Called in the thread that reads."""
        return rows

    @abstractmethod
    def _insert(self, table: Table, rows: Rows) -> None:
        """Adds rows of this job to a table.

        Raises:
            StoreError: a value does not fit its column, or the database refuses the rows.
        """

    def _inserted(self) -> None:
        """Called after all rows of a shard are inserted, before the commit mark."""

    def _add_mark(self, shard: int, mark: bytes) -> None:
        self.run(f"INSERT INTO {SHARD_COMMITS} VALUES (?, ?, ?)", self._job, shard, mark.decode())

    def recover(self, receipts: Mapping[int, Mapping[str, Any]]) -> Iterable[Commit]:
        marked = set(self._shards())
        if lost := receipts.keys() - marked:
            raise StoreError(
                f"{self.where} lacks {len(lost):,} shards that the job has written to it. Restore that database, or start "
                "a new job"
            )
        return [commit for shard in sorted(marked - receipts.keys()) if (commit := self._committed(shard)) is not None]

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        found = self._committed(commit.shard.id)
        if found is not None:
            return found.receipt
        digest = ShardDigest()

        def prepare(table: Table, rows: Rows) -> Rows:
            stored = self._storable(table, rows) if self._gets_rows(table.name) else rows[:0]
            if len(stored):
                digest.add(table, stored)
            return stored

        blocks = read_tables(spool, commit, self.where, texts=self._texts, prepare=prepare)
        with closing(blocks), self._transaction():
            for tables in blocks:
                for table, rows in zip(TABLES, tables, strict=True):
                    if len(rows):
                        self._insert(table, rows)
            self._inserted()
            receipt = {"rows": digest.rows, "digest": digest.hexdigest()}
            self._add_mark(commit.shard.id, commit_to_json(evolve(commit, receipt=receipt)))
            crash_points.reach("rows written")
        crash_points.reach("rows committed")
        return receipt

    def verify(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        if self._bare:
            if next(iter(commits), None) is not None:
                yield Problem(self.where, "it has no tables of flinks-async")
            return
        try:
            known: dict[int | None, tuple[_Rows, int]] = {}
            for commit in commits:
                known[commit.shard.id] = receipt_as(_Rows, commit.receipt), commit.shard.last
                yield from self._compare_commit(commit)
            for shard in sorted(set(self._shards()) - known.keys()):
                what = "the ledger does not know this shard; the next run of the job adds it"
                yield Problem(f"{self.where}, table {SHARD_COMMITS}", what, shard)
            yield from self._compare_rows(known)
        except StoreError as error:
            yield Problem(self.where, error.message)

    def missing(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        marked = set() if self._bare else set(self._shards())
        for commit in commits:
            if commit.shard.id not in marked:
                yield Problem(self.where, "its commit mark is missing", commit.shard.id)

    def lines(self, commits: Iterable[Commit]) -> NoReturn:
        raise cannot_export(self.where)

    def purge(self) -> list[str]:
        return [] if self._bare else self._delete_rows()

    def close(self) -> None:
        if self._db is not None:
            with suppress(self._library.Error):
                self._db.close()
            self._db = None
        self._job, self._there, self._bare = 0, None, False

    def run(self, sql: str, *values: Any) -> int:
        with self._some_transaction():
            rowcount: int = self._do(lambda: self._execute(sql, values).rowcount)
        return rowcount

    def fetch(self, sql: str, *values: Any) -> list[Row]:
        with self._some_transaction():
            rows: list[Row] = self._do(lambda: self._execute(sql, values).fetchall())
        return rows

    # --- the database -------------------------------------------------------------------------------------------------

    @property
    def _opened(self) -> ConnectionT:
        return opened(self._db)

    def _execute(self, sql: str, values: tuple[Any, ...]) -> Any:
        """Returns a cursor, or an object with its methods. Raises the library's errors."""
        return self._opened.execute(sql, values)

    def _some_transaction(self) -> AbstractContextManager[None]:
        """The transaction of a statement. By default each commits itself, unless a transaction was begun."""
        return nullcontext()

    def _do(self, work: Callable[[], T]) -> T:
        """Turns the library's errors into ours. A context manager would not do: the library's error, which may quote a
        value, would become the context of ours."""
        try:
            return work()
        except self._library.Error as error:
            problem = self._store_error(error)
        raise problem

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One durable transaction, rolled back by any exception.

        Raises:
            StoreError: the database refuses it.
        """
        try:
            self._do(lambda: self._execute(self._begin, ()))
            yield
            self._do(lambda: self._execute("COMMIT", ()))
        except BaseException:
            with suppress(self._library.Error):
                self._opened.execute("ROLLBACK")
            raise

    def _stream(self, sql: str, *values: Any) -> Iterator[Sequence[Row]]:
        """The rows of a query, `ROWS` at a time."""
        with closing(self._opened.cursor()) as cursor:
            self._do(lambda: cursor.execute(sql, values))
            while rows := self._do(lambda: cursor.fetchmany(ROWS)):
                yield rows

    def _alone(self) -> bool:
        """Whether the database holds no other job."""
        return self._bare or not self.fetch("SELECT 1 FROM flinks_jobs WHERE number != ?", self._job)

    def _look(self, job: str) -> None:
        """Finds the job without changing the database."""
        found = look(self, job)
        self._bare = found is None
        self._job, self._there = found or (0, frozenset())

    # --- rows and commit marks ----------------------------------------------------------------------------------------

    def _delete_rows(self) -> list[str]:
        """Removes the rows of the job; returns what was removed, in words."""
        removed = []
        with self._transaction():
            for table in TABLES:
                count = self.run(f"DELETE FROM {table.name} WHERE job = ?", self._job)
                removed.append(f"{count:,} rows of {table.name} in {self.where}")
            self.run(f"DELETE FROM {SHARD_COMMITS} WHERE job = ?", self._job)
            self.run("DELETE FROM flinks_jobs WHERE number = ?", self._job)
        return [*removed, f"left: {self.where}, now without rows of this job"]

    def _shards(self) -> list[int]:
        return [shard for (shard,) in self.fetch(f"SELECT shard FROM {SHARD_COMMITS} WHERE job = ?", self._job)]

    def _committed(self, shard: int) -> Commit | None:
        found = self.fetch(f"SELECT mark FROM {SHARD_COMMITS} WHERE job = ? AND shard = ?", self._job, shard)
        try:
            return commit_from_json(found[0][0]) if found else None
        except ValueError:
            pass
        raise StoreError(f"{self.where}: the commit mark of shard {shard} is broken")

    def _compare_commit(self, commit: Commit) -> Iterator[Problem]:
        where, shard = f"{self.where}, table {SHARD_COMMITS}", commit.shard.id
        try:
            found = self._committed(shard)
        except StoreError as error:
            yield Problem(where, error.message, shard)
            return
        if found is None:
            yield Problem(where, "its commit mark is missing", shard)
        elif (found.written, found.receipt) != (commit.written, commit.receipt):
            yield Problem(where, "its commit mark differs from the ledger", shard)

    def _compare_rows(self, known: Mapping[int | None, tuple[_Rows, int]]) -> Iterator[Problem]:
        """Reads all rows of the job once. Memory is that of the shards that overlap.

        Args:
            known: by shard: its receipt and the last line of its range.
        """
        left, digests = dict(known), dict[int | None, ShardDigest]()
        last = max(
            self.fetch(f"SELECT coalesce(max(line), 0) FROM {t.name} WHERE job = ?", self._job)[0][0] for t in TABLES
        )
        for first in range(0, last + 1, _LINES):
            for table in TABLES:
                for shard, rows in self._read(table, first, first + _LINES - 1):
                    digests.setdefault(shard, ShardDigest()).add(table, rows)
            for shard in [s for s in digests if s in left and left[s][1] < first + _LINES]:
                yield from self._compare_digest(shard, left.pop(shard)[0], digests.pop(shard))
        for shard, (receipt, _) in left.items():
            yield from self._compare_digest(shard, receipt, digests.pop(shard, ShardDigest()))
        for shard in sorted(digests, key=str):
            if shard in known:
                yield Problem(self.where, "it has rows of lines after its last one", shard)
            elif shard is None or self._committed(shard) is None:
                count = sum(digests[shard].rows.values())
                yield Problem(self.where, f"{count:,} rows belong to no shard of the job", shard)

    def _read(self, table: Table, first: int, last: int) -> Iterator[tuple[int | None, list[Row]]]:
        """The rows of some lines, in the order of their positions, with the shard that they belong to. Their values are
        those that `ShardDigest` takes."""
        columns = (
            self.read_as.get(column.type, "{}").format(f"t.{name}") if self._has(table, column.name) else "NULL"
            for column, name in zip(table.columns, quoted(table), strict=True)
        )
        order = ", ".join(f't."{name}"' for name in table.identity)
        sql = (
            f"SELECT f.shard, {', '.join(columns)} FROM {table.name} t LEFT JOIN fetches f ON f.job = t.job "
            "AND f.line = t.line WHERE t.job = ? AND t.line BETWEEN ? AND ? "
            f"ORDER BY {order}"
        )
        for rows in self._stream(sql, self._job, first, last):
            for shard, some in groupby(rows, itemgetter(0)):
                yield shard, [tuple(row[1:]) for row in some]

    def _has(self, table: Table, column: str) -> bool:
        return self._there is None or (table.name, column) in self._there

    def _compare_digest(self, shard: int | None, receipt: _Rows, found: ShardDigest) -> Iterator[Problem]:
        same = True
        for name, count in receipt.rows.items():
            rows = found.rows.get(name, 0)
            if rows != count:
                same = False
                what = f"it has {rows:,} rows, but {count:,} were written"
                yield Problem(f"{self.where}, table {name}", what, shard)
        if same and found.hexdigest() != receipt.digest:
            yield Problem(self.where, "its rows were changed (their digest differs)", shard)


class DatabaseFile(DatabaseStore[ConnectionT]):
    """A database that is one file, of this job alone or of several jobs. Its subclasses say more."""

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    """Suffixes of the files that the library keeps beside the database; "" is the database itself."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._user_path = None if path is None else checks.path("path", path)
        self._path = Path()
        self._db: ConnectionT | None = None
        self._own = False  # created by this job: by this store, or in the job's directory, which was empty

    @abstractmethod
    def _create_file(self) -> bool:
        """Creates the database with private permissions, unless the file exists; returns whether it did."""

    @abstractmethod
    def _connect(self, *, look: bool) -> ConnectionT:
        """Connects to the existing file; changes nothing if it is only looked at."""

    @abstractmethod
    def _table_names(self) -> set[str]:
        """The names of all tables and views in the database."""

    def _prepared(self) -> None:
        """Sets the database up for writing. Called again when the tables are there."""

    @property
    def where(self) -> str:
        return str(self._path)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": None if self._user_path is None else str(self._user_path)}

    def open(self, place: Place, *, existing: bool = False) -> None:
        self.close()
        self._path = self._file_of(place)
        self._gets_rows = place.gets_rows
        created = not existing and self._create_file()
        self._own = created or is_inside(self._path, place.folder)
        if existing and size_of(self._path) is None:
            raise StoreMissingError(str(self._path))
        self._db = self._do(lambda: self._connect(look=existing))
        try:
            if existing:
                self._look(place.job)
                return
            if created:
                self._prepared()
            with self._transaction():  # before a setting of an existing database is changed, because it may be refused
                self._job = prepare(self, place.job)
            self._prepared()
        except BaseException:
            self.close()
            raise

    def _file_of(self, place: Place) -> Path:
        return self._user_path or place.folder / f"answers.{self.kind}"

    def purge(self) -> list[str]:
        if self._own and self._alone() and self._table_names() <= NAMES | VIEWS:
            return [self._remove_files()]
        if not self._bare:
            self._opened.close()  # it was opened to be looked at
            self._db = self._do(lambda: self._connect(look=False))
        return super().purge()

    def _remove_files(self) -> str:
        self.close()
        try:
            size = self._path.stat().st_size
            for path in self._files():
                path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._path, error) from None
        return f"{self._path} ({size:,} bytes)"

    def _files(self) -> list[Path]:
        return [self._path.with_name(self._path.name + suffix) for suffix in self.suffixes]
