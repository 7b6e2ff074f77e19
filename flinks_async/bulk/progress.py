"""How far a job is, at one moment."""

from __future__ import annotations

from typing import Any, Literal

from attrs import asdict, frozen

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
