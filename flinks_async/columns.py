"""Answers as Arrow tables, for pandas, polars, DuckDB and Parquet. Needs the extra `arrow`.

The schema is explicit and never depends on the data:

- Amounts are `decimal128(38, 18)`: 20 digits before the point and 18 after, which holds every amount of money and every
  double that was written out in full. What does not fit is refused, never rounded.
- Days are `date32`, points in time `timestamp('us', 'UTC')` with their exact text beside them, the rest is text.
- `extra` is the JSON text of the unknown fields of a row's objects, or null.
- `answer`, `detail`, `account` and `transaction` are positions, by which the tables can be joined whatever Flinks left
  out. With `(key, answer)` pairs, each row also has the key.

An entry without accounts has no rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from attrs import frozen

from .codec.plan import PLAN, Field, Kind
from .errors import ConfigError, WrongTypeError
from .models import (
    Account,
    AccountsDetail,
    Address,
    Balance,
    Holder,
    Model,
    PartnerAccessResponse,
    Timestamp,
    Transaction,
)

if TYPE_CHECKING:
    import pyarrow

PRECISION: Final = 38
SCALE: Final = 18

CHUNK: Final = 65_536
"""Rows that are kept as Python objects before they become Arrow."""

_TYPES: Final = {
    Kind.TEXT: "text",
    Kind.AMOUNT: "amount",
    Kind.INTEGER: "integer",
    Kind.FLAG: "flag",
    Kind.DATE: "date",
}
_to_json = msgspec.json.Encoder(decimal_format="number").encode


@frozen
class Tables:
    """The same answers from three sides, as `pyarrow.Table`s."""

    accounts: pyarrow.Table
    transactions: pyarrow.Table
    holders: pyarrow.Table


@frozen
class _Column:
    name: str
    type: str
    wire: str = ""


def _columns_of(cls: type[Model], prefix: str = "", wire: str = "") -> list[_Column]:
    return [_Column(f"{prefix}{f.name}", _TYPES[f.kind], f"{wire}{f.wire}") for f in _scalars(cls)]


def _scalars(cls: type[Model]) -> list[Field]:
    return [field for field in PLAN[cls] if field.kind in _TYPES]


def _getter(cls: type[Model]) -> Any:
    return attrgetter(*(field.name for field in _scalars(cls)))


_PLACE: Final = [_Column(name, "position") for name in ("answer", "detail", "account")]
_ENTRY: Final = ("login_id", "customer_id", "institution", "institution_name", "institution_id", "tag")
_ENTRY_FIELDS: Final = {field.name: field for field in PLAN[AccountsDetail]}

_ACCOUNTS: Final = [
    *_PLACE,
    _Column("request_id", "text"),
    *(_Column(name, _TYPES[_ENTRY_FIELDS[name].kind], f"^{_ENTRY_FIELDS[name].wire}") for name in _ENTRY),
    _Column("last_refresh", "instant", "^Login.LastRefresh"),
    _Column("last_refresh_text", "text", "^Login.LastRefresh"),
    *_columns_of(Account),
    *_columns_of(Balance, "balance_", "Balance."),
    _Column("extra", "text"),
    _Column("detail_extra", "text"),
    _Column("answer_extra", "text"),
]
_TRANSACTIONS: Final = [
    *_PLACE,
    _Column("transaction", "position"),
    _Column("account_id", "text"),
    _Column("currency", "text"),
    *_columns_of(Transaction),
    _Column("extra", "text"),
]
_HOLDERS: Final = [
    *_PLACE,
    _Column("account_id", "text"),
    *_columns_of(Holder),
    *_columns_of(Address, "address_", "Address."),
    _Column("extra", "text"),
]
_KEY: Final = _Column("key", "text")

_of_account, _of_balance, _of_transaction = _getter(Account), _getter(Balance), _getter(Transaction)
_of_holder, _of_address, _of_entry = _getter(Holder), _getter(Address), attrgetter(*_ENTRY)
_NO_BALANCE: Final = (None,) * len(_scalars(Balance))
_NO_ADDRESS: Final = (None,) * len(_scalars(Address))


def schemas(*, keyed: bool = False) -> Tables:
    """The schemas of the three tables, in their places."""
    return Tables(*(_schema(columns, keyed) for columns in (_ACCOUNTS, _TRANSACTIONS, _HOLDERS)))


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
        ConfigError: pyarrow is not installed, or some are pairs and others are not.
        WrongTypeError: a value does not fit its column; `path` names the place, beginning with the answer's position.
    """
    _pyarrow()
    iterator = iter(answers)
    first = next(iterator, None)
    if keyed is None:
        keyed = isinstance(first, tuple)
    accounts = _Builder(_ACCOUNTS, keyed, "")
    transactions = _Builder(_TRANSACTIONS, keyed, ".Transactions[{transaction}]")
    holders = _Builder(_HOLDERS, keyed, ".Holder")
    for position, item in enumerate(() if first is None else chain([first], iterator)):
        before, answer = _split(item, keyed, position)
        for detail_number, detail in enumerate(answer.details):
            _check(detail, AccountsDetail, position)
            for account_number, account in enumerate(detail.accounts):
                _check(account, Account, position)
                place = (*before, position, detail_number, account_number)
                accounts.add(_account_row(place, answer, detail, account))
                transactions.extend(_transaction_rows(place, account))
                if account.holder is not None:
                    holders.add(_holder_row(place, account, account.holder))
    return Tables(accounts.finish(), transactions.finish(), holders.finish())


def _split(item: Any, keyed: bool, position: int) -> tuple[tuple[Any, ...], PartnerAccessResponse]:
    key: tuple[Any, ...] = ()
    if keyed:
        if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[0], str):
            raise ConfigError(f"item {position} is not a pair of a text and an answer, as the first one is")
        key, item = (item[0],), item[1]
    _check(item, PartnerAccessResponse, position)
    return key, item


def _check(value: object, cls: type[Model], position: int) -> None:
    if not isinstance(value, cls):
        raise ConfigError(f"item {position} holds a {type(value).__name__} where a {cls.__name__} is expected")


def _account_row(
    place: tuple[Any, ...], answer: PartnerAccessResponse, detail: AccountsDetail, account: Account
) -> tuple[Any, ...]:
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
        _extra(account, Balance=balance),
        _extra(detail, Login=login),
        _extra(answer),
    )


def _transaction_rows(place: tuple[Any, ...], account: Account) -> Iterator[tuple[Any, ...]]:
    for number, move in enumerate(account.transactions):
        _check(move, Transaction, place[-3])
        yield (*place, number, account.id, account.currency, *_of_transaction(move), _extra(move))


def _holder_row(place: tuple[Any, ...], account: Account, holder: Holder) -> tuple[Any, ...]:
    address = holder.address
    return (
        *place,
        account.id,
        *_of_holder(holder),
        *(_NO_ADDRESS if address is None else _of_address(address)),
        _extra(holder, Address=address),
    )


def _extra(model: Model, **inner: Model | None) -> str | None:
    extra = dict(model.extra)
    for wire, child in inner.items():
        if child is not None and child.extra:
            extra[wire] = dict(child.extra)
    return _to_json(extra).decode() if extra else None


class _Builder:
    """Rows in, one table out; a chunk of rows at a time becomes Arrow."""

    def __init__(self, columns: list[_Column], keyed: bool, place: str) -> None:
        self._place = place
        self._columns = [_KEY, *columns] if keyed else columns
        self._schema = _schema(columns, keyed)
        self._rows: list[tuple[Any, ...]] = []
        self._batches: list[Any] = []

    def add(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) >= CHUNK:
            self._flush()

    def extend(self, rows: Iterable[tuple[Any, ...]]) -> None:
        self._rows.extend(rows)
        if len(self._rows) >= CHUNK:
            self._flush()

    def finish(self) -> Any:
        if self._rows:
            self._flush()
        return _pyarrow().Table.from_batches(self._batches, schema=self._schema)

    def _flush(self) -> None:
        pa = _pyarrow()
        arrays = []
        for number, values in enumerate(zip(*self._rows, strict=True)):
            array = _array(pa, values, self._schema[number].type)
            if array is None:
                self._refuse(pa, number, values)
            arrays.append(array)
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._rows = []

    def _refuse(self, pa: Any, number: int, values: tuple[Any, ...]) -> None:
        type_ = self._schema[number].type
        row = next(row for row, value in zip(self._rows, values, strict=True) if _array(pa, [value], type_) is None)
        path = self._path(row, self._columns[number])
        raise WrongTypeError(f"{path}: the value does not fit a column of type {type_}", path=path)

    def _path(self, row: tuple[Any, ...], column: _Column) -> str:
        at = {c.name: row[number] for number, c in enumerate(self._columns) if c.type == "position"}
        path = f"[{at['answer']}].GetAccountsDetail[{at['detail']}]"
        if column.wire.startswith("^"):
            return f"{path}.{column.wire[1:]}"
        path += f".Accounts[{at['account']}]{self._place.format(**at)}"
        return f"{path}.{column.wire or column.name}"


def _array(pa: Any, values: Any, type_: Any) -> Any:
    """None if a value does not fit. The error of Arrow is not kept, since it shows the value."""
    try:
        return pa.array(values, type_)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, ValueError):
        return None


def _schema(columns: list[_Column], keyed: bool) -> Any:
    pa = _pyarrow()
    types = {
        "text": pa.string(),
        "amount": pa.decimal128(PRECISION, SCALE),
        "integer": pa.int64(),
        "position": pa.int64(),
        "flag": pa.bool_(),
        "date": pa.date32(),
        "instant": pa.timestamp("us", "UTC"),
    }
    return pa.schema([(column.name, types[column.type]) for column in ([_KEY, *columns] if keyed else columns)])


def _pyarrow() -> Any:
    try:
        import pyarrow

        return pyarrow
    except ImportError:
        pass
    raise ConfigError("Arrow tables need pyarrow: pip install 'flinks-async[arrow]'")
