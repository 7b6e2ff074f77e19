"""Answers as JSONL: one file for each shard, or one file to which each shard is appended.

One file: bytes after the last shard that the ledger knows are cut off when the job is resumed. Gzip members and Zstandard
frames in a row are one valid file, so compressed spools are appended as they are.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, get_args

import msgspec

from ... import checks
from ..compression import CompressedDataError, Compression, compressor, decompressed, detect
from ..errors import StoreError, StoreMissingError
from ..files import (
    NOTE,
    cannot_read,
    crash_points,
    create,
    descriptor,
    is_own,
    open_to_write,
    size_of,
    sync_folder,
    write_all,
    write_durably,
    writing,
)
from ..records import Commit, Written
from ..spool import BEGIN, PIECE, checksum, read_answers
from .protocol import Place, Problem, compare, opened, receipt_as
from .shard_files import ShardFiles

_PIECE: Final = 1024 * 1024

SUFFIXES: Final[dict[Compression, str]] = {"none": "", "gzip": ".gz", "zstd": ".zst"}


def check_compression(compression: Compression) -> Compression:
    """Returns a compression that can be written.

    Raises:
        ConfigError: its name is unknown, or its library is not installed.
    """
    checks.choice("compression", compression, get_args(Compression))
    compressor(compression)
    return compression


class JSONLParts(ShardFiles):
    """Files `answers-SHARD-JOB.jsonl` in the folder `parts` of the job's directory, or `answers-SHARD-JOB-ATTEMPT.jsonl` at a
    URL: the spools, moved. An existing file is complete.

    A receipt is `{"file": name, "size": number of bytes, "sha256": their SHA-256}`.

    Args:
        compression: compression of each file (default `none`).
        url: a place in object storage, such as `s3://bucket/folder`, or a shared folder (`file:///mnt/shared/folder`).

    Raises:
        ConfigError: a library for the compression or for object storage is not installed, or the URL cannot be used.
    """

    def __init__(self, compression: Compression = "none", url: str | None = None) -> None:
        super().__init__(url)
        self.spool_compression: Compression = check_compression(compression)

    def describe(self) -> dict[str, Any]:
        return self._described({"kind": "jsonl-parts", "compression": self.spool_compression})

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        name = self._file_name(self._name(f"{commit.shard.id:06d}"))
        self._put([name], [spool])
        return {"file": name, "size": commit.written.size, "sha256": commit.written.sha256}

    def lines(self, commits: Iterable[Commit]) -> Iterator[bytes]:
        for commit in commits:
            (name,) = self.files(commit.receipt)
            yield from read_answers(self._objects.at(name), self.spool_compression)

    @property
    def _own(self) -> str:
        return self._file_name(self._name(r"\d{6,}", "[0-9a-f]{8}")).replace(".", r"\.")

    def _file_name(self, name: str) -> str:
        return f"answers-{name}.jsonl{SUFFIXES[self.spool_compression]}"

    def files(self, receipt: Mapping[str, Any]) -> Sequence[str]:
        return [self._file(receipt_as(_Part, receipt).file)]

    def compare(self, commit: Commit) -> Iterator[Problem]:
        (name,) = self.files(commit.receipt)
        return compare(self._objects.at(name), self.spool_compression, commit.written, commit.shard.id)


class _Part(msgspec.Struct):
    file: str


class _Piece(msgspec.Struct, order=True):
    offset: Annotated[int, msgspec.Meta(ge=0)]
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: str


class JSONLFile:
    """One file, created by the job and readable by its owner only. An existing file is refused.

    Until the job is done, the file may end with a shard that will be cut off: read it when the job is done, or use
    `export`. A receipt is `{"offset": offset of the first byte, "size": number of bytes, "sha256": their SHA-256}`.

    Args:
        path: the file (default `answers.jsonl` in the job's directory, with `.gz` or `.zst` if compressed).
        compression: compression of the file (default `none`).

    Raises:
        ConfigError: a library for the compression is not installed, or the path cannot be the name of a file.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, compression: Compression = "none") -> None:
        self.spool_compression: Compression = check_compression(compression)
        self._user_path = None if path is None else checks.path("path", path)
        self._file: OwnedFile | None = None
        self._end: int | None = None
        self._recognized = False

    def describe(self) -> dict[str, Any]:
        path = None if self._user_path is None else str(self._user_path)
        return {"kind": "jsonl", "path": path, "compression": self.spool_compression}

    def open(self, place: Place, *, existing: bool = False) -> None:
        path = self._user_path or place.folder / f"answers.jsonl{SUFFIXES[self.spool_compression]}"
        file = OwnedFile(path, place.folder / NOTE)
        if not existing:
            file.create()
        elif size_of(path) is None:
            raise StoreMissingError(str(path))
        self._file = file
        self._recognized = False

    def recover(self, receipts: Mapping[int, Mapping[str, Any]]) -> Iterable[Commit]:
        """As `Store.recover`.

        Raises:
            StoreError: also if the file is missing, shorter than the ledger says, or another one. It is not changed.
        """
        file, path = self._opened, self._opened.path
        last = _last(receipt_as(_Piece, receipt) for receipt in receipts.values())
        end = 0 if last is None else last.offset + last.size
        size = size_of(path)
        if size is None and last is None:
            file.create_again()
            size = 0
        if size is None or size < end:
            state = "is missing" if size is None else f"has only {size:,} bytes"
            raise StoreError(
                f"{path} {state}, but the job has written {end:,} bytes to it. Restore that file, or start a new job"
            )
        ours = file.is_ours()
        # Compares the content, because a file that was moved or restored has another inode.
        if last is not None and not self._holds(last):
            raise StoreError(f"{path} does not hold what the job wrote to it. Restore that file, or start a new job")
        if last is None and size and not (ours and may_be_answers(path, self.spool_compression)):
            raise StoreError(f"{path} is not the file that the job created. Move it away, or start a new job")
        if not ours:
            file.adopt()
        if size > end:
            _cut(path, end)
        self._end = end
        return ()

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        path, start = self._opened.path, self._end
        assert start is not None, "recover is called first"
        written = commit.written
        with writing(path), descriptor(open_to_write(path)) as file:
            try:
                _append(file, start, spool, written)
            except (OSError, StoreError):
                with suppress(OSError):
                    os.ftruncate(file, start)
                raise
        self._end = start + written.size
        return {"offset": start, "size": written.size, "sha256": written.sha256}

    def verify(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        path = self._opened.path
        known = 0
        size = size_of(path)
        if size is None:
            yield Problem(str(path), "it is missing")
            return
        for commit in commits:
            piece = receipt_as(_Piece, commit.receipt)
            known += piece.size
            yield from compare(path, self.spool_compression, commit.written, commit.shard.id, piece.offset, piece.size)
        if size > known and (known or self._opened.is_ours()):
            yield Problem(str(path), f"it has {size - known:,} bytes more than the ledger says")

    def missing(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        path = self._opened.path
        known = [(receipt_as(_Piece, commit.receipt), commit.shard.id) for commit in commits]
        size = size_of(path) or 0
        last = _last(piece for piece, _ in known)
        # Compares the content too, as `recover` does.
        self._recognized = last is not None and self._holds(last)
        ours = self._recognized or self._is_ours()
        for piece, shard in known:
            if not ours:
                yield Problem(str(path), "it does not hold what the job wrote to it", shard)
            elif piece.offset + piece.size > size:
                yield Problem(str(path), f"it has only {size:,} bytes", shard)

    def lines(self, commits: Iterable[Commit]) -> Iterator[bytes]:
        for commit in commits:
            piece = receipt_as(_Piece, commit.receipt)
            yield from read_answers(self._opened.path, self.spool_compression, piece.offset, piece.size)

    def purge(self) -> list[str]:
        file, path = self._opened, self._opened.path
        size = size_of(path)
        removed = []
        if size is not None and (self._recognized or self._user_path is None or self._is_ours()):
            with writing(path):
                path.unlink()
            removed = [f"{path} ({size:,} bytes)"]
        elif size is not None:
            removed = [f"left, because it is not the file that the job created: {path}"]
        file.forget()
        return removed

    def close(self) -> None:
        self._file = self._end = None

    @property
    def _opened(self) -> OwnedFile:
        return opened(self._file)

    def _is_ours(self) -> bool:
        return self._opened.is_ours() and may_be_answers(self._opened.path, self.spool_compression)

    def _holds(self, piece: _Piece) -> bool:
        """Whether the file holds these answers."""
        path = self._opened.path
        if checksum(path, piece.offset, piece.size) != (piece.size, piece.sha256):
            return False
        try:
            for _ in read_answers(path, self.spool_compression, piece.offset, piece.size):
                pass
        except StoreError:  # not the job's, although somebody noted its checksum in the ledger
            return False
        return True


def _last(pieces: Iterable[_Piece]) -> _Piece | None:
    return max((piece for piece in pieces if piece.size), default=None)


def _append(file: int, start: int, spool: Path, written: Written) -> None:
    """Copies a spool to an offset of a file, and syncs the file.

    Raises:
        OSError: reading or writing fails.
        StoreError: the spool is broken.
    """
    found, size = sha256(), 0
    os.lseek(file, start, os.SEEK_SET)
    with spool.open("rb") as source:
        while piece := source.read(_PIECE):
            write_all(file, piece)
            found.update(piece)
            size += len(piece)
    crash_points.reach("appended")
    if (size, found.hexdigest()) != (written.size, written.sha256):
        raise StoreError(f"{spool} does not hold what was written to it. The disk seems to be broken")
    os.fsync(file)
    crash_points.reach("append synced")


def _cut(path: Path, end: int) -> None:
    with writing(path), descriptor(open_to_write(path)) as file:
        os.ftruncate(file, end)
        os.fsync(file)


# --- one file that is the job's ---


def may_be_answers(path: Path, compression: Compression) -> bool:
    """Whether a file begins as the file of answers that a crash has left: empty, within the first line, or with zeros only.
    Files of others do not, so a job that somebody edited never cuts or removes them.
    """
    try:
        with path.open("rb") as file:
            found = b""
            with suppress(CompressedDataError):
                source = decompressed(file, compression)
                while len(found) < len(BEGIN) and (piece := source.read(len(BEGIN))):
                    found += piece
            if found:
                return found.startswith(BEGIN) or BEGIN.startswith(found) or not (found.strip(b"\0") or _rest(file))
            file.seek(0)
            head = file.read(PIECE)
            return not head or detect(head) == compression or not (head.strip(b"\0") or _rest(file))
    except OSError as error:
        raise cannot_read(path, error) from None


def _rest(file: BinaryIO) -> bool:
    """Whether more than zeros follows in a file."""
    return any(piece.strip(b"\0") for piece in iter(lambda: file.read(PIECE), b""))


class OwnedFile:
    """An output file that belongs to one job. A note beside the ledger records the file's device and inode. It is written
    before the file is created, and again afterwards. So wherever a crash falls, an existing file either was created by the
    job or is refused.

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
        with writing(self._note):
            for path in (self._note, self._note.with_name(f"{self._note.name}.tmp")):
                path.unlink(missing_ok=True)

    def _create(self) -> None:
        try:
            self._open()
        except StoreError:  # without a file there must be no note, so that the job may write elsewhere
            with suppress(StoreError):
                self.forget()
            raise
        with writing(self.path):
            sync_folder(self.path.parent)
        self._write(self._identity())

    def _open(self) -> None:
        with writing(self.path):
            try:  # what is there was created just before a crash; a file of somebody else is not empty
                found = os.lstat(self.path)
            except FileNotFoundError:
                pass
            else:
                if not stat.S_ISREG(found.st_mode) or found.st_size or not is_own(found):
                    raise self._not_ours()
            os.close(create(self.path))

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
