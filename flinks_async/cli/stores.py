"""Stores by the names that the command line has for them."""

from __future__ import annotations

from typing import Any, Final

from ..bulk import Store
from ..bulk.compression import Compression
from ..bulk.stores import from_description
from .secret_input import STDIN
from .usage import UsageError

_JSONL: Final[dict[str, Compression]] = {"jsonl": "none", "jsonl.gz": "gzip", "jsonl.zst": "zstd"}
_ONE_FILE: Final = ("sqlite", "duckdb")
_NO_FILE: Final = ("parquet", "postgresql")
STORES: Final = (*_JSONL, *_ONE_FILE, *_NO_FILE)


def make_store(name: str, out: str | None) -> Store:
    """A store.

    Args:
        name: one of `STORES`.
        out: its file; None for one, or many, in the directory of the job.

    Raises:
        Wrong: it has no such file.
        ConfigError: a library for it is missing.
    """
    if out == STDIN:
        raise UsageError("A job's answers go to files; flinks-async export --out - prints them.")
    if out is not None and name in _NO_FILE:
        where = "it is found by PGHOST, PGDATABASE and so on" if name == "postgresql" else "its files are in DIR/parts"
        raise UsageError(f"--store {name} does not take --out: {where}.")
    description: dict[str, Any] = {"kind": name} if out is None else {"kind": name, "path": out}
    if name in _JSONL:
        description |= {"kind": "jsonl-parts" if out is None else "jsonl", "compression": _JSONL[name]}
    return from_description(description)
