"""Subclasses of the models that users write."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sized
from decimal import Decimal
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import attrs
import pytest
from attrs import evolve
from attrs.exceptions import FrozenInstanceError

from flinks_async.models import Account, Balance


@attrs.frozen(kw_only=True)
class Noted(Account):
    note: str = attrs.field(default="", converter=str.upper)
    tags: list[str] = attrs.field(factory=list)

    @property
    def count(self) -> int:
        return len(super().transactions)


class NotedAgain(Noted):
    pass


@attrs.frozen(slots=False)
class Placed(Balance):
    place: int

    @cached_property
    def doubled(self) -> int:
        return 2 * self.place


def test_a_user_may_add_fields_to_a_model() -> None:
    for cls in (Noted, NotedAgain):
        noted = cls(id="1", note="a", tags=["x"])
        assert (noted.id, noted.note, noted.count, noted.to_dict()["Note"]) == ("1", "A", 0, "A")
        copies = [pickle.loads(pickle.dumps(noted, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
        for copied in (*copies, copy.copy(noted), copy.deepcopy(noted), evolve(noted)):
            assert (type(copied), copied.note, copied.tags, copied) == (cls, "A", ["x"], noted)
        assert evolve(noted, note="b") != noted != Account(id="1")
        for name in ("id", "note", "unheard_of"):
            with pytest.raises(FrozenInstanceError):
                setattr(noted, name, "b")
        assert [a.name for a in attrs.fields(cls)][-3:] == ["_wire", "note", "tags"]
    placed = Placed(3, current=Decimal(1))
    match placed:
        case Placed(place, current=current):
            assert (place, current, placed.doubled) == (3, 1, 6)
        case _:
            pytest.fail("no match")
    assert copy.copy(placed) == placed == evolve(placed)


def test_a_user_may_write_any_subclass_of_a_model() -> None:
    class Mixin:
        def hello(self) -> str:
            return "hello"

    class Mixed(Mixin, Account):
        later: int  # an annotation makes no field

    class Slotted(Mixed):
        __slots__ = ("seen",)
        seen: list[object]

        def __init__(self, seen: int, **values: Any) -> None:
            super().__init__(**values)
            object.__setattr__(self, "seen", [seen, self])

    slotted = Slotted(3, id="1")
    assert (slotted.hello(), slotted.id, slotted.seen[0]) == ("hello", "1", 3)
    assert copy.copy(Mixed(id="1")) == Mixed(id="1") != slotted
    gone = weakref.ref(slotted)
    del slotted
    gc.collect()
    assert gone() is None  # the garbage collector walks objects that may form a cycle


T = TypeVar("T")


@runtime_checkable
class Named(Protocol[T]):
    def name(self) -> T: ...


class Shown(ABC):
    @abstractmethod
    def show(self) -> str: ...


@attrs.frozen(kw_only=True)
class Card(Account, Shown, Named[str], Generic[T]):
    colour: str = "red"

    def show(self) -> str:
        return f"{self.name()} {self.colour}"

    def name(self) -> str:
        return f"card {self.id}"


def test_a_model_may_be_mixed_with_abstract_classes_protocols_and_generic_ones() -> None:
    class Abstract(Account, Shown):
        pass

    class Counted(Sized, Account):
        def __len__(self) -> int:
            return len(super().transactions)

    card = Card[int](id="1")
    assert card.show() == "card 1 red"
    assert isinstance(card, (Account, Shown, Named))
    assert isinstance(card, Named)
    assert not isinstance(Account(), (Card, Shown, Named))
    for copied in (copy.copy(card), copy.deepcopy(card), pickle.loads(pickle.dumps(card)), evolve(card)):
        assert copied == card
        assert type(copied) is Card
    with pytest.raises(TypeError, match="abstract"):
        Abstract()
    assert len(Counted(id="1")) == 0
    assert isinstance(Counted(), Sized)
    Shown.register(Abstract)
    Abstract.register(int)
    assert isinstance(1, Abstract)
    assert not isinstance(1, Account)


def test_a_base_of_a_model_may_have_a_constructor_and_class_arguments() -> None:
    class Tagged:
        tag: str | None

        def __init_subclass__(cls, tag: str | None = None, **more: Any) -> None:
            super().__init_subclass__(**more)
            cls.tag = tag

        def __init__(self, **values: Any) -> None:
            super().__init__(**values)
            object.__setattr__(self, "seen", sorted(values))

    class Both(Tagged, Account, tag="t"):
        made: int

        def __new__(cls, *args: Any, **values: Any) -> Any:
            made = super().__new__(cls)
            object.__setattr__(made, "made", len(values))
            return made

    both: Any = Both(id="1")
    assert (both.id, both.seen, both.made, Both.tag) == ("1", ["id"], 1, "t")
    assert Both.__mro__[:3] == (Both, Tagged, Account)
    assert copy.copy(both).seen == ["id"]


def test_objects_of_models_and_their_subclasses_free_their_class() -> None:
    for model in (Account(id="1"), Card(id="1")):
        gc.collect()
        before = sys.getrefcount(type(model))
        for _ in range(100):
            copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model)), type(model)()
        gc.collect()
        assert sys.getrefcount(type(model)) - before < 10
