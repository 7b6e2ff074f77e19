"""Decoding: which data is kept, which is refused, and the error messages."""

from __future__ import annotations

import copy
import datetime as dt
import json
import pickle
import re
import traceback
from decimal import Decimal
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from flinks_async.codec import DIRECT_SIZE, Codec
from flinks_async.errors import ConfigError, DecodeError, EmptyBodyError, JSONLimitError, NotJSONError, WrongTypeError
from flinks_async.models import Balance, Meta, PartnerAccessResponse, Timestamp, Transaction

from .answers import DOCUMENTED, answers, from_bytes, payload, run_steps, to_bytes
from .support import examples

codec = Codec()


def detail_with(**account: Any) -> bytes:
    return to_bytes({"GetAccountsDetail": [{"Accounts": [{}, account]}]})


def test_the_documented_answer() -> None:
    answer = codec.decode(to_bytes(DOCUMENTED), Meta(attempts=2))
    assert answer.meta.attempts == 2
    assert answer.request_id == DOCUMENTED["RequestId"]
    (detail,) = answer.details
    assert (detail.http_status_code, detail.institution_id, detail.tag) == (200, 14, "")
    assert detail.links[0].rel == "AccountsSummary"
    assert detail.login is not None
    assert detail.login.last_refresh == Timestamp.parse("2023-04-11T15:04:43.3464411")
    assert detail.login.last_refresh.value == dt.datetime(2023, 4, 11, 15, 4, 43, 346441, tzinfo=dt.UTC)
    (account,) = answer.accounts
    assert (account.account_number, account.transit_number, account.institution_number) == ("7641238", "12347", "777")
    assert account.balance == Balance(available=Decimal("5405.5"), current=Decimal("5105.5"), limit=Decimal("5105.5"))
    assert account.overdraft_limit == Decimal(0)
    assert isinstance(account.overdraft_limit, Decimal)
    assert account.holder is not None
    assert account.holder.address is not None
    assert account.holder.address.postal_code == "M5J 2V5"
    assert account.transactions == (
        Transaction(
            date=dt.date(2025, 1, 31),
            description="PAYROLL - Stripe Paycheck",
            debit=Decimal("1000.4"),
            credit=Decimal("1500.25"),
            balance=Decimal("5105.6"),
            id="d9b2d63d-a233-4123-847a-7090d5c0f4a1",
        ),
    )
    assert from_bytes(answer.to_json()) == DOCUMENTED


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_payloads_survive(size: Any) -> None:
    body = payload(size, unknown=True)
    assert from_bytes(codec.decode(body).to_json()) == from_bytes(body)


@examples(40)
@given(answers)
def test_what_comes_goes_back(data: dict[str, Any]) -> None:
    body = to_bytes(data)
    answer = codec.decode(body)
    assert from_bytes(answer.to_json()) == from_bytes(body)
    assert codec.decode(answer.to_json()).to_dict() == answer.to_dict()
    assert codec.converter.unstructure(answer) == answer.to_dict()


@examples(20)
@given(answers)
def test_answers_are_plain_data(data: dict[str, Any]) -> None:
    answer = codec.decode(to_bytes(data))
    for copied in (pickle.loads(pickle.dumps(answer)), copy.deepcopy(answer), copy.copy(answer), evolve(answer)):
        assert copied == answer
        assert copied.to_dict() == answer.to_dict()
    assert hash(answer.meta) == hash(Meta())


@pytest.mark.parametrize("shape", [[{"LoginId": "a"}, {"LoginId": "b"}], [], {"LoginId": "a"}, None])
def test_list_object_and_null_are_all_fine(shape: Any) -> None:
    answer = codec.decode(to_bytes({"GetAccountsDetail": shape}))
    assert answer.to_dict() == {"GetAccountsDetail": shape}
    assert [d.login_id for d in answer.details] == [
        d["LoginId"] for d in ([shape] if type(shape) is dict else shape or [])
    ]
    assert answer.accounts == ()


def test_null_missing_and_empty_arrays_stay_apart() -> None:
    for detail in ({"Accounts": None}, {"Accounts": []}, {}):
        answer = codec.decode(to_bytes({"GetAccountsDetail": [detail]}))
        assert answer.accounts == ()
        assert answer.to_dict() == {"GetAccountsDetail": [detail]}


def test_unknown_fields_are_kept_at_every_level() -> None:
    body = b'{"New":1.50,"GetAccountsDetail":[{"accounts":[1],"Accounts":[{"X":{"Y":[1e5,12345678901234567890]}}]}]}'
    answer = codec.decode(body)
    assert answer.extra == {"New": Decimal("1.50")}
    assert answer.details[0].extra == {"accounts": [1]}
    assert answer.accounts[0].extra == {"X": {"Y": [Decimal("1E5"), 12345678901234567890]}}
    assert b'"New":1.50' in answer.to_json()
    with pytest.raises(TypeError):
        answer.extra["New"] = 2


@pytest.mark.parametrize(
    "text",
    [
        "12.30",
        "0",
        "-0.00",
        "1000",
        "123456789012345678.90",
        "0.000000001",
        "1E+5",
        "-9.99e-7",
        "1" * 29,
        "1e28",
        "1e-28",
    ],
)
def test_amounts_keep_their_digits(text: str) -> None:
    body = b'{"GetAccountsDetail":[{"Accounts":[{"OverdraftLimit":%b}]}]}' % text.encode()
    limit = codec.decode(body).accounts[0].overdraft_limit
    assert isinstance(limit, Decimal)
    assert str(limit) == str(Decimal(text))


@pytest.mark.parametrize(
    "text", ["1e400", "-1e400", "1e29", "1e-29", "9" * 30, "9" * 400, "0e400", "1e-400", "9" * 30 + ".5"]
)
def test_absurd_amounts_are_refused(text: str) -> None:
    body = b'{"GetAccountsDetail":{"Accounts":[{"Balance":{"Current":%b}}]}}' % text.encode()
    with pytest.raises(WrongTypeError, match="amount out of range") as caught:
        codec.decode(body)
    assert caught.value.path == "GetAccountsDetail.Accounts[0].Balance.Current"


@pytest.mark.parametrize(("text", "number"), [("200.0", 200), ("1.4E1", 14), ("-0.0", 0), ("1E28", 10**28)])
def test_whole_numbers_with_a_fraction_of_zero_are_integers(text: str, number: int) -> None:
    status = codec.decode(b'{"GetAccountsDetail":[{"HttpStatusCode":%b}]}' % text.encode()).details[0].http_status_code
    assert status == number
    assert type(status) is int


@pytest.mark.parametrize(
    ("account", "path", "words"),
    [
        ({"TransitNumber": 12347}, "TransitNumber", "expected a string, found a number"),
        ({"TransitNumber": True}, "TransitNumber", "expected a string, found a boolean"),
        ({"OverdraftLimit": "SECRET"}, "OverdraftLimit", "expected a number, found a string"),
        ({"OverdraftLimit": False}, "OverdraftLimit", "expected a number, found a boolean"),
        ({"OverdraftLimit": {"SECRET": 1}}, "OverdraftLimit", "expected a number, found an object"),
        ({"Balance": ["SECRET"]}, "Balance", "expected an object, found an array"),
        ({"Balance": {"Current": [1]}}, "Balance.Current", "expected a number, found an array"),
        ({"Holder": {"Address": "SECRET"}}, "Holder.Address", "expected an object, found a string"),
        ({"Holder": {"Address": {"City": 1.5}}}, "Holder.Address.City", "expected a string, found a number"),
        ({"Transactions": {"SECRET": 1}}, "Transactions", "expected an array, found an object"),
        ({"Transactions": [{}, None]}, "Transactions[1]", "expected an object, found null"),
        ({"Transactions": [{}, {}, 3]}, "Transactions[2]", "expected an object, found a number"),
        ({"Transactions": [{"Date": "2025-02-30"}]}, "Transactions[0].Date", "another string"),
        ({"Transactions": [{"Date": "2025-01-31T00:00:00"}]}, "Transactions[0].Date", "another string"),
        ({"Transactions": [{"Date": "20250131"}]}, "Transactions[0].Date", "another string"),
        ({"Transactions": [{"Date": "2025-W05-5"}]}, "Transactions[0].Date", "another string"),
        ({"Transactions": [{"Date": "٢٠٢٥-01-31"}]}, "Transactions[0].Date", "another string"),
        ({"Transactions": [{"Date": ""}]}, "Transactions[0].Date", "another string"),
        ({"Transactions": [{"Date": 20250131}]}, "Transactions[0].Date", "found a number"),
    ],
)
def test_a_wrong_type_is_named_by_its_place_never_by_its_value(account: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(WrongTypeError) as caught:
        codec.decode(detail_with(**account))
    error = caught.value
    assert error.path == f"GetAccountsDetail[0].Accounts[1].{path}"
    assert words in str(error)
    assert error.path in str(error)
    assert "SECRET" not in repr(error)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert pickle.loads(pickle.dumps(error)).path == error.path


@pytest.mark.parametrize(
    ("detail", "path"),
    [
        ({"HttpStatusCode": "200"}, "HttpStatusCode"),
        ({"HttpStatusCode": True}, "HttpStatusCode"),
        ({"HttpStatusCode": Decimal("1.5")}, "HttpStatusCode"),
        ({"InstitutionId": Decimal("1E+29")}, "InstitutionId"),
        ({"InstitutionId": Decimal("1E+400")}, "InstitutionId"),
        ({"Login": {"IsScheduledRefresh": 1}}, "Login.IsScheduledRefresh"),
        ({"Login": {"IsScheduledRefresh": "true"}}, "Login.IsScheduledRefresh"),
        ({"Login": {"LastRefresh": 1681225483}}, "Login.LastRefresh"),
        ({"Links": [{"rel": 1}]}, "Links[0].rel"),
        ({"Accounts": [[]]}, "Accounts[0]"),
    ],
)
def test_wrong_types_of_an_entry(detail: dict[str, Any], path: str) -> None:
    with pytest.raises(WrongTypeError) as caught:
        codec.decode(to_bytes({"GetAccountsDetail": detail}))
    assert caught.value.path == f"GetAccountsDetail.{path}"


@pytest.mark.parametrize("body", [b"[]", b"3", b'"text"', b"true", b"[{}]"])
def test_another_top_level_has_no_path(body: bytes) -> None:
    with pytest.raises(WrongTypeError, match="expected an object") as caught:
        codec.decode(body)
    assert caught.value.path is None


@pytest.mark.parametrize("shape", ["text", 3, True, [3], [None], [[]]])
def test_another_shape_of_the_details(shape: Any) -> None:
    with pytest.raises(WrongTypeError) as caught:
        codec.decode(to_bytes({"GetAccountsDetail": shape}))
    assert caught.value.path == ("GetAccountsDetail[0]" if type(shape) is list else "GetAccountsDetail")
    assert f"expected an {'object' if type(shape) is list else 'array or an object'}, found" in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"  \r\n\t ", b"null", b" null\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf null"])
def test_nothing_is_an_error(body: bytes) -> None:
    with pytest.raises(EmptyBodyError):
        codec.decode(body)


DEEP = [b"[" * 2000, b"[" * 100_000, b'{"a":' * 100_000, b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}"]


@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE html><title>SECRET</title><p>Please log in SECRET",
        b"  <html>",
        b"SECRET",
        b'{"SECRET": ',
        b'{"GetAccountsDetail":[{"LoginId":"SECRET',
        b'{"SECRET":1} SECRET',
        b"{}{}",
        b"{'SECRET':1}",
        b'{"SECRET":1,}',
        b'{"SECRET":NaN}',
        b'{"SECRET":Infinity}',
        b'{"SECRET":-Infinity}',
        b'{"SECRET":01}',
        b'{"SECRET":"\\x"}',
        b'{"SECRET":"\xff"}',
        b'{"SECRET":"\\ud800"}',
        b'{"GetAccountsDetail":[{"LoginId":"SECRET \xff"}]}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":1e99999999999999999999}',
        "{}".encode("utf-16"),
        b"\x1f\x8b\x08\x00",
        *DEEP,
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_not_json(body: bytes) -> None:
    with pytest.raises(NotJSONError) as caught:
        codec.decode(body)
    error = caught.value
    assert "SECRET" not in repr(error)
    assert len(error.message) <= 200
    assert error.__cause__ is None
    assert error.__context__ is None
    assert "SECRET" not in "".join(traceback.format_exception(error))


def test_a_page_is_told_apart_by_words_from_a_fixed_list() -> None:
    with pytest.raises(NotJSONError, match=r"a page, not JSON \(it mentions Cloudflare, a captcha\)"):
        codec.decode(b"<html><title>Attention! | CloudFlare</title> CAPTCHA for jane@example.com")


def test_a_byte_order_mark_is_tolerated() -> None:
    assert codec.decode(b'\xef\xbb\xbf{"RequestId":"a"}').request_id == "a"


def test_the_last_of_two_equal_keys_counts() -> None:
    assert codec.decode(b'{"RequestId":1,"RequestId":"b"}').request_id == "b"


@examples(60)
@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:0123456789.eE-ntrufalse \\', max_size=40).map(str.encode))
def test_any_bytes_end_in_an_answer_or_a_decode_error(body: bytes) -> None:
    try:
        answer = codec.decode(body)
    except DecodeError:
        return
    assert from_bytes(answer.to_json()) == from_bytes(body)


@examples(25)
@given(answers, st.data())
def test_a_body_cut_anywhere_is_an_error(data: dict[str, Any], draw: st.DataObject) -> None:
    body = to_bytes(data)
    with pytest.raises((NotJSONError, EmptyBodyError)):
        codec.decode(body[: draw.draw(st.integers(0, len(body) - 1))])


def test_the_converter_works_by_itself() -> None:
    transaction = codec.converter.structure({"Debit": Decimal("12.30"), "Date": "2025-01-31"}, Transaction)
    assert transaction == Transaction(date=dt.date(2025, 1, 31), debit=Decimal("12.30"))
    assert codec.converter.unstructure([transaction]) == [{"Debit": Decimal("12.30"), "Date": "2025-01-31"}]
    assert codec.converter.unstructure(Timestamp.parse("2023-04-11")) == "2023-04-11"
    with pytest.raises(WrongTypeError, match="found a string") as caught:
        codec.converter.structure({"Debit": "1"}, Transaction)
    assert caught.value.path == "Debit"
    assert codec.converter.structure(["1"], list[int]) == [1]  # other classes are not ours


def test_error_messages_hold_no_json_of_the_body() -> None:
    secret = "4510123412341234"
    body = json.dumps({"GetAccountsDetail": {"Accounts": secret, secret: secret}}).encode()
    with pytest.raises(WrongTypeError) as caught:
        codec.decode(body)
    assert not re.search(r"\d{4}", str(caught.value))


def with_transaction(**fields: Any) -> bytes:
    transactions = [{"Id": "t-1", "Date": "2025-01-31", "Debit": 1.5}, {"Id": "t-2", **fields}]
    account = {"Id": "a-1", "Balance": {"Current": 7}, "Transactions": transactions}
    return json.dumps({"GetAccountsDetail": [{"LoginId": "l-1", "Accounts": [account]}], "RequestId": "r-1"}).encode()


def test_the_converter_raises_public_errors() -> None:
    mine = Codec()
    for data in ([], {"GetAccountsDetail": [{"Accounts": [{"Balance": {"Current": "SECRET"}}]}]}):
        with pytest.raises(WrongTypeError) as caught:
            mine.converter.structure(data, PartnerAccessResponse)
        assert type(caught.value) is WrongTypeError
        assert "SECRET" not in str(caught.value)
    assert caught.value.path == "GetAccountsDetail[0].Accounts[0].Balance.Current"
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    with pytest.raises(JSONLimitError):
        mine.converter.structure({"X": deep}, PartnerAccessResponse)


ODD: list[tuple[str, Any]] = [
    *(("Date", value) for value in ("", "31/01/2025", 5, True, [], {})),
    *(("Debit", value) for value in ("", "1.5", True, [], {})),
    *(("Description", value) for value in (5, 1.5, True, ["x"], {"x": 1})),
    *(("Id", value) for value in (5, False, [])),
]


@pytest.mark.parametrize(("wire", "value"), ODD)
@pytest.mark.parametrize("way", ["at once", "in steps", "on access"])
def test_an_odd_value_can_be_kept_in_extra(wire: str, value: Any, way: str, caplog: pytest.LogCaptureFixture) -> None:
    body = with_transaction(**{wire: value})
    with pytest.raises(WrongTypeError):
        Codec().decode(body)
    mine = Codec(wrong_types="extra", transactions="on access" if way == "on access" else "with the answer")
    for _ in range(3):
        if way == "in steps":
            large = json.loads(body)
            large["GetAccountsDetail"][0]["Accounts"][0]["Transactions"] *= 1100
            body_sent = json.dumps(large).encode()
            assert len(body_sent) > DIRECT_SIZE
            answer = run_steps(mine.decode_steps(body_sent))[0]
            assert len(answer.accounts[0].transactions) == 2200
        else:
            body_sent = body
            answer = mine.decode(body)
        first, odd = answer.accounts[0].transactions[:2]
        assert first.debit == Decimal("1.5")
        assert getattr(odd, wire.lower()) is None
        assert odd.extra == {wire: value}
        assert odd.to_dict()[wire] == value
        assert json.loads(answer.to_json()) == json.loads(body_sent)
        assert pickle.loads(pickle.dumps(answer)) == answer
        assert repr(value) not in repr(odd) or value in ("", 5, True)
    warnings = [record.getMessage() for record in caplog.records if record.name == "flinks_async"]
    assert len(warnings) == 1
    assert f"Transaction.{wire}: expected" in warnings[0]


@pytest.mark.parametrize(
    ("body", "path", "kept"),
    [
        (b'{"GetAccountsDetail":"x","RequestId":"r"}', "", {"GetAccountsDetail": "x"}),
        (b'{"GetAccountsDetail":[{"Accounts":5}]}', "details[0]", {"Accounts": 5}),
        (b'{"GetAccountsDetail":[{"HttpStatusCode":"x"}]}', "details[0]", {"HttpStatusCode": "x"}),
        (b'{"GetAccountsDetail":[{"Accounts":[{"Balance":[]}]}]}', "accounts[0]", {"Balance": []}),
        (b'{"GetAccountsDetail":[{"Accounts":[{"Transactions":[5]}]}]}', "accounts[0]", {"Transactions": [5]}),
        (
            b'{"GetAccountsDetail":[{"Accounts":[{"Transactions":[{}, null]}]}]}',
            "accounts[0]",
            {"Transactions": [{}, None]},
        ),
        (b'{"GetAccountsDetail":[{"Login":{"LastRefresh":5}}]}', "details[0].login", {"LastRefresh": 5}),
    ],
)
def test_odd_values_of_every_kind_are_kept(body: bytes, path: str, kept: dict[str, Any]) -> None:
    answer = Codec(wrong_types="extra").decode(body)
    owner = eval(f"answer.{path}" if path else "answer")
    assert owner.extra == kept
    assert json.loads(answer.to_json()) == json.loads(body)


def test_a_large_array_with_an_odd_item_is_kept_whole() -> None:
    transactions: list[Any] = [{"Id": f"t-{n}"} for n in range(3000)] + [5]
    body = json.dumps({"GetAccountsDetail": [{"Accounts": [{"Transactions": transactions}]}]}).encode()
    answer = run_steps(Codec(wrong_types="extra").decode_steps(body))[0]
    assert answer.accounts[0].transactions == ()
    assert answer.accounts[0].extra == {"Transactions": transactions}


def test_the_choices_of_a_codec_are_checked() -> None:
    with pytest.raises(ConfigError, match="wrong_types must be one of 'error', 'extra'"):
        Codec(wrong_types="ignore")
