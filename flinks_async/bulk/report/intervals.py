"""Samples of a run as stretches of time, with what happened in each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from attrs import frozen


@frozen
class Interval:
    """The time between two samples of a run, or between its beginning and the first one.

    Attributes:
        run: which.
        start, end: seconds since the run began.
        rate: tokens a second.
        p50, p95: seconds that answers took; None without answers.
        in_flight, limit: requests on the wire at its end, and how many there might have been.
        requests, retries, throttled: sent in it, of these repeated, and of these answered with "slow down".
        paused: whether requests were held back at its end. Samples come at fixed times, so the share of those that
            meet a pause is an unbiased estimate of the share of the time.
        fetched: tokens of the job that have arrived at its end.
        failed: tokens that were given up in it.
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

    @property
    def seconds(self) -> float:
        return self.end - self.start


def intervals(samples: Iterable[Mapping[str, Any]]) -> Iterator[Interval]:
    """From the samples of a ledger. What is missing or no number counts as 0; samples out of order are passed over."""
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
        )
        before = sample


def _number(sample: Mapping[str, Any], name: str) -> float:
    value = sample.get(name)
    return max(0.0, value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def _time(sample: Mapping[str, Any], name: str) -> float | None:
    """Seconds; None without answers. Samples are rounded to milliseconds: a 0 is something below half of one."""
    value = sample.get(name)
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        return None
    return max(0.0005, value)


def _grown(before: Mapping[str, Any], sample: Mapping[str, Any], name: str) -> float:
    return max(0.0, _number(sample, name) - _number(before, name))
