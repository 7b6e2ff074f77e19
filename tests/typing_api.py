"""Typed uses of the public API, checked by mypy --strict and pyright (see pyproject.toml). Never run.

A `type: ignore` marks a mistake that both must report: each complains about a comment that it does not need.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from decimal import Decimal
from typing import Any, assert_never, assert_type

from flinks_async import (
    Account,
    APIStatusError,
    AttemptFinished,
    AttemptStarted,
    Balance,
    ClientStats,
    Codec,
    Connection,
    DecodeError,
    Event,
    Failed,
    Fetched,
    FlinksClient,
    FlinksError,
    Handler,
    InstanceDown,
    InstanceUp,
    Kind,
    Limits,
    Middleware,
    Observer,
    Outcome,
    PartnerAccessResponse,
    Paused,
    Request,
    Response,
    Resumed,
    Retry,
    RetryScheduled,
    Secret,
    Settings,
    Timeouts,
    Timestamp,
    Transport,
    TransportError,
    Verdict,
    config,
    fingerprint,
)
from flinks_async.testing import KINDS, FlinksServer, InMemoryTransport

# Making a client


def from_text_or_secret() -> list[FlinksClient]:
    return [
        FlinksClient(auth_secret="s"),
        FlinksClient("toolbox", auth_secret=Secret("s"), auth_scheme="bearer"),
        FlinksClient(auth_secret="s", base_url="http://localhost:8080", app_name="acme/1", headers={"X-A": "1"}),
    ]


async def ask_vault() -> str:
    return "s"


async def ask_vault_for_a_secret() -> Secret:
    return Secret("s")


class Vault:
    async def __call__(self) -> str:
        return "s"


def from_providers() -> list[FlinksClient]:
    return [
        FlinksClient(auth_secret=ask_vault),
        FlinksClient(auth_secret=ask_vault_for_a_secret),
        FlinksClient(auth_secret=Vault()),
    ]


def from_environment() -> None:
    assert_type(FlinksClient.from_env(), FlinksClient)
    assert_type(FlinksClient.from_env({"FLINKS_AUTH_SECRET": "s"}, timeouts=Timeouts(deadline=None)), FlinksClient)


def with_settings() -> FlinksClient:
    assert_type(config.service(), Settings)
    assert_type(config.bulk(), Settings)
    return FlinksClient(
        auth_secret="s",
        settings=config.bulk(),
        retry=Retry(attempts=4, cap=5),
        timeouts=Timeouts(connect=1, attempt=2.5, deadline=None),
        limits=Limits(concurrency=10),
        connection=Connection(proxy="http://proxy.example:3128", trust_env=True),
    )


def with_mappings() -> list[FlinksClient]:
    retry: config.RetryFields = {"attempts": 8, "quota": None, "throttle_statuses": [403, 429]}
    return [
        FlinksClient(auth_secret="s", retry=retry, timeouts={"deadline": None}, limits={"concurrency": 500}),
        FlinksClient(auth_secret="s", connection={"proxy": "http://proxy.example:3128", "trust_env": True}),
        FlinksClient.from_env(limits={"rate": 5.0, "waits": True}, coalesce=True),
    ]


def mistakes(flinks: FlinksClient) -> None:
    FlinksClient(auth_secret="s", retry={"attemps": 8})  # type: ignore[arg-type]
    FlinksClient(auth_secret="s", retry={"attempts": "8"})  # type: ignore[arg-type]
    FlinksClient(auth_secret="s", limits={"attempts": 8})  # type: ignore[arg-type]
    FlinksClient(auth_secret=b"s")  # type: ignore[arg-type]
    FlinksClient("toolbox")  # type: ignore[call-arg]
    FlinksClient.from_env(timeout=5)  # type: ignore[call-arg]
    FlinksClient.from_env(timeouts={"dedline": 5})  # type: ignore[arg-type]
    flinks.with_options(colaesce=True)  # type: ignore[call-arg]
    flinks.with_options(coalesce="yes")  # type: ignore[arg-type]
    flinks.with_options(retry={"attemps": 8})  # type: ignore[arg-type]
    flinks.with_options(connection={"proxy": None})  # type: ignore[call-arg]


class OwnClient(FlinksClient):
    pass


def derived(flinks: FlinksClient, own: OwnClient) -> None:
    assert_type(own.with_options(retry={"attempts": 8}, limits=Limits(rate=5.0)), OwnClient)
    assert_type(flinks.with_options(instance="acme-ca", auth_secret="t"), FlinksClient)
    assert_type(flinks.stats(), ClientStats)
    assert_type(flinks.closed, bool)


# One token


async def one(flinks: FlinksClient) -> None:
    async with flinks as opened:
        assert_type(opened, FlinksClient)
        assert_type(await opened.partner_access("t"), PartnerAccessResponse)
        assert_type(await opened.partner_access(Secret("t"), timeout=1), PartnerAccessResponse)
        assert_type(
            await opened.partner_access("t", headers={"X-Key": Secret("k"), "X-Own": "1"}), PartnerAccessResponse
        )
        assert_type(await opened.partner_access_raw("t", headers={"X-Own": "1"}), Response)
        async for one in opened.partner_access_many(["t"], timeout=1, headers={"X-Own": "1"}):
            assert_type(one.key, int)
        await opened.partner_access("t", headers={"X-Own": 1})  # type: ignore[dict-item]
        assert_type(await opened.partner_access_raw("t"), Response)
    await flinks.close(grace=0)


def answer_fields(answer: PartnerAccessResponse) -> None:
    assert_type(answer.accounts, tuple[Account, ...])
    assert_type(answer.request_id, str | None)
    assert_type(answer.meta.attempts, int)
    assert_type(answer.meta.wire_time, float)
    assert_type(answer.to_dict(missing="null"), dict[str, Any])
    assert_type(answer.to_json(), bytes)
    assert_type(answer.extra, Mapping[str, Any])
    account = answer.accounts[0]
    assert_type(account.balance, Balance | None)
    if account.balance is not None:
        assert_type(account.balance.current, Decimal | None)
    assert_type(account.overdraft_limit, Decimal | None)
    transaction = account.transactions[0]
    assert_type(transaction.date, dt.date | None)
    assert_type(transaction.debit, Decimal | None)
    login = answer.details[0].login
    if login is not None:
        assert_type(login.last_refresh, Timestamp | None)
        if login.last_refresh is not None:
            assert_type(login.last_refresh.text, str)
            assert_type(login.last_refresh.value, dt.datetime | None)


def decoding(codec: Codec) -> None:
    assert_type(codec.decode(b"{}"), PartnerAccessResponse)


# Many tokens


async def bare_tokens(flinks: FlinksClient, tokens: list[str], secrets: set[Secret]) -> None:
    assert_type(flinks.partner_access_many(tokens), AsyncGenerator[Outcome[int], None])
    assert_type(flinks.partner_access_many(secrets), AsyncGenerator[Outcome[int], None])
    assert_type(flinks.partner_access_many(t for t in tokens), AsyncGenerator[Outcome[int], None])
    assert_type(flinks.partner_access_many(("a", "b", "c")), AsyncGenerator[Outcome[int], None])


async def pairs(flinks: FlinksClient, tokens: dict[str, str], numbered: Iterator[tuple[int, Secret]]) -> None:
    assert_type(flinks.partner_access_many(tokens.items()), AsyncGenerator[Outcome[str], None])
    by_user: list[tuple[tuple[str, int], str]] = [(("a", 1), "t")]
    assert_type(flinks.partner_access_many(by_user), AsyncGenerator[Outcome[tuple[str, int]], None])
    async for outcome in flinks.partner_access_many([("user-1", "t"), ("user-2", "t")]):
        key: str = outcome.key
        del key
    assert_type(flinks.partner_access_many(numbered, concurrency=5, ordered=True), AsyncGenerator[Outcome[int], None])


async def read_bare() -> AsyncIterator[str]:
    yield "t"


async def read_pairs() -> AsyncIterator[tuple[str, Secret]]:
    yield "k", Secret("t")


async def async_iterables(flinks: FlinksClient) -> None:
    assert_type(flinks.partner_access_many(read_bare()), AsyncGenerator[Outcome[int], None])
    async with aclosing(flinks.partner_access_many(read_pairs())) as outcomes:
        async for outcome in outcomes:
            assert_type(outcome, Fetched[str] | Failed[str])


def matched(outcome: Outcome[str]) -> str:
    match outcome:
        case Fetched(key, answer):
            assert_type(key, str)
            assert_type(answer, PartnerAccessResponse)
            return key
        case Failed(key, error):
            assert_type(error, FlinksError)
            return f"{key}: {error.flinks_code}"
        case _:
            assert_never(outcome)


def narrowed(outcome: Outcome[int]) -> PartnerAccessResponse:
    if isinstance(outcome, Failed):
        assert_type(outcome.key, int)
    assert_type(outcome.unwrap(), PartnerAccessResponse)
    return outcome.unwrap()


def covariant(outcome: Outcome[int]) -> Outcome[object]:
    return outcome


# Errors


def details(error: FlinksError) -> None:
    assert_type(error.message, str)
    assert_type(error.status, int | None)
    assert_type(error.flinks_code, str | None)
    assert_type(error.request_id, str | None)
    assert_type(error.attempts, int | None)
    assert_type(error.elapsed, float | None)
    assert_type(error.retry_after, float | None)
    assert_type(error.token_fingerprint, str | None)
    assert_type(error.call_id, str | None)
    assert_type(error.fields(), dict[str, Any])
    match error:
        case TransportError():
            assert_type(error.sent, bool)
        case DecodeError():
            assert_type(error.path, str | None)
        case APIStatusError(status=int(status)):
            assert_type(status, int)


# Middleware


async def as_function(request: Request, call_next: Handler) -> Response:
    changed = request.evolve(headers={**request.headers, "X-A": fingerprint(request.token)})
    assert_type(changed, Request)
    response = await call_next(changed)
    assert_type(response, Response)
    assert_type(response.verdict, Verdict | None)
    assert_type(response.answer, PartnerAccessResponse | None)
    if response.verdict is not None:
        assert_type(response.verdict.kind, Kind)
    return response.evolve(headers={})


class AsClass:
    async def __call__(self, request: Request, call_next: Handler, /) -> Response:
        return await call_next(request)


class WithMethod:
    async def handle(self, request: Request, call_next: Handler) -> Response:
        return await call_next(request)


MIDDLEWARE: list[Middleware] = [as_function, AsClass(), WithMethod().handle]


def with_middleware() -> FlinksClient:
    return FlinksClient(auth_secret="s", middleware=[as_function, AsClass()], attempt_middleware=MIDDLEWARE)


# Observers


def observe(event: Event) -> None:
    match event:
        case AttemptStarted(host=host, attempt=number):
            assert_type(host, str)
            assert_type(number, int)
        case AttemptFinished():
            assert_type(event.verdict, Verdict | None)
            assert_type(event.status, int | None)
            assert_type(event.call_id, str)
        case RetryScheduled(delay=delay):
            assert_type(delay, float)
        case InstanceDown(host=host, reason=reason, attempts=number, seconds=seconds, retry_after=delay):
            assert_type((host, reason), tuple[str, str])
            assert_type((seconds, delay), tuple[float, float])
            assert_type(number, int)
        case Paused(reason=reason, seconds=seconds):
            assert_type(reason, str)
            assert_type(seconds, float)
        case InstanceUp(host=host, seconds=seconds) | Resumed(host=host, seconds=seconds):
            assert_type(host, str)
            assert_type(seconds, float)
        case _:
            assert_never(event)


class Counter:
    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, event: Event) -> int:
        self.seen += 1
        return self.seen


OBSERVERS: list[Observer] = [observe, Counter(), print]


def with_observers() -> FlinksClient:
    return FlinksClient(auth_secret="s", observers=OBSERVERS)


# Transports and tests


class OwnTransport:
    async def send(self, request: Request, /) -> Response:
        return Response(200, body=b'{"RequestId": "r"}')

    async def close(self) -> None: ...


TRANSPORTS: list[Transport] = [OwnTransport(), InMemoryTransport()]


async def answer_later(request: Request) -> Mapping[str, Any]:
    return {"RequestId": request.token.reveal()}


def in_memory() -> InMemoryTransport:
    return InMemoryTransport(
        {
            "a": {"RequestId": "r"},
            "b": b"{}",
            "c": [KINDS["http_503"], {"RequestId": "r"}],
            "d": lambda request: {"RequestId": "r"},
            "e": answer_later,
            "f": TransportError("broken"),
        },
        default=Response(404),
    )


async def simulated() -> None:
    async with FlinksServer(size="medium", auth_scheme="bearer") as server:
        assert_type(server, FlinksServer)
        assert_type(server.base_url, str)
        assert_type(server.expected("t"), dict[str, Any])
