"""Code, message and request id of an answer that says no."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flinks_async.classify import Kind, classify_response
from flinks_async.codec import Codec, envelope_of, read_envelope
from flinks_async.codec.envelope import UNREADABLE
from flinks_async.messages import EMPTY_ENVELOPE, Envelope
from flinks_async.secret import Secret

from .answers import DOCUMENTED, payload, to_bytes

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
    [b"", b"{}", b"null", b"[]", b"3", b"<html>", b"{", b"\xff", b"[" * 100_000, b'{"Message":null}', b'{"a":NaN}'],
)
def test_anything_else_is_an_empty_envelope(body: bytes) -> None:
    assert read_envelope(body) == EMPTY_ENVELOPE


@settings(max_examples=100)
@given(st.binary(max_size=30))
def test_reading_never_raises(body: bytes) -> None:
    assert isinstance(read_envelope(body), Envelope)


@pytest.mark.parametrize("code", ["has space", "a" * 65, "", "a\nb", "<b>", 3, True, None, ["X"]])
def test_a_code_is_a_short_word_or_nothing(code: Any) -> None:
    assert read_envelope(to_bytes({"FlinksCode": code})).flinks_code is None


@pytest.mark.parametrize("status", [True, "401", 401.5, 10**30, -1, 0, None, [401]])
def test_a_status_is_a_number_of_three_digits_or_nothing(status: Any) -> None:
    assert read_envelope(to_bytes({"HttpStatusCode": status})).http_status_code is None


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


def test_a_message_is_cut() -> None:
    message = read_envelope(to_bytes({"Message": "no " * 1000})).message
    assert message is not None
    assert len(message) <= 200


def test_a_huge_body_is_not_an_envelope() -> None:
    assert read_envelope(b'{"FlinksCode":"X","a":"' + b"a" * (256 * 1024) + b'"}') == EMPTY_ENVELOPE


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


REFUSAL = {"HttpStatusCode": 401, "FlinksCode": "SESSION_EXPIRED", "Message": "gone"}


@pytest.mark.parametrize("shape", [REFUSAL, [REFUSAL], [REFUSAL, {"flinksCode": "OTHER", "Accounts": []}]])
def test_an_error_inside_the_details(shape: Any) -> None:
    found = envelope({"GetAccountsDetail": shape, "RequestId": GUID})
    assert found == Envelope("SESSION_EXPIRED", 401, "gone", GUID)


@pytest.mark.parametrize(
    "shape",
    [
        [REFUSAL, {"LoginId": "a"}],
        {**REFUSAL, "Accounts": [{}]},
        {"HttpStatusCode": 401},
        {"FlinksCode": None},
        {"Message": "hello"},
    ],
)
def test_entries_with_data_or_without_a_code_are_no_error(shape: Any) -> None:
    assert envelope({"GetAccountsDetail": shape}) is EMPTY_ENVELOPE


def test_what_a_hook_made_of_an_answer_has_none() -> None:
    odd: Any = {"FlinksCode": "X"}
    assert envelope_of(odd) is EMPTY_ENVELOPE


def test_a_clean_answer_costs_nothing() -> None:
    answer = codec.decode(payload("medium"))
    started = time.perf_counter()
    for _ in range(1000):
        envelope_of(answer)
    assert time.perf_counter() - started < 0.1
