"""The HTML page and its numbers. It loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..._version import __version__
from ...checks import duration
from ..stores import format_of
from . import words
from .facts import MOST_FAILURES, MOST_PARTS, Facts
from .findings import findings, headline, tiles
from .plots import bar_plots
from .plots_over_time import plots_over_time
from .timeline import thin

_FIRST_PARTS: Final = 5

_POINTS: Final = 30
"""Approximate number of rows in the table over time."""


def page(facts: Facts, made: float) -> str:
    """The page of a job.

    Args:
        made: the current time, seconds since 1970.
    """
    environment = Environment(
        loader=PackageLoader("flinks_async.bulk.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": _if_known("{:,.0f}".format),
        "duration": _if_known(duration),
        "moment": words.moment,
        "percent": words.percent,
        "rate": _if_known(words.rate),
        "size": words.size,
    }
    style, _, _ = environment.loader.get_source(environment, "page.css")  # type: ignore[union-attr]
    return environment.get_template("page.html").render(
        facts=facts,
        headline=headline(facts),
        tiles=tiles(facts),
        findings=findings(facts),
        plots={plot.name: plot for plot in (*bar_plots(facts), *plots_over_time(facts))},
        points=thin(facts.intervals, facts.timeline, _POINTS),
        created=words.since_1970(facts.manifest.created),
        hosts=sorted(set(facts.manifest.origin.values())),
        store=store_of(facts),
        most_failures=MOST_FAILURES,
        first_parts=_FIRST_PARTS,
        most_parts=MOST_PARTS,
        made=made,
        version=__version__,
        style=Markup(style),
    )


def _if_known(say: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: words.NONE if value is None else say(value)


def store_of(facts: Facts) -> list[tuple[str, str]]:
    """(name, value) of the store's description, without folders and connection strings, which may name a person."""
    store = {name: value for name, value in facts.manifest.store.items() if value is not None and name != "conninfo"}
    kind = str(store.pop("kind", words.NONE))
    shown = {name: "yes" if value is True else "no" if value is False else str(value) for name, value in store.items()}
    return [("format", format_of(kind)), *((n, Path(text).name if n == "path" else text) for n, text in shown.items())]
