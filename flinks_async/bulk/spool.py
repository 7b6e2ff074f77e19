"""Files of answers: spools, which grow while a shard is fetched, and finished files. All methods of `Spool` block."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from io import BufferedReader, FileIO, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
from attrs import define, field

from ..messages import Response
from .compression import CompressedDataError, Compression, Pieces, compressor, decompressed
from .errors import StoreError
from .files import cannot_read, cannot_write, crash_points, create, write_all
from .inputs import NO_KEY, Token
from .objects import Readable
from .records import Failure, Shard, Written, to_json

_FULL: Final = 1024 * 1024
"""Bytes after which a thread writes them. With 256 KB, a job took 11 µs more processor time for each medium answer."""
_BOM: Final = b"\xef\xbb\xbf"


class Spool:
    """A file of answers that grows line by line, until it is finished.

    Args:
        path: the file; an existing one is overwritten.
        compression: the file is one gzip member or one Zstandard frame.
        kept: the file becomes output of the job, so it is synced, and its SHA-256 is computed. Otherwise a store reads it
            and makes the answers durable itself.
    """

    def __init__(self, path: Path, compression: Compression, *, kept: bool = True) -> None:
        self.path = path
        self._lines = 0
        self._size = 0
        self._hash = sha256() if kept else None
        self._compressor = compressor(compression)
        self._broken: StoreError | None = None
        try:
            self._file: int | None = create(path)
        except OSError as error:
            raise cannot_write(path, error) from None

    def write(self, lines: Sequence[bytes]) -> None:
        """Adds lines, each with its line end.

        Raises:
            StoreError: the disk is full or broken.
        """
        self._lines += len(lines)
        self._add(self._compressor.compress(b"".join(lines)))

    def finish(self) -> Written:
        """Writes the rest, and syncs the file if it is kept.

        Raises:
            StoreError: the disk is full or broken. The file is removed.
        """
        assert self._file is not None
        try:
            self._add(self._compressor.flush())
        except StoreError:
            self.abandon()
            raise
        crash_points.reach("spool written")
        file, self._file = self._file, None
        try:
            try:
                if self._hash is not None:
                    os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            with suppress(OSError):
                self.path.unlink()
            raise cannot_write(self.path, error) from None
        crash_points.reach("spool finished")
        return Written(self._lines, self._size, "" if self._hash is None else self._hash.hexdigest())

    def abandon(self) -> None:
        """Removes the file, unless it is finished."""
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):
                os.close(file)
            with suppress(OSError):
                self.path.unlink()

    def _add(self, data: bytes) -> None:
        if self._broken is not None:  # the file lacks a part of what was written before
            raise self._broken
        if not data:
            return
        assert self._file is not None
        try:
            write_all(self._file, data)
        except OSError as error:
            self._broken = cannot_write(self.path, error)
        if self._broken is not None:
            raise self._broken
        self._size += len(data)
        if self._hash is not None:
            self._hash.update(data)


@define(eq=False)
class OpenShard:
    """A shard that is being fetched.

    Attributes:
        shard: the rows of the shard.
        open: lines of the rows that have no outcome yet.
        spool: the file of answers, once there is one. Only the writing thread uses it.
        lost: why answers are missing in the spool, so that the shard cannot be finished. Only the writing thread uses it.
    """

    shard: Shard
    open: set[int]
    spool: Spool | None = None
    lost: StoreError | None = None
    _lines: list[bytes] = field(factory=list, init=False)
    _size: int = field(default=0, init=False)
    _failures: list[Failure] = field(factory=list, init=False)
    _answered: int = field(default=0, init=False)

    @property
    def full(self) -> bool:
        """Whether there are enough lines to be worth a write."""
        return self._size >= _FULL

    @property
    def begun(self) -> bool:
        """Whether at least one row has an outcome."""
        return bool(self._answered or self._failures)

    @property
    def failures(self) -> tuple[Failure, ...]:
        return tuple(sorted(self._failures, key=lambda failure: failure.line))

    def answered(self, line: int, text: bytes) -> None:
        self.open.discard(line)
        self._lines.append(text)
        self._size += len(text)
        self._answered += 1

    def failed(self, failure: Failure) -> None:
        self.open.discard(failure.line)
        self._failures.append(failure)

    def take_lines(self) -> Sequence[bytes]:
        """Removes and returns the lines that are not in the spool yet."""
        lines, self._lines, self._size = self._lines, [], 0
        return lines


def spool_line(token: Token, response: Response, select: Callable[[bytes], bytes] | None = None) -> bytes:
    """One answer as a line: `{"line":7,"key":"u-1","instance":"acme","response":{...},"meta":{...}}`.

    Args:
        select: makes, of the JSON of the answer, the JSON that is kept.
    """
    body = response.body
    if select is not None:
        body = select(body.removeprefix(_BOM))
    elif b"\n" in body or b"\r" in body or not body.startswith(b"{"):
        body = msgspec.json.format(body.removeprefix(_BOM), indent=-1)
    key = b"" if token.key is NO_KEY else b',"key":%b' % to_json(token.key)
    instance = b"" if token.instance is None else b',"instance":%b' % to_json(token.instance)
    meta = response.meta
    return b'{"line":%d%b%b,"response":%b,"meta":{"status":%d,"attempts":%d}}\n' % (
        token.line, key, instance, body, meta.status, meta.attempts,
    )  # fmt: skip


class SpoolMeta(msgspec.Struct):
    status: int
    attempts: int


class SpoolLine(msgspec.Struct):
    """An answer as read from a spool. Key and response are still JSON."""

    line: int
    response: msgspec.Raw
    meta: SpoolMeta
    key: msgspec.Raw = msgspec.Raw(b"null")
    instance: str | None = None


read_spool_line: Final = msgspec.json.Decoder(SpoolLine).decode
"""Reads one line of a spool. Raises `msgspec.DecodeError`, or for broken texts other `ValueError`s."""

_PIECE: Final = 1024 * 1024
_LINE: Final = re.compile(rb'\{"line":([0-9]+)')


def read_spool(path: Path, count: int, size: int) -> Iterator[list[tuple[int, bytes]]]:
    """Blocks of the lines of an uncompressed spool, with their numbers, from 1. The lines come in the order of the input,
    not in that in which the answers came. Memory is that of up to three blocks, and of the place of each line.

    Args:
        count: number of lines.
        size: bytes after which a block ends.

    Raises:
        StoreError: the file cannot be read, ends within a line, or has another number of lines.
    """
    try:
        with BufferedReader(FileIO(path), _PIECE) as file:
            places: list[tuple[int, int, int, int]] = []
            start = 0
            for number, text in enumerate(file, 1):
                found = _LINE.match(text)
                places.append((int(found[1]) if found else 0, number, start, len(text)))
                start += len(text)
                if not text.endswith(b"\n"):
                    raise StoreError(f"{path} cannot be read: it ends within a line")
            if len(places) != count:
                raise StoreError(f"{path} has {len(places):,} answers, not {count:,}")
            block, held = list[tuple[int, int, int]](), 0
            for _, number, start, length in sorted(places):
                block.append((number, start, length))
                held += length
                if held >= size:
                    yield _read_block(file.raw, block, held)
                    block, held = [], 0
            if block:
                yield _read_block(file.raw, block, held)
            return
    except OSError as error:
        problem = cannot_read(path, error)
    raise problem


def _read_block(file: RawIOBase, block: Sequence[tuple[int, int, int]], held: int) -> list[tuple[int, bytes]]:
    """Reads lines: at once if they are short and little lies between them, because a thread that calls the system waits for
    the interpreter's lock each time.

    Args:
        block: number, offset and length of each line.
        held: bytes of all of them.
    """
    begin, end = min(start for _, start, _ in block), max(start + length for _, start, length in block)
    if end - begin <= 2 * held and held <= len(block) * _PIECE:
        file.seek(begin)
        data = file.read(end - begin) or b""
        return [(number, data[start - begin : start - begin + length]) for number, start, length in block]
    lines = []
    for number, start, length in block:
        file.seek(start)
        lines.append((number, file.read(length) or b""))
    return lines


def key_of(token: Token) -> Any:
    return None if token.key is NO_KEY else token.key


# --- finished files ---------------------------------------------------------------------------------------------------

PIECE: Final = 256 * 1024
"""Bytes that are read at once."""


def pieces_of(path: Readable, start: int = 0, size: int | None = None) -> Iterator[bytes]:
    """The bytes of a file or of a range of it.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            source = Range(file, start, size)
            while piece := source.read():
                yield piece
    except OSError as error:
        raise cannot_read(path, error) from None


def checksum(path: Readable, start: int = 0, size: int | None = None) -> tuple[int, str]:
    """The number of bytes of a file or of a range of it, and their SHA-256. Raises StoreError as `pieces_of`."""
    found, length = sha256(), 0
    for piece in pieces_of(path, start, size):
        found.update(piece)
        length += len(piece)
    return length, found.hexdigest()


def difference(path: Readable, written: Written, start: int = 0, size: int | None = None) -> str | None:
    """Reads a file or a range of it. Says how its bytes differ from those that were written; None if they do not."""
    try:
        length, found = checksum(path, start, size)
    except StoreError as error:
        return error.message
    if length != written.size:
        return f"it has {length:,} bytes, but {written.size:,} were written"
    return None if found == written.sha256 else "its content was changed (its SHA-256 differs)"


BEGIN: Final = b'{"line":'
"""The first bytes of each answer in a file."""


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


def read_lines(path: Readable, compression: Compression, start: int = 0, size: int | None = None) -> Iterator[bytes]:
    """Yields each line with its line end, uncompressed. Memory is that of one line.

    Args:
        start, size: a range of the (compressed) file; the whole file by default.

    Raises:
        StoreError: the file cannot be read, is damaged, or ends within a line.
    """
    ended = True
    try:
        with path.open("rb") as file:
            source = decompressed(Range(file, start, size), compression)
            for line in BufferedReader(Pieces(partial(source.read, PIECE)), PIECE):
                if not (ended := line.endswith(b"\n")):
                    break
                yield line
        if ended:
            return
        problem = StoreError(f"{path} cannot be read: it ends within a line")
    except OSError as error:
        problem = cannot_read(path, error)
    except CompressedDataError as error:
        problem = StoreError(f"{path} cannot be read: {error}")
    raise problem


def read_answers(path: Readable, compression: Compression, start: int = 0, size: int | None = None) -> Iterator[bytes]:
    """As `read_lines`, for files that the user may have changed.

    Raises:
        StoreError: also if it holds something else than answers.
    """
    for line in read_lines(path, compression, start, size):
        if not line.startswith(BEGIN):
            raise StoreError(f"{path} cannot be read: it holds lines that are not answers")
        yield line
