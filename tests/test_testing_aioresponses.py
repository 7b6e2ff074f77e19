"""`flinks_async.testing.aioresponses`: users' tests may mock aiohttp below the client."""

from __future__ import annotations

import aiohttp

from flinks_async.testing import aioresponses


async def test_aioresponses_answers() -> None:
    with aioresponses() as mocked:
        mocked.get("http://localhost/x", payload={"a": 1}, headers={"X-A": "1"})
        async with aiohttp.ClientSession() as session, session.get("http://localhost/x") as response:
            assert (response.status, await response.json(), response.headers["x-a"]) == (200, {"a": 1}, "1")
