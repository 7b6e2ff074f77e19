"""Statuses."""

from __future__ import annotations

import json
from typing import Any

from flinks_async import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    FlinksError,
    NotFoundError,
    PendingError,
    ProtocolError,
    ProxyError,
    RateLimitedError,
    RedirectError,
    ServerError,
)
from tests.raw_server import Respond, Send

from .fault_table import Row, head, row
from .support import BODY

TIMES_OUT, GOES_ON = 1, 3


def status(number: str, code: int, outcome: type[FlinksError], requests: int, *, case: str = "", **more: Any) -> Row:
    more.setdefault("reused", True)
    return row(number, f"{code}{case and f', {case}'}", Respond(code, b"{}"), outcome, requests, status=code, **more)


def envelope(number: str, code: int, flinks_code: str, outcome: type[FlinksError], requests: int) -> Row:
    body = json.dumps({"HttpStatusCode": code, "FlinksCode": flinks_code, "Message": "no"}).encode()

    def has_the_code(error: FlinksError) -> None:
        assert error.flinks_code == flinks_code

    return row(number, f"{code} {flinks_code}", Respond(code, body), outcome, requests, status=code, check=has_the_code)


def redirect(number: str, code: int, location: str, host: str | None) -> Row:
    def names_the_host_only(error: RedirectError) -> None:
        assert error.location_host == host
        assert "PLANTED" not in f"{error!r}{error}"

    case = f"{code} to {'another host' if host else 'the same host'}"
    turn = Respond(code, b"", {"Location": location})
    return row(number, case, turn, RedirectError, 1, status=code, check=names_the_host_only, reused=True)


def asks_for_90_seconds(error: Any) -> None:
    assert error.retry_after == 90


ROWS = [
    row("36", "204", Send(head(status="HTTP/1.1 204 No Content")), APIStatusError, 1, status=204, reused=True),
    row(
        "36a",
        "204 with a body",
        Send(head(f"Content-Length: {len(BODY)}", status="HTTP/1.1 204 N") + BODY),
        ProtocolError,
        3,
    ),
    row(
        "36h",
        "204 with a length: a body may come after the answer",
        Send(head("Content-Length: 5", status="HTTP/1.1 204 N")),
        APIStatusError,
        1,
        status=204,
        reused=False,
    ),
    status("36b", 205, APIStatusError, 1),
    row(
        "36c",
        "206 with half a body",
        Respond(206, BODY[:20], {"Content-Range": "bytes 0-19/78"}),
        APIStatusError,
        1,
        status=206,
    ),
    status("36d", 202, PendingError, 1),
    envelope("36e", 202, "OPERATION_PENDING", PendingError, 1),
    status("36f", 201, APIStatusError, 1),
    status("36g", 299, APIStatusError, 1),
    *(redirect("37", code, "/elsewhere/PLANTED", None) for code in (301, 302, 303, 307, 308)),
    *(redirect("38", code, "https://evil.example/PLANTED", "evil.example") for code in (301, 302, 303, 307, 308)),
    redirect("38a", 302, "http://[::1", None),
    row("38b", "302 without a Location", Respond(302), RedirectError, 1, status=302),
    row(
        "38c",
        "304 without a body",
        Send(head("Content-Length: 78", status="HTTP/1.1 304 Not Modified")),
        RedirectError,
        1,
        status=304,
        reused=True,
    ),
    status("38d", 300, RedirectError, 1),
    *(
        status("39", code, BadRequestError, 1)
        for code in (400, 402, 405, 406, 409, 411, 412, 413, 414, 415, 416, 417, 418)
    ),
    *(status("39", code, BadRequestError, 1) for code in (421, 422, 423, 424, 426, 428, 431, 451, 499)),
    *(status("39", code, NotFoundError, 1) for code in (404, 410)),
    *(status("40", code, AuthenticationError, 1) for code in (401, 403)),
    status("41", 407, ProxyError, 1),
    *(status("42", code, ServerError, 3) for code in (408, 425, 500, 502, 503, 504, *range(520, 527))),
    *(status("43", code, ServerError, 1) for code in (501, 505, 506, 507, 508, 510, 511, 527, 530, 599)),
    *(status("43a", code, APIStatusError, 1) for code in (600, 700, 999)),
    status("46", 429, RateLimitedError, 3, case="without Retry-After"),
    row(
        "46a",
        "429 with two Retry-After lines: the longer one counts",
        Send(head("Content-Length: 2", "Retry-After: 70", "Retry-After: 90", status="HTTP/1.1 429 N") + b"{}"),
        RateLimitedError,
        1,
        status=429,
        check=asks_for_90_seconds,
    ),
    envelope("46a", 401, "TOO_MANY_REQUESTS", RateLimitedError, 3),
    envelope("46b", 403, "TOO_MANY_REQUESTS", RateLimitedError, 3),
    envelope("42a", 401, "RETRY_LATER", ServerError, 3),
    envelope("42b", 400, "CARD_IN_USE", ServerError, 3),
    envelope("40a", 401, "UNAUTHORIZED", AuthenticationError, 1),
    envelope("39a", 401, "SESSION_NONEXISTENT", BadRequestError, 1),
    envelope("39b", 405, "DISABLED_INSTITUTION", BadRequestError, 1),
    envelope("39c", 400, "SOMETHING_NEW", BadRequestError, 1),
]
