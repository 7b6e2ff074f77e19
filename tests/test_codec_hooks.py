"""Hooks of users: a class, a plain type or the whole answer is read as they say, by every path."""

from __future__ import annotations

import datetime as dt
import json
import pickle
import traceback
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import cattrs
import pytest
from attrs import evolve
from cattrs.preconf.json import make_converter

from flinks_async.codec import Codec
from flinks_async.errors import WrongTypeError
from flinks_async.models import (
    MODELS,
    Account,
    AccountsDetail,
    Balance,
    Meta,
    Model,
    PartnerAccessResponse,
    Timestamp,
    Transaction,
)

from .answers import from_bytes, payload, run_steps, to_bytes
from .test_codec import detail_with, with_transaction
from .test_codec_compiled import META, cut_small


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cuts every body, however small."""
    with monkeypatch.context() as patch:
        cut_small(patch)
        yield


class Move(str):
    """A user's own class in place of Transaction."""


BODY = to_bytes(
    {"GetAccountsDetail": [{"Accounts": [{"Id": "a", "Transactions": [{"Id": "t"}, {"Id": "u", "N": 1}]}]}]}
)


def test_a_hook_of_a_user_changes_what_comes_out() -> None:
    mine = Codec()
    mine.converter.register_structure_hook(Transaction, lambda value, _: Move(value["Id"]))
    (account,) = mine.decode(BODY).accounts
    assert account.transactions == (Move("t"), Move("u"))
    assert type(account) is Account
    assert account.id == "a"


def test_a_hook_may_be_registered_before_the_codec_is_made() -> None:
    converter = cattrs.Converter()
    converter.register_structure_hook(Transaction, lambda value, _: Move(value["Id"]))
    assert Codec(converter).decode(BODY).accounts[0].transactions == (Move("t"), Move("u"))


def test_a_hook_can_build_on_ours() -> None:
    mine = Codec()
    ours = mine.converter.get_structure_hook(Account)
    mine.converter.register_structure_hook(Account, lambda value, cls: evolve(ours(value, cls), title="mine"))
    (account,) = mine.decode(BODY).accounts
    assert (account.title, account.id, len(account.transactions)) == ("mine", "a", 2)
    with pytest.raises(WrongTypeError) as caught:
        mine.decode(BODY.replace(b'"u"', b"7"))
    assert caught.value.path == "GetAccountsDetail[0].Accounts[0].Transactions[1].Id"


def test_a_hook_for_the_entries_sees_a_list_and_an_object() -> None:
    mine = Codec()
    mine.converter.register_structure_hook(AccountsDetail, lambda value, _: value["LoginId"])
    assert mine.decode(b'{"GetAccountsDetail":[{"LoginId":"a"}]}').get_accounts_detail == ("a",)
    assert mine.decode(b'{"GetAccountsDetail":{"LoginId":"a"}}').get_accounts_detail == "a"


def test_a_hook_is_not_asked_about_null() -> None:
    mine = Codec()
    for cls in (Balance, Transaction):
        mine.converter.register_structure_hook(cls, lambda value, _: ("hooked", value))
    assert mine.decode(detail_with(Balance=None)).accounts[1].balance is None
    with pytest.raises(WrongTypeError, match="expected an object, found null") as caught:
        mine.decode(detail_with(Transactions=[{}, None]))
    assert caught.value.path == "GetAccountsDetail[0].Accounts[1].Transactions[1]"


def test_a_hook_for_the_whole_answer() -> None:
    mine = Codec()
    mine.converter.register_structure_hook(PartnerAccessResponse, lambda value, _: len(value["GetAccountsDetail"]))
    assert mine.decode(BODY, Meta(attempts=3)) == 1


def test_a_hook_for_timestamps() -> None:
    mine = Codec()
    mine.converter.register_structure_hook(Timestamp, lambda value, _: Timestamp(value.upper()))
    login = mine.decode(b'{"GetAccountsDetail":[{"Login":{"LastRefresh":"now"}}]}').details[0].login
    assert login is not None
    assert login.last_refresh == Timestamp("NOW")


@pytest.mark.parametrize(
    "error", [ValueError("SECRET"), KeyError("SECRET"), WrongTypeError("SECRET"), RecursionError()]
)
def test_a_hook_that_fails_is_a_wrong_type_without_its_text(error: Exception) -> None:
    def hook(value: Any, _: Any) -> Any:
        raise error

    mine = Codec()
    mine.converter.register_structure_hook(Balance, hook)
    with pytest.raises(WrongTypeError) as caught:
        mine.decode(b'{"GetAccountsDetail":[{"Accounts":[{"Balance":{"Current":1}}]}]}')
    assert caught.value.path == "GetAccountsDetail[0].Accounts[0].Balance"
    assert type(error).__name__ in str(caught.value)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


SCALAR_HOOKS: list[tuple[type, Any, str, Any, Any]] = [
    (dt.date, lambda text, _: dt.date(int(text[:4]) + 1, 1, 1), "date", "2025-01-31", dt.date(2026, 1, 1)),
    (Decimal, lambda number, _: Decimal(number) * 100, "debit", 1.5, Decimal("150.0")),
    (str, lambda text, _: text.upper(), "description", "abc", "ABC"),
]


@pytest.mark.parametrize(("cls", "hook", "name", "sent", "read"), SCALAR_HOOKS)
@pytest.mark.parametrize("way", ["at once", "in steps", "by reference"])
def test_a_hook_for_a_plain_type_is_used(cls: type, hook: Any, name: str, sent: Any, read: Any, way: str) -> None:
    mine = Codec()
    mine.converter.register_structure_hook(cls, hook)
    wire = name.capitalize()
    body = with_transaction(**{wire: sent})
    for _ in range(3):  # the compiled code changes with the fields that were seen
        if way == "at once":
            answer = mine.decode(body)
        elif way == "in steps":
            large = json.loads(body)
            large["GetAccountsDetail"][0]["Accounts"][0]["Transactions"] *= 2000
            answer = run_steps(mine.decode_steps(json.dumps(large).encode()))[0]
        else:
            answer = mine.converter.structure(json.loads(body, parse_float=Decimal), PartnerAccessResponse)
        assert getattr(answer.accounts[0].transactions[1], name) == read
    untouched = Codec().decode(body)
    assert getattr(untouched.accounts[0].transactions[1], name) != read


def test_the_hooks_that_cattrs_itself_has_are_not_users() -> None:
    mine = Codec(make_converter())
    assert mine.decode(with_transaction(Date="2025-01-31")) == Codec().decode(with_transaction(Date="2025-01-31"))
    with pytest.raises(WrongTypeError):
        mine.decode(with_transaction(Date=""))


def test_a_hook_that_calls_the_converter_keeps_the_path() -> None:
    mine, other = Codec(), Codec()

    def hook(value: Any, _: Any) -> Any:
        return other.converter.structure(value, Balance)

    mine.converter.register_structure_hook(Balance, hook)
    with pytest.raises(WrongTypeError) as caught:
        mine.decode(b'{"GetAccountsDetail":[{"Accounts":[{"Balance":{"Current":"x"}}]}]}')
    assert caught.value.path == "GetAccountsDetail[0].Accounts[0].Balance.Current"
    assert str(caught.value).startswith("GetAccountsDetail[0].Accounts[0].Balance.Current: expected a number")


def test_a_hook_leaves_the_other_classes_fast() -> None:
    codec = Codec()
    codec.converter.register_structure_hook(Transaction, lambda value, _: value["Id"])
    body = payload((2, 3))
    codec.decode(body)  # observes the fields
    answer = codec._decoder.compiled(body, META)
    assert answer is not None
    expected = [
        tuple(move["Id"] for move in account["Transactions"])
        for account in from_bytes(body)["GetAccountsDetail"][0]["Accounts"]
    ]
    assert [account.transactions for account in answer.accounts] == expected
    assert type(answer.accounts[0]) is Account


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_a_hook_for_any_class_gives_the_same_by_every_path(cls: type[Model], small_pieces: None) -> None:
    def hooked() -> Codec:
        codec = Codec()
        ours = codec.converter.get_structure_hook(cls)
        codec.converter.register_structure_hook(cls, lambda value, _: ("hooked", ours(value, cls), to_bytes(value)))
        return codec

    body = payload((3, 5), unknown=True)
    expected = hooked()._decoder.reference_steps(body, META)
    value, _ = run_steps(expected)
    assert b"hooked" in pickle.dumps(value)
    codec = hooked()
    for _ in range(2):
        assert codec.decode(body, META) == value
        assert run_steps(codec.decode_steps(body, META))[0] == value


def test_a_hook_that_fails_in_a_later_step(small_pieces: None) -> None:
    def hook(value: Any, _: Any) -> Any:
        if value["Balance"] == 7:
            raise ZeroDivisionError("CANARY")
        return value["Id"]

    data = from_bytes(payload((1, 9)))
    data["GetAccountsDetail"][0]["Accounts"][0]["Transactions"][6]["Balance"] = 7
    for way in ("decode", "decode_steps"):
        codec = Codec()
        codec.converter.register_structure_hook(Transaction, hook)
        with pytest.raises(WrongTypeError, match="ZeroDivisionError") as caught:
            list(getattr(codec, way)(to_bytes(data)))
        assert caught.value.path == "GetAccountsDetail[0].Accounts[0].Transactions[6]"
        assert "CANARY" not in str(caught.value)
