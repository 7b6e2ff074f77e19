"""Answers as Parquet files: one for each table and shard, `parts/{table}/{shard}-{job}.parquet`. Needs pyarrow.

A shard's files are written beside their names, synced, renamed, and their folders synced, before the ledger says that it
is done. What a crash leaves is removed by the next start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, get_args

from ...errors import ConfigError
from .. import crash_points
from ..compression import Compression
from ..disk import cannot_write, make_folder, sync_folder
from ..errors import StoreError, StoreMissingError
from ..records import Commit
from .arrow import arrow_table, library
from .parquet_file import VERSION, NewFile, problem_of
from .protocol import Place, Problem
from .rows import FETCHES, TABLES, read_spool

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
        library("arrow")
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
                        file.write(arrow_table(file.path, table, rows))
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
