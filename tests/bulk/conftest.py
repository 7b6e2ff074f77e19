"""Shared by the tests of jobs."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from .postgresql_server import Missing, Server, running
from .server_desk import Desk, a_server

MEMORY = Path("/dev/shm")


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where that can be, for stores that sync a lot."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """A job against a server; some files have a desk of their own, without sockets."""
    async with a_server() as server:
        yield Desk(tmp_path, server)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A real server, or a skip that says what is missing."""
    pytest.importorskip("psycopg")
    try:
        with running() as server:
            yield server
    except Missing as missing:
        pytest.skip(f"no PostgreSQL server: {missing}")


@pytest.fixture
def closed_databases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes the SQLite databases that a test leaves open, for which Python 3.13 warns."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def remember(*args: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", remember)
    yield
    for database in opened:
        database.close()
