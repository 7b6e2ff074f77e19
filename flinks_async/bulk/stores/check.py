"""Finished files of answers, compared with what was committed."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final, get_args

from ...errors import ConfigError
from ..compression import Compression, compressor
from ..errors import StoreError
from ..records import Written
from .lines import Range, cannot_read, read_lines
from .protocol import Problem

SUFFIXES: Final[dict[Compression, str]] = {"none": "", "gzip": ".gz", "zstd": ".zst"}


def check_compression(compression: Compression) -> Compression:
    """A compression that can be written.

    Raises:
        ConfigError: there is none of this name, or its library is not installed.
    """
    if compression not in SUFFIXES:
        raise ConfigError(f"compression must be one of {', '.join(get_args(Compression))}, not {compression!r}")
    compressor(compression)
    return compression


def checksum(path: Path, start: int = 0, size: int | None = None) -> tuple[int, str]:
    """How many bytes a file, or a range of it, has, and their SHA-256.

    Raises:
        StoreError: it cannot be read.
    """
    found, length = sha256(), 0
    try:
        with path.open("rb") as file:
            source = Range(file, start, size)
            while piece := source.read():
                found.update(piece)
                length += len(piece)
    except OSError as error:
        raise cannot_read(path, error) from None
    return length, found.hexdigest()


def compare(
    path: Path, compression: Compression, written: Written, shard: int, start: int = 0, size: int | None = None
) -> Iterator[Problem]:
    """Reads a file, or a range of it, and says how it differs from what was written."""
    try:
        length, found = checksum(path, start, size)
        if length != written.size:
            what = f"it has {length:,} bytes, and {written.size:,} were written"
        elif found != written.sha256:
            what = "its bytes are not those that were written (their SHA-256 differs)"
        else:
            lines = sum(1 for _ in read_lines(path, compression, start, size))
            if lines == written.lines:
                return
            what = f"it has {lines:,} answers, and {written.lines:,} were written"
    except StoreError as error:
        what = error.message
    where = str(path) if size is None else f"{path}, bytes {start:,} to {start + size:,}"
    yield Problem(where, what, shard)
