"""Reads how long a server asks to wait, in every form that servers use.

`Retry-After` is RFC 9110, section 10.2.3: seconds, or an HTTP date in one of three formats (section 5.6.7). The forms
in milliseconds are those of Azure and OpenAI. Flinks documents none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

_SECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?", re.ASCII)

_MILLISECONDS = ("Retry-After-Ms", "X-Ms-Retry-After-Ms")


def read_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait; None if the server does not say.

    A date is compared with the server's own `Date`, so that a wrong clock on either side does no harm. A date in the past
    gives 0. Negative numbers and garbage are ignored.

    Args:
        headers: of the response, with names that ignore case.
        now: the wall clock, used if the server sends no `Date`.
    """
    for name in _MILLISECONDS:
        text = headers.get(name, "").strip()
        if _SECONDS.fullmatch(text):
            return float(text) / 1000.0
    text = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    at = _timestamp(text)
    if at is None:
        return None
    sent = _timestamp(headers.get("Date", ""))
    return max(0.0, at - (now if sent is None else sent))


def _timestamp(text: str) -> float | None:
    if not 10 < len(text) < 64:  # the shortest HTTP date has 24 characters
        return None
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
