"""Settings: checked when they are set, presets, mappings, and the environment."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Iterable
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any, get_type_hints

import pytest
from attrs import evolve, fields

from flinks_async import (
    Adaptive,
    Breaker,
    Connection,
    FlinksClient,
    FlinksError,
    Hedge,
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
from flinks_async.errors import ConfigError
from flinks_async.testing import KINDS, InMemoryTransport, VirtualClock, run_virtual
from flinks_async.testing.in_memory import make_response

from .support import client_of

CANARY = "canary-51"


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
