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

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from attrs import evolve

from .. import crash_points
from ..compression import Compression
from ..disk import PRIVATE_FILE, cannot_write, sync_folder
from ..errors import StoreError
from ..records import Commit
from .marks import from_json, to_json
from .protocol import Place, Problem
from .row_digest import RowDigest
from .rows import FETCHES, TABLES, Batch, Row, Table, does_not_fit, read_spool
from .sqlite_schema import MARKS, NAMES, job_number, prepare, quoted, stored

_WAIT: Final = 60.0
"""Seconds to wait for another job that writes to the same database."""

_INT64: Final = range(-(2**63), 2**63)


class SQLiteStore:
    """A database, of this job alone or of several.

    A receipt is `{"rows": how many by table, "digest": of them}`.

    Args:
        path: of the database (default `answers.sqlite` in the job's directory). It is made if it is missing; tables of
            somebody else in it are left alone, but for a name that both want: then the database is refused.
    """

    spool_compression: Compression = "none"

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._given = None if path is None else Path(path).absolute()
        self._path: Path = Path()
        self._db: sqlite3.Connection | None = None
        self._job = 0

    def describe(self) -> dict[str, Any]:
        return {"kind": "sqlite", "path": None if self._given is None else str(self._given)}

    def open(self, place: Place) -> None:
        self.close()
        self._path = self._given or place.folder / "answers.sqlite"
        with self._guarded():
            _create(self._path)
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=_WAIT)
            try:
                with self._transaction():  # before anything is changed: it may be refused
                    prepare(self._db, self._path)
                    self._job = job_number(self._db, place.job)
                self._make_durable()
            except BaseException:
                self.close()
                raise

    def recover(self, receipts: Mapping[int, Mapping[str, Any]]) -> Iterable[Commit]:
        """See `Store.recover`.

        Raises:
            StoreError: also if shards that the ledger knows are not in the database.
        """
        marked = set(self._shards())
        if lost := receipts.keys() - marked:
            raise StoreError(
                f"{self._path} lacks {len(lost):,} shards that the job has written to it. Put that database back, "
                "or start a new job"
            )
        return [commit for shard in sorted(marked - receipts.keys()) if (commit := self._mark(shard)) is not None]

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        found = self._mark(commit.shard.id)
        if found is not None:
            return found.receipt
        with self._transaction() as db:
            digest = RowDigest()
            for batch in read_spool(spool, self.spool_compression, commit.shard):
                for table in TABLES:
                    self._insert(db, table, batch, digest)
            if digest.rows[FETCHES.name] != commit.written.lines:
                raise StoreError(f"{spool} has {digest.rows[FETCHES.name]:,} answers, not {commit.written.lines:,}")
            receipt = {"rows": {table.name: digest.rows[table.name] for table in TABLES}, "digest": digest.hexdigest()}
            mark = to_json(evolve(commit, receipt=receipt))
            db.execute(f"INSERT INTO {MARKS} VALUES (?, ?, ?)", (self._job, commit.shard.id, mark))
            crash_points.reach("rows written")
        crash_points.reach("rows committed")
        return receipt

    def verify(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        try:
            with self._guarded():
                broken = [text for (text,) in self._opened.execute("PRAGMA integrity_check")]
            if broken != ["ok"]:
                yield from (Problem(str(self._path), text) for text in broken)
                return
            known: dict[int, Mapping[str, Any]] = {}
            for commit in commits:
                known[commit.shard.id] = commit.receipt
                yield from self._compare_mark(commit)
            for shard in sorted(set(self._shards()) - known.keys()):
                what = "the ledger does not know it; the next run of the job takes it over"
                yield Problem(f"{self._path}, table {MARKS}", what, shard)
            yield from self._compare_rows(known)
        except StoreError as error:
            yield Problem(str(self._path), error.message)

    def lines(self, commits: Iterable[Commit]) -> NoReturn:
        raise StoreError(
            f"answers in a database cannot be exported as they came, since tables do not have all of it. Query "
            f"{self._path}, or run the job with a store of JSONL"
        )

    def purge(self) -> list[str]:
        db, path = self._opened, self._path
        with self._guarded():
            names = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")}
            alone = not db.execute("SELECT 1 FROM flinks_jobs WHERE number != ?", (self._job,)).fetchone()
            if self._given is None and alone and names <= NAMES:
                size = path.stat().st_size
                self.close()
                for suffix in ("", "-wal", "-shm", "-journal"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                return [f"{path} ({size:,} bytes)"]
        return self._delete_rows()

    def close(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    # --- in and out ---------------------------------------------------------------------------------------------------

    def _insert(self, db: sqlite3.Connection, table: Table, batch: Batch, digest: RowDigest) -> None:
        rows = [stored(table, row) for row in batch.of(table)]
        marks = ", ".join("?" * (len(table.columns) + 1))
        statement = f"INSERT INTO {table.name} (job, {', '.join(quoted(table))}) VALUES ({marks})"
        try:
            db.executemany(statement, [(self._job, *row) for row in rows])
        except OverflowError:
            raise self._overflow(table, batch.of(table)) from None
        digest.add(table, rows)

    def _overflow(self, table: Table, rows: list[Row]) -> StoreError:
        for row in rows:
            for column, value in zip(table.columns, row, strict=True):
                if isinstance(value, int) and value not in _INT64:
                    return does_not_fit(self._path, table, column, row, "INTEGER (64 bits)")
        return StoreError(f"{self._path} cannot be written: a text in {table.name} is too long")

    def _shards(self) -> list[int]:
        with self._guarded():
            return [
                shard for (shard,) in self._opened.execute(f"SELECT shard FROM {MARKS} WHERE job = ?", (self._job,))
            ]

    def _mark(self, shard: int) -> Commit | None:
        with self._guarded():
            row = self._opened.execute(
                f"SELECT mark FROM {MARKS} WHERE job = ? AND shard = ?", (self._job, shard)
            ).fetchone()
        if row is None:
            return None
        try:
            return from_json(row[0])
        except ValueError:
            pass
        raise StoreError(f"{self._path}: the mark of shard {shard} is broken")

    def _compare_mark(self, commit: Commit) -> Iterator[Problem]:
        shard = commit.shard.id
        try:
            mark = self._mark(shard)
        except StoreError as error:
            yield Problem(f"{self._path}, table {MARKS}", error.message, shard)
            return
        if mark is None:
            yield Problem(f"{self._path}, table {MARKS}", "its mark is missing", shard)
        elif (mark.written, mark.receipt) != (commit.written, commit.receipt):
            yield Problem(f"{self._path}, table {MARKS}", "its mark is not what the ledger says", shard)

    def _compare_rows(self, known: Mapping[int, Mapping[str, Any]]) -> Iterator[Problem]:
        """Reads all rows of the job once."""
        digests: dict[int | None, RowDigest] = {}
        for table in TABLES:
            columns = ", ".join(f"t.{name}" for name in quoted(table))
            with self._guarded():
                cursor = self._opened.execute(
                    f"SELECT f.shard, {columns} FROM {table.name} t LEFT JOIN fetches f USING (job, line) "
                    f"WHERE t.job = ? ORDER BY t.job, t.line",
                    (self._job,),
                )
                while rows := cursor.fetchmany(1000):
                    by_shard: dict[int | None, list[Row]] = {}
                    for shard, *row in rows:
                        by_shard.setdefault(shard, []).append(tuple(row))
                    for shard, some in by_shard.items():
                        digests.setdefault(shard, RowDigest()).add(table, some)
        for shard, receipt in known.items():
            found = digests.pop(shard, None) or RowDigest()
            yield from self._compare_digest(shard, receipt, found)
        for shard in sorted(digests, key=str):
            if shard is None or self._mark(shard) is None:
                count = sum(digests[shard].rows.values())
                yield Problem(str(self._path), f"{count:,} rows belong to no shard that the job has written", shard)

    def _compare_digest(self, shard: int, receipt: Mapping[str, Any], found: RowDigest) -> Iterator[Problem]:
        same = True
        for name, count in receipt["rows"].items():
            if found.rows[name] != count:
                same = False
                what = f"it has {found.rows[name]:,} rows, and {count:,} were written"
                yield Problem(f"{self._path}, table {name}", what, shard)
        if same and found.hexdigest() != receipt["digest"]:
            yield Problem(str(self._path), "its rows are not those that were written (their digest differs)", shard)

    def _delete_rows(self) -> list[str]:
        removed = []
        with self._transaction() as db:
            db.execute("PRAGMA secure_delete = ON")
            for table in TABLES:
                count = db.execute(f"DELETE FROM {table.name} WHERE job = ?", (self._job,)).rowcount
                removed.append(f"{count:,} rows of {table.name} in {self._path}")
            db.execute(f"DELETE FROM {MARKS} WHERE job = ?", (self._job,))
            db.execute("DELETE FROM flinks_jobs WHERE number = ?", (self._job,))
        with self._guarded():
            self._opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    # --- the database -------------------------------------------------------------------------------------------------

    @property
    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreError("the store is not open")
        return self._db

    def _make_durable(self) -> None:
        db = self._opened
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreError(f"{self._path}: this file system has no write-ahead log (it is {mode}); use a local disk")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")
        db.execute("PRAGMA checkpoint_fullfsync = ON")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} {_reason(error)}") from None
        except OSError as error:
            raise cannot_write(self._path, error) from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self._opened
        with self._guarded():
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                raise


def _create(path: Path) -> None:
    """Makes the file with its mode, before SQLite makes it with another one."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
    except FileExistsError:
        return
    sync_folder(path.parent)


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
