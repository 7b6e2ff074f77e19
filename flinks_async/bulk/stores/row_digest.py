"""A checksum of rows that does not depend on their order: databases give them back in an order of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Final

import msgspec

from ...rows import Row, Table

_SIZE: Final = 16
_encode: Final = msgspec.msgpack.encode


class RowDigest:
    """The sum, modulo 2^128, of the BLAKE2b digests of all rows. A null counts as nothing, so columns may be added.

    Attributes:
        rows: how many were added, by table.
    """

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self._sum = 0

    def add(self, table: Table, rows: Iterable[Row]) -> None:
        """Adds rows, with their values as they are stored: texts, integers, nulls."""
        names = table.names
        empty = blake2b(digest_size=_SIZE, person=table.name.encode())
        total = count = 0
        for row in rows:
            digest = empty.copy()
            digest.update(_encode(_named(names, row)))
            total += int.from_bytes(digest.digest(), "big")
            count += 1
        self.rows[table.name] += count
        self._sum = (self._sum + total) % (1 << 8 * _SIZE)

    def hexdigest(self) -> str:
        return f"{self._sum:0{2 * _SIZE}x}"


def _named(names: tuple[str, ...], row: Row) -> dict[str, Any]:
    return {name: value for name, value in zip(names, row, strict=True) if value is not None}
