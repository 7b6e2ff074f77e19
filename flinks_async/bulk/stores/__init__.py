"""Stores: where the answers of a job go.

    protocol         the interface of a store; start here
    shard_files      the base of stores with files for each shard, on a disk or at a URL
    jsonl            JSONL, one file for each shard or one file for all
    parquet          Parquet, one file for each table and shard
    sqlite, duckdb   tables in a database that is one file
    postgresql       tables in a PostgreSQL database
    database         the bases of all databases; database_schema creates their tables
    answer_tables    answers as Arrow tables, for all stores with tables
    answer_rows      the columns of these tables, the rows of answers that Arrow cannot read, the checksum for `verify`

Where do I add a store?

1. `stores/NAME.py`: a class with the methods of `protocol.Store`. For files, follow `JSONLParts` in `jsonl.py`. For tables,
   read spools with `answer_tables.read_tables`. For a database, subclass `DatabaseStore` or `DatabaseFile`. `put` must return only
   when the answers survive a power cut; call `crash_points.reach("...")` after each step, because the tests crash there.
2. `_CLASSES` below: the kind that `describe` returns, with the module, the class and the name for people.
3. `cli/output.py`: the name for `--store`; `answers_of` in `cli/display.py`: where its answers are.
4. `pyproject.toml`: an extra, if the store needs a library; import it with `checks.optional_import`.
5. `tests/bulk/test_store_NAME.py`: inherit `StoreContract` (`store_contract.py`) or `DatabaseContract`
   (`database_contract.py`); stores with tables also go into `test_stores_agree.py`. `tests/torture/outputs.py`: one line, so
   that the store is tested with `kill -9` and full disks.
6. `docs/stores.md` and the table of extras in `README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from ... import checks
from ..errors import StoreError
from .jsonl import JSONLFile, JSONLParts
from .protocol import Place, Problem, Store
from .sqlite import SQLiteStore

__all__ = ["JSONLFile", "JSONLParts", "Place", "Problem", "SQLiteStore", "Store", "from_description"]

_CLASSES: Final = {
    "jsonl-parts": ("jsonl", "JSONLParts", "JSONL"),
    "jsonl": ("jsonl", "JSONLFile", "JSONL"),
    "sqlite": ("sqlite", "SQLiteStore", "SQLite"),
    "parquet": ("parquet", "ParquetStore", "Parquet"),
    "duckdb": ("duckdb", "DuckDBStore", "DuckDB"),
    "postgresql": ("postgresql", "PostgreSQLStore", "PostgreSQL"),
}
"""Module, class and name for people, by kind. A module is imported when its store is used."""


def format_of(kind: str) -> str:
    """The name of a store's format for people; the kind itself if this version has no such store."""
    return _CLASSES[kind][2] if kind in _CLASSES else kind


def from_description(description: Mapping[str, Any]) -> Store:
    """The store with this description (see `Store.describe`): its kind and the arguments of its class.

    Raises:
        StoreError: this version has no such store.
        ConfigError: a library is not installed, or the class refuses an argument.
    """
    checks.kind("description", description, Mapping)
    arguments = dict(description)
    kind = arguments.pop("kind", None)
    if isinstance(kind, str) and kind in _CLASSES:
        module, name, _ = _CLASSES[kind]
        make = getattr(import_module(f".{module}", __name__), name)
        try:
            store: Store = make(**arguments)
            return store
        except TypeError:  # arguments of a newer version
            pass
    raise StoreError(
        f"this version of flinks-async has no store like the one of this job ({kind!r}). Update flinks-async"
    )
