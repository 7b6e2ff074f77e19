"""The tables of a ledger, records as their rows, and errors of SQLite as ours. Internal; used by `ledger`."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import msgspec
from attrs import asdict, fields

from .errors import LedgerError, StoreError
from .records import Commit, Failure, Shard, Written, key_from_json, to_json

SCHEMA: Final = """
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
SHARD: Final = "id, first, last, offset, tokens, digest, round, only_rows"
COMMIT: Final = f"{SHARD}, lines, size, sha256, receipt"
DETAILS: Final = ("workers", "drift")
"""Parts of a sample that only the latest one keeps: with 50 workers, they are most of it."""

FAILURE: Final = tuple(field.name for field in fields(Failure))

_encode = msgspec.json.encode
_decode = msgspec.json.decode

Row = tuple[Any, ...]

first_of: Final[Callable[[Row], Any]] = itemgetter(0)


def add_shard(db: sqlite3.Connection, rows: tuple[int, ...], offset: int, round_: int) -> None:
    """Adds a shard of some rows, ascending."""
    db.execute(
        f"INSERT INTO shards ({SHARD}) SELECT coalesce(max(id), -1) + 1, ?, ?, ?, ?, '', ?, ? FROM shards",
        (rows[0], rows[-1], offset, len(rows), round_, _encode(rows)),
    )


def add_failures(db: sqlite3.Connection, failures: Iterable[Failure]) -> None:
    sql = f"INSERT OR REPLACE INTO failures ({', '.join(FAILURE)}) VALUES ({', '.join(f':{name}' for name in FAILURE)})"
    for failure in failures:
        row = asdict(failure)
        row["key"] = None if failure.key is None else to_json(failure.key)
        db.execute(sql, row)


def shard_of(row: Row) -> Shard:
    id_, first, last, offset, tokens, digest, round_, only = row
    rows = None if only is None else tuple(_decode(only))
    return Shard(id_, first, last, offset, tokens, digest, round_, rows)


class Receipts(Mapping[int, dict[str, Any]]):
    """The receipts of the shards that are done, by shard id.

    Args:
        read: runs a query (see `Ledger`).
    """

    def __init__(self, read: Callable[..., list[Any]]) -> None:
        self._read = read

    def __getitem__(self, shard: int) -> dict[str, Any]:
        sql = "SELECT receipt FROM shards WHERE id = ? AND done_at IS NOT NULL"
        for receipt in self._read(lambda row: receipt_of(row[0]), sql, shard):
            return receipt  # type: ignore[no-any-return]
        raise KeyError(shard)

    def __iter__(self) -> Iterator[int]:
        return iter(array("q", self._read(first_of, "SELECT id FROM shards WHERE done_at IS NOT NULL ORDER BY id")))

    def __len__(self) -> int:
        return self._read(first_of, "SELECT count(done_at) FROM shards")[0]  # type: ignore[no-any-return]


receipt_of: Final = msgspec.json.Decoder(dict[str, Any]).decode


def commit_of(row: Row) -> Commit:
    *shard, lines, size, sha256, receipt = row
    return Commit(shard_of(tuple(shard)), Written(lines, size, sha256), receipt=receipt_of(receipt))


def failure_of(row: Row) -> Failure:
    values = dict(zip(FAILURE, row, strict=True))
    return Failure(**{**values, "key": None if values["key"] is None else key_from_json(values["key"])})


def run_of(row: Row) -> dict[str, Any]:
    id_, started, ended, state, reason, summary = row
    return {
        "run": id_, "started": _rounded(started), "ended": _rounded(ended), "state": state, "reason": reason,
        "summary": None if summary is None else _decode(summary),
    }  # fmt: skip


def sample_of(row: Row) -> dict[str, Any]:
    run, at, sample = row
    return {"run": run, "at": _rounded(at), **_decode(sample)}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


_UNREADABLE: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_SCHEMA", "SQLITE_ERROR")


def translated(path: Path, error: sqlite3.Error) -> LedgerError | StoreError:
    """An error of SQLite as one of ours."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(_UNREADABLE):
        return LedgerError(f"{path} cannot be understood: {error}")
    if name.startswith("SQLITE_CANTOPEN"):
        return LedgerError(
            f"{path} cannot be opened: permission to read it, its folder or the files beside it is missing"
        )
    if name.startswith("SQLITE_BUSY"):
        return StoreError(f"{path} cannot be written: another program keeps it locked")
    return StoreError(f"{path} cannot be written: {error}")
