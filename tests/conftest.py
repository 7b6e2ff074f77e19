"""Shared by all tests: how many run at once, and which run on one Python only."""

from __future__ import annotations

import os
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
"""Takes long and does not depend on the version of Python: browsers, simulated hours, documents, disks."""

CPU_MINUTES = 4
"""Duration of all tests that run by default, on one core."""


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process for single files, which end before workers have started; otherwise a worker for each core."""
    files = all(Path(argument.partition("::")[0]).is_file() for argument in config.args)
    return 0 if files else min(cores(), 8)


def pytest_report_header(config: pytest.Config) -> str | None:
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS or config.option.collectonly:
        return None
    workers = config.option.numprocesses or 1
    return f"takes about {CPU_MINUTES / workers:.0f} minutes on {workers} core{'s' if workers > 1 else ''}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path in ONCE:
            item.add_marker("once")
