"""Faults by name: what the simulator does instead of answering.

    server.script(token, ["http_503", "reset", Fault.reply(418, {"Message": "teapot"})])

`KINDS` has all of them. `clears` names the class of the fault, in the words of `flinks_async.verdict.Kind`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from attrs import evolve, field, frozen

Clears = Literal["transient", "throttled", "malformed", "broken", "refused", "final", "none"]
Mode = Literal[
    "reply", "answer", "raw", "reset", "close", "reset_body", "close_body", "hang", "truncated_json", "truncated_gzip"
]

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@frozen(kw_only=True)
class Fault:
    """A fault, or another reply, for one request.

    Attributes:
        name: key in `server.stats.faults`.
        mode: `reply` sends status, headers and body below; `answer` sends the normal answer, after `delay`;
            `raw` writes the body to the socket and closes it; `reset` (TCP RST) and `close` (FIN) end the
            connection before the headers, `reset_body` and `close_body` in the middle of the answer's body; `hang`
            sends nothing, until `server.release()`; `truncated_json` and `truncated_gzip` are the normal answer cut
            short inside a correct HTTP message.
        status: for `reply`.
        headers: for `reply`, in addition to the content type.
        body: for `reply` and `raw`.
        content_type: for `reply`.
        retry_after: seconds for a `Retry-After` header; None for no header.
        retry_after_date: send `Retry-After` as an HTTP date.
        delay: seconds before the fault.
        hang_for: seconds after which a `hang` closes the connection; None for never.
        clears: class of the fault.
    """

    name: str
    mode: Mode = "reply"
    status: int = 200
    headers: Mapping[str, str] = field(default=_NOTHING, hash=False)
    body: bytes = field(default=b"", repr=lambda body: f"<{len(body)} bytes>")
    content_type: str = "application/json; charset=utf-8"
    retry_after: float | None = None
    retry_after_date: bool = False
    delay: float = 0.0
    hang_for: float | None = None
    clears: Clears = "final"

    @classmethod
    def reply(cls, status: int, body: Any = b"", *, name: str | None = None, **fields: Any) -> Fault:
        """A reply. A body that is neither bytes nor text is sent as JSON."""
        if isinstance(body, str):
            body = body.encode()
        elif not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return cls(name=name or f"http_{status}", status=status, body=body, **fields)

    @classmethod
    def envelope(cls, status: int, code: str, *, inside: int | None = None, **fields: Any) -> Fault:
        """Flinks' error body.

        Args:
            status: HTTP status.
            code: the `FlinksCode`.
            inside: `HttpStatusCode` in the body, if it differs from `status`.
        """
        body = {"HttpStatusCode": inside or status, "FlinksCode": code, "Message": f"Simulated {code}."}
        return cls.reply(status, body, **{"name": code.lower(), **fields})

    def evolve(self, **changes: Any) -> Fault:
        """A copy with some fields changed, for example `KINDS["http_503"].evolve(delay=0.5)`."""
        return evolve(self, **changes)


_HTML: Final = "<!DOCTYPE html><html><head><title>Maintenance</title></head><body>We will be back soon.</body></html>"
_GARBAGE: Final = b"\x16\x03\x01\x02\x00 this is not HTTP\r\n\r\n"
_TWO_LENGTHS: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}}"

_ALL: Final = (
    *(Fault.reply(status, b"", clears="transient") for status in (408, 500, 502, 503, 504)),
    Fault.reply(503, _HTML, name="html_503", content_type="text/html", clears="transient"),
    Fault.envelope(500, "INTERNAL_ERROR", name="envelope_500", clears="transient"),
    Fault.envelope(401, "RETRY_LATER", clears="transient"),
    Fault.envelope(500, "AGGREGATION_ERROR", clears="transient"),
    Fault.envelope(400, "CARD_IN_USE", clears="transient"),
    Fault.envelope(200, "AGGREGATION_ERROR", inside=500, name="envelope_200", clears="transient"),
    Fault(name="reset", mode="reset", clears="transient"),
    Fault(name="close", mode="close", clears="transient"),
    Fault(name="reset_body", mode="reset_body", clears="transient"),
    Fault(name="close_body", mode="close_body", clears="transient"),
    Fault(name="truncated_gzip", mode="truncated_gzip", clears="transient"),
    Fault(name="hang", mode="hang", clears="transient"),
    Fault.reply(429, b"", clears="throttled"),
    Fault.reply(429, b"", name="http_429_seconds", retry_after=1, clears="throttled"),
    Fault.reply(429, b"", name="http_429_date", retry_after=1, retry_after_date=True, clears="throttled"),
    Fault.envelope(401, "TOO_MANY_REQUESTS", clears="throttled"),
    Fault.envelope(403, "TOO_MANY_REQUESTS", name="too_many_requests_403", clears="throttled"),
    Fault.reply(200, b"", name="empty_200", clears="malformed"),
    Fault.reply(200, _HTML, name="html_200", content_type="text/html", clears="malformed"),
    Fault(name="truncated_json", mode="truncated_json", clears="malformed"),
    Fault(name="garbage", mode="raw", body=_GARBAGE, clears="broken"),
    Fault(name="two_lengths", mode="raw", body=_TWO_LENGTHS, clears="broken"),
    Fault.envelope(401, "UNAUTHORIZED", clears="refused"),
    Fault.reply(400, {}, name="bad_request", clears="final"),
    Fault.envelope(401, "SESSION_NONEXISTENT", clears="final"),
    Fault.envelope(202, "OPERATION_PENDING", clears="final"),
    Fault(name="slow", mode="answer", delay=0.25, clears="none"),
)

KINDS: Final[Mapping[str, Fault]] = MappingProxyType({fault.name: fault for fault in _ALL})
"""All faults by name."""


def fault(kind: str | Fault) -> Fault:
    """A fault, looked up in `KINDS` if it is a name.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(kind, Fault):
        return kind
    try:
        return KINDS[kind]
    except KeyError:
        raise ValueError(f"unknown fault {kind!r}; known faults: {', '.join(KINDS)}") from None


def kinds_that_clear(*clears: Clears) -> tuple[str, ...]:
    """The names of the faults of these classes."""
    return tuple(name for name, kind in KINDS.items() if kind.clears in clears)


def faults(kinds: Iterable[str | Fault]) -> tuple[Fault, ...]:
    """`fault` for each item."""
    return tuple(fault(kind) for kind in kinds)
