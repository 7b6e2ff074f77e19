"""`flinks_async.testing.aioresponses`: users' tests may mock aiohttp below the client."""

from __future__ import annotations

import subprocess
import sys

import aiohttp

from flinks_async.testing import aioresponses


async def test_aioresponses_answers() -> None:
    with aioresponses() as mocked:
        mocked.get("http://localhost/x", payload={"a": 1}, headers={"X-A": "1"})
        async with aiohttp.ClientSession() as session, session.get("http://localhost/x") as response:
            assert (response.status, await response.json(), response.headers["x-a"]) == (200, {"a": 1}, "1")


def test_all_names_can_be_imported_without_aioresponses() -> None:
    code = "import sys; sys.modules['aioresponses'] = None\nfrom flinks_async.testing import *\nprint(FlinksServer.__name__)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "FlinksServer"
