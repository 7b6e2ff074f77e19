"""Connections that are not made, or break."""

from __future__ import annotations

import socket
from typing import Any

from flinks_async import (
    AttemptTimeoutError,
    ConnectError,
    ConnectTimeoutError,
    FlinksError,
    ProtocolError,
    ReadError,
    Timeouts,
)
from tests.raw_server import Close, HalfClose, Hang, Pause, Repeat, Reset, Respond, Send, Trickle

from .fault_table import chunked, head, never, row
from .support import BODY, OK, SHORT

LENGTH = f"Content-Length: {len(BODY)}"
HALF = len(BODY) // 2
QUICK: dict[str, Any] = {"timeouts": SHORT}
CONNECT: dict[str, Any] = {"timeouts": Timeouts(connect=0.25, attempt=10, deadline=None)}


def says_only_the_host(error: FlinksError) -> None:
    assert "flinks.test" in str(error)
    assert "partneraccess" not in str(error)


def says_nothing_of_what_came(error: FlinksError) -> None:
    assert "PLANTED" not in f"{error!r}{error}{error.args}"


def not_known(*args: Any, **kwargs: Any) -> Any:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def not_now(*args: Any, **kwargs: Any) -> Any:
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


async def broken_ipv6_first(host: Any, port: int, **kwargs: Any) -> Any:
    kind = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    return [
        (socket.AF_INET6, *kind, ("100::1", port, 0, 0)),  # RFC 6666: packets are discarded
        (socket.AF_INET, *kind, ("127.0.0.1", port)),
    ]


def closed_connection_says(error: FlinksError) -> None:
    assert error.sent is True


ROWS = [
    row("1", "connection refused", (), ConnectError, 0, attempts=3, listening=False),
    row("2", "DNS: no such host", (), ConnectError, 0, attempts=3, resolve=not_known, check=says_only_the_host),
    row("2a", "DNS: temporary failure", (), ConnectError, 0, attempts=3, resolve=not_now, check=says_only_the_host),
    row("2b", "DNS: no answer", (), ConnectTimeoutError, 0, attempts=3, resolve=never, options=CONNECT),
    row("4", "accepts, reads, never responds", Hang(), AttemptTimeoutError, 3, options=QUICK),
    row(
        "4b",
        "another protocol's greeting on accept",
        (),
        ProtocolError,
        0,
        attempts=3,
        accept=(Send(b"220 smtp ESMTP\r\n"), Pause(30)),
    ),
    row("4a", "accepts, never reads", (), AttemptTimeoutError, 0, attempts=3, accept=(Pause(30),), options=QUICK),
    row(
        "5",
        "a header, one byte at a time",
        Trickle(head("X-Slow: " + "a" * 400)),
        AttemptTimeoutError,
        3,
        options=QUICK,
    ),
    row(
        "5a",
        "a status line, one byte at a time",
        Trickle(b"HTTP/1.1 200 " + b"O" * 400),
        AttemptTimeoutError,
        3,
        options=QUICK,
    ),
    row(
        "5b",
        "102 Processing repeatedly",
        Repeat(Send(head(status="HTTP/1.1 102 Processing")), Pause(0.02)),
        AttemptTimeoutError,
        3,
        options=QUICK,
    ),
    row(
        "6",
        "the body, one byte at a time",
        (Send(head("Content-Length: 400")), Trickle(b" " * 400)),
        AttemptTimeoutError,
        3,
        options=QUICK,
    ),
    row(
        "6a",
        "one-byte chunks, slowly",
        (Send(head("Transfer-Encoding: chunked")), Repeat(Send(b"1\r\n \r\n"), Pause(0.02))),
        AttemptTimeoutError,
        3,
        options=QUICK,
    ),
    row(
        "6b",
        "half a body, then silence",
        (Send(head(LENGTH) + BODY[:HALF]), Hang()),
        AttemptTimeoutError,
        3,
        options=QUICK,
    ),
    row("7", "reset before the response", Reset(), ReadError, 3, check=closed_connection_says),
    row("8", "closed before the response", Close(), ReadError, 3, check=closed_connection_says),
    row("8a", "half-closed before the response", HalfClose(), ReadError, 3),
    row("8b", "reset on accept", (), ReadError, 0, attempts=3, accept=(Reset(),)),
    row("9", "half a status line, then closed", (Send(b"HTTP/1.1 20"), Close()), ReadError, 3),
    row(
        "9a",
        "half the headers, then closed",
        (Send(b"HTTP/1.1 200 OK\r\nX-A: PLANTED\r\nX-"), Close()),
        ReadError,
        3,
        check=says_nothing_of_what_came,
    ),
    row(
        "9b",
        "half the headers, then reset",
        (Send(b"HTTP/1.1 200 OK\r\nX-A: PLANTED\r\nX-"), Reset()),
        ReadError,
        3,
        check=says_nothing_of_what_came,
    ),
    row("9c", "a 103, then closed", (Send(head(status="HTTP/1.1 103 Early Hints")), Close()), ReadError, 3),
    row("10", "reset in the body", (Send(head(LENGTH) + BODY[:HALF]), Reset()), ReadError, 3),
    row("11", "closed in the body", (Send(head(LENGTH) + BODY[:HALF]), Close()), ReadError, 3),
    row("11a", "closed after the headers", (Send(head(LENGTH)), Close()), ReadError, 3),
    row("11b", "half-closed in the body", (Send(head(LENGTH) + BODY[:HALF]), HalfClose()), ReadError, 3),
    row("11c", "closed one byte too early", (Send(head(LENGTH) + BODY[:-1]), Close()), ReadError, 3),
    row(
        "11e",
        "closed in a body, with a space before the colon of its length",
        (Send(head(f"Content-Length : {len(BODY)}") + BODY[:HALF]), Close()),
        ReadError,
        3,
    ),
    row(
        "11d",
        "a 503 cut in its body",
        (Send(head(LENGTH, status="HTTP/1.1 503 No") + BODY[:HALF]), Close()),
        ReadError,
        3,
    ),
    row(
        "12",
        "chunked without the last chunk",
        (Send(head("Transfer-Encoding: chunked") + chunked(BODY, last=b"")), Close()),
        ReadError,
        3,
    ),
    row(
        "12a",
        "closed in a chunk",
        (Send(head("Transfer-Encoding: chunked") + b"%x\r\n" % len(BODY) + BODY[:HALF]), Close()),
        ReadError,
        3,
    ),
    row("12b", "closed in a chunk's size", (Send(head("Transfer-Encoding: chunked") + b"1"), Close()), ReadError, 3),
    row(
        "12c",
        "closed before the empty line after the last chunk",
        (Send(head("Transfer-Encoding: chunked") + chunked(BODY, last=b"0\r\n")), Close()),
        ReadError,
        3,
    ),
    row(
        "18",
        "HTTP/1.0 with a length",
        (Send(head(LENGTH, status="HTTP/1.0 200 OK") + BODY), Close()),
        None,
        1,
        reused=False,
    ),
    row(
        "18a",
        "HTTP/1.0 until the connection ends",
        (Send(head(status="HTTP/1.0 200 OK") + BODY), Close()),
        None,
        1,
        reused=False,
    ),
    row(
        "18b",
        "HTTP/1.1 until the connection ends",
        (Send(head("Connection: close") + BODY), Close()),
        None,
        1,
        reused=False,
    ),
    row("56", "Connection: close each time", Respond(200, BODY, {"Connection": "close"}), None, 1, reused=False),
    row("56a", "Connection: keep-alive, then closed", (OK, Close()), None, 1),
    row("57", "IPv6 broken, IPv4 works", OK, None, 1, resolve=broken_ipv6_first),
]
