"""Answers as the rows of three tables: accounts, transactions and holders. This is the only list of their columns.

`to_arrow` makes Arrow tables, for pandas, polars, DuckDB and Parquet. It needs the extra `arrow`. The stores of bulk jobs
write the same rows.

- `detail`, `account` and `transaction` are positions, counted from 0. You can join the tables by them, even if Flinks sends
  no ids. In Arrow tables, `answer` is the position of the answer; with `(key, answer)` pairs, each row also has the key.
- `extra` is the JSON text of the unknown fields of a row's objects, or null.
- An entry of `GetAccountsDetail` without accounts has no rows.

The Arrow schema never depends on the data:

- Amounts are `decimal128(38, 18)`, with 20 digits before the point and 18 after. This holds every amount of money, and every
  double written out in full. A value that does not fit is refused, never rounded.
- Dates are `date32`, points in time are `timestamp('us', 'UTC')` with their exact text beside them, and everything else is text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from attrs import evolve, frozen

from .checks import flag, optional_import
from .errors import ConfigError, WrongTypeError
from .models import (
    SCHEMA,
    Account,
    AccountsDetail,
    Address,
    Balance,
    Holder,
    Model,
    PartnerAccessResponse,
    Tables,
    Timestamp,
    Transaction,
)
from .schema import Field, FieldKind, unknown_fields

__all__ = ["Tables", "schemas", "to_arrow"]

if TYPE_CHECKING:
    import pyarrow


ColumnType = Literal["text", "amount", "integer", "flag", "date", "instant", "position", "json"]
"""The Python types of the values, in this order: `str`, `Decimal`, `int`, `bool`, `date`, aware `datetime` in UTC, `int`,
`str`. All may be None, except `position`."""

Row = tuple[Any, ...]

to_json: Final = msgspec.json.Encoder(decimal_format="number").encode

COLUMN_TYPES: Final[dict[FieldKind, ColumnType]] = {
    FieldKind.TEXT: "text",
    FieldKind.AMOUNT: "amount",
    FieldKind.INTEGER: "integer",
    FieldKind.FLAG: "flag",
    FieldKind.DATE: "date",
}


@frozen
class Column:
    """One column.

    Attributes:
        name: the column's name.
        type: the type of its values.
        wire: the path of its value below the row's object, or after a `^` below the entry of `GetAccountsDetail`.
    """

    name: str
    type: ColumnType
    wire: str = ""


@frozen
class Table:
    """One table.

    Attributes:
        name: the table's name.
        columns: its columns, in their order. The columns of type `position` identify a row.
        within: the path of a row's object below its account.
    """

    name: str
    columns: tuple[Column, ...]
    within: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns that identify a row."""
        return tuple(column.name for column in self.columns if column.type == "position")

    def path(self, column: Column, row: Row) -> str:
        """The path of a value in its answer, such as `GetAccountsDetail[0].Accounts[2].Balance.Current`."""
        at: Mapping[str, Any] = dict(zip(self.names, row, strict=True))
        if "detail" not in at:
            return column.wire or column.name
        path = f"GetAccountsDetail[{at['detail']}]"
        if column.wire.startswith("^"):
            return f"{path}.{column.wire[1:]}"
        return f"{path}.Accounts[{at['account']}]{self.within.format(**at)}.{column.wire or column.name}"


def _scalars(cls: type[Model]) -> list[Field]:
    return [field for field in SCHEMA[cls] if field.kind in COLUMN_TYPES]


def _columns_of(cls: type[Model], prefix: str = "", wire: str = "") -> list[Column]:
    return [Column(f"{prefix}{f.name}", COLUMN_TYPES[f.kind], f"{wire}{f.wire}") for f in _scalars(cls)]


def _getter(cls: type[Model]) -> Any:
    return attrgetter(*(field.name for field in _scalars(cls)))


_POSITIONS: Final = (Column("detail", "position"), Column("account", "position"))

_ENTRY: Final = ("login_id", "customer_id", "institution", "institution_name", "institution_id", "tag")

_ENTRY_FIELDS: Final = {field.name: field for field in SCHEMA[AccountsDetail]}

ACCOUNTS: Final = Table(
    "accounts",
    (
        *_POSITIONS,
        Column("request_id", "text"),
        *(Column(name, COLUMN_TYPES[_ENTRY_FIELDS[name].kind], f"^{_ENTRY_FIELDS[name].wire}") for name in _ENTRY),
        Column("last_refresh", "instant", "^Login.LastRefresh"),
        Column("last_refresh_text", "text", "^Login.LastRefresh"),
        *_columns_of(Account),
        *_columns_of(Balance, "balance_", "Balance."),
        Column("extra", "json"),
        Column("detail_extra", "json"),
        Column("answer_extra", "json"),
    ),
)

TRANSACTIONS: Final = Table(
    "transactions",
    (
        *_POSITIONS,
        Column("transaction", "position"),
        Column("account_id", "text"),
        Column("currency", "text"),
        *_columns_of(Transaction),
        Column("extra", "json"),
    ),
    ".Transactions[{transaction}]",
)

HOLDERS: Final = Table(
    "holders",
    (
        *_POSITIONS,
        Column("account_id", "text"),
        *_columns_of(Holder),
        *_columns_of(Address, "address_", "Address."),
        Column("extra", "json"),
    ),
    ".Holder",
)

_account_values, _balance_values, _transaction_values = _getter(Account), _getter(Balance), _getter(Transaction)
_holder_values, _address_values, _entry_values = _getter(Holder), _getter(Address), attrgetter(*_ENTRY)

_NO_BALANCE: Final = (None,) * len(_scalars(Balance))
_NO_ADDRESS: Final = (None,) * len(_scalars(Address))


@frozen
class AccountRows:
    """The rows of one account."""

    account: Row
    transactions: list[Row]
    holder: Row | None


def flatten(answer: PartnerAccessResponse, before: Row = (), *, item: int = 0) -> Iterator[AccountRows]:
    """The rows of an answer, account by account.

    Args:
        before: values that each row begins with, before its own columns.
        item: the position of the answer, for the error.

    Raises:
        ConfigError: a user's hook has replaced one of the models by an object of another class.
    """
    _check(answer, PartnerAccessResponse, item)
    # All rows of an answer share these texts, because they may be large and the accounts many.
    answer_extra = extra_of(answer)
    for detail_number, detail in enumerate(answer.details):
        _check(detail, AccountsDetail, item)
        detail_extra = extra_of(detail, Login=detail.login)
        for account_number, account in enumerate(detail.accounts):
            _check(account, Account, item)
            for transaction in account.transactions:
                _check(transaction, Transaction, item)
            place = (*before, detail_number, account_number)
            yield AccountRows(
                (*_account_row(place, answer, detail, account), detail_extra, answer_extra),
                _transaction_rows(place, account),
                None if account.holder is None else _holder_row(place, account, account.holder),
            )


def extra_of(model: Model, **inner: Model | None) -> str | None:
    """The unknown fields of an object as JSON text, or None if there are none.

    Args:
        inner: objects inside of it, by wire name. Their unknown fields are included.
    """
    extra = dict(unknown_fields(model))
    for wire, child in inner.items():
        if child is not None and (unknown := unknown_fields(child)):
            extra[wire] = dict(unknown)
    return to_json(extra).decode() if extra else None


def _check(value: object, cls: type[Model], item: int) -> None:
    if not isinstance(value, cls):
        raise ConfigError(f"item {item} holds a {type(value).__name__} where a {cls.__name__} is expected")


def _account_row(place: Row, answer: PartnerAccessResponse, detail: AccountsDetail, account: Account) -> Row:
    """A row without its last two columns, which are the same for all accounts of an entry."""
    balance, login = account.balance, detail.login
    refresh = Timestamp("") if login is None or login.last_refresh is None else login.last_refresh
    return (
        *place,
        detail.request_id if answer.request_id is None else answer.request_id,
        *_entry_values(detail),
        refresh.value,
        refresh.text or None,
        *_account_values(account),
        *(_NO_BALANCE if balance is None else _balance_values(balance)),
        extra_of(account, Balance=balance),
    )


def _transaction_rows(place: Row, account: Account) -> list[Row]:
    id_, currency = account.id, account.currency
    return [
        (*place, number, id_, currency, *_transaction_values(transaction), extra_of(transaction))
        for number, transaction in enumerate(account.transactions)
    ]


def _holder_row(place: Row, account: Account, holder: Holder) -> Row:
    address = holder.address
    return (
        *place,
        account.id,
        *_holder_values(holder),
        *(_NO_ADDRESS if address is None else _address_values(address)),
        extra_of(holder, Address=address),
    )


PRECISION: Final = 38
SCALE: Final = 18

CHUNK: Final = 65_536
"""Rows that are collected as Python objects before they are converted to Arrow."""

_KEY: Final = Column("key", "text")
_ANSWER: Final = Column("answer", "position")


def schemas(*, keyed: bool = False) -> Tables:
    """The Arrow schemas of the three tables."""
    flag("keyed", keyed)
    return Tables(*(schema_of(_numbered(table, keyed)) for table in (ACCOUNTS, TRANSACTIONS, HOLDERS)))


def schema_of(table: Table) -> pyarrow.Schema:
    """The Arrow schema of a table.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    pa = optional_import("pyarrow", extra="arrow")
    return pa.schema([(column.name, arrow_types()[column.type]) for column in table.columns])


@cache
def arrow_types() -> dict[ColumnType, pyarrow.DataType]:
    """The Arrow types of the columns."""
    pa = optional_import("pyarrow", extra="arrow")
    return {
        "text": pa.string(),
        "json": pa.string(),
        "amount": pa.decimal128(PRECISION, SCALE),
        "integer": pa.int64(),
        "position": pa.int64(),
        "flag": pa.bool_(),
        "date": pa.date32(),
        "instant": pa.timestamp("us", "UTC"),
    }


def to_arrow(
    answers: Iterable[PartnerAccessResponse] | Iterable[tuple[str, PartnerAccessResponse]],
    *,
    keyed: bool | None = None,
) -> Tables:
    """Accounts, transactions and holders of answers, as Arrow tables.

    Args:
        answers: answers, or pairs of a key and an answer. A key is a text of yours, such as a customer number.
        keyed: whether `answers` are pairs. By default the first one decides; without any, the tables have no key.

    Raises:
        ConfigError: pyarrow is not installed, only some of the answers are pairs, or `keyed` is not a bool.
        WrongTypeError: a value does not fit its column. `path` is its place and begins with the answer's position.
    """
    if keyed is not None:
        flag("keyed", keyed)
    optional_import("pyarrow", extra="arrow")
    iterator = iter(answers)
    first = next(iterator, None)
    if keyed is None:
        keyed = isinstance(first, tuple)
    return tables_of(() if first is None else chain([first], iterator), keyed)


def tables_of(answers: Iterable[Any], keyed: bool, start: int = 0) -> Tables:
    """Answers as tables; Python objects are converted to Arrow in chunks of about `CHUNK` rows.

    Args:
        start: the position of the first answer.
    """
    tables = [_numbered(table, keyed) for table in (ACCOUNTS, TRANSACTIONS, HOLDERS)]
    rows: list[list[Row]] = [[], [], []]
    chunks: list[list[pyarrow.Table]] = [[], [], []]

    def convert(size: int) -> None:
        for number, table in enumerate(tables):
            if len(rows[number]) >= size:
                chunks[number].append(arrow_table(table, rows[number], partial(_does_not_fit, table)))
                rows[number] = []

    for position, item in enumerate(answers, start):
        before, answer = _split(item, keyed, position)
        for found in flatten(answer, (*before, position), item=position):
            rows[0].append(found.account)
            rows[1].extend(found.transactions)
            rows[2].extend(() if found.holder is None else (found.holder,))
        convert(CHUNK)
    convert(1)
    concat = optional_import("pyarrow", extra="arrow").concat_tables
    return Tables(*(concat(c) if c else schema_of(t).empty_table() for c, t in zip(chunks, tables, strict=True)))


def _numbered(table: Table, keyed: bool) -> Table:
    return evolve(table, columns=((_KEY, _ANSWER) if keyed else (_ANSWER,)) + table.columns)


def _split(item: Any, keyed: bool, position: int) -> tuple[Row, PartnerAccessResponse]:
    if not keyed:
        return (), item
    if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[0], str):
        raise ConfigError(f"item {position} is not a pair of a text and an answer, but the first item is")
    return (item[0],), item[1]


def _does_not_fit(table: Table, column: Column, row: Row, type_: str) -> WrongTypeError:
    path = f"[{row[table.columns.index(_ANSWER)]}].{table.path(column, row)}"
    return WrongTypeError(f"{path}: the value does not fit a column of type {type_}", path=path)


def arrow_table(
    table: Table, rows: Sequence[Row], does_not_fit: Callable[[Column, Row, str], Exception]
) -> pyarrow.Table:
    """Rows as Arrow.

    Args:
        does_not_fit: makes the error for a value that its column cannot hold, of the column, the row and the Arrow type.
    """
    schema = schema_of(table)
    if not rows:
        return schema.empty_table()
    arrays = []
    for number, values in enumerate(zip(*rows, strict=True)):
        type_ = schema[number].type
        array = array_of(values, type_)
        if array is None:
            row = next(row for row in rows if array_of([row[number]], type_) is None)
            raise does_not_fit(table.columns[number], row, str(type_))
        arrays.append(array)
    return optional_import("pyarrow", extra="arrow").Table.from_arrays(arrays, schema=schema)


def array_of(values: Sequence[Any], type_: pyarrow.DataType) -> pyarrow.Array | pyarrow.ChunkedArray | None:
    """Values as an Arrow array, in chunks if their text exceeds 2 GB, or None if one of them does not fit.

    Arrow's own error is dropped, because it shows the value.

    Raises:
        MemoryError: there is not enough memory.
    """
    pa = optional_import("pyarrow", extra="arrow")
    try:
        return pa.array(values, type_)
    except MemoryError:
        raise
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, ValueError):
        return None
