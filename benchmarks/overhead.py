"""The cost of each protection for a call that succeeds: `python benchmarks/overhead.py [--short]`.

    python benchmarks/overhead.py --before FOLDER    # beside the package in FOLDER, for example a worktree of an older commit

A transport that responds at once replaces the network, so only the chain and decoding are measured. Each row switches one
protection on. No call fails, so all of them pay for a protection that they do not need.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from clients import in_workers
from figures import machine, ratio, spread, table, versions
from multidict import CIMultiDict
from profile_request import AtOnce, Work, measure, tokens
from servers import SECRET, cores

from flinks_async import Adaptive, FlinksClient, Hedge, PollPending, config
from flinks_async.testing.data import expected_body

CONCURRENCY = 64
NONE = {
    "retry": {"attempts": 1, "quota": None},
    "timeouts": {"connect": None, "attempt": None, "deadline": None},
    "limits": {"concurrency": CONCURRENCY, "breaker": None},
}


def without(**changes: Any) -> dict[str, Any]:
    """The arguments of a client that has only these protections."""
    given = {name: {**record, **changes.pop(name, {})} for name, record in NONE.items()}
    return {**given, **changes}


PROTECTIONS: dict[str, dict[str, Any]] = {
    "none": without(),
    "retries": without(retry={"attempts": 3}),
    "retries with a quota": without(retry={"attempts": 3, "quota": config.Retry().quota}),
    "deadline": without(timeouts={"deadline": 60.0}),
    "breaker": without(limits={"breaker": config.Limits().breaker}),
    "adaptive concurrency": without(limits={"concurrency": Adaptive(initial=CONCURRENCY, minimum=CONCURRENCY)}),
    "rate limit that is not reached": without(limits={"rate": 1e9}),
    "hedging": without(hedge=Hedge()),
    "coalescing": without(coalesce=True),
    "polling of pending answers": without(poll_pending=PollPending()),
    "service(), unchanged": {"settings": config.service()},
    "bulk(), unchanged": {"settings": config.bulk()},
}


def work_of(client: FlinksClient) -> Work:
    async def one(token: str) -> None:
        await client.partner_access(token)

    fetch = in_workers(one)
    return lambda count: fetch(tokens(count), CONCURRENCY)


async def measured(rounds: int, seconds: float) -> dict[str, list[float]]:
    """Microseconds of processor time per call, by protection and round."""
    headers = CIMultiDict({"Content-Type": "application/json"})
    async with AsyncExitStack() as stack:
        work = {}
        for name, arguments in PROTECTIONS.items():
            transport = AtOnce(expected_body("a", size="small"), headers)
            work[name] = work_of(
                await stack.enter_async_context(FlinksClient(auth_secret=SECRET, transport=transport, **arguments))
            )
        return await measure(work, rounds, seconds)


def rows(times: dict[str, list[float]]) -> list[list[str]]:
    """For each protection, its time and the difference to none, as medians over the rounds."""
    base = times["none"]
    return [
        [
            name,
            f"{statistics.median(own):.2f} ± {spread(own):.0%}",
            f"{statistics.median(one - zero for one, zero in zip(own, base, strict=True)):+.2f}",
        ]
        for name, own in times.items()
    ]


def beside(folder: Path, rounds: int) -> str:
    """This package and the one in the folder, each round in processes of their own."""
    here, found = Path(__file__).resolve().parent.parent, list[dict[str, list[float]]]()
    for number in range(rounds):
        both: dict[Path, dict[str, float]] = {}
        for root in random.sample([here, folder.resolve()], 2):
            text = subprocess.run(
                [sys.executable, __file__, "--json"],
                env={**os.environ, "PYTHONPATH": str(root)},
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
            both[root] = json.loads(text)
        found.append({name: [both[here][name], both[folder.resolve()][name]] for name in PROTECTIONS})
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    lines = []
    for name in PROTECTIONS:
        now, before = ([one[name][index] for one in found] for index in (0, 1))
        lines.append(
            [name, f"{statistics.median(now):.2f}", f"{statistics.median(before):.2f}", str(ratio(now, before))]
        )
    return table(["part", "client CPU µs per call", "before", "ratio"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="few rounds")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="compare with the package in this folder")
    parser.add_argument("--json", action="store_true", help="the median of each part, for --before")
    options = parser.parse_args()
    rounds, seconds = (5, 0.05) if options.short or options.json else (41, 0.1)
    if options.before is not None:
        if not (options.before / "flinks_async").is_dir():
            parser.error(f"{options.before} has no folder flinks_async")
        print(beside(options.before, 3 if options.short else 15))
        return
    if (place := cores()) is not None:
        os.sched_setaffinity(0, {place[0]})
    if options.json:
        with asyncio.Runner() as runner:
            times = runner.run(measured(rounds, seconds))
        print(json.dumps({name: statistics.median(own) for name, own in times.items()}))
        return
    print(f"{machine()}.\n{versions(['flinks-async', 'uvloop'])}.")
    print(
        f"Small answers, {CONCURRENCY} in flight, median of {rounds} rounds ± half the distance between the quartiles.\n"
    )
    try:
        import uvloop
    except ImportError:
        times = asyncio.run(measured(rounds, seconds))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            times = runner.run(measured(rounds, seconds))
    print(table(["part", "client CPU µs per call", "more than none"], rows(times)))


if __name__ == "__main__":
    sys.exit(main())
