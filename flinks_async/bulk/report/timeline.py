"""The runs of a job on one axis. A time between two runs is shorter there than it was, and drawn as a gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import field, frozen

_GAP: Final = 0.04
_ALL_GAPS: Final = 0.3
"""The widest gap, and the widest that all may be together, as shares of the time in runs."""


@frozen
class Segment:
    """A run.

    Attributes:
        run: which.
        started: seconds since 1970.
        seconds: it lasted; of a run that was broken off, as far as its samples tell.
        at: where it begins on the axis.
    """

    run: int
    started: float
    seconds: float
    at: float = 0.0


@frozen
class Gap:
    """A time between two runs.

    Attributes:
        at, width: on the axis.
        seconds: as it was.
    """

    at: float
    width: float
    seconds: float


@frozen
class Timeline:
    """Runs one after the other, each to scale.

    Attributes:
        length: of the axis; at least a second, so that it can be drawn.
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
        """Seconds since 1970 at a place on the axis that lies in a run."""
        inside = [segment for segment in self.segments if segment.at <= position] or list(self.segments[:1])
        return inside[-1].started + position - inside[-1].at if inside else 0.0


def timeline(runs: Sequence[Mapping[str, Any]], lasted: Mapping[int, float]) -> Timeline:
    """Lays out runs.

    Args:
        runs: as `Ledger.runs` gives them.
        lasted: seconds until the last sample, by run.
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
