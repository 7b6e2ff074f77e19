"""Finished files of answers: reads their lines, compares them with what was committed, and proves that a file is the job's.

`OwnedFile`: a note beside the ledger records the file's device and inode. It is written before the file is created, and again
afterwards. So wherever a crash falls, an existing file either was created by the job or is refused.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final, Literal, get_args

import msgspec

from ...checks import choice
from ..compression import CompressedDataError, Compression, Decompressed, Pieces, compressor, detect
from ..errors import StoreError, StoreMissingError
from ..files import LEDGER, cannot_read, cannot_write, create, is_own, size_of, sync_folder, write_durably
from ..hold import MARKS, Hold
from ..objects import Objects, Readable, checked_url, place_at
from ..records import Commit, Written
from .protocol import Place, Problem, foreign_receipt, opened

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


class ShardFiles(ABC):
    """The base of stores that write files of their own for each shard, named by shard and job: in the folder `parts` of the
    job's directory, or at a URL.

    At a URL, several workers may write the same shard. Then a name also has the id of the attempt, and the ledger alone says
    which attempt counts.

    Args:
        url: the place; None for the folder `parts`.

    Attributes:
        folders: the folders that hold the files; "" is the place itself.
        by_workers: as in `SharedStore`.
    """

    folders: ClassVar[tuple[str, ...]] = ("",)

    _place: Place | None = None
    _hold: Hold | None = None
    _objects: Objects

    def __init__(self, url: str | None) -> None:
        self._url = None if url is None else checked_url(url)
        self.by_workers = url is not None

    @property
    @abstractmethod
    def _own(self) -> str:
        """A regular expression for the names of this job's files, without their folder."""

    @abstractmethod
    def _files(self, receipt: Mapping[str, Any]) -> Sequence[str]:
        """The names of the files of a shard.

        Raises:
            LedgerError: the receipt names files that are not this job's.
        """

    @abstractmethod
    def _compare(self, commit: Commit) -> Iterator[Problem]:
        """Reads the files of a shard and compares them with what was committed."""

    def _described(self, description: dict[str, Any]) -> dict[str, Any]:
        return description if self._url is None else {**description, "url": self._url}

    def open(self, place: Place, *, existing: bool = False) -> None:
        objects = self._objects = place_at(self._url, place.parts)
        self._place = place
        with self._naming("read" if existing else "written"):
            if self._url is None:
                if not existing:
                    objects.prepare(self.folders)
                elif size_of(place.parts) is None:
                    raise StoreMissingError(str(place.parts))
                return
            hold = Hold(objects, place.job, _driver(place.folder), self._has_files)
            if not existing:
                objects.prepare((*self.folders, MARKS))
                hold.take()
                hold.keep()
                self._hold = hold
            elif not hold.is_known():
                raise StoreMissingError(str(objects))

    def recover(self, receipts: Mapping[int, Mapping[str, Any]]) -> Iterable[Commit]:
        known = {name for receipt in receipts.values() for name in self._files(receipt)}
        unknown = [name for name in self._own_files() if name not in known]
        self.check()  # after the list: so it has no file of a driver that took over meanwhile
        self._remove(unknown)
        return ()

    def check(self) -> None:
        """Raises JobLockedError if another driver has taken over the URL, StoreError if that cannot be found out."""
        if self._hold is not None:
            with self._naming("read"):
                self._hold.check()

    def drop(self, receipt: Mapping[str, Any]) -> None:
        """As `SharedStore.drop`."""
        self._remove(self._files(receipt))

    def settle(self, receipts: Mapping[int, Mapping[str, Any]], *, complete: bool) -> None:
        """As `SharedStore.settle`: at a URL, `_SUCCESS` lists the files of a complete job."""
        self.recover(receipts)
        with self._naming("written"):
            if complete:
                files = sorted(name for receipt in receipts.values() for name in self._files(receipt))
                about = {"job": self._opened.job, "files": files}
                self._objects.put(SUCCESS, msgspec.json.format(msgspec.json.encode(about), indent=1))
            else:
                self._objects.delete([SUCCESS])

    def verify(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        known = set[str]()
        for commit in commits:
            known.update(self._files(commit.receipt))
            yield from self._compare(commit)
        for name in self._own_files():
            if name not in known:
                where = str(self._objects.at(name))
                yield Problem(where, "the ledger does not know it; the next run of the job removes it")

    def missing(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        own = set(self._own_files())
        for commit in commits:
            if gone := next((name for name in self._files(commit.receipt) if name not in own), None):
                yield Problem(str(self._objects.at(gone)), "it is missing", commit.shard.id)

    def purge(self) -> list[str]:
        place = self._opened
        if self._url is not None and self._hold is None:
            self._hold = Hold(self._objects, place.job, _driver(place.folder), self._has_files)
            with self._naming("written"):
                self._hold.take()
        names = self._own_files()
        self._remove(names)
        if self._hold is not None:
            with self._naming("written"):
                self._objects.delete([SUCCESS])
                self._hold.release(purged=True)
            self._hold = None
        else:
            for folder in dict.fromkeys((*self.folders, "")):
                with suppress(OSError):  # it holds other files
                    (place.parts / folder).rmdir()
        counts = Counter(name.rpartition("/")[0] for name in names)
        return [
            f"{counts[folder]:,} files of answers in {self._objects.at(folder) if folder else self._objects}"
            for folder in self.folders
            if counts[folder]
        ]

    def close(self) -> None:
        hold, self._hold = self._hold, None
        self._place = None
        if hold is not None:
            with suppress(OSError):  # then it expires
                hold.release()

    @property
    def _opened(self) -> Place:
        return opened(self._place)

    def _name(self, shard: str, attempt: str | None = None) -> str:
        """The name of a file without its end.

        Args:
            shard: number of the shard, or an expression for it.
            attempt: id of the attempt, or an expression for it (default: a new id).
        """
        if self._url is None:
            return f"{shard}-{self._opened.job[:8]}"
        return f"{shard}-{self._opened.job[:8]}-{attempt or secrets.token_hex(4)}"

    def _put(self, names: Sequence[str], files: Sequence[Path]) -> None:
        """Adds the files of a shard.

        Raises:
            StoreError: one of them cannot be written. None of them stays, as far as they can be removed.
        """
        for name, file in zip(names, files, strict=True):
            try:
                self._objects.put(name, file)
            except OSError as error:
                problem = cannot_write(self._objects.at(name), error)
                break
        else:
            return
        if self.by_workers:  # the answer to a PUT that worked may be lost
            with suppress(OSError):
                self._objects.delete(names)
        raise problem

    def _file(self, name: str, folder: str = "") -> str:
        """The name of a file that a receipt names.

        Args:
            name: relative to the place.
            folder: where it must be.

        Raises:
            LedgerError: the name is not one of this job's.
        """
        path = self._objects.at(name)
        foreign = not re.fullmatch(f"{folder}/{self._own}".lstrip("/"), name, re.ASCII)
        if foreign or (isinstance(path, Path) and path.is_symlink()):
            raise foreign_receipt(f"names the file {name!a}, which is not of this job")
        return name

    def _own_files(self) -> list[str]:
        """The names of all files with this job's id, unfinished ones too.

        Raises:
            StoreError: a folder cannot be read.
        """
        own = re.compile(rf"{self._own}|\.{self._own}\.tmp", re.ASCII)
        found = list[str]()
        with self._naming("read"):
            for folder in self.folders:
                names = (one.name for one in self._objects.list(folder))
                found += sorted(name for name in names if own.fullmatch(name.rpartition("/")[2]))
        return found

    def _has_files(self, job: str) -> bool:
        """Whether the place has files of a job."""
        return any(f"-{job[:8]}-" in one.name for folder in self.folders for one in self._objects.list(folder))

    def _remove(self, names: Iterable[str]) -> None:
        with self._naming("written"):
            self._objects.delete(names)

    @contextmanager
    def _naming(self, what: Literal["read", "written"]) -> Iterator[None]:
        """Turns errors of the place into StoreErrors."""
        try:
            yield
            return
        except OSError as error:
            problem = (cannot_read if what == "read" else cannot_write)(self._objects, error)
        raise problem


def _driver(folder: Path) -> str:
    """Identifies a job's directory on this machine. A copy of it has another identity."""
    found = os.stat(folder / LEDGER)
    return sha256(f"{socket.gethostname()} {found.st_dev} {found.st_ino}".encode()).hexdigest()[:16]


SUCCESS: Final = "_SUCCESS"
"""The object that lists the files of a complete job."""

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
