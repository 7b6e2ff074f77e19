"""Bytes to plain Python, in pieces and within limits."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from flinks_async.codec import Codec
from flinks_async.codec.parse import PIECE, batches, joined, parse_steps
from flinks_async.errors import DecodeError, EmptyBodyError, JSONLimitError, NotJSONError


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
    assert joined([piece for group in found for piece in group]) == joined(pieces)


def steps(body: bytes) -> tuple[Any, int]:
    """What is read, and in how many steps."""
    generator, count = parse_steps(body, len(body)), 0
    while True:
        try:
            next(generator)
        except StopIteration as finished:
            return finished.value, count
        count += 1


@pytest.mark.parametrize(
    ("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b' { "a" : [', b"]}"), (b" [", b"]")]
)
def test_a_large_body_is_cut_eight_levels_deep(opening: bytes, closing: bytes) -> None:
    body = opening * 20 + b'"' + b"a" * PIECE + b'"' + closing * 20
    value, count = steps(body)
    assert value == msgspec.json.decode(body)
    assert count == 8


def test_a_large_array_is_read_in_groups() -> None:
    body = joined([msgspec.Raw(b"12345")] * (PIECE // 2))
    value, count = steps(body)
    assert value == [12345] * (PIECE // 2)
    assert count == 3


def test_only_what_is_larger_than_a_piece_is_cut() -> None:
    for size, count in ((PIECE, 0), (PIECE + 1, 1)):
        assert steps(b'{"a":1}'.ljust(size)) == ({"a": 1}, count)
    assert steps(b'"' + b"a" * PIECE + b'"') == ("a" * PIECE, 0)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("learned", [False, True])
def test_an_unknown_field_has_a_hundred_levels_at_most(opening: bytes, closing: bytes, learned: bool) -> None:
    codec = Codec()
    if learned:
        codec.decode(b'{"New":1,"New2":1}')
    for name in (b"New", b"New2"):
        codec.decode(b'{"%b":' % name + opening * 100 + b"1" + closing * 100 + b"}")
        with pytest.raises(JSONLimitError, match="nested too deeply"):
            codec.decode(b'{"%b":' % name + opening * 101 + b"1" + closing * 101 + b"}")


PAGE, CUT_SHORT = "the body is a page, not JSON", "the body is not JSON, or was cut short"
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
