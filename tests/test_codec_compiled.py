"""The compiled path returns what the reference path returns, in one step or many: the same answers, the same errors."""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flinks_async import codec as codec_module
from flinks_async.codec import Codec, compiled, steps
from flinks_async.codec.compiled import Fallback, _check_layout
from flinks_async.codec.reference import WireStates
from flinks_async.errors import DecodeError, NotJSONError, WrongTypeError
from flinks_async.messages import Request, Response, new_request, new_response
from flinks_async.models import (
    MODELS,
    SCHEMA,
    Account,
    Meta,
    Model,
    PartnerAccessResponse,
    Transaction,
    new_meta,
)
from flinks_async.schema import DEFAULT_WIRE_STATE, WireState, mutable_class

from .answers import answers, answers_perhaps_wrong, from_bytes, payload, run_steps, to_bytes
from .support import examples

META = Meta(attempts=3, queue_time=0.5)


def outcome(decode: Any) -> Any:
    """A comparable form of the result: the answer with its wire states and `meta`, or the error with its message."""
    try:
        answer = decode()
    except DecodeError as error:
        if isinstance(error, NotJSONError):  # of several defects, each path reports the first one that it meets
            return NotJSONError, error.path, None, error.__context__
        return type(error), error.path, error.message, error.__context__
    return answer, answer.to_dict(), answer.meta, _states(answer)


def _states(value: Any) -> Any:
    if isinstance(value, Model):
        inner = [_states(getattr(value, name)) for name in value.__slots__ if name not in ("_wire", "meta")]
        state = value.wire_state
        assert isinstance(state, WireState)
        return type(value), dict(state.extra), state.absent, state.nulls, inner
    return [_states(item) for item in value] if isinstance(value, tuple) else type(value)


def by_reference(body: bytes) -> Any:
    return outcome(lambda: run_steps(Codec()._decoder.reference_steps(body, META))[0])


def cut_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(codec_module, "DIRECT_SIZE", 0)
    patch.setattr(steps, "TRANSACTIONS_PER_STEP", 2)
    patch.setattr(steps, "OBJECTS_PER_STEP", 1)
    patch.setattr(steps, "MANY_ACCOUNTS", 1)
    patch.setattr("flinks_async.codec.parse.PIECE_SIZE", 16)


def check_all_ways(body: bytes, *codecs: Codec) -> None:
    expected = by_reference(body)
    for codec in codecs:
        assert outcome(lambda codec=codec: codec.decode(body, META)) == expected
        assert outcome(lambda codec=codec: run_steps(codec.decode_steps(body, META))[0]) == expected
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch)
        assert by_reference(body) == expected
        for codec in codecs:
            assert outcome(lambda codec=codec: run_steps(codec.decode_steps(body, META))[0]) == expected


used = Codec()  # observes many fields in the course of the tests


@examples(40)
@given(answers)
def test_generated_answers(data: dict[str, Any]) -> None:
    check_all_ways(to_bytes(data), used, Codec())


@examples(60)
@given(answers_perhaps_wrong)
def test_generated_answers_with_wrong_types(data: dict[str, Any]) -> None:
    check_all_ways(to_bytes(data), used)


def _places(data: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield data, key, f"{path}.{key}" if path else key
            yield from _places(value, f"{path}.{key}" if path else key)
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield data, index, f"{path}[{index}]"
            yield from _places(value, f"{path}[{index}]")


WRONG = [3, -1, Decimal("1.5"), "text", "", "2025-01-31", True, [], {}, [None], [{}], None, 10**40, Decimal("1E+400")]


@examples(60)
@given(st.data())
def test_any_value_in_any_place_of_a_whole_answer(draw: st.DataObject) -> None:
    data = from_bytes(payload((2, 3), unknown=draw.draw(st.booleans())))
    for _ in range(draw.draw(st.integers(1, 3))):
        owner, key, _ = draw.draw(st.sampled_from(list(_places(data))))
        owner[key] = copy.deepcopy(draw.draw(st.sampled_from(WRONG)))
    check_all_ways(to_bytes(data), used)


BROKEN = [
    b"\xff",
    b'"\\ud800"',
    b"1e99999999999999999999",
    b"9" * 5000,
    b'"\\x"',
    b"NaN",
    b"[" * 3000,
    b"tru",
    b'"',
    b"}",
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: repr(broken[:8]))
@pytest.mark.parametrize("key", [b'"Debit":', b'"Unknown":', b'"RequestId":', b'"Accounts":', b'"Title":'])
def test_broken_json_in_any_place(broken: bytes, key: bytes) -> None:
    body = payload((2, 3)).replace(b'"Code":null', b'"Code":null,"Unknown":null')
    before, _, after = body.rpartition(key)
    cut = min(at for at in (after.find(b","), after.find(b"}")) if at >= 0)
    expected = by_reference(before + key + broken + after[cut:])
    assert issubclass(expected[0], NotJSONError)
    check_all_ways(before + key + broken + after[cut:], used)


ODD_VALUES = {
    b'"Debit":': [
        *(b"-0", b"-0.0", b"0e0", b"1e28", b"1e29", b"1E-28", b"1E-29", b"0e999999999", b"0.1e1", b"1" + b"0" * 29),
        *(
            b"1." + b"0" * 28,
            b"1." + b"0" * 1100,
            b"9" * 4000,
            b"1.",
            b"+1",
            b"01",
            b'"x","Debit":5.25',
            b'5.25,"Debit":"x"',
        ),
    ],
    b'"Date":': [
        *(b'"2025-02-29"', b'"0000-01-01"', b'"9999-12-31"', b'"2025-1-1"', b'"2025-01-01T00:00:00"', b'"20250101"'),
        *(b'"2025-W01-1"', b'"\\u0032025-01-01"', b'"\xd9\xa2025-01-01"', b'5,"Date":"2025-01-01"'),
    ],
    b'"Code":': [
        b'null,"C\\u006fde":"x"',
        b'null,"code":"x"',
        b'null,"":1',
        b'null,"__class__":1',
        b'null,"\\u0000":1',
    ],
    b'"HttpStatusCode":': [b"200.0", b"2e2", b"1e400", b"20.5", b"true"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in ODD_VALUES.items() for value in values])
def test_odd_values_are_read_alike(key: bytes, value: bytes) -> None:
    before, _, after = payload((1, 3)).partition(key)
    cut = min(at for at in (after.find(b","), after.find(b"}")) if at >= 0)
    check_all_ways(before + key + value + after[cut:], used, Codec())


@pytest.mark.parametrize("item", [b"[]", b'["2025-01-31",null,"x",null,1.5,2.5,"id"]', b"null", b'""', b"{}"])
def test_an_item_of_another_shape_is_read_alike(item: bytes) -> None:
    before, _, after = payload((1, 3)).partition(b'"Transactions":[')
    check_all_ways(before + b'"Transactions":[' + item + b"," + after, used, Codec())


@pytest.mark.parametrize("body", [b"", b" ", b"null", b"[]", b"3", b"{", b"<html>", b"\xef\xbb\xbf{}", b'{"a":1}'])
def test_short_bodies(body: bytes) -> None:
    check_all_ways(body, used, Codec())


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("size", [(1, 700), (3, 300), (80, 6), (1, 0)])
def test_large_bodies(size: tuple[int, int], unknown: bool) -> None:
    body = payload(size, unknown=unknown)
    codec = Codec()
    expected = by_reference(body)
    assert from_bytes(expected[0].to_json()) == from_bytes(body)
    for _ in range(2):
        assert outcome(lambda: codec.decode(body, META)) == expected
        assert outcome(lambda: run_steps(codec.decode_steps(body, META))[0]) == expected
        assert outcome(lambda: run_steps(Codec().decode_steps(body, META))[0]) == expected


@pytest.mark.parametrize("wrong", [b'"x"', b"true", b"1e400"])
def test_an_error_in_the_third_step(wrong: bytes) -> None:
    data = from_bytes(payload((1, 1500)))
    number = 2 * steps.TRANSACTIONS_PER_STEP + 17
    data["GetAccountsDetail"][0]["Accounts"][0]["Transactions"][number]["Debit"] = 424242
    body = to_bytes(data).replace(b"424242", wrong)
    for decode in (lambda: Codec().decode(body), lambda: run_steps(Codec().decode_steps(body))[0]):
        with pytest.raises(WrongTypeError) as caught:
            decode()
        assert caught.value.path == f"GetAccountsDetail[0].Accounts[0].Transactions[{number}].Debit"
    # Broken JSON anywhere is reported before a wrong type.
    assert by_reference(body)[1] == f"GetAccountsDetail[0].Accounts[0].Transactions[{number}].Debit"
    worse = body[:-1] + b',"New":"\xff"}'
    with pytest.raises(NotJSONError):
        run_steps(Codec().decode_steps(worse))


def test_a_late_null_and_a_late_unknown_field_need_the_reference_path_once() -> None:
    data = from_bytes(payload((1, 900)))
    move = data["GetAccountsDetail"][0]["Accounts"][0]["Transactions"][850]
    move["Brand new"] = {"a": [Decimal("1.0")]}
    del move["Code"]
    move["Date"] = None
    codec = Codec()
    body = to_bytes(data)
    first = outcome(lambda: run_steps(codec.decode_steps(body, META))[0])
    assert first == by_reference(body)
    assert codec._decoder.compiled(body, META) == first[0]


def test_only_a_limited_number_of_unknown_fields_is_observed() -> None:
    codec = Codec()
    for number in range(40):
        body = to_bytes({"GetAccountsDetail": [], "RequestId": "a", f"New{number}": number})
        assert codec.decode(body).extra == {f"New{number}": number}
    assert codec._decoder.compiled(to_bytes({"GetAccountsDetail": [], "RequestId": "a", "New15": 1}), META) is not None
    assert codec._decoder.compiled(to_bytes({"GetAccountsDetail": [], "RequestId": "a", "New16": 1}), META) is None
    assert codec.decode(to_bytes({'Odd "key"': 1})).extra == {'Odd "key"': 1}


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("direct", [0, 64 * 1024])
async def test_an_answer_with_observed_fields_never_takes_the_reference_path(
    observed: bool, direct: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codecs = [Codec() for _ in range(3)]
    body = to_bytes({"GetAccountsDetail": {}, "New": 1} if observed else {"GetAccountsDetail": [], "RequestId": "a"})
    for codec in codecs if observed else []:
        codec.decode(body)
    monkeypatch.setattr(codec_module, "DIRECT_SIZE", direct)
    monkeypatch.setattr(steps.Decoder, "reference_steps", None)
    assert codecs[0].decode(body, META).meta == META
    assert run_steps(codecs[1].decode_steps(body, META))[0].meta == META
    assert (await codecs[2].decode_async(body, META, asyncio.Lock())).meta == META


@pytest.mark.parametrize(("key", "right", "wrong"), [("Accounts", [{}], {}), ("Links", [{}], {}), ("Login", {}, [{}])])
def test_an_array_of_one_is_no_object(key: str, right: Any, wrong: Any) -> None:
    codec = Codec()
    codec.decode(to_bytes({"GetAccountsDetail": [{key: right}]}))  # observes the fields
    body = to_bytes({"GetAccountsDetail": [{key: wrong}]})
    assert by_reference(body)[:2] == (WrongTypeError, f"GetAccountsDetail[0].{key}")
    check_all_ways(body, codec)


@pytest.mark.parametrize(
    "detail",
    [
        *({key: value} for key in ("Accounts", "Links") for value in (None, [])),
        {"Accounts": [{"Transactions": None}, {"Transactions": []}, {}]},
        {"Accounts": [{"Transactions": None, "EftEligibleRatio": 1}, {"ETransferEligibleRatio": None, "New": 1}]},
        {"Accounts": [{"Transactions": None, "New": 1}], "Links": None, "Tag": None, "HttpStatusCode": None},
    ],
)
def test_what_is_null_or_missing(detail: dict[str, Any]) -> None:
    body = to_bytes({"GetAccountsDetail": [detail, {"LoginId": "a"}, {"Accounts": [{"Transactions": [{}]}]}]})
    codec = Codec()
    for _ in range(2):  # before and after the fields are observed
        check_all_ways(body, codec)


def test_objects_that_look_the_same_share_their_state() -> None:
    codec, body = Codec(), b'{"GetAccountsDetail":[{"Accounts":[{"Id":"a"},{"Id":"b"}]}]}'
    codec.decode(body)  # observes the fields
    first, second = codec.decode(body).accounts
    assert first.wire_state is second.wire_state


def test_on_the_reference_path_they_share_it_too() -> None:
    answer = run_steps(
        Codec()._decoder.reference_steps(b'{"GetAccountsDetail":[{},{},{"Links":null},{"New":1}]}', META)
    )[0]
    first, second, third, fourth = (detail.wire_state for detail in answer.details)
    assert first is second
    assert (third.absent, third.nulls) == (first.absent - {"Links"}, {"Links"})
    assert fourth.absent is first.absent
    assert (fourth.extra, first.extra) == ({"New": 1}, {})


def test_the_reference_path_keeps_a_limited_number_of_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flinks_async.codec.reference.MAX_STATES", 1)
    body = b'{"GetAccountsDetail":[{"Tag":""},{"LoginId":""},{"Tag":""},{"LoginId":""}]}'
    answer = run_steps(Codec()._decoder.reference_steps(body, META))[0]
    first, second, third, fourth = (detail.wire_state for detail in answer.details)
    assert first is third
    assert second is not fourth
    assert second == fourth


def test_not_more_than_4096_states_are_kept() -> None:
    states = WireStates(SCHEMA[Account])
    for mask in range(5000):
        absent = {field.wire for bit, field in enumerate(SCHEMA[Account]) if mask >> bit & 1}
        assert states[mask] == WireState(absent=frozenset(absent))
    assert states[0] is DEFAULT_WIRE_STATE
    assert len(states) == 4096


@pytest.mark.parametrize("cls", [Meta, Request, Response])
def test_a_mutable_object_becomes_a_frozen_one_by_assignment(cls: type) -> None:
    """Where an interpreter considers the layouts different, making them is slower, and this test fails to say so."""
    assert mutable_class(cls).__slots__ == cls.__slots__


@pytest.mark.parametrize(("cls", "make"), [(Meta, new_meta), (Request, new_request), (Response, new_response)])
def test_a_maker_makes_what_the_class_makes(cls: type[Any], make: Callable[..., Any]) -> None:
    required = [a.name for a in attrs.fields(cls) if a.init and a.default is attrs.NOTHING]
    every = [a.name for a in attrs.fields(cls) if a.init]
    for names in (required, every, every[:-1]):
        values = [object() for _ in names]
        made, usual = make(*values), cls(*values)
        assert type(made) is cls
        assert [getattr(made, a.name) for a in attrs.fields(cls)] == [getattr(usual, a.name) for a in attrs.fields(cls)]
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(made, every[0], 1)
    with pytest.raises(TypeError):
        make(*every, "one too many")


@attrs.frozen
class Odd:
    """A class whose slots are not those of its layout."""

    name: str


Odd.__slots__ = (*Odd.__slots__, "more")


def test_a_class_of_another_layout_is_no_mutable_one() -> None:
    with pytest.raises(TypeError):
        mutable_class(Odd)


def _structs(codec: Codec) -> Iterator[tuple[type[Model], Any]]:
    compiler = codec._decoder._current()
    for cls in MODELS:
        yield cls, compiler._class(cls, compiled.NO_RAW_CLASSES).struct


def test_the_structs_become_models_by_assignment() -> None:
    """Where an interpreter considers the layouts different, decoding is slower, and this test fails to say so."""
    for cls, struct in _structs(Codec()):
        decoded = object.__new__(struct)
        assert type(decoded) is not cls
        decoded.__class__ = cls
        assert type(decoded) is cls
    _check_layout(struct, cls)


def test_where_the_class_cannot_be_assigned_the_reference_path_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wider(Transaction):
        more: int

    with pytest.raises(Fallback):
        _check_layout(Wider, Transaction)
    body = payload((2, 3))
    expected = by_reference(body)
    monkeypatch.setattr(compiled, "_check_layout", lambda *_: _check_layout(Wider, Transaction))
    for transactions in ("with the answer", "on access"):
        codec = Codec(transactions=transactions)
        for _ in range(2):
            assert outcome(lambda codec=codec: codec.decode(body, META)) == expected
        assert codec._decoder.compiled(body, META) is None
        assert run_steps(codec.decode_steps(body))[0] == codec.decode(body)


@pytest.mark.parametrize("name", ["wire_state", "meta", "-wire_state", "-meta", "-tag", "_wire", "date", "x0"])
@pytest.mark.parametrize("value", [None, {}, 1, "a", [], {"extra": {}, "absent": [], "nulls": []}])
def test_a_field_named_like_a_member_is_unknown(name: str, value: Any) -> None:
    codec, data = Codec(), from_bytes(payload((1, 2)))
    (detail,) = data["GetAccountsDetail"]
    codec.decode(payload((1, 2), unknown=True))  # now `x0` is a member
    for owner in (data, detail, detail["Accounts"][0], detail["Accounts"][0]["Transactions"][1]):
        owner[name] = value
    for _ in range(2):
        check_all_ways(to_bytes(data), codec)
        answer = codec.decode(to_bytes(data), META)
        assert answer.meta is META
        assert answer.extra == answer.accounts[0].transactions[1].extra == {name: value}


def test_threads_share_a_codec() -> None:
    codec = Codec()
    bodies = [
        to_bytes({"GetAccountsDetail": [{"Accounts": [{"Transactions": [{"Id": "a", f"New{n}": n}]}]}], f"Top{n}": n})
        for n in range(24)
    ]
    failures: list[Any] = []

    def work(offset: int) -> None:
        for number in range(48):
            body = bodies[(number + offset) % len(bodies)]
            if from_bytes(codec.decode(body).to_json()) != from_bytes(body):
                failures.append(body)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_values_have_the_documented_types() -> None:
    codec = Codec()
    for _ in range(2):
        answer = codec.decode(payload((1, 2)))
        move = answer.accounts[0].transactions[0]
        assert type(answer) is PartnerAccessResponse
        assert type(move) is Transaction
        assert type(move.date) is dt.date
        assert type(move.balance) is Decimal
        with pytest.raises(AttributeError):
            move.balance = Decimal(0)
