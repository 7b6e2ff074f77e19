"""The part of each answer that a job keeps: chosen tables and columns, and pseudonyms in place of values.

A selection becomes one function on the JSON of an answer. The process that fetched the answer calls it before it writes
anything, so what is left out never touches a disk.

A column stands for the field of the answer that it is read from. Columns of the same field, such as `accounts.id` and
`transactions.account_id`, are therefore kept, left out and replaced together.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import NoneType
from typing import Any, Final, Literal, TypeAlias

import msgspec
from attrs import converters, evolve, field, frozen

from .. import checks
from ..codec.observed import PLACES, Drift, joined
from ..errors import ConfigError
from ..models import MODELS, SCHEMA, Account, AccountsDetail, Address, Balance, Holder, Login, Model, Transaction
from ..models import PartnerAccessResponse as Answer
from ..schema import FieldKind
from ..secret import Secret, wrap_secret
from .stores.answer_rows import TABLES

PSEUDONYM_KEY: Final = "FLINKS_PSEUDONYM_KEY"
"""The environment variable with the key of pseudonyms, for the command line and for workers on other machines."""

SHORTEST_KEY: Final = 32
"""Characters that a key of pseudonyms must have: 128 random bits in hexadecimal digits."""

UNKNOWN: Final = "*"
"""Stands for the unknown fields of a class."""

FieldOfAnswer = tuple[type[Model], str]
"""A class and the wire name of its field, or `UNKNOWN`. Each class has one place in an answer."""

_OBJECTS: Final = dict(zip((table.name for table in TABLES), (Answer, Account, Transaction, Holder), strict=True))

_REQUEST_IDS: Final[tuple[FieldOfAnswer, ...]] = ((Answer, "RequestId"), (AccountsDetail, "RequestId"))

_SPECIAL: Final[dict[str, tuple[FieldOfAnswer, ...]]] = {
    "fetches.request_id": _REQUEST_IDS,
    "fetches.without_accounts": (),  # made of what is kept
    "fetches.extra": ((Answer, UNKNOWN),),
    "accounts.request_id": _REQUEST_IDS,
    "accounts.extra": ((Account, UNKNOWN), (Balance, UNKNOWN)),
    "accounts.detail_extra": ((AccountsDetail, UNKNOWN), (Login, UNKNOWN)),
    "accounts.answer_extra": ((Answer, UNKNOWN),),
    "transactions.account_id": ((Account, "Id"),),
    "transactions.currency": ((Account, "Currency"),),
    "transactions.extra": ((Transaction, UNKNOWN),),
    "holders.account_id": ((Account, "Id"),),
    "holders.extra": ((Holder, UNKNOWN), (Address, UNKNOWN)),
}
"""The fields of columns whose path does not say it."""


def _below(cls: type[Model], path: str) -> FieldOfAnswer:
    first, _, rest = path.partition(".")
    model = next(field.model for field in SCHEMA[cls] if field.wire == first)
    return (cls, first) if model is None else _below(model, rest)


def _fields_of(cls: type[Model], wire: str) -> tuple[FieldOfAnswer, ...]:
    return (_below(AccountsDetail, wire[1:]) if wire.startswith("^") else _below(cls, wire),) if wire else ()


FIELDS: Final[dict[str, tuple[FieldOfAnswer, ...]]] = {
    name: _SPECIAL[name] if name in _SPECIAL else _fields_of(_OBJECTS[table.name], column.wire)
    for table in TABLES
    for column in table.columns
    for name in [f"{table.name}.{column.name}"]
}
"""The fields of each `table.column`. Positions, keys and counts have none: they are always kept."""


def _names(given: Any) -> tuple[str, ...]:
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError("a selection takes names of tables and columns, such as 'holders' or 'accounts.title'")
    return tuple(sorted(set(names)))


@frozen(kw_only=True)
class Selection:
    """The part of its answers that a job keeps. `docs/stores.md` lists the tables and columns; a column is `table.column`.

    Everything that no table has is left out: unknown fields, unless you name the columns `extra`, and documented fields
    without a column. The rows of `fetches` are always kept, and so are positions, keys and counts.

    Args:
        tables: the tables to keep (default: all, or those of `columns`).
        columns: the columns to keep, of the tables that are named here.
        drop: tables and columns to leave out.
        pseudonyms: columns of text whose values are replaced by HMAC-SHA256 in hexadecimal digits. Equal values get equal
            pseudonyms in all tables and jobs with the same key.
        pseudonym_key: the key, of at least 32 characters, such as 64 random hexadecimal digits.
        key_fingerprint: of the expected key; for a selection without its key.

    Raises:
        ConfigError: there is no such table or column, or the key is missing, too short, or another one.
    """

    tables: tuple[str, ...] | None = field(default=None, converter=converters.optional(_names))
    columns: tuple[str, ...] = field(default=(), converter=_names)
    drop: tuple[str, ...] = field(default=(), converter=_names)
    pseudonyms: tuple[str, ...] = field(default=(), converter=_names)
    pseudonym_key: Secret | None = field(default=None, converter=wrap_secret)
    key_fingerprint: str | None = field(default=None, eq=False)

    def __attrs_post_init__(self) -> None:
        for option, names, exist in (
            ("tables", self.tables or (), _OBJECTS.keys()),
            ("columns", self.columns, FIELDS.keys()),
            ("drop", self.drop, _OBJECTS.keys() | FIELDS.keys()),
            ("pseudonyms", self.pseudonyms, FIELDS.keys()),
        ):
            if any(name not in exist for name in names):
                raise ConfigError(_no_such_name(option, names))
        for name in self.drop:
            if name == "fetches" or not FIELDS.get(name, True):
                raise ConfigError(f"drop: {name} is always kept, because it tells which line has an answer")
        kept = self.fields
        for name in self.pseudonyms:
            if any(_KINDS.get(one) is not FieldKind.TEXT for one in FIELDS[name]) or not FIELDS[name]:
                raise ConfigError(f"pseudonyms: {name} cannot be replaced, because it is no text of an answer")
            if not kept.issuperset(FIELDS[name]):
                raise ConfigError(f"pseudonyms: {name} is left out, so it cannot be replaced")
        self._check_key()

    def _check_key(self) -> None:
        checks.kind("key_fingerprint", self.key_fingerprint, str, NoneType)
        key = self.pseudonym_key
        if not isinstance(key, Secret | None):
            raise ConfigError("pseudonym_key must be a text or a Secret")
        if key is None:
            if self.pseudonyms and self.key_fingerprint is None:
                raise ConfigError("pseudonyms: pseudonym_key is missing")
            return
        if len(key) < SHORTEST_KEY:
            raise ConfigError(
                f"pseudonym_key must have at least {SHORTEST_KEY} characters, so that nobody can guess it. Make one with "
                "openssl rand -hex 32"
            )
        expected = self.key_fingerprint
        object.__setattr__(self, "key_fingerprint", _pseudonym(key, "flinks-async pseudonym key")[:16])
        if expected not in (None, self.key_fingerprint):
            raise ConfigError(
                f"pseudonym_key is another key (fingerprint {self.key_fingerprint}) than that of the job (fingerprint {expected})"
            )

    @property
    def _chosen(self) -> frozenset[str]:
        chosen = {name.partition(".")[0] for name in self.columns}.union(self.tables or ())
        everything = self.tables is None and not self.columns
        return frozenset(_OBJECTS if everything else chosen).difference(self.drop)

    @property
    def kept_tables(self) -> frozenset[str]:
        """The tables that get rows."""
        return self._chosen | {"fetches"}

    @property
    def fields(self) -> frozenset[FieldOfAnswer]:
        """The fields that are kept."""
        kept = set[FieldOfAnswer]()
        for table in self._chosen:
            whole = [name for name in FIELDS if name.startswith(f"{table}.") and not name.endswith("extra")]
            for name in [name for name in self.columns if name.startswith(f"{table}.")] or whole:
                kept.update(FIELDS[name])
        return frozenset(kept.difference(*(FIELDS[name] for name in self.drop if name in FIELDS)))

    @property
    def left_out(self) -> tuple[str, ...]:
        """The tables and columns that stay empty, for people."""
        kept, tables = self.fields, self.kept_tables
        columns = [name for name, fields in FIELDS.items() if fields and kept.isdisjoint(fields)]
        return (
            *(table.name for table in TABLES if table.name not in tables),
            *(name for name in columns if name.partition(".")[0] in tables),
            "fields without a column",
        )

    def describe(self) -> dict[str, Any]:
        """The selection as plain JSON, without its key."""
        names = {"columns": self.columns, "drop": self.drop, "pseudonyms": self.pseudonyms, "left_out": self.left_out}
        return {
            "tables": None if self.tables is None else list(self.tables),
            **{option: list(given) for option, given in names.items()},
            "key_fingerprint": self.key_fingerprint if self.pseudonyms else None,
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Selection:
        """The selection of `describe`, without its key.

        Raises:
            ConfigError, TypeError: it is none.
        """
        return cls(**{name: given for name, given in description.items() if name != "left_out"})

    def with_key(self, key: Secret | str | None) -> Selection:
        """The selection with its key.

        Raises:
            ConfigError: the key is missing, or another one.
        """
        if self.pseudonyms and key is None:
            raise ConfigError(
                "the job replaces values by pseudonyms: give its pseudonym_key; on the command line, FLINKS_PSEUDONYM_KEY or "
                "--pseudonym-key-file"
            )
        return evolve(self, pseudonym_key=key if self.pseudonyms else None)

    def without_key(self) -> Selection:
        """The selection in a form that may be sent elsewhere."""
        return evolve(self, pseudonym_key=None)

    def function(self) -> Callable[[bytes], bytes]:
        """The function that makes, of the JSON of an answer, the JSON that is kept."""
        kept, replaced = self.fields, {one for name in self.pseudonyms for one in FIELDS[name]}
        shapes = dict[type[Model], _Shape]()
        for cls in reversed(MODELS):  # a class comes after those that have it
            fields = dict[str, Action]()
            for member in SCHEMA[cls]:
                one = cls, member.wire
                if member.model is None:
                    fields[member.wire] = "replace" if one in replaced else "keep" if one in kept else None
                else:
                    fields[member.wire] = shapes[member.model] if self._has(member.model, kept) else None
            shapes[cls] = _Shape("any" if (cls, UNKNOWN) in kept else None, fields)
        key = self.pseudonym_key
        replace = None if key is None else partial(_pseudonym, key)
        shape = shapes[Answer]
        return lambda body: _encode(_selected(_decode(body), shape, replace))

    def drift(self, found: Iterable[Drift]) -> tuple[Drift, ...]:
        """Differences without the names of unknown fields that are left out, because a name may be data. For those of one
        object, `*` stands with the counts of the most frequent one.
        """
        kept = self.fields
        shown = dict[tuple[str, str], Drift]()
        for one in sorted(found, key=lambda one: one.answers):
            cls, place = max(PLACES.items(), key=lambda item: len(item[1]) if one.path.startswith(item[1]) else -1)
            hidden = one.kind == "unknown field" and (cls, UNKNOWN) not in kept
            path = f"{place}{UNKNOWN}" if hidden else one.path
            shown[one.kind, path] = evolve(one, path=path)
        return joined([shown.values()])

    def _has(self, cls: type[Model], kept: frozenset[FieldOfAnswer]) -> bool:
        """Whether objects of a class are kept. Entries and accounts always are, because they are counted."""
        if cls in (AccountsDetail, Account):
            return True
        table = next((name for name, one in _OBJECTS.items() if one is cls), None)
        return any(one is cls for one, _ in kept) or table in self.kept_tables


_KINDS: Final = {(cls, member.wire): member.kind for cls in MODELS for member in SCHEMA[cls]}


def _no_such_name(option: str, names: Iterable[str]) -> str:
    """The error for names of which one does not exist. They are not shown, because they may be secrets in a wrong place."""
    tables = {name.partition(".")[0] for name in names if name not in FIELDS and "." in name}
    known = [table for table in TABLES if table.name in tables]
    if known:
        return f"{option}: there is no such column; {known[0].name} has {', '.join(known[0].names)}"
    what = {"tables": "table", "drop": "table or column"}.get(option, "column")
    example = "" if option == "tables" else "; a column is named with its table, such as accounts.title"
    return f"{option}: there is no such {what}; the tables are {', '.join(_OBJECTS)}{example}"


# --- the JSON of an answer --------------------------------------------------------------------------------------------

_decode: Final = msgspec.json.Decoder(float_hook=msgspec.Raw).decode
"""Numbers with a fraction keep their text."""

_encode: Final = msgspec.json.Encoder().encode

Action: TypeAlias = 'Literal["keep", "any", "replace"] | _Shape | None'
"""`keep`: a plain value; an object or array in its place is left out. `any`: whatever there is. None: leave it out."""


@frozen
class _Shape:
    """What is kept of an object.

    Attributes:
        unknown: what happens to unknown fields.
        fields: what happens to documented fields, by wire name.
    """

    unknown: Action
    fields: dict[str, Action]


def _selected(value: Any, shape: _Shape, replace: Callable[[str], str] | None) -> Any:
    if type(value) is list:
        return [_selected(item, shape, replace) for item in value]
    if type(value) is not dict:
        return None
    actions, unknown = shape.fields, shape.unknown
    kept = {}
    for wire, item in value.items():
        action = actions.get(wire, unknown)
        if action is None:
            continue
        is_plain = type(item) is not dict and type(item) is not list
        if action == "any" or item is None or (action == "keep" and is_plain):
            kept[wire] = item
        elif action == "replace":
            if is_plain and replace is not None:
                kept[wire] = replace(item if type(item) is str else _encode(item).decode())
        elif action != "keep" and not is_plain:
            kept[wire] = _selected(item, action, replace)
    return kept


def _pseudonym(key: Secret, text: str) -> str:
    return hmac.digest(key.reveal().encode("utf-8", "surrogatepass"), text.encode(), "sha256").hex()
