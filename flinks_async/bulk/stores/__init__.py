"""Stores: where the answers of a job go.

protocol        what a store is
jsonl_parts     JSONL, one file a shard
jsonl_file      JSONL, one file (claim: which one it is)
given           where the user wants a file
lines, check    files of answers, read and compared
rows            answers as rows of tables, for all that follow
parquet         Parquet, one file for each table and shard (parquet_file)
arrow           rows as Arrow, for Parquet and DuckDB
database        what the databases have in common (database_schema: their tables)
sqlite          tables of an SQLite database (sqlite_schema)
duckdb          tables of a DuckDB database
postgresql      tables of a PostgreSQL database (postgresql_connection, postgresql_values)
marks           commits, kept beside the rows
row_digest      a checksum of rows (comparable: of their values, however a database writes them)
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from ..errors import StoreError
from .jsonl import JSONLFile, JSONLParts
from .protocol import Place, Problem, Store
from .sqlite import SQLiteStore

__all__ = ["JSONLFile", "JSONLParts", "Place", "Problem", "SQLiteStore", "Store", "from_description"]

_CLASSES: Final = {
    "jsonl-parts": ("jsonl", "JSONLParts"),
    "jsonl": ("jsonl", "JSONLFile"),
    "sqlite": ("sqlite", "SQLiteStore"),
    "parquet": ("parquet", "ParquetStore"),
    "duckdb": ("duckdb", "DuckDBStore"),
    "postgresql": ("postgresql", "PostgreSQLStore"),
}
"""Module and class by the `kind` of a description. A module is imported when its store is used."""


def from_description(description: Mapping[str, Any]) -> Store:
    """The store that said this of itself (`Store.describe`): its kind, and the arguments of its class.

    Raises:
        StoreError: there is no such store in this version.
        ConfigError: a library for it is not installed, or what its class refuses besides.
    """
    arguments = dict(description)
    kind = arguments.pop("kind", None)
    if isinstance(kind, str) and kind in _CLASSES:
        module, name = _CLASSES[kind]
        make = getattr(import_module(f".{module}", __name__), name)
        try:
            store: Store = make(**arguments)
            return store
        except TypeError:  # arguments of a newer version
            pass
    raise StoreError(f"this version of flinks-async cannot write to the store of this job ({kind!r}); update it")
