"""Plain Python to models, one field after the other: the meaning of "decode", by which the fast path is judged.

Each class gets a cattrs structure hook from a hook factory, so a hook that a user registers for one of the classes
takes its place, wherever the class occurs.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from decimal import Decimal, DecimalException
from typing import Any, Final

from attrs import frozen
from cattrs import Converter
from cattrs.dispatch import StructureHook

from ..errors import WrongTypeError
from ..models import MODELS, Model, Timestamp, WireState
from ..schema import AMOUNT, SCHEMA, Field, FieldKind
from .parse import MAX_KEYS, NESTED, TooDeep, TooMany, bounded

Reader = Callable[[Any], Any]

Note = Callable[[type[Model], Iterable[str], Iterable[str]], None]

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

MAX_STATES: Final = 4096
"""Wire states without unknown fields that are kept for one class."""

_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class StructureError(WrongTypeError):
    """A wrong type on its way up: `path` grows as it passes, `message` is without the path."""

    def within(self, place: str) -> None:
        if self.path is None:
            self.path = place
        else:
            self.path = f"{place}{self.path}" if self.path.startswith("[") else f"{place}.{self.path}"

    def final(self) -> WrongTypeError:
        """The error to raise: without the frames and errors that this one passed, which may hold data."""
        return WrongTypeError(f"{self.path}: {self.message}" if self.path else self.message, path=self.path)


@frozen
class Ready:
    """An array of which the first items were already decoded, in slices."""

    done: list[Any]
    rest: list[Any]


def _misfit(expected: str, value: object) -> StructureError:
    return StructureError(f"expected {expected}, found {_JSON_TYPES.get(type(value), type(value).__name__)}")


def _text(value: Any) -> str:
    if type(value) is not str:
        raise _misfit(FieldKind.TEXT.value, value)
    return value


def _amount(value: Any) -> Decimal:
    if type(value) is not Decimal and type(value) is not int:
        raise _misfit(FieldKind.AMOUNT.value, value)
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
        raise _misfit(FieldKind.INTEGER.value, value)
    if not value.is_finite() or value.adjusted() > 28 or value != value.to_integral_value():
        raise StructureError("expected an integer, found another number")
    return int(value)


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise _misfit(FieldKind.FLAG.value, value)
    return value


def _date(value: Any) -> dt.date:
    if type(value) is not str:
        raise _misfit(FieldKind.DATE.value, value)
    result = None
    if _DATE.fullmatch(value):
        with suppress(ValueError):
            result = dt.date.fromisoformat(value)
    if result is None:
        raise StructureError("expected a date (YYYY-MM-DD), found another string")
    return result


_LEAVES: Final[dict[FieldKind, Reader]] = {
    FieldKind.TEXT: _text,
    FieldKind.AMOUNT: _amount,
    FieldKind.INTEGER: _integer,
    FieldKind.FLAG: _flag,
    FieldKind.DATE: _date,
}


def _timestamp(value: Any, _: Any = None) -> Timestamp:
    if type(value) is not str:
        raise _misfit(FieldKind.TIMESTAMP.value, value)
    return Timestamp.parse(value)


def register(converter: Converter, note: Note) -> None:
    """Registers the hooks of our classes. Those that a user registers for one of them win, whichever came first.

    Args:
        note: is told the unknown keys and the absent fields of each object that has some.
    """

    def factory(cls: type[Model], converter: Converter) -> StructureHook:
        return _structure_hook(cls, converter, note)

    converter.register_structure_hook_factory(lambda cls: any(cls is model for model in MODELS), factory)
    converter.register_structure_hook_func(lambda cls: cls is Timestamp, _timestamp)
    converter.register_unstructure_hook_func(
        lambda cls: isinstance(cls, type) and issubclass(cls, Model), lambda model: model.to_dict()
    )
    converter.register_unstructure_hook_func(lambda cls: cls is Timestamp, lambda timestamp: timestamp.text)


def is_ours(converter: Converter, cls: type) -> bool:
    """Whether a class is structured by this package, not by a hook of a user."""
    hook = converter.get_structure_hook(cls)
    return hook is _timestamp or getattr(hook, "flinks_model", None) is cls


def reader(converter: Converter, cls: type) -> Reader:
    """The hook that counts for a class, as a function of one argument that raises nothing but `Misfit`."""
    hook = converter.get_structure_hook(cls)
    if is_ours(converter, cls):
        return lambda value: hook(value, cls)

    def read(value: Any) -> Any:
        try:
            return hook(value, cls)
        except (StructureError, TooDeep, TooMany):
            raise
        except Exception as error:
            reason = type(error).__name__
        raise StructureError(f"the hook for {cls.__name__} raised {reason}")

    return read


def _structure_hook(cls: type[Model], converter: Converter, note: Note) -> StructureHook:
    fields = [(field, field_reader(field, converter)) for field in SCHEMA[cls]]
    known = {field.wire for field, _ in fields}
    states: dict[tuple[tuple[str, ...], tuple[str, ...]], WireState] = {}

    def state(absent: tuple[str, ...], nulls: tuple[str, ...]) -> WireState:
        """Without unknown fields; shared by objects that look the same, since its sets are larger than most objects."""
        found = states.get((absent, nulls))
        if found is None:
            found = WireState(absent=frozenset(absent), nulls=frozenset(nulls))
            if len(states) < MAX_STATES:
                states[absent, nulls] = found
        return found

    def structure(value: Any, _: Any = None) -> Model:
        if type(value) is not dict:
            raise _misfit(FieldKind.OBJECT.value, value)
        if len(value) > MAX_KEYS:
            raise TooMany
        values: dict[str, Any] = {}
        absent, nulls = [], []
        for field, read in fields:
            if field.wire not in value:
                absent.append(field.wire)
                continue
            item = value[field.wire]
            if item is None:
                if field.kind is FieldKind.ARRAY:
                    nulls.append(field.wire)
                continue
            try:
                values[field.name] = read(item)
            except StructureError as error:
                error.within(field.wire)
                raise
        extra = {wire: item for wire, item in value.items() if wire not in known}
        for item in extra.values():
            if type(item) in NESTED:
                bounded(item)
        if extra or absent:
            note(cls, extra, absent)
        if absent or nulls:
            shared = state(tuple(absent), tuple(nulls))
            values["wire_state"] = WireState(extra, shared.absent, shared.nulls) if extra else shared
        elif extra:
            values["wire_state"] = extra
        return cls(**values)

    structure.flinks_model = cls  # type: ignore[attr-defined]
    return structure


def field_reader(field: Field, converter: Converter) -> Reader:
    """What reads the values of a field, other than null."""
    if field.kind is FieldKind.TIMESTAMP:
        return reader(converter, Timestamp)
    if field.model is None:
        return _LEAVES[field.kind]
    one = _Late(converter, field.model)
    if field.kind is FieldKind.OBJECT:
        return one
    many = _array(one)
    if field.kind is FieldKind.ARRAY:
        return many

    def one_or_many(value: Any) -> Any:
        if type(value) is dict:
            return one(value)
        if type(value) is not list and type(value) is not Ready:
            raise _misfit(FieldKind.ONE_OR_MANY.value, value)
        return many(value)

    return one_or_many


class _Late:
    """The reader of a class, looked up when it is first needed (a user may have registered a hook until then)."""

    __slots__ = ("cls", "converter", "read")

    def __init__(self, converter: Converter, cls: type) -> None:
        self.converter = converter
        self.cls = cls
        self.read: Reader | None = None

    def __call__(self, value: Any) -> Any:
        if self.read is None:
            self.read = reader(self.converter, self.cls)
        return self.read(value)


def _array(one: Reader) -> Reader:
    def many(value: Any) -> tuple[Any, ...]:
        if type(value) is Ready:
            return (*value.done, *items(value.rest, one, len(value.done)))
        if type(value) is not list:
            raise _misfit(FieldKind.ARRAY.value, value)
        return tuple(items(value, one))

    return many


def items(values: list[Any], one: Reader, start: int = 0) -> list[Any]:
    """The items of an array, or of a slice of it that begins at `start`."""
    result: list[Any] = []
    try:
        for value in values:
            if value is None:
                raise _misfit(FieldKind.OBJECT.value, value)
            result.append(one(value))
    except StructureError as error:
        error.within(f"[{start + len(result)}]")
        raise
    return result
