"""The clients of `fetch.py`. Each one is set up as its documentation shows.

A client is an async context manager that yields a coroutine function `fetch(tokens, concurrency)`. It checks every answer
while it fetches: bytes are compared as a whole, objects by their request id. `summary` compares one whole answer, outside
the timed part.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from decimal import Decimal
from typing import Any, Literal

from attrs import field, frozen

Fetch = Callable[[Iterable[str], int], Awaitable[None]]


class WrongAnswer(AssertionError):
    """A client gave something else than the server sent."""


@frozen
class Target:
    """Where to fetch, and what must come.

    Attributes:
        base_url: of the server.
        secret: the AuthSecret.
        ca_file: the authority of its certificate, with TLS.
        concurrency: requests in flight.
        body: the expected body.
        samples: the first answers that a client gave, for `summary`.
    """

    base_url: str
    secret: str
    ca_file: str | None
    concurrency: int
    body: bytes
    samples: list[Any] = field(factory=list)

    @property
    def url(self) -> str:
        return f"{self.base_url}/partneraccess/"

    @property
    def headers(self) -> dict[str, str]:
        return {
            "flinks-auth-key": f"Bearer {self.secret}",
            "Accept": "application/json",
            "Content-Type": "application/json",
        }

    @property
    def tls(self) -> ssl.SSLContext | None:
        return None if self.ca_file is None else ssl.create_default_context(cafile=self.ca_file)

    def checker(self, look: Callable[[Any], Any]) -> Callable[[Any], None]:
        """A function to check every answer. `look` returns the part that is compared."""
        samples = self.samples
        expected = look(self.body) if look is whole else json.loads(self.body)["RequestId"]

        def check(answer: Any) -> None:
            if look(answer) != expected:
                raise WrongAnswer(f"expected {expected[:80]!r}, got {look(answer)[:80]!r}")
            if not samples:
                samples.append(answer)

        return check


def whole(answer: bytes) -> bytes:
    return answer


def of_dict(answer: dict[str, Any]) -> Any:
    return answer["RequestId"]


def of_object(answer: Any) -> Any:
    return answer.request_id


def of_pydantic(answer: Any) -> Any:
    return answer.request_id_


def summary(answer: Any) -> dict[str, Any]:
    """The ids, the number of transactions and the sum of the amounts of an answer of any client, for comparison."""
    if isinstance(answer, bytes):
        answer = json.loads(answer)
    details = get(answer, "GetAccountsDetail")
    accounts = [account for detail in details for account in get(detail, "Accounts") or ()]
    moves = [move for account in accounts for move in plain_transactions(get(account, "Transactions"))]
    return {
        "request id": get(answer, "RequestId"),
        "logins": [get(detail, "LoginId") for detail in details],
        "transactions": len(moves),
        "last": get(moves[-1], "Id") if moves else None,
        "dates": len({str(get(move, "Date")) for move in moves}),
        "balances": round(sum(float(get(move, "Balance")) for move in moves), 2),
    }


def plain_transactions(transactions: Any) -> Any:
    """The transactions; as dicts if they were left as JSON."""
    import msgspec

    return json.loads(bytes(transactions)) if isinstance(transactions, msgspec.Raw) else transactions


def get(thing: Any, wire: str) -> Any:
    if isinstance(thing, dict):
        return thing.get(wire)
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", wire).lower()
    return getattr(thing, name) if hasattr(thing, name) else getattr(thing, f"{name}_")


def in_workers(one: Callable[[str], Awaitable[None]]) -> Fetch:
    """The cheapest way to keep N requests in flight: N tasks that share one iterator."""

    async def fetch(tokens: Iterable[str], concurrency: int) -> None:
        shared = iter(tokens)

        async def work() -> None:
            for token in shared:
                await one(token)

        await asyncio.gather(*(work() for _ in range(concurrency)))

    return fetch


# --- aiohttp ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def session_of(target: Target) -> AsyncIterator[Any]:
    """aiohttp's default session. (It opens at most 100 connections.)"""
    import aiohttp

    connector = None if target.tls is None else aiohttp.TCPConnector(ssl=target.tls)
    async with aiohttp.ClientSession(headers=target.headers, connector=connector) as session:
        yield session


@asynccontextmanager
async def bare_aiohttp(target: Target) -> AsyncIterator[Fetch]:
    url, check = target.url, target.checker(whole)
    async with session_of(target) as session:

        async def one(token: str) -> None:
            async with session.get(url + token) as response:
                check(await response.read())

        yield in_workers(one)


@asynccontextmanager
async def usual_loop(target: Target) -> AsyncIterator[Fetch]:
    """The usual code: a semaphore, a task per token, gather, resp.json()."""
    url, check = target.url, target.checker(of_dict)
    async with session_of(target) as session:

        async def fetch(tokens: Iterable[str], concurrency: int) -> None:
            semaphore = asyncio.Semaphore(concurrency)

            async def one(token: str) -> Any:
                async with semaphore:
                    async with session.get(url + token) as response:
                        response.raise_for_status()
                        return await response.json()

            for answer in await asyncio.gather(*(one(token) for token in tokens)):
                check(answer)

        yield fetch


@asynccontextmanager
async def aiohttp_cattrs(target: Target) -> AsyncIterator[Fetch]:
    """The usual code, optimized: orjson, cattrs, attrs classes with amounts as floats."""
    import orjson
    from decode import cattrs_usual

    url, check, structure = target.url, target.checker(of_object), cattrs_usual(float, str, orjson.loads)
    async with session_of(target) as session:

        async def one(token: str) -> None:
            async with session.get(url + token) as response:
                response.raise_for_status()
                check(structure(await response.read()))

        yield in_workers(one)


@asynccontextmanager
async def aiohttp_retry(target: Target) -> AsyncIterator[Fetch]:
    from aiohttp_retry import ExponentialRetry, RetryClient

    url, check = target.url, target.checker(whole)
    async with session_of(target) as session:
        client = RetryClient(client_session=session, retry_options=ExponentialRetry(attempts=3))

        async def one(token: str) -> None:
            async with client.get(url + token) as response:
                check(await response.read())

        yield in_workers(one)


# --- other clients ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def httpx_client(target: Target) -> AsyncIterator[Any]:
    import httpx

    # No more connections than needed: httpx looks through all of them for each request.
    limits = httpx.Limits(max_connections=target.concurrency, max_keepalive_connections=target.concurrency)
    async with httpx.AsyncClient(headers=target.headers, limits=limits, verify=target.tls or True) as client:
        yield client


@asynccontextmanager
async def httpx_bytes(target: Target) -> AsyncIterator[Fetch]:
    url, check = target.url, target.checker(whole)
    async with httpx_client(target) as client:

        async def one(token: str) -> None:
            check((await client.get(url + token)).content)

        yield in_workers(one)


@asynccontextmanager
async def httpx_pydantic(target: Target) -> AsyncIterator[Fetch]:
    """Typed by pydantic, money as floats."""
    from decode import pydantic_models

    url, check, validate = target.url, target.checker(of_pydantic), pydantic_models(float, str)
    async with httpx_client(target) as client:

        async def one(token: str) -> None:
            response = await client.get(url + token)
            response.raise_for_status()
            check(validate(response.content))

        yield in_workers(one)


@asynccontextmanager
async def niquests_bytes(target: Target) -> AsyncIterator[Fetch]:
    import niquests

    url, check = target.url, target.checker(whole)
    async with niquests.AsyncSession(pool_connections=1, pool_maxsize=target.concurrency) as session:
        session.headers.update(target.headers)
        session.trust_env, session.verify = False, target.ca_file or True

        async def one(token: str) -> None:
            check((await session.get(url + token)).content)

        yield in_workers(one)


@asynccontextmanager
async def pyreqwest_client(target: Target) -> AsyncIterator[Callable[[str], Awaitable[bytes]]]:
    """A client written in Rust, which fetches bytes."""
    from pyreqwest.client import ClientBuilder

    url = target.url
    builder = ClientBuilder().default_headers(target.headers).no_proxy().http1_only()
    if target.ca_file is not None:
        with open(target.ca_file, "rb") as file:
            builder = builder.add_root_certificate_pem(file.read())
    async with builder.build() as client:

        async def one(token: str) -> bytes:
            response = await client.get(url + token).build().send()
            return bytes(await response.bytes())

        yield one


@asynccontextmanager
async def pyreqwest_bytes(target: Target) -> AsyncIterator[Fetch]:
    check = target.checker(whole)
    async with pyreqwest_client(target) as get_bytes:

        async def one(token: str) -> None:
            check(await get_bytes(token))

        yield in_workers(one)


def pyreqwest_msgspec(*, raw_transactions: bool) -> Callable[[Target], AbstractAsyncContextManager[Fetch]]:
    """The fastest parts put together: exact money, dates as text, no unknown fields, no retries, limits or typed errors."""

    @asynccontextmanager
    async def client(target: Target) -> AsyncIterator[Fetch]:
        from decode import msgspec_structs

        check, decode = target.checker(of_object), msgspec_structs(Decimal, raw_transactions=raw_transactions)
        async with pyreqwest_client(target) as get_bytes:

            async def one(token: str) -> None:
                check(decode(await get_bytes(token)))

            yield in_workers(one)

    return client


# --- ours ------------------------------------------------------------------------------------------------------------


def flinks_client(target: Target, *, fixed: bool = True, codec: Any = None) -> Any:
    from flinks_async import FlinksClient
    from flinks_async.config import Connection, Limits

    return FlinksClient(
        auth_secret=target.secret,
        base_url=target.base_url,
        codec=codec,
        limits=Limits(concurrency=target.concurrency) if fixed else None,
        connection=Connection(ca_file=target.ca_file),
    )


def ours(
    transactions: Literal["with the answer", "on access"],
) -> Callable[[Target], AbstractAsyncContextManager[Fetch]]:
    """partner_access in N tasks."""

    @asynccontextmanager
    async def client(target: Target) -> AsyncIterator[Fetch]:
        from flinks_async import Codec

        check = target.checker(of_object)
        async with flinks_client(target, codec=Codec(transactions=transactions)) as flinks:

            async def one(token: str) -> None:
                check(await flinks.partner_access(token))

            yield in_workers(one)

    return client


def many(fixed: bool) -> Callable[[Target], AbstractAsyncContextManager[Fetch]]:
    """partner_access_many, with so many in flight or as many as it finds good."""

    @asynccontextmanager
    async def client(target: Target) -> AsyncIterator[Fetch]:
        check = target.checker(of_object)
        async with flinks_client(target, fixed=fixed) as flinks:

            async def fetch(tokens: Iterable[str], concurrency: int) -> None:
                async for outcome in flinks.partner_access_many(tokens, concurrency=concurrency):
                    check(outcome.unwrap())

            yield fetch

    return client


@frozen
class Client:
    """A row of the report.

    Attributes:
        open: the client.
        packages: whose versions the report shows; they must be installed.
        gives: what an answer is.
        settle: requests before it is as fast as it gets; not made in the short form.
    """

    open: Callable[[Target], AbstractAsyncContextManager[Fetch]]
    packages: tuple[str, ...]
    gives: str
    settle: int = 0


BARE = "aiohttp, default session"
USUAL = "aiohttp, the usual loop"
CATTRS = "aiohttp + orjson + cattrs"
PYDANTIC = "httpx + pydantic"
PYREQWEST = "pyreqwest (Rust)"
STRUCTS = "pyreqwest + msgspec structs, Decimal"
STRUCTS_ON_ACCESS = "pyreqwest + msgspec structs, Decimal, on access"
OURS = "flinks_async, partner_access"
OURS_ON_ACCESS = "flinks_async, transactions on access"
OURS_MANY = "flinks_async, partner_access_many"
CLIENTS: dict[str, Client] = {
    BARE: Client(bare_aiohttp, ("aiohttp",), "bytes"),
    USUAL: Client(usual_loop, ("aiohttp",), "dicts"),
    CATTRS: Client(aiohttp_cattrs, ("aiohttp", "orjson", "cattrs"), "objects, floats"),
    "aiohttp-retry": Client(aiohttp_retry, ("aiohttp-retry",), "bytes"),
    "httpx": Client(httpx_bytes, ("httpx",), "bytes", settle=1200),
    PYDANTIC: Client(httpx_pydantic, ("httpx", "pydantic"), "objects, floats", settle=1200),
    "niquests": Client(niquests_bytes, ("niquests",), "bytes"),
    PYREQWEST: Client(pyreqwest_bytes, ("pyreqwest",), "bytes"),
    STRUCTS: Client(
        pyreqwest_msgspec(raw_transactions=False), ("pyreqwest", "msgspec"), "objects, exact, dates as text"
    ),
    STRUCTS_ON_ACCESS: Client(
        pyreqwest_msgspec(raw_transactions=True), ("pyreqwest", "msgspec"), "objects, exact, transactions not read"
    ),
    OURS: Client(ours("with the answer"), ("flinks-async",), "objects, exact"),
    OURS_ON_ACCESS: Client(ours("on access"), ("flinks-async",), "objects, exact, transactions not read"),
    OURS_MANY: Client(many(fixed=True), ("flinks-async",), "objects, exact"),
    "flinks_async, the same, adaptive": Client(many(fixed=False), ("flinks-async",), "objects, exact"),
}
