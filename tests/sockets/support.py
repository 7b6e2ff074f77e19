"""Shared code of the tests on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trustme

from flinks_async import FlinksClient, Retry, Timeouts
from flinks_async.testing import FakeClock
from tests.raw_server import RawServer, ReadHead, Repeat, Respond

SECRET = "the-auth-secret"
BODY = b'{"GetAccountsDetail":[{"LoginId":"l-1","CustomerId":"c-1"}],"RequestId":"r-1"}'
OK = Respond(200, BODY)
HEALTHY = (Repeat(ReadHead(), OK),)

PATIENT = Timeouts(connect=5, attempt=10, deadline=None)
"""For cases that do not wait: nothing of the test depends on them."""
SHORT = Timeouts(connect=0.25, attempt=0.25, deadline=None)
"""For cases that are about timeouts."""


def client_for(server: RawServer | str, **options: Any) -> FlinksClient:
    """A client with 3 attempts whose waits between them take no time."""
    options.setdefault("clock", FakeClock(random=1.0))
    options.setdefault("retry", Retry(attempts=3))
    options.setdefault("timeouts", PATIENT)
    options.setdefault("auth_secret", SECRET)
    return FlinksClient(base_url=options.pop("base_url", getattr(server, "base_url", server)), **options)


def use_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends all requests through aiohttp's `ClientSession`, as those through a proxy."""
    monkeypatch.setattr("flinks_async.transport.aiohttp.session_is_untouched", lambda: False)


async def assert_clean(client: FlinksClient) -> None:
    """Nothing is left of any call: no call, no place, no connection in use, no socket outside the pool."""
    stats = client.stats()
    assert (stats.calls_in_flight, stats.requests_in_flight, stats.queued) == (0, 0, 0)
    sessions = client._pool.sessions
    assert sessions is not None
    assert sessions.in_use == 0
    connectors: list[Any] = [session.connector for session in sessions._sessions.values()]
    pooled = 0
    # A connection that was given up is closed in the next turns of the loop.
    for _ in range(200):
        # The server may have closed some of them meanwhile; they are dropped when they are looked at.
        pooled = sum(connection.is_open for pool in sessions.pools.values() for connection in pool.idle)
        kept = [idle[0] for connector in connectors for several in connector._conns.values() for idle in several]
        pooled += sum(protocol.is_connected() for protocol in kept)
        if client.stats().connections.open <= pooled:
            break
        await asyncio.sleep(0.005)
    assert not any(connector._acquired for connector in connectors)
    connections = client.stats().connections
    assert connections.open == connections.idle == pooled


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Authority:
    """A certificate authority of the test, in a directory."""

    def __init__(self, directory: Any, name: str = "ca") -> None:
        self.ca = trustme.CA()
        self.file = str(directory / f"{name}.pem")
        self.ca.cert_pem.write_to_path(self.file)
        self._directory = directory

    def client_files(self) -> tuple[str, str]:
        """The paths of a client certificate and its key."""
        made = self.ca.issue_cert("partner@example.com")
        certificate, key = str(self._directory / "client.pem"), str(self._directory / "client.key")
        made.cert_chain_pems[0].write_to_path(certificate)
        made.private_key_pem.write_to_path(key)
        return certificate, key

    def context(self, *names: str, **options: Any) -> Any:
        """A server's TLS context with a certificate for the names."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or ("localhost", "127.0.0.1", "::1")), **options).configure_cert(context)
        return context


@contextlib.asynccontextmanager
async def healthy() -> AsyncIterator[RawServer]:
    async with RawServer(HEALTHY) as server:
        yield server


def in_thread(main: Any) -> Any:
    """The result of a coroutine in a loop of a thread of its own."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(asyncio.run(main()))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    return results[0]
