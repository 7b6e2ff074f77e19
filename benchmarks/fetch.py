"""Fetching side by side: `python benchmarks/fetch.py [--short]` prints Markdown tables.

Each client runs in a process of its own, all on one core; the server has the other one. The clients take turns: a round is
one run of each of them, in random order and in new processes, because one process may by chance be 20 % faster than the
next. Only figures of the same round are compared; the ratio is the median over the rounds, with a bootstrap 95 % interval.
All answers are checked, and so is the server's count.
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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attrs import asdict, frozen
from clients import (
    BARE,
    CATTRS,
    CLIENTS,
    OURS,
    OURS_MANY,
    OURS_ON_ACCESS,
    PYDANTIC,
    PYREQWEST,
    STRUCTS,
    STRUCTS_ON_ACCESS,
    USUAL,
    Target,
    WrongAnswer,
    summary,
)
from figures import Ratio, machine, ratio, spread, table, versions
from servers import SECRET, TOKEN, Server, Unavailable, cores, pinned, plain, tls

from flinks_async.testing.data import Size, expected_body

SETTLE_SECONDS = 6.0
USUAL_CONCURRENCY = 64
SELDOM = 3
"""Cases beside the usual one are measured in every third round."""


# --- the process of one client ---------------------------------------------------------------------------------------


async def run(name: str, order: dict[str, Any]) -> dict[str, Any]:
    """Fetches for about `order["seconds"]` with a new client of that name, after a warm-up, which also finds out how
    many requests that is.
    """
    concurrency: int = order["concurrency"]
    body = Path(order["body_file"]).read_bytes()
    target = Target(order["base_url"], SECRET, order["ca_file"], concurrency, body)
    warm = max(100, concurrency)
    serial = itertools.count()

    def tokens(count: int) -> list[str]:
        if not order["any_token"]:
            return [TOKEN] * count
        return [f"{number:08x}-1243-4b8d-9c1e-764123800000" for number in itertools.islice(serial, count)]

    async with CLIENTS[name].open(target) as fetch:
        await fetch(tokens(warm), concurrency)  # connects
        for answer in target.samples:
            if summary(answer) != summary(body):
                raise WrongAnswer(f"expected {summary(body)}, got {summary(answer)}")
        sent, until = warm, time.perf_counter() + SETTLE_SECONDS
        while order["settle"] and sent < CLIENTS[name].settle and time.perf_counter() < until:
            await fetch(tokens(warm), concurrency)
            sent += warm
        started = time.perf_counter()
        await fetch(tokens(warm), concurrency)
        per_second = warm / (time.perf_counter() - started)
        requests = max(2 * concurrency, int(per_second * order["seconds"]))
        asked = tokens(requests)
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        await fetch(asked, concurrency)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"requests": requests, "wall": wall, "cpu": cpu, "warm": sent + warm}


def child(name: str, loop: str) -> None:
    """Reads orders from standard input, a line each, and answers each with a line."""
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    else:
        factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        for line in sys.stdin:
            try:
                result = runner.run(run(name, json.loads(line)))
            except Exception as error:
                result = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(result), flush=True)


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
    """The conditions of a measurement, except the client."""

    size: Size
    concurrency: int
    loop: str
    secure: bool

    def __str__(self) -> str:
        return f"{self.size}, {'TLS' if self.secure else 'plain'}, {self.loop}, {self.concurrency} in flight"

    def oddity(self, usual_loop: str) -> int:
        """In how many points it differs from the usual case."""
        return (self.concurrency != USUAL_CONCURRENCY) + self.secure + (self.loop != usual_loop)


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


def race(
    children: Sequence[Child], server: Server, case: Case, body_file: Path, seconds: float, settle: bool
) -> dict[str, Run]:
    """One run of each client, in random order."""
    order = {
        "base_url": server.base_url,
        "ca_file": server.ca_file,
        "any_token": server.any_token,
        "concurrency": case.concurrency,
        "body_file": str(body_file),
        "seconds": seconds,
        "settle": settle,
    }
    runs = {}
    for child in random.sample(children, len(children)):
        before = server.answers()
        got = child.run(order)
        asked, answered = got["requests"] + got["warm"], server.counted(before)
        if answered not in (None, asked):
            raise WrongAnswer(f"{child.name}: {asked} requests were asked for and the server got {answered}")
        runs[child.name] = Run(got["requests"], got["wall"], got["cpu"])
    return runs


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
    compared = (BARE, USUAL, CATTRS, PYDANTIC, PYREQWEST, STRUCTS, STRUCTS_ON_ACCESS, OURS)
    others = [name for name in compared if all(name in results for results in found.values())]
    lines = [
        [str(case), ours, *(str(versus(results[ours], results[other])) for other in others)]
        for case, results in found.items()
        for ours in (OURS, OURS_ON_ACCESS, OURS_MANY)
        if ours in results
    ]
    return table(["case", "row", *(f"to {other}" for other in others)], lines) if lines else ""


def results_table(found: dict[Case, Results]) -> str:
    """The table of results in docs/benchmarks.md: ours to each other client, by size, with and without TLS, 64 in flight."""
    cases = {
        f"{case.size}{', TLS' if case.secure else ''}": results
        for case, results in found.items()
        if case.concurrency == USUAL_CONCURRENCY and case.loop == next(iter(found)).loop
    }
    pairs = [(OURS, other) for other in (BARE, USUAL, CATTRS, PYDANTIC, PYREQWEST, STRUCTS)]
    pairs += [(OURS_ON_ACCESS, BARE), (OURS_ON_ACCESS, STRUCTS_ON_ACCESS), (OURS_MANY, OURS)]
    lines = [
        [
            f"{ours.removeprefix('flinks_async, ')} to {other}",
            *(str(rates(of[ours], of[other])) for of in cases.values()),
        ]
        for ours, other in pairs
        if cases and all(ours in of and other in of for of in cases.values())
    ]
    return table(["", *cases], lines)


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
    """Every combination of what was asked for. If nothing was, what is measured in the full form: 64 in flight without
    TLS on the faster loop, and of everything else what differs from that in one point.
    """
    if not (options.loops or options.tls or options.concurrency or options.short):
        return [
            case
            for loop in found_loops
            for secure in (False, True)
            for size in options.sizes
            for concurrency in sorted({1, 16, USUAL_CONCURRENCY, 256})
            if (case := Case(size, concurrency, loop, secure)).oddity(found_loops[0]) <= 1
        ]
    secures = [answer == "yes" for answer in options.tls or ["no"]]
    return [
        Case(size, concurrency, loop, secure)
        for loop in found_loops
        if loop in (options.loops or found_loops[:1])
        for secure in secures
        for size in options.sizes
        for concurrency in options.concurrency or [USUAL_CONCURRENCY]
    ]


def run_cases(
    cases: Sequence[Case], names: Sequence[str], rounds: int, seconds: float, settle: bool
) -> dict[Case, Results]:
    """The runs of each client, by case and round."""
    found: dict[Case, Results] = {case: {name: [] for name in names} for case in cases}
    client_core, server_core = cores() or (None, None)
    fastest = cases[0].loop if cases else ""
    for number in range(rounds):
        now = [case for case in cases if number % SELDOM == 0 or not case.oddity(fastest)] or list(cases)
        for loop, of_loop in itertools.groupby(now, lambda case: case.loop):
            with ExitStack() as children_stack:
                children = [Child(name, loop, client_core) for name in names]
                for child in children:
                    children_stack.callback(child.stop)
                for (secure, size), group in itertools.groupby(of_loop, lambda case: (case.secure, case.size)):
                    with ExitStack() as stack:
                        server = stack.enter_context(tls(size, server_core) if secure else plain(size, server_core))
                        body_file = Path(stack.enter_context(tempfile.TemporaryDirectory()), "body")
                        body_file.write_bytes(server.body)
                        for case in group:
                            for name, one in race(children, server, case, body_file, seconds, settle).items():
                                found[case][name].append(one)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def possible(cases: Sequence[Case]) -> list[Case]:
    """The cases whose servers this machine has; a note names the missing ones."""
    try:
        if any(case.secure for case in cases):
            with tls("small"):
                pass
    except Unavailable as problem:
        print(f"Note: TLS is left out: {problem}.", flush=True)
        cases = [case for case in cases if not case.secure]
    if any(not case.secure for case in cases):
        with plain("small") as server:  # says it if it is not the compiled one
            print(f"Servers: {server.kind}{', nginx for TLS' if any(case.secure for case in cases) else ''}.")
    return list(cases)


def show(case: Case, results: Results) -> None:
    size = len(expected_body(TOKEN, size=case.size)) / 1000
    print(f"\n### {case} ({size:.2f} KB)\n\n{table(COLUMNS, rows(results))}")


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
    rounds = options.rounds or (3 if short else 9)
    seconds = options.seconds or (0.1 if short else 0.3)
    names = installed(list(dict.fromkeys([BARE, *options.clients])))
    packages = sorted(
        {package for name in names for package in CLIENTS[name].packages} | {"uvloop", "msgspec", "httptools"}
    )
    place = "client and server on a core each" if cores() else "processes not kept on cores"
    print(f"{machine()}; {place}; {rounds} rounds of {seconds:g} s.\n{versions(packages)}.", flush=True)
    found = run_cases(possible(cases_of(options, found_loops)), names, rounds, seconds, not short)
    for case, results in found.items():
        show(case, results)
    print(f"\n### In one table: requests/s\n\n{comparison(found, rates)}")
    print(f"\n### In one table: processor time of the client\n\n{comparison(found, costs)}")
    print(f"\n### The table of docs/benchmarks.md: requests/s\n\n{results_table(found)}")
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
