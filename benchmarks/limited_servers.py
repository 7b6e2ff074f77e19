"""Simulated servers with limits, in virtual time: `SHAPES` has those of the table in docs/congestion-control.md."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from copy import deepcopy
from math import exp, inf, prod

from attrs import define, field, frozen


@frozen
class Reply:
    """ok, seconds until it arrives, and the hint of a refusal."""

    ok: bool
    delay: float
    retry_after: float | None = None


class Rule:
    """One limit of a server."""

    def seeded(self, seed: int) -> None:
        """Sets what depends on chance."""

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
    """`rate` is a number, or pairs of a time and the rate from then on. `full` is the share of the burst at the start."""

    def __init__(self, rate: float | Sequence[tuple[float, float]], burst: float, full: float = 1.0) -> None:
        self._rates = [(0.0, rate)] if isinstance(rate, (int, float)) else list(rate)
        self._burst, self._tokens = float(burst), full * burst
        self._at = 0.0

    def _rate(self, now: float) -> float:
        return next(rate for since, rate in reversed(self._rates) if since <= now)

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
    """`count` in each `period`. Windows begin `step` seconds earlier with each seed, or with the first request."""

    def __init__(self, count: int, period: float, *, step: float = 0.0, from_first: bool = False) -> None:
        self.count, self.period, self._step, self._from_first = count, period, step, from_first
        self._start = -inf if from_first else -period
        self._used = 0

    def seeded(self, seed: int) -> None:
        if not self._from_first:
            self._start = -(seed * self._step % self.period) - self.period

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
    """At most `most` requests at once."""

    def __init__(self, most: int) -> None:
        self.most, self.now = most, 0

    def allows(self, now: float) -> bool:
        return self.now < self.most

    def take(self, now: float) -> None:
        self.now += 1

    def left(self, now: float) -> None:
        self.now -= 1


class Chance(Rule):
    """Refuses this share by chance."""

    def __init__(self, share: float) -> None:
        self.share, self._random = share, random.Random(5)

    def seeded(self, seed: int) -> None:
        self._random = random.Random(seed)

    def allows(self, now: float) -> bool:
        return self._random.random() >= self.share


@define
class Server:
    """A server.

    Attributes:
        rules: all must allow a request.
        latency: mean seconds to an answer.
        spread: the latency varies by this share (uniform).
        tail: the standard deviation of the logarithm of the latency, for a long tail; 0 for none.
        refusal: seconds to a refusal; None for 20 ms, or the latency if that is shorter.
        hint: the Retry-After of a refusal: None, "right" (whole seconds, rounded up), or a number.
        queue: requests per second that it processes one after the other; the others wait.
        slots: requests that it works on at once; the others wait.
    """

    rules: Sequence[Rule] = ()
    latency: float = 0.05
    spread: float = 0.1
    tail: float = 0.0
    refusal: float | None = None
    hint: str | float | None = None
    queue: float | None = None
    slots: int | None = None
    _free_at: float = 0.0
    _busy: list[float] = field(factory=list)
    _random: random.Random = field(factory=lambda: random.Random(1))

    def seeded(self, seed: int) -> Server:
        """One like this, with its own state and chance."""
        own = deepcopy(self)
        own._random = random.Random(seed)
        for rule in own.rules:
            rule.seeded(seed)
        return own

    def arrive(self, now: float) -> Reply:
        refused = [rule for rule in self.rules if not rule.allows(now)]
        if refused:
            delay = self._refusal
            hint: float | None = None
            if self.hint == "right":
                hint = float(-(-max(rule.opens_in(now) for rule in refused) // 1))
            elif self.hint is not None:
                hint = float(self.hint)
            return Reply(False, delay * (1 + self.spread * (self._random.random() - 0.5)), hint)
        for rule in self.rules:
            rule.take(now)
        delay = self.latency * (1 + 2 * self.spread * (self._random.random() - 0.5))
        if self.tail:
            delay *= exp(self._random.gauss(-(self.tail**2) / 2, self.tail))
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

    @property
    def _refusal(self) -> float:
        return min(self.latency, 0.02) if self.refusal is None else self.refusal

    def left(self, now: float) -> None:
        for rule in self.rules:
            rule.left(now)

    def best(self, start: float, end: float, at_once: int) -> float:
        """The most answers that a client with so many places gets. A request that is refused by chance holds a place too."""
        passed = prod(1 - rule.share for rule in self.rules if isinstance(rule, Chance))
        found = [at_once / (self.latency + (1 / passed - 1) * self._refusal) * (end - start)]
        found += [rule.most / self.latency * (end - start) for rule in self.rules if isinstance(rule, Cap)]
        if self.queue is not None:
            found.append(self.queue * (end - start))
        if self.slots is not None:
            found.append(self.slots / self.latency * (end - start))
        return min(found + [rule.allowed(start, end) for rule in self.rules])


SHAPES: dict[str, Server] = {
    "bucket 100/s, burst 20": Server([Bucket(100, 20)]),
    "the same, Retry-After: 1": Server([Bucket(100, 20)], hint=1),
    "the same, Retry-After: 3600": Server([Bucket(100, 20)], hint=3600),
    "strict 100/s, burst 1": Server([Bucket(100, 1)]),
    "bucket 2,000/s, burst 20": Server([Bucket(2000, 20)]),
    "bucket 4,500/s, burst 100, answers in 5 ms": Server([Bucket(4500, 100)], latency=0.005),
    "bucket 1,000/s, burst 10, answers in 5 ms": Server([Bucket(1000, 10)], latency=0.005),
    "bucket 300/s, burst 30, answers in 0.5 s": Server([Bucket(300, 30)], latency=0.5),
    "bucket 20/s, burst 20, answers in 1 s": Server([Bucket(20, 20)], latency=1.0),
    "the same, refusals in 1 s": Server([Bucket(20, 20)], latency=1.0, refusal=1.0),
    "bucket 20/s, burst 20, refusals in 3 s": Server([Bucket(20, 20)], latency=0.2, refusal=3.0),
    "bucket 20/s, burst 4, answers in 5 s": Server([Bucket(20, 4)], latency=5.0),
    "bucket 30/s, burst 1, all in 5 s": Server([Bucket(30, 1)], latency=5.0, refusal=5.0),
    "bucket 5/s, burst 5": Server([Bucket(5, 5)]),
    "strict 8/s, answers in 0.5 s": Server([Bucket(8, 1)], latency=0.5),
    "bucket 1/s, burst 5": Server([Bucket(1, 5)]),
    "strict 1/s": Server([Bucket(1, 1)]),
    "100 in each second": Server([Window(100, 1.0)]),
    "200 in each second, other phase": Server([Window(200, 1.0, step=0.37)]),
    "100 in each second, answers in 0.5 s": Server([Window(100, 1.0)], latency=0.5),
    "1,000 in each second": Server([Window(1000, 1.0)]),
    "50 in each 10 s": Server([Window(50, 10.0, step=3.7)]),
    "1,000 in each 10 s": Server([Window(1000, 10.0, step=3.7)]),
    "600 a minute": Server([Window(600, 60.0)]),
    "600 a minute, other phase": Server([Window(600, 60.0, step=17.0)]),
    "600 a minute, right hints": Server([Window(600, 60.0)], hint="right"),
    "600 a minute, Retry-After: 3600": Server([Window(600, 60.0)], hint=3600),
    "600 a minute from the first request": Server([Window(600, 60.0, from_first=True)]),
    "2,000 a day": Server([Window(2000, 86400.0)]),
    "100 in any second": Server([Sliding(100, 1.0)]),
    "100 in any 10 s": Server([Sliding(100, 10.0)]),
    "600 in any minute": Server([Sliding(600, 60.0)]),
    "bucket 100/s and 3,000 a minute": Server([Bucket(100, 20), Window(3000, 60.0)]),
    "30 at once, answers in 0.2 s": Server([Cap(30)], latency=0.2),
    "30 at once, answers in 0.1 to 0.3 s": Server([Cap(30)], latency=0.2, spread=0.5),
    "10 at once, answers in 5 s": Server([Cap(10)], latency=5.0),
    "10 at once, all in 1 s": Server([Cap(10)], latency=1.0, refusal=1.0),
    "200/s, after 1 min 50/s, after 3 min 400/s": Server([Bucket([(0, 200), (60, 50), (180, 400)], 20)]),
    "10/s, after 1 min 100/s": Server([Bucket([(0, 10), (60, 100)], 10)]),
    "a queue of 300/s": Server(queue=300.0),
    "20 at once, the others queue, answers in 1 s": Server(slots=20, latency=1.0),
    "bucket 100/s, answers in 0.2 s, long tail": Server([Bucket(100, 20)], latency=0.2, tail=1.2),
    "no limit, answers in 1 s, long tail": Server(latency=1.0, tail=1.2),
    "no limit, answers in 1 s": Server(latency=1.0),
    "no limit, 0.5 % refused by chance, answers in 0.2 s": Server([Chance(0.005)], latency=0.2),
    "no limit, 1 % refused by chance, answers in 0.2 s": Server([Chance(0.01)], latency=0.2),
    "no limit, 2 % refused by chance, answers in 0.2 s": Server([Chance(0.02)], latency=0.2),
    "no limit, 3 % refused by chance, answers in 0.2 s": Server([Chance(0.03)], latency=0.2),
    "bucket 200/s, and 2 % refused by chance": Server([Bucket(200, 20), Chance(0.02)]),
    "bucket 100/s, and 0.5 % refused by chance": Server([Bucket(100, 20), Chance(0.005)]),
}
