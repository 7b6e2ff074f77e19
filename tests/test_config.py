"""What a client is made of: the endpoint, tokens and headers as they are sent, settings, and the environment."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Iterable
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any, get_type_hints
from urllib.parse import unquote

import pytest
from attrs import evolve, fields
from hypothesis import given
from hypothesis import strategies as st

from flinks_async import (
    Adaptive,
    Breaker,
    Connection,
    FlinksClient,
    FlinksError,
    Hedge,
    InvalidTokenError,
    Limits,
    Pause,
    PollPending,
    Retry,
    Secret,
    ShareQuota,
    Timeouts,
    TokenBucketQuota,
    config,
    tables,
)
from flinks_async.bulk import Rules, purge
from flinks_async.endpoint import Endpoint, check_token, encode_token, make_endpoint
from flinks_async.errors import ConfigError
from flinks_async.testing import KINDS, InMemoryTransport, VirtualClock, run_virtual
from flinks_async.testing.in_memory import make_response

from .support import client_of, examples

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


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Retry(attempts=0), "Retry.attempts"),
        (lambda: Retry(attempts=True), "Retry.attempts"),
        (lambda: Retry(base=-1), "Retry.base"),
        (lambda: Retry(cap=float("nan")), "Retry.cap"),
        (lambda: Timeouts(attempt=0), "Timeouts.attempt"),
        (lambda: Timeouts(deadline=float("inf")), "Timeouts.deadline"),
        (lambda: Timeouts(connect=1e300), "Timeouts.connect"),
        (lambda: Connection(dns_cache=float("inf")), "Connection.dns_cache"),
        (lambda: Connection(keepalive=float("inf")), "Connection.keepalive"),
        (lambda: Connection(proxy=5), "Connection.proxy"),
        (lambda: Limits(rate=float("inf")), "Limits.rate"),
        (lambda: Timeouts(deadline="60"), "Timeouts.deadline"),
        (lambda: Limits(max_body=0), "Limits.max_body"),
        (lambda: Limits(rate=5e-324), r"Limits.rate must be greater than 0 \(at least 1e-12\)"),
        (lambda: ShareQuota(window=5e-324), "ShareQuota.window"),
        (
            lambda: Retry(attempts=10**12 + 1),
            "Retry.attempts must be a whole number from 1 to 1,000,000,000,000, not 1",
        ),
        (lambda: Retry(attempts=10**5000), "Retry.attempts.* not a huge number"),
        (lambda: Timeouts(attempt=-(10**5000)), "Timeouts.attempt.* not a huge number"),
        (lambda: TokenBucketQuota(capacity=10**13), "TokenBucketQuota.capacity must be a whole number from 0 to"),
        (lambda: Breaker(window=10_001), "Breaker.window must be a whole number from 1 to 10,000, not 10001"),
        (lambda: Breaker(in_a_row=10_001), "Breaker.in_a_row must be a whole number from 1 to 10,000"),
        (lambda: Adaptive(maximum=100_001), "Adaptive.maximum must be a whole number from 1 to 100,000"),
        (lambda: Limits(concurrency=100_001), "Limits.concurrency must be a whole number from 1 to 100,000"),
        (lambda: Rules(concurrency=100_001), "Rules.concurrency must be a whole number from 1 to 100,000"),
        (lambda: Limits(waits="no"), "Limits.waits must be bool, not str"),
        (lambda: Connection(trust_env="no"), "Connection.trust_env must be bool, not str"),
        (lambda: Connection(ssl_context="x"), "Connection.ssl_context must be SSLContext or None"),
        (lambda: Connection(ca_file=5), "Connection.ca_file must be str or PathLike or None, not int"),
        (lambda: Connection(client_cert=True), "Connection.client_cert must be str"),
        (lambda: Connection(client_cert="a", client_key=b"b"), "Connection.client_key must be str"),
        (lambda: Retry(throttle_statuses=[[429]]), "Retry.throttle_statuses"),
        (lambda: FlinksClient(auth_secret="s", allow_http="false"), "allow_http must be True or False, not str"),
        (lambda: FlinksClient(auth_secret="s", coalesce=0), "coalesce must be True or False, not int"),
        (lambda: FlinksClient(auth_secret="s").with_options(coalesce="no"), "coalesce must be True or False"),
        (lambda: FlinksClient(auth_secret="s").partner_access_many([], ordered="no"), "ordered must be True or False"),
        (lambda: FlinksClient(auth_secret="s").partner_access_many([], concurrency=10**5 + 1), "concurrency must be a"),
        (
            lambda: FlinksClient(auth_secret="s").partner_access_many([], timeout=10**5000),
            "timeout.* not a huge number",
        ),
        (lambda: tables.to_arrow([], keyed="no"), "keyed must be True or False"),
        (lambda: tables.schemas(keyed="no"), "keyed must be True or False"),
        (lambda: purge("/no/such/job", forget_answers="no"), "forget_answers must be True or False"),
        (lambda: Connection(keepalive=-1), "Connection.keepalive"),
        (lambda: Connection(client_key="k.pem"), "client_key needs"),
        (lambda: Connection(ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ca_file="ca.pem"), "not both"),
        (lambda: FlinksClient(auth_secret="s", connection=Connection(ca_file="/no/such/file")), "Connection.ca_file"),
        (lambda: FlinksClient(auth_secret="s", connection=Connection(proxy=f"ftp://u:{CANARY}@p")), "proxy"),
        (lambda: FlinksClient(auth_secret="s", retry=Timeouts()), "retry must be a Retry"),
        (lambda: FlinksClient(auth_secret="s", settings=Retry()), "settings must be"),
        (lambda: FlinksClient(auth_secret="s", middleware=[5]), "middleware: int is not callable"),
        (lambda: FlinksClient(auth_secret="s", session="x"), "aiohttp.ClientSession"),
        (lambda: FlinksClient(auth_secret="s", session=object(), transport=object()), "either session or transport"),
    ],
)
def test_a_wrong_setting_is_named_when_it_is_set(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        make()
    assert CANARY not in str(caught.value)


RECORDS = (
    Retry,
    Timeouts,
    Limits,
    Connection,
    TokenBucketQuota,
    ShareQuota,
    Adaptive,
    Breaker,
    Pause,
    Hedge,
    PollPending,
)
ODD: list[Any] = [
    *(0, -1, 1, 500, 501, 10_000, 10_001, 100_000, 100_001, 10**12, 10**12 + 1, 10**400, 10**5000, -(10**5000)),
    *(float("nan"), float("inf"), float("-inf"), 1e12, 1e308, 5e-324, 1e-300, 1e-12, 0.5),
    *(True, "5", b"5", "no", Decimal(5), Fraction(1, 2), dt.timedelta(seconds=5), None, [], [[]], {}, object()),
]


def settings_with(record: Any) -> dict[str, Any]:
    """The argument of a client that takes it."""
    match record:
        case TokenBucketQuota() | ShareQuota():
            return {"retry": Retry(quota=record)}
        case Adaptive():
            return {"limits": Limits(concurrency=record)}
        case Breaker() | Pause():
            return {"limits": Limits(**{type(record).__name__.lower(): record})}
        case PollPending():
            return {"poll_pending": record}
        case _:
            return {type(record).__name__.lower(): record}


@pytest.mark.parametrize("cls", RECORDS)
def test_whatever_a_record_takes_works_and_what_it_does_not_take_is_a_config_error(cls: Any) -> None:
    async def use(record: Any) -> None:
        troubles = [KINDS["http_503"], KINDS["http_429_seconds"], make_response({}, status=202)]
        transport = InMemoryTransport(default=[{"RequestId": "r"}, *troubles, {"RequestId": "r"}])
        async with client_of(transport, clock=VirtualClock(), **settings_with(record)) as client:
            for _ in range(4):
                with suppress(FlinksError):
                    await client.partner_access("t")
            client.stats()
            client.explain()

    taken = 0
    for attribute in fields(cls):
        for value in ODD:
            try:
                record = cls(**{attribute.name: value})
            except ConfigError:
                continue
            if attribute.name not in ("ca_file", "client_cert", "client_key"):  # there is no such file
                taken += 1
                run_virtual(use(record))
    assert taken > len(fields(cls))


@pytest.mark.parametrize("cls", [Retry, Timeouts, Limits, Connection])
def test_the_typed_mapping_of_a_record_has_the_fields_of_the_record(cls: Any) -> None:
    mapping, record = get_type_hints(getattr(config, f"{cls.__name__}Fields")), get_type_hints(cls)
    assert list(mapping) == list(record)
    converted = {"throttle_statuses": Iterable[int], "proxy": str | Secret | None}
    assert mapping == {**record, **{name: hint for name, hint in converted.items() if name in record}}


def test_the_presets_differ_as_documented() -> None:
    service, bulk = config.service(), config.bulk()
    assert (service.retry.attempts, service.retry.cap, service.timeouts.deadline) == (3, 20.0, 60.0)
    assert (bulk.retry.attempts, bulk.retry.cap, bulk.timeouts.deadline) == (6, 60.0, None)
    assert (bulk.timeouts.connect, bulk.timeouts.attempt) == (10.0, 230.0)


def test_a_record_replaces_the_presets_and_a_mapping_changes_it() -> None:
    changed = config.choose(config.bulk(), {"retry": {"attempts": 9}, "limits": None, "timeouts": Timeouts()})
    assert changed.retry == evolve(config.bulk().retry, attempts=9)
    assert changed.limits == config.bulk().limits
    assert changed.timeouts == Timeouts()
    with pytest.raises(ConfigError, match="Retry has no 'tries'; it has attempts, base"):
        config.choose(None, {"retry": {"tries": 9}})
    with pytest.raises(ConfigError, match=r"Retry\.attempts"):
        config.choose(None, {"retry": {"attempts": 0}})


def test_the_environment_fills_in_and_arguments_win() -> None:
    environ = {
        "FLINKS_INSTANCE": "acme-ca",
        "FLINKS_AUTH_SECRET": f"{CANARY}\n",
        "FLINKS_AUTH_SCHEME": "bearer",
        "FLINKS_BASE_URL": "",
    }
    found = config.from_env(environ)
    assert found == {"instance": "acme-ca", "auth_secret": Secret(CANARY), "auth_scheme": "bearer"}
    assert "acme-ca-api" in repr(FlinksClient.from_env(environ))
    assert "other-api" in repr(FlinksClient.from_env(environ, instance="other"))
    elsewhere = {**environ, "FLINKS_BASE_URL": "https://gateway.example/flinks"}
    assert "gateway.example" in repr(FlinksClient.from_env(elsewhere))
    assert "other-api" in repr(FlinksClient.from_env(elsewhere, instance="other"))


def test_a_missing_secret_in_the_environment_says_where_it_comes_from() -> None:
    with pytest.raises(ConfigError, match=r"FLINKS_AUTH_SECRET.*Flinks customer.*'flinks-auth-key-raw'"):
        FlinksClient.from_env({})


def test_a_wrong_scheme_in_the_environment_is_refused() -> None:
    with pytest.raises(ConfigError, match="auth_scheme"):
        FlinksClient.from_env({"FLINKS_AUTH_SECRET": "s", "FLINKS_AUTH_SCHEME": "basic"})


TYPED = "canary-secret-90aa"
MISPLACED: dict[str, Any] = {
    "instance": lambda: FlinksClient(f"{TYPED} ", auth_secret="s"),
    "auth_scheme": lambda: FlinksClient(auth_secret="s", auth_scheme=TYPED),
    "app_name": lambda: FlinksClient(auth_secret="s", app_name=TYPED + "\n"),
    "base_url": lambda: FlinksClient(auth_secret="s", base_url=TYPED),
    "header name": lambda: FlinksClient(auth_secret="s", headers={f"Bearer {TYPED}": "X-Key"}),
    "attempts": lambda: config.Retry(attempts=TYPED),
    "a list": lambda: config.Retry(base=[TYPED]),
    "statuses": lambda: config.Retry(throttle_statuses=TYPED),
    "a mapping": lambda: config.Timeouts(attempt={"x": TYPED}),
    "waits": lambda: config.Limits(waits=TYPED),
    "concurrency": lambda: config.Limits(concurrency=TYPED),
    "bytes": lambda: config.Limits(concurrency=TYPED.encode()),
    "retry": lambda: FlinksClient(auth_secret="s", retry=TYPED),
    "ca_file": lambda: FlinksClient(auth_secret="s", connection={"ca_file": TYPED}),
    "the text of a key": lambda: FlinksClient(
        auth_secret="s", connection={"ca_file": f"-----BEGIN PRIVATE KEY-----\n{TYPED}/x.y"}
    ),
    "keepalive": lambda: config.Connection(keepalive=TYPED),
    "environment": lambda: FlinksClient.from_env({"FLINKS_INSTANCE": f"{TYPED}!", "FLINKS_AUTH_SECRET": "s"}),
}


@pytest.mark.parametrize("place", MISPLACED)
def test_a_secret_that_was_given_as_another_setting_is_not_quoted(place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MISPLACED[place]()
    assert TYPED not in str(caught.value)
    assert TYPED not in repr(caught.value.fields())


def test_a_guid_is_no_instance_because_it_would_be_looked_up() -> None:
    for name in ("5e115eac-1209-4f19-641c-08d6d484e2fe", "5E115EAC12094F19641C08D6D484E2FE"):
        with pytest.raises(ConfigError, match="looks like a token or a secret") as caught:
            FlinksClient(name, auth_secret="s")
        assert name not in str(caught.value)


def test_a_missing_file_is_named_if_it_looks_like_a_path() -> None:
    with pytest.raises(ConfigError, match=r"there is no file 'missing/ca\.pem'"):
        FlinksClient(auth_secret="s", connection={"ca_file": "missing/ca.pem"})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: config.Connection(proxy=5),
        lambda: config.Connection(nonsense=5),
        lambda: config.Connection(keepalive=-1),
        lambda: config.Retry(throttle_statuses=["x"]),
        lambda: config.Retry(throttle_statuses=5),
        lambda: FlinksClient(auth_secret="s", middleware=5),
        lambda: FlinksClient(auth_secret=5),
    ],
)
def test_a_reporter_can_show_the_variables_of_a_wrong_setting(wrong: Any) -> None:
    with pytest.raises((ConfigError, TypeError)) as caught:
        wrong()
    step = caught.tb
    while step is not None:
        for value in step.tb_frame.f_locals.values():
            repr(value)  # as Python 3.11 does with capture_locals=True
        step = step.tb_next
