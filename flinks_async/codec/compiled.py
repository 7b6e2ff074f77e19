"""The compiled path: bytes to models by structs and functions that are generated from the attrs classes.

msgspec decodes the bytes into structs, and generated functions turn the structs into models. For every body, this path
either returns exactly what the reference path returns, or raises one of `FALLBACK_ERRORS`; then the reference path decides.

Three things make it fast:

- A struct requires the fields that no object of its class has lacked so far (see `ObservedFields`), so that nothing has to look
  for them.
- Amounts are made by a method of a decimal context that traps values out of range, so that they need no second check.
- A model begins as an instance of a mutable class with the same slots, and gets its own frozen class when it is filled (see
  `mutable_class`).

`ObservedFields` records the fields that answers really have: unknown keys and missing fields, by class. The structs are
generated for them. The reference path decodes an answer with other fields and records them; then the structs are generated
again, so that the next answer with these fields is decoded fast.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator
from decimal import Decimal, DecimalException
from functools import lru_cache, partial
from types import CodeType
from typing import Any, Final

import msgspec
from attrs import frozen
from cattrs import Converter
from msgspec import NODEFAULT, UNSET, Raw

from ..models import SCHEMA, Model, PartnerAccessResponse, Timestamp, Transaction
from ..schema import AMOUNT, DEFAULT_WIRE_STATE, Field, FieldKind, WireState, mutable_class
from . import reference
from .observed import OPEN_SETS, ObservedFields, usually_absent
from .on_access import OnAccessAccount, ReadArray, pending_or_none
from .parse import CONTAINERS, PARSE_ERRORS, check_limits, decode_any, decode_unknown


class Fallback(Exception):
    """The compiled path leaves a body to the reference path."""


FALLBACK_ERRORS: Final = (Fallback, reference.StructureError, DecimalException, *PARSE_ERRORS)

RawClasses = frozenset[type[Model]]
"""Classes whose arrays are decoded into lists of raw JSON. The caller replaces them by models."""

NO_RAW_CLASSES: Final[RawClasses] = frozenset()


@frozen
class CompiledClass:
    """The generated code for one class.

    Attributes:
        struct: the class that msgspec fills.
        build: makes a model of a struct.
        build_list: makes a tuple of models of a list of structs.
    """

    struct: Any
    build: Callable[..., Any]
    build_list: Callable[..., tuple[Any, ...]]


DecoderPair = tuple[Callable[[Any], Any], Callable[..., Any]]
"""Two functions: bytes to structs, and structs to models."""


_MEMBER_TYPES: Final[dict[FieldKind, Any]] = {
    FieldKind.TEXT: str | None,
    FieldKind.AMOUNT: Any,  # not Decimal, because msgspec would also accept strings
    FieldKind.INTEGER: Any,  # not int, because msgspec would convert 1e20 through a float
    FieldKind.FLAG: bool | None,
    FieldKind.DATE: dt.date | None,
    FieldKind.TIMESTAMP: str | None,
}

_CONVERSIONS: Final = {
    FieldKind.AMOUNT: "amount(v)",
    FieldKind.INTEGER: "fall_back(v)",
    FieldKind.TIMESTAMP: "timestamp(v)",
}


def _amount(value: object) -> Decimal:
    if type(value) is not int:
        raise Fallback
    return AMOUNT.create_decimal(value)


def _fall_back(value: object) -> Any:
    raise Fallback


class Compiler:
    """Generates code for the hooks of a converter and the fields observed so far. Threads may keep using it while another
    compiles newer fields.

    Args:
        read_later: decodes an array of transactions when it is first read; None if they are decoded with the answer.

    Attributes:
        version: of the observed fields.
    """

    def __init__(self, converter: Converter, observed: ObservedFields, read_later: ReadArray | None = None) -> None:
        self.version = observed.version
        self._converter = converter
        self._observed = observed
        self._read_later = read_later
        self._compiled: dict[tuple[type[Model], RawClasses], CompiledClass] = {}
        self._pairs: dict[tuple[type[Model], RawClasses, bool], DecoderPair] = {}

    def pair(self, cls: type[Model], raw_classes: RawClasses = NO_RAW_CLASSES, *, many: bool = False) -> DecoderPair:
        """The functions for one object of a class, or for `many` in an array.

        Raises:
            Fallback: a user has a hook for the class.
        """
        key = (cls, raw_classes, many)
        found = self._pairs.get(key)
        if found is None:
            if not reference.has_default_hook(self._converter, cls):
                raise Fallback
            compiled = self._class(cls, raw_classes)
            struct: Any = compiled.struct
            struct, build = (list[struct], compiled.build_list) if many else (struct, compiled.build)
            found = msgspec.json.Decoder(struct, float_hook=AMOUNT.create_decimal).decode, build
            self._pairs[key] = found
        return found

    def _class(self, cls: type[Model], raw_classes: RawClasses) -> CompiledClass:
        found = self._compiled.get((cls, raw_classes))
        if found is None:
            found = self._compiled[cls, raw_classes] = self._compile(cls, raw_classes)
        return found

    def _compile(self, cls: type[Model], raw_classes: RawClasses) -> CompiledClass:
        unknown = self._observed.unknown(cls)
        try:
            mutable, mutable_state = mutable_class(cls), mutable_class(WireState)
        except TypeError:
            raise Fallback from None
        names: dict[str, Any] = {
            "Final": cls,
            "Final_mutable": mutable,
            "State": WireState,
            "State_mutable": mutable_state,
            "Class": cls,
            "CONTAINERS": CONTAINERS,
            "DEFAULT": DEFAULT_WIRE_STATE,
            "Decimal": Decimal,
            "UNSET": UNSET,
            "amount": _amount,
            "check_limits": check_limits,
            "decode_any": decode_any,
            "decode_unknown": decode_unknown,
            "fall_back": _fall_back,
            "states": reference.WireStates(SCHEMA[cls]),
            "timestamp": Timestamp.parse,
            "len": len,
            "list": list,
            "odd": self._observed.odd.add,
            "int": int,
            "type": type,
        }
        members = [self._member(cls, field, bit, raw_classes, names) for bit, field in enumerate(SCHEMA[cls])]
        often_absent = usually_absent(cls)
        usual = mask_of([member for member in members if member.field.wire in often_absent])
        names["usual"] = names["states"][usual]
        state = f"DEFAULT if not m else usual if m == {usual} else states[m]" if needs_mask(members) else "DEFAULT"
        body = [
            "o = Final_mutable()",
            *read_members(members, often_absent),
            *self._find_odd(cls, members, names),
            *(read_unknown(unknown, state, raw=bool(raw_classes)) if unknown else [f"o._wire = {state}"]),
            *(["o.meta = meta"] if cls is PartnerAccessResponse else []),
            "o.__class__ = Final",
        ]
        if any(member.convert == "read_later(v)" for member in members):
            names["Final"] = OnAccessAccount
        argument = "meta" if cls is PartnerAccessResponse else ""
        build, build_list = compile_builders(cls.__name__, body, names, argument)
        return CompiledClass(_struct(cls, members, unknown, Raw if raw_classes else Any), build, build_list)

    def _find_odd(self, cls: type[Model], members: list[Member], names: dict[str, Any]) -> Iterator[str]:
        """Statements that note documented fields that are missing, and new values of open sets."""
        if expected := mask_of([m for m in members if m.optional and m.field.wire not in usually_absent(cls)]):
            yield f"if m & {expected} != last: last = m & {expected}; odd((Class, last))"
        names |= {
            f"unknown{n}": self._observed.unknown_field(cls, key) for n, key in enumerate(self._observed.unknown(cls))
        }
        if reference.has_default_hook(self._converter, str):  # a value of a hook may be anything
            for name in OPEN_SETS.get(cls, ()):
                names[f"known_{name}"], names[f"new_{name}"] = self._observed.known_values(cls, name)
                yield f"if o.{name} not in known_{name}: new_{name}(o.{name})"

    def _member(
        self, cls: type[Model], field: Field, bit: int, raw_classes: RawClasses, names: dict[str, Any]
    ) -> Member:
        type_, convert = self._type(field, bit, raw_classes, names)
        return Member(field, bit, type_, field.wire in self._observed.optional(cls), convert)

    def _type(self, field: Field, bit: int, raw_classes: RawClasses, names: dict[str, Any]) -> tuple[Any, str]:
        """The type of a struct's member, and the expression that converts its value `v`."""
        cls = field.model or reference.TYPES[field.kind]
        if cls is Transaction and self._read_later is not None and not raw_classes:
            names["read_later"] = partial(pending_or_none, self._read_later)
            return Raw, "read_later(v)"
        if cls in raw_classes and field.kind is FieldKind.ARRAY:
            return list[Raw] | None, "v"
        if field.model is None and reference.has_default_hook(self._converter, cls):
            return _MEMBER_TYPES[field.kind], _CONVERSIONS.get(field.kind, "v")
        if not reference.has_default_hook(self._converter, cls):
            names[f"read{bit}"] = reference.field_reader(field, self._converter)
            return Raw, f"read{bit}(v)"
        assert field.model is not None
        compiled = self._class(field.model, raw_classes)
        struct: Any = compiled.struct
        one, many = f"build{bit}", f"build_list{bit}"
        names[one], names[many] = compiled.build, compiled.build_list
        if field.kind is FieldKind.OBJECT:
            return struct | None, f"{one}(v)"
        if field.kind is FieldKind.ARRAY:
            return list[struct] | None, f"{many}(v)"
        return (
            list[struct] | struct | None,
            f"{one}(v) if type(v) is not list else ({one}(v[0]),) if len(v) == 1 else {many}(v)",
        )


def _struct(cls: type[Model], members: list[Member], unknown: tuple[str, ...], unknown_type: Any) -> Any:
    documented = [
        (f"f{m.bit}", m.type, msgspec.field(name=m.field.wire, default=UNSET if m.optional else NODEFAULT))
        for m in members
    ]
    others = [(f"x{n}", unknown_type, msgspec.field(name=key, default=UNSET)) for n, key in enumerate(unknown)]
    return msgspec.defstruct(cls.__name__, [*documented, *others], forbid_unknown_fields=True, gc=False, kw_only=True)


# --- the source of a builder: how the struct `s` becomes the model `o` ---


@frozen
class Member:
    """A member of the struct `s` that becomes a field of the model `o`.

    Attributes:
        bit: its number. The member is `f{bit}`.
        type: the type that msgspec decodes.
        optional: whether it may be UNSET.
        convert: an expression of `v` for a value other than null and UNSET. "v" leaves it as it is.
    """

    field: Field
    bit: int
    type: Any
    optional: bool
    convert: str

    @property
    def absent(self) -> str:
        return "()" if self.field.kind is FieldKind.ARRAY else "None"


def read_members(members: list[Member], usually_absent: frozenset[str]) -> Iterator[str]:
    """Statements that fill the fields of `o`, and the mask `m` of its absent fields and null arrays (see `WireStates`)."""
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
    field, convert, optional = member.field, member.convert, member.optional
    null = f"v = (); m += {1 << member.bit + width}" if field.kind is FieldKind.ARRAY else "pass"
    unset = f"v = {member.absent}; m += {1 << member.bit}"
    if not optional and convert == "v" and field.kind is not FieldKind.ARRAY:
        yield f"o.{field.name} = s.f{member.bit}"
        return
    yield f"v = s.f{member.bit}"
    if member.type is Raw:
        yield f"if v is not UNSET: v = {convert if convert == 'read_later(v)' else 'decode_any(v)'}"
    if field.kind in (FieldKind.AMOUNT, FieldKind.INTEGER) and member.type is not Raw:
        yield f"if v is not None and type(v) is not {'Decimal' if field.kind is FieldKind.AMOUNT else 'int'}:"
        if optional:
            yield f"    if v is UNSET: {unset}"
            yield f"    else: v = {convert}"
        else:
            yield f"    v = {convert}"
    elif convert == "v" and field.kind is not FieldKind.ARRAY:
        yield f"if v is UNSET: {unset}"
    else:
        if optional:
            yield f"if v is UNSET: {unset}"
        yield f"{'elif' if optional else 'if'} v is None: {null}"
        if convert != "read_later(v)":
            yield f"else: v = {convert}"
    yield f"o.{field.name} = v"


def read_unknown(keys: tuple[str, ...], state: str, *, raw: bool) -> Iterator[str]:
    """Statements that put the unknown members `x0`, `x1`, ... into `o._wire`.

    Args:
        state: the expression of the wire state without unknown fields.
        raw: whether the members are raw JSON, which must still be decoded.
    """
    check = ["if v is not UNSET: v = decode_unknown(v)"] if raw else []
    check.append("if type(v) in CONTAINERS: check_limits(v)")
    yield "x = {}"
    for number, key in enumerate(keys):
        yield f"v = s.x{number}"
        yield from check
        yield f"if v is not UNSET: x[{key!r}] = v; odd(unknown{number})"
    yield f"w = {state}"
    yield "if not x: o._wire = w"
    yield "elif w is DEFAULT: o._wire = x"
    yield "else:"
    yield "    e = State_mutable()"
    yield "    e.extra = x"
    yield "    e.absent = w.absent"
    yield "    e.nulls = w.nulls"
    yield "    e.__class__ = State"
    yield "    o._wire = e"


def compile_builders(name: str, body: list[str], names: dict[str, Any], argument: str) -> tuple[Any, Any]:
    """Two functions that run `body`: for one struct, and for each struct of a list."""
    source = "\n".join(body)
    parameter = f", {argument}" if argument else ""
    # In the loop, default arguments make the names local, which is faster. For a single struct, globals are cheaper.
    locals_ = ", ".join(f"{key}={key}" for key in names if re.search(rf"\b{key}\b", source))
    build = [f"def build(s{parameter}):", "    last = 0", *(f"    {line}" for line in body), "    return o"]
    build_list = [
        f"def build_list(structs{parameter}, {locals_}):",
        "    models = []",
        "    append = models.append",
        "    last = 0",
        "    for s in structs:",
        *(f"        {line}" for line in body),
        "        append(o)",
        "    return tuple(models)",
    ]
    exec(_compile("\n".join([*build, *build_list]), f"<{name} from structs>"), names)
    return names["build"], names["build_list"]


@lru_cache(maxsize=256)  # most sources stay the same when a new field is observed in one class
def _compile(source: str, name: str) -> CodeType:
    return compile(source, name, "exec")
