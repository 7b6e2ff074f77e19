"""The page: one HTML file that loads nothing and runs no script."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..._version import __version__
from . import words
from .bars import bar_plots
from .facts import MOST_FAILURES, MOST_PARTS, Facts
from .findings import findings, tiles, verdict
from .over_time import plots_over_time
from .tables import accounting, moments, runs_of, store_of

_FIRST_PARTS = 5


def page(facts: Facts, made: float) -> str:
    """The page of a job.

    Args:
        made: seconds since 1970, now.
    """
    environment = Environment(
        loader=PackageLoader("flinks_async.bulk.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=words.count, size=words.size, percent=words.percent)
    style, _, _ = environment.loader.get_source(environment, "page.css")  # type: ignore[union-attr]
    return environment.get_template("page.html").render(_values(facts, made), style=Markup(style))


def _values(facts: Facts, made: float) -> dict[str, Any]:
    totals = facts.totals
    return {
        "job": facts.manifest.job,
        "created": words.moment(words.since_1970(facts.manifest.created)),
        "hosts": sorted(set(facts.manifest.origin.values())),
        "verdict": verdict(facts),
        "tiles": tiles(facts),
        "findings": findings(facts),
        "plots": {plot.name: plot for plot in (*bar_plots(facts), *plots_over_time(facts))},
        "moments": moments(facts),
        "failures": facts.failures,
        "most_failures": MOST_FAILURES,
        "tokens": totals.tokens,
        "runs": runs_of(facts),
        "earlier_runs": facts.earlier,
        "store": store_of(facts),
        "parts": facts.parts,
        "first_parts": _FIRST_PARTS,
        "most_parts": MOST_PARTS,
        "accounting": accounting(facts),
        "input": facts.manifest,
        "made": words.moment(made),
        "version": __version__,
    }
