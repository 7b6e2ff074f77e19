"""A retry storm in virtual time: the effect of retries on a server that loses capacity for a minute, and on its recovery.

    python benchmarks/retry_storm.py            # prints the table; takes some seconds
    python benchmarks/retry_storm.py --write    # also writes docs/retry-storm.md and docs/retry-storm.svg

2,000 clients make one call per second each. The server handles 3,000 requests per second, but only 600 during the second
minute. It processes accepted requests in order of arrival, even if the client has given up. This is what makes retry storms
last (Bronson et al., "Metastable Failures in Distributed Systems", HotOS 2021). Clients give up an attempt after one second.
The server responds with 503 while three seconds of work are queued.

`ours` is the code of this package: retry, token bucket, breaker and adaptive concurrency, with the defaults of
`config.service()`, and separate state for each client. Random numbers are seeded, so every run gives the same result.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path

from attrs import define

from flinks_async import config
from flinks_async.config import Adaptive, Breaker, TokenBucketQuota
from flinks_async.limits.breaker import CircuitBreaker
from flinks_async.limits.concurrency import AdaptiveConcurrency
from flinks_async.limits.quota import TokenBucket
from flinks_async.middleware.retry import Backoff, RetryState, count, decide
from flinks_async.verdict import Kind, Verdict

CLIENTS, CALLS_PER_SECOND, SECONDS = 2_000, 2_000, 300
HEALTHY, IN_TROUBLE, TROUBLE = 3_000.0, 600.0, (60, 120)
LATENCY, TIMEOUT, LONGEST_QUEUE = 0.05, 1.0, 3.0
FAILED = Verdict(Kind.TRANSIENT, "http_503")


class Server:
    """One queue, served in order at a rate that depends on the time."""

    def __init__(self) -> None:
        self._free_at = 0.0

    def send(self, now: float) -> tuple[float, bool]:
        """When the client knows, and whether it worked."""
        start = max(now, self._free_at)
        if start - now > LONGEST_QUEUE:
            return now + LATENCY, False
        self._free_at = start + 1.0 / (IN_TROUBLE if TROUBLE[0] <= start < TROUBLE[1] else HEALTHY)
        answered = self._free_at + LATENCY
        return (answered, True) if answered <= now + TIMEOUT else (now + TIMEOUT, False)


@define
class CallState:
    state: RetryState
    sent: float = 0.0
    probe: bool = False


class NaiveClient:
    """Three attempts, one right after the other."""

    settings = config.Retry(attempts=3, base=0.0, quota=None)

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def admit(self, call: CallState, now: float) -> bool | None:
        """Whether the call goes now; None if it must wait for another to end."""
        return True

    def ended(self, call: CallState, now: float, ok: bool) -> float | None:
        """After an attempt: when to make the next, or None."""
        if ok:
            return None
        count(call.state, Kind.TRANSIENT, free=False)
        decision = decide(self.settings, FAILED, call.state, retry_after=None, remaining=None, random=self._rng.random)
        return now + decision.delay if isinstance(decision, Backoff) else None


class PatientClient(NaiveClient):
    """Three attempts, exponential backoff with full jitter between them."""

    settings = config.Retry(attempts=3, quota=None)


class OurClient(NaiveClient):
    """The client of this package, with all protections."""

    settings = config.service().retry

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._quota = TokenBucket(TokenBucketQuota())
        self._breaker = CircuitBreaker(Breaker())
        self._concurrency = AdaptiveConcurrency(Adaptive())
        self._in_use = 0

    def admit(self, call: CallState, now: float) -> bool | None:
        if self._breaker.wait(now) > 0:
            return False
        if self._in_use >= self._concurrency.limit:
            return None
        self._in_use += 1
        call.probe = self._breaker.take()
        return True

    def ended(self, call: CallState, now: float, ok: bool) -> float | None:
        self._in_use -= 1
        if ok:
            self._concurrency.answered(now - call.sent, now, self._in_use + 1)
            if self._breaker.succeeded(probe=call.probe):
                self._concurrency.restart()
            self._quota.succeeded(call.state.cost)
            return None
        self._concurrency.failed(self._in_use + 1)
        self._breaker.failed(now, self._rng.random(), probe=call.probe)
        count(call.state, Kind.TRANSIENT, free=False)
        decision = decide(
            self.settings,
            FAILED,
            call.state,
            retry_after=None,
            remaining=None,
            random=self._rng.random,
            down=not self._breaker.closed,
        )
        if isinstance(decision, Backoff):
            call.state.cost = self._quota.take(Kind.TRANSIENT, now)
            if call.state.cost is not None:
                return now + decision.delay
        return None


@define
class Result:
    name: str
    sent: list[int]
    good: list[int]
    calls: list[int]

    @property
    def amplification(self) -> float:
        """Requests for each call, while the server is in trouble."""
        return sum(self.sent[slice(*TROUBLE)]) / sum(self.calls[slice(*TROUBLE)])

    @property
    def recovery(self) -> int | None:
        """Seconds after the trouble until 99 % of the calls succeed, five seconds in a row."""
        for second in range(TROUBLE[1], SECONDS - 5):
            if all(self.good[s] >= 0.99 * self.calls[s] for s in range(second, second + 5)):
                return second - TROUBLE[1]
        return None


def simulate(name: str, make: Callable[[random.Random], NaiveClient], seed: int = 1) -> Result:
    rng, server = random.Random(seed), Server()
    clients = [make(random.Random(rng.random())) for _ in range(CLIENTS)]
    waiting: list[deque[tuple[CallState, int]]] = [deque() for _ in clients]
    sent, good, calls = ([0] * (SECONDS + 1) for _ in range(3))
    events: list[tuple[float, int, str, int, int, CallState | None, bool]] = []
    number = 0

    def push(at: float, what: str, who: int, born: int, call: CallState | None, ok: bool = False) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (at, number, what, who, born, call, ok))

    def attempt(now: float, who: int, born: int, call: CallState) -> None:
        goes = clients[who].admit(call, now)
        if goes is None:
            waiting[who].append((call, born))
        elif goes:
            call.sent = now
            sent[int(now)] += 1
            known, ok = server.send(now)
            push(known, "ended", who, born, call, ok)

    for who in range(CLIENTS):
        push(rng.random(), "call", who, 0, None)
    while events:
        now, _, what, who, born, call, ok = heapq.heappop(events)
        if now >= SECONDS:
            break
        if call is None:
            calls[int(now)] += 1
            push(now + rng.expovariate(CALLS_PER_SECOND / CLIENTS), "call", who, 0, None)
            attempt(now, who, int(now), CallState(RetryState()))
        elif what == "again":
            attempt(now, who, born, call)
        else:
            again = clients[who].ended(call, now, ok)
            good[born] += ok
            if again is not None:
                push(again, "again", who, born, call)
            if waiting[who]:
                next_call, next_born = waiting[who].popleft()
                attempt(now, who, next_born, next_call)
    return Result(name, sent[:SECONDS], good[:SECONDS], calls[:SECONDS])


def table(results: list[Result]) -> str:
    lines = [
        "| | requests per call in the second minute | peak requests per second | time to recover | calls answered |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        recovery = f"more than {SECONDS - TROUBLE[1]} s" if result.recovery is None else f"{result.recovery} s"
        answered = sum(result.good) / sum(result.calls)
        lines.append(
            f"| {result.name} | {result.amplification:.2f} | {max(result.sent):,} | {recovery} | {answered:.0%} |"
        )
    return "\n".join(lines)


def plot(results: list[Result]) -> str:
    """Requests a second over time, as SVG."""
    width, height, left, top = 760, 300, 60, 20
    most = 1.05 * max(max(result.sent) for result in results)
    colours = ("#c0392b", "#e08e0b", "#1f6fb2")

    def place(second: float, value: float) -> str:
        return f"{left + second / SECONDS * width:.1f},{top + (1 - value / most) * height:.1f}"

    start, end = (left + second / SECONDS * width for second in TROUBLE)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {top + height + 50}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<rect x="{start:.1f}" y="{top}" width="{end - start:.1f}" height="{height}" fill="#eeeeee"/>',
        f'<text x="{start + 4:.1f}" y="{top + 14}" fill="#666">capacity 600/s</text>',
    ]
    for value in range(0, int(most), 1000):
        _, y = place(0, value).split(",")
        parts.append(f'<text x="{left - 6}" y="{y}" text-anchor="end">{value:,}</text>')
    for second in range(0, SECONDS + 1, 60):
        x, _ = place(second, 0).split(",")
        parts.append(f'<text x="{x}" y="{top + height + 16}" text-anchor="middle">{second} s</text>')
    for index, (result, colour) in enumerate(zip(results, colours, strict=True)):
        points = " ".join(place(second, value) for second, value in enumerate(result.sent))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{left + 220 * index}" y="{top + height + 40}" fill="{colour}">{result.name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table and the plot into docs/")
    write = parser.parse_args().write
    results = [
        simulate("retries at once", NaiveClient),
        simulate("backoff and jitter", PatientClient),
        simulate("ours", OurClient),
    ]
    print(table(results))
    if write:
        docs = Path(__file__).resolve().parent.parent / "docs"
        what = (__doc__ or "").split("\n\n")
        text = f"# Retry storm\n\n{what[2]}\n\n{what[3].rstrip()}\n\n{table(results)}\n\n"
        text += "![Requests per second in the three cases](retry-storm.svg)\n\n"
        text += "This page is written by `python benchmarks/retry_storm.py --write`.\n"
        (docs / "retry-storm.md").write_text(text, encoding="utf-8")
        (docs / "retry-storm.svg").write_text(plot(results), encoding="utf-8")


if __name__ == "__main__":
    main()
