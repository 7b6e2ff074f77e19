"""What stores in a database have in common: rows and mark of a shard are one transaction.

A store says how rows are inserted, and in what it differs; the SQL here is such that each of them understands it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, NoReturn, Protocol, TypeVar

import msgspec
from attrs import evolve

from .. import crash_points
from ..compression import Compression
from ..errors import StoreError
from ..records import Commit
from .answer_rows import FETCHES, TABLES, Row, Table, read_spool
from .database_schema import MARKS, Database, look, quoted
from .protocol import Problem
from .row_digest import RowDigest, comparable

# [flinks_async.bulk.stores.marks] Commits as JSON, for stores that keep them beside the rows, in the same transaction.


ROWS: Final = 2_000
"""That are read at once."""


class Connection(Protocol):
    """What the connections of all databases can do."""

    def execute(self, sql: Any, values: Any = ..., /) -> Any: ...

    def cursor(self) -> Any: ...

    def close(self) -> None: ...


T = TypeVar("T")

ConnectionT = TypeVar("ConnectionT", bound=Connection)


class DatabaseStore(Database, ABC, Generic[ConnectionT]):
    """A store in a database that several jobs may share.

    A receipt is `{"rows": how many by table, "digest": of them}`.
    """

    spool_compression: Compression = "none"

    _library: Any
    """The module for the database. Its errors are `Error`."""

    _begin: ClassVar[str] = "BEGIN"
    """How a transaction begins."""

    _db: ConnectionT | None
    """Open or not. It commits each statement by itself, unless a transaction was begun."""

    _job = 0
    """The number that stands for the job in all tables; 0 if the database does not know the job."""

    _there: frozenset[tuple[str, str]] | None = None
    """The columns (table, name) of a database that is only looked at; None for all that there should be."""

    _bare = False
    """It is only looked at, and has none of the tables."""

    @abstractmethod
    def _store_error(self, error: Any) -> StoreError:
        """What stands for an error of the library. It shows no value of a row."""

    @abstractmethod
    def _insert(self, table: Table, rows: list[Row]) -> list[Row]:
        """Adds rows of this job to a table; gives them as they are stored.

        Raises:
            StoreError: a value does not fit its column, or the database says no.
        """

    def _inserted(self) -> None:
        """Called when all rows of a shard were inserted."""

    def _add_mark(self, shard: int, mark: bytes) -> None:
        self.run(f"INSERT INTO {MARKS} VALUES (?, ?, ?)", self._job, shard, mark.decode())

    def _select(self, table: Table) -> list[str]:
        """The columns of a table `t` in a query, so that `comparable` understands their values."""
        return [f"t.{name}" for name in quoted(table)]

    def _comparable(self, table: Table, rows: list[Row]) -> Iterable[Row]:
        """Rows in the form that counts for their digest."""
        return comparable(table, rows)

    def recover(self, receipts: Mapping[int, Mapping[str, Any]]) -> Iterable[Commit]:
        marked = set(self._shards())
        if lost := receipts.keys() - marked:
            raise StoreError(
                f"{self.where} lacks {len(lost):,} shards that the job has written to it. Put that database back, or "
                "start a new job"
            )
        return [commit for shard in sorted(marked - receipts.keys()) if (commit := self._mark(shard)) is not None]

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        found = self._mark(commit.shard.id)
        if found is not None:
            return found.receipt
        digest = RowDigest()
        with self._transaction():
            for batch in read_spool(spool, self.spool_compression, commit.shard):
                for table in TABLES:
                    if rows := batch.of(table):
                        digest.add(table, self._comparable(table, self._insert(table, rows)))
            if digest.rows[FETCHES.name] != commit.written.lines:
                raise StoreError(f"{spool} has {digest.rows[FETCHES.name]:,} answers, not {commit.written.lines:,}")
            self._inserted()
            receipt = {"rows": {table.name: digest.rows[table.name] for table in TABLES}, "digest": digest.hexdigest()}
            self._add_mark(commit.shard.id, to_json(evolve(commit, receipt=receipt)))
            crash_points.reach("rows written")
        crash_points.reach("rows committed")
        return receipt

    def verify(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        if self._bare:
            if next(iter(commits), None) is not None:
                yield Problem(self.where, "it has no tables of flinks-async")
            return
        try:
            known: dict[int, Mapping[str, Any]] = {}
            for commit in commits:
                known[commit.shard.id] = commit.receipt
                yield from self._compare_mark(commit)
            for shard in sorted(set(self._shards()) - known.keys()):
                what = "the ledger does not know it; the next run of the job takes it over"
                yield Problem(f"{self.where}, table {MARKS}", what, shard)
            yield from self._compare_rows(known)
        except StoreError as error:
            yield Problem(self.where, error.message)

    def missing(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        marked = set() if self._bare else set(self._shards())
        for commit in commits:
            if commit.shard.id not in marked:
                yield Problem(self.where, "its mark is missing", commit.shard.id)

    def lines(self, commits: Iterable[Commit]) -> NoReturn:
        raise StoreError(
            "answers in a database cannot be exported as they came, since tables do not have all of it. Query "
            f"{self.where}, or run the job with a store of JSONL"
        )

    def close(self) -> None:
        if self._db is not None:
            with suppress(self._library.Error):
                self._db.close()
            self._db = None
        self._job, self._there, self._bare = 0, None, False

    def run(self, sql: str, *values: Any) -> int:
        rowcount: int = self._do(lambda: self._execute(sql, values).rowcount)
        return rowcount

    def fetch(self, sql: str, *values: Any) -> list[Row]:
        rows: list[Row] = self._do(lambda: self._execute(sql, values).fetchall())
        return rows

    # --- the database -------------------------------------------------------------------------------------------------

    @property
    def _opened(self) -> ConnectionT:
        if self._db is None:
            raise StoreError("the store is not open")
        return self._db

    def _execute(self, sql: str, values: tuple[Any, ...]) -> Any:
        """Gives a cursor, or what serves as one. Raises the library's errors."""
        return self._opened.execute(sql, values)

    def _do(self, work: Callable[[], T]) -> T:
        """Gives the library's errors as our own. Not as a context manager: theirs may quote values, and would be the
        context of ours."""
        try:
            return work()
        except self._library.Error as error:
            problem = self._store_error(error)
        raise problem

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One durable transaction, rolled back by any exception.

        Raises:
            StoreError: the database says no.
        """
        self.run(self._begin)
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            with suppress(self._library.Error):
                self._opened.execute("ROLLBACK")
            raise

    def _stream(self, sql: str, *values: Any) -> Iterator[Sequence[Row]]:
        """The rows of a query in bounded memory, some at a time."""
        with closing(self._opened.cursor()) as cursor:
            self._do(lambda: cursor.execute(sql, values))
            while rows := self._do(lambda: cursor.fetchmany(ROWS)):
                yield rows

    def _alone(self) -> bool:
        """Whether no other job is in the database."""
        return self._bare or not self.fetch("SELECT 1 FROM flinks_jobs WHERE number != ?", self._job)

    def _look(self, job: str) -> None:
        """Finds the job in a database that is only looked at."""
        found = look(self, job)
        self._bare = found is None
        self._job, self._there = found or (0, frozenset())

    # --- rows and marks -----------------------------------------------------------------------------------------------

    def _delete_rows(self) -> list[str]:
        """Removes what the job has written; says how much that is."""
        removed = []
        with self._transaction():
            for table in TABLES:
                count = self.run(f"DELETE FROM {table.name} WHERE job = ?", self._job)
                removed.append(f"{count:,} rows of {table.name} in {self.where}")
            self.run(f"DELETE FROM {MARKS} WHERE job = ?", self._job)
            self.run("DELETE FROM flinks_jobs WHERE number = ?", self._job)
        return [*removed, f"left: {self.where}, now without rows of this job"]

    def _shards(self) -> list[int]:
        return [shard for (shard,) in self.fetch(f"SELECT shard FROM {MARKS} WHERE job = ?", self._job)]

    def _mark(self, shard: int) -> Commit | None:
        found = self.fetch(f"SELECT mark FROM {MARKS} WHERE job = ? AND shard = ?", self._job, shard)
        try:
            return from_json(found[0][0]) if found else None
        except ValueError:
            pass
        raise StoreError(f"{self.where}: the mark of shard {shard} is broken")

    def _compare_mark(self, commit: Commit) -> Iterator[Problem]:
        where, shard = f"{self.where}, table {MARKS}", commit.shard.id
        try:
            mark = self._mark(shard)
        except StoreError as error:
            yield Problem(where, error.message, shard)
            return
        if mark is None:
            yield Problem(where, "its mark is missing", shard)
        elif (mark.written, mark.receipt) != (commit.written, commit.receipt):
            yield Problem(where, "its mark is not what the ledger says", shard)

    def _compare_rows(self, known: Mapping[int, Mapping[str, Any]]) -> Iterator[Problem]:
        """Reads all rows of the job once."""
        digests: dict[int | None, RowDigest] = {}
        for table in TABLES:
            names = zip(table.names, self._select(table), strict=True)
            columns = ", ".join(text if self._has(table, name) else "NULL" for name, text in names)
            sql = (
                f"SELECT f.shard, {columns} FROM {table.name} t LEFT JOIN fetches f ON f.job = t.job "
                "AND f.line = t.line WHERE t.job = ?"
            )
            for rows in self._stream(sql, self._job):
                by_shard: dict[int | None, list[Row]] = {}
                for shard, *row in rows:
                    by_shard.setdefault(shard, []).append(tuple(row))
                for shard, some in by_shard.items():
                    digests.setdefault(shard, RowDigest()).add(table, self._comparable(table, some))
        for shard, receipt in known.items():
            yield from self._compare_digest(shard, receipt, digests.pop(shard, RowDigest()))
        for shard in sorted(digests, key=str):
            if shard is None or self._mark(shard) is None:
                count = sum(digests[shard].rows.values())
                yield Problem(self.where, f"{count:,} rows belong to no shard that the job has written", shard)

    def _has(self, table: Table, column: str) -> bool:
        return self._there is None or (table.name, column) in self._there

    def _compare_digest(self, shard: int, receipt: Mapping[str, Any], found: RowDigest) -> Iterator[Problem]:
        same = True
        for name, count in receipt["rows"].items():
            if found.rows[name] != count:
                same = False
                what = f"it has {found.rows[name]:,} rows, and {count:,} were written"
                yield Problem(f"{self.where}, table {name}", what, shard)
        if same and found.hexdigest() != receipt["digest"]:
            yield Problem(self.where, "its rows are not those that were written (their digest differs)", shard)


to_json = msgspec.json.Encoder().encode
"""A commit as JSON bytes. It has no token, as no record of a job does."""

_decode = msgspec.json.Decoder(Commit).decode


def from_json(mark: bytes | str) -> Commit:
    """The commit again. Fields of a newer version are left out.

    Raises:
        ValueError: the mark is broken.
    """
    return _decode(mark)
