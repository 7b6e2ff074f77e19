"""Bytes into numbered lines, with a limit on how much of one line is ever held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attrs import frozen

MAX_LINE: Final = 1024 * 1024


@frozen
class Line:
    """One line of the file, without its end.

    Attributes:
        number: from 1.
        data: its bytes; empty if it was too long.
        too_long: it had more than `MAX_LINE` bytes, which were not kept.
    """

    number: int
    data: bytes
    too_long: bool = False


class LineSplitter:
    """Cuts chunks of bytes into lines. A line ends with LF or CR LF; the last one may end with the file."""

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._number = 0
        self._rest = bytearray()
        self._too_long = False

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """The lines that end in this chunk. An empty chunk is the end of the file."""
        if not chunk:
            if self._rest or self._too_long:
                yield self._line(b"")
            return
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            yield self._line(chunk[start:end])
            start = end + 1
        self._keep(chunk[start:])

    def _keep(self, piece: bytes) -> None:
        if len(self._rest) + len(piece) > self._max_line:
            self._too_long = True
        if self._too_long:
            self._rest.clear()
        else:
            self._rest += piece

    def _line(self, piece: bytes) -> Line:
        self._keep(piece)
        self._number += 1
        line = Line(self._number, b"" if self._too_long else bytes(self._rest).removesuffix(b"\r"), self._too_long)
        self._rest.clear()
        self._too_long = False
        return line
