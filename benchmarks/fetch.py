"""Fetching side by side: `python benchmarks/fetch.py [--short]` prints Markdown tables.

Each client lives in a process of its own, all on one core; the server has the other one. The clients take turns: a
round is one run of each of them, in random order, and what is compared is the figures of the same round. The ratio is
the median over the rounds, with a bootstrap 95 % interval. All answers are checked, and the server's count as well.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

from attrs import asdict, define, field, frozen
from clients import BARE, CATTRS, CLIENTS, OURS, PYDANTIC, USUAL, Fetch, Target, WrongAnswer, summary
from figures import Ratio, machine, ratio, spread, table, versions
from servers import SECRET, TOKEN, Server, Unavailable, cores, pinned, plain, tls

from flinks_async.testing.data import Size

# --- the process of one client ---------------------------------------------------------------------------------------


@define
class Runner:
    """Runs one client as the parent says; keeps it open as long as the target is the same."""

    name: str
    opened: dict[str, Any] | None = None
    target: Target | None = None
    fetch: Fetch | None = None
    requests: int = 0
    serial: Iterator[int] = field(factory=itertools.count)
    stack: AsyncExitStack = field(factory=AsyncExitStack)

    async def run(self, order: dict[str, Any]) -> dict[str, Any]:
        """Fetches for about `order["seconds"]`, after a warm-up; the first time also finds out how many that is."""
        target, seconds = order["target"], order["seconds"]
        warm = 0
        if target != self.opened:
            await self.open(target)
            warm += await self.calibrate(seconds)
        assert self.target is not None
        assert self.fetch is not None
        concurrency = self.target.concurrency
        await self.fetch(self.tokens(2 * concurrency), concurrency)
        tokens = self.tokens(self.requests)
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        await self.fetch(tokens, concurrency)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        result = {"requests": self.requests, "wall": wall, "cpu": cpu, "warm": warm + 2 * concurrency}
        # A first guess made while something else was running would keep the runs too short.
        self.requests = max(self.requests, int(self.requests / wall * seconds))
        return result

    async def open(self, target: dict[str, Any]) -> None:
        await self.close()
        with open(target["body_file"], "rb") as file:
            body = file.read()
        self.target = Target(target["base_url"], SECRET, target["ca_file"], target["concurrency"], body)
        self.fetch = await self.stack.enter_async_context(CLIENTS[self.name].open(self.target))
        self.opened = target

    async def calibrate(self, seconds: float) -> int:
        assert self.target is not None
        assert self.fetch is not None
        concurrency = self.target.concurrency
        warm = max(100, 2 * concurrency)
        await self.fetch(self.tokens(warm), concurrency)  # connects
        started = time.perf_counter()
        await self.fetch(self.tokens(warm), concurrency)
        per_second = warm / (time.perf_counter() - started)
        self.requests = max(2 * concurrency, int(per_second * seconds))
        for answer in self.target.samples:
            if summary(answer) != summary(self.target.body):
                raise WrongAnswer(f"expected {summary(self.target.body)}, got {summary(answer)}")
        return 2 * warm

    def tokens(self, count: int) -> list[str]:
        assert self.opened is not None
        if not self.opened["any_token"]:
            return [TOKEN] * count
        return [f"{number:08x}-1243-4b8d-9c1e-764123800000" for number in itertools.islice(self.serial, count)]

    async def close(self) -> None:
        await self.stack.aclose()
        self.opened = self.target = self.fetch = None


def child(name: str, loop: str) -> None:
    """Reads orders from standard input, a line each, and answers each with a line."""
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    else:
        factory = asyncio.new_event_loop
    runner = Runner(name)
    with asyncio.Runner(loop_factory=factory) as asyncio_runner:
        for line in sys.stdin:
            try:
                result = asyncio_runner.run(runner.run(json.loads(line)))
            except Exception as error:
                result = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(result), flush=True)
        asyncio_runner.run(runner.close())


class Child:
    """A client's process, seen from the parent."""

    def __init__(self, name: str, loop: str, core: int | None) -> None:
        self.name = name
        environ = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        self.process = subprocess.Popen(
            [*pinned(core), sys.executable, __file__, "--child", name, "--loop", loop],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )

    def run(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        result: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in result:
            raise WrongAnswer(f"{self.name}: {result['error']}")
        return result

    def stop(self) -> None:
        """Ends it, by the end of its input."""
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


# --- the race --------------------------------------------------------------------------------------------------------


@frozen
class Case:
    """What is varied, except the client."""

    size: Size
    concurrency: int
    loop: str
    secure: bool

    def __str__(self) -> str:
        return f"{self.size}, {'TLS' if self.secure else 'plain'}, {self.loop}, {self.concurrency} in flight"


@frozen
class Run:
    """One run of one client."""

    requests: int
    wall: float
    cpu: float

    @property
    def rate(self) -> float:
        return self.requests / self.wall

    @property
    def cost(self) -> float:
        """Microseconds of the client's processor for one request."""
        return self.cpu / self.requests * 1e6


Results = dict[str, list[Run]]


def race(children: Sequence[Child], server: Server, case: Case, body_file: str, rounds: int, seconds: float) -> Results:
    """The runs of each client, by round."""
    target = {
        "base_url": server.base_url,
        "ca_file": server.ca_file,
        "any_token": server.any_token,
        "concurrency": case.concurrency,
        "body_file": body_file,
    }
    results: Results = {child.name: [] for child in children}
    for _ in range(rounds):
        for child in random.sample(children, len(children)):
            before = server.answers()
            got = child.run({"target": target, "seconds": seconds})
            asked, answered = got["requests"] + got["warm"], server.counted(before)
            if answered not in (None, asked):
                raise WrongAnswer(f"{child.name}: {asked} requests were asked for and the server got {answered}")
            results[child.name].append(Run(got["requests"], got["wall"], got["cpu"]))
    return results


def rates(ones: Sequence[Run], others: Sequence[Run]) -> Ratio:
    """How many requests the ones make in the time of one of the others."""
    return ratio([run.rate for run in ones], [run.rate for run in others])


def costs(ones: Sequence[Run], others: Sequence[Run]) -> Ratio:
    """How many requests the ones make with the processor time of one of the others."""
    return ratio([run.cost for run in others], [run.cost for run in ones])


def rows(results: Results) -> list[list[str]]:
    bare = results[BARE]
    return [
        [
            name,
            CLIENTS[name].gives,
            f"{statistics.median(run.rate for run in runs):,.0f} ± {spread([run.rate for run in runs]):.0%}",
            str(rates(runs, bare)),
            f"{statistics.median(run.cost for run in runs):.0f}",
            str(costs(runs, bare)),
        ]
        for name, runs in results.items()
    ]


COLUMNS = ("client", "gives", "requests/s", "ratio to aiohttp", "client CPU µs", "ratio of CPU")


def comparison(found: dict[Case, Results], versus: Callable[[Sequence[Run], Sequence[Run]], Ratio]) -> str:
    """A table of what ours is to the others, by case; empty where ours did not run."""
    others = [name for name in (BARE, USUAL, CATTRS, PYDANTIC) if all(name in results for results in found.values())]
    lines = [
        [str(case), *(str(versus(results[OURS], results[other])) for other in others)]
        for case, results in found.items()
        if OURS in results
    ]
    return table([f"{OURS} to", *others], lines) if lines else ""


def installed(names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        missing = [package for package in CLIENTS[name].packages if "not installed" in versions([package])]
        if missing == ["flinks-async"]:  # run from a checkout
            missing = []
        if missing:
            print(f"Note: {name} is left out, since {' and '.join(missing)} is not installed.", flush=True)
        else:
            found.append(name)
    return found


def loops() -> list[str]:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        print("Note: uvloop is not installed; only asyncio's own loop is measured.", flush=True)
        return ["asyncio"]
    return ["uvloop", "asyncio"]


def cases_of(options: argparse.Namespace, found_loops: Sequence[str]) -> list[Case]:
    return [
        Case(size, concurrency, loop, secure)
        for loop in found_loops
        if loop in options.loops
        for secure in options.tls
        for size in options.sizes
        for concurrency in options.concurrency
    ]


def run_cases(cases: Sequence[Case], names: Sequence[str], rounds: int, seconds: float) -> dict[Case, Results]:
    """All cases; those with TLS are left out, with a note, where there is no nginx."""
    found: dict[Case, Results] = {}
    client_core, server_core = cores() or (None, None)
    for loop, of_loop in itertools.groupby(cases, lambda case: case.loop):
        with ExitStack() as children_stack:
            children = []
            for name in names:
                children.append(Child(name, loop, client_core))
                children_stack.callback(children[-1].stop)
            for (secure, size), group in itertools.groupby(of_loop, lambda case: (case.secure, case.size)):
                with ExitStack() as stack:
                    try:
                        server = stack.enter_context(tls(size, server_core) if secure else plain(size, server_core))
                    except Unavailable as problem:
                        print(f"Note: {size} with TLS is left out: {problem}.", flush=True)
                        continue
                    body_file = Path(stack.enter_context(tempfile.TemporaryDirectory()), "body")
                    body_file.write_bytes(server.body)
                    for case in group:
                        found[case] = race(children, server, case, str(body_file), rounds, seconds)
                        show(case, server, found[case])
    return found


def show(case: Case, server: Server, results: Results) -> None:
    about = f"{case} (server: {server.kind}, {len(server.body) / 1000:.2f} KB)"
    print(f"\n### {about}\n\n{table(COLUMNS, rows(results))}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one case of each size, few rounds: under a minute")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of one run")
    parser.add_argument("--concurrency", type=int, nargs="*")
    parser.add_argument("--sizes", nargs="*", default=["small", "medium"], choices=["small", "medium", "large"])
    parser.add_argument("--loops", nargs="*", choices=["uvloop", "asyncio"])
    parser.add_argument("--tls", nargs="*", choices=["no", "yes"])
    parser.add_argument("--clients", nargs="*", default=list(CLIENTS), choices=list(CLIENTS), metavar="CLIENT")
    parser.add_argument("--json", metavar="FILE", help="write all runs to a file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--loop", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        return child(options.child, options.loop)
    short = options.short
    found_loops = loops()
    options.concurrency = options.concurrency or ([64] if short else [1, 16, 64, 256])
    options.loops = options.loops or (found_loops[:1] if short else found_loops)
    options.tls = [answer == "yes" for answer in options.tls or (["no"] if short else ["no", "yes"])]
    rounds = options.rounds or (3 if short else 9)
    seconds = options.seconds or (0.1 if short else 0.3)
    names = installed(list(dict.fromkeys([BARE, *options.clients])))
    packages = sorted({package for name in names for package in CLIENTS[name].packages} | {"uvloop", "msgspec"})
    place = "client and server on a core each" if cores() else "processes not kept on cores"
    print(f"{machine()}; {place}; {rounds} rounds of {seconds:g} s.\n{versions(packages)}.", flush=True)
    found = run_cases(cases_of(options, found_loops), names, rounds, seconds)
    print(f"\n### In one table: requests/s\n\n{comparison(found, rates)}")
    print(f"\n### In one table: processor time of the client\n\n{comparison(found, costs)}")
    if options.json:
        everything = [
            {**asdict(case), "runs": {name: [asdict(run) for run in runs] for name, runs in results.items()}}
            for case, results in found.items()
        ]
        record = {"machine": machine(), "versions": versions(packages), "cases": everything}
        Path(options.json).write_text(json.dumps(record, indent=1))
    return None


if __name__ == "__main__":
    sys.exit(main())
