"""Measures the CPU and memory of a job of 100,000 shards: `python benchmarks/scale.py [--shards N] [--short]`.

Each shard has one token, and no request is sent: the executor hands over a finished part at once. Everything else is real: the
plan, the ledger, the run, parts as objects (of obstore, on a disk in memory), the sweep, `_SUCCESS`, `status`, the report,
`verify` and `purge`. CPU is user and system time; memory is what the whole process has at the end of a step, and at most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from attrs import evolve

from flinks_async import FlinksClient
from flinks_async.bulk import InputFile, Job, JSONLParts, Layout, Rules, Written, purge, status, verify
from flinks_async.bulk import objects as object_storage
from flinks_async.bulk.counters import Counters
from flinks_async.bulk.executors import Work
from flinks_async.bulk.executors.protocol import NextTask, TakeFinished
from flinks_async.bulk.records import Finished
from flinks_async.bulk.report import report_page

LINE = b'{"line":2}\n'
AT_ONCE = 8


class Instantly:
    """An executor whose shards are finished at once, and its execution."""

    stopped = None

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> Any:
        self._work, self._tasks, self._finished = work, tasks, finished
        return self

    async def go(self) -> None:
        await asyncio.gather(*(self._hand_over(number) for number in range(AT_ONCE)))

    async def _hand_over(self, number: int) -> None:
        spool, written = self._work.spools / f"{number}", Written(1, len(LINE), sha256(LINE).hexdigest())
        shared = self._work.shared
        assert shared is not None
        while (task := await self._tasks()) is not None:
            spool.write_bytes(LINE)
            finished = Finished(task.shard, spool, written, (), ())
            await self._finished(evolve(finished, receipt=shared.put(finished.commit, spool)))

    def counters(self) -> Counters:
        return Counters()

    def stop(self, reason: str, state: Any = "stopped") -> None: ...

    def break_off(self, error: BaseException) -> None:
        raise error


def memory() -> float:
    """MB of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


class Steps:
    """Measures one step after the other."""

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self.rows: dict[str, tuple[float, float, float]] = {}

    def take(self, name: str, work: Callable[[], Any]) -> Any:
        """Does a step: microseconds of CPU for a shard, MB at its end, and at most."""
        began = time.process_time()
        result = work()
        spent = time.process_time() - began
        self.rows[name] = (
            1e6 * spent / self._shards,
            memory(),
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )
        return result


async def run(job: Job) -> None:
    async with FlinksClient(auth_secret="s", base_url="https://flinks.invalid") as client:
        result = await job.run(client, Rules(), executor=Instantly())
    assert result.state == "complete"


def measure(shards: int, folder: Path) -> dict[str, tuple[float, float, float]]:
    from obstore.store import LocalStore

    (folder / "objects").mkdir()
    storage = LocalStore(folder / "objects")
    object_storage._connected = lambda *_: storage  # type: ignore[attr-defined]
    tokens, directory = folder / "tokens.csv", folder / "job"
    tokens.write_text("token\n" + "".join(f"token-{number:08d}-abcdefgh\n" for number in range(shards)))
    steps, store = Steps(shards), JSONLParts(url="s3://scale")
    source = InputFile(tokens, Layout(column="token"))
    steps.take("imports and input", lambda: None)
    job = steps.take("plan", lambda: Job.start(directory, source, store, shard_size=1))
    with job:
        steps.take("run, sweep, `_SUCCESS`", lambda: asyncio.run(run(job)))
    with steps.take("open again, with sweep", lambda: Job.resume(directory)):
        pass
    assert steps.take("`status`", lambda: status(directory)).totals.fetched == shards
    steps.take("report", lambda: report_page(directory))
    assert steps.take("`verify`", lambda: verify(directory)) == []
    steps.take("`purge`", lambda: purge(directory))
    return steps.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--short", action="store_true", help="2,000 shards")
    parser.add_argument("--json", action="store_true", help="for tests")
    options = parser.parse_args()
    shards = 2000 if options.short else options.shards
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as folder:
        rows = measure(shards, Path(folder))
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{shards:,} shards\n\n| step | CPU for a shard | memory at its end | at most |\n|---|---|---|---|")
    for name, (cpu, now, peak) in rows.items():
        print(f"| {name} | {cpu:,.0f} us | {now:.0f} MB | {peak:.0f} MB |")


if __name__ == "__main__":
    main()
