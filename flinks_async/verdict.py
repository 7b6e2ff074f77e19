"""What an answer means: the FlinksCode first, then the HTTP status.

This is the only place that knows. Retry, errors, governor and reports read its `Verdict`.

Sources: the FlinksCodes are documented for sibling endpoints; that PartnerAccess uses them is inferred. Throttling is
documented as 401 with TOO_MANY_REQUESTS. Statuses follow RFC 9110, and Cloudflare's documentation for 520 to 526.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from attrs import frozen

from . import errors as e

if TYPE_CHECKING:
    pass


# [flinks_async.messages] What walks through the chain: `Request` in, `Response` out, and how the links are joined.
#
# The contract of a `Handler`: it **returns** a `Response` for every HTTP status, its body whole and its connection
# already back in the pool; it **raises** a `FlinksError` or lets `asyncio.CancelledError` through; nothing else ever
# comes out of it. So a middleware never holds a connection, and sees a body that was cut short as an error.


class Kind(Enum):
    """What to do about an answer."""

    OK = "ok"
    TRANSIENT = "transient"
    """May work when it is tried again."""
    THROTTLED = "throttled"
    """Slow down, then try again."""
    BROKEN = "broken"
    """Not HTTP. Tried again at most twice."""
    MALFORMED = "malformed"
    """HTTP, but the body is not an answer. Tried again once."""
    STALE = "stale"
    """A kept-alive connection was dead. Tried again at once, without using up an attempt."""
    PENDING = "pending"
    """Accepted, no data yet."""
    REFUSED = "refused"
    """The AuthSecret, or the form of its header, is refused."""
    FINAL = "final"
    """No, and it will stay no."""


@frozen
class Verdict:
    """What an answer means.

    Attributes:
        kind: what to do about it.
        reason: a short word for reports: a FlinksCode, `http_503`, or the name of an error.
        error: the class of error that it becomes; None for a success.
    """

    kind: Kind
    reason: str
    error: type[e.FlinksError] | None = None


OK: Final = Verdict(Kind.OK, "ok")


@frozen
class Envelope:
    """What an answer says about itself outside its data (see `codec.read_envelope`). Texts are already redacted."""

    flinks_code: str | None = None
    http_status_code: int | None = None
    message: str | None = None
    request_id: str | None = None


EMPTY_ENVELOPE = Envelope()
