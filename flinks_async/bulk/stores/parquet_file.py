"""A Parquet file of one table: written whole or not at all, and looked at again. Needs pyarrow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...columns import schema_of
from ..disk import create, rename_durably, write_all
from .rows import Table

if TYPE_CHECKING:
    import pyarrow

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
