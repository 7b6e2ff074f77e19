"""100,000 shards in flat memory, and a night in virtual time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
Row = tuple[float, float, float]


def rows(shards: int) -> dict[str, Row]:
    pytest.importorskip("obstore")
    command = [sys.executable, BENCHMARKS / "scale.py", "--json", "--shards", str(shards)]
    found: dict[str, Row] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


@pytest.mark.torture
@pytest.mark.timeout(1200)
def test_100_000_shards_take_about_the_memory_and_the_time_for_each_of_2_000() -> None:
    few, many = rows(2_000), rows(100_000)
    grown = {step: many[step][2] - few[step][2] for step in few}
    assert max(grown.values()) < 80, f"MB more, at most: {grown}"
    slower = {step: many[step][0] / max(20.0, few[step][0]) for step in few}
    assert max(slower.values()) < 3, f"times as long for a shard: {slower}"


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", range(5))
def test_a_hundredth_of_a_night_ends_with_every_token(scenario: int) -> None:
    """The program fails if a shard is left."""
    pytest.importorskip("obstore")
    command = [sys.executable, BENCHMARKS / "night.py", "--short", "--only", str(scenario)]
    table = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    assert len(table.strip().splitlines()) == 5
