"""Fields as they occur in answers: `compiled` generates its code for them; and differences from the documentation.

Differences (drift) are counted by path, never with values. What the generated code meets while it decodes an answer goes into
one set, so that an answer without a difference costs nothing but a look at that set.
"""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Callable, Iterable
from typing import Final, Literal

import msgspec
from attrs import evolve, frozen

from ..models import MODELS, SCHEMA, Account, AccountsDetail, Model, PartnerAccessResponse
from ..schema import FieldKind

MAX_UNKNOWN_KEYS: Final = 16
"""Unknown keys that are learned for one class. Answers with others stay on the reference path."""

_LEARNABLE_KEY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .:/-]{0,63}")

_DATA_AS_KEY: Final = re.compile(r"(?:.*[0-9]){4}")
"""A key with four digits may be an account number, so it is counted without its name."""

USUALLY_ABSENT: Final[dict[type[Model], frozenset[str]]] = {
    **dict.fromkeys(MODELS, frozenset()),
    # The documented example of PartnerAccess has no other fields.
    AccountsDetail: frozenset(field.wire for field in SCHEMA[AccountsDetail]) - {"LoginId", "CustomerId"},
    # Documented for another endpoint only.
    Account: frozenset({"EftEligibleRatio", "ETransferEligibleRatio"}),
}
"""Fields that the compiled path does not expect, until an object has one; it expects all others, until an object lacks one.
They are no drift if they are missing.
"""

OPEN_SETS: Final[dict[type[Model], tuple[str, ...]]] = {Account: ("category", "type", "currency", "account_type")}
"""Fields whose values are an open set, by class."""

LEARNED_FROM: Final = 1000
"""Answers whose values of open sets count as known."""

MAX_VALUES_KNOWN: Final = 256
"""Values of an open set that are remembered. Others count as new whenever they come."""

ERROR_FIELDS: Final = frozenset(
    {"flinkscode", "httpstatuscode", "message", "institution", "links", "validationdetails"}
)
"""Documented fields of an error, in lower case. A body with status 200 may be an error, so they are no drift, and neither is
what an error lacks.
"""


def _places(cls: type[Model], place: str) -> dict[type[Model], str]:
    found = {cls: place}
    for field in SCHEMA[cls]:
        if field.model is not None:
            array = "" if field.kind is FieldKind.OBJECT else "[]"
            found |= _places(field.model, f"{place}{field.wire}{array}.")
    return found


PLACES: Final = _places(PartnerAccessResponse, "")
"""The path of the objects of each class, with a dot at its end. A class has one place in an answer."""

_PATHS: Final = frozenset(f"{PLACES[cls]}{field.wire}" for cls in MODELS for field in SCHEMA[cls])

DriftKind = Literal["unknown field", "missing field", "wrong type", "new value"]

Difference = tuple[DriftKind, str] | tuple[type[Model], int]
"""A kind and a path, or a class and the mask of its absent fields."""


@frozen
class Drift:
    """A difference between answers and their documentation. `str` makes one line for people.

    Attributes:
        kind: `unknown field`, `missing field` (a documented one that is usually there), `wrong type`, or `new value`: a value
            of an open set, such as `Account.type`, that did not occur in the first 1,000 answers.
        path: such as `GetAccountsDetail[].Accounts[].Foo`; `*` stands for names that may be data, and for those after the
            first 16 of an object.
        answers: answers with the difference.
        of: all answers since the first of them.
        since: the time of the first of them, in seconds since 1970.
    """

    kind: DriftKind
    path: str
    answers: int
    of: int
    since: float

    def __str__(self) -> str:
        since = dt.datetime.fromtimestamp(self.since, dt.UTC).strftime("%Y-%m-%d %H:%M")
        return f"{self.path}: {self.kind} in {self.share} of answers since {since} UTC"

    @property
    def share(self) -> str:
        """The share of answers in percent. It is 100 % only if it is exactly that."""
        percent = 100 * self.answers / self.of
        if percent < 0.01:
            return "under 0.01 %"
        return f"{percent:.2g} %" if percent < 99 else f"{percent:.0f} %" if self.answers == self.of else "over 99 %"


def joined(parts: Iterable[Iterable[Drift]]) -> tuple[Drift, ...]:
    """The differences that several processes or clients have seen: the most frequent ones first, missing fields last."""
    found: dict[tuple[str, str], Drift] = {}
    for one in (one for part in parts for one in part):
        other = found.setdefault((one.kind, one.path), one)
        if other is not one:
            since, answers, of = min(one.since, other.since), one.answers + other.answers, one.of + other.of
            found[one.kind, one.path] = evolve(one, since=since, answers=answers, of=of)
    return tuple(sorted(found.values(), key=lambda one: (one.kind == "missing field", -one.answers, one.path)))


def from_json(data: object) -> tuple[Drift, ...]:
    """Differences from plain JSON, as in the samples of a job; empty if they are none."""
    try:
        return msgspec.convert(data, tuple[Drift, ...])
    except msgspec.ValidationError:
        return ()


class ObservedFields:
    """The fields observed so far.

    Args:
        time: tells the time, in seconds since 1970.

    Attributes:
        version: changes whenever something new is recorded.
        answers: answers so far.
        optional: wire names of the documented fields that may be missing, by class.
        hidden: those that no object has had, and that most objects do not have.
        unknown: the undocumented keys, in the order in which they were first seen.
        odd: the differences of the answer that is being decoded.
    """

    __slots__ = ("_drift", "_known", "_time", "answers", "hidden", "odd", "optional", "unknown", "version")

    def __init__(self, time: Callable[[], float] = time.time) -> None:
        self.version = 0
        self.answers = 0
        self.odd: set[Difference] = set()
        self._time = time
        # Answers with it, answers before it, and since when.
        self._drift: dict[tuple[DriftKind, str], tuple[int, int, float]] = {}
        self._known: dict[str, set[object]] = {}
        self.optional, self.hidden = USUALLY_ABSENT.copy(), USUALLY_ABSENT.copy()
        self.unknown: dict[type[Model], tuple[str, ...]] = dict.fromkeys(MODELS, ())

    def record(self, cls: type[Model], unknown: Iterable[str], absent: Iterable[str]) -> None:
        """Records one object: its unknown keys and its absent fields."""
        if not self.hidden[cls].issubset(absent):
            self.hidden[cls] = self.hidden[cls].intersection(absent)
            self.version += 1
        optional = self.optional[cls]
        if not optional.issuperset(absent):
            self.optional[cls] = optional.union(absent)
            self.version += 1
        self.odd.update(("missing field", PLACES[cls] + wire) for wire in absent if wire not in USUALLY_ABSENT[cls])
        for key in unknown:
            seen = self.unknown[cls]
            if key not in seen and len(seen) < MAX_UNKNOWN_KEYS and _LEARNABLE_KEY.fullmatch(key):
                self.unknown[cls] = (*seen, key)
                self.version += 1
            self.odd.add(self.unknown_field(cls, key))

    # --- drift ---

    def unknown_field(self, cls: type[Model], key: str) -> Difference:
        """An unknown field, without its name if that may be data."""
        shown = key if key in self.unknown[cls] and not _DATA_AS_KEY.match(key) else "*"
        return "unknown field", PLACES[cls] + shown

    def wrong_type(self, path: str) -> None:
        """Notes a value of the wrong type, by its path in an answer, or in all answers."""
        place = re.sub(r"\[[0-9]+\]", "[]", path).removesuffix("[]")
        place = re.sub(r"^GetAccountsDetail\.", "GetAccountsDetail[].", place)
        self.odd.add(("wrong type", place if place in _PATHS else "*"))

    def known_values(self, cls: type[Model], name: str) -> tuple[set[object], Callable[[object], None]]:
        """The known values of an open set, and a function that takes one that is not known."""
        field = next(field for field in SCHEMA[cls] if field.name == name)
        path = PLACES[cls] + field.wire
        known = self._known.setdefault(path, {None})

        def new(value: object) -> None:
            if len(known) < MAX_VALUES_KNOWN and len(str(value)) <= MAX_VALUES_KNOWN:
                known.add(value)
            if self.answers >= LEARNED_FROM:
                self.odd.add(("new value", path))

        return known, new

    def take(self) -> set[Difference]:
        """Takes what was found since the last call. Another thread may decode at the same time."""
        found = self.odd.copy()
        self.odd.difference_update(found)
        return found

    def end(self, found: set[Difference]) -> None:
        """Counts an answer, with its differences."""
        paths = {key for one in found for key in _as_paths(one)}
        is_error = any(path.lower() == "flinkscode" for _, path in paths)
        for key in paths:
            kind, path = key
            if (kind == "unknown field" and path.lower() in ERROR_FIELDS) or (kind == "missing field" and is_error):
                continue
            count, before, since = self._drift.get(key) or (0, self.answers, self._time())
            self._drift[key] = count + 1, before, since
        self.answers += 1

    def drift(self) -> tuple[Drift, ...]:
        """The differences so far, the most frequent ones first."""
        found = list(self._drift.items())
        return joined([[Drift(*key, count, self.answers - before, since)] for key, (count, before, since) in found])


def _as_paths(one: Difference) -> list[tuple[DriftKind, str]]:
    kind, what = one
    if isinstance(what, str):
        return [(kind, what)]  # type: ignore[list-item]
    return [("missing field", PLACES[kind] + f.wire) for bit, f in enumerate(SCHEMA[kind]) if what >> bit & 1]  # type: ignore[index]
