"""Fixtures `flinks_server` and `flinks_client`, loaded by pytest when this package is installed.

They need pytest-asyncio (in either mode) or anyio's plugin. Loading this file imports nothing; without an async
plugin the fixtures are not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_configure(config: pytest.Config) -> None:
    manager = config.pluginmanager
    if manager.hasplugin("asyncio") or manager.hasplugin("anyio"):
        from . import fixtures

        manager.register(fixtures, "flinks_async_fixtures")
