"""What the plots have in common: sizes, axes, and the record that the page takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any, Final

from attrs import frozen
from markupsafe import Markup
from matplotlib import rc_context, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from . import words
from .facts import Facts, Failures
from .findings import Outcome

# [flinks_async.bulk.report.svg] Figures of matplotlib as inline SVG: colours of the page's style sheet, its font, and names that do not clash.

# [flinks_async.bulk.report.bars] Plots without time: the outcome, the failures, the sizes of parts.


_RIGHT: Final = 28


@frozen
class Variant:
    """A size of a plot; the style sheet shows one of them.

    Attributes:
        name: a class of the style sheet.
        width: pixels.
        points: that an axis of time may have.
        ticks: likewise.
        label: characters of a label.
        left: pixels for the labels of the vertical axis.
    """

    name: str
    width: int
    points: int
    ticks: int
    label: int
    left: int


WIDE: Final = Variant("wide", 960, 200, 7, 100, 58)

NARROW: Final = Variant("narrow", 350, 80, 3, 44, 54)


@frozen
class Plot:
    """A plot, ready for the page.

    Attributes:
        name: of the element.
        title: with the unit.
        about: how to read it.
        images: of each variant.
    """

    name: str
    title: str
    about: str
    images: Markup


def plot(name: str, title: str, about: str, draw: Callable[[Variant], tuple[Figure, Markup]]) -> Plot:
    """Draws a plot in each size.

    Args:
        draw: gives the figure, and elements to lay over it.
    """
    images = Markup()
    for variant in (WIDE, NARROW):
        with style.context(RC, after_reset=True):  # whatever a user's own settings are
            figure, over = draw(variant)
            images += inline(figure, f"{name}-{variant.name}", variant.name, title, about, over)
    return Plot(name, title, about, images)


def framed(variant: Variant, height: int, *, bottom: int, top: int) -> tuple[Figure, Axes]:
    """A figure with axes and horizontal grid lines. Everything in pixels."""
    figure = Figure(figsize=(variant.width / 72, height / 72))
    across, up = variant.width - variant.left - _RIGHT, height - bottom - top
    axes = figure.add_axes(
        (variant.left / variant.width, bottom / height, across / variant.width, up / height),
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colour("soft"))
    axes.tick_params(colors=colour("soft"), labelcolor=colour("soft"), length=0)
    axes.tick_params(axis="x", length=4)
    axes.grid(axis="y", color=colour("grid"), linewidth=1)
    axes.set_axisbelow(True)
    return figure, axes


def bare(variant: Variant, height: int) -> tuple[Figure, Axes]:
    """A figure that is all drawing area."""
    figure = Figure(figsize=(variant.width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return figure, axes


def from_zero(axes: Axes, say: Callable[[float], str], *, at_least: float = 1e-9) -> None:
    """Lets the vertical axis begin at zero, with labels in words."""
    axes.set_ylim(0, max(1.04 * axes.get_ylim()[1], at_least))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))


COLOURS: Final = (
    "ink", "soft", "grid", "one", "two", "good", "again", "final", "waiting", "gap", "pause", "page",
)  # fmt: skip
"""Variables of the style sheet: text, lesser text, grid lines, two series, four outcomes, gaps, pauses, background."""

RC: Final[dict[str, Any]] = {
    "svg.fonttype": "none",  # texts stay texts
    "figure.dpi": 72,  # a unit of the SVG is a pixel at full width
    "text.parse_math": False,
    "font.size": 12,
    "hatch.linewidth": 1,
    "path.simplify": False,
}

_HEAD: Final = re.compile(r'^.*?<svg[^>]*viewBox="([^"]*)"[^>]*>', re.DOTALL)

_COLOUR: Final = re.compile(r"#0000([0-9a-f]{2})")

_ID: Final = re.compile(r'(\bid="|\bhref="#|url\(#)')

_PATH: Final = re.compile(r' d="[^"]*"')

_LONG: Final = re.compile(r"(\d\.\d)\d+")


def colour(name: str) -> str:
    """A colour that stands for a variable of the style sheet until the figure is SVG."""
    return f"#0000{COLOURS.index(name) + 1:02x}"


def inline(figure: Figure, name: str, variant: str, title: str, description: str, over: Markup) -> Markup:
    """A figure as an element of a page. To be called with `RC` in force.

    Args:
        figure: uses no colours but those of `colour`.
        name: of the figure, new for each one of a page.
        variant: a class for the style sheet.
        title, description: for those who do not see it.
        over: more elements, on top.
    """
    text = StringIO()
    # The metadata would name the time, and addresses of vocabularies.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata=nothing, transparent=True)
    head = _HEAD.match(text.getvalue())
    assert head is not None
    body = text.getvalue()[head.end() :].rstrip().removesuffix("</svg>")
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    body = _ID.sub(rf"\g<1>{name}-", body)
    body = _PATH.sub(lambda path: _LONG.sub(r"\1", " ".join(path[0].split("\n"))), body)
    body = _COLOUR.sub(lambda found: f"var(--{COLOURS[int(found[1], 16) - 1]})", body)
    begin = Markup(
        '<svg class="{0}" viewBox="{1}" role="img" aria-labelledby="{2}-t {2}-d">'
        '<title id="{2}-t">{3}</title><desc id="{2}-d">{4}</desc>'
    )
    # What matplotlib wrote has its texts escaped; everything of the job's is in them.
    return begin.format(variant, head[1], name, title, description) + Markup(body) + over + Markup("</svg>")


_MOST: Final = 10
"""Groups of failures that are drawn."""

_ROW: Final = 36

_LOOKS: Final = {"exhausted": ("again", "\N{CLOCKWISE OPEN CIRCLE ARROW}"), "final": ("final", "\N{MULTIPLICATION X}")}
"""Colour and sign of a kind of failure; the same as in the table."""


def bar_plots(facts: Facts) -> Iterator[Plot]:
    """Those that there is something to show for."""
    if facts.totals.tokens:
        yield plot("outcome", "Outcome of all tokens", "", lambda variant: _outcome(variant, Outcome.of(facts)))
    if facts.failures:
        most = "Most frequent failures, rows"
        yield plot("failures", most, "", lambda variant: _failures(variant, facts.failures[:_MOST]))
    sizes = facts.parts.sizes
    if sizes and min(sizes) < max(sizes):
        yield plot("parts", "Sizes of the parts, number of parts", "In MB.", lambda v: _parts(v, facts))


def _outcome(variant: Variant, outcome: Outcome) -> tuple[Figure, Markup]:
    figure, axes = bare(variant, 24)
    axes.set_xlim(0, outcome.tokens)
    axes.set_ylim(-0.5, 0.5)
    begin = 0
    for name, value in (
        ("good", outcome.fetched),
        ("again", outcome.again),
        ("final", outcome.final),
        ("waiting", outcome.waiting),
    ):
        hatch = "////" if name == "waiting" else ""
        axes.barh(0, value, 1, begin, color=colour(name), hatch=hatch, edgecolor=colour("page"), linewidth=0)
        begin += value
    return figure, Markup()


def _failures(variant: Variant, groups: tuple[Failures, ...]) -> tuple[Figure, Markup]:
    """Labels are above their bars, so that long ones need no room beside."""
    figure, axes = bare(variant, _ROW * len(groups))
    axes.set_xlim(0, max(group.rows for group in groups))
    axes.set_ylim(len(groups), 0)
    for row, group in enumerate(groups):
        name, sign = _LOOKS.get(group.kind, ("waiting", "\N{EN DASH}"))
        axes.barh(row + 0.7, group.rows, 0.28, color=colour(name), linewidth=0)
        label = _label(f"{words.count(group.rows)} {_name(group)}", variant.label)
        axes.text(0, row + 0.42, f"{sign} {label}", color=colour("ink"), va="baseline")
    return figure, Markup()


def _name(group: Failures) -> str:
    return " ".join(str(part) for part in (group.error, group.flinks_code, group.status) if part is not None)


def _label(text: str, most: int) -> str:
    """Without what a font may not have; the table has all of it."""
    plain = "".join(c if " " <= c <= "~" else "?" for c in text)
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def _parts(variant: Variant, facts: Facts) -> tuple[Figure, Markup]:
    figure, axes = framed(variant, 150, bottom=24, top=10)
    wide = variant is WIDE
    axes.hist(facts.parts.sizes, bins=40 if wide else 20, color=colour("one"), edgecolor=colour("page"))
    axes.xaxis.set_major_locator(MaxNLocator(6 if wide else 3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:.5g}"))
    from_zero(axes, words.short)
    return figure, Markup()
