"""The fast path uses names that aiohttp does not document; these tests fail when they change."""

from __future__ import annotations

import aiohttp
import pytest

from flinks_async import FlinksClient
from flinks_async.testing import FlinksServer
from flinks_async.transport import fast_path


def test_this_aiohttp_is_supported() -> None:
    assert fast_path.SUPPORTED, f"aiohttp {aiohttp.__version__} has changed: read flinks_async/exchange.py"


async def test_both_paths_send_and_receive_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FlinksServer(record=10) as server:
        async with FlinksClient(
            auth_secret=server.auth_secret, base_url=server.base_url, headers={"X-Extra": "1"}, app_name="acme/1"
        ) as flinks:
            short = await flinks.partner_access("a/b c")
            monkeypatch.setattr("flinks_async.transport.aiohttp.session_is_untouched", lambda: False)
            long = await flinks.partner_access("a/b c")
            assert flinks.stats().connections.created == 1
        one, other = server.requests
    assert short == long
    assert one.path == other.path
    assert sorted(one.headers) == sorted(other.headers)


async def test_the_fast_path_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*args: object, **options: object) -> None:
        raise AssertionError("went through ClientSession")

    monkeypatch.setattr("aiohttp.ClientSession.get", never)
    async with FlinksServer() as server:
        async with FlinksClient(auth_secret=server.auth_secret, base_url=server.base_url) as flinks:
            assert (await flinks.partner_access("t")).meta.attempts == 1
