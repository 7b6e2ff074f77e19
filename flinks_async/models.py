"""The data that users receive: frozen attrs classes with the fields that Flinks documents, in snake_case.

Every field may be None, because both missing fields and nulls are normal. Unknown fields are kept in `extra`, so that
`to_dict()` and `to_json()` return every field and value that the server sent. `repr` masks personal data.

`flinks_async.schema` has their base class and their names on the wire.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, get_args, get_origin, get_type_hints

from attrs import evolve, field, frozen

from .checks import counted
from .schema import (
    DEFAULT_WIRE_STATE,
    Field,
    FieldKind,
    Missing,
    Model,
    Record,
    Timestamp,
    Wire,
    maker,
    named,
    unknown_count,
    unknown_fields,
    wire_fields,
)
from .secret import MASK

if TYPE_CHECKING:
    from attrs import frozen as model
    from pyarrow import Table
else:
    from .schema import model

    Table = Any  # so that tools such as cattrs can read the annotations where pyarrow is missing

__all__ = [
    "Account",
    "AccountsDetail",
    "Address",
    "Balance",
    "Holder",
    "Link",
    "Login",
    "Meta",
    "Missing",
    "Model",
    "PartnerAccessResponse",
    "Tables",
    "Timestamp",
    "Transaction",
    "wire_fields",
]

_MAX_ID_IN_REPR = 64


def masked(value: object) -> str:
    return "None" if value is None else MASK


def item_count(values: object) -> str:
    """The `repr` of an array: the number of its items."""
    return f"<{len(values)}>" if isinstance(values, (tuple, range)) else MASK


def _row_count(table: Any) -> str:
    return f"<{counted(table.num_rows, 'row')}>"


@model
class Transaction(Model):
    """One transaction of an account. `debit` and `credit` are positive amounts, or None."""

    date: dt.date | None = field(default=None, repr=masked)
    code: str | None = field(default=None, repr=masked)
    description: str | None = field(default=None, repr=masked)
    debit: Decimal | None = field(default=None, repr=masked)
    credit: Decimal | None = field(default=None, repr=masked)
    balance: Decimal | None = field(default=None, repr=masked)
    id: str | None = None
    _wire: Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state", repr=False)


@model
class Balance(Model):
    """The balance of an account, in the account's currency."""

    available: Decimal | None = field(default=None, repr=masked)
    current: Decimal | None = field(default=None, repr=masked)
    limit: Decimal | None = field(default=None, repr=masked)
    _wire: Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state", repr=False)


@model
class Address(Model):
    """A holder's address."""

    civic_address: str | None = field(default=None, repr=masked)
    city: str | None = field(default=None, repr=masked)
    province: str | None = None
    postal_code: str | None = field(default=None, repr=masked)
    po_box: str | None = field(default=None, repr=masked, metadata=named("POBox"))
    country: str | None = None
    _wire: Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state", repr=False)


@model
class Holder(Model):
    """The person or company that holds an account."""

    name: str | None = field(default=None, repr=masked)
    email: str | None = field(default=None, repr=masked)
    phone_number: str | None = field(default=None, repr=masked)
    address: Address | None = None
    _wire: Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state", repr=False)


@model
class Account(Model):
    """One bank account. `category`, `type`, `currency` and `account_type` are open sets: expect new values."""

    transactions: tuple[Transaction, ...] = field(default=(), repr=item_count)
    balance: Balance | None = None
    holder: Holder | None = None
    id: str | None = None
    title: str | None = field(default=None, repr=masked)
    account_number: str | None = field(default=None, repr=masked)
    last_four_digits: str | None = field(default=None, repr=masked)
    transit_number: str | None = field(default=None, repr=masked)
    institution_number: str | None = None
    category: str | None = None
    type: str | None = None
    currency: str | None = None
    account_type: str | None = None
    overdraft_limit: Decimal | None = field(default=None, repr=masked)
    eft_eligible_ratio: Decimal | None = field(default=None, repr=masked)
    e_transfer_eligible_ratio: Decimal | None = field(default=None, repr=masked)
    _wire: Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state", repr=False)


@model
class Login(Model):
    """The bank login that the data came through."""

    username: str | None = field(default=None, repr=masked)
    type: str | None = None
    id: str | None = field(default=None, repr=masked)
    is_scheduled_refresh: bool | None = None
    last_refresh: Timestamp | None = field(default=None, repr=masked)
    _wire: Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state", repr=False)


@model
class Link(Model):
    """A related resource that the answer points to. This package does not follow it."""

    rel: str | None = field(default=None, metadata=named("rel"))
    href: str | None = field(default=None, repr=masked, metadata=named("href"))
    example: str | None = field(default=None, repr=masked, metadata=named("example"))
    _wire: Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state", repr=False)


@model
class AccountsDetail(Model):
    """One entry of `GetAccountsDetail`.

    `http_status_code` is the status inside the JSON. It may differ from the status of the HTTP response (`Meta.status`).
    """

    http_status_code: int | None = None
    login_id: str | None = field(default=None, repr=masked)
    customer_id: str | None = field(default=None, repr=masked)
    accounts: tuple[Account, ...] = field(default=(), repr=item_count)
    login: Login | None = None
    institution: str | None = None
    institution_name: str | None = None
    institution_id: int | None = None
    links: tuple[Link, ...] = field(default=(), repr=item_count)
    tag: str | None = field(default=None, repr=masked)
    request_id: str | None = None
    _wire: Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state", repr=False)


@frozen(weakref_slot=False, eq=False, repr=False)
class Meta(Record):
    """How an answer was obtained.

    Attributes:
        status: the HTTP status.
        attempts: the number of attempts, including the successful one.
        queue_time: seconds in the queue, summed over all attempts.
        wire_time: seconds from sending to the last byte, summed over all attempts.
    """

    status: int = 200
    attempts: int = 1
    queue_time: float = 0.0
    wire_time: float = 0.0


new_meta = maker(Meta)

NO_META = Meta()


@frozen(eq=False, repr=False)
class Tables(Record):
    """Answers as three `pyarrow.Table`s (see `flinks_async.tables`)."""

    accounts: Table = field(repr=_row_count)
    transactions: Table = field(repr=_row_count)
    holders: Table = field(repr=_row_count)


@model
class PartnerAccessResponse(Model):
    """The answer to one access token.

    Attributes:
        get_accounts_detail: a tuple, one object or None, as the server sent it. `details` and `accounts` hide the difference.
        request_id: Flinks' id of this request.
        meta: how the answer was obtained. It is not part of `to_dict()`, and `==` ignores it.
    """

    get_accounts_detail: tuple[AccountsDetail, ...] | AccountsDetail | None = None
    request_id: str | None = None
    _wire: Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state", repr=False)
    meta: Meta = NO_META

    @property
    def details(self) -> tuple[AccountsDetail, ...]:
        """The entries of `GetAccountsDetail`, as a tuple."""
        detail = self.get_accounts_detail
        if detail is None:
            return ()
        return detail if isinstance(detail, tuple) else (detail,)

    @property
    def accounts(self) -> tuple[Account, ...]:
        """The accounts of all entries."""
        details = self.details
        if len(details) == 1:
            return details[0].accounts
        return tuple(account for detail in details for account in detail.accounts)

    def with_meta(self, meta: Meta) -> PartnerAccessResponse:
        """A copy with another `meta`."""
        return evolve(self, meta=meta)

    def __repr__(self) -> str:
        """One short line, however large the answer is."""
        # A user's hook may have put objects of any class into an answer. They are not counted.
        accounts = [account for detail in self.details for account in _items(detail, "accounts")]
        transactions = sum(len(_items(account, "transactions")) for account in accounts)
        shown = [_shortened(repr(self.request_id)), counted(len(accounts), "account")]
        shown.append(counted(transactions, "transaction"))
        if unknown := unknown_fields(self):
            shown.append(unknown_count(unknown))
        return f"<{type(self).__name__} request_id={', '.join(shown)}>"

    def to_arrow(self) -> Tables:
        """Accounts, transactions and holders as Arrow tables (see `flinks_async.tables.to_arrow`)."""
        from .tables import to_arrow

        return to_arrow([self])


def _items(owner: object, name: str) -> tuple[Any, ...] | range:
    values = owner._peek(name) if isinstance(owner, Model) else getattr(owner, name, ())
    return values if isinstance(values, (tuple, range)) else ()


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_ID_IN_REPR else f"{text[: _MAX_ID_IN_REPR - 1]}…"


KINDS: Final = {
    str: FieldKind.TEXT,
    Decimal: FieldKind.AMOUNT,
    int: FieldKind.INTEGER,
    bool: FieldKind.FLAG,
    dt.date: FieldKind.DATE,
    Timestamp: FieldKind.TIMESTAMP,
}
"""The types of values that are not objects; users may have a hook for each."""


def _field(name: str, wire: str, hint: Any) -> Field:
    options = [hint] if get_origin(hint) is tuple else [o for o in get_args(hint) or (hint,) if o is not NoneType]
    arrays = [get_args(option)[0] for option in options if get_origin(option) is tuple]
    if arrays:
        return Field(name, wire, FieldKind.ARRAY if len(options) == 1 else FieldKind.ONE_OR_MANY, arrays[0])
    (only,) = options
    if only in KINDS:
        return Field(name, wire, KINDS[only])
    return Field(name, wire, FieldKind.OBJECT, only)


def _fields_of(cls: type[Model]) -> tuple[Field, ...]:
    """The documented fields of a class, in the order of the class."""
    hints = get_type_hints(cls)
    return tuple(_field(name, wire, hints[name]) for name, wire in wire_fields(cls))


MODELS: tuple[type[Model], ...] = (
    PartnerAccessResponse,
    AccountsDetail,
    Account,
    Transaction,
    Balance,
    Holder,
    Address,
    Login,
    Link,
)

SCHEMA: Final[dict[type[Model], tuple[Field, ...]]] = {cls: _fields_of(cls) for cls in MODELS}
"""The documented fields of each class, in the order of the class."""
