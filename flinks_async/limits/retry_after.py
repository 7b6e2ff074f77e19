"""Reads how long a server asks to wait, in every form that servers use.

`Retry-After` is RFC 9110, section 10.2.3: seconds, or an HTTP date in one of three formats (section 5.6.7). The forms
in milliseconds are those of Azure and OpenAI. Flinks documents none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime

from multidict import MultiMapping

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
    return headers.getall(name) if isinstance(headers, MultiMapping) else (headers[name],)


def _timestamp(text: str) -> float | None:
    if not 10 < len(text) < 64:  # the shortest HTTP date has 24 characters
        return None
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
