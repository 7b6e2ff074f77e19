"""How much of an API's limit a client uses, for many kinds of limits."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from math import inf

from attrs import define, field, frozen

from flinks_async.config import Adaptive
from flinks_async.limits.concurrency import make_concurrency
from flinks_async.limits.pace import Pace

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

    adaptive: Adaptive
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
    events: list[tuple[float, int, str, int, tuple]] = []
    count = 0

    def push(at: float, what: str, who: int, data: tuple = ()) -> None:
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
            client.in_use -= 1
            if reply.ok:
                server.left(now)
                client.done += 1
                client.ok_times.append(now)
                client.finished = now
                client.concurrency.answered(now - sent, now, client.in_use + 1)
                client.pace.succeeded(number, now, sent=sent, in_flight=in_flight)
            else:
                client.refused += 1
                client.pace.refused(
                    number,
                    now,
                    sent=sent,
                    in_flight=in_flight,
                    retry_after=reply.retry_after,
                    wall=now,
                    rate=client.rate(now),
                )
            client.concurrency.bound(client.pace.at_once)
        pump(who, now)
        # all clients may go on when a slot of the server is free; each is woken by its own events only
