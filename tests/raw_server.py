"""A server below HTTP: each connection follows a script, so that it can break every rule on purpose.

    dropped = [ReadHead(), Reset()]
    healthy = [Repeat(ReadHead(), Respond(200, b'{"GetAccountsDetail": [], "RequestId": "r"}'))]
    async with RawServer(dropped, healthy) as server:
        async with FlinksClient(auth_secret="x", base_url=server.base_url) as flinks:
            await flinks.partner_access("token")
    assert server.requests == 2

A step is an async callable that takes the `RawConnection`; those of `raw_steps` cover the usual faults, and a function
of your own can do the rest. The server counts all requests, also those that get no response.
"""

from __future__ import annotations

import asyncio
import http
import socket
import ssl
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType, TracebackType
from typing import Any, Final, NoReturn, Self

from attrs import field, frozen

Step = Callable[["RawConnection"], Awaitable[object]]

Script = Sequence[Step]

_HEAD_LIMIT: Final = 1024 * 1024

# Data must arrive before the connection is reset, because a reset overtakes bytes in transit.
_ARRIVAL: Final = 0.02

_LINGER: Final = "hh" if sys.platform == "win32" else "ii"


class Ended(Exception):
    """Ends the script of a connection, which is over or has been left by the client."""


class RawConnection:
    """One connection, as a step sees it.

    Attributes:
        server: the server that it belongs to.
        number: 0 for the server's first connection.
        heads: the complete request heads that came through it.
        reader, writer: its streams.
    """

    def __init__(
        self, server: RawServer, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.server = server
        self.number = number
        self.reader = reader
        self.writer = writer
        self.heads: list[bytes] = []

    async def read_head(self) -> bytes:
        """Reads a request up to its empty line, and counts it. Ends the script if the client has gone."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            raise Ended from None
        self.heads.append(head)
        self.server.heads.append(head)
        return head

    async def send(self, data: bytes) -> None:
        """Writes, and waits until the client has room for more. Ends the script if it has gone."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except OSError:
            raise Ended from None

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Goes on under TLS, as the server. Ends the script if the handshake fails.

        For clients that wait for it, as after a CONNECT; for https from the start see `RawServer`.
        """
        try:
            await self.writer.start_tls(context)
        except (OSError, EOFError):
            raise Ended from None

    async def until_gone(self) -> NoReturn:
        """Waits until the client closes its side, and drops what it sends."""
        with suppress(OSError):
            while await self.reader.read(65536):
                pass
        raise Ended

    async def close(self) -> NoReturn:
        """Ends the connection with FIN."""
        raise Ended

    async def reset(self) -> NoReturn:
        """Ends the connection with RST, after what was sent has arrived."""
        await asyncio.sleep(_ARRIVAL)
        raw: socket.socket | None = self.writer.get_extra_info("socket")
        if raw is not None:  # without lingering, closing a socket sends RST
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))
        self.writer.transport.abort()
        raise Ended


class _Listener(socket.socket):
    """Remembers what it accepted until that is served: a task that is cancelled just then never hears of it."""

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self.fresh: set[socket.socket] = set()

    def accept(self) -> tuple[socket.socket, Any]:
        accepted, address = super().accept()
        self.fresh.add(accepted)
        return accepted, address


class RawServer:
    """Listens on loopback. An async context manager.

    Args:
        scripts: the first connection follows the first, the second the second; the last is repeated. A connection
            whose script has ended is closed.
        ssl_context: for https; the handshake comes before the script.
        host: where to listen.
        port: 0 takes any free one.

    Attributes:
        scripts, ssl_context: as above; may be changed, for the connections that come then.
        heads: the complete request heads, in the order in which they came. They show secrets: for tests only.
        connections: how many were accepted, those whose TLS handshake failed included.
    """

    def __init__(
        self, *scripts: Script, ssl_context: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        if not scripts:
            raise ValueError("RawServer needs at least one script")
        self.scripts: Sequence[Script] = scripts
        self.heads: list[bytes] = []
        self.connections = 0
        self.ssl_context = ssl_context
        self._host = host
        self._port = port
        self._listener: _Listener | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._mistakes: list[BaseException] = []

    @property
    def requests(self) -> int:
        """How many complete request heads came."""
        return len(self.heads)

    @property
    def open(self) -> int:
        """How many connections are open now."""
        return len(self._tasks)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def base_url(self) -> str:
        """For the client."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'http' if self.ssl_context is None else 'https'}://{host}:{self._port}"

    async def start(self) -> None:
        """Listens. A port that was free the first time is used again the next time."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, self._port), family=family, backlog=1024)
        self._listener = _Listener(listener.detach())
        self._listener.setblocking(False)
        self._port = self._listener.getsockname()[1]
        self._accepting = asyncio.get_running_loop().create_task(self._accept(self._listener))

    async def stop_listening(self) -> None:
        """Accepts no more connections; those that are open stay."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait((self._accepting,))
            self._accepting = None
        if self._listener is not None:
            for accepted in self._listener.fresh:
                accepted.close()
            self._listener.close()
            self._listener = None

    async def stop(self) -> None:
        """Breaks all connections and stops listening.

        Raises:
            Exception: what a step of yours raised, the first one.
        """
        await self.stop_listening()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        if self._mistakes:
            raise self._mistakes.pop(0)

    async def _accept(self, listener: _Listener) -> None:
        loop = asyncio.get_running_loop()
        while True:
            accepted, _ = await loop.sock_accept(listener)
            listener.fresh.discard(accepted)
            task = loop.create_task(self._serve(accepted, self.connections))
            self.connections += 1
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    async def _serve(self, accepted: socket.socket, number: int) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await self._open(accepted)
            script = self.scripts[min(number, len(self.scripts) - 1)]
            connection = RawConnection(self, number, reader, writer)
            for step in script:
                await step(connection)
        except Ended:
            pass
        except BaseException:
            if writer is None:
                accepted.close()
            else:
                writer.transport.abort()
            raise
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _open(self, accepted: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

        def protocol() -> asyncio.StreamReaderProtocol:
            reader = asyncio.StreamReader(limit=_HEAD_LIMIT, loop=loop)
            return asyncio.StreamReaderProtocol(reader, lambda *opened: streams.append(opened), loop=loop)

        try:
            await loop.connect_accepted_socket(protocol, accepted, ssl=self.ssl_context)
        except (OSError, EOFError):  # the handshake failed
            accepted.close()
            raise Ended from None
        return streams[0]

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (mistake := task.exception()) is not None:
            self._mistakes.append(mistake)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        except Exception:
            if error is None:
                raise


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
        """The bytes that are sent."""
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
