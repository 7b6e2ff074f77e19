"""Numbers, sizes and times as text."""

from __future__ import annotations

import datetime as dt
from typing import Final

NONE: Final = "\N{EN DASH}"
"""Shown where there is no number."""


def short(number: float) -> str:
    """For an axis: `0`, `0.5`, `950`, `12k`, `1.5M`."""
    for divisor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= divisor:
            return f"{number / divisor:.3g}{unit}"
    return f"{number:.3g}"


def rate(number: float) -> str:
    """A number per second: `1,234`, `12.5`, `0.03`."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def percent(part: float, whole: float) -> str:
    """`3.1 %`. 0 % and 100 % mean exactly none and all."""
    if whole <= 0:
        return NONE
    share = 100 * part / whole
    if part == 0 or part == whole:
        return f"{share:.0f} %"
    if share < 0.01:
        return "< 0.01 %"
    if share > 99.99:
        return "> 99.99 %"
    return f"{share:.2f} %" if share < 1 or share > 99 else f"{share:.1f} %"


def size(octets: float) -> str:
    """`512 B`, `1.50 kB`, `20.4 GB`, in powers of 1000."""
    for divisor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if octets >= divisor:
            number = octets / divisor
            return f"{number:.{0 if number >= 99.95 else 1 if number >= 9.995 else 2}f} {unit}"
    return f"{octets:.0f} B"


def moment(seconds: float) -> str:
    """Seconds since 1970 as `2026-11-24 03:12:45` UTC; a dash if the calendar has no such time."""
    at = utc(seconds)
    return NONE if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


def utc(seconds: float) -> dt.datetime | None:
    """Seconds since 1970 as a datetime in UTC; None if the calendar has no such time."""
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return None


def since_1970(text: str) -> float:
    """Seconds since 1970 for an ISO 8601 time; NaN if the text is not one."""
    try:
        return dt.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return float("nan")
