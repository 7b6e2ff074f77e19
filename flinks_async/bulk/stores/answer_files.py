"""Finished files of answers: reads their lines, and compares them with what was committed."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, get_args

from ...errors import ConfigError
from ..compression import CompressedDataError, Compression, Decompressed, compressor
from ..errors import StoreError
from ..files import cannot_read
from ..records import Written
from .protocol import Problem

PIECE: Final = 256 * 1024
"""Bytes that are read at once."""

SUFFIXES: Final[dict[Compression, str]] = {"none": "", "gzip": ".gz", "zstd": ".zst"}


def check_compression(compression: Compression) -> Compression:
    """Returns a compression that can be written.

    Raises:
        ConfigError: its name is unknown, or its library is not installed.
    """
    if compression not in SUFFIXES:
        raise ConfigError(f"compression must be one of {', '.join(get_args(Compression))}, not {compression!r}")
    compressor(compression)
    return compression


def checksum(path: Path, start: int = 0, size: int | None = None) -> tuple[int, str]:
    """The number of bytes of a file or of a range of it, and their SHA-256.

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
    """Reads a file or a range of it, and yields a problem if it differs from what was written."""
    try:
        length, found = checksum(path, start, size)
        if length != written.size:
            what = f"it has {length:,} bytes, but {written.size:,} were written"
        elif found != written.sha256:
            what = "its content was changed (its SHA-256 differs)"
        else:
            lines = sum(1 for _ in read_lines(path, compression, start, size))
            if lines == written.lines:
                return
            what = f"it has {lines:,} answers, but {written.lines:,} were written"
    except StoreError as error:
        what = error.message
    where = str(path) if size is None else f"{path}, bytes {start:,} to {start + size:,}"
    yield Problem(where, what, shard)


class Range:
    """A range of an open file.

    Args:
        file: an open file; it is not closed.
        start: offset of the first byte.
        size: maximum number of bytes; None reads to the end.
    """

    def __init__(self, file: BinaryIO, start: int = 0, size: int | None = None) -> None:
        self._file = file
        self._left = size
        file.seek(start)

    def read(self, size: int = PIECE, /) -> bytes:
        data = self._file.read(size if self._left is None else min(size, self._left))
        if self._left is not None:
            self._left -= len(data)
        return data


def read_lines(path: Path, compression: Compression, start: int = 0, size: int | None = None) -> Iterator[bytes]:
    """Yields each line with its line end, uncompressed. Memory is that of one line.

    Args:
        start, size: a range of the (compressed) file; the whole file by default.

    Raises:
        StoreError: the file cannot be read, is damaged, or ends within a line.
    """
    try:
        with path.open("rb") as file:
            yield from _split(Decompressed(Range(file, start, size), compression))
        return
    except OSError as error:
        problem = cannot_read(path, error)
    except CompressedDataError as error:
        problem = StoreError(f"{path} cannot be read: {error}")
    except _NoEnd:
        problem = StoreError(f"{path} cannot be read: it ends within a line")
    raise problem


class _NoEnd(Exception):
    pass


def _split(source: Decompressed) -> Iterator[bytes]:
    begun: list[bytes] = []
    while piece := source.read(PIECE):
        *lines, rest = piece.split(b"\n")
        for line in lines:
            yield b"%b%b\n" % (b"".join(begun), line) if begun else line + b"\n"
            begun = []
        if rest:
            begun.append(rest)
    if begun:
        raise _NoEnd
