"""What an observer can tell about a run: retries, throttling, response times."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

from attrs import define, field

from ..classify import Kind
from ..observe import AttemptFinished, Event, RetryScheduled

_SMALLEST: Final = 1e-4
_GROWTH: Final = math.log(1.05)


class Histogram:
    """Times in buckets that are 5 % apart, so that a million of them take no memory."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        self._buckets[max(0, math.ceil(math.log(max(seconds, _SMALLEST) / _SMALLEST) / _GROWTH))] += 1

    def percentile(self, share: float) -> float | None:
        """The time that this share of all stays under; the upper end of its bucket. None without any."""
        rank = math.ceil(share * self._buckets.total())
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return _SMALLEST * math.exp(bucket * _GROWTH)
        return None


@define
class Metrics:
    """An observer that counts.

    Attributes:
        attempts: that ended.
        retried: attempts that were followed by another one.
        throttled: attempts that were throttled.
        times: of the attempts that were answered, from sending to the last byte.
    """

    attempts: int = 0
    retried: int = 0
    throttled: int = 0
    times: Histogram = field(factory=Histogram)

    def __call__(self, event: Event) -> None:
        if isinstance(event, RetryScheduled):
            self.retried += 1
        elif isinstance(event, AttemptFinished):
            self.attempts += 1
            if event.verdict is not None and event.verdict.kind is Kind.THROTTLED:
                self.throttled += 1
            if event.status is not None:
                self.times.add(event.wire_time)

    def percentiles(self, *shares: float) -> str:
        """Such as `p50 12 ms, p95 80 ms`; empty without any answer."""
        times = [(share, self.times.percentile(share)) for share in shares]
        return ", ".join(f"p{share * 100:g} {duration(time)}" for share, time in times if time is not None)


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
