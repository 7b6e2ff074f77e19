"""TLS: what goes wrong before the first byte of HTTP."""

from __future__ import annotations

import datetime as dt
import ssl
import warnings
from typing import Any

from flinks_async import (
    CertificateError,
    ConnectError,
    ConnectTimeoutError,
    FlinksError,
    ProtocolError,
    ReadError,
    Timeouts,
)
from tests.raw_server import Close, Hang, Reset, Send

from .fault_table import row
from .support import OK, Authority

PAST = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


def good(authority: Authority) -> Any:
    return authority.context()


def expired(authority: Authority) -> Any:
    return authority.context(not_after=PAST)


def for_another_host(authority: Authority) -> Any:
    return authority.context("flinks.example")


def from_another_authority(authority: Authority) -> Any:
    import trustme

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    return context


def old_version(authority: Authority) -> Any:
    context = authority.context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def asks_for_a_certificate(authority: Authority) -> Any:
    context = authority.context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.file)
    return context


def version_1_2_asks_for_a_certificate(authority: Authority) -> Any:
    context = asks_for_a_certificate(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def not_sent(error: FlinksError) -> None:
    assert error.sent is False


def handshake(*accept: Any) -> dict[str, Any]:
    """The server does this instead of a handshake."""
    return {"accept": accept, "tls": lambda authority: None, "attempts": 3, "check": not_sent}


ROWS = [
    row("52", "an expired certificate", (), CertificateError, 0, attempts=1, tls=expired, check=not_sent),
    row(
        "52a",
        "a certificate for another host",
        (),
        CertificateError,
        0,
        attempts=1,
        tls=for_another_host,
        check=not_sent,
    ),
    row(
        "52b",
        "a certificate of an unknown authority",
        (),
        CertificateError,
        0,
        attempts=1,
        tls=from_another_authority,
        check=not_sent,
    ),
    row("52c", "TLS 1.1 only", (), ConnectError, 0, attempts=3, tls=old_version, check=not_sent),
    row(
        "52d",
        "plain HTTP instead of TLS",
        (),
        ConnectError,
        0,
        **handshake(Send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Hang()),
    ),
    row("52e", "closed during the handshake", (), ConnectError, 0, **handshake(Close())),
    row("52f", "reset during the handshake", (), ConnectError, 0, **handshake(Reset())),
    row(
        "52g",
        "no data during the handshake",
        (),
        ConnectTimeoutError,
        0,
        options={"timeouts": Timeouts(connect=0.25, attempt=10, deadline=None)},
        **handshake(Hang()),
    ),
    row("52h", "a client certificate is required (TLS 1.3)", OK, ReadError, 0, attempts=3, tls=asks_for_a_certificate),
    row(
        "52i",
        "a client certificate is required (TLS 1.2)",
        OK,
        ConnectError,
        0,
        attempts=3,
        tls=version_1_2_asks_for_a_certificate,
    ),
    row("52j", "garbage over TLS", (Send(b"\x00\x01garbage\r\n\r\n"), Close()), ProtocolError, 3, tls=good),
    row("52k", "closed before the response, over TLS", Close(), ReadError, 3, tls=good),
    row("52l", "reset before the response, over TLS", Reset(), ReadError, 3, tls=good),
    row("52m", "a good certificate", OK, None, 1, tls=good, reused=True),
]
