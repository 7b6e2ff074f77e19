"""The vocabulary of a `RawServer`'s scripts."""

from __future__ import annotations

import asyncio
import http
import ssl
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from attrs import field, frozen

from .raw import RawConnection, Step

_JSON: Final[Mapping[str, str]] = MappingProxyType({"Content-Type": "application/json"})


@frozen
class ReadHead:
    """Reads a request's head, and counts it."""

    async def __call__(self, connection: RawConnection) -> None:
        await connection.read_head()


@frozen
class Send:
    """Sends bytes as they are."""

    data: bytes

    async def __call__(self, connection: RawConnection) -> None:
        await connection.send(self.data)


@frozen
class Respond:
    """Sends a well-formed response.

    Attributes:
        status: the HTTP status.
        body: its bytes.
        headers: over `Content-Type: application/json` and `Content-Length`; a mapping, or pairs if a name comes twice.
        reason: the reason phrase; default the usual one.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = field(factory=dict)
    reason: str | None = None

    async def __call__(self, connection: RawConnection) -> None:
        await connection.send(self.message)

    @property
    def message(self) -> bytes:
        """What is sent."""
        given = list(self.headers.items()) if isinstance(self.headers, Mapping) else list(self.headers)
        names = {name.lower() for name, _ in given}
        own = {**_JSON, "Content-Length": str(len(self.body))}
        fields = [*((name, value) for name, value in own.items() if name.lower() not in names), *given]
        reason = _reason(self.status) if self.reason is None else self.reason
        lines = [f"HTTP/1.1 {self.status} {reason}", *(f"{name}: {value}" for name, value in fields)]
        return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + self.body


def _reason(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


@frozen
class Trickle:
    """Sends bytes slowly.

    Attributes:
        data: what is sent.
        size: bytes at a time.
        every: seconds between them.
    """

    data: bytes
    size: int = 1
    every: float = 0.02

    async def __call__(self, connection: RawConnection) -> None:
        for start in range(0, len(self.data), self.size):
            await connection.send(self.data[start : start + self.size])
            await asyncio.sleep(self.every)


@frozen
class Flood:
    """Sends bytes again and again, until the client goes away."""

    data: bytes

    async def __call__(self, connection: RawConnection) -> None:
        while True:
            await connection.send(self.data)
            await asyncio.sleep(0)


@frozen
class Pause:
    """Waits some seconds."""

    seconds: float

    async def __call__(self, connection: RawConnection) -> None:
        await asyncio.sleep(self.seconds)


@frozen
class Hang:
    """Sends nothing more, until the client goes away."""

    async def __call__(self, connection: RawConnection) -> None:
        await connection.until_gone()


@frozen
class HalfClose:
    """Ends the server's side with FIN and keeps the other one open. Not under TLS, which has no such thing."""

    async def __call__(self, connection: RawConnection) -> None:
        connection.writer.write_eof()
        await connection.until_gone()


@frozen
class Close:
    """Ends the connection with FIN."""

    async def __call__(self, connection: RawConnection) -> None:
        await connection.close()


@frozen
class Reset:
    """Ends the connection with RST, after what was sent before has arrived."""

    async def __call__(self, connection: RawConnection) -> None:
        await connection.reset()


@frozen
class StartTLS:
    """Goes on under TLS: after the answer to a CONNECT, or in place of `RawServer(ssl_context=...)`."""

    context: ssl.SSLContext

    async def __call__(self, connection: RawConnection) -> None:
        await connection.start_tls(self.context)


class Repeat:
    """Does some steps again and again, until the client goes away or a step ends the connection."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps

    async def __call__(self, connection: RawConnection) -> None:
        while True:
            for step in self.steps:
                await step(connection)
