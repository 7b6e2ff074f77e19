"""Shared by all tests: the files that need not run on every Python."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ONCE = {
    TESTS / f"{name}.py"
    for name in (
        "bulk/test_report_browser", "test_benchmarks", "test_readme", "test_simulator_openapi", "test_storm_benchmark",
        "test_storm_hour", "test_testing_plugin", "torture/test_crash", "torture/test_io", "torture/test_order",
        "torture/test_outage",
    )
}  # fmt: skip
"""Slow files that do not depend on the version of Python: browsers, simulated hours, documents, disks."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path in ONCE:
            item.add_marker("once")
