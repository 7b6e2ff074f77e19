"""The shards of a scan until their duplicates are known."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Final

from ..disk import cannot_write, create
from ..records import Shard

_RECORD: Final = Struct(">QQQQ16s")


class DraftShards:
    """Shards on the disk, and 12 bytes of memory for each.

    Args:
        path: of the file, which is made new; `close` closes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._firsts = array("Q")
        self._duplicates = array("I")
        try:
            self._file = open(create(path), "wb")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise cannot_write(path, error) from None

    def add(self, first: int, last: int, offset: int, sendable: int, digest: str) -> None:
        """The next shard.

        Raises:
            StoreError: the disk is full.
        """
        self._firsts.append(first)
        self._duplicates.append(0)
        try:
            self._file.write(_RECORD.pack(first, last, offset, sendable, bytes.fromhex(digest)))
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def duplicate(self, line: int) -> None:
        """One of the tokens that were added is not to be fetched."""
        self._duplicates[bisect_right(self._firsts, line) - 1] += 1

    def finish(self) -> Iterator[Shard]:
        """All shards, in their order.

        Raises:
            StoreError: the disk is full.
        """
        try:
            self._file.close()
            with open(self._path, "rb") as file:
                for id_, duplicates in enumerate(self._duplicates):
                    first, last, offset, sendable, digest = _RECORD.unpack(file.read(_RECORD.size))
                    yield Shard(id_, first, last, offset, sendable - duplicates, digest.hex())
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def __len__(self) -> int:
        return len(self._firsts)

    def close(self) -> None:
        self._file.close()
