"""A file of answers while it grows. Blocking; the job calls it in its writing thread."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from . import crash_points
from .compression import Compression, compressor
from .disk import cannot_write, create, write_all
from .errors import StoreError
from .records import Written


class Spool:
    """Lines in, one synced file out.

    Args:
        path: of the file; what is there is overwritten.
        compression: of the file, as one gzip member or Zstandard frame.
    """

    def __init__(self, path: Path, compression: Compression) -> None:
        self.path = path
        self._lines = 0
        self._size = 0
        self._hash = sha256()
        self._compressor = compressor(compression)
        self._broken: StoreError | None = None
        try:
            self._file: int | None = create(path)
        except OSError as error:
            raise cannot_write(path, error) from None

    def write(self, lines: Sequence[bytes]) -> None:
        """Adds lines, each with its line end.

        Raises:
            StoreError: the disk is full or broken.
        """
        self._lines += len(lines)
        self._add(self._compressor.compress(b"".join(lines)))

    def finish(self) -> Written:
        """Writes what is left and makes it durable.

        Raises:
            StoreError: the disk is full or broken.
        """
        assert self._file is not None
        self._add(self._compressor.finish())
        crash_points.reach("spool written")
        file, self._file = self._file, None
        try:
            try:
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        crash_points.reach("spool synced")
        return Written(self._lines, self._size, self._hash.hexdigest())

    def abandon(self) -> None:
        """Removes the file, unless it is finished."""
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):
                os.close(file)
            with suppress(OSError):
                self.path.unlink()

    def _add(self, data: bytes) -> None:
        if self._broken is not None:  # a part of what was to be written is missing
            raise self._broken
        if not data:
            return
        assert self._file is not None
        try:
            write_all(self._file, data)
        except OSError as error:
            self._broken = cannot_write(self.path, error)
        if self._broken is not None:
            raise self._broken
        self._size += len(data)
        self._hash.update(data)
