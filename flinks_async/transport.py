"""The seam to the wire: one method that makes one attempt."""

from __future__ import annotations

from typing import Protocol

from .messages import Request, Response


class Transport(Protocol):
    """Makes one attempt: one request on the wire, no retry, no redirect.

    `send` returns a `Response` (status, headers, body) for every HTTP status, with its body whole and inflated, and
    the connection given back. It raises a `FlinksError` from the transport, protocol or body-size family, or lets
    `CancelledError` through. The secret to send is `request.call.secret`.
    """

    async def send(self, request: Request, /) -> Response: ...

    async def close(self) -> None: ...
