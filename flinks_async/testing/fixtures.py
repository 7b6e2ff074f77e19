"""The fixtures of the pytest plugin."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..client import FlinksClient
    from .server import FlinksServer


def _async_fixture(function: Callable[..., Any]) -> Any:
    """pytest-asyncio's strict mode knows only its own fixtures; anyio takes plain ones."""
    if "pytest_asyncio" in sys.modules:
        import pytest_asyncio

        return pytest_asyncio.fixture(function)
    return pytest.fixture(function)


@_async_fixture
async def flinks_server() -> AsyncIterator[FlinksServer]:
    """A simulated Flinks on loopback, new for each test."""
    from .server import FlinksServer

    async with FlinksServer() as server:
        yield server


@_async_fixture
async def flinks_client(flinks_server: FlinksServer) -> AsyncIterator[FlinksClient]:
    """A client of `flinks_server`."""
    from ..client import FlinksClient

    async with FlinksClient(auth_secret=flinks_server.auth_secret, base_url=flinks_server.base_url) as client:
        yield client
