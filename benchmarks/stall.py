"""How long decoding keeps an event loop busy: `python benchmarks/stall.py [--short]` prints a Markdown table.

Many bodies arrive at once and are decoded as in the client, while a probe asks to be woken every millisecond. A stall is
the delay of the probe. Nothing is fetched: only decoding is measured.

From time to time, Python's garbage collector walks the whole heap, including objects of other code. With the heap of this
program that takes 15 to 40 ms, and more with a larger one. A service can call `gc.freeze()` once after startup, which
excludes the objects that exist by then. The table shows both.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from flinks_async.codec import Codec
from flinks_async.models import Meta
from flinks_async.testing.data import expected_answer

TICK = 0.001
META = Meta()


def body_of(transactions: int, accounts: int) -> bytes:
    """A body with that many transactions in all."""
    answer = expected_answer("stall", size="large")
    (detail,) = answer["GetAccountsDetail"]
    moves = [move for account in detail["Accounts"] for move in account["Transactions"]]
    each = transactions // accounts
    moves *= -(-each // len(moves))
    detail["Accounts"] = [{**detail["Accounts"][0], "Transactions": moves[:each]}] * accounts
    return msgspec.json.Encoder(decimal_format="number").encode(answer)


async def stalls(work: Callable[[], Awaitable[Any]]) -> list[float]:
    """How late a probe woke up, in ms, while some work ran."""
    late: list[float] = []
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def probe(asked: float) -> None:
        now = time.perf_counter()
        late.append((now - asked) * 1000)
        if not done.cancelled():
            loop.call_later(TICK, probe, now + TICK)

    loop.call_later(TICK, probe, time.perf_counter() + TICK)
    await work()
    done.cancel()
    return late


async def measure(body: bytes, answers: int, in_turns: bool, on_access: bool) -> list[float]:
    codec, lock = Codec(transactions="on access" if on_access else "with the answer"), asyncio.Lock()
    codec.decode(body)  # compiled, and the shape known

    async def one() -> None:
        if in_turns:
            await codec.decode_async(body, META, lock)
        else:
            codec.decode(body, META)

    async def work() -> None:
        await asyncio.gather(*(one() for _ in range(answers)))

    return await stalls(work)


def run(loop: str, body: bytes, answers: int, in_turns: bool, frozen: bool, on_access: bool) -> list[float]:
    gc.collect()
    if frozen:
        gc.freeze()
    try:
        if loop == "uvloop":
            import uvloop

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(measure(body, answers, in_turns, on_access))
        return asyncio.run(measure(body, answers, in_turns, on_access))
    finally:
        gc.unfreeze()


def print_heap() -> None:
    """Prints the time of one walk of the heap before anything was decoded: a lower bound for every decoder."""
    gc.collect()
    took = []
    for _ in range(15):
        begun = time.perf_counter()
        gc.collect()
        took.append((time.perf_counter() - begun) * 1000)
    print(
        f"One full garbage collection of this program's {len(gc.get_objects()):,} objects: {min(took):.1f} ms at best,"
    )
    print(f"{statistics.median(took):.1f} ms usually; that is the floor of the columns without `gc.freeze()`.\n")


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="no body over 3 MB, and fewer runs")
    short = parser.parse_args().short
    ways = [("asyncio", True, False, False), ("asyncio", True, True, False), ("asyncio", True, False, True)]
    try:
        import uvloop  # noqa: F401
    except ImportError:
        pass
    else:
        ways += [("uvloop", True, False, False), ("uvloop", True, True, False), ("uvloop", True, False, True)]
    ways.append(("asyncio", False, False, False))
    names = [
        f"{loop}, {'in turns' if turns else 'at once'}{', gc.freeze()' if frozen else ''}{', on access' if later else ''}"
        for loop, turns, frozen, later in ways
    ]
    repeats = 2 if short else 5
    print_heap()
    print(
        f"Python {platform.python_version()}. Stalls in ms: median / p99 / p99.9 / longest of {repeats} runs together.\n"
    )
    print("| bodies | accounts x transactions |", " | ".join(names), "|")
    print("| --- " * (len(ways) + 2) + "|")
    cases = [(600, 5), (2_000, 5), (10_000, 5), (10_000, 1), (10_000, 1_000), (40_000, 5), (160_000, 5)]
    for transactions, accounts in cases[: 5 if short else None]:
        body = body_of(transactions, accounts)
        answers = 64 if len(body) < 3_000_000 else max(4, 64 * 2_000_000 // len(body))
        cells = []
        for way in ways:
            late = [value for _ in range(repeats) for value in run(way[0], body, answers, *way[1:])]
            shown = (statistics.median(late), quantile(late, 0.99), quantile(late, 0.999), max(late))
            cells.append(" / ".join(f"{value:.1f}" for value in shown))
        print(
            f"| {answers} of {len(body) / 1e6:.1f} MB | {accounts} x {transactions // accounts} |",
            " | ".join(cells),
            "|",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
