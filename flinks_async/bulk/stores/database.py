"""What stores in a database have in common: rows and mark of a shard are one transaction.

A store says how statements are run and rows are inserted; the SQL here is such that each of them understands it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

from attrs import evolve

from .. import crash_points
from ..compression import Compression
from ..errors import StoreError
from ..records import Commit
from .comparable import comparable
from .database_schema import MARKS, Database, quoted
from .marks import from_json, to_json
from .protocol import Problem
from .row_digest import RowDigest
from .rows import FETCHES, TABLES, Row, Table, read_spool


class DatabaseStore(Database, ABC):
    """A store in a database that several jobs may share.

    A receipt is `{"rows": how many by table, "digest": of them}`.
    """

    spool_compression: Compression = "none"

    _job = 0
    """The number that stands for the job in all tables."""

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[None]:
        """One durable transaction, rolled back by any exception.

        Raises:
            StoreError: the database says no.
        """

    @abstractmethod
    def _insert(self, table: Table, rows: list[Row]) -> list[Row]:
        """Adds rows of this job to a table; gives them as they are stored.

        Raises:
            StoreError: a value does not fit its column, or the database says no.
        """

    @abstractmethod
    def _stream(self, sql: str, *values: Any) -> Iterator[Sequence[Row]]:
        """The rows of a query in bounded memory, some at a time."""

    def _inserted(self) -> None:
        """Called when all rows of a shard were inserted."""

    def _select(self, table: Table) -> list[str]:
        """The columns of a table `t` in a query, so that `comparable` understands their values."""
        return [f"t.{name}" for name in quoted(table)]

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
                        digest.add(table, comparable(table, self._insert(table, rows)))
            if digest.rows[FETCHES.name] != commit.written.lines:
                raise StoreError(f"{spool} has {digest.rows[FETCHES.name]:,} answers, not {commit.written.lines:,}")
            self._inserted()
            receipt = {"rows": {table.name: digest.rows[table.name] for table in TABLES}, "digest": digest.hexdigest()}
            mark = to_json(evolve(commit, receipt=receipt)).decode()
            self.run(f"INSERT INTO {MARKS} VALUES (?, ?, ?)", self._job, commit.shard.id, mark)
            crash_points.reach("rows written")
        crash_points.reach("rows committed")
        return receipt

    def verify(self, commits: Iterable[Commit]) -> Iterator[Problem]:
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

    def lines(self, commits: Iterable[Commit]) -> NoReturn:
        raise StoreError(
            "answers in a database cannot be exported as they came, since tables do not have all of it. Query "
            f"{self.where}, or run the job with a store of JSONL"
        )

    def _delete_rows(self) -> list[str]:
        """Removes what the job has written; says how much that is."""
        removed = []
        with self._transaction():
            for table in TABLES:
                count = self.run(f"DELETE FROM {table.name} WHERE job = ?", self._job)
                removed.append(f"{count:,} rows of {table.name} in {self.where}")
            self.run(f"DELETE FROM {MARKS} WHERE job = ?", self._job)
            self.run("DELETE FROM flinks_jobs WHERE number = ?", self._job)
        return removed

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
            columns = ", ".join(self._select(table))
            sql = (
                f"SELECT f.shard, {columns} FROM {table.name} t LEFT JOIN fetches f ON f.job = t.job "
                "AND f.line = t.line WHERE t.job = ?"
            )
            for rows in self._stream(sql, self._job):
                by_shard: dict[int | None, list[Row]] = {}
                for shard, *row in rows:
                    by_shard.setdefault(shard, []).append(tuple(row))
                for shard, some in by_shard.items():
                    digests.setdefault(shard, RowDigest()).add(table, comparable(table, some))
        for shard, receipt in known.items():
            yield from self._compare_digest(shard, receipt, digests.pop(shard, RowDigest()))
        for shard in sorted(digests, key=str):
            if shard is None or self._mark(shard) is None:
                count = sum(digests[shard].rows.values())
                yield Problem(self.where, f"{count:,} rows belong to no shard that the job has written", shard)

    def _compare_digest(self, shard: int, receipt: Mapping[str, Any], found: RowDigest) -> Iterator[Problem]:
        same = True
        for name, count in receipt["rows"].items():
            if found.rows[name] != count:
                same = False
                what = f"it has {found.rows[name]:,} rows, and {count:,} were written"
                yield Problem(f"{self.where}, table {name}", what, shard)
        if same and found.hexdigest() != receipt["digest"]:
            yield Problem(self.where, "its rows are not those that were written (their digest differs)", shard)
