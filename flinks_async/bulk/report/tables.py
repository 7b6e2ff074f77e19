"""The numbers behind the plots, as rows of tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from . import words
from .facts import Facts
from .thinning import Spread, thin

_ROWS: Final = 30
"""Rows of the table over time, about."""

_ENDED: Final = {
    "complete": "complete",
    "stopped": "stopped",
    "refused": "AuthSecret refused",
    "interrupted": "interrupted",
    "failed": "broken off by an error",
}

Row = tuple[str, ...]


def moments(facts: Facts) -> list[Row]:
    """(run, from, lasted, arrived, tokens/s, p50, p95, on the wire, limit, retries/s, throttled/s, failed/s, paused)."""
    return [
        (
            str(point.run),
            words.moment(facts.timeline.time_at(point.start)),
            words.duration(point.end - point.start),
            f"{point.fetched:,.0f}",
            words.rate(point.rate.mean),
            _time(point.p50),
            _time(point.p95),
            f"{point.in_flight.mean:,.0f}",
            f"{point.limit.mean:,.0f}",
            words.rate(point.retries),
            words.rate(point.throttled),
            words.rate(point.failed),
            words.percent(point.paused, 1),
        )
        for point in thin(facts.intervals, facts.timeline, _ROWS)
    ]


def runs_of(facts: Facts) -> list[Row]:
    """(run, started, lasted, end, why, requests, retries, throttled)."""
    rows: list[Row] = []
    for segment, run in zip(facts.timeline.segments, facts.runs, strict=True):
        found = [interval for interval in facts.intervals if interval.run == segment.run]
        requests = sum(i.requests for i in found)
        is_last = run is facts.runs[-1]
        no_end = "no end: broken off, or still running" if is_last else "broken off"
        rows.append(
            (
                str(segment.run),
                words.moment(segment.started),
                words.duration(segment.seconds),
                no_end if run["ended"] is None else _ENDED.get(run["state"], "ended"),
                "" if run["state"] == "failed" else run["reason"] or "",  # an error may name paths
                f"{requests:,.0f}",
                words.percent(sum(i.retries for i in found), requests),
                words.percent(sum(i.throttled for i in found), requests),
            )
        )
    return rows


def accounting(facts: Facts) -> list[tuple[str, int, str]]:
    """(what, lines, remark): the lines of the input, each counted once."""
    scanned = facts.scanned
    rows = [
        ("tokens", scanned.tokens, "each fetched once"),
        ("duplicates", scanned.duplicates, "the token came before"),
        ("invalid", scanned.invalid, "nothing was sent"),
        ("blank", scanned.blank, ""),
        ("header", scanned.header, ""),
        ("continued", scanned.continued, "line breaks inside of quotes"),
    ]
    return [row for row in rows if row[1] or row[0] == "tokens"]


def store_of(facts: Facts) -> list[tuple[str, str]]:
    """(name, value) of what the store says of itself, without what may name a person: folders, and who connects where."""
    store = {name: value for name, value in facts.manifest.store.items() if value is not None and name != "conninfo"}
    return [(name, Path(value).name if name == "path" else _plain(value)) for name, value in store.items()]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else str(value)


def _time(spread: Spread | None) -> str:
    return words.NONE if spread is None else words.duration(spread.mean)
