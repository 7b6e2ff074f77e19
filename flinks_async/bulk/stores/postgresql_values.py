"""What PostgreSQL cannot hold, in a form in which it can, without loss.

- A text cannot have the character U+0000. Its column has U+FFFD instead, and `extra` has the exact text, under
  `flinks_async.text` and the column's name.
- `jsonb` cannot have that character either, nor numbers beyond those of `numeric`. Such JSON becomes a JSON string that
  holds its text: `extra #>> '{}'` gives it back.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Final

import msgspec

from ...codec.parse import decode_any
from ...rows import Row, Table, to_json
from .rows import does_not_fit

EXACT: Final = "flinks_async.text"

_INT64: Final = range(-(2**63), 2**63)
_SUSPECT: Final = re.compile(r"\\u0000|[0-9][eE][+-]?[0-9]{3}|[0-9]{1000}")
_MOST_DIGITS: Final = 10_000
"""Before or after the point: PostgreSQL has room for 131,072 and 16,383."""


def storable(where: str, table: Table, row: Row) -> Row:
    """A row as it is stored.

    Args:
        where: the database, for the error.

    Raises:
        StoreError: a value does not fit its column.
    """
    exact: dict[str, str] = {}
    values = list(row)
    for number, column in enumerate(table.columns):
        value = values[number]
        if value is None:
            continue
        if column.type == "text":
            if "\0" in value:
                exact[column.name] = value
                values[number] = value.replace("\0", "\ufffd")
        elif column.type == "json":
            values[number] = _json(value)
        elif column.type == "integer" and value not in _INT64:
            raise does_not_fit(where, table, column, row, "bigint")
    if exact:
        number = table.names.index("extra")
        extra: dict[str, Any] = {} if row[number] is None else decode_any(row[number].encode())
        values[number] = _json(to_json({**extra, EXACT: exact}).decode())
    return tuple(values)


def _json(text: str) -> str:
    if _SUSPECT.search(text) and not _fits(decode_any(text.encode())):
        return msgspec.json.encode(text).decode()
    return text


def _fits(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" not in value
    if isinstance(value, dict):
        return all("\0" not in key and _fits(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_fits, value))
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        _, digits, exponent = Decimal(value).as_tuple()
        return isinstance(exponent, int) and len(digits) + abs(exponent) <= _MOST_DIGITS
    return True
