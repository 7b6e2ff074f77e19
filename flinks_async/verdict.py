"""The result of classifying an answer: `Verdict` and its `Kind`, and the `Envelope` that it is read from.

`flinks_async.classify` makes verdicts. They are a module of their own because the limits read them and must not depend on
requests and responses.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from attrs import frozen

from .errors import FlinksError
from .schema import Record


class Kind(Enum):
    """The reaction to an answer."""

    OK = "ok"
    TRANSIENT = "transient"
    """May succeed when it is retried."""
    THROTTLED = "throttled"
    """Slow down, then retry."""
    BROKEN = "broken"
    """Not HTTP. Retried at most twice."""
    MALFORMED = "malformed"
    """HTTP, but the body is not an answer. Retried once."""
    STALE = "stale"
    """A kept-alive connection was dead. Retried at once, without using up an attempt."""
    PENDING = "pending"
    """Accepted, no data yet."""
    REFUSED = "refused"
    """The AuthSecret, or the form of its header, is refused."""
    FINAL = "final"
    """A failure that a retry does not change."""


@frozen(eq=False, repr=False)
class Verdict(Record):
    """The meaning of an answer or an error.

    Attributes:
        kind: what to do about it.
        reason: a short word for reports: a FlinksCode, `http_503`, or the name of an error.
        error: the class of the error that the caller gets; None for a success.
    """

    kind: Kind
    reason: str
    error: type[FlinksError] | None = None


OK: Final = Verdict(Kind.OK, "ok")


@frozen(eq=False, repr=False)
class Envelope(Record):
    """The fields of an answer outside its data (see `codec.read_envelope`). Texts are already redacted."""

    flinks_code: str | None = None
    http_status_code: int | None = None
    message: str | None = None
    request_id: str | None = None


EMPTY_ENVELOPE: Final = Envelope()
