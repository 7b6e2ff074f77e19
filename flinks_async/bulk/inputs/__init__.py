"""Files of tokens: detects their format, scans them once, and reads them again shard by shard.

To add an input format:

1. `formats.py`: add its name to `Format`, its suffix to `FORMATS`, and write its parser (a `RowParser`, see `rows.py`);
   `Layout.parser` chooses it. A binary format becomes lines of JSON, as Parquet in `rows.py`.
2. `detection.py`: recognize its first bytes; for a binary format, `InputFile.content_of` in `source.py` returns its content.
3. Tests: `tests/bulk/test_rows.py` (the parser) and the `NAMES` of `tests/bulk/test_scan.py` (scan and shards).
4. `docs/command-line.md`: the formats of TOKENS.
"""

from __future__ import annotations

from .formats import Format, Layout
from .rows import NO_KEY, Row, SkippedLine, Token, check
from .scan import PlanSink, Scanned, scan
from .source import STDIN, InputBytes, InputFile, ShardReader, digest

__all__ = [
    "NO_KEY",
    "STDIN",
    "Format",
    "InputBytes",
    "InputFile",
    "Layout",
    "PlanSink",
    "Row",
    "Scanned",
    "ShardReader",
    "SkippedLine",
    "Token",
    "check",
    "digest",
    "scan",
]
