"""Subclasses of the models that users write."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from decimal import Decimal
from functools import cached_property
from typing import Any

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
