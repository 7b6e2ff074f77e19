"""`Retry-After` and its relatives in every form, and in none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from flinks_async.limits.rate import read_retry_after
from flinks_async.middleware.retry import full_jitter

from .support import examples

NOW = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": " 7 "}, 7.0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "1000000000"}, 1e9),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "+5"}, None),
        ({"Retry-After": "1e9"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "9" * 400}, None),
        ({"Retry-After": "٣"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:47 GMT"}, 10.0),
        ({"Retry-After": "Sunday, 06-Nov-94 08:49:47 GMT"}, 10.0),
        ({"Retry-After": "Sun Nov  6 08:49:47 1994"}, 10.0),
        ({"Retry-After": "Sun, 06 Nov 1994 09:49:47 +0100"}, 10.0),
        ({"Retry-After": f"Sun, 06 Nov 1994 08:49:47 GMT ({'x' * 31})"}, 10.0),
        ({"Retry-After": f"Sun, 06 Nov 1994 08:49:47 GMT ({'x' * 32})"}, None),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:27 GMT"}, 0.0),
        ({"Retry-After": "Sun, 06 Nov 1994 09:49:47 GMT", "Date": "Sun, 06 Nov 1994 09:49:37 GMT"}, 10.0),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:47 GMT", "Date": "yesterday"}, 10.0),
        ({"Retry-After": "Sun, 99 Nov 1994 08:49:47 GMT"}, None),
        ({"Retry-After": "Mon, 01 Jan 99999 00:00:00 GMT"}, None),
        ({"Retry-After-Ms": "1500"}, 1.5),
        ({"X-Ms-Retry-After-Ms": "250", "Retry-After": "9"}, 0.25),
        ({"Retry-After-Ms": "soon", "Retry-After": "9"}, 9.0),
        ({"Retry-After": "60, 60"}, 60.0),
        ({"Retry-After": "7,120"}, 120.0),
        ({"Retry-After": "soon, 5"}, 5.0),
        ({"Retry-After-Ms": "250, 1500"}, 1.5),
    ],
)
def test_all_forms_are_read_and_nonsense_is_ignored(headers: dict[str, str], seconds: float | None) -> None:
    assert read_retry_after(headers, NOW) == seconds


@pytest.mark.parametrize("mapping", [CIMultiDict, lambda lines: CIMultiDictProxy(CIMultiDict(lines))])
@pytest.mark.parametrize(
    ("lines", "seconds"),
    [(["5", "60"], 60.0), (["60", "5"], 60.0), (["7", "Sun, 06 Nov 1994 08:49:47 GMT"], 10.0), (["x", "3"], 3.0)],
)
def test_of_two_lines_the_longer_wait_counts(lines: list[str], seconds: float, mapping: Any) -> None:
    assert read_retry_after(mapping([("retry-after", line) for line in lines]), NOW) == seconds


@examples(100)
@given(st.text(max_size=80), st.text(max_size=80))
def test_no_header_breaks_it(value: str, date: str) -> None:
    seconds = read_retry_after({"Retry-After": value, "Date": date}, NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(("retry", "longest"), [(1, 0.05), (2, 0.1), (3, 0.2), (9, 12.8), (10, 20.0), (5000, 20.0)])
def test_the_wait_doubles_up_to_the_cap(retry: int, longest: float) -> None:
    assert full_jitter(retry, base=0.05, cap=20.0, random=1.0) == pytest.approx(longest)
    assert full_jitter(retry, base=0.05, cap=20.0, random=0.5) == pytest.approx(longest / 2)
    assert full_jitter(retry, base=0.05, cap=20.0, random=0.0) == 0.0
