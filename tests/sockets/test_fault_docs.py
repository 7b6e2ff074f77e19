"""docs/faults.md agrees with the table of faults."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from .fault_docs import ELSEWHERE, PAGE, Elsewhere, page
from .fault_table import all_rows


@pytest.mark.skipif(not PAGE.parent.is_dir(), reason="the tests run without the docs")
def test_the_page_of_faults_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.sockets.fault_docs"


@pytest.mark.parametrize("one", ELSEWHERE, ids=lambda one: f"{one.number} {one.case}")
def test_the_tests_that_the_page_names_are_there(one: Elsewhere) -> None:
    file, function = one.test.split("::")
    assert f"def {function}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")


def test_no_two_rows_have_the_same_name() -> None:
    assert [name for name, times in Counter(row.name for row in all_rows()).items() if times > 1] == []
