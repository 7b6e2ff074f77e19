"""The fast path: msgspec fills structs that are generated from the attrs classes, generated functions make models.

It takes only what it is sure about and raises one of `DOUBTS` for everything else; the careful path then decides.
Whatever it returns is what the careful path returns.

Fields that a class was never seen to lack are required by its struct, so nothing has to look for them (see `Shapes`).
Amounts are made by a method of a decimal context that traps what is out of range, so they need no second look.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal, DecimalException
from typing import Any, Final

import msgspec
from attrs import frozen
from cattrs import Converter
from msgspec import NODEFAULT, UNSET

from ..models import COMPLETE, Model, PartnerAccessResponse, Timestamp, WireState
from . import careful
from .parse import BROKEN, NESTED, bounded, decode_any, decode_unknown
from .plan import AMOUNT, PLAN, Field, Kind
from .shapes import USUALLY_ABSENT, Shapes
from .source import Member, States, become, compile_builders, mask_of, names_of, needs_mask, read_members, read_unknown


class Doubt(Exception):
    """Something that the fast path leaves to the careful one."""


DOUBTS: Final = (Doubt, careful.Misfit, DecimalException, *BROKEN)

Sliced = frozenset[type[Model]]
NOT_SLICED: Final[Sliced] = frozenset()

_MEMBERS: Final[dict[Kind, Any]] = {
    Kind.TEXT: str | None,
    Kind.AMOUNT: Any,  # not Decimal, which would take strings as well
    Kind.INTEGER: Any,  # not int, which would take 1e20 by way of a float
    Kind.FLAG: bool | None,
    Kind.DATE: dt.date | None,
    Kind.TIMESTAMP: str | None,
}
_MAKE: Final = {Kind.AMOUNT: "amount(v)", Kind.INTEGER: "doubt(v)", Kind.TIMESTAMP: "timestamp(v)"}


def _amount(value: object) -> Decimal:
    if type(value) is not int:
        raise Doubt
    return AMOUNT.create_decimal(value)


def _doubt(value: object) -> Any:
    raise Doubt


@frozen
class Part:
    """What decodes one class: a struct, and functions that make models of one struct, and of a list of them."""

    struct: Any
    one: Callable[..., Any]
    many: Callable[..., tuple[Any, ...]]

    def decoder(self) -> Callable[[Any], Any]:
        return msgspec.json.Decoder(self.struct, float_hook=AMOUNT.create_decimal).decode

    def list_decoder(self) -> Callable[[Any], Any]:
        return msgspec.json.Decoder(list[self.struct], float_hook=AMOUNT.create_decimal).decode  # type: ignore[name-defined]


class Compiler:
    """Makes the parts that fit the hooks of a converter and the shapes seen until now."""

    def __init__(self, converter: Converter, shapes: Shapes) -> None:
        self._converter = converter
        self._shapes = shapes
        self._parts: dict[tuple[type[Model], Sliced], Part] = {}

    def part(self, cls: type[Model], sliced: Sliced = NOT_SLICED) -> Part:
        """The part of a class. Arrays of the classes in `sliced` stay lists of raw pieces, to be replaced by models
        before the functions run.
        """
        found = self._parts.get((cls, sliced))
        if found is None:
            found = self._parts[cls, sliced] = self._make(cls, sliced)
        return found

    def _make(self, cls: type[Model], sliced: Sliced) -> Part:
        fields, unknown = PLAN[cls], self._shapes.unknown(cls)
        names: dict[str, Any] = {
            **names_of("Final", cls),
            **names_of("State", WireState),
            "COMPLETE": COMPLETE,
            "NESTED": NESTED,
            "Decimal": Decimal,
            "UNSET": UNSET,
            "amount": _amount,
            "bounded": bounded,
            "decode_any": decode_any,
            "decode_unknown": decode_unknown,
            "doubt": _doubt,
            "states": States(fields),
            "timestamp": Timestamp.parse,
            "len": len,
            "list": list,
            "int": int,
            "type": type,
        }
        members = [self._member(cls, field, bit, sliced, names) for bit, field in enumerate(fields)]
        usually_absent = USUALLY_ABSENT.get(cls, frozenset())
        usual = mask_of([member for member in members if member.field.wire in usually_absent])
        names["usual"] = names["states"][usual]
        state = f"COMPLETE if not m else usual if m == {usual} else states[m]" if needs_mask(members) else "COMPLETE"
        body = [
            "o = Final_twin()",
            *read_members(members, usually_absent),
            *(read_unknown(unknown, state, raw=bool(sliced)) if unknown else [f"o._wire = {state}"]),
            *(["o.meta = meta"] if cls is PartnerAccessResponse else []),
            become("Final", cls, "o"),
        ]
        struct = msgspec.defstruct(
            cls.__name__,
            [
                *(
                    (f"f{m.bit}", m.type, msgspec.field(name=m.field.wire, default=UNSET if m.optional else NODEFAULT))
                    for m in members
                ),
                *(
                    (f"x{n}", msgspec.Raw if sliced else Any, msgspec.field(name=key, default=UNSET))
                    for n, key in enumerate(unknown)
                ),
            ],
            forbid_unknown_fields=True,
            gc=False,
            kw_only=True,
        )
        argument = "meta" if cls is PartnerAccessResponse else ""
        one, many = compile_builders(cls.__name__, body, names, argument)
        return Part(struct, one, many)

    def _member(self, cls: type[Model], field: Field, bit: int, sliced: Sliced, names: dict[str, Any]) -> Member:
        type_, make = self._type(field, bit, sliced, names)
        return Member(field, bit, type_, field.wire in self._shapes.optional(cls), make)

    def _type(self, field: Field, bit: int, sliced: Sliced, names: dict[str, Any]) -> tuple[Any, str]:
        """The type of a struct's member, and the expression that makes the model's value of `v`."""
        cls = Timestamp if field.kind is Kind.TIMESTAMP else field.model
        if cls in sliced and field.kind is Kind.ARRAY:
            return list[msgspec.Raw] | None, "v"
        if cls is None or (cls is Timestamp and careful.is_ours(self._converter, cls)):
            return _MEMBERS[field.kind], _MAKE.get(field.kind, "v")
        if not careful.is_ours(self._converter, cls):
            names[f"read{bit}"] = careful.field_reader(field, self._converter)
            return msgspec.Raw, f"read{bit}(v)"
        assert field.model is not None
        part = self.part(field.model, sliced)
        struct: Any = part.struct
        names[f"one{bit}"], names[f"many{bit}"] = part.one, part.many
        if field.kind is Kind.OBJECT:
            return struct | None, f"one{bit}(v)"
        if field.kind is Kind.ARRAY:
            return list[struct] | None, f"many{bit}(v)"
        return list[
            struct
        ] | struct | None, f"one{bit}(v) if type(v) is not list else (one{bit}(v[0]),) if len(v) == 1 else many{bit}(v)"
