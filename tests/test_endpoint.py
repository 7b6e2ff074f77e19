"""Where requests go and what they carry: the address, the form of the header, users' headers, and tokens in the URL."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flinks_async import FlinksClient, InvalidTokenError, Secret
from flinks_async.endpoint import Endpoint, check_token, encode_token, make_endpoint
from flinks_async.errors import ConfigError
from flinks_async.testing import InMemoryTransport

from .support import examples

CANARY = "canary-51"


def endpoint(instance: str = "toolbox", **options: Any) -> Endpoint:
    defaults: dict[str, Any] = {
        "auth_scheme": "flinks-auth-key",
        "base_url": None,
        "allow_http": False,
        "app_name": None,
        "headers": None,
        "user_agent": "flinks-async/0",
    }
    return make_endpoint(instance, **{**defaults, **options})


@pytest.mark.parametrize(
    ("instance", "url"),
    [
        ("toolbox", "https://toolbox-api.private.fin.ag"),
        ("acme-ca", "https://acme-ca-api.private.fin.ag"),
        ("Acme", "https://acme-api.private.fin.ag"),
    ],
)
def test_an_instance_names_a_host(instance: str, url: str) -> None:
    assert endpoint(instance).url == url


@pytest.mark.parametrize(
    "instance", ["", ".", "a.b", "a/b", "a@b", "a:1", "evil.example#", "-a", "a-", " a", "a\n", "ä", "x" * 60, None, 7]
)
def test_an_instance_that_would_change_the_url_is_refused(instance: Any) -> None:
    with pytest.raises(ConfigError, match="instance must be"):
        endpoint(instance)


@pytest.mark.parametrize(
    ("base_url", "url", "host"),
    [
        ("https://api.example", "https://api.example", "api.example"),
        ("https://api.example/", "https://api.example", "api.example"),
        ("https://api.example:8443/a/b/", "https://api.example:8443/a/b", "api.example:8443"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://localhost/x", "http://localhost/x", "localhost"),
        ("http://[::1]:99", "http://[::1]:99", "[::1]:99"),
        ("https://[2001:db8::1]/", "https://[2001:db8::1]", "[2001:db8::1]"),
        ("https://bücher.example", "https://xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("https://api.example/a b".replace(" ", "%20"), "https://api.example/a%20b", "api.example"),
    ],
)
def test_a_base_url_may_have_a_port_and_a_path(base_url: str, url: str, host: str) -> None:
    made = endpoint(base_url=base_url)
    assert (made.url, made.host) == (url, host)


@pytest.mark.parametrize(
    ("base_url", "says"),
    [
        ("http://api.example", "unencrypted"),
        ("http://127.0.0.1.evil.example", "unencrypted"),
        (f"https://user:{CANARY}@api.example", "user or password"),
        ("https://api.example?x=1", "query"),
        ("https://api.example#x", "fragment"),
        ("https://api.example/a/../b", "'.' or '..'"),
        ("https://api.example/%2e%2e/b", "'.' or '..'"),
        ("ftp://api.example", "https://"),
        ("api.example", "https://"),
        ("https://", "https://"),
        ("https://api.example:99999", "port"),
        ("https://api.example:x", "port"),
        ("https://api.example/\r\nX: y", "without spaces"),
        ("https://api.example\\@evil.example", "without spaces"),
        (b"https://api.example", "URL such as"),
        ("https://api..example", "domain name"),
        (f"https://{'a' * 64}.example", "domain name"),
        ('https://api"example', "neither a domain name nor an address"),
        ("https://%61pi.example", "neither a domain name nor an address"),
        ("https://127.1", "neither a domain name nor an address"),
        ("https://2130706433", "neither a domain name nor an address"),
        ("https://api.example/\ud800", "Unicode"),
    ],
)
def test_a_base_url_that_is_unsafe_is_refused(base_url: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        endpoint(base_url=base_url)
    assert CANARY not in repr(caught.value)


def test_http_to_other_hosts_can_be_allowed() -> None:
    assert endpoint(base_url="http://gateway.internal", allow_http=True).url == "http://gateway.internal"


@pytest.mark.parametrize(
    ("scheme", "header"),
    [
        ("flinks-auth-key", ("flinks-auth-key", "Bearer s")),
        ("flinks-auth-key-raw", ("flinks-auth-key", "s")),
        ("bearer", ("Authorization", "Bearer s")),
    ],
)
def test_the_header_has_three_forms(scheme: str, header: tuple[str, str]) -> None:
    assert endpoint(auth_scheme=scheme).auth_header(Secret("s")) == header


def test_of_a_subclass_of_str_the_text_alone_is_used() -> None:
    class Text(str):
        def __str__(self) -> str:
            return "not-the-text"

        lower = strip = __format__ = __str__

        def isascii(self) -> bool:
            return True

    made = endpoint(Text("Acme"), app_name=Text("acme/1"), headers={Text("X-Own"): Text("1")})
    assert made.url == "https://acme-api.private.fin.ag"
    assert made.headers["User-Agent"] == "acme/1 flinks-async/0"
    assert [(type(name), type(value)) for name, value in made.headers.items()] == [(str, str)] * 5
    with pytest.raises(ConfigError, match="app_name"):
        endpoint(app_name=Text("é"))
    with pytest.raises(ConfigError, match="printable ASCII"):
        endpoint(headers={"X-Own": Text("é")})
    with pytest.raises(ConfigError, match="set by this package"):
        endpoint(headers={Text("Host"): "x"})


def test_headers_must_be_a_mapping() -> None:
    assert endpoint(headers=[]).headers == endpoint(headers=None).headers
    with pytest.raises(ConfigError, match="a mapping, not list"):
        endpoint(headers=[("X-Own", "1")])


def test_another_scheme_is_refused_by_naming_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'flinks-auth-key', 'flinks-auth-key-raw', 'bearer'"):
        endpoint(auth_scheme="Bearer")


def test_the_user_agent_names_the_app_before_the_package() -> None:
    assert endpoint(app_name="acme/2").headers["User-Agent"] == "acme/2 flinks-async/0"
    assert endpoint(headers={"user-agent": "mine"}).headers == {
        "Accept": "application/json",
        "Content-Type": "application/json",
        "Accept-Encoding": "gzip, deflate",
        "user-agent": "mine",
    }


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"Flinks-Auth-Key": "x"}, "set by this package"),
        ({"authorization": "x"}, "set by this package"),
        ({"Host": "x"}, "set by this package"),
        ({"Accept-Encoding": "br"}, "fixed"),
        ({"X Y": "x"}, "not the name"),
        ({"X": f"a\r\n{CANARY}"}, "printable ASCII"),
        ({"X": 5}, "printable ASCII"),
        ({"X-Own": "1", "x-own": "2"}, "twice"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused_without_their_value(headers: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        endpoint(headers=headers)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"Flinks-Auth-Key": CANARY}, "set by this package"),
        ({"AUTHORIZATION": CANARY}, "set by this package"),
        ({"cookie": CANARY}, "set by this package"),
        ({"Accept-Encoding": "br"}, "fixed"),
        ({"X Y": CANARY}, "not the name"),
        ({f"X\r\n{CANARY}": "x"}, "not the name"),
        ({"X": f"a\r\n{CANARY}"}, "printable ASCII"),
        ({"X": f"a\x00{CANARY}"}, "printable ASCII"),
        ({"X": CANARY.encode()}, "printable ASCII"),
        ([("X", CANARY)], "a mapping, not list"),
        (CANARY, "a mapping, not str"),
    ],
)
async def test_headers_of_one_call_are_checked_like_those_of_a_client(headers: Any, says: str) -> None:
    transport = InMemoryTransport()
    async with FlinksClient(auth_secret="s", transport=transport) as client:
        calls = (
            lambda: client.partner_access("t", headers=headers),
            lambda: client.partner_access_raw("t", headers=headers),
            lambda: anext(client.partner_access_many(["t"], headers=headers)),
        )
        for call in calls:
            with pytest.raises(ConfigError, match=says) as caught:
                await call()
            assert CANARY not in f"{caught.value} {caught.value.fields()}"
        with pytest.raises(ConfigError, match=says):
            client.partner_access_many([], headers=headers)  # at once, not at the first token
    assert not transport.requests


@pytest.mark.parametrize("app_name", ["", " ", "a\nb", "ä", 5])
def test_an_app_name_must_fit_into_a_header(app_name: Any) -> None:
    with pytest.raises(ConfigError, match="app_name"):
        endpoint(app_name=app_name)


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        (None, "is missing.*Flinks customer"),
        ("", "is missing"),
        ("  ", "is blank"),
        (f"{CANARY}\n", "line break"),
        (f"{CANARY}\r\nX: y", "line break"),
        (f"{CANARY}\0", "line break"),
        (f"{CANARY}é", "non-ASCII"),
        (f" {CANARY}", "space"),
        (f"Bearer {CANARY}", "starts with 'Bearer '"),
        ("...", "no letter and no digit"),
        (b"bytes", "not bytes"),
        (Secret(f"{CANARY}\n"), "line break"),
    ],
)
def test_a_secret_that_a_header_cannot_carry_is_refused_without_its_value(secret: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        FlinksClient(auth_secret=secret)
    assert CANARY not in repr(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("token", "sent"),
    [
        ("5e115eac-1209-4f19-641c-08d6d484e2fe", "5e115eac-1209-4f19-641c-08d6d484e2fe"),
        ("a/b?c#d%e;f:g@h\\i j+k", "a%2Fb%3Fc%23d%25e%3Bf%3Ag%40h%5Ci%20j%2Bk"),
        ("..a", "..a"),
        (".hidden", ".hidden"),
        ("é", "%C3%A9"),
        ("~_-.", "~_-."),
        ("../../x", "..%2F..%2Fx"),
        ("%2e%2e%2fx", "%252e%252e%252fx"),
    ],
)
def test_a_token_is_percent_encoded_once(token: str, sent: str) -> None:
    assert encode_token(check_token(token)).reveal() == sent


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", "is empty"),
        (".", "dots"),
        ("..", "dots"),
        ("%2e%2E", "dots"),
        (".%2e", "dots"),
        ("%252e%252e", "dots"),
        (f"{CANARY}\r\n", "control character"),
        (f"{CANARY}\0", "control character"),
        (f"{CANARY}\x85", "control character"),
        (f"{CANARY}\ud800", "Unicode"),
        (f" {CANARY}", "begins or ends with a blank"),
        (f"{CANARY}\u00a0", "begins or ends with a blank"),
        (f'"{CANARY}"', "begins or ends with a quotation mark"),
        (f"\u201c{CANARY}\u201d", "begins or ends with a quotation mark"),
        (f"{CANARY}'", "begins or ends with a quotation mark"),
        (f"Bearer {CANARY}", "begins with 'Bearer '"),
        (f"bearer\u00a0{CANARY}", "begins with 'Bearer '"),
        (f"{CANARY}\u200b", r"invisible character \(U\+200B\)"),
        (f"\u202e{CANARY}", r"invisible character \(U\+202E\)"),
        (f"\ufeff{CANARY}", r"invisible character \(U\+FEFF\)"),
        (f"a\u00adb{CANARY}", r"invisible character \(U\+00AD\)"),
        (CANARY * 200, "at most 1024"),
        (None, "not NoneType"),
        (b"bytes", "not bytes"),
        (5, "not int"),
    ],
)
def test_a_token_that_would_change_the_url_is_refused_without_being_shown(token: Any, says: str) -> None:
    with pytest.raises(InvalidTokenError, match=says) as caught:
        check_token(token)
    assert CANARY not in repr(caught.value)


@examples(100)
@given(st.text(max_size=1100))
def test_what_is_sent_is_what_was_given_or_nothing_is_sent(token: str) -> None:
    try:
        checked = check_token(token)
    except InvalidTokenError:
        return
    segment = encode_token(checked).reveal()
    assert unquote(segment, errors="strict") == token
    assert segment.isascii()
    assert not set(segment) & set("/?#\\ \r\n")
    assert segment not in ("", ".", "..")
