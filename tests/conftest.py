"""Shared by all tests: what need not run on every Python, and a repair of aioresponses."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import aioresponses.core
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
"""What takes long and does not depend on the version of Python: browsers, simulated hours, documents, disks."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path in ONCE:
            item.add_marker("once")


if "stream_writer" in inspect.signature(aiohttp.ClientResponse.__init__).parameters:

    class _ClientResponse(aiohttp.ClientResponse):
        """aioresponses 0.7.9 does not know the argument that aiohttp 3.14 asks for."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.setdefault("stream_writer", Mock(output_size=0))
            super().__init__(*args, **kwargs)

    aioresponses.core.ClientResponse = _ClientResponse
