"""The envelope of an answer: code, status, message and request id."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flinks_async.classify import classify_response
from flinks_async.codec import Codec, envelope_of, read_envelope
from flinks_async.codec.parse import UNREADABLE
from flinks_async.models import SCHEMA, AccountsDetail
from flinks_async.schema import FieldKind
from flinks_async.secret import Secret
from flinks_async.verdict import EMPTY_ENVELOPE, Envelope, Kind

from .answers import DOCUMENTED, payload, to_bytes
from .support import examples

GUID = "d9b2d63d-a233-4123-847a-7090d5c0f4a1"
codec = Codec()


def envelope(data: dict[str, Any], *hidden: Secret) -> Envelope:
    return envelope_of(codec.decode(to_bytes(data)), *hidden)


@pytest.mark.parametrize("style", [str, str.lower, str.upper, lambda key: key[0].lower() + key[1:]])
def test_keys_are_read_in_any_case(style: Any) -> None:
    data = {"HttpStatusCode": 401, "FlinksCode": "UNAUTHORIZED", "Message": "no", "RequestId": GUID, "Links": []}
    body = to_bytes({style(key): value for key, value in data.items()})
    assert read_envelope(body) == Envelope("UNAUTHORIZED", 401, "no", GUID)
    assert read_envelope(b"\xef\xbb\xbf" + body) == Envelope("UNAUTHORIZED", 401, "no", GUID)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{}", b"null", b"[]", b"3", b"<html>", b"{", b"\xff", b"[" * 100_000, b'{"a":NaN}'),
        *(b'{"Message":null}', b'{"Message":""}', b'{"Message":3}', b'{"RequestId":""}', b'{"RequestId":3}'),
    ],
)
def test_anything_else_is_an_empty_envelope(body: bytes) -> None:
    assert read_envelope(body) == EMPTY_ENVELOPE


@examples(50)
@given(st.binary(max_size=30))
def test_reading_never_raises(body: bytes) -> None:
    assert isinstance(read_envelope(body), Envelope)


@pytest.mark.parametrize(
    "code", ["has space", "a" * 65, "A" * 24, "X_" + "4" * 24, "", "a\nb", "<b>", 3, True, None, ["X"]]
)
def test_a_code_is_a_short_word_or_nothing(code: Any) -> None:
    assert read_envelope(to_bytes({"FlinksCode": code})).flinks_code is None


@pytest.mark.parametrize(
    "status", [True, "4010", "099", "4.1", "\uff1401", "", 401.5, 10**30, -1, 0, 99, 1000, None, [401]]
)
def test_a_status_is_a_number_of_three_digits_or_nothing(status: Any) -> None:
    assert read_envelope(to_bytes({"HttpStatusCode": status})).http_status_code is None


@pytest.mark.parametrize("status", [100, 401, 999, "100", "401", "999", 503.0, "503.0", " 401 ", "401."])
def test_a_status_of_three_digits_is_one(status: float | str) -> None:
    assert read_envelope(to_bytes({"HttpStatusCode": status})).http_status_code == int(float(status))
    assert envelope({"HttpStatusCode": status}).http_status_code == int(float(status))


@pytest.mark.parametrize(
    ("secret", "code"),
    [("unknown", "UNAUTHORIZED"), ("unautho", "UNAUTHORIZED"), ("unauthor", None), ("authorize", None)],
)
def test_a_code_that_has_a_secret_in_it_is_none_unless_the_secret_is_a_few_letters(
    secret: str, code: str | None
) -> None:
    assert read_envelope(to_bytes({"FlinksCode": "UNAUTHORIZED"}), Secret(secret)).flinks_code == code


def test_secrets_and_personal_data_are_masked() -> None:
    token = Secret("tok-canary-1")
    data = {
        "FlinksCode": "tok-canary-1",
        "Message": f"Token TOK-CANARY-1 of jane@example.com, account 7641238, {GUID}, https://x.example/y",
        "RequestId": "x-tok-canary-1",
    }
    for found in (read_envelope(to_bytes(data), token), envelope({**data, "GetAccountsDetail": None}, token)):
        assert found.flinks_code in (None, UNREADABLE)
        for shown in (found.message, found.request_id):
            assert shown is not None
            for part in ("canary", "CANARY", "jane", "7641238", GUID, "x.example"):
                assert part not in shown


@pytest.mark.parametrize("length", [199, 200, 201, 3000])
def test_a_message_is_cut(length: int) -> None:
    message = read_envelope(to_bytes({"Message": ("no " * 1000)[:length]})).message
    assert message == ("no " * 1000)[:length] if length <= 200 else ("no " * 1000)[:199] + "…"


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode, lambda data: data.hex().encode()])
@pytest.mark.parametrize("before", ["", "x" * 20 + " ", "no " * 63])
def test_a_secret_in_a_coding_is_not_in_the_message(encode: Callable[[bytes], bytes], before: str) -> None:
    coded = encode(b"the-auth-secret:an-access-token").decode()
    message = read_envelope(to_bytes({"Message": f"{before}{coded}: no"})).message
    assert message == f"{before}***: no"


GUID = "3fa85f64-5717-4562-b3fc-2c963f66afa6"


@pytest.mark.parametrize(
    ("request_id", "shown"),
    [
        (GUID, GUID),
        (GUID.replace("-", ""), GUID.replace("-", "")),
        ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        ("x" * 33, "***"),
        ("an id", "an id"),
        (f"id {base64.b64encode(GUID.encode()).decode()}", "id ***"),
    ],
)
def test_a_request_id_is_there_to_be_quoted(request_id: str, shown: str) -> None:
    body = to_bytes({"RequestId": request_id})
    assert read_envelope(body, Secret("the-auth-secret")).request_id == shown


@pytest.mark.parametrize("hidden", [GUID, "the-auth-secret"])
def test_a_request_id_or_code_that_repeats_a_hidden_value_in_a_coding_is_masked(hidden: str) -> None:
    data = hidden.encode()
    for coded in (hidden.replace("-", ""), data.hex(), base64.b64encode(data).decode().rstrip("=")):
        envelope = read_envelope(to_bytes({"RequestId": coded, "FlinksCode": coded[:64]}), Secret(hidden))
        assert (envelope.request_id, envelope.flinks_code) == ("***", None)


def test_words_of_a_message_stay() -> None:
    text = "The institution's multi-factor-question was not answered (InvalidSecurityResponse); see docs/errors.md, 4.1"
    assert read_envelope(to_bytes({"Message": text})).message == text


def test_a_body_of_more_than_256_kib_is_not_an_envelope() -> None:
    body = b'{"FlinksCode":"X"}'
    assert read_envelope(body.ljust(256 * 1024)).flinks_code == "X"
    assert read_envelope(body.ljust(256 * 1024 + 1)) == EMPTY_ENVELOPE


def test_a_clean_answer_has_none() -> None:
    assert envelope(DOCUMENTED) is EMPTY_ENVELOPE
    assert envelope({"GetAccountsDetail": []}) is EMPTY_ENVELOPE
    assert envelope({"GetAccountsDetail": None, "RequestId": GUID, "New": {"Message": "x"}}) is EMPTY_ENVELOPE


@pytest.mark.parametrize("code", ["TOO MANY", "a" * 65, 401, True, ["UNAUTHORIZED"], {"Code": "UNAUTHORIZED"}])
def test_a_code_in_an_odd_form_is_still_an_error_and_no_empty_answer(code: Any) -> None:
    for shape in ({"FlinksCode": code}, {"GetAccountsDetail": [{"FlinksCode": code}]}):
        found = envelope(shape)
        assert found.flinks_code == UNREADABLE
        assert classify_response(200, found).kind is Kind.FINAL


def test_of_two_keys_that_differ_in_case_the_one_that_says_something_counts() -> None:
    assert envelope({"flinksCode": "UNAUTHORIZED", "FlinksCode": None}).flinks_code == "UNAUTHORIZED"


def test_an_error_beside_the_data() -> None:
    found = envelope({"httpStatusCode": 401, "FLINKSCODE": "TOO_MANY_REQUESTS", "RequestId": GUID})
    assert found == Envelope("TOO_MANY_REQUESTS", 401, None, GUID)
    assert envelope({"FlinksCode": "TOO_MANY_REQUESTS"}) == Envelope("TOO_MANY_REQUESTS")
    assert envelope({"HttpStatusCode": 500}) == Envelope(http_status_code=500)
    assert envelope({"Message": "no"}) == Envelope(message="no")


REFUSAL = {"HttpStatusCode": 401, "FlinksCode": "SESSION_EXPIRED", "Message": "gone"}
WHOLE = {field.wire: [] if field.kind is FieldKind.ARRAY else None for field in SCHEMA[AccountsDetail]}


@pytest.mark.parametrize(
    "shape", [REFUSAL, [REFUSAL], [REFUSAL, {"flinksCode": "OTHER", "Accounts": []}], {**WHOLE, **REFUSAL}]
)
def test_an_error_inside_the_details(shape: Any) -> None:
    found = envelope({"GetAccountsDetail": shape, "RequestId": GUID})
    assert found == Envelope("SESSION_EXPIRED", 401, "gone", GUID)


@pytest.mark.parametrize(
    "shape",
    [
        [REFUSAL, {"LoginId": "a"}],
        {**REFUSAL, "Accounts": [{}]},
        {"HttpStatusCode": 401, "Accounts": [{}]},
        [{"HttpStatusCode": 401}, {"HttpStatusCode": 200}],
        {"HttpStatusCode": 200},
        {"HttpStatusCode": 399},
        {"FlinksCode": None},
        {"Message": "hello"},
    ],
)
def test_entries_with_data_or_without_a_code_are_no_error(shape: Any) -> None:
    assert envelope({"GetAccountsDetail": shape}) is EMPTY_ENVELOPE


@pytest.mark.parametrize(
    "shape", [{"HttpStatusCode": 400}, [{"HttpStatusCode": 400}], {**WHOLE, "HttpStatusCode": 400}]
)
def test_a_status_alone_inside_the_details(shape: Any) -> None:
    found = envelope({"GetAccountsDetail": shape, "RequestId": GUID})
    assert found == Envelope(http_status_code=400, request_id=GUID)


def test_a_code_alone_inside_complete_details() -> None:
    found = envelope({"GetAccountsDetail": {**WHOLE, "FlinksCode": "SESSION_EXPIRED"}, "RequestId": GUID})
    assert found == Envelope("SESSION_EXPIRED", request_id=GUID)


@pytest.mark.parametrize(
    "said", [{"HttpStatusCode": 1401}, {"HttpStatusCode": True}, {"httpStatusCode": "x"}, {"Message": ["no"]}]
)
def test_without_data_what_cannot_be_read_is_an_error_all_the_same(said: dict[str, Any]) -> None:
    assert envelope({**said, "RequestId": GUID}) == Envelope(UNREADABLE, request_id=GUID)
    assert envelope({**said, "GetAccountsDetail": []}) == Envelope(UNREADABLE)
    assert envelope({**said, "GetAccountsDetail": [{"LoginId": "a"}]}) is EMPTY_ENVELOPE


@pytest.mark.parametrize("said", [{"HttpStatusCode": 0}, {"FlinksCode": ""}, {"FlinksCode": []}, {"Message": ""}])
def test_what_says_nothing_is_no_error(said: dict[str, Any]) -> None:
    assert envelope(said) is EMPTY_ENVELOPE


def test_what_a_hook_made_of_an_answer_has_none() -> None:
    odd: Any = {"FlinksCode": "X"}
    assert envelope_of(odd) is EMPTY_ENVELOPE
    hooked = Codec()
    hooked.converter.register_structure_hook(AccountsDetail, lambda value, _: value)
    assert envelope_of(hooked.decode(to_bytes({"GetAccountsDetail": [odd], "RequestId": GUID}))) is EMPTY_ENVELOPE


def test_a_clean_answer_costs_nothing() -> None:
    answer = codec.decode(payload("medium"))
    started = time.process_time()
    for _ in range(1000):
        envelope_of(answer)
    assert time.process_time() - started < 0.1
