"""The stores under torture, and the plainest way to read what each has written, without our code."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from attrs import frozen

from flinks_async.bulk import JSONLFile, JSONLParts, SQLiteStore, Store
from flinks_async.bulk.compression import zstd_library

from .order import Order

Answers = Iterable[dict[str, Any]]
Query = Callable[[str], Sequence[Sequence[Any]]]


@frozen
class Output:
    """A store.

    Attributes:
        make: the store of a job.
        read: its answers as lines of JSON, or as tables.
        tables: it keeps tables: not the answers as they came.
        needs: modules that must be installed.
        notes: files of its own in the job's directory.
    """

    make: Callable[[Order], Store]
    read: Callable[[Order], Iterable[bytes]]
    tables: bool = False
    needs: tuple[str, ...] = ()
    notes: frozenset[str] = frozenset()


# --- files of lines ---------------------------------------------------------------------------------------------------


def plain(path: Path) -> Iterable[bytes]:
    return path.read_bytes().splitlines()


def zipped(path: Path) -> Iterable[bytes]:
    return gzip.decompress(path.read_bytes()).splitlines()


def zstd(path: Path) -> Iterable[bytes]:
    data: bytes = zstd_library().decompress(path.read_bytes())
    return data.splitlines()


def parts(one: Callable[[Path], Iterable[bytes]]) -> Callable[[Order], Iterator[bytes]]:
    return lambda order: (line for part in sorted((order.job / "parts").iterdir()) for line in one(part))


def file(name: str, one: Callable[[Path], Iterable[bytes]]) -> Callable[[Order], Iterable[bytes]]:
    return lambda order: one(Path(order.root, name))


# --- tables -----------------------------------------------------------------------------------------------------------


def from_tables(query: Query) -> Iterator[bytes]:
    """Each answer as the tables have it."""
    transactions: dict[int, list[str]] = {}
    for line, transaction in query("SELECT line, id FROM transactions"):
        transactions.setdefault(line, []).append(transaction)
    rows = query("SELECT line, key, request_id, without_accounts FROM fetches")
    for line, key, request_id, entries in rows:
        yield json.dumps(
            {
                "line": line, "key": key, "request_id": request_id,
                "entries": json.loads(entries) if isinstance(entries, str) else entries,
                "transactions": sorted(transactions.pop(line, [])),
            }
        ).encode()  # fmt: skip
    assert not transactions, "transactions without an answer"


def sqlite(order: Order) -> Iterator[bytes]:
    with closing(sqlite3.connect(f"file:{order.root}/answers.sqlite?mode=ro", uri=True)) as db:
        yield from from_tables(lambda sql: db.execute(sql).fetchall())


def duckdb(order: Order) -> Iterator[bytes]:
    import duckdb

    with closing(duckdb.connect(f"{order.root}/answers.duckdb", read_only=True)) as db:
        yield from from_tables(lambda sql: db.execute(sql).fetchall())


def parquet(order: Order) -> Iterator[bytes]:
    import duckdb

    with closing(duckdb.connect()) as db:
        for table in ("fetches", "transactions"):
            db.execute(f"CREATE VIEW {table} AS SELECT * FROM '{order.job}/parts/{table}/*.parquet'")
        yield from from_tables(lambda sql: db.execute(sql).fetchall())


def postgresql(order: Order) -> Iterator[bytes]:
    import psycopg

    with psycopg.connect(order.conninfo, options=f'-c search_path="{schema(order)}"') as db:
        yield from from_tables(lambda sql: db.execute(sql.encode()).fetchall())


def schema(order: Order) -> str:
    return Path(order.root).name


def parquet_store(order: Order) -> Store:
    from flinks_async.bulk.stores.parquet import ParquetStore

    return ParquetStore()


def duckdb_store(order: Order) -> Store:
    from flinks_async.bulk.stores.duckdb import DuckDBStore

    return DuckDBStore(f"{order.root}/answers.duckdb")


def postgresql_store(order: Order) -> Store:
    from flinks_async.bulk.stores.postgresql import PostgreSQLStore

    return PostgreSQLStore(order.conninfo, schema(order))


NOTE = frozenset({"out.json"})
POSTGRESQL = "postgresql"
OUTPUTS: dict[str, Output] = {
    "jsonl": Output(lambda order: JSONLParts(), parts(plain)),
    "jsonl.gz": Output(lambda order: JSONLParts("gzip"), parts(zipped)),
    "jsonl.zst": Output(lambda order: JSONLParts("zstd"), parts(zstd)),
    "file": Output(lambda order: JSONLFile(f"{order.root}/all.jsonl"), file("all.jsonl", plain), notes=NOTE),
    "file.gz": Output(lambda order: JSONLFile(f"{order.root}/all.gz", "gzip"), file("all.gz", zipped), notes=NOTE),
    "sqlite": Output(lambda order: SQLiteStore(f"{order.root}/answers.sqlite"), sqlite, tables=True),
    "parquet": Output(parquet_store, parquet, tables=True, needs=("pyarrow", "duckdb")),
    "duckdb": Output(duckdb_store, duckdb, tables=True, needs=("pyarrow", "duckdb")),
    POSTGRESQL: Output(postgresql_store, postgresql, tables=True, needs=("psycopg",)),
}
