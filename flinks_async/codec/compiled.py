"""The compiled path: bytes to models by structs and functions that are generated from the models.

msgspec decodes the bytes into structs, and generated functions turn the structs into models. For every body, this path
either returns exactly what the reference path returns, or raises one of `FALLBACK_ERRORS`; then the reference path decides.

Three things make it fast:

- A struct requires the fields that no object of its class has lacked so far (see `ObservedFields`), so that nothing has to look
  for them.
- Amounts are made by a method of a decimal context that traps values out of range, so that they need no second check.
- A struct has the layout of its model, but is mutable. When its values are checked, the object itself becomes a model by
  assignment of `__class__`. Only an object with unknown fields is made again, because it has other members.

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
from itertools import repeat
from types import CodeType
from typing import Any, Final

import msgspec
from attrs import frozen
from cattrs import Converter
from msgspec import NODEFAULT, UNSET, Raw

from ..models import NO_META, SCHEMA, Model, PartnerAccessResponse, Timestamp, Transaction
from ..schema import AMOUNT, DEFAULT_WIRE_STATE, Field, FieldKind, WireState
from . import reference
from .observed import OPEN_SETS, USUALLY_ABSENT, ObservedFields
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
        build_list: makes a tuple of models of a tuple of structs.
        in_place: whether the structs themselves become the models.
    """

    struct: Any
    build: Callable[..., Any]
    build_list: Callable[..., tuple[Any, ...]]
    in_place: bool


DecoderPair = tuple[Callable[[Any], Any], Callable[..., Any]]
"""Two functions: bytes to structs, and structs to models."""


class _NeverDecoded:
    """The type of a member that is not decoded: no JSON value has it. Its key begins with "-", so it is none that is learned."""


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
            struct, build = (tuple[struct, ...], compiled.build_list) if many else (struct, compiled.build)
            found = msgspec.json.Decoder(struct, float_hook=AMOUNT.create_decimal).decode, build
            self._pairs[key] = found
        return found

    def _class(self, cls: type[Model], raw_classes: RawClasses) -> CompiledClass:
        found = self._compiled.get((cls, raw_classes))
        if found is None:
            found = self._compiled[cls, raw_classes] = self._compile(cls, raw_classes)
        return found

    def _compile(self, cls: type[Model], raw_classes: RawClasses) -> CompiledClass:
        unknown = self._observed.unknown[cls]
        names: dict[str, Any] = {
            "Final": cls,
            "State": WireState,
            "New": cls.__base__,  # the struct of the model is made faster than the model
            "Class": cls,
            "CONTAINERS": CONTAINERS,
            "DEFAULT": DEFAULT_WIRE_STATE,
            "Decimal": Decimal,
            "UNSET": UNSET,
            "any": any,
            "amount": _amount,
            "check_limits": check_limits,
            "decode_any": decode_any,
            "decode_unknown": decode_unknown,
            "fall_back": _fall_back,
            "states": reference.WireStates(SCHEMA[cls]),
            "timestamp": Timestamp.parse,
            "len": len,
            "map": map,
            "setattr": setattr,
            "key": repeat("__class__"),
            "tuple": tuple,
            "odd": self._observed.odd.add,
            "int": int,
            "type": type,
        }
        hidden = self._observed.hidden[cls]
        members = [self._member(cls, field, bit, raw_classes, names) for bit, field in enumerate(SCHEMA[cls])]
        never = [member for member in members if member.field.wire in hidden]
        members = [member for member in members if member.field.wire not in hidden]
        usual = mask_of(never)
        names["usual"] = names["states"][usual]
        if any(member.convert == "read_later(v)" for member in members):
            names["Final"] = OnAccessAccount
        names["finals"] = repeat(names["Final"])
        internal = {member.field.name: member.absent_value for member in never}
        meta = cls is PartnerAccessResponse
        if meta:
            internal["meta"] = NO_META
        struct = _struct(cls, members, internal, unknown, Raw if raw_classes else Any)
        _check_layout(names["New"] if unknown else struct, names["Final"])
        body = [*read_members(members, usual, len(SCHEMA[cls])), *self._find_odd(cls, members, names)]
        state = f"usual if m == {usual} else states[m]" if needs_mask(members) else "usual"
        if unknown:
            body += read_unknown(unknown, state, raw=bool(raw_classes))
            values = ", ".join(f"{field.name}=s.{field.name}" for field in SCHEMA[cls])
            body += [f"s = New({values})", "s._wire = w"]
        else:
            body.append(f"s._wire = {state}")
        if meta:
            body.append("s.meta = meta")
        build, build_list = compile_builders(cls.__name__, body, names, "meta" if meta else "", new=bool(unknown))
        return CompiledClass(struct, build, build_list, in_place=not unknown)

    def _find_odd(self, cls: type[Model], members: list[Member], names: dict[str, Any]) -> Iterator[str]:
        """Statements that note documented fields that are missing, and new values of open sets."""
        if expected := mask_of([m for m in members if m.optional and m.field.wire not in USUALLY_ABSENT[cls]]):
            yield f"if m & {expected} != last: last = m & {expected}; odd((Class, last))"
        names |= {
            f"unknown{n}": self._observed.unknown_field(cls, key) for n, key in enumerate(self._observed.unknown[cls])
        }
        if reference.has_default_hook(self._converter, str):  # a value of a hook may be anything
            for name in OPEN_SETS.get(cls, ()):
                names[f"known_{name}"], names[f"new_{name}"] = self._observed.known_values(cls, name)
                yield f"if s.{name} not in known_{name}: new_{name}(s.{name})"

    def _member(
        self, cls: type[Model], field: Field, bit: int, raw_classes: RawClasses, names: dict[str, Any]
    ) -> Member:
        type_, convert, in_place = self._type(field, bit, raw_classes, names)
        return Member(field, bit, type_, field.wire in self._observed.optional[cls], convert, in_place)

    def _type(self, field: Field, bit: int, raw_classes: RawClasses, names: dict[str, Any]) -> tuple[Any, str, bool]:
        """The type of a struct's member, the expression that converts its value `v`, and whether that changes `v` itself."""
        cls = field.model or reference.TYPES[field.kind]
        if cls is Transaction and self._read_later is not None and not raw_classes:
            names["read_later"] = partial(pending_or_none, self._read_later)
            return Raw, "read_later(v)", False
        if cls in raw_classes and field.kind is FieldKind.ARRAY:
            return list[Raw] | None, "v", False
        if field.model is None and reference.has_default_hook(self._converter, cls):
            return _MEMBER_TYPES[field.kind], _CONVERSIONS.get(field.kind, "v"), False
        if not reference.has_default_hook(self._converter, cls):
            names[f"read{bit}"] = reference.field_reader(field, self._converter)
            return Raw, f"read{bit}(v)", False
        assert field.model is not None
        compiled = self._class(field.model, raw_classes)
        struct: Any = compiled.struct
        one, many = f"build{bit}", f"build_list{bit}"
        names[one], names[many] = compiled.build, compiled.build_list
        if field.kind is FieldKind.OBJECT:
            return struct | None, f"{one}(v)", compiled.in_place
        if field.kind is FieldKind.ARRAY:
            return tuple[struct, ...] | None, f"{many}(v)", compiled.in_place
        single = f"{one}(v[0])" if compiled.in_place else f"({one}(v[0]),)"  # `build` is faster for one
        convert = f"{one}(v) if type(v) is not tuple else {single} if len(v) == 1 else {many}(v)"
        return tuple[struct, ...] | struct | None, convert, compiled.in_place


def _struct(
    cls: type[Model], members: list[Member], internal: dict[str, Any], unknown: tuple[str, ...], unknown_type: Any
) -> Any:
    found = [(m.field.name, m.type, _json(m.field.wire, UNSET if m.optional else NODEFAULT)) for m in members]
    found += [(name, _NeverDecoded, _json(f"-{name}", value)) for name, value in internal.items()]
    found += [(f"x{n}", unknown_type, _json(key, UNSET)) for n, key in enumerate(unknown)]
    options: Any = {"forbid_unknown_fields": True, "kw_only": True, "eq": False, "gc": False}
    base: Any = cls.__base__
    struct: Any = msgspec.defstruct(f"_{cls.__name__}", found, bases=(base,), **options)
    # Set afterwards, because msgspec would replace them by a function for which Python's interpreter has no fast path.
    struct.__setattr__, struct.__delattr__ = object.__setattr__, object.__delattr__
    return struct


def _json(key: str, default: Any) -> Any:
    return msgspec.field(name=key, default=default)


def _check_layout(struct: Any, cls: type[Model]) -> None:
    """Raises Fallback if the interpreter does not let an object of the struct become one of the class."""
    try:
        object.__setattr__(object.__new__(struct), "__class__", cls)
    except TypeError:
        raise Fallback from None


# --- the source of a builder: how the struct `s` becomes a model ---


@frozen
class Member:
    """A member of the struct `s` that becomes a field of the model.

    Attributes:
        bit: its number.
        type: the type that msgspec decodes.
        optional: whether it may be UNSET.
        convert: an expression of `v` for a value other than null and UNSET. "v" leaves it as it is.
        in_place: whether `convert` changes the value itself.
    """

    field: Field
    bit: int
    type: Any
    optional: bool
    convert: str
    in_place: bool

    @property
    def absent_value(self) -> Any:
        return () if self.field.kind is FieldKind.ARRAY else None


def read_members(members: list[Member], usual: int, width: int) -> Iterator[str]:
    """Statements that convert the values of `s`, and find the mask `m` of absent fields and null arrays (see `WireStates`).

    Args:
        usual: the mask of the fields that are no members.
        width: the number of all fields.
    """
    if needs_mask(members):
        yield f"m = {usual}"
    for member in members:
        yield from _read(member, width)


def needs_mask(members: list[Member]) -> bool:
    return any(member.optional or member.field.kind is FieldKind.ARRAY for member in members)


def mask_of(members: list[Member]) -> int:
    return sum(1 << member.bit for member in members)


def _read(member: Member, width: int) -> Iterator[str]:
    field, convert, optional = member.field, member.convert, member.optional
    place, array = f"s.{field.name}", field.kind is FieldKind.ARRAY
    if convert == "v" and not optional and not array:
        return
    yield f"v = {place}"
    if optional:
        yield f"if v is UNSET: {place} = {member.absent_value}; m += {1 << member.bit}"
    start, store = "elif" if optional else "if", f"{'' if member.in_place else f'{place} = '}{convert}"
    if member.type is Raw:
        later = convert == "read_later(v)"
        yield "if v is not UNSET:"
        yield f"    v = {convert if later else 'decode_any(v)'}"
        yield f"    if v is None: {f'v = (); m += {1 << member.bit + width}' if array else 'pass'}"
        if not later:
            yield f"    else: v = {convert}"
        yield f"    {place} = v"
    elif array:
        yield f"{start} v is None: {place} = (); m += {1 << member.bit + width}"
        if convert != "v":
            yield f"else: {store}"
    elif field.kind in (FieldKind.AMOUNT, FieldKind.INTEGER):
        right = "Decimal" if field.kind is FieldKind.AMOUNT else "int"
        yield f"{start} v is not None and type(v) is not {right}: {store}"
    elif convert != "v":
        yield f"{start} v is not None: {store}"


def read_unknown(keys: tuple[str, ...], state: str, *, raw: bool) -> Iterator[str]:
    """Statements that make the wire state `w`, with the unknown members `x0`, `x1`, ...

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
    yield "if x: w = x if w is DEFAULT else State(x, w.absent, w.nulls)"


def compile_builders(name: str, body: list[str], names: dict[str, Any], argument: str, *, new: bool) -> tuple[Any, Any]:
    """Two functions that run `body`: for one struct, and for each struct of a tuple.

    Args:
        new: whether `body` makes a new object that becomes the model; else the struct itself does.
    """
    source = "\n".join([*body, "setattr key finals map any"])
    parameter = f", {argument}" if argument else ""
    # In the loop, default arguments make the names local, which is faster. For a single struct, globals are cheaper.
    locals_ = ", ".join(f"{key}={key}" for key in names if re.search(rf"\b{key}\b", source))
    end = ["s.__class__ = Final", "return s"]
    first = ["    last = 0"] if re.search(r"\blast\b", source) else []
    build = [f"def build(s{parameter}):", *first, *(f"    {line}" for line in [*body, *end])]
    loop = [*body, "append(s)"] if new else body
    build_list = [
        f"def build_list(structs{parameter}, {locals_}):",
        *first,
        *(["    models = []", "    append = models.append"] if new else []),
        "    for s in structs:",
        *(f"        {line}" for line in loop),
        f"    any(map(setattr, {'models' if new else 'structs'}, key, finals))  # faster than in the loop",
        f"    return {'tuple(models)' if new else 'structs'}",
    ]
    exec(_compile("\n".join([*build, *build_list]), f"<{name} from structs>"), names)
    for builder in (names["build"], names["build_list"]):
        # A copy, because the interpreter specializes code for the classes that it meets, and each codec has its own structs.
        builder.__code__ = builder.__code__.replace()
    return names["build"], names["build_list"]


@lru_cache(maxsize=256)  # most sources stay the same when a new field is observed in one class
def _compile(source: str, name: str) -> CodeType:
    return compile(source, name, "exec")
