"""What users receive: frozen attrs classes with the fields that Flinks documents, in snake_case.

Every field may be None, since missing and null are both normal. Fields that Flinks adds later are kept in
`extra`, and `to_dict()` / `to_json()` give back every field and value that came. Personal data is masked in repr.

The wire name of a field is its name in PascalCase, or the one in its metadata; `wire_fields()` is the only table.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

import msgspec
from attrs import Attribute, evolve, field, fields, frozen

from .secret import MASK

if TYPE_CHECKING:
    import pyarrow

Missing = Literal["omit", "null"]
M = TypeVar("M", bound="Model")


def _masked(value: object) -> str:
    return "None" if value is None else MASK


def _count(extra: Mapping[str, Any]) -> str:
    """How many unknown fields there are. Their names are the server's, which may have made them of anything."""
    return f"<{len(extra)} unknown>" if extra else "-"


def _count_only(wire: WireState | dict[str, Any]) -> str:
    return _count(wire if isinstance(wire, dict) else wire.extra)


_WIRE = "flinks_wire_name"


@frozen(weakref_slot=False)
class WireState:
    """How one object looked on the wire, beyond its fields' values.

    Attributes:
        extra: fields that this version does not know, by wire name; numbers with a fraction are `Decimal`.
        absent: wire names of known fields that were not there (all other fields were, perhaps as null).
        nulls: wire names of arrays that came as null; the attribute is an empty tuple.
    """

    extra: Mapping[str, Any] = field(default=MappingProxyType({}), repr=_count)
    absent: frozenset[str] = frozenset()
    nulls: frozenset[str] = frozenset()

    def __reduce__(self) -> tuple[Any, ...]:  # mappingproxy does not pickle
        return WireState, (dict(self.extra), self.absent, self.nulls)


COMPLETE = WireState()


class Model:
    """The base of the classes below: unknown fields, and the way back to JSON."""

    __slots__ = ()

    # The unknown fields alone where there is nothing else to say: a dict of plain values costs the garbage collector
    # nothing, and a new field of Flinks comes in every transaction.
    _wire: WireState | dict[str, Any]

    @property
    def wire_state(self) -> WireState:
        """How the object looked on the wire."""
        wire = self._wire
        return WireState(wire) if isinstance(wire, dict) else wire

    @property
    def extra(self) -> Mapping[str, Any]:
        """Fields that came and that this version does not know, by their wire names. Read-only."""
        wire = self._wire
        return MappingProxyType(wire if isinstance(wire, dict) else wire.extra)

    def to_dict(self, *, missing: Missing = "omit") -> dict[str, Any]:
        """The object as it came: wire names, exact `Decimal`s, dates and timestamps as their wire text.

        Args:
            missing: what becomes of documented fields that did not come: left out (default), or `None`.
        """
        state = self.wire_state
        result: dict[str, Any] = {}
        for name, wire in wire_fields(type(self)):
            if wire in state.absent:
                if missing == "null":
                    result[wire] = None
            elif wire in state.nulls:
                result[wire] = None
            else:
                result[wire] = _plain(getattr(self, name), missing)
        result.update(state.extra)
        return result

    def to_json(self, *, missing: Missing = "omit") -> bytes:
        """`to_dict()` as UTF-8 JSON; money keeps its digits (`12.30` stays `12.30`)."""
        return _encode(self.to_dict(missing=missing))


_encode = msgspec.json.Encoder(decimal_format="number").encode


def _plain(value: Any, missing: Missing) -> Any:
    if isinstance(value, Model):
        return value.to_dict(missing=missing)
    if isinstance(value, tuple):
        return [_plain(item, missing) for item in value]
    if isinstance(value, Timestamp):
        return value.text
    if isinstance(value, dt.date):
        return value.isoformat()
    return value


@frozen(weakref_slot=False)
class Timestamp:
    """A point in time with its wire text, which may carry more digits (7 fractional) than Python keeps (6).

    Attributes:
        text: as it came.
        value: the same as an aware datetime in UTC (a text without an offset is documented to be UTC), cut to
            microseconds; None if the text is not a timestamp.
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


@frozen(kw_only=True, weakref_slot=False)
class Transaction(Model):
    """One movement on an account. `debit` and `credit` are positive amounts, or None."""

    date: dt.date | None = None
    code: str | None = None
    description: str | None = field(default=None, repr=_masked)
    debit: Decimal | None = None
    credit: Decimal | None = None
    balance: Decimal | None = None
    id: str | None = None
    _wire: WireState | dict[str, Any] = field(default=COMPLETE, eq=False, repr=_count_only, alias="wire_state")


@frozen(kw_only=True, weakref_slot=False)
class Balance(Model):
    """What is on an account, in the account's currency."""

    available: Decimal | None = None
    current: Decimal | None = None
    limit: Decimal | None = None
    _wire: WireState | dict[str, Any] = field(default=COMPLETE, eq=False, repr=_count_only, alias="wire_state")


@frozen(kw_only=True, weakref_slot=False)
class Address(Model):
    """A holder's address."""

    civic_address: str | None = field(default=None, repr=_masked)
    city: str | None = field(default=None, repr=_masked)
    province: str | None = None
    postal_code: str | None = field(default=None, repr=_masked)
    po_box: str | None = field(default=None, repr=_masked, metadata={_WIRE: "POBox"})
    country: str | None = None
    _wire: WireState | dict[str, Any] = field(default=COMPLETE, eq=False, repr=_count_only, alias="wire_state")


@frozen(kw_only=True, weakref_slot=False)
class Holder(Model):
    """The person or company that holds an account."""

    name: str | None = field(default=None, repr=_masked)
    email: str | None = field(default=None, repr=_masked)
    phone_number: str | None = field(default=None, repr=_masked)
    address: Address | None = None
    _wire: WireState | dict[str, Any] = field(default=COMPLETE, eq=False, repr=_count_only, alias="wire_state")


@frozen(kw_only=True, weakref_slot=False)
class Account(Model):
    """One bank account. `category`, `type`, `currency` and `account_type` are open sets: expect new values."""

    transactions: tuple[Transaction, ...] = ()
    balance: Balance | None = None
    holder: Holder | None = None
    id: str | None = None
    title: str | None = None
    account_number: str | None = field(default=None, repr=_masked)
    last_four_digits: str | None = field(default=None, repr=_masked)
    transit_number: str | None = None
    institution_number: str | None = None
    category: str | None = None
    type: str | None = None
    currency: str | None = None
    account_type: str | None = None
    overdraft_limit: Decimal | None = None
    eft_eligible_ratio: Decimal | None = None
    e_transfer_eligible_ratio: Decimal | None = None
    _wire: WireState | dict[str, Any] = field(default=COMPLETE, eq=False, repr=_count_only, alias="wire_state")


@frozen(kw_only=True, weakref_slot=False)
class Login(Model):
    """The bank login that the data came through."""

    username: str | None = field(default=None, repr=_masked)
    type: str | None = None
    id: str | None = None
    is_scheduled_refresh: bool | None = None
    last_refresh: Timestamp | None = None
    _wire: WireState | dict[str, Any] = field(default=COMPLETE, eq=False, repr=_count_only, alias="wire_state")


@frozen(kw_only=True, weakref_slot=False)
class Link(Model):
    """A related resource that the answer points to. This package does not follow it."""

    rel: str | None = field(default=None, metadata={_WIRE: "rel"})
    href: str | None = field(default=None, repr=_masked, metadata={_WIRE: "href"})
    example: str | None = field(default=None, repr=_masked, metadata={_WIRE: "example"})
    _wire: WireState | dict[str, Any] = field(default=COMPLETE, eq=False, repr=_count_only, alias="wire_state")


@frozen(kw_only=True, weakref_slot=False)
class AccountsDetail(Model):
    """One entry of `GetAccountsDetail`.

    `http_status_code` is the one inside the JSON; it may differ from the status of the HTTP answer (`Meta.status`).
    """

    http_status_code: int | None = None
    login_id: str | None = None
    customer_id: str | None = None
    accounts: tuple[Account, ...] = ()
    login: Login | None = None
    institution: str | None = None
    institution_name: str | None = None
    institution_id: int | None = None
    links: tuple[Link, ...] = ()
    tag: str | None = None
    request_id: str | None = None
    _wire: WireState | dict[str, Any] = field(default=COMPLETE, eq=False, repr=_count_only, alias="wire_state")


@frozen(weakref_slot=False)
class Meta:
    """How an answer was obtained.

    Attributes:
        status: the HTTP status.
        attempts: how many attempts were made, the successful one included.
        queue_time: seconds spent waiting for a free place, all attempts together.
        wire_time: seconds from sending to the last byte, all attempts together.
    """

    status: int = 200
    attempts: int = 1
    queue_time: float = 0.0
    wire_time: float = 0.0


NO_META = Meta()


@frozen
class Tables:
    """The same answers as three `pyarrow.Table`s (see `flinks_async.tables`)."""

    accounts: pyarrow.Table
    transactions: pyarrow.Table
    holders: pyarrow.Table


@frozen(kw_only=True, weakref_slot=False)
class PartnerAccessResponse(Model):
    """The answer to one access token.

    Attributes:
        get_accounts_detail: as it came: a list, one object, or null. `details` and `accounts` hide the difference.
        request_id: Flinks' id of this request.
        meta: how the answer was obtained (not part of `to_dict()`, nor of equality).
    """

    get_accounts_detail: tuple[AccountsDetail, ...] | AccountsDetail | None = None
    request_id: str | None = None
    _wire: WireState | dict[str, Any] = field(default=COMPLETE, eq=False, repr=_count_only, alias="wire_state")
    meta: Meta = field(default=NO_META, eq=False)

    @property
    def details(self) -> tuple[AccountsDetail, ...]:
        """The entries of `GetAccountsDetail`: several, one or none."""
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
        return evolve(self, meta=meta)

    def to_arrow(self) -> Tables:
        """Accounts, transactions and holders as Arrow tables (see `flinks_async.tables.to_arrow`)."""
        from .tables import to_arrow

        return to_arrow([self])


# `meta` and `_wire` are ours, everything else is the wire's.
_OURS = frozenset({"_wire", "meta"})


def wire_name(attribute: Attribute[Any]) -> str:
    """The name of an attrs field on the wire: its metadata's, else PascalCase."""
    given: str | None = attribute.metadata.get(_WIRE)
    return given or "".join(part[:1].upper() + part[1:] for part in attribute.name.split("_"))


_wire_fields: dict[type[Model], tuple[tuple[str, str], ...]] = {}


def wire_fields(cls: type[Model]) -> tuple[tuple[str, str], ...]:
    """(attribute, wire name) of every documented field of a class, in the order of the documentation."""
    found = _wire_fields.get(cls)
    if found is None:
        attributes: tuple[Attribute[Any], ...] = fields(cls)  # type: ignore[arg-type]
        found = _wire_fields[cls] = tuple((a.name, wire_name(a)) for a in attributes if a.name not in _OURS)
    return found


def wire_types(cls: type[Model]) -> dict[str, Any]:
    """attribute -> resolved type of every documented field of a class."""
    hints = get_type_hints(cls)
    return {name: hints[name] for name, _ in wire_fields(cls)}


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
