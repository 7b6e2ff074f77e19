"""Jobs side by side: `python benchmarks/job.py [--short]` prints Markdown tables.

The rate of a whole job (read the file of tokens, fetch, store every answer durably) is divided by that of
`partner_access_many` with the same tokens, which stores nothing. Each measurement runs in a process of its own on one core;
the server has the other one. A round is one run of each in random order; the ratio is the median over the rounds, with a
bootstrap 95 % interval. The number of stored answers is checked.

PostgreSQL is skipped unless PGHOST names a server; the benchmark uses the schema `flinks_benchmark` and empties it. The
server may use both cores, and the size of its files is not measured.

With --profile STORE, Python's profiler looks at both threads of one job.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import io
import json
import os
import pstats
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fanout import peak
from figures import machine, ratio, spread, table, versions
from servers import SECRET, Server, cores, pinned, plain

from flinks_async import FlinksClient, FlinksError, config
from flinks_async.bulk import InputFile, Job, JSONLFile, JSONLParts, Rules, SQLiteStore, Store, purge
from flinks_async.bulk.stores.duckdb import DuckDBStore
from flinks_async.bulk.stores.parquet import ParquetStore
from flinks_async.bulk.stores.postgresql import PostgreSQLStore
from flinks_async.testing.data import Size

CONCURRENCY = 64
ALONE = "partner_access_many, no job"
POSTGRESQL = "PostgreSQL"
STORES: dict[str, Callable[[Path], Store]] = {
    "JSONL": lambda folder: JSONLParts(),
    "JSONL, gz": lambda folder: JSONLParts("gzip"),
    "JSONL, zst": lambda folder: JSONLParts("zstd"),
    "JSONL, one file": lambda folder: JSONLFile(folder / "answers.jsonl"),
    "SQLite": lambda folder: SQLiteStore(folder / "answers.sqlite"),
    "Parquet": lambda folder: ParquetStore(),
    "DuckDB": lambda folder: DuckDBStore(folder / "answers.duckdb"),
    POSTGRESQL: lambda folder: PostgreSQLStore(schema="flinks_benchmark"),
}
TOKENS: dict[Size, int] = {"small": 40_000, "medium": 4_000, "large": 100}
SHARD_SIZE: dict[Size, int] = {"small": 1000, "medium": 1000, "large": 10}


# --- one measurement, in a process of its own -------------------------------------------------------------------------


def client_of(base_url: str) -> FlinksClient:
    limits = {"concurrency": CONCURRENCY}
    return FlinksClient(auth_secret=SECRET, base_url=base_url, settings=config.bulk(), limits=limits)


def lines_of(source: Path) -> Iterator[str]:
    with source.open() as file:
        for line in file:
            yield line.rstrip("\n")


async def alone(base_url: str, source: Path) -> int:
    """Fetches and decodes, and keeps nothing. Gives the number of answers."""
    fetched = 0
    async with client_of(base_url) as client:
        async for outcome in client.partner_access_many(lines_of(source), concurrency=CONCURRENCY):
            outcome.unwrap()
            fetched += 1
    return fetched


async def job(base_url: str, source: Path, folder: Path, store: Store, shard_size: int) -> dict[str, Any]:
    with Job.start(folder / "job", InputFile(source), store, {"": "benchmark"}, shard_size=shard_size) as started:
        async with client_of(base_url) as client:
            result = await started.run(client, Rules(concurrency=CONCURRENCY))
    return {"answers": result.totals.fetched, "running": result.progress.seconds}


def measure(order: dict[str, Any]) -> dict[str, Any]:
    source, folder = Path(order["source"]), Path(order["folder"])
    name, base_url = order["name"], order["base_url"]
    wall, cpu = time.perf_counter(), time.process_time()
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        if name == ALONE:
            found: dict[str, Any] = {"answers": runner.run(alone(base_url, source))}
        else:
            store = STORES[name](folder)
            found = runner.run(job(base_url, source, folder, store, order["shard_size"]))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if name == POSTGRESQL:
        purge(folder / "job")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {**found, "wall": wall, "cpu": cpu, "mb": peak(), "size": size}


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


# --- the rounds -------------------------------------------------------------------------------------------------------


def run(name: str, server: Server, source: Path, count: int, size: Size, *extra: str) -> dict[str, Any]:
    """One measurement.

    Raises:
        AssertionError: not every token has an answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        order = {
            "name": name, "base_url": server.base_url, "source": str(source), "folder": folder,
            "shard_size": SHARD_SIZE[size],
        }  # fmt: skip
        core = (cores() or (None,))[0]
        command = [*pinned(core), sys.executable, __file__, "--child", json.dumps(order), *extra]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    *printed, last = ran.stdout.splitlines()
    print("\n".join(printed))
    found: dict[str, Any] = json.loads(last)
    if found["answers"] != count:
        raise AssertionError(f"{name}: {count} tokens and {found['answers']} answers")
    return found


def write_tokens(path: Path, count: int) -> Path:
    path.write_text("".join(f"{number:08x}-1243-4b8d-9c1e-764123800000\n" for number in range(count)))
    return path


def compare(size: Size, names: list[str], count: int, rounds: int) -> str:
    """A table."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with ExitStack() as stack:
        server = stack.enter_context(plain(size, (cores() or (None, None))[1]))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = write_tokens(folder / "tokens.txt", count)
        for number in range(rounds):
            for name in random.sample(names, len(names)):
                found[name].append(run(name, server, source, count, size))
            print(f"{size}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        head = f"\n### {size} ({len(server.body) / 1000:.2f} KB), {count:,} tokens, {server.kind}\n\n"
    return head + table(COLUMNS, [row(name, runs, found[ALONE], count) for name, runs in found.items()])


COLUMNS = ("", "tokens/s", "ratio to no job", "CPU µs a token", "fetching alone, tokens/s", "MB of memory", "MB stored")


def row(name: str, runs: list[dict[str, Any]], base: list[dict[str, Any]], count: int) -> list[str]:
    rates = [count / one["wall"] for one in runs]
    running = [count / one["running"] for one in runs if "running" in one]
    return [
        name,
        f"{statistics.median(rates):,.0f} ± {spread(rates):.0%}",
        str(ratio(rates, [count / one["wall"] for one in base])),
        f"{statistics.median(one['cpu'] for one in runs) / count * 1e6:.0f}",
        f"{statistics.median(running):,.0f}" if running else "",
        f"{statistics.median(one['mb'] for one in runs):.0f}",
        f"{statistics.median(one['size'] for one in runs) / 1e6:.1f}",
    ]


def profiled(order: dict[str, Any]) -> dict[str, Any]:
    """The same under the profiler, which looks at each thread by itself."""
    profilers: list[tuple[str, cProfile.Profile]] = []
    begin = threading.Thread.run

    def watched(thread: threading.Thread) -> None:
        profiler = cProfile.Profile()
        profilers.append((thread.name, profiler))
        profiler.runcall(begin, thread)

    threading.Thread.run = watched  # type: ignore[method-assign]
    main_thread = cProfile.Profile()
    result: dict[str, Any] = main_thread.runcall(measure, order)
    for name, profiler in [("the event loop", main_thread), *profilers]:
        text = io.StringIO()
        pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(25)
        print(f"\n### {name}\n```\n{text.getvalue().strip()}\n```")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--short", action="store_true", help="small answers, JSONL and SQLite, few tokens: a few seconds"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="*", default=["small", "medium"], choices=list(TOKENS))
    parser.add_argument("--stores", nargs="*", default=list(STORES), choices=list(STORES), metavar="STORE")
    parser.add_argument("--tokens", type=int, help="default: by the size")
    parser.add_argument("--profile", metavar="STORE", choices=[ALONE, *STORES], help="instead of measuring")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps((profiled if options.watch else measure)(json.loads(options.child))))
        return
    sizes, stores, rounds = options.sizes, options.stores, options.rounds
    if options.short:
        sizes, stores, rounds = ["small"], ["JSONL", "SQLite"], 2
    if not os.environ.get("PGHOST"):
        stores = [store for store in stores if store != POSTGRESQL]
    place = "client and server on a core each" if cores() else "processes not kept on cores"
    print(f"{machine()}; {place}; {rounds} rounds, {CONCURRENCY} at the same time.", flush=True)
    print(
        f"{versions(['aiohttp', 'uvloop', 'msgspec', 'backports.zstd', 'pyarrow', 'duckdb', 'psycopg'])}.", flush=True
    )
    for size in sizes:
        count = options.tokens or (2000 if options.short else TOKENS[size])
        if options.profile is not None:
            with plain(size) as server, tempfile.TemporaryDirectory() as folder:
                source = write_tokens(Path(folder, "tokens.txt"), count)
                run(options.profile, server, source, count, size, "--watch")
            continue
        print(compare(size, [ALONE, *stores], count, rounds), flush=True)


if __name__ == "__main__":
    try:
        main()
    except FlinksError as error:
        sys.exit(str(error))
