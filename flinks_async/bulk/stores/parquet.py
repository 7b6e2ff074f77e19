"""Answers as Parquet files: one for each table and shard, `parts/{table}/{shard}-{job}.parquet`. Needs pyarrow.

A shard's files are written beside their names, synced, renamed, and their folders synced, before the ledger says that it
is done. What a crash leaves is removed by the next start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, get_args

from ...checks import optional_import
from ...errors import ConfigError
from ...tables import arrow_table, schema_of
from .. import crash_points
from ..compression import Compression
from ..errors import StoreError, StoreMissingError
from ..files import cannot_write, create, make_folder, rename_durably, sync_folder, write_all
from ..records import Commit
from .answer_rows import FETCHES, TABLES, Table, does_not_fit, read_spool
from .protocol import Place, Problem

if TYPE_CHECKING:
    import pyarrow


# [flinks_async.bulk.stores.parquet_file] A Parquet file of one table: written whole or not at all, and looked at again. Needs pyarrow.


Pages = Literal["zstd", "snappy", "none"]

_ROWS: Final = 50_000
"""Rows that become row groups together, about."""


class ParquetStore:
    """Answers as Parquet files.

    Args:
        compression: of their pages (default `zstd`).

    Raises:
        ConfigError: pyarrow is not installed, or there is no such compression.
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
        elif not place.parts.is_dir():
            raise StoreMissingError(str(place.parts))
        self._place = place

    def recover(self, receipts: Mapping[int, Mapping[str, Any]]) -> Iterable[Commit]:
        newest = max((receipt["version"] for receipt in receipts.values()), default=VERSION)
        if newest > VERSION:
            raise StoreError(
                f"{self._here.parts} was written by a newer version of flinks-async (tables {newest}); update it"
            )
        known = {file["name"] for receipt in receipts.values() for file in receipt["files"]}
        _remove([path for path in self._own_files() if self._name(path) not in known])
        return ()

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        files: list[NewFile] = []
        answers = 0
        try:
            for table in TABLES:
                path = self._here.parts / table.name / f"{commit.shard.id:06d}-{self._here.job[:8]}.parquet"
                files.append(NewFile(path, table, self._here.job, self._compression))
            for batch in read_spool(spool, self.spool_compression, commit.shard, batch=_ROWS):
                answers += len(batch.fetches)
                for table, file in zip(TABLES, files, strict=True):
                    if rows := batch.of(table):
                        file.write(arrow_table(table, rows, partial(does_not_fit, file.path, table)))
            if answers != commit.written.lines:
                raise StoreError(f"{spool} has {answers:,} answers, not {commit.written.lines:,}")
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
            for table, file in zip(TABLES, commit.receipt["files"], strict=True):
                known.add(file["name"])
                expected = {**file, "rows": commit.written.lines} if table is FETCHES else file
                what = problem_of(self._here.parts / file["name"], expected, self._here.job)
                if what is not None:
                    yield Problem(file["name"], what, commit.shard.id)
        for path in self._own_files():
            if self._name(path) not in known:
                yield Problem(self._name(path), "the ledger does not know it")

    def missing(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        own = {self._name(path) for path in self._own_files()}
        for commit in commits:
            names = [file["name"] for file in commit.receipt["files"]]
            if gone := next((name for name in names if name not in own), None):
                yield Problem(str(self._here.parts / gone), "it is missing", commit.shard.id)

    def lines(self, commits: Iterable[Commit]) -> NoReturn:
        raise StoreError(
            "answers in Parquet files cannot be exported as they came, since tables do not have all of it. Query "
            f"{self._here.parts}, or run the job with a store of JSONL"
        )

    def purge(self) -> list[str]:
        removed = []
        for table in TABLES:
            folder = self._here.parts / table.name
            paths = [path for path in self._own_files() if path.parent == folder]
            _remove(paths)
            if paths:
                removed.append(f"{len(paths):,} files in {folder}")
            with suppress(OSError):  # something else is in it
                folder.rmdir()
        with suppress(OSError):
            self._here.parts.rmdir()
        return removed

    def close(self) -> None:
        self._place = None

    @property
    def _here(self) -> Place:
        if self._place is None:
            raise StoreError("the store is not open")
        return self._place

    def _name(self, path: Path) -> str:
        return path.relative_to(self._here.parts).as_posix()

    def _own_files(self) -> Iterator[Path]:
        """All files that bear this job's id, unfinished ones too."""
        name = rf"\d{{6,}}-{self._here.job[:8]}\.parquet"
        own = re.compile(rf"{name}|\.{name}\.tmp")
        for table in TABLES:
            folder = self._here.parts / table.name
            yield from (path for path in sorted(folder.glob("*")) if own.fullmatch(path.name))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
        except OSError as error:
            raise cannot_write(path, error) from None


VERSION: Final = 1
"""Of the tables. A later version may add columns, and nothing else."""

_JOB: Final = b"flinks_async.job"

_VERSION: Final = b"flinks_async.version"

_CHUNK: Final = 1024 * 1024


class NewFile:
    """A file of one table, while it grows. Until it is whole, its name begins with a point: readers of the folder pass
    it over.

    Args:
        path: that it will have.
        table: whose rows it holds.
        job: id, for the file's metadata.
        compression: of its pages.

    Raises:
        OSError: from all methods but `abandon`; the disk is full or broken.
    """

    def __init__(self, path: Path, table: Table, job: str, compression: str) -> None:
        from pyarrow.parquet import ParquetWriter

        self.path = path
        self._rows = 0
        self._beside = beside(path)
        self._sink = _Sink(self._beside)
        about = {_JOB: job.encode(), _VERSION: b"%d" % VERSION}
        self._writer = ParquetWriter(self._sink, schema_of(table).with_metadata(about), compression=compression)

    def write(self, rows: pyarrow.Table) -> None:
        """Adds a row group."""
        self._writer.write_table(rows, row_group_size=rows.num_rows)
        self._rows += rows.num_rows

    def finish(self) -> None:
        """Writes the end, and makes it durable."""
        self._writer.close()
        self._sink.sync()

    def rename(self) -> None:
        """Gives it its name."""
        rename_durably(self._beside, self.path)

    def receipt(self) -> dict[str, Any]:
        """What `problem_of` compares with."""
        return {"rows": self._rows, "size": self._sink.size, "sha256": self._sink.sha256}

    def abandon(self) -> None:
        """Removes it, unless it has its name already."""
        self._sink.abandon()
        with suppress(Exception):
            self._writer.close()
        with suppress(OSError):
            self._beside.unlink(missing_ok=True)


class _Sink:
    """A new file that Arrow writes to, in many small pieces. It knows its checksum."""

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
        if self._file is not None:  # else it is abandoned, and Arrow must not fail once more
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
        """Does nothing: what is held back is written by `sync`."""

    def close(self) -> None:
        """Does nothing: Arrow calls it, and the file is still to be synced."""

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


def beside(path: Path) -> Path:
    """Where a file is until it is whole."""
    return path.with_name(f".{path.name}.tmp")


def problem_of(path: Path, receipt: Mapping[str, Any], job: str) -> str | None:
    """What is wrong with a file, in words."""
    from pyarrow.parquet import read_metadata

    try:
        size = path.stat().st_size
        if size != receipt["size"]:
            return f"it has {size:,} bytes instead of {receipt['size']:,}"
        digest = sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != receipt["sha256"]:
            return "its content was changed"
        found = read_metadata(path)
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror or 'it is damaged'}"
    if found.num_rows != receipt["rows"]:
        return f"it has {found.num_rows:,} rows instead of {receipt['rows']:,}"
    return None if found.metadata.get(_JOB) == job.encode() else "it belongs to another job"
