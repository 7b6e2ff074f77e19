"""Times in little memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, Literal

from attrs import asdict, evolve, field, frozen

from ..observe import ClientStats

# [flinks_async.bulk.figures] How far a run is, as counts that can be added up.

# [flinks_async.bulk.progress] How far a job is, at one moment.


_SMALLEST: Final = 1e-4

_GROWTH: Final = math.log(1.05)

_PER_BUCKET: Final = 1 / _GROWTH

_log = math.log


class Histogram:
    """Times in buckets that are 5 % apart, so that a million of them take no memory."""

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}

    def add(self, seconds: float) -> None:
        bucket = int(_log(seconds / _SMALLEST) * _PER_BUCKET) + 1 if seconds > _SMALLEST else 0
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    @classmethod
    def sum_of(cls, parts: Iterable[Histogram]) -> Histogram:
        """All their times in one."""
        whole = cls()
        for part in parts:
            for bucket, count in part._buckets.items():
                whole._buckets[bucket] = whole._buckets.get(bucket, 0) + count
        return whole

    def percentile(self, share: float) -> float | None:
        """The time that this share of all stays under; the upper end of its bucket. None without any."""
        rank = math.ceil(share * sum(self._buckets.values()))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return _SMALLEST * math.exp(bucket * _GROWTH)
        return None


@frozen
class Figures:
    """Counts of one fetcher, or the sum of several. Plain data, so it may go anywhere.

    Attributes:
        fetched, failed: tokens.
        again: those of them that had failed in an earlier round.
        size: bytes of answers, as they came.
        requests, retries, throttled, in_flight, limit, held_back: as in `ClientStats`.
        times: seconds from sending to the last byte, lately.
    """

    fetched: int = 0
    failed: int = 0
    again: int = 0
    size: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    in_flight: int = 0
    limit: int = 0
    held_back: float = 0.0
    times: Histogram = field(factory=Histogram)

    def with_stats(self, clients: Iterable[ClientStats]) -> Figures:
        """The same with the counts of clients."""
        stats = list(clients)
        return evolve(
            self,
            requests=sum(one.requests for one in stats),
            retries=sum(one.retries for one in stats),
            throttled=sum(one.throttled for one in stats),
            in_flight=sum(one.requests_in_flight for one in stats),
            limit=sum(one.limit for one in stats),
            held_back=max((one.held_back for one in stats), default=0.0),
        )


def sum_of(parts: Iterable[Figures]) -> Figures:
    """All of them together; held back is as long as the longest."""
    all_ = list(parts)
    return Figures(
        fetched=sum(one.fetched for one in all_),
        failed=sum(one.failed for one in all_),
        again=sum(one.again for one in all_),
        size=sum(one.size for one in all_),
        requests=sum(one.requests for one in all_),
        retries=sum(one.retries for one in all_),
        throttled=sum(one.throttled for one in all_),
        in_flight=sum(one.in_flight for one in all_),
        limit=sum(one.limit for one in all_),
        held_back=max((one.held_back for one in all_), default=0.0),
        times=Histogram.sum_of(one.times for one in all_),
    )


Phase = Literal["fetching", "draining", "over"]


@frozen
class Progress:
    """Figures of a run as they stand. Of the job: `total`, `fetched`, `failed`; of this run: the rest.

    Attributes:
        phase: `draining` once no more tokens are taken.
        total: tokens of the job, retries not counted twice.
        fetched: tokens with an answer.
        failed: tokens that were tried and have none.
        requests, retries, throttled: sent, of these repeated, and of these answered with "slow down".
        in_flight: requests on the wire.
        limit: requests that may be on the wire at once.
        held_back: seconds for which nothing is sent, since the instance is down or asked for it.
        p50, p95: seconds from sending to the last byte, of the answers since the last minute began; None without any.
        rate: tokens a second, over the last 10 seconds.
        eta: seconds until the end at that rate; None without one.
        seconds: since this run began.
        size: bytes of answers in this run, as they came.
    """

    phase: Phase
    total: int
    fetched: int
    failed: int
    requests: int
    retries: int
    throttled: int
    in_flight: int
    limit: int
    held_back: float
    p50: float | None
    p95: float | None
    rate: float
    eta: float | None
    seconds: float
    size: int

    @property
    def done(self) -> int:
        """Tokens with an outcome."""
        return self.fetched + self.failed

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON, times rounded to milliseconds."""
        plain = {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return {**plain, "done": self.done}


class Rate:
    """Tokens a second over the last seconds."""

    def __init__(self, over: float = 10.0) -> None:
        self._over = over
        self._points: list[tuple[float, int]] = []

    def at(self, now: float, done: int) -> float:
        points = self._points
        points.append((now, done))
        while len(points) > 2 and points[1][0] <= now - self._over:
            del points[0]
        then, before = points[0]
        return (done - before) / (now - then) if now > then else 0.0
