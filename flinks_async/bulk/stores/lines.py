"""Lines of a finished file of answers, or of a range of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from ..compression import CompressedDataError, Compression, Decompressed
from ..errors import StoreError

PIECE: Final = 256 * 1024
"""Bytes that are read at once."""


class Range:
    """Some bytes of an open file.

    Args:
        file: is read from `start`, and not closed.
        size: bytes at most; None for all that follow.
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
    """Each line with its line end, uncompressed. Memory is that of one line.

    Args:
        start, size: of a range of the (compressed) file; all of it unless given.

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


def cannot_read(path: Path, error: OSError) -> StoreError:
    """The error for a file that cannot be read. To be raised `from None`."""
    return StoreError(f"{path} cannot be read: {error.strerror or error}")


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
