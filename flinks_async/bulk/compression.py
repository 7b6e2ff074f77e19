"""gzip and Zstandard, read and written in pieces, and never taken for whole when they were cut short."""

from __future__ import annotations

import zlib
from typing import Final, Literal, Protocol

from ..checks import optional_import
from .zstd_frames import MAGIC, SKIPPABLE, FrameWalker

Compression = Literal["none", "gzip", "zstd"]

MAX_WINDOW: Final = 128 * 1024 * 1024
"""The most memory in bytes that a Zstandard file may ask of its reader: what `zstd --long` writes."""

_CHUNK: Final = 64 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS
_GZIP_MAGIC: Final = b"\x1f\x8b"


class Compressor(Protocol):
    """Takes pieces of one stream, and gives its compressed bytes as they come."""

    def compress(self, data: bytes, /) -> bytes: ...

    def finish(self) -> bytes:
        """What is left, and the end of the stream."""
        ...


def compressor(kind: Compression) -> Compressor:
    """A new stream: one gzip member without name and time, or one Zstandard frame with a checksum.

    Raises:
        ConfigError: the library for Zstandard is not installed.
    """
    if kind == "gzip":
        return _Stream(zlib.compressobj(wbits=_GZIP))
    if kind == "zstd":
        return _Stream(optional_import("zstandard", extra="zstd").ZstdCompressor(write_checksum=True).compressobj())
    return _Plain()


class _Compressobj(Protocol):
    """What zlib and zstandard have in common."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Stream:
    def __init__(self, stream: _Compressobj) -> None:
        self._flush = stream.flush
        self.compress = stream.compress

    def finish(self) -> bytes:
        return self._flush()


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


def detect(head: bytes) -> Compression:
    """How a file is compressed, by its first 4 bytes."""
    if head.startswith(_GZIP_MAGIC):
        return "gzip"
    number = int.from_bytes(head[:4], "little")
    return "zstd" if number == MAGIC or number >> 4 == SKIPPABLE else "none"


class CompressedDataError(ValueError):
    """Compressed data that cannot be read to its end."""


class CutShort(CompressedDataError):
    """It ends before its end."""

    def __init__(self) -> None:
        super().__init__("the compressed data ends too early: the file was cut short")


class Corrupt(CompressedDataError):
    """It is not what was written: another checksum, or no such format."""


class Source(Protocol):
    """An open file, or something like it."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        ...


class Decompressed:
    """Reads a file as it was before it was compressed. Several members or frames in a row are one file.

    The memory in use does not depend on what comes out: a few hundred KB, and for Zstandard up to `MAX_WINDOW`.

    Args:
        file: is read from where it is, and not closed.
        kind: as `detect` said.

    Attributes:
        position: bytes given so far.

    Raises:
        ConfigError: the library for Zstandard is not installed.
    """

    def __init__(self, file: Source, kind: Compression) -> None:
        self.position = 0
        self._file: Source = file if kind == "none" else _Gunzip(file) if kind == "gzip" else _Unzstd(file)

    def read(self, size: int = _CHUNK, /) -> bytes:
        """Up to `size` bytes, which is at least 1; none at the end.

        Raises:
            CutShort: the file ends before its end. What came before was given.
            Corrupt: a checksum is wrong, or something else follows the end.
            OSError: from the file.
        """
        data = self._file.read(size)
        self.position += len(data)
        return data


class _Gunzip:
    """gzip. zlib compares length and checksum of each member. Zeros may follow: tapes and some programs pad with them."""

    def __init__(self, file: Source) -> None:
        self._file = file
        self._pending = b""
        self._member = zlib.decompressobj(_GZIP)

    def read(self, size: int, /) -> bytes:
        while True:
            if self._member.eof and not self._next_member():
                return b""
            # Without input too: zlib may hold output that did not fit the last time.
            try:
                piece = self._member.decompress(self._pending, size)
            except zlib.error:
                piece = None
            if piece is None:
                raise Corrupt("the gzip data is damaged, or is followed by something else")
            self._pending = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if piece:
                return piece
            if not self._member.eof and not self._pending and not self._fill():
                raise CutShort

    def _next_member(self) -> bool:
        while not (rest := self._pending.lstrip(b"\0")):
            if not self._fill():
                return False
        self._pending = rest
        self._member = zlib.decompressobj(_GZIP)
        return True

    def _fill(self) -> bool:
        self._pending = self._file.read(_CHUNK)
        return bool(self._pending)


class _Unzstd:
    """Zstandard. The library compares checksums, but takes a stream that was cut for whole; so its frames are followed."""

    def __init__(self, file: Source) -> None:
        library = optional_import("zstandard", extra="zstd")
        self._walker = FrameWalker()
        self._error: type[Exception] = library.ZstdError
        self._stream = library.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(
            _Followed(file, self._walker), read_size=_CHUNK, read_across_frames=True
        )

    def read(self, size: int, /) -> bytes:
        try:
            piece: bytes | None = self._stream.read(size)
        except self._error:
            piece = None
        if piece is None:
            raise Corrupt("the Zstandard data is damaged, is followed by something else, or needs too much memory")
        if not piece and not self._walker.whole:
            raise CutShort
        return piece


class _Followed:
    """A file whose bytes a walker sees as they are read."""

    def __init__(self, file: Source, walker: FrameWalker) -> None:
        self._file = file
        self._walker = walker

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self._walker.feed(data)
        return data
