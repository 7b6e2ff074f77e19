"""Bodies: encodings, sizes, junk after the end."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

from flinks_async import (
    APIStatusError,
    AttemptTimeoutError,
    AuthenticationError,
    EmptyBodyError,
    Limits,
    NotFoundError,
    NotJSONError,
    ProtocolError,
    ReadError,
    RedirectError,
    ResponseTooLargeError,
    ServerError,
)
from tests.raw_server import Close, Flood, Pause, Reset, Respond, Send

from .fault_table import Row, chunked, head, row
from .support import BODY, OK, SHORT

GZIPPED = gzip.compress(BODY, mtime=0)
CAP = 256 * 1024
CAPPED: dict[str, Any] = {"limits": Limits(max_body=CAP)}
ZEROS = b" " * (20 * 1024 * 1024)
BOMB = gzip.compress(ZEROS, 9, mtime=0)
TE = "Transfer-Encoding: chunked"


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def encoded(
    number: str, case: str, coding: str, body: bytes, outcome: Any = None, requests: int = 1, **more: Any
) -> Row:
    return row(number, case, Respond(200, body, {"Content-Encoding": coding}), outcome, requests, **more)


JUNK = Respond(200, b'{"GetAccountsDetail":[],"RequestId":"PLANTED"}').message

ROWS = [
    row("15", "body longer than its Content-Length", Send(OK.message + b"junk after the end"), ProtocolError, 3),
    row("15a", "a second response after the first", Send(OK.message + JUNK), None, 1, reused=False),
    row(
        "15b",
        "a second response after a 404",
        Send(Respond(404).message + JUNK),
        NotFoundError,
        1,
        status=404,
        reused=False,
    ),
    row("15c", "a second response after the last chunk", Send(head(TE) + chunked(BODY) + JUNK), None, 1, reused=False),
    row("15d", "junk after the last chunk", Send(head(TE) + chunked(BODY) + b"junk"), ProtocolError, 3),
    row(
        "15e",
        "junk after the body, in a later packet than the head",
        (Send(head(f"Content-Length: {len(BODY)}")), Pause(0.02), Send(BODY + b"junk")),
        ProtocolError,
        3,
    ),
    encoded("29", "gzip", "gzip", GZIPPED, reused=True),
    encoded("29a", "gzip of two members", "gzip", gzip.compress(BODY[:20]) + gzip.compress(BODY[20:])),
    encoded("29b", "x-gzip, in upper case", "X-GZIP", GZIPPED),
    encoded("29c", "deflate with a zlib header", "deflate", zlib.compress(BODY)),
    encoded("29d", "deflate without a zlib header", "deflate", raw_deflate(BODY)),
    encoded("29e", "gzip in gzip", "gzip, gzip", gzip.compress(GZIPPED)),
    encoded("29f", "identity", "identity", BODY),
    encoded("29g", "an empty Content-Encoding", "", BODY),
    row(
        "29h",
        "gzip in one-byte chunks",
        Send(head(TE, "Content-Encoding: gzip") + chunked(*(GZIPPED[i : i + 1] for i in range(len(GZIPPED))))),
        None,
        1,
    ),
    encoded("29i", "gzip with zero padding", "gzip", GZIPPED + b"\0" * 512),
    row(
        "29j",
        "gzip in gzip, in two header lines",
        Respond(200, gzip.compress(GZIPPED), [("Content-Encoding", "gzip"), ("Content-Encoding", "gzip")]),
        None,
        1,
        reused=True,
    ),
    row(
        "29k",
        "identity and gzip, in two header lines",
        Respond(200, GZIPPED, [("Content-Encoding", "identity"), ("Content-Encoding", "gzip")]),
        None,
        1,
    ),
    row(
        "29l",
        "204 in an encoding that was not asked for",
        Send(head("Content-Encoding: br", status="HTTP/1.1 204 N")),
        APIStatusError,
        1,
        status=204,
        reused=True,
    ),
    row(
        "29m",
        "304 with a length and an encoding",
        Send(head("Content-Encoding: gzip", f"Content-Length: {10**12}", status="HTTP/1.1 304 N")),
        RedirectError,
        1,
        status=304,
    ),
    encoded("29n", "a Content-Encoding of none", "none", BODY),
    encoded("29o", "UTF-8 as a Content-Encoding", "UTF-8", BODY),
    encoded("30", "gzip cut by 30 bytes", "gzip", GZIPPED[:-30], ReadError, 3),
    encoded("30a", "gzip cut in its header", "gzip", GZIPPED[:5], ReadError, 3),
    encoded("30b", "deflate cut", "deflate", zlib.compress(BODY)[:-6], ReadError, 3),
    encoded(
        "30c", "the second member cut", "gzip", gzip.compress(BODY[:20]) + gzip.compress(BODY[20:])[:-4], ReadError, 3
    ),
    encoded("30d", "gzip in gzip, the inner one cut", "gzip, gzip", gzip.compress(GZIPPED[:-4]), ReadError, 3),
    encoded("31", "gzip without its trailer", "gzip", GZIPPED[:-8], ReadError, 3),
    encoded("32", "gzip with a wrong checksum", "gzip", GZIPPED[:-8] + b"\0\0\0\0" + GZIPPED[-4:], ProtocolError, 3),
    encoded("32a", "gzip with a wrong length", "gzip", GZIPPED[:-4] + b"\0\0\0\1", ProtocolError, 3),
    encoded("32b", "plain text labelled gzip", "gzip", BODY, ProtocolError, 3),
    encoded("32c", "gzip labelled deflate", "deflate", GZIPPED, ProtocolError, 3),
    encoded("32d", "gzip with junk after it", "gzip", GZIPPED + b"junk", ProtocolError, 3),
    encoded("32e", "br, which was not asked for", "br", b"\x0b\x02\x80abc\x03", ProtocolError, 3),
    encoded("32f", "zstd, which was not asked for", "zstd", b"\x28\xb5\x2f\xfd", ProtocolError, 3),
    encoded("32g", "an unknown Content-Encoding", "PLANTED", BODY, ProtocolError, 3),
    encoded("32h", "ten encodings", ", ".join(["gzip"] * 10), GZIPPED, ProtocolError, 3),
    encoded("32i", "gzip not labelled", "identity", GZIPPED, NotJSONError, 2, status=200),
    encoded("32j", "an empty body labelled gzip", "gzip", b"", EmptyBodyError, 2, status=200),
    row(
        "32k",
        "401 with a body in br: the status decides",
        Respond(401, b"\x0b\x02\x80abc\x03", {"Content-Encoding": "br"}),
        AuthenticationError,
        1,
        status=401,
    ),
    row(
        "32l",
        "503 labelled gzip with a body that is not gzip",
        Respond(503, b"<html>not gzip</html>", {"Content-Encoding": "gzip"}),
        ServerError,
        3,
        status=503,
    ),
    encoded("33", "gzip bomb", "gzip", BOMB, ResponseTooLargeError, 1, options=CAPPED),
    encoded(
        "33a",
        "a gzip bomb inside a gzip bomb",
        "gzip, gzip",
        gzip.compress(BOMB),
        ResponseTooLargeError,
        1,
        options=CAPPED,
    ),
    encoded(
        "33b",
        "deflate bomb",
        "deflate",
        zlib.compress(ZEROS, 9),
        ResponseTooLargeError,
        1,
        options=CAPPED,
    ),
    encoded("33c", "gzip bomb with status 500", "gzip", BOMB, ResponseTooLargeError, 1, options=CAPPED),
    row(
        "33d",
        "a Content-Length above the maximum",
        (Send(head(f"Content-Length: {CAP + 1}")), Flood(b" " * 4096)),
        ResponseTooLargeError,
        1,
        options=CAPPED,
        reused=False,
    ),
    row(
        "33e",
        "9,000 empty gzip members",
        Respond(200, gzip.compress(b"", mtime=0) * 9_000 + GZIPPED, {"Content-Encoding": "gzip"}),
        None,
        1,
    ),
    row(
        "33f",
        "a body of exactly the maximum size",
        Respond(200, BODY + b" " * (CAP - len(BODY))),
        None,
        1,
        options=CAPPED,
    ),
    encoded(
        "33g",
        "50,000 empty gzip members",
        "gzip",
        gzip.compress(b"", mtime=0) * 50_000 + GZIPPED,
        ProtocolError,
        3,
    ),
    encoded(
        "33h",
        "a bomb inside two codings",
        "gzip, gzip",
        gzip.compress(GZIPPED + b"\0" * 2 * CAP),
        ResponseTooLargeError,
        1,
        options=CAPPED,
    ),
    row(
        "34",
        "endless chunks",
        (Send(head(TE)), Flood(b"1000\r\n" + b" " * 4096 + b"\r\n")),
        ResponseTooLargeError,
        1,
        options=CAPPED,
        reused=False,
    ),
    row(
        "34a",
        "an endless body without a length",
        (Send(head("Connection: close")), Flood(b" " * 4096)),
        ResponseTooLargeError,
        1,
        options=CAPPED,
        reused=False,
    ),
    row(
        "34e",
        "gzip with endless zero padding",
        (
            Send(head(TE, "Content-Encoding: gzip") + chunked(GZIPPED, last=b"")),
            Flood(b"1000\r\n" + b"\0" * 4096 + b"\r\n"),
        ),
        ResponseTooLargeError,
        1,
        options=CAPPED,
        reused=False,
    ),
    row(
        "34b",
        "an endless chunk extension",
        (Send(head(TE) + b"1;"), Flood(b"a" * 4096)),
        AttemptTimeoutError,
        3,
        options={**CAPPED, "timeouts": SHORT},
    ),
    row(
        "34c",
        "endless trailers",
        (Send(head(TE) + chunked(BODY, last=b"0\r\n")), Flood(b"X-A: " + b"a" * 1000 + b"\r\n")),
        ProtocolError,
        3,
        options=CAPPED,
    ),
    row(
        "34d",
        "an endless body with status 500",
        (Send(head(TE, status="HTTP/1.1 500 E")), Flood(b"1000\r\n" + b" " * 4096 + b"\r\n")),
        ResponseTooLargeError,
        1,
        options=CAPPED,
    ),
    row("20", "200 without a body", Respond(200), EmptyBodyError, 2, status=200),
    row("20a", "200 with white space", Respond(200, b" \r\n\t "), EmptyBodyError, 2, status=200),
    row("20b", "200 with null", Respond(200, b"null"), EmptyBodyError, 2, status=200),
    encoded("20c", "gzip of nothing", "gzip", gzip.compress(b""), EmptyBodyError, 2, status=200),
    row("20e", "a body without a length, reset after it", (Send(head() + BODY), Reset()), ReadError, 3),
    row("20f", "the same with status 500", (Send(head(status="HTTP/1.1 500 E") + b"{}"), Reset()), ReadError, 3),
    row("20d", "200 closed without a body", (Send(head("Connection: close")), Close()), EmptyBodyError, 2, status=200),
]
