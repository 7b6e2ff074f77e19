"""The requests on the wire: URL, token, headers and destination."""

from __future__ import annotations

import socket
from contextlib import suppress
from enum import Enum
from typing import Any
from urllib.parse import unquote

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flinks_async import BadRequestError, ConfigError, FlinksError, InvalidTokenError, RedirectError, Request, Secret
from tests.raw_server import RawServer, ReadHead, Repeat, Respond
from tests.support import examples

from .support import HEALTHY, SECRET, client_for, use_sessions

SPECIAL = " !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
UNRESERVED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"


def target(head: bytes) -> str:
    return head.split(b"\r\n")[0].split(b" ")[1].decode("ascii")


def headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


def segment(head: bytes) -> str:
    prefix, _, last = target(head).partition("/partneraccess/")
    assert prefix == ""
    return last


@pytest.mark.parametrize("way", ["own connection", "session"])
@pytest.mark.parametrize(
    "token",
    [
        *(f"a{character}b" for character in SPECIAL),
        "é",
        "日本",
        "a%2Fb",
        "a%252Fb",
        "%",
        "%%",
        "a//b",
        "a/../b",
        "..a",
        "a" * 1024,
    ],
)
async def test_a_token_is_percent_encoded_exactly_once(token: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "session":
        use_sessions(monkeypatch)
    async with RawServer(HEALTHY) as server, client_for(server) as client:
        await client.partner_access(token)
        sent = segment(server.heads[0])
        assert unquote(sent, errors="strict") == token
        assert set(sent) <= set(UNRESERVED + "%")


@examples(60)
@given(token=st.text(max_size=40) | st.text(st.characters(max_codepoint=0x2FF), max_size=40))
async def test_what_is_sent_is_what_was_given_or_nothing_is_sent(token: str) -> None:
    async with RawServer(HEALTHY) as server, client_for(server) as client:
        try:
            await client.partner_access(token)
        except InvalidTokenError:
            assert server.connections == 0
        else:
            assert unquote(segment(server.heads[0]), errors="strict") == token
            assert server.requests == 1


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "%2e",
        "%2E%2e",
        "%252e%252E",
        "a\r\nX-Evil: 1",
        "a\n",
        "a\0",
        "\x7f",
        "a\x85",
        "\ud800",
        "a" * 1025,
        "a" * 1_000_000,
    ],
)
async def test_a_token_that_would_change_the_request_is_refused(token: str) -> None:
    async with RawServer(HEALTHY) as server, client_for(server) as client:
        with pytest.raises(InvalidTokenError) as caught:
            await client.partner_access(token)
        assert not token or token not in str(caught.value) or set(token) <= {"."}
        assert (server.connections, client.stats().requests) == (0, 0)


@pytest.mark.parametrize("token", [None, b"bytes", 7, ["t"], object()])
async def test_a_token_that_is_no_text_is_refused(token: Any) -> None:
    async with RawServer(HEALTHY) as server, client_for(server) as client:
        with pytest.raises(InvalidTokenError):
            await client.partner_access(token)
        assert server.connections == 0


@pytest.mark.parametrize(
    ("scheme", "name", "value"),
    [
        ("flinks-auth-key", "flinks-auth-key", f"Bearer {SECRET}"),
        ("flinks-auth-key-raw", "flinks-auth-key", SECRET),
        ("bearer", "authorization", f"Bearer {SECRET}"),
    ],
)
async def test_the_head_of_a_request(scheme: Any, name: str, value: str) -> None:
    options: dict[str, Any] = {"auth_scheme": scheme, "app_name": "acme/1", "headers": {"X-Own": "1"}}
    async with RawServer(HEALTHY) as server, client_for(server, **options) as client:
        await client.partner_access("t")
        sent = headers(server.heads[0])
        assert sent[name] == value
        assert sent["host"] == f"127.0.0.1:{server.port}"
        assert sent["accept"] == sent["content-type"] == "application/json"
        assert sent["accept-encoding"] == "gzip, deflate"
        assert sent["user-agent"].startswith("acme/1 flinks-async/")
        assert sent["x-own"] == "1"
        assert {"cookie", "content-length", "transfer-encoding"}.isdisjoint(sent)
        assert (server.heads[0].count(SECRET.encode()), len(sent)) == (1, server.heads[0].count(b"\r\n") - 2)


@pytest.mark.parametrize("prefix", ["", "/", "/a/b", "/a%20b/", "/é"])
async def test_base_url_may_have_a_path_and_a_port(prefix: str) -> None:
    async with RawServer(HEALTHY) as server, client_for(server, base_url=server.base_url + prefix) as client:
        await client.partner_access("t")
        expected = prefix.rstrip("/").replace("é", "%C3%A9")
        assert target(server.heads[0]) == f"{expected}/partneraccess/t"


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\0b", "é"])
async def test_a_header_cannot_be_injected(value: str) -> None:
    async def middleware(request: Request, call_next: Any) -> Any:
        return await call_next(request.evolve(headers={"X-Trace": value}))

    with pytest.raises(ConfigError):
        client_for("http://127.0.0.1:1", headers={"X-Own": value})
    with pytest.raises(ConfigError):
        client_for("http://127.0.0.1:1", auth_secret=value)
    with pytest.raises(ConfigError):
        client_for("http://127.0.0.1:1", app_name=value)
    async with RawServer(HEALTHY) as server, client_for(server, attempt_middleware=[middleware]) as client:
        with suppress(FlinksError):
            await client.partner_access("t")
        assert not any(b"\nX-Evil" in head or b"\nb" in head for head in server.heads)


async def test_a_secret_from_a_callable_cannot_inject_a_header() -> None:
    async def provider() -> str:
        return "a\r\nX-Evil: 1"

    async with RawServer(HEALTHY) as server, client_for(server, auth_secret=provider) as client:
        with pytest.raises(ConfigError):
            await client.partner_access("t")
        assert server.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_origin_sends_nothing_there(status: int) -> None:
    async with RawServer(HEALTHY) as other:
        away = Respond(status, b"", {"Location": f"{other.base_url}/partneraccess/t"})
        async with RawServer([Repeat(ReadHead(), away)]) as server, client_for(server) as client:
            with pytest.raises(RedirectError) as caught:
                await client.partner_access("t")
        assert (other.connections, server.requests) == (0, 1)
        assert caught.value.location_host == "127.0.0.1"
        assert "partneraccess" not in str(caught.value)


async def test_a_token_may_come_as_a_secret() -> None:
    async with RawServer(HEALTHY) as server, client_for(server) as client:
        await client.partner_access(Secret("t"))
        assert segment(server.heads[0]) == "t"


class Text(str):
    """A text that writes itself in another way."""

    def __str__(self) -> str:
        return "not-the-text"

    def __format__(self, spec: str) -> str:
        return "not-the-text"

    def encode(self, *_: Any) -> bytes:
        return b"x\r\nX-Evil: 1"

    def isascii(self) -> bool:
        return True

    strip = lower = __str__


class Named(str, Enum):  # noqa: UP042 - a StrEnum writes itself as its value
    """A text that a format shows by its name, as a member of an enum does."""

    SECRET = "the-secret"
    TOKEN = "the-token"
    NAME = "X-Own"
    VALUE = "the-value"


async def _with_texts(request: Request, call_next: Any) -> Any:
    return await call_next(request.evolve(headers={Text("X-More"): Text("more"), Named.NAME: Named.VALUE}))


@pytest.mark.parametrize("way", ["own connection", "session"])
@pytest.mark.parametrize("ways", [(), (_with_texts,)], ids=["alone", "with more"])
@pytest.mark.parametrize("scheme", ["flinks-auth-key", "flinks-auth-key-raw"])
@pytest.mark.parametrize(
    "texts",
    [Text, Named],
    ids=["a subclass", "an enum"],
)
async def test_of_a_subclass_of_str_the_text_alone_is_sent(
    texts: Any, scheme: Any, ways: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "session":
        use_sessions(monkeypatch)
    async with RawServer(HEALTHY) as server:
        options: dict[str, Any] = {
            "auth_secret": texts("the-secret"),
            "headers": {texts("X-Own"): texts("the-value")},
            "app_name": texts("the-value"),
            "base_url": Text(server.base_url),
            "attempt_middleware": ways,
        }
        async with client_for(server, auth_scheme=scheme, **options) as client:
            await client.partner_access(texts("the-token"))
    sent = headers(server.heads[0])
    assert segment(server.heads[0]) == "the-token"
    assert sent["flinks-auth-key"] == "the-secret" if scheme.endswith("raw") else "Bearer the-secret"
    assert sent["x-own"] == "the-value"
    assert sent["user-agent"].startswith("the-value flinks-async/")
    assert sent.get("x-more") == ("more" if ways else None)
    assert "x-evil" not in sent


async def test_a_400_with_an_empty_object_is_a_bad_request_without_fields() -> None:
    async with RawServer([ReadHead(), Respond(400, b"{}")]) as server, client_for(server) as client:
        with pytest.raises(BadRequestError) as caught:
            await client.partner_access("t")
        assert (caught.value.flinks_code, caught.value.server_message, caught.value.request_id) == (None, None, None)


async def test_a_mock_that_redirects_aiohttps_connector_gets_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """As aresponses does it; before and after it, requests do without aiohttp's session."""
    async with RawServer(HEALTHY) as real, RawServer(HEALTHY) as mock:

        async def resolve(self: object, host: str, port: int, traces: object = None) -> list[dict[str, Any]]:
            family, proto = socket.AF_INET, socket.IPPROTO_TCP
            return [
                {"hostname": host, "host": "127.0.0.1", "port": mock.port, "family": family, "proto": proto, "flags": 0}
            ]

        async with client_for(real.base_url.replace("127.0.0.1", "localhost")) as client:
            await client.partner_access("one")
            with monkeypatch.context() as patched:
                patched.setattr(aiohttp.TCPConnector, "_resolve_host", resolve)
                await client.partner_access("two")
            await client.partner_access("three")
        assert [b"/two " in head for head in mock.heads] == [True]
        assert [b"/two " in head for head in real.heads] == [False, False]
