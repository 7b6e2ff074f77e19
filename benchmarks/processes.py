"""One job in one process and in several: `python benchmarks/processes.py [--short] [--clusters dask ray]` prints a Markdown table.

A job to JSONL runs in this process, and with one or more worker processes, against a compiled server; with `--clusters` also on
a Dask or Ray cluster of two workers on this machine. No process is bound to a core, because the purpose is to use all of them. A
round is one run of each in random order; ratios are taken within a round.

*Whole run* includes the start of the workers, but not of the cluster. All other columns are of the time from the first finished
shard to the last one. *Cores busy* includes everything that ran on the machine, also the server and the kernel. The cores that
are idle with one process limit the gain of more processes. *Driver* and *cluster* are milliseconds of CPU a shard, user and
system: of this process, which runs the job, and of the processes of the cluster that are not workers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import field, frozen
from figures import machine, ratio, spread, table, versions
from job import CONCURRENCY, client_of, fastest_loop, write_tokens
from servers import SECRET, plain

from flinks_async.bulk import (
    DaskExecutor,
    Executor,
    InProcess,
    InputFile,
    Job,
    JSONLParts,
    Processes,
    RayExecutor,
    Rules,
)
from flinks_async.bulk.executors import Execution, Work
from flinks_async.bulk.executors.protocol import NextTask, TakeFinished
from flinks_async.bulk.records import Finished

TOKENS = {"small": 100_000, "medium": 20_000}
SHARD = 1000
HERE, ONE, TWO = "in this process", "1 worker", "2 workers"
VARIABLE = "BENCHMARK_SECRET"
RAY_PORT = 26391


@frozen
class Way:
    """Where the shards are fetched.

    Attributes:
        executor: a new one.
        cluster: seconds of CPU of the cluster, without its workers.
    """

    executor: Callable[[], Executor]
    cluster: Callable[[], float] | None = None


@frozen
class Figures:
    """Of one run: tokens per second, in all and under way, cores that were busy, and milliseconds of CPU a shard."""

    whole: float
    rate: float
    cores: float
    driver: float
    cluster: float | None


@frozen
class Moment:
    """Seconds that have passed, and that all cores, this process and the cluster were busy until then."""

    at: float
    busy: float
    driver: float
    cluster: float

    @classmethod
    def of(cls, way: Way) -> Moment:
        return cls(time.perf_counter(), busy(), time.process_time(), (way.cluster or float)())


@frozen
class Watched:
    """An executor that notes when the first shard is stored, and when the last one of some."""

    way: Way
    shards: int
    moments: dict[int, Moment] = field(factory=dict)
    stored: list[int] = field(factory=list)

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> Execution:
        async def take(shard: Finished) -> None:
            await finished(shard)
            self.stored.append(shard.shard.id)
            if (count := len(self.stored)) in (1, self.shards):
                self.moments[count] = Moment.of(self.way)

        return self.way.executor().map_shards(work, tasks, take)


def busy() -> float:
    """Seconds that all cores together were busy since the machine started (proc(5)); 0.0 if that is not known."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def cpu_of(pids: list[int]) -> float:
    """Seconds of CPU that processes have used (proc(5))."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


# --- clusters ---------------------------------------------------------------------------------------------------------


@contextmanager
def dask() -> Iterator[Way]:
    """A scheduler and two workers, each a process of its own."""
    from distributed import Client

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def start(*arguments: object) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *map(str, arguments), "--no-dashboard"],
                env={**os.environ, VARIABLE: SECRET}, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        found = folder / "scheduler.json"
        scheduler = start("scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", found)
        until = time.monotonic() + 60
        while not found.exists() and time.monotonic() < until:
            time.sleep(0.1)
        address = json.loads(found.read_text())["address"]
        for _ in range(2):
            start("worker", address, "--nthreads", 1, "--local-directory", folder)
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        yield Way(lambda: DaskExecutor(address, workers=2, secret_env=VARIABLE), lambda: cpu_of([scheduler.pid]))


@contextmanager
def ray() -> Iterator[Way]:
    """A head with two CPUs and token authentication. It is the only Ray cluster on this machine.

    Its workers keep the usual priority, as the server has with which they share the cores (by default, Ray makes them nicer).
    """
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))  # before this process imports Ray
    program = [sys.executable, "-m", "ray.scripts.scripts"]
    environment = {**os.environ, VARIABLE: SECRET, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--port={RAY_PORT}", "--num-cpus=2", "--include-dashboard=false", "--object-store-memory=80000000",
                   f"--temp-dir={folder}"]  # fmt: skip
        subprocess.run([*program, "start", "--head", *options], env=environment, check=True, capture_output=True)
        try:
            commands = {int(path.parent.name): path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
            ours = [
                pid
                for pid, command in commands.items()
                if folder.encode() in command and not command.startswith(b"ray::")
            ]
            yield Way(
                lambda: RayExecutor(f"127.0.0.1:{RAY_PORT}", workers=2, secret_env=VARIABLE), lambda: cpu_of(ours)
            )
        finally:
            subprocess.run([*program, "stop", "--force"], check=False, capture_output=True)


CLUSTERS = {"dask": ("2 Dask workers", dask), "ray": ("2 Ray workers", ray)}


# --- runs -------------------------------------------------------------------------------------------------------------


async def fetch(base_url: str, source: Path, folder: Path, way: Way) -> Figures:
    """Fetching and storing. Reading the input through is left out, since it is the same for all."""
    with Job.start(folder / "job", InputFile(source), JSONLParts(), {"": "benchmark"}, shard_size=SHARD) as job:
        watched = Watched(way, -(-job.scanned.tokens // SHARD))
        async with client_of(base_url) as client:
            begun = time.perf_counter()
            result = await job.run(client, Rules(concurrency=CONCURRENCY), executor=watched)
            took = time.perf_counter() - begun
    fetched, shards = result.totals.fetched, watched.shards - 1
    assert (result.state, fetched) == ("complete", job.scanned.tokens), result
    first, last = watched.moments.values()
    seconds = last.at - first.at
    cluster = None if way.cluster is None else 1000 * (last.cluster - first.cluster) / shards
    return Figures(
        fetched / took, (fetched - SHARD) / seconds, (last.busy - first.busy) / seconds,
        1000 * (last.driver - first.driver) / shards, cluster,
    )  # fmt: skip


def compare(size: str, ways: dict[str, Way], count: int, rounds: int) -> str:
    found: dict[str, list[Figures]] = {name: [] for name in ways}
    with plain(size) as server, tempfile.TemporaryDirectory() as scratch:
        source = write_tokens(Path(scratch) / "tokens.txt", count)
        for number in range(rounds):
            for name in random.sample(list(ways), len(ways)):
                before = server.answers()
                with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=fastest_loop()) as runner:
                    found[name].append(runner.run(fetch(server.base_url, source, Path(folder), ways[name])))
                assert server.counted(before) == count, "the server's count is another one"
            print(f"{size}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        head = f"\n### {size} ({len(server.body) / 1000:.2f} KB), {count:,} tokens, {server.kind}\n\n"
    rates = {name: [one.rate for one in each] for name, each in found.items()}
    wholes = {name: [one.whole for one in each] for name, each in found.items()}
    rows = []
    for name, each in found.items():
        clusters = [one.cluster for one in each if one.cluster is not None]
        rows.append([
            name,
            f"{statistics.median(rates[name]):,.0f} ± {spread(rates[name]):.0%}",
            *(str(ratio(rates[name], rates[other])) for other in (HERE, ONE, TWO)),
            f"{statistics.median(wholes[name]):,.0f} ± {spread(wholes[name]):.0%}",
            str(ratio(wholes[name], wholes[TWO])),
            f"{statistics.median(one.cores for one in each):.2f}",
            "" if name == HERE else f"{statistics.median(one.driver for one in each):.2f}",
            f"{statistics.median(clusters):.2f}" if clusters else "",
        ])  # fmt: skip
    columns = ("", "tokens/s", *(f"ratio to {name.removeprefix('in ')}" for name in (HERE, ONE, TWO)), "whole run, tokens/s",
               f"ratio to {TWO}", "cores busy", "driver", "cluster")  # fmt: skip
    return head + table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="few tokens, two rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", nargs="*", type=int, default=[], help="further numbers of workers than 1 and 2")
    parser.add_argument("--clusters", nargs="*", default=[], choices=list(CLUSTERS))
    parser.add_argument("--sizes", nargs="*", default=list(TOKENS), choices=list(TOKENS))
    options = parser.parse_args()
    rounds = 2 if options.short else options.rounds
    print(f"{machine()}; {rounds} rounds, {CONCURRENCY} in flight in all, shards of {SHARD}.", flush=True)
    print(f"{versions(['flinks-async', 'aiohttp', 'uvloop', 'msgspec', 'distributed', 'ray'])}.", flush=True)
    ways = {HERE: Way(InProcess), ONE: Way(lambda: Processes(1)), TWO: Way(lambda: Processes(2))}
    ways |= {f"{count} workers": Way(lambda count=count: Processes(count)) for count in options.processes}
    with ExitStack() as stack:
        for name in options.clusters:
            title, cluster = CLUSTERS[name]
            ways[title] = stack.enter_context(cluster())
        for size in options.sizes:
            count = 4000 if options.short else TOKENS[size]
            print(compare(size, ways, count, rounds), flush=True)


if __name__ == "__main__":
    main()
