"""The wire format of each field: its JSON key and the kind of its values, derived once from the attrs classes.

The wire names are those of `models.wire_fields`; this module adds the kinds.
"""

from __future__ import annotations

import datetime as dt
from decimal import Clamped, Context, Decimal, Inexact, InvalidOperation, Overflow, Rounded, Subnormal, Underflow
from enum import Enum
from types import NoneType
from typing import Any, Final, get_args, get_origin, get_type_hints

from attrs import frozen

from .models import MODELS, Model, Timestamp, wire_fields

TRAPS: Final = [Clamped, Inexact, InvalidOperation, Overflow, Rounded, Subnormal, Underflow]

AMOUNT: Final = Context(prec=1000, Emax=28, Emin=-28, traps=TRAPS)
"""The range of amounts: up to 29 digits before the point, and an exponent of at least -28. `AMOUNT.create_decimal` never
rounds; it raises an exception for a value out of range."""


class FieldKind(Enum):
    """The documented JSON type of a field. The values are the words of the error messages."""

    TEXT = "a string"
    AMOUNT = "a number"
    INTEGER = "an integer"
    FLAG = "a boolean"
    DATE = "a date (YYYY-MM-DD)"
    TIMESTAMP = "a timestamp"
    OBJECT = "an object"
    ARRAY = "an array"
    ONE_OR_MANY = "an array or an object"


_KINDS: Final = {
    str: FieldKind.TEXT,
    Decimal: FieldKind.AMOUNT,
    int: FieldKind.INTEGER,
    bool: FieldKind.FLAG,
    dt.date: FieldKind.DATE,
    Timestamp: FieldKind.TIMESTAMP,
}


@frozen
class Field:
    """One documented field.

    Attributes:
        name: the attribute.
        wire: the JSON key.
        kind: the kind of its values.
        model: the class of the object or of the array's items, else None.
    """

    name: str
    wire: str
    kind: FieldKind
    model: type[Model] | None = None


def _field(name: str, wire: str, hint: Any) -> Field:
    options = [hint] if get_origin(hint) is tuple else [o for o in get_args(hint) or (hint,) if o is not NoneType]
    arrays = [get_args(option)[0] for option in options if get_origin(option) is tuple]
    if arrays:
        return Field(name, wire, FieldKind.ARRAY if len(options) == 1 else FieldKind.ONE_OR_MANY, arrays[0])
    (only,) = options
    if only in _KINDS:
        return Field(name, wire, _KINDS[only])
    return Field(name, wire, FieldKind.OBJECT, only)


def _fields(cls: type[Model]) -> tuple[Field, ...]:
    hints = get_type_hints(cls)
    return tuple(_field(name, wire, hints[name]) for name, wire in wire_fields(cls))


SCHEMA: Final = {cls: _fields(cls) for cls in MODELS}
"""The documented fields of each class, in the order of the class."""
