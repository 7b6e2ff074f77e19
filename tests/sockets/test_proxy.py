"""Through an HTTP proxy: CONNECT for https, the whole URL for http."""

from __future__ import annotations

import base64
import ssl
from typing import Any

import pytest

from flinks_async import ConfigError, Connection, FlinksError, ProxyError
from tests.raw_server import Close, Hang, RawServer, ReadHead, Repeat, Reset, Respond, Send, StartTLS

from .support import OK, SHORT, Authority, assert_clean, client_for, unused_port

TUNNEL = Send(b"HTTP/1.1 200 Connection established\r\n\r\n")


def through(proxy: RawServer, authority: Authority, user: str = "") -> Connection:
    return Connection(ca_file=authority.file, proxy=proxy.base_url.replace("://", f"://{user}"))


def behind(authority: Authority, *steps: Any) -> list[Any]:
    """A proxy that plays the server behind it, too."""
    return [ReadHead(), TUNNEL, StartTLS(authority.context("flinks.test")), *(steps or (Repeat(ReadHead(), OK),))]


async def test_an_https_request_goes_through_a_tunnel(authority: Authority) -> None:
    async with RawServer(behind(authority)) as proxy:
        async with client_for("https://flinks.test", connection=through(proxy, authority)) as client:
            await client.partner_access("first")
            await client.partner_access("second")
            await assert_clean(client)
    connect, first, second = proxy.heads
    assert connect.startswith(b"CONNECT flinks.test:443 HTTP/1.1\r\n")
    assert first.startswith(b"GET /partneraccess/first HTTP/1.1\r\n")
    assert second.startswith(b"GET /partneraccess/second HTTP/1.1\r\n")
    assert client.stats().requests == 2


async def test_the_proxy_sees_neither_secret_nor_token(authority: Authority) -> None:
    async with RawServer(behind(authority)) as proxy:
        connection = through(proxy, authority, "user:pass@")
        async with client_for("https://flinks.test", connection=connection) as client:
            await client.partner_access("the-token")
    connect, request = proxy.heads
    assert b"the-auth-secret" not in connect
    assert b"the-token" not in connect
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"user:pass") in connect
    assert b"roxy-" not in request


async def test_an_http_request_names_the_whole_url() -> None:
    async with RawServer([Repeat(ReadHead(), OK)]) as proxy:
        connection = Connection(proxy=proxy.base_url.replace("://", "://user:pass@"))
        async with client_for("http://flinks.test", allow_http=True, connection=connection) as client:
            await client.partner_access("t")
            await assert_clean(client)
    assert proxy.heads[0].startswith(b"GET http://flinks.test/partneraccess/t HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic " in proxy.heads[0]


@pytest.mark.parametrize(("status", "attempts"), [(407, 1), (403, 3), (502, 3), (301, 3)])
async def test_a_proxy_that_refuses_is_a_proxy_error(status: int, attempts: int, authority: Authority) -> None:
    async with RawServer([ReadHead(), Respond(status), Close()]) as proxy:
        connection = through(proxy, authority, "user:the-password@")
        async with client_for("https://flinks.test", connection=connection) as client:
            with pytest.raises(ProxyError) as caught:
                await client.partner_access("t")
            await assert_clean(client)
            assert (caught.value.status, caught.value.attempts, proxy.requests) == (status, attempts, attempts)
            assert "the-password" not in f"{caught.value!r}"
            assert caught.value.sent is False

            proxy.scripts = [behind(authority)]
            await client.partner_access("next")
            await assert_clean(client)


async def test_a_proxy_that_is_down_is_a_proxy_error(authority: Authority) -> None:
    connection = Connection(ca_file=authority.file, proxy=f"http://127.0.0.1:{unused_port()}")
    async with client_for("https://flinks.test", connection=connection) as client:
        with pytest.raises(ProxyError) as caught:
            await client.partner_access("t")
        assert caught.value.attempts == 3
        await assert_clean(client)


@pytest.mark.parametrize(
    "steps",
    [
        [ReadHead(), Close()],
        [ReadHead(), Reset()],
        [ReadHead(), Send(b"garbage\r\n\r\n"), Close()],
        [ReadHead(), TUNNEL, Close()],
        [ReadHead(), Hang()],
    ],
    ids=["closes", "resets", "speaks no HTTP", "closes the tunnel", "never answers"],
)
async def test_a_proxy_that_breaks_is_an_error_of_ours(steps: Any, authority: Authority) -> None:
    async with RawServer(steps) as proxy:
        options: dict[str, Any] = {"connection": through(proxy, authority)}
        if isinstance(steps[-1], Hang):
            options["timeouts"] = SHORT
        async with client_for("https://flinks.test", **options) as client:
            with pytest.raises(FlinksError) as caught:
                await client.partner_access("t")
            assert caught.value.attempts == proxy.requests == client.stats().requests == 3
            await assert_clean(client)


async def test_a_proxy_of_the_environment_is_used_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with RawServer([Repeat(ReadHead(), OK)]) as server, RawServer([Repeat(ReadHead(), OK)]) as proxy:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, proxy.base_url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        async with client_for(server) as client:
            await client.partner_access("t")
        assert (server.requests, proxy.requests) == (1, 0)
        async with client_for(server, connection=Connection(trust_env=True)) as client:
            await client.partner_access("t")
        assert (server.requests, proxy.requests) == (1, 1)


@pytest.mark.parametrize("exceptions", ["127.0.0.1", "*", "localhost,127.0.0.1"])
async def test_no_proxy_names_exceptions(exceptions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with RawServer([Repeat(ReadHead(), OK)]) as server:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port()}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, exceptions)
        async with client_for(server, connection=Connection(trust_env=True)) as client:
            await client.partner_access("t")
        assert server.requests == 1


async def test_the_environment_is_read_when_the_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async with RawServer([Repeat(ReadHead(), OK)]) as server:
        for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        async with client_for(server, connection=Connection(trust_env=True)) as client:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")
            await client.partner_access("t")
        assert server.requests == 1


async def test_an_untrusted_certificate_behind_a_proxy_is_refused(authority: Authority) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.ca.issue_cert("other.test").configure_cert(context)
    from flinks_async import CertificateError

    async with RawServer([ReadHead(), TUNNEL, StartTLS(context), ReadHead(), OK]) as proxy:
        async with client_for("https://flinks.test", connection=through(proxy, authority)) as client:
            with pytest.raises(CertificateError) as caught:
                await client.partner_access("t")
            assert (caught.value.attempts, proxy.requests) == (1, 1)
            await assert_clean(client)


@pytest.mark.parametrize(
    ("exceptions", "url", "exempt"),
    [
        ("10.0.0.0/8", "http://10.1.2.3", True),
        ("10.0.0.0/8", "http://11.1.2.3", False),
        ("a, 10.1.2.3/8", "http://10.9.9.9", True),
        ("::1", "http://[::1]:8080", True),
        ("[::1]", "http://[::1]", True),
        ("fe80::/10", "http://[fe80::5]", True),
        ("fe80::/10", "http://[2001::5]", False),
        ("host.example:443", "https://host.example", True),
        ("host.example:8443", "https://host.example", False),
        ("host.example:80", "http://host.example", True),
        ("[::1]:8080", "http://[::1]:8080", True),
        ("[::1]:8080", "http://[::1]:8081", False),
        ("*.example", "https://host.example", True),
        ("*.example", "https://hostexample", False),
        (".example", "https://a.host.example", True),
        ("example", "https://host.example", True),
        ("ample", "https://host.example", False),
        ("HOST.Example", "https://host.example", True),
        ("host.example.", "https://host.example", True),
        ("other other2\thost.example", "https://host.example", True),
        ("*", "https://host.example", True),
        ("other, *", "https://host.example", True),
        (" , ", "https://host.example", False),
        ("10.0.0.0/99,/,:,[", "http://10.1.2.3", False),
    ],
)
def test_no_proxy_has_hosts_ports_patterns_and_networks(
    exceptions: str, url: str, exempt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", exceptions)
    client = client_for(url, connection=Connection(trust_env=True), allow_http=True)
    monkeypatch.setenv("no_proxy", "" if exempt else "*")  # it counts when the client is made
    sessions = client._pool.sessions
    assert sessions is not None
    assert (sessions.proxy_for(client._endpoint) is None) == exempt


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_wrong_proxy_of_the_environment_is_named(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", "socks5://proxy.example:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ConfigError, match=f"^{scheme.upper()}_PROXY of the environment must be"):
        client_for(f"{scheme}://flinks.test", connection=Connection(trust_env=True), allow_http=True)
    with pytest.raises(ConfigError, match=r"^Connection\.proxy must be"):
        client_for("https://flinks.test", connection=Connection(proxy="socks5://proxy.example:1"))
