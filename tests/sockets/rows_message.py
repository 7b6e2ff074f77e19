"""Answers that are not HTTP, or only just."""

from __future__ import annotations

from typing import Any

from flinks_async import APIStatusError, FlinksError, ProtocolError, ResponseTooLargeError
from tests.raw_server import Close, Flood, Hang, Pause, Send

from .fault_table import Row, chunked, head, row
from .support import BODY, OK

LENGTH = f"Content-Length: {len(BODY)}"
TE = "Transfer-Encoding: chunked"


def has_no_status(error: FlinksError) -> None:
    assert error.status is None  # aiohttp's own 400 does not come from the server


def broken(number: str, case: str, data: bytes, *, stays: bool = False) -> Row:
    after: Any = Hang() if stays else Close()
    return row(number, case, (Send(data), after), ProtocolError, 3, check=has_no_status)


def fine(number: str, case: str, data: bytes, **more: Any) -> Row:
    return row(number, case, Send(data), None, 1, **more)


ROWS = [
    broken("13", "a chunk's size is not a number", head(TE) + b"zz\r\nabc\r\n"),
    broken("13a", "a chunk's size is negative", head(TE) + b"-5\r\nabc\r\n"),
    broken("13b", "a chunk's size has 40 digits", head(TE) + b"f" * 40 + b"\r\nabc\r\n"),
    broken("13c", "a chunk longer than its size", head(TE) + b"3\r\nabcdef\r\n0\r\n\r\n"),
    broken("13d", "a chunk's size is empty", head(TE) + b"\r\nabc\r\n", stays=True),
    broken("13e", "a chunk's size in 0x form", head(TE) + b"0x4e\r\n" + BODY + b"\r\n0\r\n\r\n"),
    row(
        "13f",
        "a bad chunk in a later packet",
        (Send(head(TE) + b"5\r\n     \r\n"), Pause(0.02), Send(b"zz\r\n"), Hang()),
        ProtocolError,
        3,
    ),
    row(
        "13g",
        "a chunk too long in a later packet",
        (Send(head(TE) + b"5\r\n     \r\n"), Pause(0.02), Send(b"1\r\nabc\r\n"), Hang()),
        ProtocolError,
        3,
    ),
    fine(
        "14", "chunk extensions and trailers", head(TE) + b"%x;a=b;c\r\n%b\r\n0\r\nX-T: 1\r\n\r\n" % (len(BODY), BODY)
    ),
    fine("14a", "Transfer-Encoding: CHUNKED", head("TRANSFER-ENCODING: CHUNKED") + chunked(BODY), reused=True),
    fine("14b", "chunks of one byte", head(TE) + chunked(*(BODY[i : i + 1] for i in range(len(BODY)))), reused=True),
    fine("14c", "chunk sizes with upper case and zeros", head(TE) + b"000%X\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
    broken("16", "a negative Content-Length", head("Content-Length: -5") + BODY),
    broken("16a", "two different Content-Lengths", head(LENGTH, "Content-Length: 9") + BODY),
    broken("16b", "Content-Length and Transfer-Encoding", head(LENGTH, TE) + chunked(BODY)),
    broken("16c", "Content-Length with a plus", head(f"Content-Length: +{len(BODY)}") + BODY),
    broken("16d", "Content-Length in hex", head("Content-Length: 0x4e") + BODY),
    broken("16e", "Content-Length with a space inside", head("Content-Length: 7 8") + BODY),
    broken("16f", "an empty Content-Length", head("Content-Length: ") + BODY),
    broken("16g", "Content-Length with 40 digits", head("Content-Length: " + "9" * 40) + BODY),
    broken("16h", "two Content-Lengths in one line", head(f"Content-Length: {len(BODY)}, {len(BODY)}") + BODY),
    row(
        "16k",
        "Content-Length of 2^64 - 1",
        Send(head(f"Content-Length: {2**64 - 1}") + BODY),
        ResponseTooLargeError,
        1,
        reused=False,
    ),
    broken("16m", "an empty Transfer-Encoding", head("Transfer-Encoding: ") + chunked(BODY)),
    broken("16l", "two equal Content-Lengths", head(LENGTH, LENGTH) + BODY),
    broken("16i", "Content-Length in Arabic digits", "HTTP/1.1 200 OK\r\nContent-Length: ٧٨\r\n\r\n".encode() + BODY),
    fine("16j", "Content-Length with spaces around it", head(f"Content-Length:   {len(BODY)}  ") + BODY),
    broken("17", "random bytes", b"\x00\xff\x13\x37garbage\r\n\r\n"),
    broken("17a", "a TLS record", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64, stays=True),
    broken(
        "17b", "HTTP/2 frames", b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\x00\x03\x00\x00\x00\x64" * 3, stays=True
    ),
    broken("17c", "HTTP/0.9: only a body", BODY),
    broken("17d", "another protocol's banner", b"SSH-2.0-OpenSSH_9.6\r\n", stays=True),
    broken("17e", "ICY 200 OK", b"ICY 200 OK\r\n\r\n"),
    broken("17f", "a status of two digits", head(LENGTH, status="HTTP/1.1 20 OK") + BODY),
    broken("17m", "a status below 100", head(LENGTH, status="HTTP/1.1 099 X") + BODY),
    broken("17n", "status 000", head(LENGTH, status="HTTP/1.1 000 X") + BODY),
    broken("17g", "a status of letters", head(LENGTH, status="HTTP/1.1 abc OK") + BODY),
    broken("17h", "a status of four digits", head(LENGTH, status="HTTP/1.1 2000 OK") + BODY),
    broken("17i", "a negative status", head(LENGTH, status="HTTP/1.1 -200 OK") + BODY),
    broken("17j", "a request instead of a response", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", stays=True),
    broken("17k", "HTTP/3.0", head(LENGTH, status="HTTP/3.0 200 OK") + BODY),
    fine("17l", "no reason phrase", head(LENGTH, status="HTTP/1.1 200 ") + BODY, reused=True),
    row(
        "19",
        "101 Switching Protocols",
        Send(head("Upgrade: websocket", "Connection: upgrade", status="HTTP/1.1 101 S")),
        APIStatusError,
        1,
        status=101,
        reused=False,
    ),
    row("19e", "101 without Upgrade", Send(head(status="HTTP/1.1 101 S")), APIStatusError, 1, status=101, reused=False),
    row(
        "19c",
        "101 with a body",
        Send(head("Upgrade: websocket", "Connection: upgrade", LENGTH, status="HTTP/1.1 101 S") + BODY),
        APIStatusError,
        1,
        status=101,
        reused=False,
    ),
    fine("19a", "100 Continue first", head(status="HTTP/1.1 100 Continue") + OK.message, reused=True),
    fine(
        "19b",
        "102 and 103 first",
        head(status="HTTP/1.1 102 P") + head("Link: </x>", status="HTTP/1.1 103 H") + OK.message,
    ),
    fine(
        "19d",
        "a 1xx with a body and an encoding first",
        head("Content-Length: 5", "Content-Encoding: gzip", status="HTTP/1.1 104 X") + b"hello" + OK.message,
    ),
    broken("35", "200 headers", head(*(f"X-{n}: 1" for n in range(200)), LENGTH) + BODY),
    broken("35o", "a header whose name and value have 8,191 bytes", head("X: " + "a" * 8190, LENGTH) + BODY),
    broken("35p", "a trailer of 9,000 bytes", head(TE) + chunked(BODY)[:-2] + b"X-T: " + b"a" * 9000 + b"\r\n\r\n"),
    broken("35m", "200 trailers", head(TE) + chunked(BODY)[:-2] + b"X-T: 1\r\n" * 200 + b"\r\n"),
    fine("35n", "a head of 800 KB", head(*(f"X-{n}: {'a' * 8000}" for n in range(100)), LENGTH) + BODY, reused=True),
    broken("35a", "a header of 20 KB", head("X-Long: " + "a" * 20_000, LENGTH) + BODY),
    broken("35b", "NUL in a header", head("X-Nul: a\x00b", LENGTH) + BODY),
    broken("35c", "a reason phrase of 20 KB", head(LENGTH, status="HTTP/1.1 200 " + "O" * 20_000) + BODY),
    broken("35d", "a header without a colon", head("just text", LENGTH) + BODY),
    broken("35e", "a header without a name", head(": value", LENGTH) + BODY),
    fine("35f", "a space before the colon", head(f"Content-Length : {len(BODY)}") + BODY),
    broken("35g", "CR in a header", head("X-A: 1\r2", LENGTH) + BODY),
    row(
        "35h",
        "endless header lines",
        (Send(b"HTTP/1.1 200 OK\r\n"), Flood(b"X-A: " + b"a" * 1000 + b"\r\n")),
        ProtocolError,
        3,
    ),
    row("35i", "one endless header", (Send(b"HTTP/1.1 200 OK\r\nX-A: "), Flood(b"a" * 4000)), ProtocolError, 3),
    fine(
        "35j",
        "header names in mixed case",
        head(f"cOnTeNt-LeNgTh: {len(BODY)}", "CONTENT-TYPE: APPLICATION/JSON") + BODY,
    ),
    fine(
        "35k",
        "bytes above 127 in a header",
        b"HTTP/1.1 200 OK\r\nX-A: \xff\xfe\xe9\r\n" + LENGTH.encode() + b"\r\n\r\n" + BODY,
    ),
    fine("35l", "Set-Cookie", head(LENGTH, "Set-Cookie: a=b; Path=/", "Set-Cookie: c=d") + BODY, reused=True),
]
