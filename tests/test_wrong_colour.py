"""Async where a plain function belongs, and the other way round."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable
from functools import partial, wraps
from typing import Any

import pytest

from flinks_async import ConfigError, FlinksClient, Limits
from flinks_async.messages import Handler, Request, Response
from flinks_async.testing import InMemoryTransport

from .support import client_of


@pytest.mark.parametrize("method", ["partner_access", "partner_access_raw"])
def test_calls_are_coroutine_functions(method: str) -> None:
    client = client_of(InMemoryTransport())
    assert inspect.iscoroutinefunction(getattr(client, method))
    assert inspect.iscoroutinefunction(getattr(FlinksClient, method))
    assert inspect.iscoroutinefunction(partial(getattr(client, method), "t"))
    assert list(inspect.signature(getattr(client, method)).parameters) == ["token", "timeout", "headers"]
    assert getattr(client, method).__doc__.startswith("Fetches")


async def notes(event: object) -> None: ...


class AsyncObserver:
    async def __call__(self, event: object) -> None: ...

    async def method(self, event: object) -> None: ...


@pytest.mark.parametrize("observer", [notes, partial(notes), AsyncObserver(), AsyncObserver().method])
def test_an_async_observer_is_refused(observer: Any) -> None:
    name = getattr(observer, "__qualname__", type(observer).__qualname__)
    with pytest.raises(ConfigError, match=rf"observers: {name} must be a plain function"):
        client_of(InMemoryTransport(), observers=[observer])
    with pytest.raises(ConfigError, match="observers"):
        client_of(InMemoryTransport()).with_options(observers=[observer])


def plain(request: Request, call_next: Handler) -> Response:
    return Response(200)


async def streaming(request: Request, call_next: Handler) -> AsyncIterator[Response]:
    yield await call_next(request)


@pytest.mark.parametrize("middleware", [plain, streaming])
@pytest.mark.parametrize("place", ["middleware", "attempt_middleware"])
def test_a_middleware_that_is_not_async_is_refused(place: str, middleware: Any) -> None:
    with pytest.raises(ConfigError, match=f"{place}: {middleware.__name__} is not async"):
        client_of(InMemoryTransport(), **{place: [middleware]})


class PlainMiddleware:
    def __call__(self, request: Request, call_next: Handler) -> Response:
        return Response(200)


async def test_a_middleware_object_that_is_not_async_is_named() -> None:
    async with client_of(InMemoryTransport(), middleware=[PlainMiddleware()]) as client:
        with pytest.raises(ConfigError, match="PlainMiddleware must be async, and returned Response"):
            await client.partner_access("t")


def forwarding(request: Request, call_next: Handler) -> Awaitable[Response]:
    return call_next(request)


async def through(request: Request, call_next: Handler) -> Response:
    return await call_next(request)


@wraps(through)
def wrapped(*arguments: Any) -> Any:
    return through(*arguments)


@pytest.mark.parametrize("middleware", [forwarding, wrapped, lambda request, call_next: call_next(request)])
async def test_a_plain_function_that_returns_an_awaitable_works(middleware: Any) -> None:
    transport = InMemoryTransport(default={"RequestId": "r"})
    async with client_of(transport, middleware=[middleware]) as client:
        assert (await client.partner_access("t")).request_id == "r"


class Forgetful:
    def reserve(self, now: float) -> Any:
        return None


class AsyncForgetful:
    async def reserve(self, now: float) -> Any:
        return None


@pytest.mark.parametrize("limiter", [Forgetful(), AsyncForgetful()])
async def test_a_rate_limiter_without_an_answer_is_named(limiter: Any) -> None:
    async with client_of(InMemoryTransport(), limits=Limits(rate_limiter=limiter)) as client:
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"Limits.rate_limiter: \w+.reserve must return seconds"):
                await client.partner_access("t")
        assert client.stats().requests_in_flight == client.stats().queued == 0
