"""Files of tokens: opened, known again, read through once, and read shard by shard."""

from __future__ import annotations

from .formats import Format, Layout
from .rows import NO_KEY, Note, Row, Token, check
from .scan import PlanSink, Scanned, scan
from .shards import ShardReader
from .source import STDIN, InputBytes, InputFile, digest

__all__ = [
    "NO_KEY",
    "STDIN",
    "Format",
    "InputBytes",
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
