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
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from flinks_async import config
from flinks_async.config import Adaptive
from flinks_async.limits.concurrency import make_concurrency
from flinks_async.limits.pace import AttemptRecord, Pace

MOST = 200  # requests at once, of every client


# --- servers ---


@frozen
class Reply:
    """ok, seconds until it arrives, and the hint of a refusal."""

    ok: bool
    delay: float
    retry_after: float | None = None


class Rule:
    """One limit of a server."""

    def allows(self, now: float) -> bool:
        return True

    def take(self, now: float) -> None: ...

    def left(self, now: float) -> None:
        """An answer is complete."""

    def opens_in(self, now: float) -> float:
        """Seconds until the next request may be allowed."""
        return 0.0

    def allowed(self, start: float, end: float) -> float:
        """Requests that it allows between two times."""
        return inf


class Bucket(Rule):
    """`rate` may be a function of time."""

    def __init__(self, rate: float | Callable[[float], float], burst: float) -> None:
        self._rate = rate if callable(rate) else (lambda _: rate)
        self._burst = self._tokens = float(burst)
        self._at = 0.0

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate(now))
        self._at = now

    def allows(self, now: float) -> bool:
        self._fill(now)
        return self._tokens >= 1.0 - 1e-9

    def take(self, now: float) -> None:
        self._tokens -= 1.0

    def opens_in(self, now: float) -> float:
        return max(0.0, (1.0 - self._tokens) / self._rate(now))

    def allowed(self, start: float, end: float) -> float:
        steps = max(1, int((end - start) * 20))
        width = (end - start) / steps
        return sum(self._rate(start + (i + 0.5) * width) for i in range(steps)) * width


class Window(Rule):
    """`count` in each `period`; windows begin at `phase`, or with the first request if that is None."""

    def __init__(self, count: int, period: float, phase: float | None = 0.0) -> None:
        self.count, self.period, self._from_first = count, period, phase is None
        self._start = -inf if phase is None else phase - period
        self._used = 0
        self._starts: list[float] = []

    def _roll(self, now: float) -> None:
        if now >= self._start + self.period:
            if self._from_first:
                return
            self._start += ((now - self._start) // self.period) * self.period
            self._used = 0

    def allows(self, now: float) -> bool:
        self._roll(now)
        return self._used < self.count or now >= self._start + self.period

    def take(self, now: float) -> None:
        if now >= self._start + self.period:
            self._start, self._used = now, 0
            self._starts.append(now)
        self._used += 1

    def opens_in(self, now: float) -> float:
        return max(0.0, self._start + self.period - now)

    def allowed(self, start: float, end: float) -> float:
        if self._from_first:
            return self.count * max(1.0, -(-(end - start) // self.period))
        first = (start - self._start) // self.period
        last = (end - 1e-9 - self._start) // self.period
        return self.count * (last - first + 1)


class Sliding(Rule):
    """`count` in any `period`."""

    def __init__(self, count: int, period: float) -> None:
        self.count, self.period = count, period
        self._times: deque[float] = deque()

    def allows(self, now: float) -> bool:
        while self._times and self._times[0] <= now - self.period:
            self._times.popleft()
        return len(self._times) < self.count

    def take(self, now: float) -> None:
        self._times.append(now)

    def opens_in(self, now: float) -> float:
        return max(0.0, self._times[0] + self.period - now) if len(self._times) >= self.count else 0.0

    def allowed(self, start: float, end: float) -> float:
        return self.count * max(1.0, (end - start) / self.period)


class Cap(Rule):
    def __init__(self, most: int) -> None:
        self.most, self.now = most, 0

    def allows(self, now: float) -> bool:
        return self.now < self.most

    def take(self, now: float) -> None:
        self.now += 1

    def left(self, now: float) -> None:
        self.now -= 1


class Chance(Rule):
    def __init__(self, share: float, seed: int = 5) -> None:
        self._share, self._random = share, random.Random(seed)

    def allows(self, now: float) -> bool:
        return self._random.random() >= self._share


@define
class Shape:
    """A server.

    Attributes:
        rules: all must allow a request.
        latency: mean seconds to an answer.
        spread: the latency varies by this share (uniform).
        refusal: seconds to a refusal; None for 20 ms, or the latency if that is shorter.
        hint: the Retry-After of a refusal: None, "right" (whole seconds, rounded up), or a number.
        queue: requests per second that it processes one after the other; the others wait.
        slots: requests that it works on at once; the others wait.
    """

    rules: Sequence[Rule] = ()
    latency: float = 0.05
    spread: float = 0.1
    refusal: float | None = None
    hint: str | float | None = None
    queue: float | None = None
    slots: int | None = None
    seed: int = 1
    _free_at: float = 0.0
    _busy: list[float] = field(factory=list)
    _random: random.Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def arrive(self, now: float) -> Reply:
        refused = [rule for rule in self.rules if not rule.allows(now)]
        if refused:
            delay = min(self.latency, 0.02) if self.refusal is None else self.refusal
            hint: float | None = None
            if self.hint == "right":
                hint = float(-(-max(rule.opens_in(now) for rule in refused) // 1))
            elif self.hint is not None:
                hint = float(self.hint)
            return Reply(False, delay * (1 + self.spread * (self._random.random() - 0.5)), hint)
        for rule in self.rules:
            rule.take(now)
        delay = self.latency * (1 + 2 * self.spread * (self._random.random() - 0.5))
        if self.queue is not None:
            start = max(now, self._free_at)
            self._free_at = start + 1 / self.queue
            delay += start - now
        if self.slots is not None:
            start = now
            if len(self._busy) >= self.slots:
                start = max(now, heapq.heappop(self._busy))
            heapq.heappush(self._busy, start + delay)
            delay += start - now
        return Reply(True, delay)

    def left(self, now: float) -> None:
        for rule in self.rules:
            rule.left(now)

    def best(self, start: float, end: float, at_once: int) -> float:
        found = [at_once / self.latency * (end - start)]
        found += [rule.most / self.latency * (end - start) for rule in self.rules if isinstance(rule, Cap)]
        if self.queue is not None:
            found.append(self.queue * (end - start))
        if self.slots is not None:
            found.append(self.slots / self.latency * (end - start))
        return min(found + [rule.allowed(start, end) for rule in self.rules])


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


def simulate(server: Shape, clients: Sequence[Client], seconds: float = 120.0, network: float = 0.0) -> None:
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
            if client.in_use >= limit and not (pace.starting and concurrency.widen(client.in_use + 1)):
                return
            wait = pace.wait(now)
            if wait > 0:
                if wait < inf and (client.wake_at > now + wait + 1e-9 or client.wake_at <= now):
                    client.wake_at = now + wait
                    push(now + wait, "wake", who)
                return
            client.in_use += 1
            client.sends += 1
            pace.took(client.sends, now, client.in_use)
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


def naive(server: Shape, workers: int, seconds: float, *, seed: int = 1, aws: bool = False) -> tuple[int, int, int]:
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

BULK = config.bulk().limits.concurrency


def _changing(now: float) -> float:
    return 200.0 if now < 60 else 50.0 if now < 180 else 400.0


SHAPES: dict[str, Callable[[int], Shape]] = {
    "bucket 100/s, burst 20": lambda seed: Shape([Bucket(100, 20)], seed=seed),
    "the same, Retry-After: 1": lambda seed: Shape([Bucket(100, 20)], hint=1, seed=seed),
    "strict 100/s, burst 1": lambda seed: Shape([Bucket(100, 1)], seed=seed),
    "bucket 2,000/s, burst 20": lambda seed: Shape([Bucket(2000, 20)], seed=seed),
    "bucket 4,500/s, burst 100, answers in 5 ms": lambda seed: Shape([Bucket(4500, 100)], latency=0.005, seed=seed),
    "bucket 1,000/s, burst 10, answers in 5 ms": lambda seed: Shape([Bucket(1000, 10)], latency=0.005, seed=seed),
    "bucket 300/s, burst 30, answers in 0.5 s": lambda seed: Shape([Bucket(300, 30)], latency=0.5, seed=seed),
    "bucket 20/s, burst 20, answers in 1 s": lambda seed: Shape([Bucket(20, 20)], latency=1.0, seed=seed),
    "the same, refusals in 1 s": lambda seed: Shape([Bucket(20, 20)], latency=1.0, refusal=1.0, seed=seed),
    "bucket 20/s, burst 20, refusals in 3 s": lambda seed: Shape([Bucket(20, 20)], latency=0.2, refusal=3.0, seed=seed),
    "bucket 30/s, burst 1, all in 5 s": lambda seed: Shape([Bucket(30, 1)], latency=5.0, refusal=5.0, seed=seed),
    "bucket 5/s, burst 5": lambda seed: Shape([Bucket(5, 5)], seed=seed),
    "strict 8/s, answers in 0.5 s": lambda seed: Shape([Bucket(8, 1)], latency=0.5, seed=seed),
    "bucket 1/s, burst 5": lambda seed: Shape([Bucket(1, 5)], seed=seed),
    "strict 1/s": lambda seed: Shape([Bucket(1, 1)], seed=seed),
    "100 in each second": lambda seed: Shape([Window(100, 1.0)], seed=seed),
    "200 in each second, other phase": lambda seed: Shape([Window(200, 1.0, -(seed * 0.37 % 1))], seed=seed),
    "100 in each second, answers in 0.5 s": lambda seed: Shape([Window(100, 1.0)], latency=0.5, seed=seed),
    "1,000 in each second": lambda seed: Shape([Window(1000, 1.0)], seed=seed),
    "50 in each 10 s": lambda seed: Shape([Window(50, 10.0, -(seed * 3.7 % 10))], seed=seed),
    "1,000 in each 10 s": lambda seed: Shape([Window(1000, 10.0, -(seed * 3.7 % 10))], seed=seed),
    "600 a minute": lambda seed: Shape([Window(600, 60.0)], seed=seed),
    "600 a minute, other phase": lambda seed: Shape([Window(600, 60.0, -(seed * 17.0 % 60))], seed=seed),
    "600 a minute, right hints": lambda seed: Shape([Window(600, 60.0)], hint="right", seed=seed),
    "600 a minute from the first request": lambda seed: Shape([Window(600, 60.0, None)], seed=seed),
    "2,000 a day": lambda seed: Shape([Window(2000, 86400.0)], seed=seed),
    "100 in any second": lambda seed: Shape([Sliding(100, 1.0)], seed=seed),
    "100 in any 10 s": lambda seed: Shape([Sliding(100, 10.0)], seed=seed),
    "600 in any minute": lambda seed: Shape([Sliding(600, 60.0)], seed=seed),
    "bucket 100/s and 3,000 a minute": lambda seed: Shape([Bucket(100, 20), Window(3000, 60.0)], seed=seed),
    "30 at once, answers in 0.2 s": lambda seed: Shape([Cap(30)], latency=0.2, seed=seed),
    "30 at once, answers in 0.1 to 0.3 s": lambda seed: Shape([Cap(30)], latency=0.2, spread=0.5, seed=seed),
    "10 at once, answers in 5 s": lambda seed: Shape([Cap(10)], latency=5.0, seed=seed),
    "10 at once, all in 1 s": lambda seed: Shape([Cap(10)], latency=1.0, refusal=1.0, seed=seed),
    "200/s, after 1 min 50/s, after 3 min 400/s": lambda seed: Shape([Bucket(_changing, 20)], seed=seed),
    "10/s, after 1 min 100/s": lambda seed: Shape([Bucket(lambda t: 10.0 if t < 60 else 100.0, 10)], seed=seed),
    "a queue of 300/s": lambda seed: Shape(queue=300.0, seed=seed),
    "20 at once, the others queue, answers in 1 s": lambda seed: Shape(slots=20, latency=1.0, seed=seed),
    "no limit, answers in 1 s": lambda seed: Shape(latency=1.0, seed=seed),
    "no limit, 0.5 % refused by chance, answers in 0.2 s": lambda seed: Shape(
        [Chance(0.005, seed)], latency=0.2, seed=seed
    ),
    "no limit, 1 % refused by chance, answers in 0.2 s": lambda seed: Shape(
        [Chance(0.01, seed)], latency=0.2, seed=seed
    ),
    "bucket 100/s, and 0.5 % refused by chance": lambda seed: Shape([Bucket(100, 20), Chance(0.005, seed)], seed=seed),
}


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
    server, seconds = SHAPES[name](seed), seconds_of(name)
    client = Client(BULK, seed=seed)
    simulate(server, [client], seconds)
    counts = [0] * int(seconds)
    for at in client.ok_times:
        counts[min(int(at), int(seconds) - 1)] += 1
    best = server.best(0.0, seconds, MOST)
    return Result(client.done / best, (client.done + client.refused) / max(1, client.done), 0, tuple(counts))


def peer(name: str, workers: int, seed: int = 1, *, aws: bool = False) -> Result:
    server, seconds = SHAPES[name](seed), seconds_of(name)
    ok, refused, lost = naive(server, workers, seconds, seed=seed, aws=aws)
    return Result(ok / server.best(0.0, seconds, MOST), (ok + refused) / max(1, ok), lost)


def two_clients(rate: float, burst: float, later: float, seed: int = 1) -> tuple[float, float]:
    """The share of the second client 30 s after it came, and what both use of the limit."""
    server = Shape([Bucket(rate, burst)], seed=seed)
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
        counts, server = ours(name).per_second, SHAPES[name](1)
        allowed = [server.best(second, second + 1.0, MOST) for second in range(len(counts))]
        if "minute" in name:
            allowed = [0.0 if second % 60 else one for second, one in enumerate(allowed)]
        most = 1.1 * max(*counts, *allowed)
        parts.append(f'<text x="{left}" y="{top - 8}">{name}, at most {max(counts):,} answers/s</text>')
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
