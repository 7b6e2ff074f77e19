"""The pytest fixtures `flinks_server` and `flinks_client`. pytest loads this module when the package is installed.

They need pytest-asyncio (in either mode) or anyio's plugin. Nothing else is imported before a test uses a fixture.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from ..client import FlinksClient
    from .server import FlinksServer


def pytest_configure(config: pytest.Config) -> None:
    manager = config.pluginmanager
    if manager.hasplugin("asyncio"):
        import pytest_asyncio

        fixture: Any = pytest_asyncio.fixture  # its strict mode takes only its own fixtures
    else:
        import pytest

        fixture = pytest.fixture
    usable = manager.hasplugin("asyncio") or manager.hasplugin("anyio")
    functions = (flinks_server, flinks_client) if usable else (_missing("flinks_server"), _missing("flinks_client"))
    fixtures = ModuleType("flinks_async_fixtures")  # pytest looks for fixtures in modules and classes
    for function in functions:
        setattr(fixtures, function.__name__, fixture(function))
    manager.register(fixtures, fixtures.__name__)


async def flinks_server() -> AsyncIterator[FlinksServer]:
    """A simulator on loopback, new for each test."""
    from .server import FlinksServer

    async with FlinksServer() as server:
        yield server


async def flinks_client(flinks_server: FlinksServer) -> AsyncIterator[FlinksClient]:
    """A client of `flinks_server`."""
    from ..client import FlinksClient

    async with FlinksClient(auth_secret=flinks_server.auth_secret, base_url=flinks_server.base_url) as client:
        yield client


def _missing(name: str) -> Any:
    def fixture() -> None:
        import pytest

        pytest.fail(f"the fixture {name} needs an async plugin: pip install pytest-asyncio", pytrace=False)

    fixture.__name__ = name
    return fixture
