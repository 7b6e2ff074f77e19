"""Answers as Parquet files: one for each table and shard, `parts/{table}/{shard}-{job}.parquet`. Needs pyarrow.

The files of a shard are written under temporary names, synced and renamed, and their folders are synced, before the
ledger marks the shard as done. The next start removes files that a crash has left.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, get_args

import msgspec
from msgspec.structs import replace

from ...checks import optional_import
from ...errors import ConfigError
from ...tables import Table, arrow_table, schema_of
from .. import crash_points
from ..compression import Compression
from ..errors import StoreError, StoreMissingError
from ..files import cannot_write, create, make_folder, newer_version, rename_durably, size_of, sync_folder, write_all
from ..records import Commit
from .answer_rows import FETCHES, TABLES, cannot_export, does_not_fit, read_spool
from .protocol import Place, Problem, foreign_receipt, opened, receipt_as

__all__ = ["ParquetStore"]

if TYPE_CHECKING:
    import pyarrow

Pages = Literal["zstd", "snappy", "none"]

VERSION: Final = 1
"""Version of the tables. A newer version may only add columns."""

_ROWS: Final = 50_000
"""Rows after which a row group ends. It may have more, because an answer is not split."""

_CHUNK: Final = 1024 * 1024
_JOB: Final = b"flinks_async.job"
_VERSION: Final = b"flinks_async.version"


class ParquetStore:
    """Answers as Parquet files.

    Args:
        compression: compression of the pages (default `zstd`).

    Raises:
        ConfigError: pyarrow is not installed, or the compression is unknown.
    """

    spool_compression: Compression = "none"

    def __init__(self, compression: Pages = "zstd") -> None:
        optional_import("pyarrow", extra="arrow")
        if compression not in get_args(Pages):
            raise ConfigError(f"compression must be one of {', '.join(get_args(Pages))}, not {compression!r}")
        self._compression = compression
        self._place: Place | None = None

    def describe(self) -> dict[str, Any]:
        return {"kind": "parquet", "compression": self._compression}

    def open(self, place: Place, *, existing: bool = False) -> None:
        if not existing:
            for table in TABLES:
                make_folder(place.parts / table.name)
        elif size_of(place.parts) is None:
            raise StoreMissingError(str(place.parts))
        self._place = place

    def recover(self, receipts: Mapping[int, Mapping[str, Any]]) -> Iterable[Commit]:
        newest = max((receipt_as(_Files, receipt).version for receipt in receipts.values()), default=VERSION)
        if newest > VERSION:
            raise StoreError(newer_version(self._here.parts, newest))
        known = {file.name for receipt in receipts.values() for file in self._files_of(receipt)}
        _remove([path for path in self._own_files() if self._name(path) not in known])
        return ()

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        files: list[_NewFile] = []
        try:
            for table in TABLES:
                path = self._here.parts / table.name / f"{commit.shard.id:06d}-{self._here.job[:8]}.parquet"
                files.append(_NewFile(path, table, self._here.job, self._compression))
            for batch in read_spool(spool, self.spool_compression, commit, batch=_ROWS):
                for table, file in zip(TABLES, files, strict=True):
                    if rows := batch.of(table):
                        file.write(arrow_table(table, rows, partial(does_not_fit, file.path, table)))
            for file in files:
                file.finish()
            crash_points.reach("tables synced")
            for file in files:
                file.rename()
        except OSError as error:
            problem = cannot_write(self._here.parts, error)
        else:
            return {"version": VERSION, "files": [{"name": self._name(f.path), **f.receipt()} for f in files]}
        finally:
            for file in files:
                file.abandon()
        raise problem

    def verify(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        known = set()
        for commit in commits:
            for table, file in zip(TABLES, self._files_of(commit.receipt), strict=True):
                known.add(file.name)
                expected = replace(file, rows=commit.written.lines) if table is FETCHES else file
                what = _problem_of(self._here.parts / file.name, expected, self._here.job)
                if what is not None:
                    yield Problem(file.name, what, commit.shard.id)
        for path in self._own_files():
            if self._name(path) not in known:
                yield Problem(self._name(path), "the ledger does not know it")

    def missing(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        own = {self._name(path) for path in self._own_files()}
        for commit in commits:
            names = [file.name for file in self._files_of(commit.receipt)]
            if gone := next((name for name in names if name not in own), None):
                yield Problem(str(self._here.parts / gone), "it is missing", commit.shard.id)

    def lines(self, commits: Iterable[Commit]) -> NoReturn:
        raise cannot_export(self._here.parts)

    def purge(self) -> list[str]:
        removed = []
        for table in TABLES:
            folder = self._here.parts / table.name
            paths = [path for path in self._own_files() if path.parent == folder]
            _remove(paths)
            if paths:
                removed.append(f"{len(paths):,} files in {folder}")
            with suppress(OSError):  # it holds other files
                folder.rmdir()
        with suppress(OSError):
            self._here.parts.rmdir()
        return removed

    def close(self) -> None:
        self._place = None

    @property
    def _here(self) -> Place:
        return opened(self._place)

    def _files_of(self, receipt: Mapping[str, Any]) -> list[_File]:
        """The files of a shard, in the order of the tables.

        Raises:
            LedgerError: the receipt names files that are not this job's.
        """
        files = receipt_as(_Files, receipt).files
        own = [rf"{table.name}/\d{{6,}}-{self._here.job[:8]}\.parquet" for table in TABLES]
        for pattern, file in zip_longest(own, files):
            if pattern is None or file is None or not re.fullmatch(pattern, file.name, re.ASCII):
                raise foreign_receipt("names files that are not of this job")
        return files

    def _name(self, path: Path) -> str:
        return path.relative_to(self._here.parts).as_posix()

    def _own_files(self) -> Iterator[Path]:
        """All files with this job's id in their names, unfinished ones too."""
        name = rf"\d{{6,}}-{self._here.job[:8]}\.parquet"
        own = re.compile(rf"{name}|\.{name}\.tmp")
        for table in TABLES:
            folder = self._here.parts / table.name
            yield from (path for path in sorted(folder.glob("*")) if own.fullmatch(path.name))


class _File(msgspec.Struct):
    name: str
    rows: int
    size: int
    sha256: str


class _Files(msgspec.Struct):
    """A receipt."""

    version: int
    files: list[_File]


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
        except OSError as error:
            raise cannot_write(path, error) from None


class _NewFile:
    """A file of one table that is being written. Until it is complete, its name begins with a dot, so that readers of the
    folder ignore it.

    Args:
        path: the final path.
        table: the table whose rows it holds.
        job: the job's id, for the file's metadata.
        compression: compression of the pages.

    Raises:
        OSError: the disk is full or broken. All methods but `abandon` may raise it.
    """

    def __init__(self, path: Path, table: Table, job: str, compression: str) -> None:
        from pyarrow.parquet import ParquetWriter

        self.path = path
        self._rows = 0
        self._beside = path.with_name(f".{path.name}.tmp")
        self._sink = _Sink(self._beside)
        about = {_JOB: job.encode(), _VERSION: b"%d" % VERSION}
        self._writer = ParquetWriter(self._sink, schema_of(table).with_metadata(about), compression=compression)

    def write(self, rows: pyarrow.Table) -> None:
        """Adds a row group."""
        self._writer.write_table(rows, row_group_size=rows.num_rows)
        self._rows += rows.num_rows

    def finish(self) -> None:
        """Writes the end of the file and syncs it."""
        self._writer.close()
        self._sink.sync()

    def rename(self) -> None:
        """Renames the file to its final path."""
        rename_durably(self._beside, self.path)

    def receipt(self) -> dict[str, Any]:
        """The facts that `_problem_of` compares with the file."""
        return {"rows": self._rows, "size": self._sink.size, "sha256": self._sink.sha256}

    def abandon(self) -> None:
        """Removes the file, unless it was renamed."""
        self._sink.abandon()
        with suppress(Exception):
            self._writer.close()
        with suppress(OSError):
            self._beside.unlink(missing_ok=True)


class _Sink:
    """A new file for Arrow, which writes many small pieces; computes its size and checksum."""

    closed = False

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._pieces: list[bytes] = []
        self._held = 0
        self._hash = sha256()
        self._file: int | None = create(path)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        if self._file is not None:  # otherwise it is abandoned, and Arrow must not fail again
            self.size += len(data)
            self._hash.update(data)
            self._pieces.append(data)
            self._held += len(data)
            if self._held >= _CHUNK:
                self._flush(self._file)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """Does nothing: `sync` writes what is buffered."""

    def close(self) -> None:
        """Does nothing: Arrow calls it before the file is synced."""

    def sync(self) -> None:
        assert self._file is not None
        self._flush(self._file)
        file, self._file = self._file, None
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def abandon(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)

    def _flush(self, file: int) -> None:
        pieces, self._pieces, self._held = self._pieces, [], 0
        write_all(file, b"".join(pieces))


def _problem_of(path: Path, receipt: _File, job: str) -> str | None:
    """Describes the problem of a finished file; None if there is none."""
    from pyarrow.parquet import read_metadata

    try:
        size = path.stat().st_size
        if size != receipt.size:
            return f"it has {size:,} bytes instead of {receipt.size:,}"
        digest = sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != receipt.sha256:
            return "its content was changed"
        with path.open("rb") as file:
            found = read_metadata(file)
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror or 'it is damaged'}"
    if found.num_rows != receipt.rows:
        return f"it has {found.num_rows:,} rows instead of {receipt.rows:,}"
    return None if found.metadata.get(_JOB) == job.encode() else "it belongs to another job"
