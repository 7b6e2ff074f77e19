"""The ledger of a job: which shards are done, and which rows failed.

It is an SQLite database in WAL mode; every commit is synced. It holds no token: shards are ranges of rows of the input,
and only failed rows are stored one by one.
"""

from __future__ import annotations

import os
import sqlite3
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from attrs import frozen

from . import ledger_tables as tables
from .errors import LedgerError
from .files import cannot_write, connect_to_look, crash_points, create, newer_version, sync_every_commit
from .inputs import Scanned
from .records import Commit, Failure, FailureKind, Shard

VERSION: Final = 1

PURGING: Final = "purging"
"""The name in the table `meta` that is 1 once a purge has begun to remove answers."""

_PAGE: Final = 256

_encode = msgspec.json.encode
_decode = msgspec.json.decode

T = TypeVar("T")


@frozen
class Totals:
    """Where a job stands.

    Attributes:
        shards: number of shards so far.
        shards_done: shards whose answers are in the store.
        fetched: tokens with an answer.
        failures: number of failed rows by kind.
        classes: number of failed rows by error class, without invalid rows.
        pending: tokens that are still to be fetched.
        retrying: pending tokens that failed before; they still count as failures.
        size: bytes of all finished answer files.
    """

    shards: int
    shards_done: int
    fetched: int
    failures: dict[str, int]
    classes: dict[str, int]
    pending: int
    retrying: int
    size: int

    @property
    def tokens(self) -> int:
        """Number of tokens of the job."""
        return self.fetched + self.failed + self.pending - self.retrying

    @property
    def failed(self) -> int:
        """Number of tokens that were tried and have no answer."""
        return self.failures.get("final", 0) + self.failures.get("exhausted", 0)

    @property
    def invalid(self) -> int:
        """Number of input lines that hold no token that could be sent."""
        return self.failures.get("invalid", 0)

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain JSON."""
        return {
            "tokens": self.tokens,
            "fetched": self.fetched,
            "failed": self.failed,
            "pending": self.pending,
            "retrying": self.retrying,
            "invalid_lines": self.invalid,
            "by_kind": self.failures,
            "by_error": self.classes,
        }


class Ledger:
    """An open ledger, for one thread at a time; `reader()` opens it again for another thread.

    Args:
        path: of the file.
        new: create it.
        look: open it read-only and change nothing, also after a crash, whose log stays. So is a ledger in a folder
            without write permission, such as a snapshot.

    Raises:
        LedgerError: it is broken, missing, or was written by a newer version.
        StoreError: it cannot be written. Every method that writes may raise it; its transaction is rolled back.
    """

    def __init__(self, path: Path, *, new: bool = False, look: bool = False) -> None:
        self.path = path
        with self._guarded():
            if new:
                os.close(create(path))  # with private permissions, before SQLite makes it with others
            elif not path.is_file():
                raise LedgerError(f"{path} is missing. Without it, nobody knows which tokens are done")
            look = look or (not new and not os.access(path.parent, os.W_OK))
            self._db = connect_to_look(path, timeout=_WAIT) if look else _connect(path)
            try:
                if not look:
                    sync_every_commit(self._db, path)
                if new:
                    self._make_tables()
                else:
                    self._refuse_unknown()
            except BaseException:
                self._db.close()
                raise

    def _make_tables(self) -> None:
        with self._transaction() as db:
            for statement in tables.SCHEMA.split(";\n"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")

    def _refuse_unknown(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise LedgerError(newer_version(self.path, version))
        if version < 1 or not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'shards'").fetchone():
            raise LedgerError(f"{self.path} is not a ledger")

    def reader(self) -> Ledger:
        """Opens the same ledger for another thread."""
        return Ledger(self.path)

    def close(self) -> None:
        """Closes the ledger. It may be called more than once."""
        with suppress(sqlite3.Error):
            self._db.close()

    # --- queries and transactions -------------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turns errors of SQLite and of the system into ours."""
        try:
            yield
        except sqlite3.Error as error:
            problem = tables.translated(self.path, error)
        except UnicodeDecodeError:  # from a damaged name in SQLite's own message
            problem = LedgerError(f"{self.path} cannot be understood: its tables are damaged")
        except OSError as error:
            problem = cannot_write(self.path, error)
        else:
            return
        raise problem

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """As `_guarded`; and a value that no job writes means that the ledger is broken."""
        with self._guarded():
            try:
                yield
                return
            except (ValueError, TypeError):
                pass
        raise LedgerError(f"{self.path} is broken: it holds a value that no job writes")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._guarded():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                crash_points.reach("ledger written")
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                raise
        crash_points.reach("ledger committed")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All reads inside the block see the same moment, even if the job is running."""
        if self._db.in_transaction:
            yield
            return
        with self._guarded():
            self._db.execute("BEGIN")
        try:
            yield
        finally:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def _write(self, sql: str, *values: Any) -> int:
        """Runs one statement in a transaction of its own; returns the id of the row that it inserted."""
        with self._transaction() as db:
            return db.execute(sql, values).lastrowid or 0

    def _all(self, read: Callable[[tables.Row], T], sql: str, *values: Any) -> list[T]:
        with self._reading():
            return [read(row) for row in self._db.execute(sql, values)]

    def _pages(
        self, read: Callable[[tables.Row], T], sql: str, start: tuple[int, ...], key: Callable[[T], tuple[int, ...]]
    ) -> Iterator[T]:
        """Yields all records in the order of their key. Memory is that of one page; the job may write meanwhile.

        Args:
            sql: a query for the records after a key, with places for the key and for the number of records.
            start: a key that is smaller than all others.
            key: returns the key of a record.
        """
        while page := self._all(read, sql, *start, _PAGE):
            yield from page
            start = key(page[-1])

    # --- the job ------------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Any:
        """A value of the table `meta`, or None."""
        found = self._all(tables.first_of, "SELECT value FROM meta WHERE name = ?", name)
        return found[0] if found else None

    def put(self, name: str, value: str | bytes | int) -> None:
        """Sets a value of the table `meta`."""
        self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", name, value)

    # --- the plan -----------------------------------------------------------------------------------------------------

    @contextmanager
    def planning(self) -> Iterator[Planner]:
        """Records the plan in one transaction: the whole plan or nothing."""
        with self._transaction() as db:
            yield Planner(db)

    def plan(self) -> Scanned | None:
        """The counts of the input; None before it was read to its end."""
        plan = self.get("plan")
        with self._reading():
            return None if plan is None else _decode(plan, type=Scanned)

    def cuts(self, shard: Shard) -> Iterator[Shard]:
        """The pieces of the plan that hold the rows of a shard."""
        sql = (
            "SELECT first, last, offset, tokens, digest FROM cuts WHERE first <= ? AND last >= ? "
            "AND first >= (SELECT coalesce(max(first), 0) FROM cuts WHERE first <= ?) ORDER BY first"  # the index finds it
        )
        only = shard.only
        for cut in self._all(lambda row: Shard(shard.id, *row), sql, shard.last, shard.first, shard.first):
            if only is None or bisect_left(only, cut.first) < bisect_right(only, cut.last):
                yield cut

    def duplicates(self, first: int, last: int) -> set[int]:
        """Lines from `first` to `last`, inclusive, whose token came before."""
        return set(self._all(tables.first_of, "SELECT line FROM duplicates WHERE line BETWEEN ? AND ?", first, last))

    def all_duplicates(self) -> Iterator[tuple[int, int]]:
        """(line, line where its token came first) of all duplicates, in the order of the input."""
        sql = "SELECT line, first FROM duplicates WHERE line > ? ORDER BY line LIMIT ?"
        return self._pages(lambda row: (row[0], row[1]), sql, (0,), lambda pair: pair[:1])

    # --- the work -----------------------------------------------------------------------------------------------------

    def pending(self) -> Iterator[Shard]:
        """Shards that are not done, earlier rounds first. Shards added during the iteration are included."""
        sql = (
            f"SELECT {tables.SHARD} FROM shards WHERE done_at IS NULL AND (round, first, id) > (?, ?, ?) "
            "ORDER BY round, first, id LIMIT ?"
        )
        return self._pages(tables.shard_of, sql, (-1, -1, -1), lambda shard: (shard.round, shard.first, shard.id))

    def commits(self) -> Iterator[Commit]:
        """The shards that are done, without their failures, in the order of the input."""
        # Only the ids are sorted and held in memory; no index has this order.
        sql = "SELECT id FROM shards WHERE done_at IS NOT NULL ORDER BY round, first, id"
        for id_ in array("q", self._all(tables.first_of, sql)):
            yield from self._all(tables.commit_of, f"SELECT {tables.COMMIT} FROM shards WHERE id = ?", id_)

    def receipts(self) -> Mapping[int, dict[str, Any]]:
        """The store's receipts of the shards that are done, by shard id. Each is read when it is asked for."""
        return tables.Receipts(self._all)

    def commit(self, commit: Commit, *, run: int, now: float) -> None:
        """Marks a shard as done and records its failures; rows that were not tried become a new shard."""
        shard, written = commit.shard, commit.written
        with self._transaction() as db:
            db.execute(
                "UPDATE shards SET done_at = ?, run = ?, failed = ?, lines = ?, size = ?, sha256 = ?, receipt = ?, "
                "tokens = tokens - ? WHERE id = ?",
                (
                    now, run, len(commit.failures), written.lines, written.size, written.sha256,
                    _encode(commit.receipt), len(commit.left), shard.id,
                ),
            )  # fmt: skip
            if shard.round:
                tried = set(shard.only or ()) - set(commit.left)
                db.executemany("DELETE FROM failures WHERE line = ?", [(line,) for line in tried])
            tables.add_failures(db, commit.failures)
            if commit.left:
                tables.add_shard(db, commit.left, shard.offset, shard.round)

    def retry(self, kinds: Collection[FailureKind], shard_size: int) -> int:
        """Makes shards of the failed tokens of some kinds. Call it only when no shard is pending.

        Returns:
            the number of tokens in the new shards.
        """
        places = ", ".join("?" * len(kinds))
        with self._transaction() as db:
            found = db.execute(
                f"SELECT line FROM failures WHERE kind IN ({places}) AND error != 'InvalidTokenError' ORDER BY line",
                tuple(kinds),
            )
            lines = [line for (line,) in found]
            last = db.execute("SELECT coalesce(max(round), 0) FROM shards").fetchone()[0]
            for start in range(0, len(lines), shard_size):
                tables.add_shard(db, tuple(lines[start : start + shard_size]), 0, last + 1)
        return len(lines)

    # --- results ------------------------------------------------------------------------------------------------------

    def totals(self) -> Totals:
        """The counts of the job, all of one moment."""
        with self._reading(), self.snapshot():
            shards, done, fetched, size, pending, retrying = self._db.execute(
                "SELECT count(*), count(done_at), coalesce(sum(lines), 0), coalesce(sum(size), 0), "
                "coalesce(sum(tokens) FILTER (WHERE done_at IS NULL), 0), "
                "coalesce(sum(tokens) FILTER (WHERE done_at IS NULL AND round > 0), 0) FROM shards"
            ).fetchone()
            kinds = dict(self._db.execute("SELECT kind, count(*) FROM failures GROUP BY kind"))
            classes = dict(
                self._db.execute(
                    "SELECT error, count(*) FROM failures WHERE kind != 'invalid' GROUP BY error ORDER BY 2 DESC"
                )
            )
        return Totals(shards, done, fetched, kinds, classes, pending, retrying, size)

    def failures(self) -> Iterator[Failure]:
        """Rows without an answer, in the order of the input."""
        sql = f"SELECT {', '.join(tables.FAILURE)} FROM failures WHERE line > ? ORDER BY line LIMIT ?"
        return self._pages(tables.failure_of, sql, (0,), lambda failure: (failure.line,))

    def failure_counts(self, most: int) -> list[tuple[FailureKind, str, str | None, int | None, int]]:
        """(kind, error, FlinksCode, status, rows) of the `most` most frequent failures, the most frequent one first."""
        with self._reading():
            return self._db.execute(
                "SELECT kind, error, flinks_code, status, count(*) FROM failures "
                "GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1, 2, 3, 4 LIMIT ?",
                (most,),
            ).fetchall()

    # --- runs ---------------------------------------------------------------------------------------------------------

    def begin_run(self, now: float) -> int:
        """Records the start of a run; returns its id."""
        return self._write("INSERT INTO runs (started) VALUES (?)", now)

    def end_run(self, run: int, now: float, state: str, reason: str, summary: Mapping[str, Any]) -> None:
        """Records the end of a run."""
        sql = "UPDATE runs SET ended = ?, state = ?, reason = ?, summary = ? WHERE id = ?"
        self._write(sql, now, state, reason, _encode(summary), run)

    def runs(self) -> list[dict[str, Any]]:
        """All runs so far. A run that was killed has no end."""
        return self._all(tables.run_of, "SELECT id, started, ended, state, reason, summary FROM runs ORDER BY id")

    def add_sample(self, run: int, now: float, sample: Mapping[str, Any]) -> None:
        """Adds the figures of one moment, for the report. Its details are kept until the next one."""
        details = {name: sample[name] for name in tables.DETAILS if sample.get(name)}
        figures = {name: value for name, value in sample.items() if name not in details}
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO samples VALUES (?, ?, ?)", (run, now, _encode(figures)))
            latest = _encode({"run": run, "at": now, "details": details}).decode()
            db.execute("INSERT OR REPLACE INTO meta VALUES ('latest', ?)", (latest,))

    def samples(self) -> Iterator[dict[str, Any]]:
        """The figures of all moments, with `run` and `at` (seconds since 1970)."""
        with self._reading():
            rows = self._db.execute("SELECT run, at, sample FROM samples ORDER BY run, at").fetchall()
        for row in rows:  # decoded one at a time, because there may be many
            with self._reading():
                sample = tables.sample_of(row)
            yield sample

    def latest_sample(self) -> dict[str, Any] | None:
        """The last figures of the last run, as from `samples`; None if it has none."""
        last = "SELECT run, at, sample FROM samples WHERE run = (SELECT max(id) FROM runs) ORDER BY at DESC LIMIT 1"
        with self._reading(), self.snapshot():
            row = self._db.execute(last).fetchone()
            latest = _decode(self.get("latest") or "{}")
            if row is None:
                return None
            same = (latest.get("run"), latest.get("at")) == row[:2]
            return {**tables.sample_of(row), **(latest["details"] if same else {})}

    def problems(self) -> list[str]:
        """The problems that SQLite's integrity check finds."""
        found: list[str] = self._all(tables.first_of, "PRAGMA integrity_check")
        return [] if found == ["ok"] else found


class Planner:
    """Records the plan of a job; a `PlanSink`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def shard(self, shard: Shard) -> None:
        row = (shard.id, shard.first, shard.last, shard.offset, shard.tokens, shard.digest)
        self._db.execute("INSERT INTO cuts VALUES (?, ?, ?, ?, ?)", row[1:])
        if shard.tokens:
            self._db.execute(f"INSERT INTO shards ({tables.SHARD}) VALUES (?, ?, ?, ?, ?, ?, 0, NULL)", row)

    def invalid(self, failure: Failure) -> None:
        tables.add_failures(self._db, [failure])

    def duplicate(self, line: int, first: int) -> None:
        self._db.execute("INSERT INTO duplicates VALUES (?, ?)", (line, first))

    def finish(self, scanned: Mapping[str, Any]) -> None:
        """Ends the plan with its totals."""
        self._db.execute("INSERT INTO meta VALUES ('plan', ?)", (_encode(scanned).decode(),))


_WAIT: Final = 10.0
"""Seconds to wait for a lock."""


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_WAIT)
