"""Where Zstandard frames end (RFC 8878, section 3.1), found out without decompressing anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MAGIC: Final = 0xFD2FB528
SKIPPABLE: Final = 0x184D2A5
"""A skippable frame's magic number without its last 4 bits, which may be any."""

_ALL: Final = 1 << 62
_RLE: Final = 1
_DICTIONARY_ID: Final = (0, 1, 2, 4)
_CONTENT_SIZE: Final = (0, 2, 4, 8)


class FrameWalker:
    """Follows the bytes of frames from one to the next: a few bytes are looked at, the others skipped.

    What is not a frame is not reported, only never whole; the decompressor says what is wrong with it.
    """

    def __init__(self) -> None:
        self._seen = False
        self._skip = 0
        self._head = b""
        self._size = 4
        self._next: Callable[[bytes], None] = self._magic
        self._checksum = 0

    @property
    def whole(self) -> bool:
        """Whether the bytes so far are one or more frames, the last one to its end."""
        return self._seen and self._next == self._magic and not self._skip and not self._head

    def feed(self, data: bytes) -> None:
        self._seen = self._seen or bool(data)
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
            else:
                step = min(self._size - len(self._head), len(data) - at)
                self._head += data[at : at + step]
                if len(self._head) == self._size:
                    head, self._head = self._head, b""
                    self._next(head)
            at += step

    def _then(self, skip: int, size: int, look: Callable[[bytes], None]) -> None:
        """Skips some bytes, and looks at those that follow."""
        self._skip, self._size, self._next = skip, size, look

    def _magic(self, head: bytes) -> None:
        number = int.from_bytes(head, "little")
        if number == MAGIC:
            self._then(0, 1, self._descriptor)
        elif number >> 4 == SKIPPABLE:
            self._then(0, 4, self._skippable)
        else:
            self._then(_ALL, 1, self._nothing)

    def _skippable(self, head: bytes) -> None:
        self._then(int.from_bytes(head, "little"), 4, self._magic)

    def _descriptor(self, head: bytes) -> None:
        flags = head[0]
        single_segment = flags >> 5 & 1
        self._checksum = 4 * (flags >> 2 & 1)
        window = 1 - single_segment
        content_size = _CONTENT_SIZE[flags >> 6] or single_segment
        self._then(window + _DICTIONARY_ID[flags & 3] + content_size, 3, self._block)

    def _block(self, head: bytes) -> None:
        number = int.from_bytes(head, "little")
        last, kind, size = number & 1, number >> 1 & 3, number >> 3
        stored = 1 if kind == _RLE else size
        if last:
            self._then(stored + self._checksum, 4, self._magic)
        else:
            self._then(stored, 3, self._block)

    def _nothing(self, head: bytes) -> None:
        """Never whole again."""
