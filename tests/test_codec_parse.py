"""Bytes to plain Python, in pieces and within limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from flinks_async.codec import Codec
from flinks_async.codec.parse import (
    COUNTED_SIZE,
    MAX_KEYS,
    MAX_VALUES,
    PIECE_SIZE,
    TooMany,
    batches,
    check_limits,
    check_value_count,
    count_steps,
    json_array,
    json_error,
    parse_steps,
)
from flinks_async.errors import DecodeError, EmptyBodyError, JSONLimitError, NotJSONError
from flinks_async.models import PartnerAccessResponse

from .answers import run_steps
from .support import traced


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([], []),
        ([3, 3, 3], [[3, 3, 3]]),
        ([5, 5], [[5, 5]]),
        ([5, 6], [[5], [6]]),
        ([4, 4, 4, 4, 4], [[4, 4], [4, 4], [4]]),
        ([6, 5, 5], [[6], [5, 5]]),
        ([6, 5, 6], [[6], [5], [6]]),
        ([20], [[20]]),
        ([1, 20, 1], [[1], [20], [1]]),
    ],
)
def test_items_are_grouped_by_their_size(sizes: list[int], groups: list[list[int]]) -> None:
    pieces = [msgspec.Raw(b"1" * size) for size in sizes]
    found = list(batches(pieces, 10))
    assert [[len(piece) for piece in group] for group in found] == groups
    assert json_array([piece for group in found for piece in group]) == json_array(pieces)


def steps(body: bytes) -> tuple[Any, int]:
    """The value that is read, and the number of steps."""
    return run_steps(parse_steps(body, len(body)))


@pytest.mark.parametrize(
    ("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b' { "a" : [', b"]}"), (b" [", b"]")]
)
def test_a_large_body_is_cut_eight_levels_deep(opening: bytes, closing: bytes) -> None:
    body = opening * 20 + b'"' + b"a" * PIECE_SIZE + b'"' + closing * 20
    value, count = steps(body)
    assert value == msgspec.json.decode(body)
    assert count == 8


def test_a_large_array_is_read_in_groups() -> None:
    body = json_array([msgspec.Raw(b"12345")] * (PIECE_SIZE // 2))
    value, count = steps(body)
    assert value == [12345] * (PIECE_SIZE // 2)
    assert count == 3


def test_only_what_is_larger_than_a_piece_is_cut() -> None:
    for size, count in ((PIECE_SIZE, 0), (PIECE_SIZE + 1, 1)):
        assert steps(b'{"a":1}'.ljust(size)) == ({"a": 1}, count)
    assert steps(b'"' + b"a" * PIECE_SIZE + b'"') == ("a" * PIECE_SIZE, 0)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("observed", [False, True])
def test_an_unknown_field_has_a_hundred_levels_at_most(opening: bytes, closing: bytes, observed: bool) -> None:
    codec = Codec()
    if observed:
        codec.decode(b'{"New":1,"New2":1}')
    for name in (b"New", b"New2"):
        codec.decode(b'{"%b":' % name + opening * 100 + b"1" + closing * 100 + b"}")
        with pytest.raises(JSONLimitError, match="nested too deeply"):
            codec.decode(b'{"%b":' % name + opening * 101 + b"1" + closing * 101 + b"}")


WAYS: dict[str, Callable[[Codec, bytes], Any]] = {
    "at once": lambda codec, body: codec.decode(body),
    "in steps": lambda codec, body: run_steps(codec.decode_steps(body))[0],
}
TOO_MANY = "the body has more values or keys than account data can have"


@pytest.fixture(params=["at once", "in steps"])
def decode(request: pytest.FixtureRequest) -> Callable[[Codec, bytes], Any]:
    return WAYS[request.param]


@pytest.mark.parametrize("unit", [b"1,", b"[],", b'"a",', b"[" * 50 + b"]" * 50 + b",", b"1,1,[],{},", b'" ,,, ",'])
def test_a_large_body_has_as_many_values_as_account_data_may(unit: bytes) -> None:
    size = 8 * COUNTED_SIZE
    most = MAX_VALUES + size // 16
    each = sum(unit.count(sign) for sign in (b",", b"[", b"{"))
    body = unit * (most // each) + b"," * (most % each)
    assert run_steps(count_steps(body.ljust(size)))[0] == most
    for more in (b",", b"[", b"{"):
        with pytest.raises(TooMany):
            run_steps(count_steps((body + more).ljust(size)))


def test_a_sixth_of_the_values_may_be_objects() -> None:
    most = (MAX_VALUES + 2 * COUNTED_SIZE // 16) // 6
    run_steps(count_steps((b"{" * most).ljust(2 * COUNTED_SIZE)))
    with pytest.raises(TooMany):
        run_steps(count_steps((b"{" * (most + 1)).ljust(2 * COUNTED_SIZE)))


def test_documented_fields_have_no_more_values_either(decode: Callable[[Codec, bytes], Any]) -> None:
    def body(transactions: int) -> bytes:
        items = b",".join([b"{}"] * transactions)
        return (b'{"GetAccountsDetail":{"Accounts":[{"Transactions":[%b]}]}}' % items).ljust(COUNTED_SIZE + 1)

    most = (MAX_VALUES + COUNTED_SIZE // 16) // 6 - 3  # the others are the answer, its entry and the account
    assert len(decode(Codec(), body(most)).details[0].accounts[0].transactions) == most
    with pytest.raises(JSONLimitError, match=TOO_MANY):
        decode(Codec(), body(most + 1))


def test_values_are_counted_in_large_bodies_only() -> None:
    assert run_steps(count_steps(b"{" * COUNTED_SIZE)) == (0, 0)
    with pytest.raises(TooMany):
        run_steps(count_steps(b"{" * (COUNTED_SIZE + 1)))
    run_steps(check_value_count(msgspec.Raw(b"{" * COUNTED_SIZE)))
    with pytest.raises(TooMany):
        run_steps(check_value_count(msgspec.Raw(b"{" * (COUNTED_SIZE + 1))))


def test_values_are_counted_a_megabyte_at_a_time() -> None:
    body = b",".ljust(COUNTED_SIZE // 2) + b"[".ljust(COUNTED_SIZE // 2) + b"{"
    assert run_steps(count_steps(body)) == (3, 3)


@pytest.mark.parametrize(
    ("opening", "closing"),
    [(b'{"X":', b"}"), (b'{"GetAccountsDetail":{"Accounts":[{"Transactions":', b"}]}}")],
    ids=["unknown", "transactions"],
)
def test_more_values_than_account_data_have_are_refused_before_they_are_read(
    opening: bytes, closing: bytes, decode: Callable[[Codec, bytes], Any]
) -> None:
    body = opening + b"[" + b"[]," * (4 * COUNTED_SIZE // 3) + b"[]]" + closing
    with traced() as memory, pytest.raises(JSONLimitError, match=TOO_MANY):
        decode(Codec(), body)
    assert memory.peak < 2 * len(body)


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        (b'{"X":', b"}"),
        (b'{"GetAccountsDetail":[{"X":', b"}]}"),
        (b'{"GetAccountsDetail":{"Accounts":[{"X":', b"}]}}"),
        (b'{"GetAccountsDetail":{"Accounts":[{"Transactions":[{"X":', b"}]}]}}"),
    ],
)
def test_an_unknown_field_has_a_million_values_at_most(
    opening: bytes, closing: bytes, observed: bool, decode: Callable[[Codec, bytes], Any]
) -> None:
    codec = Codec()
    if observed:
        codec.decode(opening + b"1" + closing)
    # The bracket and the commas.
    fits, more = (opening + b"[" + b"1, " * (MAX_VALUES - 2 + extra) + b"1]" + closing for extra in (1, 2))
    decode(codec, fits)
    with pytest.raises(JSONLimitError, match=TOO_MANY):
        decode(codec, more)


def _keys(count: int) -> bytes:
    return b",".join(b'"%07d":1' % number for number in range(count))


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize(
    ("opening", "closing", "known"),
    [
        (b"{", b"}", 0),
        (b'{"GetAccountsDetail":null,', b"}", 1),
        (b'{"X":{', b"}}", 0),
        (b'{"X":[1,{"Y":{', b"}}]}", 0),
        (b'{"GetAccountsDetail":{"Accounts":[{"Transactions":[{},{', b"}]}]}}", 0),
    ],
)
def test_an_object_has_ten_thousand_keys_at_most(
    opening: bytes, closing: bytes, known: int, observed: bool, decode: Callable[[Codec, bytes], Any]
) -> None:
    codec = Codec()
    if observed:
        codec.decode(b'{"X":1}')
    decode(codec, opening + _keys(MAX_KEYS - known) + closing)
    with pytest.raises(JSONLimitError, match=TOO_MANY):
        decode(codec, opening + _keys(MAX_KEYS - known + 1) + closing)


def test_deeper_than_objects_are_cut_their_keys_are_counted_too() -> None:
    check_limits([dict.fromkeys(range(MAX_KEYS))])
    with pytest.raises(TooMany):
        check_limits([dict.fromkeys(range(MAX_KEYS + 1))])


@pytest.mark.parametrize("key", [b'"%06d" :', b'\n "\\"%06d\\\\":', b'"{,%06d:\xc3\xa9":'])
@pytest.mark.parametrize("value", [b"1", b" true ", b'"a,\\"}"', b"[1,[2]]", b'{"a":{}}', b"-1.5e3"])
def test_more_keys_are_refused_before_they_are_kept(key: bytes, value: bytes) -> None:
    members = [key % number + value for number in range(MAX_KEYS * 5)]
    body = b" {" + b",".join(members[:MAX_KEYS]) + b"}"
    assert steps(body)[0] == msgspec.json.decode(body)
    body = b" {" + b",".join(members) + b"}"
    with traced() as memory, pytest.raises(TooMany):
        steps(body)
    assert memory.peak < 4 * PIECE_SIZE


@pytest.mark.parametrize(
    "end", [b"", b"}}", b',"a"', b',"a":', b',"a":1', b',"a":[1,', b',"a" 1}', b",a:1}", b',"a":NaN}']
)
def test_an_object_is_broken_at_the_same_place_when_its_keys_are_counted(end: bytes) -> None:
    body = b"{" + _keys(MAX_KEYS - 1) + end
    with pytest.raises(msgspec.DecodeError):
        steps(body)


def test_an_object_of_many_fields_has_steps() -> None:
    field = b'"' + b"a" * (PIECE_SIZE // 2) + b'"'
    body = b"{" + b",".join(b'"%d":%b' % (number, field) for number in range(30)) + b"}"
    value, count = steps(body)
    assert value == msgspec.json.decode(body)
    assert count == 15 + 1


def test_only_unknown_fields_are_counted() -> None:
    accounts = b'{"GetAccountsDetail":[{"Accounts":[' + b"1, " * MAX_VALUES + b"1]}]}"
    run_steps(parse_steps(accounts, len(accounts), cls=PartnerAccessResponse))
    for wrong in (b"Accountz", b"accounts"):
        body = accounts.replace(b"Accounts", wrong, 2).replace(b"Get" + wrong, b"GetAccounts")
        with pytest.raises(TooMany):
            run_steps(parse_steps(body, len(body), cls=PartnerAccessResponse))
        run_steps(parse_steps(body, len(body)))


def test_nan_is_found_without_reading_the_values() -> None:
    for end, error in ((b"NaN", JSONLimitError), (b"Nan", NotJSONError)):
        body = b"[" + b"[]," * COUNTED_SIZE + end
        with traced() as memory:
            assert type(json_error(body, ValueError())) is error
        assert memory.peak < 4 * PIECE_SIZE


PAGE, CUT_SHORT = "the body is a page, not JSON", "the body is not JSON, or was cut short"


@pytest.mark.parametrize("body", [b"[" * 100, b"[1]", b'{"[[":[' * 50], ids=["deep", "JSON", "brackets in texts"])
def test_where_no_constant_is_found_it_is_not_named(body: bytes) -> None:
    assert type(json_error(body, ValueError())) is NotJSONError


@pytest.mark.parametrize("opening", [b"[", b"[ ", b'{"]":', b'{"\\"]":['])
def test_depth_is_found_where_the_parser_did_not_complain(opening: bytes) -> None:
    assert "nested too deeply" in str(json_error(opening * 101, ValueError()))


RANGE, CONSTANT = "the body has a number that is out of range", "the body has NaN or Infinity where JSON has a number"


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"", EmptyBodyError, "the body is empty"),
        (b" " * 5000, EmptyBodyError, "the body is empty"),
        (b" " * 4095 + b"<p>", NotJSONError, PAGE),
        (b" " * 4096 + b"<p>", NotJSONError, CUT_SHORT),
        (b"<" + b" " * (65536 - 8) + b"CAPTCHA", NotJSONError, f"{PAGE} (it mentions a captcha)"),
        (b"<" + b" " * (65536 - 7) + b"CAPTCHA", NotJSONError, PAGE),
        (b"[" * 100_000, JSONLimitError, "the body is JSON that is nested too deeply"),
        (b'{"a":"\xff"}', NotJSONError, "the body is not valid UTF-8"),
        (b'{"a":1e99999999999999999999}', JSONLimitError, RANGE),
        (b'{"a":' + b"9" * 5000 + b"}", JSONLimitError, RANGE),
        (b'{"a":NaN}', JSONLimitError, CONSTANT),
        (b'{"a":-Infinity}', JSONLimitError, CONSTANT),
        (b'{"a":1.5,"b":12,"c":NaN', JSONLimitError, CONSTANT),
        (b"NaN", JSONLimitError, CONSTANT),
        (b"[Infinity", JSONLimitError, CONSTANT),
        (b"[-NaN]", NotJSONError, CUT_SHORT),
        (b"[1,Na", NotJSONError, CUT_SHORT),
        (b"[1 NaN]", NotJSONError, CUT_SHORT),
        (b"[01,NaN]", NotJSONError, CUT_SHORT),
        (b"[1]NaN", NotJSONError, CUT_SHORT),
        (b'{"a":"NaN"', NotJSONError, CUT_SHORT),
        (b'{"a":"\\ud800NaN"}', NotJSONError, CUT_SHORT),
        (b'["Infinity"]]', NotJSONError, CUT_SHORT),
        (b'{"a":', NotJSONError, CUT_SHORT),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_why_a_body_is_not_json(body: bytes, error: type[DecodeError], message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        Codec().decode(body)
    assert (type(caught.value), caught.value.message) == (error, message)
