"""What an observer can tell about a run: retries, throttling, response times."""

from __future__ import annotations

from attrs import define, field

from ..bulk.progress import Histogram
from ..observe import AttemptFinished, Event, RetryScheduled
from ..verdict import Kind


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
    minutes = int(seconds) // 60
    return f"{minutes} min {int(seconds) % 60} s" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"
