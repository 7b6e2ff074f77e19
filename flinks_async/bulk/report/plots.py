"""Plots as inline SVG, and the plots without an axis of time: outcome, failures, sizes of parts.

Each plot is drawn in two sizes; the style sheet shows one of them. Colours are variables of the style sheet.
"""

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

from ..ledger import Totals
from . import words
from .facts import Facts, Failures
from .findings import outcomes

_RIGHT: Final = 28


@frozen
class Variant:
    """A size of a plot. The style sheet shows one of them.

    Attributes:
        name: a class of the style sheet.
        width: pixels.
        points: maximum number of points over time.
        ticks: maximum number of labels over time.
        label: maximum length of a label in characters.
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
    """A plot for the page.

    Attributes:
        name: the id of its element.
        title: title with the unit.
        about: how to read it.
        images: one image for each variant.
    """

    name: str
    title: str
    about: str
    images: Markup


def plot(name: str, title: str, about: str, draw: Callable[[Variant], tuple[Figure, Markup]]) -> Plot:
    """Draws a plot in each size.

    Args:
        draw: returns the figure, and elements to lay over it.
    """
    images = Markup()
    for variant in (WIDE, NARROW):
        with style.context(RC, after_reset=True):  # independent of the user's own matplotlib settings
            figure, over = draw(variant)
            images += inline(figure, f"{name}-{variant.name}", variant.name, title, about, over)
    return Plot(name, title, about, images)


def framed(variant: Variant, height: int, *, bottom: int, top: int) -> tuple[Figure, Axes]:
    """A figure with axes and horizontal grid lines. Sizes are pixels."""
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
    """A figure without axes."""
    figure = Figure(figsize=(variant.width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return figure, axes


def from_zero(axes: Axes, say: Callable[[float], str], *, at_least: float = 1e-9) -> None:
    """Starts the vertical axis at zero. `say` formats its labels."""
    axes.set_ylim(0, max(1.04 * axes.get_ylim()[1], at_least))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))


COLOURS: Final = (
    "ink", "soft", "grid", "one", "two", "good", "again", "final", "waiting", "gap", "pause", "page",
)  # fmt: skip
"""Variables of the style sheet: text, secondary text, grid, two series, four outcomes, gaps, pauses, background."""

RC: Final[dict[str, Any]] = {
    "svg.fonttype": "none",  # text stays text
    "figure.dpi": 72,  # one SVG unit is one pixel at full width
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
    """A placeholder colour; `inline` replaces it by a variable of the style sheet."""
    return f"#0000{COLOURS.index(name) + 1:02x}"


def inline(figure: Figure, name: str, variant: str, title: str, description: str, over: Markup) -> Markup:
    """A figure as an SVG element. Call it with `RC` active.

    Args:
        figure: uses only colours from `colour`.
        name: a name that is unique on the page.
        variant: a class of the style sheet.
        title, description: for screen readers.
        over: elements to lay over the figure.
    """
    text = StringIO()
    # The metadata would contain the time and URLs.
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
    # matplotlib escapes its texts, and all data of the job is in them.
    return begin.format(variant, head[1], name, title, description) + Markup(body) + over + Markup("</svg>")


_MOST: Final = 10
"""Number of failure groups in the plot."""

_ROW: Final = 36

_LOOKS: Final = {"exhausted": ("again", "\N{CLOCKWISE OPEN CIRCLE ARROW}"), "final": ("final", "\N{MULTIPLICATION X}")}
"""Colour and sign of a kind of failure, as in the table."""


def bar_plots(facts: Facts) -> Iterator[Plot]:
    """The plots that have data."""
    if facts.totals.tokens:
        yield plot("outcome", "Outcome of all tokens", "", lambda variant: _outcome(variant, facts.totals))
    if facts.failures:
        most = "Most frequent failures, rows"
        yield plot("failures", most, "", lambda variant: _failures(variant, facts.failures[:_MOST]))
    sizes = facts.parts.sizes
    if sizes and min(sizes) < max(sizes):
        yield plot("parts", "Sizes of the parts, number of parts", "In MB.", lambda v: _parts(v, facts))


def _outcome(variant: Variant, totals: Totals) -> tuple[Figure, Markup]:
    figure, axes = bare(variant, 24)
    axes.set_xlim(0, totals.tokens)
    axes.set_ylim(-0.5, 0.5)
    begin = 0
    for name, value in outcomes(totals).items():
        hatch = "////" if name == "waiting" else ""
        axes.barh(0, value, 1, begin, color=colour(name), hatch=hatch, edgecolor=colour("page"), linewidth=0)
        begin += value
    return figure, Markup()


def _failures(variant: Variant, groups: tuple[Failures, ...]) -> tuple[Figure, Markup]:
    """Labels stand above their bars, because long ones do not fit beside them."""
    figure, axes = bare(variant, _ROW * len(groups))
    axes.set_xlim(0, max(number for *_, number in groups))
    axes.set_ylim(len(groups), 0)
    for row, (kind, error, code, status, number) in enumerate(groups):
        name, sign = _LOOKS.get(kind, ("waiting", words.NONE))
        axes.barh(row + 0.7, number, 0.28, color=colour(name), linewidth=0)
        told = " ".join(str(part) for part in (error, code, status) if part is not None)
        label = _label(f"{number:,} {told}", variant.label)
        axes.text(0, row + 0.42, f"{sign} {label}", color=colour("ink"), va="baseline")
    return figure, Markup()


def _label(text: str, most: int) -> str:
    """Printable ASCII only, because a font may lack other characters; the table has the full text."""
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
