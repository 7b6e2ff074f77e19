"""Shared by all tests: how many run at once, and which run only once."""

from __future__ import annotations

import gc
import os
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MARKED = {
    "once": (
        "bulk/test_job_care", "bulk/test_job_trust", "bulk/test_reading", "bulk/test_report", "bulk/test_report_browser",
        "bulk/test_report_jobs", "bulk/test_wrong_arguments", "test_benchmarks",
        "test_cli_docs", "test_cli_job_care", "test_cli_simulate_demo", "test_pace", "test_readme", "test_simulator_openapi", "test_storm_benchmark",
        "test_storm_hour", "test_structure", "test_testing_plugin", "torture/test_crash", "torture/test_io",
        "torture/test_order", "torture/test_outage",
    ),
    "slow": ("bulk/test_dask", "bulk/test_reading", "bulk/objects"),
    "backend": (
        "bulk/objects", "bulk/test_dask", "bulk/test_ray", "bulk/test_selection", "bulk/test_store_duckdb",
        "bulk/test_store_parquet", "bulk/test_store_postgresql", "bulk/test_stores_agree", "test_redis",
    ),
}  # fmt: skip
"""Files and folders of which all tests have a marker; pyproject.toml says what it means."""

CPU_MINUTES = 5.5
"""Duration of all tests that run by default, on one core."""


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process for single files, which end before workers have started; otherwise a worker for each core, and two more."""
    files = all(Path(argument.partition("::")[0]).is_file() for argument in config.args)
    return 0 if files else min(cores() + 2, 8)  # two more, because some tests wait


def pytest_report_header(config: pytest.Config) -> str | None:
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS or config.option.collectonly:
        return None
    used = min(config.option.numprocesses or 1, cores())
    return (
        f"takes about {CPU_MINUTES / used:.1f} minutes on {used} core{'s' if used > 1 else ''}, if they do nothing else"
    )


@cache
def markers_of(path: Path) -> set[str]:
    """The markers that all tests of a file have."""
    names = {
        one.relative_to(TESTS).as_posix().removesuffix(".py")
        for one in (path, path.parent)
        if one.is_relative_to(TESTS)
    }
    return {marker for marker, marked in MARKED.items() if names & {*marked}}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files are not imported if none of their tests is wanted."""
    expression = config.option.markexpr
    unwanted = re.findall(r"not (\w+)", expression) if re.fullmatch(r"not \w+( and not \w+)*", expression) else []
    return True if markers_of(collection_path) & {*unwanted} else None


def pytest_collection_finish() -> None:
    """Without this, the garbage collector walks all tests and modules again and again, for a tenth of the processor time."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in markers_of(item.path):
            item.add_marker(marker)
