"""Exchanges that are given up: the server sees the end of the connection at once, also if it ignores TLS's close_notify."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler

from flinks_async import (
    AttemptTimeoutError,
    ClientClosedError,
    Connection,
    DeadlineExceededError,
    FlinksClient,
    Hedge,
    ResponseTooLargeError,
    Retry,
    Timeouts,
)
from flinks_async.messages import Handler, Request, Response
from flinks_async.transport.http1 import HTTPConnection

from .support import BODY, SECRET, Authority, use_sessions

MOST_BYTES = 24 * 1024 * 1024
"""More than the buffers of both kernels hold, and far less than a flood sends in a second."""
SOON = 20.0
"""Seconds; asyncio and uvloop wait 30 s for the peer's close_notify."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LENGTH = HEAD + b"Content-Length: 50000000\r\n\r\n"
ENDLESS = HEAD + b"\r\n"
ERROR = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/\r\n\r\n"
WHOLE = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


class DeafServer:
    """A TLS server in threads. It answers the first request of a connection and never reacts to close_notify.

    Args:
        head: sent for each request; empty to stay silent.
        flood: send data after it without end; else wait for the end of the connection.
    """

    def __init__(self, context: ssl.SSLContext | None, head: bytes, *, flood: bool) -> None:
        self._context, self.head, self._flood = context, head, flood
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._changed = threading.Condition()
        self.asked = self.ended = self.sent = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def base_url(self) -> str:
        return f"{'http' if self._context is None else 'https'}://localhost:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                accepted, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(accepted,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        try:
            with suppress(OSError):
                self._answer(raw if self._context is None else self._context.wrap_socket(raw, server_side=True))
        finally:
            raw.close()
            self._count("ended")

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            connection.sendall(self.head)
            self._count("asked")
            while self._flood:
                connection.sendall(b"[" * 65536)
                self.sent += 65536
            while os.read(connection.fileno(), 65536):  # below TLS, so that only the end of TCP counts
                pass

    def _count(self, name: str) -> None:
        with self._changed:
            setattr(self, name, getattr(self, name) + 1)
            self._changed.notify_all()

    def _wait(self, name: str, number: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: getattr(self, name) >= number, SOON)

    async def until(self, name: str, number: int = 1) -> None:
        """Waits until so many requests were `asked`, or so many connections have `ended`."""
        done = await asyncio.get_running_loop().run_in_executor(None, self._wait, name, number)
        assert done, f"{name}: {getattr(self, name)} of {number} within {SOON} s; {self.sent} bytes sent"

    async def assert_ended(self, number: int = 1) -> None:
        await self.until("ended", number)
        assert self.sent < MOST_BYTES

    def close(self) -> None:
        with suppress(OSError):  # not everywhere
            self._listener.shutdown(socket.SHUT_RDWR)  # without it, the thread would wait for ever
        self._listener.close()


async def fresh(request: Request, call_next: Handler) -> Response:
    request.call.fresh = True
    return await call_next(request)


WAYS = {"fast": (), "session": (), "fresh": (fresh,), "borrowed": ()}


class Case:
    """A server and a client for it, on one of the ways to the wire."""

    def __init__(self, authority: Authority, way: str, head: bytes, *, flood: bool, tls: bool = True, **options: Any):
        self.server = DeafServer(authority.context() if tls else None, head, flood=flood)
        self._authority, self._way, self._options = authority, way, options
        self._session: aiohttp.ClientSession | None = None
        self._monkeypatch = pytest.MonkeyPatch()

    async def __aenter__(self) -> tuple[DeafServer, FlinksClient]:
        if self._way == "session":
            use_sessions(self._monkeypatch)
        options: dict[str, Any] = {
            "timeouts": Timeouts(attempt=60, deadline=None),
            "retry": Retry(attempts=1),
            "attempt_middleware": WAYS[self._way],
            "connection": Connection(ca_file=self._authority.file),
            **self._options,
        }
        if self._way == "borrowed":
            trusting = ssl.create_default_context(cafile=self._authority.file)
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting))
            options["session"] = self._session
            del options["connection"]
        self.client = FlinksClient(auth_secret=SECRET, base_url=self.server.base_url, **options)
        return self.server, self.client

    async def __aexit__(self, *_: object) -> None:
        self._monkeypatch.undo()
        await self.client.close(grace=0)
        if self._session is not None:
            await self._session.close()
        self.server.close()


Run = Callable[[Awaitable[Any]], Any]
on_every_way = pytest.mark.parametrize("way", WAYS)


@on_every_way
@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize(
    ("head", "flood"), [(b"", False), (LENGTH, False), (ENDLESS, True)], ids=["head", "body", "flood"]
)
def test_a_timeout_of_the_attempt(
    run: Run, authority: Authority, way: str, tls: bool, head: bytes, flood: bool
) -> None:
    async def main() -> None:
        limits = {"max_body": 10**12}
        timeouts = Timeouts(attempt=0.2, deadline=None)
        async with Case(authority, way, head, flood=flood, tls=tls, timeouts=timeouts, limits=limits) as (
            server,
            client,
        ):
            while not server.asked:  # the time may be over before the request is sent
                with pytest.raises(AttemptTimeoutError):
                    await client.partner_access("t")
            await server.until("ended", server.asked)

    run(main())


@on_every_way
@pytest.mark.parametrize("head", [b"", LENGTH], ids=["head", "body"])
def test_a_cancelled_call(run: Run, authority: Authority, way: str, head: bytes) -> None:
    async def main() -> None:
        async with Case(authority, way, head, flood=False) as (server, client):
            call = asyncio.create_task(client.partner_access("t"))
            await server.until("asked")
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await server.assert_ended()

    run(main())


@on_every_way
@pytest.mark.parametrize("head", [LENGTH, ENDLESS, ERROR, REDIRECT], ids=["length", "endless", "error", "redirect"])
def test_a_body_over_the_limit(run: Run, authority: Authority, way: str, head: bytes) -> None:
    async def main() -> None:
        async with Case(authority, way, head, flood=True, limits={"max_body": 2**20}) as (server, client):
            with pytest.raises(ResponseTooLargeError):
                await client.partner_access("t")
            await server.assert_ended()

    run(main())


@pytest.mark.parametrize(("way", "protocol"), [("fast", HTTPConnection), ("session", ResponseHandler)])
def test_a_call_that_is_cancelled_when_tls_is_ready(
    run: Run, authority: Authority, way: str, protocol: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = protocol.connection_made

    def cancel(self: Any, transport: Any) -> None:
        made(self, transport)
        call.cancel()

    async def main() -> None:
        nonlocal call
        async with Case(authority, way, b"", flood=False) as (server, client):
            monkeypatch.setattr(protocol, "connection_made", cancel)
            call = asyncio.create_task(client.partner_access("t"))
            await asyncio.wait([call])
            assert call.cancelled()
            await server.until("ended")  # both kinds of loop would wait 30 s for an answer to close_notify
            assert client.stats().connections.open == 0

    call: Any = None
    run(main())


@on_every_way
def test_the_deadline(run: Run, authority: Authority, way: str) -> None:
    async def main() -> None:
        async with Case(authority, way, LENGTH, flood=False) as (server, client):
            while not server.asked:
                with pytest.raises(DeadlineExceededError):
                    await client.partner_access("t", timeout=0.2)
            await server.assert_ended(server.asked)

    run(main())


@on_every_way
@pytest.mark.parametrize("head", [b"", LENGTH], ids=["head", "body"])
def test_closing_the_client(run: Run, authority: Authority, way: str, head: bytes) -> None:
    async def main() -> None:
        async with Case(authority, way, head, flood=False) as (server, client):
            call = asyncio.create_task(client.partner_access("t"))
            await server.until("asked")
            await client.close(grace=0)
            with pytest.raises(ClientClosedError):
                await call
            await server.assert_ended()

    run(main())


def test_coalesced_calls_whose_last_waiter_leaves(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with Case(authority, "fast", LENGTH, flood=False, coalesce=True) as (server, client):
            calls = [asyncio.create_task(client.partner_access("t")) for _ in range(2)]
            await server.until("asked")
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            await server.assert_ended()

    run(main())


def test_both_attempts_of_a_hedged_call(run: Run, authority: Authority) -> None:
    async def main() -> None:
        hedge = Hedge(samples=1, minimum=0.02)
        async with Case(authority, "fast", WHOLE, flood=False, hedge=hedge) as (server, client):
            await client.partner_access("t")  # a hedge needs a measured attempt
            server.head = LENGTH
            call = asyncio.create_task(client.partner_access("t"))
            await server.until("asked", 3)
            call.cancel()
            await asyncio.wait([call])
            await server.assert_ended(3)

    run(main())


@pytest.mark.parametrize("way", ["fast", "session", "fresh"])
def test_a_whole_answer_that_ends_the_connection(run: Run, authority: Authority, way: str) -> None:
    async def main() -> None:
        async with Case(authority, way, WHOLE, flood=False) as (server, client):
            await client.partner_access("t")
            await server.assert_ended()

    run(main())


def test_a_handshake_that_does_not_end(run: Run, authority: Authority) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            connection = Connection(ca_file=authority.file)
            url = f"https://localhost:{listener.getsockname()[1]}"
            async with FlinksClient(auth_secret=SECRET, base_url=url, connection=connection) as client:
                loop = asyncio.get_running_loop()
                call = asyncio.create_task(client.partner_access("t"))
                accepted, _ = await loop.sock_accept(listener)
                with accepted:
                    accepted.setblocking(False)
                    await loop.sock_recv(accepted, 65536)
                    call.cancel()
                    async with asyncio.timeout(SOON):
                        assert await loop.sock_recv(accepted, 65536) == b""

    run(main())
