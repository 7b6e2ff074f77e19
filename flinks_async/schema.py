"""The base classes of data, and how a model looks on the wire: the JSON key and the kind of each field, derived once from the attrs
classes. At the end, `maker` makes objects of a frozen class fast.

The wire name of a field is its name in PascalCase, or the one in its metadata (`named`). `wire_fields()` is the only table
of wire names.
"""

from __future__ import annotations

import datetime as dt
import inspect
from abc import ABCMeta, update_abstractmethods
from collections.abc import Callable, Mapping
from copy import deepcopy
from decimal import Clamped, Context, Inexact, InvalidOperation, Overflow, Rounded, Subnormal, Underflow
from enum import Enum
from functools import cache
from operator import attrgetter
from types import MappingProxyType
from typing import (
    Any,
    Final,
    Literal,
    NoReturn,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
)

import msgspec
from attrs import NOTHING, Attribute, evolve, field, fields, frozen

from .checks import counted

P = ParamSpec("P")
T = TypeVar("T")

Missing = Literal["omit", "null"]
"""How `to_dict()` and `to_json()` write fields that have no value and that the server did not send."""


def unknown_count(extra: Mapping[str, Any]) -> str:
    """The `repr` of unknown fields. Their names are not shown, because a server may put anything into them."""
    return counted(len(extra), "unknown field")


@frozen(weakref_slot=False)
class WireState:  # noqa: PLW1641 - unhashable, because `extra` is
    """How one object looked on the wire, in addition to the values of its fields.

    Attributes:
        extra: the unknown fields, by wire name. Numbers with a fraction are `Decimal`.
        absent: wire names of documented fields that the server did not send. It sent all others, perhaps as null.
        nulls: wire names of arrays that the server sent as null. The attribute is an empty tuple.
    """

    extra: Mapping[str, Any] = field(default=MappingProxyType({}), repr=unknown_count)
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
Wire = WireState | dict[str, Any]


def unknown_fields(model: Model) -> Mapping[str, Any]:
    """`model.extra` without the copy. Internal: do not change the result."""
    wire = model._wire
    return wire if isinstance(wire, dict) else wire.extra


class Record:
    """The base of frozen attrs classes with `eq=False, repr=False`: `==`, `hash` and `repr`, as attrs would generate them. To
    compile them for each class takes a third of an import.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return _record_values(self.__class__)(self) == _record_values(self.__class__)(other)  # type: ignore[no-any-return]

    def __hash__(self) -> int:
        return hash((self.__class__, _record_values(self.__class__)(self)))

    def __repr__(self) -> str:
        shown, cls = [], self.__class__
        attributes: tuple[Attribute[Any], ...] = fields(cls)  # type: ignore[arg-type]
        for attribute in attributes:
            if attribute.repr and hasattr(self, attribute.name):  # one may lack in a traceback of `__init__`
                show = attribute.repr if callable(attribute.repr) else repr
                shown.append(f"{attribute.name}={show(getattr(self, attribute.name))}")
        return f"{cls.__qualname__.rpartition('>.')[2]}({', '.join(shown)})"


def _compared(cls: Any) -> Callable[[Any], Any]:
    return attrgetter(*[attribute.name for attribute in fields(cls) if attribute.eq])


_record_values: Final[Callable[[Any], Callable[[Any], Any]]] = cache(_compared)


class Model:
    """The base of the models: unknown fields, and the way back to JSON."""

    __slots__ = ("_wire",)  # no member of the struct, so that msgspec does not write it

    _match_args = ()
    _wire: Wire

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

    __ne__ = object.__ne__  # a struct's own ignores `__eq__`

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
            shown.append(unknown_count(unknown))
        return f"{self.__class__.__name__}({', '.join(shown)})"

    @property
    def __rich_repr__(self) -> NoReturn:
        raise AttributeError  # a struct's own would show what `repr` masks

    # A struct's own copies know its members only, and pickles of it name a private function of msgspec.

    def __copy__(self) -> Self:
        copied: Self = _copy_struct(self)
        _wire_slot.__set__(copied, self._wire)
        if hasattr(self, "__dict__"):  # of a user's subclass
            vars(copied).update(vars(self))
        return copied

    def __replace__(self: Any, /, **changes: Any) -> Any:
        return evolve(self, **changes)

    __reduce__ = object.__reduce__

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__reduce_ex__(self, max(protocol, 2))  # the older protocols cannot make a struct


_wire_slot: Final[Any] = vars(Model)["_wire"]
_copy_struct: Final[Any] = msgspec.Struct.__copy__  # type: ignore[attr-defined]
_ProtocolType: Final[Any] = type(Protocol)


class ModelType(_ProtocolType, msgspec.StructMeta):  # type: ignore[misc]
    """The class of the models. It lets users write a subclass of one as of any attrs class, and mix it with abstract classes and
    protocols: a struct may not have or inherit `__init__`, `__new__` and `__slots__`, and makes fields of annotations.
    """

    # An abstract class would look up classes that were registered with it.
    __instancecheck__, __subclasscheck__ = type.__instancecheck__, type.__subclasscheck__

    def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any], **options: Any) -> Any:
        if options.get("gc") is False:  # a class of this package
            return super().__new__(cls, name, bases, space, **options)
        later = {key: space[key] for key in _SET_LATER if key in space}
        space = {key: value for key, value in space.items() if key not in (*_SET_LATER, "__slots__")}
        structs = tuple(base for base in bases if isinstance(base, ModelType))
        made: Any = super().__new__(_SubclassType, name, structs, space, eq=False, gc=True, dict=True, weakref=True)
        for key, value in later.items():
            setattr(made, key, staticmethod(value) if key == "__new__" else value)
        if structs != bases:
            made.__bases__ = bases
            super(made, made).__init_subclass__(**options)
            update_abstractmethods(made)
        return made

    def __call__(cls, /, *args: Any, wire_state: Wire = DEFAULT_WIRE_STATE, **values: Any) -> Any:
        made = super().__call__(*args, **values)
        _wire_slot.__set__(made, wire_state)
        return made

    @property
    def __signature__(cls: Any) -> inspect.Signature:
        signature = inspect.signature(cls.__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    @property
    def __match_args__(cls) -> Any:  # that of a struct cannot be set
        return cls._match_args

    @__match_args__.setter
    def __match_args__(cls, names: tuple[str, ...]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        cls._match_args = names


class _SubclassType(ModelType):
    __call__ = type.__call__  # a struct does not call `__init__`
    __instancecheck__, __subclasscheck__ = ABCMeta.__instancecheck__, ABCMeta.__subclasscheck__


_SET_LATER: Final = ("__init__", "__new__", "__match_args__", "__annotations__", "__annotate__", "__annotate_func__")
"""Members of a class that a struct refuses, or reads, when the class is made."""


def _decoded_by_msgspec(model: Any) -> None:
    """msgspec calls it for the objects that it makes for users, which have no wire state."""
    _wire_slot.__set__(model, DEFAULT_WIRE_STATE)


def model(cls: type) -> Any:
    """Makes a model: a frozen attrs class that is also an msgspec struct, so that msgspec can fill its objects. Its base is a
    struct with the same fields, which is not frozen.

    The garbage collector does not track the objects: they hold plain values and other models, so they form no cycle.
    """
    made: Any = frozen(cls, kw_only=True, weakref_slot=False, repr=False, eq=False)
    members = [(a.name, a.type, a.default) for a in fields(made) if a.name != "_wire"]
    bases = (*cls.__bases__, msgspec.Struct)
    options: Any = {"kw_only": True, "eq": False, "gc": False}
    struct: Any = msgspec.defstruct(f"_{cls.__name__}", members, bases=bases, module=cls.__module__, **options)
    struct.__setattr__, struct.__delattr__ = object.__setattr__, object.__delattr__
    hidden = (*_SET_LATER, "__slots__", "__annotations_cache__", *made.__slots__)
    space = {name: value for name, value in vars(made).items() if name not in hidden}
    space["__post_init__"] = _decoded_by_msgspec
    result: Any = ModelType(cls.__name__, (struct,), space, **options)
    result.__init__, result.__annotations__ = made.__init__, made.__annotations__
    return result


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


@frozen(weakref_slot=False, eq=False, repr=False)
class Timestamp(Record):
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


_WIRE = "flinks_wire_name"


def named(wire: str) -> dict[str, str]:
    """The metadata of a field whose wire name is not its name in PascalCase."""
    return {_WIRE: wire}


def _make_table(cls: type[Model]) -> tuple[tuple[str, str, Any], ...]:
    return tuple((a.name, a.metadata.get(_WIRE) or _pascal_case(a.name), a.default) for a in _attributes(cls))


_table: Final[Callable[[Any], tuple[tuple[str, str, Any], ...]]] = cache(_make_table)
"""(attribute, wire name, default) of every documented field of a class."""


def _attributes(cls: type[Model]) -> list[Attribute[Any]]:
    attributes: tuple[Attribute[Any], ...] = fields(cls)  # type: ignore[arg-type]
    return [attribute for attribute in attributes if attribute.name not in ("_wire", "meta")]  # not on the wire


def _pascal_case(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def wire_fields(cls: type[Model]) -> tuple[tuple[str, str], ...]:
    """(attribute, wire name) of every documented field of a class, in the order of the documentation."""
    return tuple((name, wire) for name, wire, _ in _table(cls))


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


@frozen(eq=False, repr=False)
class Field(Record):
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


def mutable_class(cls: Any) -> type:
    """A mutable class with the slots of `cls`. Its instances become a `cls` when that is assigned to `__class__`.

    A frozen class can only be filled through `object.__setattr__`, at five times the price of an assignment.

    Raises:
        TypeError: the interpreter considers the layouts of the two classes different.
    """
    mutable = type(f"_Mutable{cls.__name__}", cls.__bases__, {"__slots__": cls.__dict__["__slots__"]})
    mutable().__class__ = cls
    return mutable


def maker(cls: Callable[P, T]) -> Callable[P, T]:
    """A function that does the same as `cls(...)`, in a third of the time. The class is a frozen attrs class with slots and
    plain defaults, and without a weak reference slot, converters and validators.
    """
    frozen_class: Any = cls
    try:
        names: dict[str, Any] = {"cls": cls, "mutable": mutable_class(cls)}
    except TypeError:
        return cls
    parameters, statements = [], []
    for attribute in fields(frozen_class):
        default = f"default_{attribute.name}"
        names[default] = attribute.default
        if attribute.init:
            parameters.append(attribute.name if attribute.default is NOTHING else f"{attribute.name}={default}")
        statements.append(f" made.{attribute.name} = {attribute.name if attribute.init else default}")
    lines = [
        f"def make({', '.join(parameters)}):",
        " made = mutable()",
        *statements,
        " made.__class__ = cls",
        " return made",
    ]
    exec("\n".join(lines), names)
    make: Callable[P, T] = names["make"]
    return make
