"""One rate limit for several processes of a machine.

The state of GCRA is one number, the theoretical arrival time of the next request (see `limits.rate`). It is in a file that
every process maps, and locks for the few microseconds of a reservation. All processes have the same clock, because the
monotonic clock counts from the start of the machine. A process that dies loses its lock and at most one reservation.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ...limits.rate import GCRA
from ..files import cannot_write, create, write_all

_NUMBER: Final = struct.Struct("<d")


class SharedRate(GCRA):
    """A `RateLimiter` whose state is in a file that `make` has made.

    Args:
        path: of the file.
        rate, burst: as for `GCRA`, the same in all processes.

    Raises:
        OSError: the file is gone.
    """

    def __init__(self, path: Path, rate: float, burst: int | None = None) -> None:
        super().__init__(rate, burst)
        self._file = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        self._memory = mmap.mmap(self._file, _NUMBER.size)

    def reserve(self, now: float, /) -> float:
        with _locked(self._file):
            (self._next,) = _NUMBER.unpack_from(self._memory)
            wait = super().reserve(now)
            _NUMBER.pack_into(self._memory, 0, self._next)
        return wait

    def close(self) -> None:
        self._memory.close()
        os.close(self._file)

    @staticmethod
    def make(path: Path) -> None:
        """Makes the file, with the state before the first request.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            file = create(path)
            try:
                write_all(file, _NUMBER.pack(float("-inf")))
            finally:
                os.close(file)
        except OSError as error:
            raise cannot_write(path, error) from None


if sys.platform == "win32":
    import msvcrt

    @contextmanager
    def _locked(file: int) -> Iterator[None]:
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_LOCK, 1)
        try:
            yield
        finally:
            os.lseek(file, 0, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    @contextmanager
    def _locked(file: int) -> Iterator[None]:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
