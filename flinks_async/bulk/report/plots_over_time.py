"""Plots over time: progress, throughput, response times, concurrency and failures. They share one axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from attrs import evolve, frozen
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ...checks import duration
from . import words
from .facts import Facts
from .plots import NARROW, WIDE, Plot, Variant, colour, framed, from_zero, plot
from .timeline import Point, Spread, Timeline, thin, time_ticks

_SPREAD: Final = 20
"""From this ratio of largest to smallest time, the axis is logarithmic."""

_FEWEST: Final = 3
"""Fewer intervals than this make no plot."""

_NAMED_GAP: Final = 12
"""A gap of at least this many pixels shows its length."""

_HEIGHT: Final = 180


@frozen
class Line:
    """A line of a plot over time.

    Attributes:
        label: in the legend.
        colour, style: a variable of the style sheet, and a style of matplotlib.
        value: of a point; None without a value.
        say: a value as text, for the tooltip.
    """

    label: str
    colour: str
    value: Callable[[Point], float | None]
    say: Callable[[float], str]
    style: str = "-"


@frozen
class PlotKind:
    """A plot over time.

    Attributes:
        name, title, about: as in `Plot`.
        lines: in the order in which they are drawn. Those without a value are left out, and a plot without lines.
        axis: makes the vertical axis, and what else belongs to it.
        band: attribute of the intervals whose range is drawn behind the lines, and its colour.
    """

    name: str
    title: str
    about: str
    lines: tuple[Line, ...]
    axis: Callable[[Axes, Facts], None]
    band: tuple[str, str] | None = None

    @property
    def has_legend(self) -> bool:
        return self.name == "progress" or len(self.lines) > 1


def plots_over_time(facts: Facts) -> Iterator[Plot]:
    """The plots that have data; none with fewer than `_FEWEST` intervals."""
    if len(facts.intervals) >= _FEWEST:
        thinned = {variant: thin(facts.intervals, facts.timeline, variant.points) for variant in (WIDE, NARROW)}
        for kind in _KINDS:
            lines = tuple(line for line in kind.lines if any(line.value(point) is not None for point in thinned[WIDE]))
            if lines:
                shown = evolve(kind, lines=lines)
                yield plot(kind.name, kind.title, kind.about, partial(_over_time, facts, thinned, shown))


def _over_time(
    facts: Facts, thinned: Mapping[Variant, Sequence[Point]], kind: PlotKind, variant: Variant
) -> tuple[Figure, Markup]:
    timeline, points = facts.timeline, thinned[variant]
    figure, axes = framed(variant, _HEIGHT, bottom=38, top=24 if kind.has_legend else 8)
    for number, segment in enumerate(timeline.segments):  # no line connects two runs
        _draw_run(axes, kind, [point for point in points if point.run == segment.run], labelled=number == 0)
    kind.axis(axes, facts)
    axes.set_xlim(0, timeline.length)
    ticks = time_ticks(timeline, variant.ticks)
    axes.set_xticks([place for place, _ in ticks], [label for _, label in ticks])
    _pauses(axes, points)
    _gaps(axes, timeline)
    if kind.has_legend:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=9, frameon=False, labelcolor=colour("ink"),
            borderaxespad=0.1, borderpad=0.2, handlelength=1.8, handletextpad=0.5, columnspacing=1.2,
        )  # fmt: skip
    return figure, _hover(axes, timeline, points, kind.lines) if variant is WIDE else Markup()


def _draw_run(axes: Axes, kind: PlotKind, points: Sequence[Point], *, labelled: bool) -> None:
    middles = [(point.start + point.end) / 2 for point in points]
    if kind.band is not None:
        name, band_colour = kind.band
        spreads = [point.spread(name) or _NOTHING for point in points]
        low, high = [spread.low for spread in spreads], [spread.high for spread in spreads]
        axes.fill_between(middles, low, high, color=colour(band_colour), linewidth=0, alpha=0.25)
    for line in kind.lines:
        values = [math.nan if (value := line.value(point)) is None else value for point in points]
        axes.plot(
            middles, values, line.style, color=colour(line.colour), linewidth=1.8,
            marker="o" if len(points) == 1 else "", markersize=4, label=line.label if labelled else None,
        )  # fmt: skip


_NOTHING: Final = Spread(math.nan, math.nan, math.nan)


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
                gap.at + gap.width / 2, 0.5, duration(gap.seconds), rotation=90, ha="center", va="center",
                fontsize=11, color=colour("ink"), transform=axes.get_xaxis_transform(),
            )  # fmt: skip


def _hover(axes: Axes, timeline: Timeline, points: Sequence[Point], lines: Iterable[Line]) -> Markup:
    """A strip for each point with its numbers as a tooltip, which browsers show without a script."""
    top = f"{_HEIGHT - axes.bbox.y1:.0f}"
    height = f"{axes.bbox.height:.0f}"
    strips = Markup()
    for point in points:
        left, right = (float(axes.transData.transform((place, 1))[0]) for place in (point.start, point.end))
        said = ", ".join(line.say(value) for line in lines if (value := line.value(point)) is not None)
        strips += Markup('<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}\n{}</title></rect>').format(
            left, top, max(right - left, 1.0), height, words.moment(timeline.time_at(point.start)), said or "no answers"
        )
    return Markup('<g class="hover">{}</g>').format(strips)


def _all_tokens(axes: Axes, facts: Facts) -> None:
    axes.axhline(facts.totals.tokens, color=colour("soft"), linewidth=1.2, linestyle=":", label="all tokens")
    from_zero(axes, words.short, at_least=1)


def _times(axes: Axes, facts: Facts) -> None:
    known = [time for i in facts.intervals for time in (i.p50, i.p95) if time is not None]
    if known and max(known) > _SPREAD * min(known):
        axes.set_yscale("log", subs=[1])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(known) < 500 * min(known) else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    else:
        from_zero(axes, duration)


def _mean(name: str, label: str, say: Callable[[float], str], *looks: str) -> Line:
    return Line(label, looks[0], lambda point: point.mean(name), say, *looks[1:])


def _per_second(name: str, *looks: str) -> Line:
    return Line(name, looks[0], lambda point: point.per_second(name), lambda v: f"{words.rate(v)} {name}/s", *looks[1:])


_KINDS: Final = (
    PlotKind(
        "progress",
        "Progress, tokens",
        "A step down: an interrupted run had not committed these tokens, so the next run fetches them again.",
        (Line("arrived", "good", lambda point: point.fetched, "{:,.0f} arrived".format),),
        _all_tokens,
    ),
    PlotKind(
        "throughput",
        "Throughput, tokens per second",
        "Line: mean. Band: from the lowest to the highest. "
        "Dashed: what the instance allows, learned from refused requests.",
        (
            _mean("rate", "tokens/s", lambda v: f"{words.rate(v)} tokens/s", "one"),
            _mean("allowed", "requests/s allowed", lambda v: f"{words.rate(v)} requests/s allowed", "two", "--"),
        ),
        lambda axes, _: from_zero(axes, words.short),
        band=("rate", "one"),
    ),
    PlotKind(
        "times",
        "Response time, from sending to the last byte",
        "Half of the answers came faster than p50, 95 % faster than p95. Band: range of p95.",
        (
            _mean("p50", "p50", lambda v: f"p50 {duration(v)}", "one"),
            _mean("p95", "p95", lambda v: f"p95 {duration(v)}", "two", "--"),
        ),
        _times,
        band=("p95", "two"),
    ),
    PlotKind(
        "concurrency",
        "Requests at once",
        "The limit adapts: it falls when the instance slows down or throttles, and rises again.",
        (
            _mean("in_flight", "on the wire", "{:,.0f} on the wire".format, "one"),
            _mean("limit", "limit", "limit {:,.0f}".format, "two", "--"),
        ),
        lambda axes, _: from_zero(axes, words.short, at_least=1),
    ),
    PlotKind(
        "trouble",
        "Throttling, retries and failures, per second",
        "Throttled: answers that asked to slow down. Retries: repeated requests. Failed: tokens without an answer.",
        (_per_second("retries", "one"), _per_second("throttled", "two", "--"), _per_second("failed", "final", ":")),
        lambda axes, _: from_zero(axes, words.short, at_least=0.1),
    ),
)
