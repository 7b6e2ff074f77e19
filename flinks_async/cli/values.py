"""Values of options that are more than a number: times, and how many failures are too many."""

from __future__ import annotations

import re
from typing import Final

import click

from .usage import Wrong

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(ctx: click.Context, param: click.Parameter, given: str | None) -> float | None:
    """`90`, `90s`, `45m`, `2h` or `1d` as seconds; the callback of an option."""
    if given is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", given)
    if found is None or not float(found[1]):
        raise Wrong(f"{param.opts[0]} must be a time such as 90 (seconds), 45m, 2h or 1d.")
    return float(found[1]) * _SECONDS[found[2]]


def failures(ctx: click.Context, param: click.Parameter, given: str | None) -> tuple[int | None, float | None]:
    """`100` or `5%` as (number, share), of which one or both are None; the callback of an option."""
    if given is None:
        return None, None
    if re.fullmatch(r"\d+", given):
        return int(given), None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)%", given)
    if found is None or not 0 < float(found[1]) <= 100:
        raise Wrong(f"{param.opts[0]} must be a number such as 100, or a share such as 5%.")
    return None, float(found[1]) / 100
