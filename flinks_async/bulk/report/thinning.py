"""Many intervals as few points, so that a week is as quick to look at as a minute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from attrs import frozen

from .intervals import Interval
from .timeline import Segment, Timeline


@frozen
class Spread:
    """Smallest, mean and largest of several values."""

    low: float
    mean: float
    high: float


@frozen
class Point:
    """Some intervals of one run, one after the other.

    Attributes:
        run: which.
        start, end: on the axis of the timeline.
        rate, p50, p95, in_flight, limit: of the intervals, weighted by their length; None without any value.
        requests, retries, throttled, failed: a second.
        paused: share of the time in which requests were held back.
        fetched: tokens of the job that have arrived at the end.
    """

    run: int
    start: float
    end: float
    rate: Spread
    p50: Spread | None
    p95: Spread | None
    in_flight: Spread
    limit: Spread
    requests: float
    retries: float
    throttled: float
    failed: float
    paused: float
    fetched: float

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2


def thin(intervals: Iterable[Interval], timeline: Timeline, most: int) -> list[Point]:
    """At most `most` points, plus one for each run; in the order of the axis.

    Intervals of runs that are not on the timeline are left out.
    """
    by_run: dict[int, list[Interval]] = {segment.run: [] for segment in timeline.segments}
    for interval in intervals:
        if interval.run in by_run:
            by_run[interval.run].append(interval)
    points: list[Point] = []
    for segment in timeline.segments:
        share = segment.seconds / timeline.running if timeline.running else 0.0
        points += _thin_run(by_run[segment.run], segment, max(1, int(most * share)))
    return points


def _thin_run(intervals: Sequence[Interval], segment: Segment, most: int) -> list[Point]:
    if len(intervals) <= most:
        return [_point([interval], segment) for interval in intervals]
    width = segment.seconds / most

    def bin_of(interval: Interval) -> int:
        return min(most - 1, int((interval.start + interval.end) / 2 / width))

    return [_point(list(group), segment) for _, group in groupby(intervals, bin_of)]


def _point(group: Sequence[Interval], segment: Segment) -> Point:
    last = group[-1]
    seconds = sum(interval.seconds for interval in group)
    return Point(
        segment.run,
        segment.at + group[0].start,
        segment.at + last.end,
        rate=_spread((i.rate, i.seconds) for i in group) or Spread(0, 0, 0),
        p50=_spread((i.p50, i.seconds) for i in group if i.p50 is not None),
        p95=_spread((i.p95, i.seconds) for i in group if i.p95 is not None),
        in_flight=_spread((i.in_flight, i.seconds) for i in group) or Spread(0, 0, 0),
        limit=_spread((i.limit, i.seconds) for i in group) or Spread(0, 0, 0),
        requests=sum(i.requests for i in group) / seconds,
        retries=sum(i.retries for i in group) / seconds,
        throttled=sum(i.throttled for i in group) / seconds,
        failed=sum(i.failed for i in group) / seconds,
        paused=sum(i.seconds for i in group if i.paused) / seconds,
        fetched=last.fetched,
    )


def _spread(weighted: Iterable[tuple[float, float]]) -> Spread | None:
    """Of (value, weight), in any order."""
    pairs = list(weighted)
    if not pairs:
        return None
    values = [value for value, _ in pairs]
    mean = sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
    return Spread(min(values), mean, max(values))
