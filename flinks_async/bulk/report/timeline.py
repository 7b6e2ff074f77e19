"""The runs of a job on one axis of time: intervals between samples, thinned to points, and labels.

The time between two runs is drawn as a gap that is shorter than it was. Many intervals become few points, so that the page
of a week is as quick to read as the page of a minute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from attrs import field, frozen

from ..counters import InstanceTrouble
from .words import utc

_GAP: Final = 0.04

_ALL_GAPS: Final = 0.3
"""The widest gap, and the widest sum of all gaps, as shares of the time in runs."""


@frozen
class Segment:
    """A run on the axis.

    Attributes:
        run: its number.
        started: seconds since 1970.
        seconds: its length; up to the last sample if the run was interrupted.
        at: its start on the axis.
    """

    run: int
    started: float
    seconds: float
    at: float = 0.0


@frozen
class Gap:
    """The time between two runs.

    Attributes:
        at, width: start and length on the axis.
        seconds: the real length.
    """

    at: float
    width: float
    seconds: float


@frozen
class Timeline:
    """Runs in order, each to scale.

    Attributes:
        length: length of the axis, at least 1 s, because an empty axis cannot be drawn.
    """

    segments: tuple[Segment, ...] = ()
    gaps: tuple[Gap, ...] = ()
    length: float = field(default=1.0)

    @property
    def running(self) -> float:
        """Seconds in runs."""
        return sum(segment.seconds for segment in self.segments)

    @property
    def between(self) -> float:
        """Seconds between runs."""
        return sum(gap.seconds for gap in self.gaps)

    def segment(self, run: int) -> Segment | None:
        return next((segment for segment in self.segments if segment.run == run), None)

    def time_at(self, position: float) -> float:
        """Seconds since 1970 for a position on the axis inside a run."""
        inside = [segment for segment in self.segments if segment.at <= position] or list(self.segments[:1])
        return inside[-1].started + position - inside[-1].at if inside else 0.0


def timeline(runs: Sequence[Mapping[str, Any]], lasted: Mapping[int, float]) -> Timeline:
    """Places runs on the axis.

    Args:
        runs: rows of `Ledger.runs`.
        lasted: seconds to the last sample, by run.
    """
    found = [Segment(run["run"], run["started"], _seconds(run, lasted)) for run in runs]
    running = sum(segment.seconds for segment in found)
    widest = min(_GAP, _ALL_GAPS / max(1, len(found) - 1)) * max(running, 1.0)
    segments: list[Segment] = []
    gaps: list[Gap] = []
    at = 0.0
    for segment in found:
        if segments:
            before = segments[-1]
            stopped = segment.started - before.started - before.seconds
            if stopped > 0:
                gaps.append(Gap(at, min(stopped, widest), stopped))
                at += gaps[-1].width
        segments.append(Segment(segment.run, segment.started, segment.seconds, at))
        at += segment.seconds
    return Timeline(tuple(segments), tuple(gaps), max(at, 1.0))


def _seconds(run: Mapping[str, Any], lasted: Mapping[int, float]) -> float:
    if run["run"] in lasted:
        return lasted[run["run"]]
    return 0.0 if run["ended"] is None else max(0.0, run["ended"] - run["started"])


@frozen
class Interval:
    """The time between two samples of a run, or from its start to the first sample.

    Attributes:
        run: its number.
        start, end: seconds since the start of the run.
        rate: tokens per second.
        p50, p95: response times in seconds; None without answers.
        in_flight, limit: requests on the wire at its end, and the concurrency limit then.
        requests, retries, throttled: requests sent, retries among them, and throttled answers.
        paused: whether requests were held back at its end. Samples are taken at fixed times, so the share of samples
            in a pause is an unbiased estimate of the share of the time.
        fetched: tokens fetched by its end.
        failed: tokens that failed in it.
        troubles: the instances that had a problem at its end.
        learned, allowed: what refused requests had taught about the instances by its end, one line each, and the requests per
            second that they allow; None while unknown.
    """

    run: int
    start: float
    end: float
    rate: float
    p50: float | None
    p95: float | None
    in_flight: float
    limit: float
    requests: float
    retries: float
    throttled: float
    paused: bool
    fetched: float
    failed: float
    troubles: tuple[InstanceTrouble, ...] = ()
    learned: tuple[str, ...] = ()
    allowed: float | None = None

    @property
    def seconds(self) -> float:
        return self.end - self.start


def intervals(samples: Iterable[Mapping[str, Any]]) -> Iterator[Interval]:
    """Intervals from the samples of a ledger. Missing or invalid numbers count as 0; samples out of order are skipped."""
    before: Mapping[str, Any] = {}
    run = 0
    for sample in samples:
        if sample["run"] != run:
            run, before = sample["run"], {}
        start, end = _number(before, "seconds"), _number(sample, "seconds")
        if end <= start:
            continue
        yield Interval(
            run,
            start,
            end,
            rate=_number(sample, "rate"),
            p50=_time(sample, "p50"),
            p95=_time(sample, "p95"),
            in_flight=_number(sample, "in_flight"),
            limit=_number(sample, "limit"),
            requests=_grown(before, sample, "requests"),
            retries=_grown(before, sample, "retries"),
            throttled=_grown(before, sample, "throttled"),
            paused=_number(sample, "held_back") > 0,
            fetched=_number(sample, "fetched"),
            failed=_grown(before, sample, "failed") if before else 0.0,
            troubles=tuple(_troubles(sample)),
            learned=tuple(one for one in _list(sample, "learned") if isinstance(one, str)),
            allowed=_number(sample, "learned_rate") or None,
        )
        before = sample


def _number(sample: Mapping[str, Any], name: str) -> float:
    value = sample.get(name)
    return max(0.0, value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def _list(sample: Mapping[str, Any], name: str) -> list[Any]:
    """A list of a sample; empty if it has none, as samples of older versions."""
    found = sample.get(name)
    return found if isinstance(found, list) else []


def _troubles(sample: Mapping[str, Any]) -> Iterator[InstanceTrouble]:
    """Those of a sample; entries that have no host or no reason are skipped."""
    for one in _list(sample, "troubles"):
        if isinstance(one, dict) and isinstance(one.get("host"), str) and isinstance(one.get("reason"), str):
            yield InstanceTrouble(one["host"], one["reason"], int(_number(one, "attempts")), _number(one, "seconds"))


def _time(sample: Mapping[str, Any], name: str) -> float | None:
    """Seconds; None without answers. Samples are rounded to milliseconds, so 0 means less than 0.5 ms."""
    value = sample.get(name)
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        return None
    return max(0.0005, value)


def _grown(before: Mapping[str, Any], sample: Mapping[str, Any], name: str) -> float:
    return max(0.0, _number(sample, name) - _number(before, name))


@frozen
class Spread:
    """Minimum, mean and maximum of several values."""

    low: float
    mean: float
    high: float


@frozen
class Point:
    """Consecutive intervals of one run, as one point of a plot.

    Attributes:
        at: where its run starts on the axis.
        intervals: at least one.
    """

    at: float
    intervals: tuple[Interval, ...]

    @property
    def run(self) -> int:
        return self.intervals[0].run

    @property
    def start(self) -> float:
        """Position on the axis."""
        return self.at + self.intervals[0].start

    @property
    def end(self) -> float:
        """Position on the axis."""
        return self.at + self.intervals[-1].end

    @property
    def seconds(self) -> float:
        return sum(interval.seconds for interval in self.intervals)

    @property
    def fetched(self) -> float:
        """Tokens fetched by its end."""
        return self.intervals[-1].fetched

    def spread(self, name: str) -> Spread | None:
        """Of an attribute of the intervals, weighted by their length; None if no interval has a value."""
        pairs = [(value, i.seconds) for i in self.intervals if (value := getattr(i, name)) is not None]
        if not pairs:
            return None
        values = [value for value, _ in pairs]
        mean = sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
        return Spread(min(values), mean, max(values))

    def mean(self, name: str) -> float | None:
        spread = self.spread(name)
        return None if spread is None else spread.mean

    def per_second(self, name: str) -> float:
        """Of an attribute of the intervals that is a number of something."""
        return float(sum(getattr(i, name) for i in self.intervals)) / self.seconds

    @property
    def paused(self) -> float:
        """Share of the time in which requests were held back."""
        return sum(i.seconds for i in self.intervals if i.paused) / self.seconds


def thin(intervals: Iterable[Interval], timeline: Timeline, most: int) -> list[Point]:
    """At most `most` points plus one for each run, in the order of the axis.

    Intervals of runs that are not on the timeline are skipped.
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
        groups = [[interval] for interval in intervals]
    else:
        width = segment.seconds / most
        middles = groupby(intervals, lambda i: min(most - 1, int((i.start + i.end) / 2 / width)))
        groups = [list(group) for _, group in middles]
    return [Point(segment.at, tuple(group)) for group in groups]


_STEPS: Final = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600,
)  # fmt: skip


def time_ticks(timeline: Timeline, most: int) -> list[tuple[float, str]]:
    """(position, label) of about `most` round times in UTC. The label has a date where the date changes."""
    apart = timeline.length / (most + 1)
    step = next((step for step in _STEPS if len(_places(timeline, step)) <= most), _STEPS[-1])
    places = _places(timeline, step)
    if len(places) < 2:
        step, places = 1, [(s.at, s.started) for s in timeline.segments]
    labels: list[tuple[float, str]] = []
    day = None
    for place, seconds in places:
        at = utc(seconds)
        if at is None or (labels and place - labels[-1][0] < apart * 0.7):
            continue
        clock = f"{at:%H:%M:%S}" if step < 60 else f"{at:%H:%M}"
        labels.append((place, clock if at.date() == day else f"{clock}\n{at:%b} {at.day}"))
        day = at.date()
    return labels


def _places(timeline: Timeline, step: int) -> list[tuple[float, float]]:
    """(position, seconds since 1970) of all multiples of a step. It stops early if there are too many."""
    found: list[tuple[float, float]] = []
    for segment in timeline.segments:
        if segment.seconds / step > 100:
            return [(0.0, 0.0)] * 1000
        time = math.ceil(segment.started / step) * step
        while time <= segment.started + segment.seconds:
            found.append((segment.at + time - segment.started, time))
            time += step
    return found
