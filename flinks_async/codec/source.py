"""The Python source of the functions that turn structs into models, and the twins that they fill.

A frozen class can only be filled through `object.__setattr__`, at five times the price of a plain assignment. So a
model begins as an instance of its *twin*, a mutable class of the same layout, and gets its own class when it is full.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from types import CodeType
from typing import Any, Final

from attrs import fields as attrs_fields
from attrs import frozen
from msgspec import Raw

from ..models import COMPLETE, WireState
from .plan import Field, Kind

_MAX_STATES: Final = 4096


class States(dict[int, WireState]):
    """Wire states without unknown fields, shared by all objects that look the same.

    A key has one bit for each field that is absent, and above them one for each array that is null.
    """

    def __init__(self, fields: tuple[Field, ...]) -> None:
        super().__init__({0: COMPLETE})
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
        return "()" if self.field.kind is Kind.ARRAY else "None"


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
    return any(member.optional or member.field.kind is Kind.ARRAY for member in members)


def mask_of(members: list[Member]) -> int:
    return sum(1 << member.bit for member in members)


def _read(member: Member, width: int) -> Iterator[str]:
    field, make, optional = member.field, member.make, member.optional
    null = f"v = (); m += {1 << member.bit + width}" if field.kind is Kind.ARRAY else "pass"
    unset = f"v = {member.absent}; m += {1 << member.bit}"
    if not optional and make == "v" and field.kind is not Kind.ARRAY:
        yield f"o.{field.name} = s.f{member.bit}"
        return
    yield f"v = s.f{member.bit}"
    if member.type is Raw:
        yield "if v is not UNSET: v = decode_any(v)"
    if field.kind in (Kind.AMOUNT, Kind.INTEGER):
        yield f"if v is not None and type(v) is not {'Decimal' if field.kind is Kind.AMOUNT else 'int'}:"
        if optional:
            yield f"    if v is UNSET: {unset}"
            yield f"    else: v = {make}"
        else:
            yield f"    v = {make}"
    elif make == "v" and field.kind is not Kind.ARRAY:
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
    yield "elif w is COMPLETE: o._wire = x"
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
