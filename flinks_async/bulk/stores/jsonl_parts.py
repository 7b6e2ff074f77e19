"""Answers as JSONL, one file for each shard: the spool itself, renamed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..compression import Compression
from ..disk import cannot_write, make_folder, rename_durably, sync_folder
from ..errors import StoreError, StoreMissingError
from ..records import Commit
from .check import SUFFIXES, check_compression, compare
from .lines import read_lines
from .protocol import Place, Problem


class JSONLParts:
    """Files `parts/answers-SHARD-JOB.jsonl` in the job's directory, whole from the moment they are there.

    A receipt is `{"file": name, "size": bytes, "sha256": of them}`.

    Args:
        compression: of each file (default `none`).

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
        elif not place.parts.is_dir():
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
                yield Problem(str(path), "no shard of the ledger knows it; the next run of the job removes it")

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
        if self._place is None:
            raise StoreError("the store is not open")
        return self._place

    def _name(self, shard: str) -> str:
        return f"answers-{shard}-{self._opened.job[:8]}.jsonl{SUFFIXES[self.spool_compression]}"

    def _own_files(self) -> list[Path]:
        """Files that bear this job's id, whether the ledger knows them or not."""
        pattern = re.compile(self._name(r"\d{6,}").replace(".", r"\."))
        parts = self._opened.parts
        try:
            return sorted(path for path in parts.iterdir() if pattern.fullmatch(path.name) and path.is_file())
        except OSError as error:
            raise cannot_write(parts, error) from None
