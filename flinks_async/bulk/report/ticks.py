"""Where an axis of time has its labels."""

from __future__ import annotations

import math
from typing import Final

from .timeline import Timeline
from .words import utc

_STEPS: Final = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600,
)  # fmt: skip


def time_ticks(timeline: Timeline, most: int) -> list[tuple[float, str]]:
    """(place, label) of up to about `most` round times, in UTC. The date is said where it changes."""
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
    """(place, seconds since 1970) of all multiples of a step; too many are broken off."""
    found: list[tuple[float, float]] = []
    for segment in timeline.segments:
        if segment.seconds / step > 100:
            return [(0.0, 0.0)] * 1000
        time = math.ceil(segment.started / step) * step
        while time <= segment.started + segment.seconds:
            found.append((segment.at + time - segment.started, time))
            time += step
    return found
