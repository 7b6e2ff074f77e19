"""Finished files of answers: reads their lines, compares them with what was committed, and proves that a file is the job's.

`OwnedFile`: a note beside the ledger records the file's device and inode. It is written before the file is created, and again
afterwards. So wherever a crash falls, an existing file either was created by the job or is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Final, get_args

import msgspec

from ...checks import choice
from ..compression import CompressedDataError, Compression, Decompressed, Pieces, compressor, detect
from ..errors import StoreError
from ..files import cannot_read, cannot_write, create, is_own, sync_folder, write_durably
from ..objects import Readable
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
    choice("compression", compression, get_args(Compression))
    compressor(compression)
    return compression


def checksum(path: Readable, start: int = 0, size: int | None = None) -> tuple[int, str]:
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


def difference(path: Readable, written: Written, start: int = 0, size: int | None = None) -> str | None:
    """Reads a file or a range of it. Says how its bytes differ from those that were written; None if they do not."""
    try:
        length, found = checksum(path, start, size)
    except StoreError as error:
        return error.message
    if length != written.size:
        return f"it has {length:,} bytes, but {written.size:,} were written"
    return None if found == written.sha256 else "its content was changed (its SHA-256 differs)"


def compare(
    path: Readable, compression: Compression, written: Written, shard: int, start: int = 0, size: int | None = None
) -> Iterator[Problem]:
    """Reads a file or a range of it, and yields a problem if its answers differ from what was written."""
    what = difference(path, written, start, size)
    if what is None:
        try:
            lines = sum(1 for _ in read_answers(path, compression, start, size))
            what = None if lines == written.lines else f"it has {lines:,} answers, but {written.lines:,} were written"
        except StoreError as error:
            what = error.message
    if what is not None:
        yield Problem(str(path) if size is None else f"{path}, bytes {start:,} to {start + size:,}", what, shard)


_BEGIN: Final = b'{"line":'
"""The first bytes of each answer in a file."""


def may_be_answers(path: Path, compression: Compression) -> bool:
    """Whether a file begins as the file of answers that a crash has left: empty, within the first line, or with zeros only.
    Files of others do not, so a job that somebody edited never cuts or removes them.
    """
    try:
        with path.open("rb") as file:
            found = b""
            with suppress(CompressedDataError):
                source = Decompressed(file, compression)
                while len(found) < len(_BEGIN) and (piece := source.read(len(_BEGIN))):
                    found += piece
            if found:
                return found.startswith(_BEGIN) or _BEGIN.startswith(found) or not (found.strip(b"\0") or _rest(file))
            file.seek(0)
            head = file.read(PIECE)
            return not head or detect(head) == compression or not (head.strip(b"\0") or _rest(file))
    except OSError as error:
        raise cannot_read(path, error) from None


def _rest(file: BinaryIO) -> bool:
    """Whether more than zeros follows in a file."""
    return any(piece.strip(b"\0") for piece in iter(lambda: file.read(PIECE), b""))


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
            source = Decompressed(Range(file, start, size), compression)
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
        if not line.startswith(_BEGIN):
            raise StoreError(f"{path} cannot be read: it holds lines that are not answers")
        yield line


class OwnedFile:
    """An output file that belongs to one job.

    Args:
        path: the output file.
        note: the file that records its identity.
    """

    def __init__(self, path: Path, note: Path) -> None:
        self.path = path
        self._note = note

    def create(self) -> None:
        """Creates the file, unless the job has done so before.

        Raises:
            StoreError: another file is there, or it cannot be created.
        """
        noted = self._noted()
        if noted is None:
            if os.path.lexists(self.path):
                raise self._not_ours()
            self._write(None)
        if noted is None or noted.file is None:
            self._create()

    def create_again(self) -> None:
        """Creates the file after it was removed."""
        self._write(None)
        self._create()

    def adopt(self) -> None:
        """Records that the file, which was copied or moved, is the job's."""
        self._write(self._identity())

    def is_ours(self) -> bool:
        """Whether the file exists and is the one that the job created."""
        noted = self._noted()
        return noted is not None and noted.file is not None and noted.file == self._identity()

    def forget(self) -> None:
        """Removes the note."""
        try:
            for path in (self._note, self._note.with_name(f"{self._note.name}.tmp")):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._note, error) from None

    def _create(self) -> None:
        try:
            self._open()
        except StoreError:  # without a file there must be no note, so that the job may write elsewhere
            with suppress(StoreError):
                self.forget()
            raise
        try:
            sync_folder(self.path.parent)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self._write(self._identity())

    def _open(self) -> None:
        try:
            try:  # what is there was created just before a crash; a file of somebody else is not empty
                found = os.lstat(self.path)
            except FileNotFoundError:
                pass
            else:
                if not stat.S_ISREG(found.st_mode) or found.st_size or not is_own(found):
                    raise self._not_ours()
            os.close(create(self.path))
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise cannot_read(self.path, error) from None
        return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None

    def _noted(self) -> _Note | None:
        try:
            return msgspec.json.decode(self._note.read_bytes(), type=_Note)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise cannot_read(self._note, error) from None
        except msgspec.DecodeError:
            pass
        raise StoreError(f"{self._note} is broken; it records which file is the job's output")

    def _write(self, file: tuple[int, int] | None) -> None:
        path = os.fsencode(self.path).decode(errors="replace")  # only for people who read the note
        write_durably(self._note, msgspec.json.encode(_Note(path, file)) + b"\n")

    def _not_ours(self) -> StoreError:
        return StoreError(
            f"{self.path} exists already and is not this job's. Move it away, or let the job write elsewhere"
        )


class _Note(msgspec.Struct):
    """`file` is device and inode; None until the file is created."""

    path: str
    file: tuple[int, int] | None
