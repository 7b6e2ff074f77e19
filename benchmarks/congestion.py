"""How much of an API's limit a client uses, for many kinds of limits, beside other ways to send.

    python benchmarks/congestion.py            # prints the table; takes a few minutes
    python benchmarks/congestion.py --write    # also writes it and the plots into docs/congestion-control.md

Simulated servers in virtual time, without a network. `ours` is the code of this package that decides (`limits.pace` and
`limits.concurrency`) with the settings of `config.bulk()`. The others are loops of workers with full jitter and 6 attempts, and
the same with the rate limiter of AWS' adaptive retry mode (CUBIC). Random numbers are seeded.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from limited_servers import SHAPES, Bucket, Reply, Server

from flinks_async import config
from flinks_async.config import Adaptive
from flinks_async.limits.concurrency import make_concurrency
from flinks_async.limits.pace import AttemptRecord, Pace

MOST = 200  # requests at once, of every client
BULK = config.bulk().limits.concurrency

# --- the pure controller against a server ---


@define(slots=False)
class Client:
    """One client in the simulation."""

    adaptive: Adaptive | int
    begins: float = 0.0
    tokens: float = inf
    seed: int = 1
    in_use: int = 0
    sends: int = 0
    refused: int = 0
    done: int = 0
    finished: float = inf
    ok_times: list[float] = field(factory=list)
    rates: list[tuple[float, float]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.concurrency = make_concurrency(self.adaptive)
        self.pace = Pace(self.adaptive)
        self.random = random.Random(self.seed)
        self.wake_at = inf

    def rate(self, now: float) -> float:
        recent = 0
        for at in reversed(self.ok_times):
            if at < now - 1.0:
                break
            recent += 1
        return max(1.0, recent / min(1.0, max(0.05, now - self.begins)))


def simulate(server: Server, clients: Sequence[Client], seconds: float = 120.0) -> None:
    events: list[tuple[float, int, str, int, Any]] = []
    count = 0

    def push(at: float, what: str, who: int, data: Any = None) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (at, count, what, who, data))

    def pump(who: int, now: float) -> None:
        client = clients[who]
        pace, concurrency = client.pace, client.concurrency
        while client.done + client.in_use < client.tokens:
            limit = concurrency.limit
            if client.in_use >= limit and not (pace.bounds and concurrency.widen(client.in_use + 1)):
                return
            wait = pace.wait(now)
            if wait > 0:
                if wait < inf and (client.wake_at > now + wait + 1e-9 or client.wake_at <= now):
                    client.wake_at = now + wait
                    push(now + wait, "wake", who)
                return
            client.in_use += 1
            client.sends += 1
            pace.took(client.sends, now)
            reply = server.arrive(now)
            push(now + reply.delay, "reply", who, (reply, now, client.sends, client.in_use))

    for who, client in enumerate(clients):
        push(client.begins, "wake", who)
    while events:
        now, _, what, who, data = heapq.heappop(events)
        if now > seconds:
            break
        client = clients[who]
        if what == "reply":
            reply, sent, number, in_flight = data
            record = AttemptRecord(sent, number, in_flight, ended=now, retry_after=reply.retry_after)
            client.in_use -= 1
            if reply.ok:
                server.left(now)
                client.done += 1
                client.ok_times.append(now)
                client.finished = now
                client.concurrency.answered(now - sent, now, client.in_use + 1)
                client.pace.succeeded(record)
            else:
                client.refused += 1
                client.pace.refused(record, wall=now, rate=client.rate(now))
            client.concurrency.bound(client.pace.cap.at_once)
        pump(who, now)


# --- the others ---


def naive(server: Server, workers: int, seconds: float, *, seed: int = 1, aws: bool = False) -> tuple[int, int, int]:
    """A loop of workers with full jitter (6 attempts, 1 s base), or with the rate limiter of AWS' adaptive retry mode.

    Returns:
        Answers, refusals, and tokens that were given up.
    """
    rng, limiter = random.Random(seed), Cubic() if aws else None
    events: list[tuple[float, int, str, int, Reply | None]] = []
    attempts = [0] * workers
    ok = refused = lost = count = 0

    def push(at: float, what: str, who: int, reply: Reply | None = None) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (at, count, what, who, reply))

    def turn(now: float, who: int) -> None:
        wait = 0.0 if limiter is None else limiter.acquire(now)
        push(now + wait, "turn" if wait > 0 else "send", who)

    for who in range(workers):
        turn(0.0, who)
    while events:
        now, _, what, who, reply = heapq.heappop(events)
        if now > seconds:
            break
        if what == "turn":
            turn(now, who)
        elif reply is None:
            answer = server.arrive(now)
            push(now + answer.delay, "reply", who, answer)
        else:
            if limiter is not None:
                limiter.answered(now, throttled=not reply.ok)
            if reply.ok:
                server.left(now)
                ok += 1
                attempts[who] = 0
                turn(now, who)
                continue
            refused += 1
            attempts[who] += 1
            if attempts[who] >= 6:
                lost += 1
                attempts[who] = 0
                turn(now, who)
                continue
            delay = rng.random() * min(60.0, 2.0 ** (attempts[who] - 1))
            push(now + max(delay, reply.retry_after or 0.0), "turn", who)
    return ok, refused, lost


class Cubic:
    """The client rate limiter of botocore (`retries/adaptive.py`, `retries/throttling.py`, `retries/bucket.py`)."""

    SCALE, BETA, SMOOTH, SLICE, SLOWEST = 0.4, 0.7, 0.8, 0.5, 0.5

    def __init__(self) -> None:
        self.enabled = False
        self._rate = self._fill = self.SLOWEST
        self._next = 0.0
        self._tokens, self._at = 0.0, 0.0
        self._measured, self._slice, self._count = 0.0, 0.0, 0
        self._most, self._window, self._throttled = 0.0, 0.0, 0.0

    def acquire(self, now: float) -> float:
        if not self.enabled:
            return 0.0
        self._tokens = min(max(1.0, self._fill), self._tokens + (now - self._at) * self._fill)
        self._at = now
        if self._tokens < 1.0:
            return min(1.0, max(1e-3, (1.0 - self._tokens) / self._fill))
        self._tokens -= 1.0
        return 0.0

    def answered(self, now: float, *, throttled: bool) -> None:
        self._count += 1
        current = now // self.SLICE * self.SLICE
        if current > self._slice:
            rate = self._count / (current - self._slice)
            self._measured = rate * self.SMOOTH + self._measured * (1 - self.SMOOTH)
            self._slice, self._count = current, 0
        if throttled:
            rate = min(self._measured, self._fill) if self.enabled else self._measured
            self._most, self._throttled = rate, now
            self._window = (self._most * (1 - self.BETA) / self.SCALE) ** (1 / 3)
            new = rate * self.BETA
            if not self.enabled:
                self.enabled, self._at, self._tokens = True, now, 0.0
        else:
            new = self.SCALE * (now - self._throttled - self._window) ** 3 + self._most
        if self.enabled:
            self._fill = max(min(new, 2 * self._measured), self.SLOWEST)


# --- the table ---


@frozen
class Result:
    """The share of the best possible, requests for each answer, and answers a second over time."""

    share: float
    requests: float
    lost: int = 0
    per_second: tuple[int, ...] = ()


def seconds_of(name: str) -> float:
    return 300.0 if "3 min" in name else 120.0


def ours(name: str, seed: int = 1) -> Result:
    server, seconds = SHAPES[name].seeded(seed), seconds_of(name)
    client = Client(BULK, seed=seed)
    simulate(server, [client], seconds)
    counts = [0] * int(seconds)
    for at in client.ok_times:
        counts[min(int(at), int(seconds) - 1)] += 1
    best = server.best(0.0, seconds, MOST)
    return Result(client.done / best, (client.done + client.refused) / max(1, client.done), 0, tuple(counts))


def peer(name: str, workers: int, seed: int = 1, *, aws: bool = False) -> Result:
    server, seconds = SHAPES[name].seeded(seed), seconds_of(name)
    ok, refused, lost = naive(server, workers, seconds, seed=seed, aws=aws)
    return Result(ok / server.best(0.0, seconds, MOST), (ok + refused) / max(1, ok), lost)


def two_clients(rate: float, burst: float, later: float, seed: int = 1) -> tuple[float, float]:
    """The share of the second client 30 s after it came, and what both use of the limit."""
    server = Server([Bucket(rate, burst)]).seeded(seed)
    clients = [Client(BULK, seed=seed), Client(BULK, seed=seed + 10, begins=later)]
    simulate(server, clients, later + 60.0)
    first, second = (sum(at >= later + 30.0 for at in client.ok_times) for client in clients)
    return second / max(1, first + second), (first + second) / (30.0 * rate)


def cell(result: Result) -> str:
    text = f"{result.share:.2f}, {result.requests:.2f}"
    return f"{text}, {result.lost} lost" if result.lost else text


def table() -> str:
    lines = [
        "| server | ours | 20 workers, full jitter | 200 workers, full jitter | AWS adaptive, 200 workers |",
        "|---|---|---|---|---|",
    ]
    for name in SHAPES:
        mine = sorted((ours(name, seed) for seed in (1, 2, 3)), key=lambda one: one.share)
        row = [f"**{mine[0].share:.2f}** to {mine[2].share:.2f}, {max(one.requests for one in mine):.3f}"]
        row += [cell(peer(name, 20)), cell(peer(name, MOST)), cell(peer(name, MOST, aws=True))]
        lines.append(f"| {name} | {' | '.join(row)} |")
    lines += [
        "",
        "| two clients on one limit | share of the second, 30 s after it came | both, of the limit |",
        "|---|---|---|",
    ]
    for rate, burst in ((10, 10), (20, 20), (50, 10), (100, 1), (100, 20), (100, 100), (300, 30), (1000, 50)):
        for later in (0.0, 60.0):
            found = [two_clients(rate, burst, later, seed) for seed in (1, 2, 3, 4, 5)]
            when = "together" if not later else "one a minute later"
            shares = ", ".join(f"{share:.2f}" for share, _ in found)
            lines.append(f"| {rate}/s, burst {burst}, {when} | {shares} | {min(used for _, used in found):.2f} |")
    return "\n".join(lines)


PLOTTED = (
    "bucket 100/s, burst 20",
    "bucket 2,000/s, burst 20",
    "200/s, after 1 min 50/s, after 3 min 400/s",
    "600 a minute",
    "30 at once, answers in 0.2 s",
    "no limit, 0.5 % refused by chance, answers in 0.2 s",
)


def plot() -> str:
    """Answers a second (blue) and what the server allows (grey), as SVG."""
    width, height, space = 380, 120, 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (width + space)} {3 * (height + space)}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for index, name in enumerate(PLOTTED):
        left, top = 40 + index % 2 * (width + space), 25 + index // 2 * (height + space)
        counts, server = ours(name).per_second, SHAPES[name].seeded(1)
        allowed = [server.best(second, second + 1.0, MOST) for second in range(len(counts))]
        if "minute" in name:
            allowed = [0.0 if second % 60 else one for second, one in enumerate(allowed)]
        most = 1.1 * max(*counts, *allowed)
        parts.append(f'<text x="{left}" y="{top - 8}">{name}: up to {max(counts):,}/s</text>')
        parts.append(
            f'<text x="{left + width}" y="{top + height + 14}" text-anchor="end">seconds, 0 to {len(counts)}</text>'
        )
        middle = f"{left - 8},{top + height / 2}"
        parts.append(
            f'<text transform="translate({middle}) rotate(-90)" text-anchor="middle">answers/s, 0 to {most:,.0f}</text>'
        )
        parts.append(f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#ddd"/>')
        for values, colour in ((allowed, "#999999"), (counts, "#1f6fb2")):
            points = " ".join(
                f"{left + at / len(counts) * width:.1f},{top + (1 - min(1.0, value / most)) * height:.1f}"
                for at, value in enumerate(values)
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
    return "\n".join([*parts, "</svg>", ""])


MARK = "<!-- table -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table and the plots into docs/")
    options = parser.parse_args()
    text = table()
    print(text)
    if options.write:
        docs = Path(__file__).resolve().parent.parent / "docs"
        page = docs / "congestion-control.md"
        before, _, rest = page.read_text(encoding="utf-8").partition(MARK)
        _, _, after = rest.partition(MARK)
        page.write_text(f"{before}{MARK}\n{text}\n{MARK}{after}", encoding="utf-8")
        (docs / "congestion-control.svg").write_text(plot(), encoding="utf-8")


if __name__ == "__main__":
    main()
