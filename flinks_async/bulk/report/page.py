"""The HTML page and its tables. It loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..._version import __version__
from . import words
from .facts import MOST_FAILURES, MOST_PARTS, Facts
from .findings import findings, headline, tiles
from .plots import bar_plots
from .plots_over_time import plots_over_time
from .timeline import thin

_FIRST_PARTS = 5


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
    environment.filters.update(count="{:,}".format, size=words.size, percent=words.percent)
    style, _, _ = environment.loader.get_source(environment, "page.css")  # type: ignore[union-attr]
    return environment.get_template("page.html").render(_values(facts, made), style=Markup(style))


def _values(facts: Facts, made: float) -> dict[str, Any]:
    totals = facts.totals
    return {
        "job": facts.manifest.job,
        "created": words.moment(words.since_1970(facts.manifest.created)),
        "hosts": sorted(set(facts.manifest.origin.values())),
        "headline": headline(facts),
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


_ROWS: Final = 30
"""Approximate number of rows in the table over time."""

_ENDED: Final = {
    "complete": "complete",
    "stopped": "stopped",
    "refused": "AuthSecret refused",
    "interrupted": "interrupted",
    "failed": "ended by an error",
}

Row = tuple[str, ...]


def moments(facts: Facts) -> list[Row]:
    """(run, start, length, fetched, tokens/s, p50, p95, on the wire, limit, retries/s, throttled/s, failed/s, paused)."""
    return [
        (
            str(point.run),
            words.moment(facts.timeline.time_at(point.start)),
            words.duration(point.end - point.start),
            f"{point.fetched:,.0f}",
            _known(words.rate, point.mean("rate")),
            *(_known(words.duration, point.mean(name)) for name in ("p50", "p95")),
            *(_known("{:,.0f}".format, point.mean(name)) for name in ("in_flight", "limit")),
            *(words.rate(point.per_second(name)) for name in ("retries", "throttled", "failed")),
            words.percent(point.paused, 1),
        )
        for point in thin(facts.intervals, facts.timeline, _ROWS)
    ]


def runs_of(facts: Facts) -> list[Row]:
    """(run, start, length, end, reason, requests, retries, throttled)."""
    rows: list[Row] = []
    for segment, run in zip(facts.timeline.segments, facts.runs, strict=True):
        found = [interval for interval in facts.intervals if interval.run == segment.run]
        requests = sum(i.requests for i in found)
        is_last = run is facts.runs[-1]
        no_end = "interrupted or still running" if is_last else "interrupted"
        rows.append(
            (
                str(segment.run),
                words.moment(segment.started),
                words.duration(segment.seconds),
                no_end if run["ended"] is None else _ENDED.get(run["state"], "ended"),
                "" if run["state"] == "failed" else run["reason"] or "",  # the error text may contain paths
                f"{requests:,.0f}",
                words.percent(sum(i.retries for i in found), requests),
                words.percent(sum(i.throttled for i in found), requests),
            )
        )
    return rows


def accounting(facts: Facts) -> list[tuple[str, int, str]]:
    """(kind, lines, remark): the lines of the input, each counted once."""
    scanned = facts.scanned
    rows = [
        ("tokens", scanned.tokens, "each fetched once"),
        ("duplicates", scanned.duplicates, "the token occurred earlier in the file"),
        ("invalid", scanned.invalid, "nothing was sent"),
        ("blank", scanned.blank, ""),
        ("header", scanned.header, ""),
        ("continued", scanned.continued, "line breaks inside quotes"),
    ]
    return [row for row in rows if row[1] or row[0] == "tokens"]


def store_of(facts: Facts) -> list[tuple[str, str]]:
    """(name, value) of the store's description, without folders and connection strings, which may name a person."""
    store = {name: value for name, value in facts.manifest.store.items() if value is not None and name != "conninfo"}
    return [(name, Path(value).name if name == "path" else _plain(value)) for name, value in store.items()]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else str(value)


def _known(say: Callable[[float], str], value: float | None) -> str:
    return words.NONE if value is None else say(value)
