"""TLS that works, and its guarantees. The table of faults has the failures of TLS."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flinks_async import CertificateError, Connection, Failed, FlinksClient, ReadError, Response, Retry, TransportError
from flinks_async.runtime import fast_loop
from flinks_async.transport import session
from tests.raw_server import Close, RawConnection, RawServer, ReadHead, Send
from tests.support import turns

from .fault_table import head
from .support import BODY, HEALTHY, OK, Authority, assert_clean, client_for


def https(server: RawServer, host: str = "localhost") -> str:
    return f"https://{host}:{server.port}"


def trusting(authority: Authority, **more: Any) -> Connection:
    return Connection(ca_file=authority.file, **more)


class FinOnly:
    """Ends the TCP connection below TLS, without TLS' own close_notify, as anybody on the way can."""

    async def __call__(self, connection: RawConnection) -> None:
        await asyncio.sleep(0.02)  # what was sent must arrive before
        connection.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
        await connection.until_gone()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, fast_loop()])
def test_a_body_without_a_length_ends_only_with_tls(authority: Authority, factory: Any, whole: bool) -> None:
    async def main() -> Response:
        script = (ReadHead(), Send(head("Connection: close") + BODY), Close() if whole else FinOnly())
        async with RawServer(script, ssl_context=authority.context()) as server:
            connection, retry = trusting(authority), Retry(attempts=1)
            async with client_for(https(server), connection=connection, retry=retry) as client:
                return await client.partner_access_raw("t")

    with asyncio.Runner(loop_factory=factory) as runner:
        if whole:
            assert runner.run(main()).body == BODY
        else:
            with pytest.raises(ReadError):
                runner.run(main())


async def test_a_client_certificate_is_shown_when_asked_for(authority: Authority) -> None:
    context = authority.context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.file)
    certificate, key = authority.client_files()
    async with RawServer(HEALTHY, ssl_context=context) as server:
        connection = trusting(authority, client_cert=certificate, client_key=key)
        async with client_for(https(server), connection=connection) as client:
            await client.partner_access("t")
            await assert_clean(client)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_versions_of_tls_are_spoken(version: ssl.TLSVersion, authority: Authority) -> None:
    context = authority.context()
    context.minimum_version = context.maximum_version = version
    async with RawServer(HEALTHY, ssl_context=context) as server:
        async with client_for(https(server), connection=trusting(authority)) as client:
            await client.partner_access("first")
            await client.partner_access("second")
            assert (server.connections, client.stats().connections.reused) == (1, 1)


async def test_the_server_is_told_the_host_name(authority: Authority) -> None:
    names: list[str | None] = []
    context = authority.context()
    context.sni_callback = lambda sock, name, ctx: names.append(name)
    async with RawServer(HEALTHY, ssl_context=context) as server:
        async with client_for(https(server), connection=trusting(authority)) as client:
            await client.partner_access("t")
    assert names == ["localhost"]


async def test_only_http_1_1_is_offered(authority: Authority) -> None:
    spoken: list[Any] = []

    async def note(connection: RawConnection) -> None:
        spoken.append(connection.writer.get_extra_info("ssl_object").selected_alpn_protocol())

    context = authority.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with RawServer([note, *HEALTHY], ssl_context=context) as server:
        async with client_for(https(server), connection=trusting(authority)) as client:
            await client.partner_access("t")
    assert spoken == ["http/1.1"]


async def test_a_context_of_the_users_own_is_used(authority: Authority) -> None:
    context = ssl.create_default_context(cafile=authority.file)
    async with RawServer(HEALTHY, ssl_context=authority.context()) as server:
        async with client_for(https(server), connection=Connection(ssl_context=context)) as client:
            await client.partner_access("t")
            assert await client._pool.sessions.tls() is context


async def test_a_host_name_with_a_trailing_dot_works(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    async def resolve(host: str, port: int, **kwargs: Any) -> Any:
        return await type(loop).getaddrinfo(loop, "127.0.0.1", port, **kwargs)

    monkeypatch.setattr(loop, "getaddrinfo", resolve, raising=False)
    async with RawServer(HEALTHY, ssl_context=authority.context("flinks.test")) as server:
        async with client_for(https(server, "flinks.test."), connection=trusting(authority)) as client:
            await client.partner_access("t")
        assert server.requests == 1


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 on this machine")
@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
async def test_an_ipv6_literal_works(secure: bool, authority: Authority) -> None:
    context = authority.context() if secure else None
    async with RawServer(HEALTHY, host="::1", ssl_context=context) as server:
        async with client_for(server, connection=trusting(authority)) as client:
            await client.partner_access("t")
            assert f"Host: [::1]:{server.port}".encode() in server.heads[0]


async def test_the_context_is_made_once_and_not_in_the_loop(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []
    real = ssl.create_default_context
    loop_thread = threading.get_ident()

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(threading.get_ident() == loop_thread)
        return real(*args, **kwargs)

    server_context = authority.context()
    monkeypatch.setattr("flinks_async.transport.session._contexts", {})  # which other tests have filled
    monkeypatch.setattr("ssl.create_default_context", counted)
    async with RawServer(HEALTHY, ssl_context=server_context) as server:
        async with client_for(https(server), connection=trusting(authority)) as client:
            await asyncio.gather(*(client.partner_access(f"t{n}") for n in range(10)))
            await client.with_options(auth_scheme="bearer").partner_access("t")
            await client.partner_access("again")
    assert made == [False]


async def test_many_tls_connections_at_once_leave_nothing_behind(authority: Authority) -> None:
    async with RawServer([ReadHead(), OK, ReadHead(), OK], ssl_context=authority.context()) as server:
        client: FlinksClient
        async with client_for(https(server), connection=trusting(authority)) as client:
            for _ in range(3):
                await asyncio.gather(*(client.partner_access(f"t{n}") for n in range(15)))
            await assert_clean(client)
        assert client.stats().connections.open == 0


class NoThreads(Executor):
    """An executor in a process that cannot start another thread."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("can't start new thread")


class Cancelling(Executor):
    """An executor that is shut down with `cancel_futures=True` before the work begins."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        future: Future[Any] = Future()
        future.cancel()
        return future


def _closed_executor() -> Executor:
    executor = ThreadPoolExecutor()
    executor.shutdown()
    return executor


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("make", [NoThreads, _closed_executor, Cancelling])
async def test_a_shortage_of_threads_is_transient(
    make: Callable[[], Executor], secure: bool, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    real = type(loop).run_in_executor
    short: Executor | None = make()

    def run_in_executor(executor: Any, function: Any, *args: Any) -> Any:
        return real(loop, short or executor, function, *args)

    monkeypatch.setattr(loop, "run_in_executor", run_in_executor)
    async with RawServer(HEALTHY, ssl_context=authority.context() if secure else None) as server:
        url = server.base_url.replace("127.0.0.1", "localhost")
        async with client_for(url, connection=trusting(authority), retry=Retry(attempts=1)) as client:
            outcomes = [one async for one in client.partner_access_many(["a", "b"])]
            assert [isinstance(one, Failed) and isinstance(one.error, TransportError) for one in outcomes] == [
                True,
                True,
            ]
            short = None
            await client.partner_access("t")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_NOFILE")
@pytest.mark.parametrize("kind", ["default", "ca_file", "client_cert"])
async def test_a_shortage_of_file_descriptors_is_transient(
    kind: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    connection = Connection()
    if kind == "default":
        monkeypatch.setenv("SSL_CERT_FILE", authority.file)
    else:
        connection = trusting(authority)
    async with RawServer(HEALTHY, ssl_context=authority.context()) as server:
        if kind == "client_cert":
            certificate, key = authority.client_files()
            connection = trusting(authority, client_cert=certificate, client_key=key)
        async with client_for(https(server), connection=connection, retry=Retry(attempts=1)) as client:
            await asyncio.get_running_loop().run_in_executor(None, int)  # a thread that is there already
            await turns()  # the server waits for connections
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            with open(os.devnull) as last:
                resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 1, before[1]))
                try:
                    with pytest.raises(TransportError) as caught:
                        await client.partner_access("t")
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert not isinstance(caught.value, CertificateError)
            await client.partner_access("t")


async def test_clients_with_equal_settings_share_one_tls_context(authority: Authority, tmp_path: Path) -> None:
    async def context(**connection: Any) -> ssl.SSLContext:
        async with client_for("https://flinks.test", connection=connection) as client:
            sessions = client._pool.sessions
            assert sessions is not None
            return await sessions.tls()

    shared = await context()
    assert await context(keepalive=3.0) is shared
    own = await context(ca_file=authority.file)
    assert own is not shared
    assert await context(ca_file=Path(authority.file)) is own
    renewed = tmp_path / "renewed.pem"
    renewed.write_bytes(Path(authority.file).read_bytes())
    first = await context(ca_file=renewed)
    os.utime(renewed, ns=(1, 1))
    assert await context(ca_file=renewed) is not first  # the file may hold other certificates now
    together = await asyncio.gather(*(context(ca_file=renewed) for _ in range(5)))
    assert len(set(map(id, together))) == 1
    for number in range(20):
        os.utime(renewed, ns=(number, number))
        await context(ca_file=renewed)
    assert len(session._contexts) <= 8
