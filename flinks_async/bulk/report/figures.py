"""What the plots have in common: sizes, axes, and the record that the page takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import frozen
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .svg import RC, colour, inline

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
