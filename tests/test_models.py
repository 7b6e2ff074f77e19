"""The classes that users receive."""

from __future__ import annotations

import copy
import datetime as dt
import pickle
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from attrs import evolve, fields
from attrs.exceptions import FrozenInstanceError

from flinks_async.codec import Codec
from flinks_async.models import (
    COMPLETE,
    MODELS,
    Account,
    Address,
    Balance,
    Holder,
    Link,
    Login,
    Meta,
    Model,
    PartnerAccessResponse,
    Timestamp,
    Transaction,
    WireState,
    wire_fields,
)

from .answers import DOCUMENTED, WIRE, from_bytes, to_bytes

ANSWER = Codec().decode(to_bytes(DOCUMENTED))
DETAIL = ANSWER.details[0]
ACCOUNT = ANSWER.accounts[0]
ONE_OF_EACH = [
    ANSWER,
    DETAIL,
    ACCOUNT,
    ACCOUNT.transactions[0],
    ACCOUNT.balance,
    ACCOUNT.holder,
    DETAIL.login,
    DETAIL.links[0],
]
EVERYTHING: list[Any] = [*ONE_OF_EACH, ACCOUNT.holder.address if ACCOUNT.holder else None]


def test_wire_names_are_the_documented_ones() -> None:
    assert {cls.__name__: [wire for _, wire in wire_fields(cls)] for cls in MODELS} == {
        name: list(fields_) for name, fields_ in WIRE.items()
    }


@pytest.mark.parametrize("cls", MODELS)
def test_every_field_is_optional(cls: type[Model]) -> None:
    empty = cls()
    assert empty.wire_state is COMPLETE
    assert empty.to_dict().keys() == set(WIRE[cls.__name__])
    assert not hasattr(empty, "__dict__")
    with pytest.raises(FrozenInstanceError):
        empty.wire_state = WireState()  # type: ignore[misc]


@pytest.mark.parametrize("model", EVERYTHING, ids=lambda model: type(model).__name__)
def test_models_are_plain_data(model: Model) -> None:
    for twin in (
        *(pickle.loads(pickle.dumps(model, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)),
        copy.copy(model),
        copy.deepcopy(model),
        evolve(model),
    ):
        assert type(twin) is type(model)
        assert twin == model
        assert hash(twin) == hash(model)
        assert repr(twin) == repr(model)
        assert twin.to_dict() == model.to_dict()
        assert twin.wire_state == model.wire_state
    assert model != object()


@pytest.mark.parametrize("model", EVERYTHING, ids=lambda model: type(model).__name__)
def test_a_changed_field_makes_another_value(model: Model) -> None:
    name, _ = wire_fields(type(model))[0]
    other = evolve(model, **{name: "changed"})
    assert other != model
    assert other.to_dict() != model.to_dict()


def test_what_came_on_the_wire_is_not_part_of_equality() -> None:
    assert evolve(ACCOUNT, wire_state=WireState(MappingProxyType({"New": 1}))) == ACCOUNT
    assert ANSWER.with_meta(Meta(attempts=9)) == ANSWER
    assert ANSWER.with_meta(Meta(attempts=9)).meta.attempts == 9


PERSONAL = {
    Transaction: ("description",),
    Address: ("civic_address", "city", "postal_code", "po_box"),
    Holder: ("name", "email", "phone_number"),
    Account: ("account_number", "last_four_digits"),
    Login: ("username",),
    Link: ("href", "example"),
}


@pytest.mark.parametrize(("cls", "names"), PERSONAL.items())
def test_personal_data_is_masked(cls: type[Model], names: tuple[str, ...]) -> None:
    shown = repr(cls(**dict.fromkeys(names, "CANARY")))
    assert "CANARY" not in shown
    assert shown.count("***") == len(names)
    assert f"{names[0]}=None" in repr(cls())


def test_no_personal_data_in_the_repr_of_a_whole_answer() -> None:
    shown = f"{ANSWER!r} {ANSWER} {[ANSWER]} {ANSWER:}"
    for value in (
        "7641238",
        "John",
        "johndoe",
        "333-7777",
        "york",
        "TOR",
        "M5J",
        "Greatday",
        "PAYROLL",
        "/GetAccounts",
    ):
        assert value not in shown
    assert "1000.4" in shown  # amounts are not masked


def test_neither_names_nor_values_of_unknown_fields_are_shown() -> None:
    body = b'{"CANARY-1":"CANARY","CANARY-2":1,"GetAccountsDetail":[{"Accounts":[{"Holder":{"CANARY":{"Name":"CANARY"}}}]}]}'
    answer = Codec().decode(body)
    assert answer.extra.keys() == {"CANARY-1", "CANARY-2"}
    holder = answer.accounts[0].holder
    assert holder is not None
    for shown in (answer, holder, answer.wire_state, holder.wire_state):
        assert "CANARY" not in repr(shown)
    assert "<2 unknown>" in repr(answer)
    assert "<1 unknown>" in repr(holder)
    assert "<2 unknown>" in repr(answer.wire_state)


def test_missing_fields_are_left_out_or_null() -> None:
    answer = Codec().decode(b'{"GetAccountsDetail":[{"LoginId":"a","Accounts":[{}]}],"New":1}')
    assert answer.to_dict() == {"GetAccountsDetail": [{"LoginId": "a", "Accounts": [{}]}], "New": 1}
    whole = answer.to_dict(missing="null")
    assert whole["RequestId"] is None
    assert whole["New"] == 1
    (detail,) = whole["GetAccountsDetail"]
    assert detail.keys() == set(WIRE["AccountsDetail"])
    assert detail["Accounts"] == [dict.fromkeys(WIRE["Account"])]
    assert detail["Links"] is None
    assert from_bytes(answer.to_json(missing="null")) == whole


def test_a_model_made_by_hand_can_be_written() -> None:
    made = PartnerAccessResponse(
        get_accounts_detail=(DETAIL,),
        request_id="a",
    )
    assert made.to_dict()["GetAccountsDetail"] == DOCUMENTED["GetAccountsDetail"]
    assert Balance(current=Decimal("12.30")).to_json() == b'{"Available":null,"Current":12.30,"Limit":null}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2023-04-11T15:04:43.3464411Z", dt.datetime(2023, 4, 11, 15, 4, 43, 346441, tzinfo=dt.UTC)),
        ("2023-05-12T19:09:02.9650245Z", dt.datetime(2023, 5, 12, 19, 9, 2, 965024, tzinfo=dt.UTC)),
        ("2023-04-11T15:04:43", dt.datetime(2023, 4, 11, 15, 4, 43, tzinfo=dt.UTC)),
        ("2023-04-11T15:04:43.3464411-04:00", dt.datetime(2023, 4, 11, 19, 4, 43, 346441, tzinfo=dt.UTC)),
        ("0001-01-01T00:00:00", dt.datetime(1, 1, 1, tzinfo=dt.UTC)),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        ("2023-02-30T00:00:00", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_timestamps_keep_their_text_and_know_their_time(text: str, value: dt.datetime | None) -> None:
    timestamp = Timestamp.parse(text)
    assert timestamp == Timestamp(text, value)
    assert timestamp.text == text
    assert timestamp.value is None or timestamp.value.utcoffset() == dt.timedelta(0)
    assert pickle.loads(pickle.dumps(timestamp)) == timestamp


def test_wire_state_pickles() -> None:
    state = WireState(MappingProxyType({"a": [Decimal("1.0")]}), frozenset({"B"}), frozenset({"C"}))
    assert pickle.loads(pickle.dumps(state)) == state
    assert copy.deepcopy(state) == state


def test_every_class_keeps_its_wire_state_out_of_the_comparison() -> None:
    for cls in MODELS:
        attribute = fields(cls)._wire
        assert attribute.eq is False
