"""Plots over time: progress, throughput, response times, concurrency and failures. They share one axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from attrs import frozen
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from . import words
from .facts import Facts
from .plots import NARROW, WIDE, Plot, Variant, colour, framed, from_zero, plot
from .timeline import Interval, Point, Spread, Timeline, thin, time_ticks

Runs = Sequence[Sequence[Point]]
"""Points by run, because no line connects two runs."""

_SPREAD: Final = 20
"""From this ratio of largest to smallest time, the axis is logarithmic."""

_FEWEST: Final = 3
"""Fewer intervals than this make no plot."""

_NAMED_GAP: Final = 12
"""A gap of at least this many pixels shows its length."""

_NOTHING: Final = Spread(math.nan, math.nan, math.nan)

_HEIGHT: Final = 180


@frozen
class PlotKind:
    """One of the plots.

    Attributes:
        name, title, about: as in `Plot`.
        lines: number of lines; one line needs no legend.
        draw: draws the lines.
        say: the numbers of a point as text.
        known: whether an interval has data for this plot.
    """

    name: str
    title: str
    about: str
    lines: int
    draw: Callable[[Axes, Facts, Runs], None]
    say: Callable[[Point], str]
    known: Callable[[Interval], bool] = lambda interval: True


def plots_over_time(facts: Facts) -> Iterator[Plot]:
    """The plots that have data; none with fewer than `_FEWEST` intervals."""
    if len(facts.intervals) >= _FEWEST:
        thinned = {variant: thin(facts.intervals, facts.timeline, variant.points) for variant in (WIDE, NARROW)}
        for kind in (kind for kind in _KINDS if any(map(kind.known, facts.intervals))):
            yield _plot(facts, thinned, kind)


def _plot(facts: Facts, thinned: Mapping[Variant, Sequence[Point]], kind: PlotKind) -> Plot:
    def draw(variant: Variant) -> tuple[Figure, Markup]:
        timeline, points = facts.timeline, thinned[variant]
        figure, axes = framed(variant, _HEIGHT, bottom=38, top=24 if kind.lines > 1 else 8)
        kind.draw(axes, facts, [[p for p in points if p.run == segment.run] for segment in timeline.segments])
        axes.set_xlim(0, timeline.length)
        ticks = time_ticks(timeline, variant.ticks)
        axes.set_xticks([place for place, _ in ticks], [label for _, label in ticks])
        _pauses(axes, points)
        _gaps(axes, timeline)
        if kind.lines > 1:
            _legend(axes)
        return figure, _hover(axes, timeline, points, kind.say) if variant is WIDE else Markup()

    return plot(kind.name, kind.title, kind.about, draw)


# --- shared by all plots ----------------------------------------------------------------------------------------------


def _pauses(axes: Axes, points: Sequence[Point]) -> None:
    stretches: list[tuple[float, float]] = []
    for point in points:
        if point.paused >= 0.5:
            begin = stretches.pop()[0] if stretches and stretches[-1][1] == point.start else point.start
            stretches.append((begin, point.end))
    for begin, end in stretches:
        axes.axvspan(begin, end, facecolor="none", edgecolor=colour("pause"), hatch="//", linewidth=0)


def _gaps(axes: Axes, timeline: Timeline) -> None:
    for gap in timeline.gaps:
        axes.axvspan(gap.at, gap.at + gap.width, facecolor=colour("gap"), linewidth=0)
        if gap.width / timeline.length * axes.bbox.width >= _NAMED_GAP:
            axes.text(
                gap.at + gap.width / 2, 0.5, words.duration(gap.seconds), rotation=90, ha="center", va="center",
                fontsize=11, color=colour("ink"), transform=axes.get_xaxis_transform(),
            )  # fmt: skip


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=9, frameon=False, labelcolor=colour("ink"),
        borderaxespad=0.1, borderpad=0.2, handlelength=1.8, handletextpad=0.5, columnspacing=1.2,
    )  # fmt: skip


def _hover(axes: Axes, timeline: Timeline, points: Sequence[Point], say: Callable[[Point], str]) -> Markup:
    """A strip for each point with its numbers as a tooltip, which browsers show without a script."""
    top = f"{_HEIGHT - axes.bbox.y1:.0f}"
    height = f"{axes.bbox.height:.0f}"
    strips = Markup()
    for point in points:
        left, right = (float(axes.transData.transform((place, 1))[0]) for place in (point.start, point.end))
        strips += Markup('<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}\n{}</title></rect>').format(
            left, top, max(right - left, 1.0), height, words.moment(timeline.time_at(point.start)), say(point)
        )
    return Markup('<g class="hover">{}</g>').format(strips)


def _line(
    axes: Axes, runs: Runs, value: Callable[[Point], float | None], name: str, style: str = "-", *, label: str
) -> None:
    for number, points in enumerate(runs):
        values = [value(point) for point in points]
        axes.plot(
            [point.middle for point in points], [math.nan if v is None else v for v in values], style,
            color=colour(name), linewidth=1.8, marker="o" if len(points) == 1 else "", markersize=4,
            label=label if number == 0 else None,
        )  # fmt: skip


def _band(axes: Axes, runs: Runs, spread: Callable[[Point], Spread | None], name: str) -> None:
    for points in runs:
        spreads = [spread(point) or _NOTHING for point in points]
        axes.fill_between(
            [point.middle for point in points], [s.low for s in spreads], [s.high for s in spreads],
            color=colour(name), linewidth=0, alpha=0.25,
        )  # fmt: skip


# --- one function for each plot ---------------------------------------------------------------------------------------


def _draw_progress(axes: Axes, facts: Facts, runs: Runs) -> None:
    axes.axhline(facts.totals.tokens, color=colour("soft"), linewidth=1.2, linestyle=":", label="all tokens")
    _line(axes, runs, lambda p: p.fetched, "good", label="arrived")
    from_zero(axes, words.short, at_least=1)


def _draw_throughput(axes: Axes, facts: Facts, runs: Runs) -> None:
    _band(axes, runs, lambda p: p.rate, "one")
    _line(axes, runs, lambda p: p.rate.mean, "one", label="tokens per second")
    from_zero(axes, words.short)


def _draw_times(axes: Axes, facts: Facts, runs: Runs) -> None:
    _band(axes, runs, lambda p: p.p95, "two")
    _line(axes, runs, lambda p: _mean(p.p50), "one", label="p50")
    _line(axes, runs, lambda p: _mean(p.p95), "two", "--", label="p95")
    known = [time for i in facts.intervals for time in (i.p50, i.p95) if time is not None]
    if known and max(known) > _SPREAD * min(known):
        axes.set_yscale("log", subs=[1])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(known) < 500 * min(known) else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.duration(value)))
    else:
        from_zero(axes, words.duration)


def _draw_concurrency(axes: Axes, facts: Facts, runs: Runs) -> None:
    _line(axes, runs, lambda p: p.in_flight.mean, "one", label="on the wire")
    _line(axes, runs, lambda p: p.limit.mean, "two", "--", label="limit")
    from_zero(axes, words.short, at_least=1)


def _draw_trouble(axes: Axes, facts: Facts, runs: Runs) -> None:
    _line(axes, runs, lambda p: p.retries, "one", label="retries")
    _line(axes, runs, lambda p: p.throttled, "two", "--", label="throttled")
    _line(axes, runs, lambda p: p.failed, "final", ":", label="failed")
    from_zero(axes, words.short, at_least=0.1)


def _mean(spread: Spread | None) -> float | None:
    return None if spread is None else spread.mean


def _times_of(point: Point) -> str:
    if point.p50 is None or point.p95 is None:
        return "no answers"
    return f"p50 {words.duration(point.p50.mean)}, p95 {words.duration(point.p95.mean)}"


def _trouble_of(point: Point) -> str:
    each = ((point.retries, "retries/s"), (point.throttled, "throttled/s"), (point.failed, "failed/s"))
    return ", ".join(f"{words.rate(number)} {what}" for number, what in each)


def _of_concurrency(point: Point) -> str:
    return f"{point.in_flight.mean:,.0f} on the wire, limit {point.limit.mean:,.0f}"


_KINDS: Final[Sequence[PlotKind]] = (
    PlotKind(
        "progress",
        "Progress, tokens",
        "A step down: an interrupted run had not committed these tokens, so the next run fetches them again.",
        2,
        _draw_progress,
        lambda p: f"{p.fetched:,.0f} arrived",
    ),
    PlotKind(
        "throughput",
        "Throughput, tokens per second",
        "Line: mean. Band: from the lowest to the highest.",
        1,
        _draw_throughput,
        lambda p: f"{words.rate(p.rate.mean)} tokens/s",
    ),
    PlotKind(
        "times",
        "Response time, from sending to the last byte",
        "Half of the answers came faster than p50, 95 % faster than p95. Band: range of p95.",
        2,
        _draw_times,
        _times_of,
        lambda interval: interval.p50 is not None,
    ),
    PlotKind(
        "concurrency",
        "Requests at once",
        "The limit adapts: it falls when the instance slows down or throttles, and rises again.",
        2,
        _draw_concurrency,
        _of_concurrency,
    ),
    PlotKind(
        "trouble",
        "Throttling, retries and failures, per second",
        "Throttled: answers that asked to slow down. Retries: repeated requests. Failed: tokens without an answer.",
        3,
        _draw_trouble,
        _trouble_of,
    ),
)
