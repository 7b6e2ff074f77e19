"""A server below HTTP: each connection follows a script, so that it can break every rule on purpose.

    dropped = [ReadHead(), Reset()]
    healthy = [Repeat(ReadHead(), Respond(200, b'{"GetAccountsDetail": [], "RequestId": "r"}'))]
    async with RawServer(dropped, healthy) as server:
        async with FlinksClient(auth_secret="x", base_url=server.base_url) as flinks:
            await flinks.partner_access("token")
    assert server.requests == 2

A step is an async callable that takes the `RawConnection`; those of `raw_steps` cover the usual faults, and a function
of your own can do the rest. The server counts what it was sent, whatever it answers.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, NoReturn, Self

Step = Callable[["RawConnection"], Awaitable[object]]
Script = Sequence[Step]

_HEAD_LIMIT: Final = 1024 * 1024
# What is written before a connection breaks must arrive first: a reset overtakes bytes that are under way.
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
        """Goes on under TLS, as the server. Ends the script if the handshake fails."""
        try:
            await self.writer.start_tls(context)
        except (OSError, EOFError):
            self.server.failed_handshakes += 1
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


class RawServer:
    """Listens on loopback. An async context manager.

    Args:
        scripts: the first connection follows the first, the second the second; the last is repeated. A connection
            whose script has ended is closed.
        ssl_context: for https; the handshake comes before the script.
        host: where to listen.
        port: 0 takes any free one.

    Attributes:
        scripts: as above; may be changed, for the connections that come then.
        heads: the complete request heads, in the order in which they came. They show secrets: for tests only.
        connections: how many were accepted.
        open: how many are open now.
        failed_handshakes: TLS handshakes that did not succeed.
    """

    def __init__(
        self, *scripts: Script, ssl_context: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        if not scripts:
            raise ValueError("RawServer needs at least one script")
        self.scripts: Sequence[Script] = scripts
        self.heads: list[bytes] = []
        self.connections = 0
        self.failed_handshakes = 0
        self._context = ssl_context
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._mistakes: list[BaseException] = []

    @property
    def requests(self) -> int:
        """How many complete request heads came."""
        return len(self.heads)

    @property
    def open(self) -> int:
        return len(self._tasks)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def base_url(self) -> str:
        """For the client."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'http' if self._context is None else 'https'}://{host}:{self._port}"

    async def start(self) -> None:
        """Listens. A port that was free the first time is used again the next time."""
        self._server = await asyncio.start_server(self._accept, self._host, self._port, limit=_HEAD_LIMIT)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Breaks all connections and stops listening.

        Raises:
            Exception: what a step of yours raised, the first one.
        """
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        await server.wait_closed()
        if self._mistakes:
            raise self._mistakes.pop(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = RawConnection(self, self.connections, reader, writer)
        self.connections += 1
        script = self.scripts[min(connection.number, len(self.scripts) - 1)]
        task = asyncio.get_running_loop().create_task(self._follow(connection, script))
        self._tasks[task] = writer
        task.add_done_callback(self._ended)

    async def _follow(self, connection: RawConnection, script: Script) -> None:
        try:
            if self._context is not None:
                await connection.start_tls(self._context)
            for step in script:
                await step(connection)
        except Ended:
            pass
        except asyncio.CancelledError:
            connection.writer.transport.abort()
            raise
        connection.writer.close()
        with suppress(OSError):
            await connection.writer.wait_closed()

    def _ended(self, task: asyncio.Task[None]) -> None:
        writer = self._tasks.pop(task)
        if task.cancelled():
            return
        mistake = task.exception()
        if mistake is not None:
            writer.transport.abort()
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
