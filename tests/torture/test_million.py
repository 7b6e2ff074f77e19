"""A million tokens: memory stays flat and the ledger small."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from flinks_async import bulk
from flinks_async.bulk import files

from .driver import Driver
from .job_driver import LAYOUT
from .order import Order

MILLION = 1_000_000
BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


def resident(process: int) -> float:
    """Memory of a process in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_memory_is_flat_and_the_ledger_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import servers

    source = tmp_path / "tokens.csv"
    with source.open("w") as file:
        file.write(f"{LAYOUT.column},{LAYOUT.key_column}\n")
        file.writelines(f"{number:08x}-1243-4b8d-9c1e-764123800000,u{number}\n" for number in range(MILLION))
    with servers.plain("small") as server, Driver(tmp_path / "errors", timeout=1500) as driver:
        if server.kind == "simulator":
            pytest.skip("it needs the compiled server")
        order = Order(
            output="jsonl", root=str(tmp_path), source=str(source), base_url=server.base_url, secret=servers.SECRET,
            shard_size=1000, open_shards=16, concurrency=64,
        )  # fmt: skip
        begun = time.monotonic()
        process = driver.begin(order)
        early = late = 0.0
        while (fetched := _fetched(order)) < MILLION:
            assert Path(f"/proc/{process}").exists(), driver.errors()
            early = max(early, resident(process)) if fetched < 200_000 else early
            late = max(late, resident(process)) if fetched >= 200_000 else late
            time.sleep(0.25)
        ended = driver.wait(process)
        assert ended.state == "complete", driver.errors()
        assert server.counted(0) == MILLION
    took = time.monotonic() - begun
    size = (order.job / files.LEDGER).stat().st_size / 2**20
    print(f"\n{took:.0f} s; memory {early:.0f} MB before 200,000 tokens, {late:.0f} MB after; ledger {size:.1f} MB")
    assert late < early + 15
    assert size < 50
    seen = bytearray(MILLION + 2)
    for line in bulk.export(order.job):
        seen[json.loads(line)["line"]] += 1
    assert seen[2:] == b"\1" * MILLION


def _fetched(order: Order) -> int:
    try:
        return bulk.status(order.job).totals.fetched
    except bulk.JobError:  # it has only begun
        return 0
