"""Plots without time: the outcome, the failures, the sizes of parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from . import words
from .facts import Facts, Failures
from .figures import WIDE, Plot, Variant, bare, framed, from_zero, plot
from .findings import Outcome
from .svg import colour

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
