"""Files of tokens: opened, known again, read through once, and read shard by shard."""

from __future__ import annotations

from .check import check
from .digest import digest
from .input_file import InputFile
from .layout import Format, Layout
from .rows import NO_KEY, Note, Row, Token
from .scan import PlanSink, Scanned, scan
from .shard_reader import ShardReader

__all__ = [
    "NO_KEY",
    "Format",
    "InputFile",
    "Layout",
    "Note",
    "PlanSink",
    "Row",
    "Scanned",
    "ShardReader",
    "Token",
    "check",
    "digest",
    "scan",
]
