"""Answers as Parquet files: one for each table and shard, `{table}/{shard}-{job}.parquet`. Needs pyarrow.

The files of a shard are written beside its spool, synced, and moved to their place, before the ledger marks the shard as
done. The next start removes files that a crash has left.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, get_args

import msgspec

from ...checks import choice, kind, optional_import
from ...errors import ConfigError
from ...tables import Table, schema_of
from ..compression import Compression
from ..errors import StoreError
from ..files import cannot_write, crash_points, create, newer_version, sync_file
from ..objects import Readable
from ..records import Commit, Written
from ..spool import checksum, difference
from .answer_rows import FETCHES, TABLES, cannot_export
from .answer_tables import read_tables
from .protocol import Problem, foreign_receipt, receipt_as
from .shard_files import ShardFiles

__all__ = ["ParquetStore"]

if TYPE_CHECKING:
    import pyarrow

Pages = Literal["zstd", "snappy", "none"]

VERSION: Final = 1
"""Version of the tables. A newer version may only add columns."""

_ROWS: Final = 50_000
"""Rows after which a row group ends. It may have more, because the rows of a block of answers are not split."""

_SIZE: Final = 64 * 1024 * 1024
"""Bytes of rows after which a row group ends."""

_JOB: Final = b"flinks_async.job"
_VERSION: Final = b"flinks_async.version"


class ParquetStore(ShardFiles):
    """Answers as Parquet files.

    Args:
        compression: compression of the pages (default `zstd`).
        url: as for `JSONLParts` (default: the folder `parts` of the job's directory).
        fetched_on: the day of the job, `YYYY-MM-DD`. Files are then in `{table}/fetched_on={day}/`, a Hive partition, which
            readers of several jobs show as a column.

    Raises:
        ConfigError: pyarrow or the library for object storage is not installed, the compression is unknown, the URL cannot
            be used, or the day is none.
    """

    spool_compression: Compression = "none"
    keeps_spools = False

    def __init__(
        self, compression: Pages = "zstd", url: str | None = None, *, fetched_on: str | dt.date | None = None
    ) -> None:
        super().__init__(url)
        optional_import("pyarrow", extra="arrow")
        choice("compression", compression, get_args(Pages))
        self._compression = compression
        self._partition = {} if fetched_on is None else {"fetched_on": _day(fetched_on)}
        self.folders = tuple("/".join([t.name, *map("=".join, self._partition.items())]) for t in TABLES)

    def describe(self) -> dict[str, Any]:
        return self._described({"kind": "parquet", "compression": self._compression, **self._partition})

    def recover(self, receipts: Mapping[int, Mapping[str, Any]]) -> Iterable[Commit]:
        newest = max((receipt_as(_Files, receipt).version for receipt in receipts.values()), default=VERSION)
        if newest > VERSION:
            raise StoreError(newer_version(self._objects, newest))
        return super().recover(receipts)

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        name = f"{self._name(f'{commit.shard.id:06d}')}.parquet"
        names = [f"{folder}/{name}" for folder in self.folders]
        files = [_NewFile(spool.with_name(f"{spool.name}.{table.name}"), table) for table in TABLES]
        try:
            for file in files:
                file.open(self._opened.job, self._compression)
            with closing(read_tables(spool, commit, str(self._objects))) as blocks:
                for tables in blocks:
                    for table, rows, file in zip(TABLES, tables, files, strict=True):
                        if self._opened.gets_rows(table.name):
                            file.write(rows)
            facts = [{"name": name, **file.finish()} for name, file in zip(names, files, strict=True)]
            crash_points.reach("tables synced")
            self._put(names, [file.path for file in files])
        except OSError as error:
            problem = cannot_write(spool.parent, error)
        else:
            return {"version": VERSION, "files": facts}
        finally:
            for file in files:
                file.close()
        raise problem

    def lines(self, commits: Iterable[Commit]) -> NoReturn:
        raise cannot_export(self._objects)

    @property
    def _own(self) -> str:
        return self._name(r"\d{6,}", "[0-9a-f]{8}") + r"\.parquet"

    def files(self, receipt: Mapping[str, Any]) -> Sequence[str]:
        """In the order of the tables."""
        files = receipt_as(_Files, receipt).files
        if len(files) != len(TABLES):
            raise foreign_receipt("names files that are not of this job")
        return [self._file(file.name, folder) for file, folder in zip(files, self.folders, strict=True)]

    def compare(self, commit: Commit) -> Iterator[Problem]:
        files = receipt_as(_Files, commit.receipt).files
        for table, name, file in zip(TABLES, self.files(commit.receipt), files, strict=True):
            path = self._objects.at(name)
            rows = commit.written.lines if table is FETCHES else file.rows
            what = difference(path, Written(file.rows, file.size, file.sha256)) or self._difference_in_rows(path, rows)
            if what is not None:
                yield Problem(str(path), what, commit.shard.id)

    def _difference_in_rows(self, path: Readable, rows: int) -> str | None:
        from pyarrow.parquet import read_metadata

        try:
            with path.open("rb") as file:
                found = read_metadata(file)
        except OSError as error:
            return f"it cannot be read: {error.strerror or 'it is damaged'}"
        if found.num_rows != rows:
            return f"it has {found.num_rows:,} rows, but {rows:,} were written"
        return None if found.metadata.get(_JOB) == self._opened.job.encode() else "it belongs to another job"


def _day(value: str | dt.date) -> str:
    kind("fetched_on", value, str, dt.date)
    try:
        return dt.date.fromisoformat(str(value)).isoformat()
    except ValueError:
        pass
    raise ConfigError(f"fetched_on must be a day such as 2026-11-28, not {str(value)!r}")


class _File(msgspec.Struct):
    name: str
    rows: int
    size: int
    sha256: str


class _Files(msgspec.Struct):
    """A receipt."""

    version: int
    files: list[_File]


class _NewFile:
    """A file of one table that is being written. All methods but `close` raise OSError if the disk is full or broken.

    Args:
        path: the file.
        table: the table whose rows it holds.
    """

    def __init__(self, path: Path, table: Table) -> None:
        self.path = path
        self._table = table
        self._rows = 0
        self._group: list[pyarrow.Table] = []

    def open(self, job: str, compression: str) -> None:
        """Creates the file.

        Args:
            job: the job's id, for the file's metadata.
            compression: compression of the pages.
        """
        from pyarrow import OSFile
        from pyarrow.parquet import ParquetWriter

        os.close(create(self.path))  # with private permissions, which it keeps
        self._sink = OSFile(os.fsencode(self.path), "wb")
        about = {_JOB: job.encode(), _VERSION: b"%d" % VERSION}
        self._writer = ParquetWriter(self._sink, schema_of(self._table).with_metadata(about), compression=compression)

    def write(self, rows: pyarrow.Table) -> None:
        """Adds rows to the current row group."""
        self._group.append(rows)
        self._rows += rows.num_rows
        if sum(r.num_rows for r in self._group) >= _ROWS or sum(r.nbytes for r in self._group) >= _SIZE:
            self._write_group()

    def finish(self) -> dict[str, Any]:
        """Writes the end of the file and syncs it. Returns what `verify` compares with the file."""
        self._write_group()
        self._writer.close()
        self._sink.close()
        sync_file(self.path)
        size, sha256 = checksum(self.path)
        return {"rows": self._rows, "size": size, "sha256": sha256}

    def _write_group(self) -> None:
        rows = optional_import("pyarrow", extra="arrow").concat_tables(self._group) if self._group else None
        if rows:
            self._writer.write_table(rows, row_group_size=rows.num_rows)
        self._group = []

    def close(self) -> None:
        """Removes the file, unless it was moved."""
        with suppress(Exception):  # it may not have been opened
            self._writer.close()
        with suppress(Exception):
            self._sink.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
