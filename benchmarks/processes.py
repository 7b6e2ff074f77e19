"""One job in one process and in several: `python benchmarks/processes.py [--short]` prints a Markdown table.

A job to JSONL runs in this process, and with one or more worker processes, against a compiled server. No process is bound
to a core, because the purpose is to use all of them. A round is one run of each in random order; ratios are taken within a
round.

*Cores busy* includes everything that ran on the machine, also the server and the kernel. The cores that are idle with one
process limit the gain of more processes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from figures import machine, ratio, spread, table, versions
from job import CONCURRENCY, client_of, fastest_loop, write_tokens
from servers import plain

from flinks_async.bulk import Executor, InProcess, InputFile, Job, JSONLParts, Processes, Rules

TOKENS = {"small": 100_000, "medium": 15_000}
HERE = 0


def executor(processes: int) -> Executor:
    return InProcess() if processes == HERE else Processes(processes)


def busy() -> float:
    """Seconds that all cores together were busy since the machine started (proc(5)); 0.0 if that is not known."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


async def fetch(base_url: str, source: Path, folder: Path, processes: int) -> tuple[float, float]:
    """Tokens a second of fetching and storing, and cores that were busy meanwhile. Reading the input through is left out,
    since it is the same for all.
    """
    with Job.start(folder / "job", InputFile(source), JSONLParts(), {"": "benchmark"}, shard_size=500) as job:
        async with client_of(base_url) as client:
            begun, worked = time.perf_counter(), busy()
            result = await job.run(client, Rules(concurrency=CONCURRENCY), executor=executor(processes))
            took, worked = time.perf_counter() - begun, busy() - worked
    fetched = result.totals.fetched
    assert (result.state, fetched) == ("complete", job.scanned.tokens), result
    return fetched / took, worked / took


def compare(size: str, processes: list[int], count: int, rounds: int) -> str:
    rates: dict[int, list[float]] = {number: [] for number in processes}
    cores: dict[int, list[float]] = {number: [] for number in processes}
    with plain(size) as server, tempfile.TemporaryDirectory() as scratch:
        source = write_tokens(Path(scratch) / "tokens.txt", count)
        for number in range(rounds):
            for one in random.sample(processes, len(processes)):
                before = server.answers()
                with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=fastest_loop()) as runner:
                    rate, worked = runner.run(fetch(server.base_url, source, Path(folder), one))
                rates[one].append(rate)
                cores[one].append(worked)
                assert server.counted(before) == count, "the server's count is another one"
            print(f"{size}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        head = f"\n### {size} ({len(server.body) / 1000:.2f} KB), {count:,} tokens, {server.kind}\n\n"
    rows = [
        [
            "in this process" if one == HERE else f"{one} worker{'s' if one > 1 else ''}",
            f"{statistics.median(found):,.0f} ± {spread(found):.0%}",
            str(ratio(found, rates[HERE])),
            str(ratio(found, rates[1])),
            f"{statistics.median(cores[one]):.2f}",
        ]
        for one, found in rates.items()
    ]
    return head + table(("", "tokens/s", "ratio to this process", "ratio to 1 worker", "cores busy"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="few tokens, two rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", nargs="*", type=int, default=[2], help="default: 2")
    parser.add_argument("--sizes", nargs="*", default=list(TOKENS), choices=list(TOKENS))
    options = parser.parse_args()
    rounds = 2 if options.short else options.rounds
    print(f"{machine()}; {rounds} rounds, {CONCURRENCY} in flight in all.", flush=True)
    print(f"{versions(['flinks-async', 'aiohttp', 'uvloop', 'msgspec'])}.", flush=True)
    for size in options.sizes:
        count = 2000 if options.short else TOKENS[size]
        print(compare(size, [HERE, 1, *options.processes], count, rounds), flush=True)


if __name__ == "__main__":
    main()
