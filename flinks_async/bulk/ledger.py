"""The ledger of a job: which shards are done, and which rows failed. SQLite, in WAL mode, every commit synced.

Tokens are not in it. Shards are rows of the input; only failed rows are kept one by one.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
from attrs import asdict, frozen

from . import crash_points
from .errors import LedgerError, StoreError
from .files import cannot_write, create
from .inputs import Scanned
from .records import Commit, Failure, FailureKind, Shard, Written

VERSION: Final = 1

PURGING: Final = "purging"
"""In the table `meta`, 1 since a purge has begun to remove the answers."""

_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
CREATE TABLE cuts (
    first INTEGER PRIMARY KEY, last INTEGER NOT NULL, offset INTEGER NOT NULL, tokens INTEGER NOT NULL,
    digest TEXT NOT NULL
) STRICT;
CREATE TABLE shards (
    id INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL, offset INTEGER NOT NULL,
    tokens INTEGER NOT NULL, digest TEXT NOT NULL, round INTEGER NOT NULL, only_rows BLOB,
    done_at REAL, run INTEGER, failed INTEGER, lines INTEGER, size INTEGER, sha256 TEXT, receipt BLOB
) STRICT;
CREATE INDEX pending ON shards (round, first, id) WHERE done_at IS NULL;
CREATE TABLE failures (
    line INTEGER PRIMARY KEY, kind TEXT NOT NULL, error TEXT NOT NULL, message TEXT NOT NULL, key BLOB,
    token_fingerprint TEXT, flinks_code TEXT, status INTEGER, attempts INTEGER NOT NULL, instance TEXT
) STRICT;
CREATE TABLE duplicates (line INTEGER PRIMARY KEY, first INTEGER NOT NULL) STRICT;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, started REAL NOT NULL, ended REAL, state TEXT, reason TEXT, summary BLOB
) STRICT;
CREATE TABLE samples (
    run INTEGER NOT NULL, at REAL NOT NULL, sample BLOB NOT NULL, PRIMARY KEY (run, at)
) STRICT, WITHOUT ROWID;
"""
_SHARD: Final = "id, first, last, offset, tokens, digest, round, only_rows"
_PAGE: Final = 256


@frozen
class Totals:
    """Where a job stands.

    Attributes:
        shards: of the job, so far.
        shards_done: those whose answers are in the store.
        fetched: tokens with an answer.
        failures: rows without one, by kind.
        classes: the same, by error; without invalid rows.
        pending: tokens that are still to be fetched.
        retrying: those of them that have failed before, and still count as failures.
        size: bytes of all finished files of answers.
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
        """Tokens of the job."""
        return self.fetched + self.failed + self.pending - self.retrying

    @property
    def failed(self) -> int:
        """Tokens that were tried and have no answer."""
        return self.failures.get("final", 0) + self.failures.get("exhausted", 0)

    @property
    def invalid(self) -> int:
        """Lines from which nothing can be sent."""
        return self.failures.get("invalid", 0)

    def to_dict(self) -> dict[str, Any]:
        """What became of the tokens, as plain JSON."""
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
    """An open ledger. One thread at a time; `reader()` gives a second view for another one.

    In a folder that cannot be written to, such as a snapshot, it can be looked at.

    Raises:
        LedgerError: it is broken, missing, or was written by a newer version.
        StoreError: it cannot be written (from every method that writes; nothing of its transaction is kept).
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self.path = path
        with self._guarded():
            if new:
                os.close(create(path))  # private, before SQLite makes it with another mode
            elif not path.is_file():
                raise LedgerError(f"{path} is missing; without it nobody knows which tokens are done")
            only_read = not new and not os.access(path.parent, os.W_OK)
            self._db = _connect(path, only_read)
            try:
                if not only_read:
                    self._make_durable()
                self._set_up(new)
            except BaseException:
                self._db.close()
                raise

    def _make_durable(self) -> None:
        db = self._db
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise LedgerError(f"{self.path}: this file system has no write-ahead log (it is {mode}); use a local disk")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")
        db.execute("PRAGMA checkpoint_fullfsync = ON")

    def _set_up(self, new: bool) -> None:
        db = self._db
        if new:
            with self._transaction():
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")
            return
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise LedgerError(
                f"{self.path} was written by a newer version of flinks-async (format {version}); update it"
            )
        if version < 1 or not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'shards'").fetchone():
            raise LedgerError(f"{self.path} is not a ledger")

    def reader(self) -> Ledger:
        """The same ledger for another thread."""
        return Ledger(self.path)

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._db.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            problem = _translated(self.path, error)
        except UnicodeDecodeError:  # of a name in SQLite's own message
            problem = LedgerError(f"{self.path} cannot be understood: its tables are damaged")
        except OSError as error:
            problem = cannot_write(self.path, error)
        else:
            return
        raise problem

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Guarded, and values must be what was written."""
        with self._guarded():
            try:
                yield
                return
            except (ValueError, TypeError):
                pass
        raise LedgerError(f"{self.path} is broken: there is something in it that no job writes")

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
        """Whatever is read inside is of one moment, though the job may go on meanwhile."""
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

    # --- what the job is ----------------------------------------------------------------------------------------------

    def get(self, name: str) -> Any:
        """A value of the table `meta`, or None."""
        with self._reading():
            row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
            return None if row is None else row[0]

    def put(self, name: str, value: str | bytes | int) -> None:
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    # --- the plan -----------------------------------------------------------------------------------------------------

    @contextmanager
    def planning(self) -> Iterator[Planner]:
        """One transaction that takes the plan: all of it, or nothing."""
        with self._transaction() as db:
            yield Planner(db)

    def plan(self) -> Scanned | None:
        """What the input holds; None while it has not been read through."""
        plan = self.get("plan")
        with self._reading():
            return None if plan is None else msgspec.json.decode(plan, type=Scanned)

    def cuts(self, shard: Shard) -> Iterator[Shard]:
        """The pieces of the plan that hold the rows of a shard."""
        only = shard.only
        with self._reading():
            rows = self._db.execute(
                "SELECT first, last, offset, tokens, digest FROM cuts WHERE first <= ? AND last >= ? ORDER BY first",
                (shard.last, shard.first),
            ).fetchall()
        wanted = iter(only or ())
        row = next(wanted, None)
        for first, last, offset, tokens, digest in rows:
            if only is not None:
                if row is None or row > last:
                    continue
                while row is not None and row <= last:
                    row = next(wanted, None)
            yield Shard(shard.id, first, last, offset, tokens, digest)

    def duplicates(self, first: int, last: int) -> set[int]:
        """Lines between two lines, inclusive, whose token came before."""
        with self._reading():
            rows = self._db.execute("SELECT line FROM duplicates WHERE line BETWEEN ? AND ?", (first, last))
            return {line for (line,) in rows}

    def all_duplicates(self) -> Iterator[tuple[int, int]]:
        """(line, line where its token came first) of all duplicates, in the order of the input."""
        after = 0
        while True:
            with self._reading():
                page = self._db.execute(
                    "SELECT line, first FROM duplicates WHERE line > ? ORDER BY line LIMIT ?", (after, _PAGE)
                ).fetchall()
            if not page:
                return
            yield from page
            after = page[-1][0]

    # --- the work -----------------------------------------------------------------------------------------------------

    def pending(self) -> Iterator[Shard]:
        """Shards to be done, those of earlier rounds first. Shards that are added meanwhile come too."""
        after = (-1, -1, -1)
        while True:
            with self._reading():
                rows = self._db.execute(
                    f"SELECT {_SHARD} FROM shards WHERE done_at IS NULL AND (round, first, id) > (?, ?, ?) "
                    "ORDER BY round, first, id LIMIT ?",
                    (*after, _PAGE),
                )
                page = [_shard(row) for row in rows]
            if not page:
                return
            yield from page
            after = _place(page[-1])

    def receipts(self) -> dict[int, dict[str, Any]]:
        """The store's receipts of the shards that are done."""
        with self._reading():
            rows = self._db.execute("SELECT id, receipt FROM shards WHERE done_at IS NOT NULL")
            return {id_: msgspec.json.decode(receipt) for id_, receipt in rows}

    def commits(self) -> Iterator[Commit]:
        """The shards that are done, without their failures, in the order of the input."""
        after = (-1, -1, -1)
        while True:
            with self._reading():
                rows = self._db.execute(
                    f"SELECT {_SHARD}, lines, size, sha256, receipt FROM shards "
                    "WHERE done_at IS NOT NULL AND (round, first, id) > (?, ?, ?) ORDER BY round, first, id LIMIT ?",
                    (*after, _PAGE),
                )
                page = [_commit(row) for row in rows]
            if not page:
                return
            yield from page
            after = _place(page[-1].shard)

    def commit(self, commit: Commit, *, run: int, now: float) -> None:
        """Marks a shard as done, with its failures; what was left of it becomes a new shard."""
        shard = commit.shard
        with self._transaction() as db:
            db.execute(
                "UPDATE shards SET done_at = ?, run = ?, failed = ?, lines = ?, size = ?, sha256 = ?, receipt = ?, "
                "tokens = tokens - ? WHERE id = ?",
                (
                    now, run, len(commit.failures), commit.written.lines, commit.written.size, commit.written.sha256,
                    msgspec.json.encode(commit.receipt), len(commit.left), shard.id,
                ),
            )  # fmt: skip
            if shard.round:
                tried = set(shard.only or ()) - set(commit.left)
                db.executemany("DELETE FROM failures WHERE line = ?", [(line,) for line in tried])
            _add_failures(db, commit.failures)
            if commit.left:
                _add_shard(db, commit.left, shard.first, shard.last, shard.offset, shard.round)

    def retry(self, kinds: Collection[FailureKind], shard_size: int) -> int:
        """Makes shards of the failed tokens of some kinds; how many tokens that is. Only when nothing is pending."""
        with self._transaction() as db:
            marks = ", ".join("?" * len(kinds))
            lines = [
                line
                for (line,) in db.execute(
                    f"SELECT line FROM failures WHERE kind IN ({marks}) AND error != 'InvalidTokenError' ORDER BY line",
                    tuple(kinds),
                )
            ]
            round_ = 1 + db.execute("SELECT coalesce(max(round), 0) FROM shards").fetchone()[0]
            for start in range(0, len(lines), shard_size):
                rows = tuple(lines[start : start + shard_size])
                _add_shard(db, rows, rows[0], rows[-1], 0, round_)
        return len(lines)

    # --- what became of it --------------------------------------------------------------------------------------------

    def totals(self) -> Totals:
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
        after = 0
        while True:
            with self._reading():
                rows = self._db.execute(
                    "SELECT line, kind, error, message, key, token_fingerprint, flinks_code, status, attempts, instance "
                    "FROM failures WHERE line > ? ORDER BY line LIMIT ?",
                    (after, _PAGE),
                )
                page = [_failure(row) for row in rows]
            if not page:
                return
            yield from page
            after = page[-1].line

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
        with self._transaction() as db:
            return int(db.execute("INSERT INTO runs (started) VALUES (?)", (now,)).lastrowid or 0)

    def end_run(self, run: int, now: float, state: str, reason: str, summary: Mapping[str, Any]) -> None:
        with self._transaction() as db:
            db.execute(
                "UPDATE runs SET ended = ?, state = ?, reason = ?, summary = ? WHERE id = ?",
                (now, state, reason, msgspec.json.encode(summary), run),
            )

    def runs(self) -> list[dict[str, Any]]:
        """All runs so far; one that was killed has no end."""
        with self._reading():
            rows = self._db.execute("SELECT id, started, ended, state, reason, summary FROM runs ORDER BY id")
            return [
                {
                    "run": id_, "started": started, "ended": ended, "state": state, "reason": reason,
                    "summary": None if summary is None else msgspec.json.decode(summary),
                }
                for id_, started, ended, state, reason, summary in rows
            ]  # fmt: skip

    def add_sample(self, run: int, now: float, sample: Mapping[str, Any]) -> None:
        """Adds figures of one moment, for the report."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO samples VALUES (?, ?, ?)", (run, now, msgspec.json.encode(sample)))

    def samples(self) -> Iterator[dict[str, Any]]:
        """The figures of all moments, with `run` and `at` (seconds since 1970)."""
        with self._reading():
            rows = self._db.execute("SELECT run, at, sample FROM samples ORDER BY run, at").fetchall()
        for run, at, sample in rows:
            with self._reading():
                figures = {"run": run, "at": at, **msgspec.json.decode(sample)}
            yield figures

    def latest_sample(self) -> dict[str, Any] | None:
        """The last figures of the last run, as `samples` gives them; None if it has none."""
        with self._reading():
            row = self._db.execute(
                "SELECT run, at, sample FROM samples WHERE run = (SELECT max(id) FROM runs) ORDER BY at DESC LIMIT 1"
            ).fetchone()
            return None if row is None else {"run": row[0], "at": row[1], **msgspec.json.decode(row[2])}

    def problems(self) -> list[str]:
        """What SQLite finds wrong with the file."""
        with self._reading():
            found = [text for (text,) in self._db.execute("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found


class Planner:
    """Takes the plan of a job; a `PlanSink`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def shard(self, shard: Shard) -> None:
        self._db.execute(
            "INSERT INTO cuts VALUES (?, ?, ?, ?, ?)",
            (shard.first, shard.last, shard.offset, shard.tokens, shard.digest),
        )
        if shard.tokens:
            self._db.execute(
                f"INSERT INTO shards ({_SHARD}) VALUES (?, ?, ?, ?, ?, ?, 0, NULL)",
                (shard.id, shard.first, shard.last, shard.offset, shard.tokens, shard.digest),
            )

    def invalid(self, failure: Failure) -> None:
        _add_failures(self._db, [failure])

    def duplicate(self, line: int, first: int) -> None:
        self._db.execute("INSERT INTO duplicates VALUES (?, ?)", (line, first))

    def finish(self, scanned: Mapping[str, Any]) -> None:
        """Ends the plan with its totals."""
        self._db.execute("INSERT INTO meta VALUES ('plan', ?)", (msgspec.json.encode(scanned).decode(),))


def _add_shard(db: sqlite3.Connection, rows: tuple[int, ...], first: int, last: int, offset: int, round_: int) -> None:
    db.execute(
        f"INSERT INTO shards ({_SHARD}) SELECT coalesce(max(id), -1) + 1, ?, ?, ?, ?, '', ?, ? FROM shards",
        (max(first, rows[0]), min(last, rows[-1]), offset, len(rows), round_, msgspec.json.encode(rows)),
    )


def _add_failures(db: sqlite3.Connection, failures: Iterable[Failure]) -> None:
    for failure in failures:
        row = asdict(failure)
        row["key"] = None if failure.key is None else msgspec.json.encode(failure.key)
        db.execute(
            "INSERT OR REPLACE INTO failures VALUES (:line, :kind, :error, :message, :key, :token_fingerprint, "
            ":flinks_code, :status, :attempts, :instance)",
            row,
        )


def _shard(row: tuple[Any, ...]) -> Shard:
    id_, first, last, offset, tokens, digest, round_, only = row[:8]
    rows = None if only is None else tuple(msgspec.json.decode(only))
    return Shard(id_, first, last, offset, tokens, digest, round_, rows)


def _place(shard: Shard) -> tuple[int, int, int]:
    """Where it stands in the order of shards."""
    return shard.round, shard.first, shard.id


def _commit(row: tuple[Any, ...]) -> Commit:
    lines, size, sha256, receipt = row[-4:]
    return Commit(_shard(row), Written(lines, size, sha256), receipt=msgspec.json.decode(receipt))


def _failure(row: tuple[Any, ...]) -> Failure:
    line, kind, error, message, key, *rest = row
    return Failure(line, kind, error, message, None if key is None else msgspec.json.decode(key), *rest)


def _connect(path: Path, only_read: bool) -> sqlite3.Connection:
    where = str(path)
    if only_read:
        # SQLite wants to make a file for the log. Only where there is no log can it be told that nothing will change.
        log = path.with_name(f"{path.name}-wal")
        logged = log.exists() and log.stat().st_size
        where = f"{path.absolute().as_uri()}?{'mode=ro' if logged else 'immutable=1'}"
    return sqlite3.connect(where, uri=only_read, isolation_level=None, check_same_thread=False, timeout=10)


_UNREADABLE: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_SCHEMA", "SQLITE_ERROR")


def _translated(path: Path, error: sqlite3.Error) -> LedgerError | StoreError:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(_UNREADABLE):
        return LedgerError(f"{path} cannot be understood: {error}")
    if name.startswith("SQLITE_CANTOPEN"):
        return LedgerError(f"{path} cannot be opened: it, its folder or the files beside it may not be read")
    if name.startswith("SQLITE_BUSY"):
        return StoreError(f"{path} cannot be written: another program keeps it locked")
    return StoreError(f"{path} cannot be written: {error}")
