"""Answers as flat rows of three tables: accounts, transactions, holders. The one list of their columns.

`columns` makes Arrow tables of them, and the stores of bulk jobs write them.

- `detail`, `account` and `transaction` are positions, from 0, by which the tables can be joined whatever Flinks left out.
- `extra` is the JSON text of the unknown fields of a row's objects, or null.

An entry of an answer without accounts has no rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from attrs import evolve, frozen

from .checks import flag, optional_import
from .errors import ConfigError, WrongTypeError
from .models import (
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
    unknown_fields,
)
from .schema import SCHEMA, Field, FieldKind

__all__ = ["Tables", "schemas", "to_arrow"]

if TYPE_CHECKING:
    import pyarrow


# [flinks_async.columns] Answers as Arrow tables, for pandas, polars, DuckDB and Parquet. Needs the extra `arrow`.
#
# The schema is explicit and never depends on the data:
#
# - Amounts are `decimal128(38, 18)`: 20 digits before the point and 18 after, which holds every amount of money and every
#   double that was written out in full. What does not fit is refused, never rounded.
# - Days are `date32`, points in time `timestamp('us', 'UTC')` with their exact text beside them, the rest is text.
# - `answer` is the position of the answer. With `(key, answer)` pairs, each row also has the key. The other columns are
#   those of `rows`.


ColumnType = Literal["text", "amount", "integer", "flag", "date", "instant", "position", "json"]
"""What its values are in Python: `str`, `Decimal`, `int`, `bool`, `date`, aware `datetime` in UTC, `int` that is never
null, `str`. All others may be None."""

Row = tuple[Any, ...]

to_json: Final = msgspec.json.Encoder(decimal_format="number").encode

_TYPES: Final[dict[FieldKind, ColumnType]] = {
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
        name: of the column.
        type: see `ColumnType`.
        wire: where its value stands below the row's object; after a `^`, below the entry of `GetAccountsDetail`.
    """

    name: str
    type: ColumnType
    wire: str = ""


@frozen
class Table:
    """One table.

    Attributes:
        name: of the table.
        columns: in their order. Those of type `position` identify a row.
        within: where a row's object stands below its account.
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
        """Where a value stands in its answer, such as `GetAccountsDetail[0].Accounts[2].Balance.Current`.

        Args:
            row: with a value for each column.
        """
        at: Mapping[str, Any] = dict(zip(self.names, row, strict=True))
        if "detail" not in at:
            return column.wire or column.name
        path = f"GetAccountsDetail[{at['detail']}]"
        if column.wire.startswith("^"):
            return f"{path}.{column.wire[1:]}"
        return f"{path}.Accounts[{at['account']}]{self.within.format(**at)}.{column.wire or column.name}"


def _scalars(cls: type[Model]) -> list[Field]:
    return [field for field in SCHEMA[cls] if field.kind in _TYPES]


def _columns_of(cls: type[Model], prefix: str = "", wire: str = "") -> list[Column]:
    return [Column(f"{prefix}{f.name}", _TYPES[f.kind], f"{wire}{f.wire}") for f in _scalars(cls)]


def _getter(cls: type[Model]) -> Any:
    return attrgetter(*(field.name for field in _scalars(cls)))


_PLACE: Final = (Column("detail", "position"), Column("account", "position"))

_ENTRY: Final = ("login_id", "customer_id", "institution", "institution_name", "institution_id", "tag")

_ENTRY_FIELDS: Final = {field.name: field for field in SCHEMA[AccountsDetail]}

ACCOUNTS: Final = Table(
    "accounts",
    (
        *_PLACE,
        Column("request_id", "text"),
        *(Column(name, _TYPES[_ENTRY_FIELDS[name].kind], f"^{_ENTRY_FIELDS[name].wire}") for name in _ENTRY),
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
        *_PLACE,
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
        *_PLACE,
        Column("account_id", "text"),
        *_columns_of(Holder),
        *_columns_of(Address, "address_", "Address."),
        Column("extra", "json"),
    ),
    ".Holder",
)

_of_account, _of_balance, _of_transaction = _getter(Account), _getter(Balance), _getter(Transaction)

_of_holder, _of_address, _of_entry = _getter(Holder), _getter(Address), attrgetter(*_ENTRY)

_NO_BALANCE: Final = (None,) * len(_scalars(Balance))

_NO_ADDRESS: Final = (None,) * len(_scalars(Address))


@frozen
class AccountRows:
    """The rows that one account has."""

    account: Row
    transactions: list[Row]
    holder: Row | None


def flatten(answer: PartnerAccessResponse, before: Row = (), *, item: int = 0) -> Iterator[AccountRows]:
    """The rows of an answer, account by account.

    Args:
        before: values that stand before the columns of each row.
        item: a number for the answer, for the error.

    Raises:
        ConfigError: a user's hook has put something else in the place of one of our classes.
    """
    _check(answer, PartnerAccessResponse, item)
    # Each is made once and shared by the rows that repeat it: it may be large, and the accounts many.
    answer_extra = extra_of(answer)
    for detail_number, detail in enumerate(answer.details):
        _check(detail, AccountsDetail, item)
        detail_extra = extra_of(detail, Login=detail.login)
        for account_number, account in enumerate(detail.accounts):
            _check(account, Account, item)
            for move in account.transactions:
                _check(move, Transaction, item)
            place = (*before, detail_number, account_number)
            yield AccountRows(
                (*_account_row(place, answer, detail, account), detail_extra, answer_extra),
                _transaction_rows(place, account),
                None if account.holder is None else _holder_row(place, account, account.holder),
            )


def extra_of(model: Model, **inner: Model | None) -> str | None:
    """The unknown fields of an object as JSON, and those of some objects in it by their wire names; None without any."""
    extra = dict(unknown_fields(model))
    for wire, child in inner.items():
        if child is not None and (unknown := unknown_fields(child)):
            extra[wire] = dict(unknown)
    return to_json(extra).decode() if extra else None


def _check(value: object, cls: type[Model], item: int) -> None:
    if not isinstance(value, cls):
        raise ConfigError(f"item {item} holds a {type(value).__name__} where a {cls.__name__} is expected")


def _account_row(place: Row, answer: PartnerAccessResponse, detail: AccountsDetail, account: Account) -> Row:
    """Without the last two columns, which are the same for all accounts of an entry."""
    balance, login = account.balance, detail.login
    refresh = Timestamp("") if login is None or login.last_refresh is None else login.last_refresh
    return (
        *place,
        detail.request_id if answer.request_id is None else answer.request_id,
        *_of_entry(detail),
        refresh.value,
        refresh.text or None,
        *_of_account(account),
        *(_NO_BALANCE if balance is None else _of_balance(balance)),
        extra_of(account, Balance=balance),
    )


def _transaction_rows(place: Row, account: Account) -> list[Row]:
    id_, currency = account.id, account.currency
    return [
        (*place, number, id_, currency, *_of_transaction(move), extra_of(move))
        for number, move in enumerate(account.transactions)
    ]


def _holder_row(place: Row, account: Account, holder: Holder) -> Row:
    address = holder.address
    return (
        *place,
        account.id,
        *_of_holder(holder),
        *(_NO_ADDRESS if address is None else _of_address(address)),
        extra_of(holder, Address=address),
    )


PRECISION: Final = 38

SCALE: Final = 18

CHUNK: Final = 65_536
"""Rows that are kept as Python objects before they become Arrow."""

_KEY: Final = Column("key", "text")

_ANSWER: Final = Column("answer", "position")


def schemas(*, keyed: bool = False) -> Tables:
    """The schemas of the three tables, in their places."""
    flag("keyed", keyed)
    return Tables(*(schema_of(_numbered(table, keyed)) for table in (ACCOUNTS, TRANSACTIONS, HOLDERS)))


def schema_of(table: Table) -> pyarrow.Schema:
    """The Arrow schema of a table.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    pa = optional_import("pyarrow", extra="arrow")
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
    optional_import("pyarrow", extra="arrow")
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
        if not self._tables:
            return self._schema.empty_table()
        return optional_import("pyarrow", extra="arrow").concat_tables(self._tables)

    def _flush(self) -> None:
        pa = optional_import("pyarrow", extra="arrow")
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
    pa = optional_import("pyarrow", extra="arrow")
    try:
        return pa.array(values, type_)
    except MemoryError:
        raise
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, ValueError):
        return None
