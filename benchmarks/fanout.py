"""Many tokens at once: `python benchmarks/fanout.py [--short]` prints a Markdown table.

A stub that waits once for the event loop replaces the request, so only the fan-out is measured: microseconds of processor
time per token, and the growth of the process. Each measurement runs in a process of its own; the table has the median of
several. The tokens come from a generator, like the lines of a file; the answers are counted and dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from figures import machine, spread, table

from flinks_async.fanout import fan_out
from flinks_async.models import PartnerAccessResponse
from flinks_async.secret import Secret

CONCURRENCY = 64
ANSWER = PartnerAccessResponse()


async def stub(token: str | Secret) -> PartnerAccessResponse:
    """A fetch that takes one turn of the event loop."""
    await asyncio.sleep(0)
    return ANSWER


def tokens(count: int) -> Iterator[str]:
    return (f"{number:08x}-1243-4b8d-9c1e-764123800000" for number in range(count))


# Each way gives the number of answers it saw.


async def gather(found: Iterable[str]) -> int:
    """A task a token, and a semaphore."""
    semaphore = asyncio.Semaphore(CONCURRENCY)

    async def one(token: str) -> PartnerAccessResponse:
        async with semaphore:
            return await stub(token)

    answers = await asyncio.gather(*(one(token) for token in found))
    return sum(answer is ANSWER for answer in answers)


async def task_group(found: Iterable[str]) -> int:
    """A semaphore taken before a task is made; each answer is handled in its task."""
    semaphore, seen = asyncio.Semaphore(CONCURRENCY), 0

    async def one(token: str) -> None:
        nonlocal seen
        try:
            answer = await stub(token)
            seen += answer is ANSWER
        finally:
            semaphore.release()

    async with asyncio.TaskGroup() as group:
        for token in found:
            await semaphore.acquire()
            group.create_task(one(token))
    return seen


async def ours(found: Iterable[str], *, ordered: bool = False) -> int:
    """Outcomes as they come."""
    seen = 0
    async for outcome in fan_out(found, stub, concurrency=CONCURRENCY, ordered=ordered):
        seen += outcome.unwrap() is ANSWER
    return seen


async def ours_ordered(found: Iterable[str]) -> int:
    """Outcomes in the order of the tokens."""
    return await ours(found, ordered=True)


WAYS: dict[str, Callable[[Iterable[str]], Awaitable[int]]] = {
    "gather, a task a token, semaphore": gather,
    "TaskGroup, semaphore before a task": task_group,
    "flinks_async": ours,
    "flinks_async, in order": ours_ordered,
}


def peak() -> float:
    """The most memory that this process has had so far, in MB. NaN where it cannot be asked."""
    with suppress(OSError):
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:
        return float("nan")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1024 * 1024 if sys.platform == "darwin" else 1024)


def child(way: str, count: int) -> None:
    async def run() -> dict[str, float]:
        await WAYS[way](tokens(1000))
        before = peak()
        started = time.process_time()
        seen = await WAYS[way](tokens(count))
        used = time.process_time() - started
        return {"seen": seen, "us": used / count * 1e6, "mb": peak() - before}

    print(json.dumps(asyncio.run(run())))


def measure(way: str, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", way, "--count", str(count)]
    result: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    if result["seen"] != count:
        raise AssertionError(f"{way}: {count} tokens and {result['seen']:.0f} answers")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="up to 50,000 tokens, a few seconds")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        return child(options.child, options.count)
    counts, rounds = ((10_000, 50_000), 3) if options.short else ((10_000, 100_000, 1_000_000), 5)
    results: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for count in counts:
            for way in random.sample(list(WAYS), len(WAYS)):
                results.setdefault((way, count), []).append(measure(way, count))
    print(f"{machine()}; asyncio, {CONCURRENCY} at the same time, median of {rounds} processes each.\n")
    print(
        table(
            ["", *(f"{count:,} tokens: CPU µs a token / MB more" for count in counts)],
            [[way, *(cell(results[way, count]) for count in counts)] for way in WAYS],
        )
    )
    return None


def cell(runs: list[dict[str, Any]]) -> str:
    times = [run["us"] for run in runs]
    return f"{statistics.median(times):.1f} ± {spread(times):.0%} / {statistics.median(run['mb'] for run in runs):.1f}"


if __name__ == "__main__":
    sys.exit(main())
