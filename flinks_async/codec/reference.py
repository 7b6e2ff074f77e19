"""The reference path: plain Python to models, one field after the other. It defines the result of decoding.

Each class has a cattrs structure hook, made by a hook factory. A hook that a user registers for one of the classes
replaces it, wherever the class occurs.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from decimal import Decimal, DecimalException
from typing import Any, Final

from attrs import frozen
from cattrs import Converter, StructureHandlerNotFoundError
from cattrs.dispatch import StructureHook

from ..errors import DecodeError, WrongTypeError
from ..models import KINDS, MODELS, SCHEMA, Model, Timestamp
from ..schema import AMOUNT, DEFAULT_WIRE_STATE, Field, FieldKind, WireState
from .parse import CONTAINERS, MAX_KEYS, TooDeep, TooMany, check_limits, json_error

Reader = Callable[[Any], Any]
"""Converts one JSON value. Raises StructureError."""

Tell = Callable[[type[Model], str, str], None]
"""Takes the class and the field of a value of the wrong type that was kept in `extra`, and its description."""

Record = Callable[[type[Model], Iterable[str], Iterable[str]], None]
"""Takes a class, and the unknown keys and the absent fields of one object."""

MAX_STATES: Final = 4096
"""Wire states without unknown fields that are cached for one class."""

_JSON_TYPES: Final = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "a number",
    Decimal: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


class StructureError(WrongTypeError):
    """A value of the wrong type, while the error passes the objects and arrays around it. `message` has no path yet."""

    def prepend(self, place: str) -> None:
        """Adds a field or an index in front of the path."""
        if self.path is None:
            self.path = place
        else:
            self.path = f"{place}{self.path}" if self.path.startswith("[") else f"{place}.{self.path}"

    def final(self) -> WrongTypeError:
        """The error to raise. It drops the frames and the context of this one, because they may hold data."""
        return WrongTypeError(f"{self.path}: {self.message}" if self.path else self.message, path=self.path)


_OWN: Final = "_of_converter"
"""Marks an error of our hooks, whose text holds nothing of the body."""


def _wrong_type(expected: str, value: object) -> StructureError:
    return StructureError(f"expected {expected}, found {_JSON_TYPES.get(type(value), type(value).__name__)}")


# --- hooks ---


def register(converter: Converter, record: Record, tell: Tell | None = None) -> None:
    """Registers the hooks of the models. A user's hook for one of them wins, whichever was registered first.

    Args:
        record: is called for each object.
        tell: if given, a value of the wrong type is kept in `extra` and told instead of raising an error.
    """

    def factory(cls: type[Model], converter: Converter) -> StructureHook:
        return _structure_hook(cls, converter, record, tell)

    converter.register_structure_hook_factory(lambda cls: any(cls is model for model in MODELS), factory)
    converter.register_structure_hook_func(lambda cls: cls is Timestamp, _timestamp)
    converter.register_unstructure_hook_func(
        lambda cls: isinstance(cls, type) and issubclass(cls, Model), lambda model: model.to_dict()
    )
    converter.register_unstructure_hook_func(lambda cls: cls is Timestamp, lambda timestamp: timestamp.text)


def has_default_hook(converter: Converter, cls: type) -> bool:
    """Whether this package structures a class, not a hook of a user."""
    if cls in _BY_TYPE:
        try:
            hook = converter.get_structure_hook(cls)
        except StructureHandlerNotFoundError:
            return True
        # cattrs has hooks of its own for some types.
        return str(getattr(hook, "__module__", "")).partition(".")[0] == "cattrs"
    hook = converter.get_structure_hook(cls)
    return hook is _timestamp or getattr(hook, "flinks_model", None) is cls


def reader(converter: Converter, cls: type) -> Reader:
    """The reader of a class: its hook, whose exceptions become StructureErrors."""
    if has_default_hook(converter, cls):
        if cls in _BY_TYPE:
            return _BY_TYPE[cls]
        own: Any = converter.get_structure_hook(cls)
        read_own: Reader = getattr(own, "flinks_read", own)
        return read_own
    hook = converter.get_structure_hook(cls)

    def read(value: Any) -> Any:
        try:
            return hook(value, cls)
        except Exception as error:
            inner = None
            if isinstance(error, WrongTypeError) and _OWN in vars(error):  # the user's hook has called the converter
                inner = StructureError(error.message.removeprefix(f"{error.path}: "), path=error.path)
            reason = type(error).__name__
        if inner is not None:
            raise inner
        raise StructureError(f"the hook for {cls.__name__} raised {reason}")

    return read


class WireStates(dict[int, WireState]):
    """Wire states without unknown fields, by mask. All objects that look the same share one.

    A mask has one bit for each absent field, and above them one bit for each array that is null.
    """

    def __init__(self, fields: tuple[Field, ...]) -> None:
        super().__init__()
        self._fields = fields

    def __missing__(self, mask: int) -> WireState:
        if not mask:
            return DEFAULT_WIRE_STATE
        wires = [field.wire for field in self._fields]
        state = WireState(
            absent=frozenset(wire for bit, wire in enumerate(wires) if mask >> bit & 1),
            nulls=frozenset(wire for bit, wire in enumerate(wires) if mask >> bit + len(wires) & 1),
        )
        if len(self) < MAX_STATES:
            self[mask] = state
        return state


def _structure_hook(cls: type[Model], converter: Converter, record: Record, tell: Tell | None) -> StructureHook:
    fields = [(field, field_reader(field, converter)) for field in SCHEMA[cls]]
    known = {field.wire for field, _ in fields}
    states, width = WireStates(SCHEMA[cls]), len(fields)

    def read_object(value: Any) -> Model:
        if type(value) is not dict:
            raise _wrong_type(FieldKind.OBJECT.value, value)
        if len(value) > MAX_KEYS:
            raise TooMany
        values: dict[str, Any] = {}
        wrong: dict[str, Any] = {}
        mask = 0
        for bit, (field, read) in enumerate(fields):
            if field.wire not in value:
                mask |= 1 << bit
                continue
            item = value[field.wire]
            if item is None:
                if field.kind is FieldKind.ARRAY:
                    mask |= 1 << bit + width
                continue
            try:
                values[field.name] = read(item)
            except StructureError as error:
                error.prepend(field.wire)
                if tell is None:
                    raise
                tell(cls, field.wire, f"{error.path}: {error.message}")
                wrong[field.wire] = item.as_json() if type(item) is PartlyRead else item
        extra = {wire: item for wire, item in value.items() if wire not in known}
        for item in (*extra.values(), *wrong.values()):
            if type(item) in CONTAINERS:
                check_limits(item)
        state = states[mask]
        record(cls, extra, state.absent)
        extra.update(wrong)
        if extra:
            values["wire_state"] = WireState(extra, state.absent, state.nulls) if mask else extra
        else:
            values["wire_state"] = state
        return cls(**values)

    def structure(value: Any, _: Any = None) -> Model:
        """For users who call the converter themselves."""
        problem: DecodeError
        try:
            return read_object(value)
        except StructureError as error:
            problem = error.final()
            vars(problem)[_OWN] = True
        except (TooDeep, TooMany) as error:
            problem = json_error(b"{", error)
        del value  # the traceback must not show it
        raise problem

    structure.flinks_model, structure.flinks_read = cls, read_object  # type: ignore[attr-defined]
    return structure


# --- readers of fields ---


def field_reader(field: Field, converter: Converter) -> Reader:
    """The reader of a field's values, except null."""
    if field.kind is FieldKind.TIMESTAMP:
        return reader(converter, Timestamp)
    if field.model is None:
        return reader(converter, TYPES[field.kind])
    read_object = _LazyReader(converter, field.model)
    if field.kind is FieldKind.OBJECT:
        return read_object
    read_array = _array_reader(read_object)
    if field.kind is FieldKind.ARRAY:
        return read_array

    def read_either(value: Any) -> Any:
        if type(value) is dict:
            return read_object(value)
        if type(value) is not list and type(value) is not PartlyRead:
            raise _wrong_type(FieldKind.ONE_OR_MANY.value, value)
        return read_array(value)

    return read_either


class _LazyReader:
    """The reader of a class, looked up at its first use, so that users can register hooks until then."""

    __slots__ = ("cls", "converter", "read")

    def __init__(self, converter: Converter, cls: type) -> None:
        self.converter = converter
        self.cls = cls
        self.read: Reader | None = None

    def __call__(self, value: Any) -> Any:
        if self.read is None:
            self.read = reader(self.converter, self.cls)
        return self.read(value)


@frozen
class PartlyRead:
    """An array whose first items were already read, in steps.

    Attributes:
        models: the items that were read.
        rest: the JSON values of all other items.
    """

    models: list[Any]
    rest: list[Any]

    def as_json(self) -> list[Any]:
        """The whole array as it was."""
        return [model.to_dict() if isinstance(model, Model) else model for model in self.models] + self.rest


def _array_reader(read: Reader) -> Reader:
    def read_array(value: Any) -> tuple[Any, ...]:
        if type(value) is PartlyRead:
            return (*value.models, *read_items(value.rest, read, len(value.models)))
        if type(value) is not list:
            raise _wrong_type(FieldKind.ARRAY.value, value)
        return tuple(read_items(value, read))

    return read_array


def read_items(values: list[Any], read: Reader, start: int = 0) -> list[Any]:
    """Reads the items of an array, or of the part of an array that begins at index `start`."""
    result: list[Any] = []
    try:
        for value in values:
            if value is None:
                raise _wrong_type(FieldKind.OBJECT.value, value)
            result.append(read(value))
    except StructureError as error:
        error.prepend(f"[{start + len(result)}]")
        raise
    return result


def _text(value: Any) -> str:
    if type(value) is not str:
        raise _wrong_type(FieldKind.TEXT.value, value)
    return value


def _amount(value: Any) -> Decimal:
    if type(value) is not Decimal and type(value) is not int:
        raise _wrong_type(FieldKind.AMOUNT.value, value)
    try:
        result = AMOUNT.create_decimal(value)
    except DecimalException:
        result = None
    if result is None or not result.is_finite():
        raise StructureError("amount out of range")
    return result


def _integer(value: Any) -> int:
    if type(value) is int:
        return value
    if type(value) is not Decimal:
        raise _wrong_type(FieldKind.INTEGER.value, value)
    if not value.is_finite() or value.adjusted() > 28 or value != value.to_integral_value():
        raise StructureError("expected an integer, found another number")
    return int(value)


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong_type(FieldKind.FLAG.value, value)
    return value


_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _date(value: Any) -> dt.date:
    if type(value) is not str:
        raise _wrong_type(FieldKind.DATE.value, value)
    result = None
    if _DATE.fullmatch(value):
        with suppress(ValueError):
            result = dt.date.fromisoformat(value)
    if result is None:
        raise StructureError("expected a date (YYYY-MM-DD), found another string")
    return result


def _timestamp(value: Any, _: Any = None) -> Timestamp:
    if type(value) is not str:
        raise _wrong_type(FieldKind.TIMESTAMP.value, value)
    return Timestamp.parse(value)


_BY_TYPE: Final[dict[type, Reader]] = {str: _text, Decimal: _amount, int: _integer, bool: _flag, dt.date: _date}

TYPES: Final[dict[FieldKind, type]] = {kind: type_ for type_, kind in KINDS.items()}
