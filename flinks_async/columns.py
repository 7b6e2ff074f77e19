"""Answers as Arrow tables, for pandas, polars, DuckDB and Parquet. Needs the extra `arrow`.

The schema is explicit and never depends on the data:

- Amounts are `decimal128(38, 18)`: 20 digits before the point and 18 after, which holds every amount of money and every
  double that was written out in full. What does not fit is refused, never rounded.
- Days are `date32`, points in time `timestamp('us', 'UTC')` with their exact text beside them, the rest is text.
- `answer` is the position of the answer. With `(key, answer)` pairs, each row also has the key. The other columns are
  those of `rows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve, frozen

from .checks import flag
from .errors import ConfigError, WrongTypeError
from .models import PartnerAccessResponse
from .rows import ACCOUNTS, HOLDERS, TRANSACTIONS, Column, Row, Table, flatten

if TYPE_CHECKING:
    import pyarrow

PRECISION: Final = 38
SCALE: Final = 18

CHUNK: Final = 65_536
"""Rows that are kept as Python objects before they become Arrow."""

_KEY: Final = Column("key", "text")
_ANSWER: Final = Column("answer", "position")


@frozen
class Tables:
    """The same answers from three sides, as `pyarrow.Table`s."""

    accounts: pyarrow.Table
    transactions: pyarrow.Table
    holders: pyarrow.Table


def schemas(*, keyed: bool = False) -> Tables:
    """The schemas of the three tables, in their places."""
    flag("keyed", keyed)
    return Tables(*(schema_of(_numbered(table, keyed)) for table in (ACCOUNTS, TRANSACTIONS, HOLDERS)))


def schema_of(table: Table) -> pyarrow.Schema:
    """The Arrow schema of a table.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    pa = _pyarrow()
    types = {
        "text": pa.string(),
        "json": pa.string(),
        "amount": pa.decimal128(PRECISION, SCALE),
        "integer": pa.int64(),
        "position": pa.int64(),
        "flag": pa.bool_(),
        "date": pa.date32(),
        "instant": pa.timestamp("us", "UTC"),
    }
    return pa.schema([(column.name, types[column.type]) for column in table.columns])


def to_arrow(
    answers: Iterable[PartnerAccessResponse] | Iterable[tuple[str, PartnerAccessResponse]],
    *,
    keyed: bool | None = None,
) -> Tables:
    """Accounts, transactions and holders of some answers.

    Args:
        answers: answers, or pairs of a key and an answer; a key is a text of yours, such as a customer's number.
        keyed: whether they are pairs; found out from the first one if it is not given. Without any, there is no key.

    Raises:
        ConfigError: pyarrow is not installed, or some are pairs and others are not; or `keyed` is neither.
        WrongTypeError: a value does not fit its column; `path` names the place, beginning with the answer's position.
    """
    if keyed is not None:
        flag("keyed", keyed)
    _pyarrow()
    iterator = iter(answers)
    first = next(iterator, None)
    if keyed is None:
        keyed = isinstance(first, tuple)
    accounts, transactions, holders = (_Builder(_numbered(table, keyed)) for table in (ACCOUNTS, TRANSACTIONS, HOLDERS))
    for position, item in enumerate(() if first is None else chain([first], iterator)):
        before, answer = _split(item, keyed, position)
        for rows in flatten(answer, (*before, position), item=position):
            accounts.add(rows.account)
            transactions.extend(rows.transactions)
            if rows.holder is not None:
                holders.add(rows.holder)
    return Tables(accounts.finish(), transactions.finish(), holders.finish())


def _numbered(table: Table, keyed: bool) -> Table:
    return evolve(table, columns=((_KEY, _ANSWER) if keyed else (_ANSWER,)) + table.columns)


def _split(item: Any, keyed: bool, position: int) -> tuple[Row, PartnerAccessResponse]:
    if not keyed:
        return (), item
    if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[0], str):
        raise ConfigError(f"item {position} is not a pair of a text and an answer, as the first one is")
    return (item[0],), item[1]


class _Builder:
    """Rows in, one table out; a chunk of rows at a time becomes Arrow."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._schema = schema_of(table)
        self._rows: list[Row] = []
        self._tables: list[Any] = []

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) >= CHUNK:
            self._flush()

    def extend(self, rows: Iterable[Row]) -> None:
        self._rows.extend(rows)
        if len(self._rows) >= CHUNK:
            self._flush()

    def finish(self) -> Any:
        if self._rows:
            self._flush()
        return _pyarrow().concat_tables(self._tables) if self._tables else self._schema.empty_table()

    def _flush(self) -> None:
        pa = _pyarrow()
        arrays = []
        for number, values in enumerate(zip(*self._rows, strict=True)):
            array = array_of(values, self._schema[number].type)
            if array is None:
                self._refuse(number, values)
            arrays.append(array)
        self._tables.append(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []

    def _refuse(self, number: int, values: Row) -> None:
        type_ = self._schema[number].type
        row = next(row for row, value in zip(self._rows, values, strict=True) if array_of([value], type_) is None)
        answer = row[self._table.columns.index(_ANSWER)]
        path = f"[{answer}].{self._table.path(self._table.columns[number], row)}"
        raise WrongTypeError(f"{path}: the value does not fit a column of type {type_}", path=path)


def array_of(values: Sequence[Any], type_: pyarrow.DataType) -> pyarrow.Array | pyarrow.ChunkedArray | None:
    """Values as Arrow, in chunks if they are more than 2 GB of text; None if one does not fit. The error of Arrow is not
    kept, since it shows the value.

    Raises:
        MemoryError: there is no room for them.
    """
    pa = _pyarrow()
    try:
        return pa.array(values, type_)
    except MemoryError:
        raise
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, ValueError):
        return None


def _pyarrow() -> Any:
    try:
        import pyarrow

        return pyarrow
    except ImportError:
        pass
    raise ConfigError("Arrow tables need pyarrow: pip install 'flinks-async[arrow]'")
