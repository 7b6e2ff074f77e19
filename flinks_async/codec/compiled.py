"""The fast path: msgspec fills structs that are generated from the attrs classes, generated functions make models.

It takes only what it is sure about and raises one of `DOUBTS` for everything else; the careful path then decides.
Whatever it returns is what the careful path returns.

Fields that a class was never seen to lack are required by its struct, so nothing has to look for them (see `Shapes`).
Amounts are made by a method of a decimal context that traps what is out of range, so they need no second look.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator
from decimal import Decimal, DecimalException
from functools import cache, lru_cache
from types import CodeType
from typing import Any, Final

import msgspec
from attrs import fields as attrs_fields
from attrs import frozen
from cattrs import Converter
from msgspec import NODEFAULT, UNSET, Raw

from ..models import DEFAULT_WIRE_STATE, Model, PartnerAccessResponse, Timestamp, WireState
from ..schema import AMOUNT, SCHEMA, Field, FieldKind
from . import reference
from .observed import USUALLY_ABSENT, Shapes
from .parse import BROKEN, NESTED, bounded, decode_any, decode_unknown

# [flinks_async.codec.source] The Python source of the functions that turn structs into models, and the twins that they fill.
#
# A frozen class can only be filled through `object.__setattr__`, at five times the price of a plain assignment. So a
# model begins as an instance of its *twin*, a mutable class of the same layout, and gets its own class when it is full.


class Doubt(Exception):
    """Something that the fast path leaves to the careful one."""


DOUBTS: Final = (Doubt, reference.StructureError, DecimalException, *BROKEN)

Sliced = frozenset[type[Model]]

NOT_SLICED: Final[Sliced] = frozenset()

_MEMBERS: Final[dict[FieldKind, Any]] = {
    FieldKind.TEXT: str | None,
    FieldKind.AMOUNT: Any,  # not Decimal, which would take strings as well
    FieldKind.INTEGER: Any,  # not int, which would take 1e20 by way of a float
    FieldKind.FLAG: bool | None,
    FieldKind.DATE: dt.date | None,
    FieldKind.TIMESTAMP: str | None,
}

_MAKE: Final = {FieldKind.AMOUNT: "amount(v)", FieldKind.INTEGER: "doubt(v)", FieldKind.TIMESTAMP: "timestamp(v)"}


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
        fields, unknown = SCHEMA[cls], self._shapes.unknown(cls)
        names: dict[str, Any] = {
            **names_of("Final", cls),
            **names_of("State", WireState),
            "DEFAULT_WIRE_STATE": DEFAULT_WIRE_STATE,
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
        state = (
            f"DEFAULT_WIRE_STATE if not m else usual if m == {usual} else states[m]"
            if needs_mask(members)
            else "DEFAULT_WIRE_STATE"
        )
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
        cls = Timestamp if field.kind is FieldKind.TIMESTAMP else field.model
        if cls in sliced and field.kind is FieldKind.ARRAY:
            return list[msgspec.Raw] | None, "v"
        if cls is None or (cls is Timestamp and reference.is_ours(self._converter, cls)):
            return _MEMBERS[field.kind], _MAKE.get(field.kind, "v")
        if not reference.is_ours(self._converter, cls):
            names[f"read{bit}"] = reference.field_reader(field, self._converter)
            return msgspec.Raw, f"read{bit}(v)"
        assert field.model is not None
        part = self.part(field.model, sliced)
        struct: Any = part.struct
        names[f"one{bit}"], names[f"many{bit}"] = part.one, part.many
        if field.kind is FieldKind.OBJECT:
            return struct | None, f"one{bit}(v)"
        if field.kind is FieldKind.ARRAY:
            return list[struct] | None, f"many{bit}(v)"
        return list[
            struct
        ] | struct | None, f"one{bit}(v) if type(v) is not list else (one{bit}(v[0]),) if len(v) == 1 else many{bit}(v)"


_MAX_STATES: Final = 4096


class States(dict[int, WireState]):
    """Wire states without unknown fields, shared by all objects that look the same.

    A key has one bit for each field that is absent, and above them one for each array that is null.
    """

    def __init__(self, fields: tuple[Field, ...]) -> None:
        super().__init__({0: DEFAULT_WIRE_STATE})
        self._fields = fields

    def __missing__(self, mask: int) -> WireState:
        wires = [field.wire for field in self._fields]
        state = WireState(
            absent=frozenset(wire for bit, wire in enumerate(wires) if mask >> bit & 1),
            nulls=frozenset(wire for bit, wire in enumerate(wires) if mask >> bit + len(wires) & 1),
        )
        if len(self) < _MAX_STATES:
            self[mask] = state
        return state


@cache
def twin(cls: Any) -> tuple[type, Callable[[Any], Any] | None]:
    """A mutable class of the same layout, and what turns its instances into `cls` if an assignment does not."""
    slots = cls.__dict__["__slots__"]
    made = type(f"_{cls.__name__}Twin", cls.__bases__, {"__slots__": slots})
    try:
        made().__class__ = cls
    except TypeError:  # an interpreter that sees another layout
        return made, lambda full: cls(**{a.alias: getattr(full, a.name) for a in attrs_fields(cls)})
    return made, None


def become(name: str, cls: type, variable: str) -> str:
    """The statement that makes a full twin in `variable` an instance of `cls`, which the source knows as `name`."""
    return f"{variable}.__class__ = {name}" if twin(cls)[1] is None else f"{variable} = {name}_from_twin({variable})"


def names_of(name: str, cls: type) -> dict[str, Any]:
    made, convert = twin(cls)
    return {name: cls, f"{name}_twin": made, f"{name}_from_twin": convert}


@frozen
class Member:
    """How a member of the struct `s` becomes a field of the model `o`.

    Attributes:
        bit: its number; the member is `f{bit}`.
        type: of the member.
        optional: it may be UNSET.
        make: an expression of `v` for a value that is neither null nor UNSET; "v" leaves it as it is.
    """

    field: Field
    bit: int
    type: Any
    optional: bool
    make: str

    @property
    def absent(self) -> str:
        return "()" if self.field.kind is FieldKind.ARRAY else "None"


def read_members(members: list[Member], usually_absent: frozenset[str]) -> Iterator[str]:
    """Statements that fill the fields of `o`, and `m` with a bit for each absent field and each null array."""
    rare = [member for member in members if member.optional and member.field.wire in usually_absent]
    if needs_mask(members):
        yield "m = 0"
    if len(rare) > 1:
        yield f"if {' and '.join(f's.f{member.bit} is UNSET' for member in rare)}:"
        yield f"    m = {mask_of(rare)}"
        for value in ("None", "()"):
            targets = [f"o.{member.field.name} = " for member in rare if member.absent == value]
            if targets:
                yield f"    {''.join(targets)}{value}"
        yield "else:"
        for member in rare:
            for line in _read(member, len(members)):
                yield f"    {line}"
        members = [member for member in members if member not in rare]
    for member in members:
        yield from _read(member, len(members) + len(rare))


def needs_mask(members: list[Member]) -> bool:
    return any(member.optional or member.field.kind is FieldKind.ARRAY for member in members)


def mask_of(members: list[Member]) -> int:
    return sum(1 << member.bit for member in members)


def _read(member: Member, width: int) -> Iterator[str]:
    field, make, optional = member.field, member.make, member.optional
    null = f"v = (); m += {1 << member.bit + width}" if field.kind is FieldKind.ARRAY else "pass"
    unset = f"v = {member.absent}; m += {1 << member.bit}"
    if not optional and make == "v" and field.kind is not FieldKind.ARRAY:
        yield f"o.{field.name} = s.f{member.bit}"
        return
    yield f"v = s.f{member.bit}"
    if member.type is Raw:
        yield "if v is not UNSET: v = decode_any(v)"
    if field.kind in (FieldKind.AMOUNT, FieldKind.INTEGER):
        yield f"if v is not None and type(v) is not {'Decimal' if field.kind is FieldKind.AMOUNT else 'int'}:"
        if optional:
            yield f"    if v is UNSET: {unset}"
            yield f"    else: v = {make}"
        else:
            yield f"    v = {make}"
    elif make == "v" and field.kind is not FieldKind.ARRAY:
        yield f"if v is UNSET: {unset}"
    else:
        if optional:
            yield f"if v is UNSET: {unset}"
        yield f"{'elif' if optional else 'if'} v is None: {null}"
        yield f"else: v = {make}"
    yield f"o.{field.name} = v"


def read_unknown(keys: tuple[str, ...], state: str, *, raw: bool) -> Iterator[str]:
    """Statements that put members `x0`, `x1`, ... into the wire state of the model `o`. If `raw`, they are not read yet."""
    check = ["if v is not UNSET: v = decode_unknown(v)"] if raw else []
    check.append("if type(v) in NESTED: bounded(v)")
    yield "v = s.x0"
    yield from check
    yield f"x = {{{keys[0]!r}: v}} if v is not UNSET else {{}}"
    for number, key in enumerate(keys[1:], 1):
        yield f"v = s.x{number}"
        yield from check
        yield f"if v is not UNSET: x[{key!r}] = v"
    yield f"w = {state}"
    yield "if not x: o._wire = w"
    yield "elif w is DEFAULT_WIRE_STATE: o._wire = x"
    yield "else:"
    yield "    e = State_twin()"
    yield "    e.extra = x"
    yield "    e.absent = w.absent"
    yield "    e.nulls = w.nulls"
    yield f"    {become('State', WireState, 'e')}"
    yield "    o._wire = e"


def compile_builders(name: str, body: list[str], names: dict[str, Any], argument: str) -> tuple[Any, Any]:
    """Functions that run `body` for one struct, and for each of a list of them."""
    source = "\n".join(body)
    # As defaults, names are local to the loop. For a single struct they are cheaper as globals.
    locals_ = ", ".join(f"{key}={key}" for key in names if re.search(rf"\b{key}\b", source))
    given = f", {argument}" if argument else ""
    one = [f"def one(s{given}):", *(f"    {line}" for line in body), "    return o"]
    many = [
        f"def many(structs{given}, {locals_}):",
        "    models = []",
        "    append = models.append",
        "    for s in structs:",
        *(f"        {line}" for line in body),
        "        append(o)",
        "    return tuple(models)",
    ]
    exec(_compile("\n".join([*one, *many]), f"<{name} from structs>"), names)
    return names["one"], names["many"]


@lru_cache(maxsize=256)  # most sources stay the same when one class gets another shape
def _compile(source: str, name: str) -> CodeType:
    return compile(source, name, "exec")
