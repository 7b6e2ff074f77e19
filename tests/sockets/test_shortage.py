"""A process that is short of file descriptors: it says so, and does not take it for a fault of the server."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flinks_async import Failed, FlinksClient, Retry, ShortageError
from flinks_async.config import Breaker, Limits
from flinks_async.observe import Event
from flinks_async.testing import FlinksServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_NOFILE")


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """The process cannot open another file."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 1, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def client_of(server: FlinksServer, host: str = "127.0.0.1", **options: object) -> FlinksClient:
    await asyncio.get_running_loop().run_in_executor(None, int)  # a thread that is there already
    url = server.base_url.replace("127.0.0.1", host)
    return FlinksClient(
        base_url=url,
        auth_secret=server.auth_secret,
        limits=Limits(breaker=Breaker(in_a_row=3), concurrency=50),
        **options,
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_it_is_an_error_of_its_own_that_names_the_limit(host: str, flinks_server: FlinksServer) -> None:
    async with await client_of(flinks_server, host, retry=Retry(attempts=1)) as client:
        with no_descriptor_left(), pytest.raises(ShortageError) as caught:
            await client.partner_access("t")
        assert "because of a shortage: Too many open files; this process may open " in caught.value.message
        assert caught.value.message.endswith(" files at once (ulimit -n)")
        await client.partner_access("t")


async def test_breaker_concurrency_quota_and_notices_do_not_count_it(flinks_server: FlinksServer) -> None:
    events: list[Event] = []
    async with await client_of(
        flinks_server, retry={"attempts": 2, "base": 0.001}, observers=[events.append]
    ) as client:
        limit = client.governor.concurrency.limit
        with no_descriptor_left():
            outcomes = [one async for one in client.partner_access_many([f"t-{n}" for n in range(200)])]
        assert {isinstance(one, Failed) and type(one.error) for one in outcomes} == {
            ShortageError
        }  # the quota pays for 35
        assert client.governor.breaker is not None
        assert client.governor.breaker.closed
        assert client.governor.concurrency.limit == limit
        assert client.stats().trouble is None
        assert not [event for event in events if type(event).__name__ in ("InstanceDown", "Paused")]
        await client.partner_access("t")


async def test_a_passing_shortage_is_retried(flinks_server: FlinksServer) -> None:
    async with await client_of(flinks_server, retry={"attempts": 5, "base": 0.05}) as client:
        with no_descriptor_left():
            call = asyncio.ensure_future(client.partner_access("t"))
            await asyncio.sleep(0.02)
        assert (await call).meta.attempts > 1
