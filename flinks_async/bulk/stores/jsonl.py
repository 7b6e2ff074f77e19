"""Answers as JSONL: one file for each shard, or one file to which each shard is appended.

One file: bytes after the last shard that the ledger knows are cut off when the job is resumed. Gzip members and Zstandard
frames in a row are one valid file, so compressed spools are appended as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from .. import crash_points
from ..compression import Compression
from ..errors import StoreError, StoreMissingError
from ..files import NOTE, absolute_path, cannot_write, make_folder, rename_durably, size_of, sync_folder, write_all
from ..records import Commit, Written
from .answer_files import SUFFIXES, OwnedFile, check_compression, checksum, compare, read_lines
from .protocol import Place, Problem, opened

_PIECE: Final = 1024 * 1024


class JSONLParts:
    """Files `parts/answers-SHARD-JOB.jsonl` in the job's directory: the spools, renamed. An existing file is complete.

    A receipt is `{"file": name, "size": number of bytes, "sha256": their SHA-256}`.

    Args:
        compression: compression of each file (default `none`).

    Raises:
        ConfigError: a library for the compression is not installed.
    """

    def __init__(self, compression: Compression = "none") -> None:
        self.spool_compression: Compression = check_compression(compression)
        self._place: Place | None = None

    def describe(self) -> dict[str, Any]:
        return {"kind": "jsonl-parts", "compression": self.spool_compression}

    def open(self, place: Place, *, existing: bool = False) -> None:
        if not existing:
            make_folder(place.parts)
            try:
                sync_folder(place.folder)
            except OSError as error:
                raise cannot_write(place.parts, error) from None
        elif size_of(place.parts) is None:
            raise StoreMissingError(str(place.parts))
        self._place = place

    def recover(self, receipts: Mapping[int, Mapping[str, Any]]) -> Iterable[Commit]:
        known = {receipt["file"] for receipt in receipts.values()}
        for path in self._own_files():
            if path.name not in known:
                try:
                    path.unlink()
                except OSError as error:
                    raise cannot_write(path, error) from None
        return ()

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        path = self._opened.parts / self._name(f"{commit.shard.id:06d}")
        try:
            rename_durably(spool, path)
        except OSError as error:
            raise cannot_write(path, error) from None
        return {"file": path.name, "size": commit.written.size, "sha256": commit.written.sha256}

    def verify(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        known = set()
        for commit in commits:
            name = commit.receipt["file"]
            known.add(name)
            yield from compare(self._opened.parts / name, self.spool_compression, commit.written, commit.shard.id)
        for path in self._own_files():
            if path.name not in known:
                yield Problem(str(path), "the ledger does not know it; the next run of the job removes it")

    def missing(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        own = {path.name for path in self._own_files()}
        for commit in commits:
            name = commit.receipt["file"]
            if name not in own:
                yield Problem(str(self._opened.parts / name), "it is missing", commit.shard.id)

    def lines(self, commits: Iterable[Commit]) -> Iterator[bytes]:
        for commit in commits:
            yield from read_lines(self._opened.parts / commit.receipt["file"], self.spool_compression)

    def purge(self) -> list[str]:
        parts = self._opened.parts
        paths = self._own_files()
        try:
            size = sum(path.stat().st_size for path in paths)
            for path in paths:
                path.unlink()
            if not any(parts.iterdir()):
                parts.rmdir()
        except OSError as error:
            raise cannot_write(parts, error) from None
        return [f"{len(paths):,} files of answers in {parts} ({size:,} bytes)"] if paths else []

    def close(self) -> None:
        self._place = None

    @property
    def _opened(self) -> Place:
        return opened(self._place)

    def _name(self, shard: str) -> str:
        return f"answers-{shard}-{self._opened.job[:8]}.jsonl{SUFFIXES[self.spool_compression]}"

    def _own_files(self) -> list[Path]:
        """Files with this job's id in their names."""
        pattern = re.compile(self._name(r"\d{6,}").replace(".", r"\."))
        parts = self._opened.parts
        try:
            return sorted(path for path in parts.iterdir() if pattern.fullmatch(path.name) and path.is_file())
        except OSError as error:
            raise cannot_write(parts, error) from None


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
        self._user_path = absolute_path(path)
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
        ranges = [(receipt["offset"], receipt["size"], receipt["sha256"]) for receipt in receipts.values()]
        end = max((offset + size for offset, size, _ in ranges), default=0)
        last = max((found for found in ranges if found[1]), default=None)
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
        if last is not None and checksum(path, last[0], last[1]) != (last[1], last[2]):
            raise StoreError(f"{path} does not hold what the job wrote to it. Restore that file, or start a new job")
        if last is None and size and not ours:
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
        try:
            file = os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
            try:
                _append(file, start, spool, written)
            except (OSError, StoreError):
                with suppress(OSError):
                    os.ftruncate(file, start)
                raise
            finally:
                os.close(file)
        except OSError as error:
            raise cannot_write(path, error) from None
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
            offset, length = commit.receipt["offset"], commit.receipt["size"]
            known += length
            yield from compare(path, self.spool_compression, commit.written, commit.shard.id, offset, length)
        if size > known and (known or self._opened.is_ours()):
            yield Problem(str(path), f"it has {size - known:,} bytes more than the ledger says")

    def missing(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        file, path = self._opened, self._opened.path
        known = list(commits)
        size = size_of(path) or 0
        last = max((commit.receipt for commit in known), key=lambda receipt: int(receipt["offset"]), default=None)
        # Compares the content too, as `recover` does.
        self._recognized = last is not None and checksum(path, last["offset"], last["size"]) == (
            last["size"],
            last["sha256"],
        )
        ours = self._recognized or file.is_ours()
        for commit in known:
            if not ours:
                yield Problem(str(path), "it does not hold what the job wrote to it", commit.shard.id)
            elif commit.receipt["offset"] + commit.receipt["size"] > size:
                yield Problem(str(path), f"it has only {size:,} bytes", commit.shard.id)

    def lines(self, commits: Iterable[Commit]) -> Iterator[bytes]:
        path = self._opened.path
        for commit in commits:
            yield from read_lines(path, self.spool_compression, commit.receipt["offset"], commit.receipt["size"])

    def purge(self) -> list[str]:
        file, path = self._opened, self._opened.path
        size = size_of(path)
        removed = []
        if size is not None and (self._recognized or self._user_path is None or file.is_ours()):
            try:
                path.unlink()
            except OSError as error:
                raise cannot_write(path, error) from None
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
    try:
        file = os.open(path, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            os.ftruncate(file, end)
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise cannot_write(path, error) from None
