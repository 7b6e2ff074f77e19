"""A rate limit, and what a server's headers say about its own limit and about waiting.

The rate limit is requests per second, evenly spread, with a small burst. The algorithm is GCRA (generic cell rate
algorithm, ITU-T I.371), the leaky bucket as a meter. Its whole state is one number, the theoretical arrival time of the next
request. A request may come up to `burst - 1` intervals before that time, and each request moves it by one interval. There is
no timer, nothing to refill, and no drift.

Pass `Limits(rate_limiter=...)` to use a limiter that several processes share: any object with the method `reserve`.

Some servers send their limits in headers: `RateLimit-Remaining` and `RateLimit-Reset` (IETF draft, up to version 07), one
structured field `RateLimit` (later versions), or the older `X-RateLimit-*`. `read_rate_limit` understands all of them.
When nothing is left of a window, `pace` waits for the next one. Flinks documents none of these headers.

`Retry-After` is RFC 9110, section 10.2.3: seconds, or an HTTP date in one of three formats (section 5.6.7). The forms in
milliseconds are those of Azure and OpenAI. Flinks documents none of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from math import inf

from attrs import frozen

from ..clock import Clock
from ..schema import Record

_SECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?", re.ASCII)

_MILLISECONDS = ("Retry-After-Ms", "X-Ms-Retry-After-Ms")


def read_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait; None if the server does not say.

    A date is compared with the server's own `Date`, so that a wrong clock on either side does no harm. A date in the past
    gives 0. Negative numbers and garbage are ignored. Of several values (two lines, or "60, 60" where a proxy joined them)
    the longest counts.

    Args:
        headers: of the response, with names that ignore case.
        now: the wall clock, used if the server sends no `Date`.
    """
    for name in _MILLISECONDS:
        parts = [part.strip() for line in _lines(headers, name) for part in line.split(",")]
        if found := [float(part) for part in parts if _SECONDS.fullmatch(part)]:
            return max(found) / 1000.0
    sent: float | None = None
    waits: list[float] = []
    for line in _lines(headers, "Retry-After"):
        at = _timestamp(line.strip())  # before the list is split, because a date has a comma
        if at is not None:
            sent = server_time(headers, now) if sent is None else sent
            waits.append(max(0.0, at - sent))
        else:
            waits += [float(part) for part in map(str.strip, line.split(",")) if _SECONDS.fullmatch(part)]
    return max(waits, default=None)


def server_time(headers: Mapping[str, str], now: float) -> float:
    """The server's wall clock, from its `Date`; `now` if it sends none."""
    sent = _timestamp(headers.get("Date", "").strip())
    return now if sent is None else sent


def _lines(headers: Mapping[str, str], name: str) -> Sequence[str]:
    """All lines of a header. A mapping without `getall` has at most one."""
    if name not in headers:
        return ()
    getall: Callable[[str], Sequence[str]] | None = getattr(headers, "getall", None)
    return (headers[name],) if getall is None else getall(name)


def _timestamp(text: str) -> float | None:
    if not 10 < len(text) < 64:  # the shortest HTTP date has 24 characters
        return None
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


class GCRA:
    """At most `rate` requests per second in the long run, and `burst` at once.

    Args:
        rate: requests per second.
        burst: requests at once; None for a tenth of `rate`, at least 1.
    """

    def __init__(self, rate: float, burst: int | None = None) -> None:
        self._interval = 1.0 / rate
        self._early = self._interval * ((burst or max(1, int(rate / 10))) - 1 + 1e-9)  # a margin for rounding
        self._next = float("-inf")

    def reserve(self, now: float, /) -> float:
        """Takes the next permit. Returns the seconds from `now` until it can be used."""
        arrival = max(now, self._next)
        self._next = arrival + self._interval
        return max(0.0, arrival - self._early - now)


@frozen(eq=False, repr=False)
class ServerLimit(Record):
    """The limit that a server announces.

    Attributes:
        remaining: requests left in this window.
        limit: requests in a whole window, if known.
        reset: seconds until the window ends.
    """

    remaining: int
    limit: int | None
    reset: float


# Numbers of more than 12 digits are ignored, not cut: they are neither seconds nor requests (milliseconds since 1970 have 13).
_NUMBER = re.compile(r"[0-9]{1,12}(?![0-9])", re.ASCII)

# A text, not a compiled pattern, because few servers send the structured field: `re` compiles and caches it at first use.
_PARAMETER = r"(?a)(?:^|[;,\s])(limit|remaining|reset|r|t|q)\s*=\s*([0-9]{1,12})(?![0-9])"

_LONG_NAMES = {"limit": "q", "remaining": "r", "reset": "t"}

# A reset above this is a timestamp (seconds since 1970), not a number of seconds.
_FIRST_TIMESTAMP = 1_000_000_000


def read_rate_limit(headers: Mapping[str, str], clock: Clock) -> ServerLimit | None:
    """The limit that the headers announce; None if there is none, or none that can be understood.

    Args:
        headers: of the response, with names that ignore case.
        clock: its wall clock is compared with a reset that is a timestamp, if the server sends no `Date`.
    """
    text = headers.get("RateLimit-Remaining")
    prefix = ""
    if text is None:
        text = headers.get("X-RateLimit-Remaining")
        prefix = "X-"
    if text is None:
        field = headers.get("RateLimit")
        return None if field is None else _structured(field, headers, clock)
    left = _first(text)
    reset = _first(headers.get(prefix + "RateLimit-Reset", ""))
    if left is None or reset is None:
        return None
    limit = _first(headers.get(prefix + "RateLimit-Limit", ""))
    if limit is None:
        limit = _first(headers.get("RateLimit-Policy", ""))
    return ServerLimit(left, limit, _seconds_until(reset, headers, clock))


def _seconds_until(reset: int, headers: Mapping[str, str], clock: Clock) -> float:
    """Seconds until a reset. A timestamp is compared with the server's `Date`, because the two clocks may differ."""
    return float(reset) if reset < _FIRST_TIMESTAMP else max(0.0, reset - server_time(headers, clock.time()))


def _first(text: str) -> int | None:
    """The number at the beginning of a text."""
    match = _NUMBER.match(text.strip())
    return None if match is None else int(match.group())


def _structured(field: str, headers: Mapping[str, str], clock: Clock) -> ServerLimit | None:
    # Only the first policy is read: `"burst";r=0;t=2, "daily";r=900;t=3600`. Version 07 has commas inside one item instead.
    first = field.split(", ")[0] if ";" in field else field
    found = {_LONG_NAMES.get(name, name): int(number) for name, number in re.findall(_PARAMETER, first)}
    if "r" not in found or "t" not in found:
        return None
    limit = found.get("q")
    if limit is None:
        policy = headers.get("RateLimit-Policy", "")
        limit = next((int(number) for name, number in re.findall(_PARAMETER, policy) if name == "q"), None)
    return ServerLimit(found["r"], limit, _seconds_until(found["t"], headers, clock))


@frozen(eq=False, repr=False)
class PaceState(Record):
    """What a process tells the others that share an instance.

    Attributes:
        estimate: requests per second that it found to be its share; None while unknown.
        until: when the next request may be sent, by the monotonic clock of the machine; 0 for now.
    """

    estimate: float | None
    until: float


@frozen(eq=False, repr=False)
class LearnedLimit(Record):
    """What the refusals of an instance taught about its limit. `str` makes a line for people.

    Attributes:
        rate: requests per second that it allows; None if it limits the requests at once.
        at_once: requests at once that it allows; None if it limits the rate.
        refused_rate: requests per second at the last refusal that was a sign of the limit; None if there was none.
        seconds: since that refusal.
    """

    rate: float | None
    at_once: int | None = None
    refused_rate: float | None = None
    seconds: float = inf

    def joined(self, other: LearnedLimit | None) -> LearnedLimit:
        """The limit of an instance that several processes share: the sum of their shares."""
        if other is None:
            return self
        return LearnedLimit(
            _sum(self.rate, other.rate),
            None if (at_once := _sum(self.at_once, other.at_once)) is None else int(at_once),
            _sum(self.refused_rate, other.refused_rate),
            min(self.seconds, other.seconds),
        )

    @property
    def why(self) -> str:
        """Such as `refused at 1,520/s 12 s ago`."""
        if self.refused_rate is None:
            return "as the instance has allowed so far"
        return f"refused at {self.refused_rate:,.4g}/s {self.seconds:,.0f} s ago"

    def __str__(self) -> str:
        if self.rate is None:
            return f"at most {self.at_once:,} at once learned: more were refused"
        return f"{self.rate:,.4g}/s learned: {self.why}"


def _sum(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else one + other
