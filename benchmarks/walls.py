"""What each guard of the chain costs a call that goes well: `python benchmarks/walls.py [--short]`.

A transport that answers at once takes the place of the network, so that only the chain and decoding are left. Each row
switches one guard on; nothing ever fails, since that is the traffic that pays for guards it does not need.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
from contextlib import AsyncExitStack
from typing import Any

from clients import in_workers
from figures import machine, spread, table, versions
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
    """The arguments of a client that has no guard but these."""
    given = {name: {**record, **changes.pop(name, {})} for name, record in NONE.items()}
    return {**given, **changes}


WALLS: dict[str, dict[str, Any]] = {
    "none": without(),
    "retries": without(retry={"attempts": 3}),
    "retries, from a quota": without(retry={"attempts": 3, "quota": config.Retry().quota}),
    "deadline": without(timeouts={"deadline": 60.0}),
    "breaker": without(limits={"breaker": config.Limits().breaker}),
    "adaptive concurrency": without(limits={"concurrency": Adaptive(initial=CONCURRENCY, minimum=CONCURRENCY)}),
    "rate limit, never reached": without(limits={"rate": 1e9}),
    "hedging": without(hedge=Hedge()),
    "coalescing": without(coalesce=True),
    "polling of pending answers": without(poll_pending=PollPending()),
    "service(), as it comes": {"settings": config.service()},
    "bulk(), as it comes": {"settings": config.bulk()},
}


def work_of(client: FlinksClient) -> Work:
    async def one(token: str) -> None:
        await client.partner_access(token)

    fetch = in_workers(one)
    return lambda count: fetch(tokens(count), CONCURRENCY)


async def measured(rounds: int, seconds: float) -> dict[str, list[float]]:
    """Microseconds of processor time for a call, by guard and round."""
    headers = CIMultiDict({"Content-Type": "application/json"})
    async with AsyncExitStack() as stack:
        work = {}
        for name, arguments in WALLS.items():
            transport = AtOnce(expected_body("a", size="small"), headers)
            work[name] = work_of(
                await stack.enter_async_context(FlinksClient(auth_secret=SECRET, transport=transport, **arguments))
            )
        return await measure(work, rounds, seconds)


def rows(times: dict[str, list[float]]) -> list[list[str]]:
    """Of each guard: its time, and what it adds to none, as the median over the rounds."""
    base = times["none"]
    return [
        [
            name,
            f"{statistics.median(own):.2f} ± {spread(own):.0%}",
            f"{statistics.median(one - zero for one, zero in zip(own, base, strict=True)):+.2f}",
        ]
        for name, own in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="few rounds")
    options = parser.parse_args()
    rounds, seconds = (5, 0.05) if options.short else (41, 0.1)
    if (place := cores()) is not None:
        os.sched_setaffinity(0, {place[0]})
    print(f"{machine()}.\n{versions(['flinks-async', 'uvloop'])}.")
    print(
        f"Small answers, {CONCURRENCY} at the same time, median of {rounds} rounds ± half the distance of the quartiles.\n"
    )
    try:
        import uvloop
    except ImportError:
        times = asyncio.run(measured(rounds, seconds))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            times = runner.run(measured(rounds, seconds))
    print(table(["guard", "client CPU µs a call", "more than none"], rows(times)))


if __name__ == "__main__":
    sys.exit(main())
