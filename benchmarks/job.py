"""Jobs side by side: `python benchmarks/job.py [--short]` prints Markdown tables.

The rate of a whole job (read the file of tokens, fetch, store every answer durably) is divided by that of
`partner_access_many` with the same tokens, which stores nothing. Each measurement runs in a process of its own, which may use
all cores, because a store works in a thread of its own; with --one-core it has one core, and the server another one. A round
is one run of each in random order; the ratio is the median over the rounds, with a bootstrap 95 % interval. The number of
stored answers is checked.

There are small answers, medium answers, and medium answers with one unknown field in every transaction. Jobs of medium answers to tables
also run with a worker process (`--processes 1`). If all three are measured, two last tables sum up (--write puts them into
docs/stores.md). The second one compares each store, without fetching, with the fastest way in which its engine takes the same rows:
SQLite and DuckDB copy them from another database (INSERT ... SELECT), PostgreSQL gets prepared bytes (COPY), pyarrow writes Arrow
tables to Parquet.

PostgreSQL is skipped unless PGHOST names a server; the benchmark uses the schemas `flinks_benchmark` and
`flinks_benchmark_copy` and removes them. The server may use all cores; its CPU time and the size of its files are not measured.

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
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from fanout import peak
from figures import machine, ratio, spread, table, versions
from servers import SECRET, Server, cores, pinned, plain

from flinks_async import FlinksClient, FlinksError, config
from flinks_async.bulk import InputFile, Job, JSONLFile, JSONLParts, Rules, SQLiteStore, Store, purge
from flinks_async.bulk.executors import Executor, InProcess, Processes
from flinks_async.bulk.files import make_folder
from flinks_async.bulk.records import Commit, Shard, Written
from flinks_async.bulk.stores import Place, answer_rows
from flinks_async.bulk.stores.duckdb import DuckDBStore
from flinks_async.bulk.stores.parquet import ParquetStore
from flinks_async.bulk.stores.postgresql import PostgreSQLStore
from flinks_async.testing.data import Size, expected_body

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
TABLES = ("SQLite", "Parquet", "DuckDB", POSTGRESQL)
WORKER = ", a worker process"
Kind = Literal["small", "medium", "medium, unknown fields", "large"]
UNKNOWN: Kind = "medium, unknown fields"
TOKENS: dict[Kind, int] = {"small": 30_000, "medium": 15_000, UNKNOWN: 6_000, "large": 100}
FIVE_MILLION = 5_000_000
CORES_USED = 2
"""Cores for which the summary says how fast a job could be at most: if it kept them busy, and the servers needed none."""
PAGE = Path(__file__).parents[1] / "docs" / "stores.md"
BEGIN, END = "<!-- speeds: written by benchmarks/job.py --write -->\n", "<!-- end of speeds -->"
SHARD_SIZE: dict[Kind, int] = {"small": 1000, "medium": 1000, UNKNOWN: 1000, "large": 10}


def size_of(kind: Kind) -> Size:
    return "medium" if kind == UNKNOWN else kind


def body_of(kind: Kind, body: bytes) -> bytes:
    return body.replace(b'"Debit":', b'"Unknown":"x","Debit":') if kind == UNKNOWN else body


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


async def job(order: dict[str, Any], store: Store, executor: Executor) -> dict[str, Any]:
    folder, source = Path(order["folder"], "job"), InputFile(order["source"])
    with Job.start(folder, source, store, {"": "benchmark"}, shard_size=order["shard_size"]) as started:
        async with client_of(order["base_url"]) as client:
            result = await started.run(client, Rules(concurrency=CONCURRENCY), executor=executor)
    return {"answers": result.totals.fetched, "running": result.progress.seconds}


def measure(order: dict[str, Any]) -> dict[str, Any]:
    folder = Path(order["folder"])
    name, worker, _ = order["name"].partition(WORKER)
    wall, cpu = time.perf_counter(), sum(os.times()[:4])  # also of worker processes
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        if name == ALONE:
            found: dict[str, Any] = {"answers": runner.run(alone(order["base_url"], Path(order["source"])))}
        else:
            found = runner.run(job(order, STORES[name](folder), Processes(1) if worker else InProcess()))
    wall, cpu = time.perf_counter() - wall, sum(os.times()[:4]) - cpu
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


def run(name: str, server: Server, source: Path, count: int, kind: Kind, *extra: str) -> dict[str, Any]:
    """One measurement.

    Raises:
        AssertionError: not every token has an answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        order = {
            "name": name, "base_url": server.base_url, "source": str(source), "folder": folder,
            "shard_size": SHARD_SIZE[kind],
        }  # fmt: skip
        found = child(order, *extra)
    if found["answers"] != count:
        raise AssertionError(f"{name}: {count} tokens and {found['answers']} answers")
    return found


def child(order: dict[str, Any], *extra: str) -> dict[str, Any]:
    """Figures that a separate process measured."""
    core = CORES[0] if CORES else None
    command = [*pinned(core), sys.executable, __file__, "--child", json.dumps(order), *extra]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    *printed, last = ran.stdout.splitlines()
    print("\n".join(printed), end="\n" if printed else "")
    found: dict[str, Any] = json.loads(last)
    return found


CORES: list[int] = []
"""Cores of client and server; empty if they may use all."""


def write_tokens(path: Path, count: int) -> Path:
    path.write_text("".join(f"{number:08x}-1243-4b8d-9c1e-764123800000\n" for number in range(count)))
    return path


Runs = dict[str, list[dict[str, Any]]]


def compare(kind: Kind, names: list[str], count: int, rounds: int) -> Runs:
    """Prints a table."""
    found: Runs = {name: [] for name in names}
    with ExitStack() as stack:
        core = CORES[1] if CORES else None
        server = stack.enter_context(plain(size_of(kind), core, lambda body: body_of(kind, body)))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = write_tokens(folder / "tokens.txt", count)
        for number in range(rounds):
            for name in random.sample(names, len(names)):
                found[name].append(run(name, server, source, count, kind))
            print(f"{kind}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        print(f"\n### {kind} ({len(server.body) / 1000:.2f} KB), {count:,} tokens, {server.kind}\n")
    print(table(COLUMNS, [row(name, runs, found[ALONE], count) for name, runs in found.items()]), flush=True)
    return found


COLUMNS = (
    "", "tokens/s", "ratio to no job", "CPU µs a token", "fetching alone, tokens/s", "MB of memory", "over no job", "MB stored",
)  # fmt: skip


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
        f"{statistics.median(one['mb'] for one in runs) - statistics.median(one['mb'] for one in base):.0f}",
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


# --- stores and their engines, without fetching -----------------------------------------------------------------------


def by_engine(order: dict[str, Any]) -> dict[str, Any]:
    """CPU and wall time of a store, and of its engine with the same rows."""
    name, count = order["name"], SHARD_SIZE["medium"]
    folder = Path(order["folder"])
    spool = folder / "spool"
    body = expected_body("t", size="medium")
    line = b'{"line":%d,"response":%b,"meta":{"status":200,"attempts":1}}\n'
    stores = []
    for number, schema in enumerate(("flinks_benchmark", "flinks_benchmark_copy")):
        place = Place(f"{number}" * 32, folder / schema)
        make_folder(place.folder)
        stores.append(PostgreSQLStore(schema=schema) if name == POSTGRESQL else STORES[name](place.folder))
        stores[-1].open(place)
        list(stores[-1].recover({}))
    filled, copied = stores
    times = []
    for shard in range(4):  # the first one pays for what is loaded once
        first = shard * count + 1
        spool.write_bytes(b"".join(line % (number, body) for number in range(first, first + count)))
        commit = Commit(Shard(shard, first, first + count - 1, 0, count, ""), Written(count, 0, ""))
        times.append(clocked(lambda commit=commit: filled.put(commit, spool)))  # type: ignore[misc]
    engine = clocked(ENGINES[name](filled, copied, folder))
    for store in stores:
        if name == POSTGRESQL:
            store.run(f"DROP SCHEMA {store._schema} CASCADE")
        store.close()
    cpu, wall = (sum(time[n] for time in times[1:]) / 3 / count for n in (0, 1))
    return {"cpu": cpu, "wall": wall, "engine cpu": engine[0] / 4 / count, "engine wall": engine[1] / 4 / count}


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def insert_select(filled: Any, copied: Any, folder: Path) -> Callable[[], None]:
    source = folder / "flinks_benchmark" / Path(filled.where).name
    filled.close()

    def work() -> None:
        copied.run(f"ATTACH '{source}' AS source")
        with copied._transaction():
            for each in answer_rows.TABLES:
                copied.run(f"INSERT INTO {each.name} SELECT * FROM source.{each.name}")

    return work


def copy(filled: Any, copied: Any, folder: Path) -> Callable[[], None]:
    data = {}
    for each in answer_rows.TABLES:
        with (
            filled._some_transaction(),
            filled._opened.cursor().copy(f"COPY flinks_benchmark.{each.name} TO STDOUT (FORMAT binary)") as out,
        ):
            data[each.name] = b"".join(out)

    def work() -> None:
        with copied._transaction():
            for name, rows in data.items():
                with copied._opened.cursor().copy(
                    f"COPY flinks_benchmark_copy.{name} FROM STDIN (FORMAT binary)"
                ) as into:
                    into.write(rows)

    return work


def write_parquet(filled: Any, copied: Any, folder: Path) -> Callable[[], None]:
    from pyarrow import parquet

    tables = [parquet.read_table(folder / "flinks_benchmark" / "parts" / each.name) for each in answer_rows.TABLES]

    def work() -> None:
        for number, rows in enumerate(tables):
            parquet.write_table(rows, folder / f"{number}.parquet", compression="zstd")

    return work


ENGINES = {"SQLite": insert_select, "DuckDB": insert_select, POSTGRESQL: copy, "Parquet": write_parquet}


def compare_engines(names: list[str], rounds: int) -> str:
    """A table of medians."""
    rows = []
    for name in names:
        runs = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(child({"name": name, "folder": folder, "engine": True}))
        times = {key: statistics.median(one[key] for one in runs) * 1e6 for key in runs[0]}
        share = times["engine wall"] / times["wall"]
        rows.append([name, *(f"{time:.0f}" for time in times.values()), f"{share:.0%}"])
    columns = (
        "medium answers, µs a token", "store alone, CPU", "store alone, time", "engine alone, CPU", "engine alone, time",
        "engine's share of the store's time",
    )  # fmt: skip
    return table(columns, rows)


def summary(found: dict[Kind, Runs]) -> str:
    """The figures that matter to users, and those that are demanded of the stores."""
    columns = (
        "medium answers", "tokens/s", "5 million", "of no job", "at most", "CPU µs",
        "MB more", "new fields", "small",
    )  # fmt: skip

    def rates(kind: Kind, name: str) -> list[float]:
        return [one["answers"] / one["wall"] for one in found[kind][name]]

    def share(kind: Kind, name: str, of_kind: Kind, of: str) -> str:
        return f"{ratio(rates(kind, name), rates(of_kind, of)).median:.2f}"

    def median(name: str, key: str) -> float:
        return statistics.median(one[key] for one in found["medium"][name])

    def line(name: str) -> list[str]:
        rate, cpu = statistics.median(rates("medium", name)), median(name, "cpu")
        return [
            "no job" if name == ALONE else name,
            f"{rate:,.0f}",
            f"{FIVE_MILLION / rate / 60:.0f} min",
            share("medium", name, "medium", ALONE),
            "" if name == ALONE else f"{CORES_USED * median(ALONE, 'wall') / cpu:.2f}",
            f"{cpu / median(name, 'answers') * 1e6:.0f}",
            f"{median(name, 'mb') - median(ALONE, 'mb'):.0f}",
            share(UNKNOWN, name, "medium", name) if name in found[UNKNOWN] and name != ALONE else "",
            share("small", name, "small", ALONE) if name in found["small"] else "",
        ]

    return table(columns, [line(name) for name in found["medium"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="JSONL and SQLite, few tokens: half a minute")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--kinds", nargs="*", default=["small", "medium", UNKNOWN], choices=list(TOKENS), metavar="KIND"
    )
    parser.add_argument("--stores", nargs="*", default=["JSONL", *TABLES], choices=list(STORES), metavar="STORE")
    parser.add_argument("--tokens", type=int, help="default: by the kind")
    parser.add_argument("--one-core", action="store_true", help="client and server on a core each")
    parser.add_argument("--profile", metavar="STORE", choices=[ALONE, *STORES], help="instead of measuring")
    parser.add_argument("--write", action="store_true", help="write the last tables into docs/stores.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        order = json.loads(options.child)
        print(json.dumps((by_engine if "engine" in order else profiled if options.watch else measure)(order)))
        return
    kinds, stores, rounds = options.kinds, options.stores, options.rounds
    if options.short:
        stores, rounds = ["JSONL", "SQLite"], 1
    if not os.environ.get("PGHOST"):
        stores = [store for store in stores if store != POSTGRESQL]
    if options.one_core:
        CORES.extend(cores() or ())
    place = "client and server on a core each" if CORES else "client and server may use all cores"
    about = (
        f"{machine()}; {place}; {rounds} rounds, {CONCURRENCY} at the same time.\n"
        f"{versions(['aiohttp', 'uvloop', 'msgspec', 'backports.zstd', 'pyarrow', 'duckdb', 'psycopg'])}, "
        f"SQLite {sqlite3.sqlite_version}."
    )
    print(about, flush=True)
    found: dict[Kind, Runs] = {}
    for kind in kinds:
        count = options.tokens or (1000 if options.short else TOKENS[kind])
        if options.profile is not None:
            with plain(size_of(kind)) as server, tempfile.TemporaryDirectory() as folder:
                source = write_tokens(Path(folder, "tokens.txt"), count)
                run(options.profile, server, source, count, kind, "--watch")
            continue
        named = [ALONE, *(store for store in stores if kind != UNKNOWN or store in TABLES)]
        if kind == "medium":
            named += [f"{store}{WORKER}" for store in stores if store in TABLES]
        found[kind] = compare(kind, named, count, rounds)
    if {"small", "medium", UNKNOWN} <= found.keys():
        engines = compare_engines([store for store in stores if store in ENGINES], rounds)
        text = f"{about}\n\n{summary(found)}\n\n{engines}\n"
        print(f"\n### For docs/stores.md\n\n{text}", flush=True)
        if options.write:
            before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
            PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except FlinksError as error:
        sys.exit(str(error))
