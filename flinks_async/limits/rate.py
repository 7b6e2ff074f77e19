"""A rate limit: requests per second, evenly spread, with a little burst.

The algorithm is GCRA (the generic cell rate algorithm, ITU-T I.371), the leaky bucket as a meter. Its whole state is one
number: the theoretical arrival time of the next request. A request may come `burst - 1` intervals earlier than that;
each one that goes moves it on by one interval. There is no timer, nothing to refill, and no drift.

A limiter shared by several processes takes its place through `Limits(rate_limiter=...)`: anything that has `reserve`.

Servers that count say so in headers: `RateLimit-Remaining` and `RateLimit-Reset` (IETF draft, versions to 07), one
structured field `RateLimit` (later versions), or the old `X-RateLimit-*`. `spacing` reads them all: when little is left
of a window, the rest is spread over its time, so that the limit is not met at all. Flinks documents none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import frozen

from ..clock import Clock


class GCRA:
    """At most `rate` requests per second in the long run, and `burst` at once.

    Args:
        rate: requests per second.
        burst: None for a tenth of a second's worth, at least 1.
    """

    def __init__(self, rate: float, burst: int | None = None) -> None:
        self._interval = 1.0 / rate
        self._early = self._interval * ((burst or max(1, int(rate / 10))) - 1 + 1e-9)  # rounding must not cost a turn
        self._next = float("-inf")

    def reserve(self, now: float, /) -> float:
        """Takes the next turn: seconds from `now` until it comes."""
        arrival = max(now, self._next)
        self._next = arrival + self._interval
        return max(0.0, arrival - self._early - now)


@frozen
class Remaining:
    """What a server says of its limit.

    Attributes:
        requests: that may still be made in this window.
        limit: requests in the whole window, if it says so.
        reset: seconds until the window ends.
    """

    requests: int
    limit: int | None
    reset: float


# A longer number is none of seconds or requests (milliseconds since 1970 have 13 digits), and must not be cut to one.
_NUMBER = re.compile(r"[0-9]{1,12}(?![0-9])", re.ASCII)

_PARAMETER = (
    r"(?a)(?:^|[;,\s])(limit|remaining|reset|r|t|q)\s*=\s*([0-9]{1,12})(?![0-9])"  # compiled by the first that needs it
)

_LONG_NAMES = {"limit": "q", "remaining": "r", "reset": "t"}

# A reset beyond this is not a number of seconds but a moment: seconds since 1970.
_MOMENT = 1_000_000_000


def remaining(headers: Mapping[str, str], clock: Clock) -> Remaining | None:
    """What the headers say, or None if they say nothing that can be understood.

    Args:
        headers: of the response, looked up without regard to case.
        clock: asked for the wall clock only where a reset is a moment.
    """
    said = headers.get("RateLimit-Remaining")
    prefix = ""
    if said is None:
        said = headers.get("X-RateLimit-Remaining")
        prefix = "X-"
    if said is None:
        field = headers.get("RateLimit")
        return None if field is None else _structured(field, headers.get("RateLimit-Policy", ""))
    requests = _first(said)
    reset = _first(headers.get(prefix + "RateLimit-Reset", ""))
    if requests is None or reset is None:
        return None
    limit = _first(headers.get(prefix + "RateLimit-Limit", ""))
    if limit is None:
        limit = _first(headers.get("RateLimit-Policy", ""))
    return Remaining(requests, limit, max(0.0, reset - clock.time()) if reset >= _MOMENT else float(reset))


def _first(text: str) -> int | None:
    """The number that a text begins with."""
    match = _NUMBER.match(text.strip())
    return None if match is None else int(match.group())


def _structured(field: str, policy: str) -> Remaining | None:
    # The first policy only: `"burst";r=0;t=2, "daily";r=900;t=3600`. Version 07 has commas in one item instead.
    first = field.split(", ")[0] if ";" in field else field
    found = {_LONG_NAMES.get(name, name): int(number) for name, number in re.findall(_PARAMETER, first)}
    if "r" not in found or "t" not in found:
        return None
    limit = found.get("q")
    if limit is None:
        limit = next((int(number) for name, number in re.findall(_PARAMETER, policy) if name == "q"), None)
    return Remaining(found["r"], limit, float(found["t"]))


def spacing(said: Remaining, low: float) -> float | None:
    """Seconds to leave between requests until the window ends; None while enough is left.

    Args:
        low: share of the limit that counts as little. Where the limit is unknown, 10 requests are.
    """
    little = 10.0 if said.limit is None else said.limit * low
    if said.requests > little or said.reset <= 0:
        return None
    return said.reset / (said.requests + 1)
