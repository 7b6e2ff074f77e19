"""The data that users receive: frozen attrs classes with the fields that Flinks documents, in snake_case.

Every field may be None, because both missing fields and nulls are normal. Unknown fields are kept in `extra`, so that
`to_dict()` and `to_json()` return every field and value that the server sent. `repr` masks personal data.

The wire name of a field is its name in PascalCase, or the one in its metadata. `wire_fields()` is the only table of
wire names; `flinks_async.schema` adds the types.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from copy import deepcopy
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from attrs import Attribute, evolve, field, fields, frozen

from .secret import MASK

if TYPE_CHECKING:
    from pyarrow import Table
else:
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

Missing = Literal["omit", "null"]
"""How `to_dict()` and `to_json()` write fields that have no value and that the server did not send."""

_WIRE = "flinks_wire_name"

_MAX_ID_IN_REPR = 64


def _masked(value: object) -> str:
    return "None" if value is None else MASK


def _count(values: object) -> str:
    """The `repr` of an array: the number of its items."""
    return f"<{len(values)}>" if isinstance(values, (tuple, range)) else MASK


def _unknown_count(extra: Mapping[str, Any]) -> str:
    """The `repr` of unknown fields. Their names are not shown, because a server may put anything into them."""
    return _counted(len(extra), "unknown field")


def _items(owner: object, name: str) -> tuple[Any, ...] | range:
    values = owner._peek(name) if isinstance(owner, Model) else getattr(owner, name, ())
    return values if isinstance(values, (tuple, range)) else ()


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_ID_IN_REPR else f"{text[: _MAX_ID_IN_REPR - 1]}…"


def _row_count(table: Any) -> str:
    return f"<{_counted(table.num_rows, 'row')}>"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@frozen(weakref_slot=False)
class WireState:  # noqa: PLW1641 - unhashable, because `extra` is
    """How one object looked on the wire, in addition to the values of its fields.

    Attributes:
        extra: the unknown fields, by wire name. Numbers with a fraction are `Decimal`.
        absent: wire names of documented fields that the server did not send. It sent all others, perhaps as null.
        nulls: wire names of arrays that the server sent as null. The attribute is an empty tuple.
    """

    extra: Mapping[str, Any] = field(default=MappingProxyType({}), repr=_unknown_count)
    absent: frozenset[str] = frozenset()
    nulls: frozenset[str] = frozenset()

    def __eq__(self, other: object) -> bool:  # our own, for the same reason as in `Model`
        if not isinstance(other, WireState):
            return NotImplemented
        return (self.extra, self.absent, self.nulls) == (other.extra, other.absent, other.nulls)

    def __reduce__(self) -> tuple[Any, ...]:  # mappingproxy does not pickle
        return WireState, (dict(self.extra), self.absent, self.nulls)


DEFAULT_WIRE_STATE = WireState()
"""The server sent every documented field, no array as null, and nothing else."""


# A dict if there is nothing but unknown fields to remember: the garbage collector does not track a dict of plain values,
# and a field that Flinks adds may be in every transaction.
_Wire = WireState | dict[str, Any]


def _unknown_fields_of(wire: _Wire) -> Mapping[str, Any]:
    return wire if isinstance(wire, dict) else wire.extra


def unknown_fields(model: Model) -> Mapping[str, Any]:
    """`model.extra` without the copy. Internal: do not change the result."""
    return _unknown_fields_of(model._wire)


class Model:
    """The base of the models: unknown fields, and the way back to JSON."""

    __slots__ = ()

    _wire: _Wire

    @property
    def wire_state(self) -> WireState:
        """How the object looked on the wire."""
        wire = self._wire
        if isinstance(wire, dict):
            return WireState(self.extra)
        return evolve(wire, extra=self.extra) if wire.extra else wire

    @property
    def extra(self) -> Mapping[str, Any]:
        """The unknown fields, by wire name: a read-only copy."""
        return MappingProxyType(deepcopy(dict(unknown_fields(self))))

    def to_dict(self, *, missing: Missing = "omit") -> dict[str, Any]:
        """The object as the server sent it: wire names, exact `Decimal`s, dates and timestamps as their wire text.

        The result is a copy. You may change it.

        Args:
            missing: "omit" leaves out the documented fields that the server did not send; "null" makes them `None`.
        """
        wire_state = DEFAULT_WIRE_STATE if isinstance(self._wire, dict) else self._wire
        result: dict[str, Any] = {}
        for name, wire, default in _table(self.__class__):
            value = getattr(self, name)
            # Only a value that is still the default can stand for an absent field or a null: `evolve` may replace it.
            if value is not default:
                result[wire] = _plain(value, missing)
            elif wire not in wire_state.absent:
                result[wire] = None if wire in wire_state.nulls else _plain(value, missing)
            elif missing == "null":
                result[wire] = None
        for wire, value in unknown_fields(self).items():
            result[wire] = _plain(value, missing)
        return result

    def to_json(self, *, missing: Missing = "omit") -> bytes:
        """`to_dict()` as UTF-8 JSON. Amounts keep their digits: `12.30` stays `12.30`."""
        return _encode(self.to_dict(missing=missing))

    def _peek(self, name: str) -> Any:
        """A field for `repr`: a `range` in place of transactions that were not decoded yet."""
        return getattr(self, name)

    # Of classes whose `==` attrs has generated, pytest shows the fields that differ, without their masked `repr`.
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Model) or other.__class__ is not self.__class__:
            return NotImplemented
        return self._values() == other._values() and unknown_fields(self) == unknown_fields(other)

    def __hash__(self) -> int:
        return hash((self.__class__, self._values()))

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name, _, _ in _table(self.__class__))

    def __repr__(self) -> str:
        shown = []
        for attribute in _attributes(self.__class__):
            show = attribute.repr if callable(attribute.repr) else repr
            shown.append(f"{attribute.name}={show(self._peek(attribute.name))}")
        if unknown := unknown_fields(self):
            shown.append(_unknown_count(unknown))
        return f"{self.__class__.__name__}({', '.join(shown)})"


_encode = msgspec.json.Encoder(decimal_format="number").encode


def _plain(value: Any, missing: Missing) -> Any:
    if isinstance(value, Model):
        return value.to_dict(missing=missing)
    if isinstance(value, (tuple, list)):
        return [_plain(item, missing) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, missing) for key, item in value.items()}
    if isinstance(value, Timestamp):
        return value.text
    if isinstance(value, dt.date):
        return value.isoformat()
    return value


@frozen(weakref_slot=False)
class Timestamp:
    """A point in time with its wire text, which may have more digits (7 fractional ones) than Python keeps (6).

    Attributes:
        text: the text that the server sent.
        value: the same as an aware `datetime` in UTC, cut to microseconds; None if the text is not a timestamp. A text
            without an offset is in UTC, as Flinks documents.
    """

    text: str
    value: dt.datetime | None = None

    @classmethod
    def parse(cls, text: str) -> Timestamp:
        try:
            value = dt.datetime.fromisoformat(text)
            value = value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)
        except (ValueError, OverflowError):
            return cls(text)
        return cls(text, value)


@frozen(kw_only=True, weakref_slot=False, repr=False, eq=False)
class Transaction(Model):
    """One transaction of an account. `debit` and `credit` are positive amounts, or None."""

    date: dt.date | None = field(default=None, repr=_masked)
    code: str | None = field(default=None, repr=_masked)
    description: str | None = field(default=None, repr=_masked)
    debit: Decimal | None = field(default=None, repr=_masked)
    credit: Decimal | None = field(default=None, repr=_masked)
    balance: Decimal | None = field(default=None, repr=_masked)
    id: str | None = None
    _wire: _Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state")


@frozen(kw_only=True, weakref_slot=False, repr=False, eq=False)
class Balance(Model):
    """The balance of an account, in the account's currency."""

    available: Decimal | None = field(default=None, repr=_masked)
    current: Decimal | None = field(default=None, repr=_masked)
    limit: Decimal | None = field(default=None, repr=_masked)
    _wire: _Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state")


@frozen(kw_only=True, weakref_slot=False, repr=False, eq=False)
class Address(Model):
    """A holder's address."""

    civic_address: str | None = field(default=None, repr=_masked)
    city: str | None = field(default=None, repr=_masked)
    province: str | None = None
    postal_code: str | None = field(default=None, repr=_masked)
    po_box: str | None = field(default=None, repr=_masked, metadata={_WIRE: "POBox"})
    country: str | None = None
    _wire: _Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state")


@frozen(kw_only=True, weakref_slot=False, repr=False, eq=False)
class Holder(Model):
    """The person or company that holds an account."""

    name: str | None = field(default=None, repr=_masked)
    email: str | None = field(default=None, repr=_masked)
    phone_number: str | None = field(default=None, repr=_masked)
    address: Address | None = None
    _wire: _Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state")


@frozen(kw_only=True, weakref_slot=False, repr=False, eq=False)
class Account(Model):
    """One bank account. `category`, `type`, `currency` and `account_type` are open sets: expect new values."""

    transactions: tuple[Transaction, ...] = field(default=(), repr=_count)
    balance: Balance | None = None
    holder: Holder | None = None
    id: str | None = None
    title: str | None = field(default=None, repr=_masked)
    account_number: str | None = field(default=None, repr=_masked)
    last_four_digits: str | None = field(default=None, repr=_masked)
    transit_number: str | None = field(default=None, repr=_masked)
    institution_number: str | None = None
    category: str | None = None
    type: str | None = None
    currency: str | None = None
    account_type: str | None = None
    overdraft_limit: Decimal | None = field(default=None, repr=_masked)
    eft_eligible_ratio: Decimal | None = field(default=None, repr=_masked)
    e_transfer_eligible_ratio: Decimal | None = field(default=None, repr=_masked)
    _wire: _Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state")


@frozen(kw_only=True, weakref_slot=False, repr=False, eq=False)
class Login(Model):
    """The bank login that the data came through."""

    username: str | None = field(default=None, repr=_masked)
    type: str | None = None
    id: str | None = field(default=None, repr=_masked)
    is_scheduled_refresh: bool | None = None
    last_refresh: Timestamp | None = field(default=None, repr=_masked)
    _wire: _Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state")


@frozen(kw_only=True, weakref_slot=False, repr=False, eq=False)
class Link(Model):
    """A related resource that the answer points to. This package does not follow it."""

    rel: str | None = field(default=None, metadata={_WIRE: "rel"})
    href: str | None = field(default=None, repr=_masked, metadata={_WIRE: "href"})
    example: str | None = field(default=None, repr=_masked, metadata={_WIRE: "example"})
    _wire: _Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state")


@frozen(kw_only=True, weakref_slot=False, repr=False, eq=False)
class AccountsDetail(Model):
    """One entry of `GetAccountsDetail`.

    `http_status_code` is the status inside the JSON. It may differ from the status of the HTTP response (`Meta.status`).
    """

    http_status_code: int | None = None
    login_id: str | None = field(default=None, repr=_masked)
    customer_id: str | None = field(default=None, repr=_masked)
    accounts: tuple[Account, ...] = field(default=(), repr=_count)
    login: Login | None = None
    institution: str | None = None
    institution_name: str | None = None
    institution_id: int | None = None
    links: tuple[Link, ...] = field(default=(), repr=_count)
    tag: str | None = field(default=None, repr=_masked)
    request_id: str | None = None
    _wire: _Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state")


@frozen(weakref_slot=False)
class Meta:
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


NO_META = Meta()


@frozen
class Tables:
    """Answers as three `pyarrow.Table`s (see `flinks_async.tables`)."""

    accounts: Table = field(repr=_row_count)
    transactions: Table = field(repr=_row_count)
    holders: Table = field(repr=_row_count)


@frozen(kw_only=True, weakref_slot=False, repr=False, eq=False)
class PartnerAccessResponse(Model):
    """The answer to one access token.

    Attributes:
        get_accounts_detail: a tuple, one object or None, as the server sent it. `details` and `accounts` hide the difference.
        request_id: Flinks' id of this request.
        meta: how the answer was obtained. It is not part of `to_dict()`, and `==` ignores it.
    """

    get_accounts_detail: tuple[AccountsDetail, ...] | AccountsDetail | None = None
    request_id: str | None = None
    _wire: _Wire = field(default=DEFAULT_WIRE_STATE, alias="wire_state")
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
        shown = [_shortened(repr(self.request_id)), _counted(len(accounts), "account")]
        shown.append(_counted(transactions, "transaction"))
        if unknown := unknown_fields(self):
            shown.append(_unknown_count(unknown))
        return f"<{type(self).__name__} request_id={', '.join(shown)}>"

    def to_arrow(self) -> Tables:
        """Accounts, transactions and holders as Arrow tables (see `flinks_async.tables.to_arrow`)."""
        from .tables import to_arrow

        return to_arrow([self])


# The fields that are not on the wire.
_INTERNAL = frozenset({"_wire", "meta"})


def wire_name(attribute: Attribute[Any]) -> str:
    """The name of an attrs field on the wire: the one in its metadata, or its name in PascalCase."""
    explicit: str | None = attribute.metadata.get(_WIRE)
    return explicit or "".join(part[:1].upper() + part[1:] for part in attribute.name.split("_"))


def wire_fields(cls: type[Model]) -> tuple[tuple[str, str], ...]:
    """(attribute, wire name) of every documented field of a class, in the order of the documentation."""
    return tuple((name, wire) for name, wire, _ in _table(cls))


def _attributes(cls: type[Model]) -> list[Attribute[Any]]:
    attributes: tuple[Attribute[Any], ...] = fields(cls)  # type: ignore[arg-type]
    return [attribute for attribute in attributes if attribute.name not in _INTERNAL]


_tables: dict[type[Model], tuple[tuple[str, str, Any], ...]] = {}


def _table(cls: type[Model]) -> tuple[tuple[str, str, Any], ...]:
    """(attribute, wire name, default) of every documented field of a class."""
    table = _tables.get(cls)
    if table is None:
        table = _tables[cls] = tuple((a.name, wire_name(a), a.default) for a in _attributes(cls))
    return table


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
