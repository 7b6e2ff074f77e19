"""Fixtures of the tests on real sockets."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from .support import Authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs a coroutine in a loop of each kind."""
    if request.param == "uvloop" and sys.platform == "win32":
        pytest.skip("uvloop is not for Windows")
    uvloop = pytest.importorskip("uvloop") if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=None if uvloop is None else uvloop.new_event_loop) as runner:
        yield runner.run
