"""Carries out faults on the connections of the simulator, and checks its authentication header."""

from __future__ import annotations

import asyncio
import gzip
import hmac
import socket
import struct
import sys
import time
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from ..config import AuthScheme
from .faults import Fault, reply_headers

# Seconds between the last bytes and a reset, because a reset discards bytes that have not arrived.
_ARRIVAL: Final = 0.02

_LINGER: Final = "hh" if sys.platform == "win32" else "ii"

_JSON: Final = "application/json; charset=utf-8"


def json_response(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=body, headers={"Content-Type": _JSON, **(headers or {})})


def reply(fault: Fault) -> web.Response:
    """The response of a `reply` fault."""
    return web.Response(status=fault.status, body=fault.body, headers=reply_headers(fault, time.time()))


async def inject(request: web.BaseRequest, fault: Fault, answer: bytes) -> web.Response | None:
    """Carries out a fault, except `hang` and `answer`.

    Args:
        answer: the body of the normal answer.

    Returns:
        the response to send; None if the connection was closed.
    """
    if fault.mode == "reply":
        return reply(fault)
    if fault.mode == "truncated_json":
        return json_response(answer[: len(answer) // 2])
    if fault.mode == "truncated_gzip":
        packed = gzip.compress(answer, compresslevel=1, mtime=0)
        return json_response(packed[: len(packed) // 2], headers={"Content-Encoding": "gzip"})
    if fault.mode == "raw":
        _write(request, fault.body)
        end(request)
    else:
        if fault.mode in ("reset_body", "close_body"):
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {_JSON}\r\nContent-Length: {len(answer)}\r\n\r\n"
            _write(request, head.encode() + answer[: len(answer) // 2])
            await asyncio.sleep(_ARRIVAL)
        end(request, reset=fault.mode in ("reset", "reset_body"))
    return None


def _write(request: web.BaseRequest, data: bytes) -> None:
    if request.transport is not None:
        request.transport.write(data)


def end(request: web.BaseRequest, *, reset: bool = False) -> None:
    """Closes the connection: with FIN after the written bytes, or at once with RST."""
    transport = request.transport
    if transport is None:
        return
    if not reset:
        transport.close()
        return
    raw: socket.socket | None = transport.get_extra_info("socket")
    if raw is not None:  # with a linger time of 0, close() sends RST
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))
    transport.abort()


_FORMS: Final[tuple[tuple[AuthScheme, str, str], ...]] = (
    ("flinks-auth-key", "flinks-auth-key", "Bearer "),
    ("flinks-auth-key-raw", "flinks-auth-key", ""),
    ("bearer", "Authorization", "Bearer "),
)


def accepts(headers: Mapping[str, str], secret: str, scheme: AuthScheme | None) -> bool:
    """Whether the headers carry the secret in the form of `scheme`; None accepts all forms of `Endpoint.auth_header`."""
    return any(
        scheme in (None, form) and _same(headers.get(name, ""), prefix + secret) for form, name, prefix in _FORMS
    )


def has_secret(headers: Mapping[str, str]) -> bool:
    """Whether an authentication header is present."""
    return any(name in headers for _, name, _ in _FORMS)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode("utf-8", "surrogateescape"))
