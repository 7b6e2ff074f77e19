"""gzip and Zstandard streams, written and read piece by piece.

The standard library does the work (`zlib`; `compression.zstd`, before Python 3.14 by its backport). This module adds
what a reader of files needs on top: several members or frames in a row are one file, the memory is bounded, and a file
that was cut short is never mistaken for a whole one. Whatever needs Zstandard raises ConfigError if it is not installed.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable
from io import RawIOBase
from typing import Any, Final, Literal, Protocol

from ..checks import optional_import

Compression = Literal["none", "gzip", "zstd"]

BY_SUFFIX: Final[dict[str, Compression]] = {".gz": "gzip", ".zst": "zstd"}

MAX_WINDOW: Final = 128 * 1024 * 1024
"""Bytes of memory that a Zstandard file may demand from its reader; `zlib` needs 32 KB. `zstd --long` demands this."""

_CHUNK: Final = 64 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = 0xFD2FB528
_ZSTD_SKIPPABLE: Final = 0x184D2A5  # without the last 4 bits, which are free (RFC 8878, section 3.1.2)


def split_name(path: str) -> tuple[str, str]:
    """The ends of a file's name that tell format and compression, in lower case: `a.JSONL.gz` has `.jsonl` and `.gz`."""
    stem, suffix = os.path.splitext(path.lower())
    return (os.path.splitext(stem)[1], suffix) if suffix in BY_SUFFIX else (suffix, "")


class Compressor(Protocol):
    """Compresses one stream piece by piece. `flush` returns what is left, and ends the stream."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def compressor(kind: Compression) -> Compressor:
    """A new stream: one gzip member without name and time, or one Zstandard frame with a checksum."""
    if kind == "gzip":
        return zlib.compressobj(wbits=_GZIP)
    if kind == "zstd":
        zstd = zstd_library()
        compressing: Compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})
        return compressing
    return _Uncompressed()


class _Uncompressed:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def detect(head: bytes) -> Compression:
    """The compression of a file, by its first 4 bytes."""
    if head.startswith(_GZIP_MAGIC):
        return "gzip"
    number = int.from_bytes(head[:4], "little")
    return "zstd" if number == _ZSTD_MAGIC or number >> 4 == _ZSTD_SKIPPABLE else "none"


class CompressedDataError(ValueError):
    """Compressed data that cannot be read to its end."""


class CutShort(CompressedDataError):
    """The data ends before the end of a member or frame."""

    def __init__(self) -> None:
        super().__init__("the compressed data ends too early: the file was cut short")


class Corrupt(CompressedDataError):
    """The data is not what was written: a checksum differs, or it is not in the format."""


class ByteSource(Protocol):
    """An open file, or an object that reads like one."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        ...


def decompressed(file: ByteSource, kind: Compression) -> ByteSource:
    """Reads a file, decompressed. Several members or frames in a row are one file.

    Memory does not depend on the size of the content: a few hundred KB, and for Zstandard up to `MAX_WINDOW`.

    Args:
        file: is read from its current position, and not closed.
        kind: its compression, as returned by `detect`.
    """
    return file if kind == "none" else _Members(file, kind)


class _Members:
    """Members (gzip) or frames (Zstandard), one after the other.

    The decompressors compare checksums and know the end of their own member, but not what may follow it. `gzip.open`
    and `ZstdFile` do, but both take an empty file for a whole one, and gzip reports a member that was cut after its
    first byte as damaged.
    """

    def __init__(self, file: ByteSource, kind: Compression) -> None:
        self._file = file
        self._input = b""
        self._new: Callable[[], Any]
        if kind == "gzip":
            self._new = lambda: zlib.decompressobj(_GZIP)
            self._error: type[Exception] = zlib.error
            self._padding = b"\0"  # tapes and some programs pad gzip files
            self._damage = "the gzip data is damaged, or is followed by something else"
        else:
            zstd = zstd_library()
            options = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW.bit_length() - 1}
            self._new = lambda: zstd.ZstdDecompressor(options=options)
            self._error = zstd.ZstdError
            self._padding = b""
            self._damage = "the Zstandard data is damaged, is followed by something else, or needs too much memory"
        self._member = self._new()

    def read(self, size: int, /) -> bytes:
        """
        Raises:
            CutShort: the file ends too early. Everything before that was returned.
            Corrupt: a checksum is wrong, or other data follows the end.
            OSError: from the file.
        """
        while True:
            if self._member.eof and not self._next_member():
                return b""
            # Also without new input: the decompressor may hold output that exceeded `size` the last time.
            try:
                piece: bytes | None = self._member.decompress(self._input, size)
            except self._error:
                piece = None
            if piece is None:
                raise Corrupt(self._damage)
            # zlib returns the input that it did not need; Zstandard keeps it.
            self._input = (
                self._member.unused_data if self._member.eof else getattr(self._member, "unconsumed_tail", b"")
            )
            if piece:
                return piece
            if not self._member.eof and not self._input and not self._fill():
                raise CutShort

    def _next_member(self) -> bool:
        """Starts the next member; False at the end of the file."""
        while not (rest := self._input.lstrip(self._padding)):
            if not self._fill():
                return False
        self._input = rest
        self._member = self._new()
        return True

    def _fill(self) -> bool:
        self._input = self._file.read(_CHUNK)
        return bool(self._input)


class Pieces(RawIOBase):
    """Pieces of any size as a file, for `io.BufferedReader`.

    Args:
        read: returns the next piece; empty at the end.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        piece = self._rest or self._read()
        size = min(len(piece), len(buffer))
        buffer[:size] = piece[:size]
        self._rest = piece[size:]
        return size


def zstd_library() -> Any:
    """`compression.zstd`, or its backport."""
    return optional_import("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd", extra="zstd")
