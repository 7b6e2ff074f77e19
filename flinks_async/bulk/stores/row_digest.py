"""A checksum of rows that does not depend on their order, nor on how a database formats their values."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final

import msgspec

from ...codec.parse import EXACT, decode_any
from ...tables import ColumnType, Row, Table

_SIZE: Final = 16
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_encode: Final = msgspec.msgpack.encode


class RowDigest:
    """The sum, modulo 2^128, of the BLAKE2b digests of all rows. Nulls are left out, so that columns may be added later.

    Attributes:
        rows: number of rows by table.
    """

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self._sum = 0

    def add(self, table: Table, rows: Iterable[Row]) -> None:
        """Adds rows with their values as they are stored: texts, integers, nulls."""
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


def comparable(table: Table, rows: Iterable[Row]) -> Iterator[Row]:
    """Rows in a form that all databases agree on: amounts without trailing zeros, dates as ISO 8601, points in time as
    microseconds since 1970, JSON with sorted keys; other values are unchanged."""
    converters = [(number, _CONVERT[c.type]) for number, c in enumerate(table.columns) if c.type in _CONVERT]
    for row in rows:
        values = list(row)
        for number, convert in converters:
            if values[number] is not None:
                values[number] = convert(values[number])
        yield tuple(values)


def _amount(value: Decimal) -> str:
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _instant(value: dt.datetime | int) -> int:
    return value if isinstance(value, int) else (value - _EPOCH) // _MICROSECOND


def _json(text: str) -> Any:
    return _sorted(decode_any(text.encode()))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        number = Decimal(value).normalize(EXACT)
        return ["number", str(number) if number else "0"]  # PostgreSQL has no negative zero
    return value


_CONVERT: Final[dict[ColumnType, Callable[[Any], Any]]] = {
    "amount": _amount,
    "date": dt.date.isoformat,
    "instant": _instant,
    "json": _json,
}
