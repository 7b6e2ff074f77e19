"""Splits bytes into lines of text. A line that is too long is dropped while it is read, so it takes no memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from attrs import frozen

MAX_LINE: Final = 1024 * 1024


@frozen
class BadLine:
    """A line that is not text, or too long to be kept."""

    message: str


NOT_UTF8: Final = BadLine("the line is not valid UTF-8")
TOO_LONG: Final = BadLine(f"the line is longer than {MAX_LINE} bytes")

Line = str | BadLine
"""One line, without its end."""


@frozen
class LineBatch:
    """Successive lines.

    Attributes:
        lines: the lines.
        sizes: the bytes of each, including its end.
    """

    lines: list[Line]
    sizes: list[int]


class LineSplitter:
    """Cuts chunks of bytes into lines. A line ends with LF or CR LF; the last one may end with the file."""

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._rest = bytearray()  # the beginning of an incomplete line
        self._dropped = 0  # its bytes that were dropped, because it is too long

    def feed(self, chunk: bytes) -> LineBatch:
        """The lines that end in this chunk. An empty chunk is the end of the file."""
        end = chunk.rfind(b"\n") + 1
        if not chunk:
            batch = self._last()
        elif end:
            batch = self._ended(chunk, end)
        else:
            self._keep(chunk)
            return LineBatch([], [])
        self._rest.clear()
        self._dropped = 0
        self._keep(chunk[end:])
        return batch

    def _keep(self, piece: bytes) -> None:
        self._rest += piece
        if self._dropped or len(self._rest) > self._max_line:
            self._dropped += len(self._rest)
            self._rest.clear()

    def _ended(self, chunk: bytes, end: int) -> LineBatch:
        first = chunk.index(b"\n")
        if not self._dropped and len(self._rest) + first <= self._max_line:
            return self._split(bytes(self._rest) + chunk[:end])
        batch = self._split(chunk[first + 1 : end])
        size = self._dropped + len(self._rest) + first + 1
        return LineBatch([TOO_LONG, *batch.lines], [size, *batch.sizes])

    def _split(self, block: bytes) -> LineBatch:
        """Whole lines, split at once: much faster than one by one."""
        raw = block.split(b"\n")
        raw.pop()  # after the last line end
        lines: list[Line]
        if len(block) > self._max_line or not block.isascii():
            lines = [self._decoded(line) for line in raw]
        else:
            texts = block.decode("ascii").split("\n")
            texts.pop()
            lines = [text.removesuffix("\r") for text in texts] if b"\r" in block else [*texts]
        return LineBatch(lines, [len(line) + 1 for line in raw])

    def _decoded(self, line: bytes) -> Line:
        if len(line) > self._max_line:
            return TOO_LONG
        try:
            return line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError:
            return NOT_UTF8

    def _last(self) -> LineBatch:
        if self._dropped:
            return LineBatch([TOO_LONG], [self._dropped])
        return LineBatch([self._decoded(bytes(self._rest))], [len(self._rest)]) if self._rest else LineBatch([], [])


class LineOffsets:
    """Offsets of the latest lines.

    Args:
        position: bytes before the first line.
    """

    def __init__(self, position: int) -> None:
        self._end = position
        self._first = 1
        self._starts: list[int] = []

    def add(self, sizes: Sequence[int]) -> None:
        """Adds lines by their sizes."""
        starts = list(accumulate(sizes, initial=self._end))
        self._end = starts.pop()
        self._starts += starts

    def of(self, line: int) -> int:
        """Bytes before a line."""
        return self._starts[line - self._first]

    def keep(self, count: int) -> None:
        """Drops all but the last lines."""
        forgotten = len(self._starts) - count
        self._first += forgotten
        del self._starts[:forgotten]
