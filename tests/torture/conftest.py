"""A server for all tests here, a driver without a shim, one with it, and folders that are gone when they are not needed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flinks_async.testing import ServeOptions, ServerProcess

from ..bulk.postgresql_server import Missing, running
from .driver import Driver
from .order import Order
from .outputs import OUTPUTS, POSTGRESQL

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(ServeOptions(size="small")) as running:
        yield running


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    if sys.platform == "win32":
        pytest.skip("the driver forks, and kills with SIGKILL")
    with Driver(tmp_path_factory.mktemp("driver") / "errors") as running:
        yield running


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`io_shim.c`, compiled."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the shim is for Linux")
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler for the shim: install gcc or clang")
    built = tmp_path_factory.mktemp("shim") / "io_shim.so"
    made = subprocess.run(
        [compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", built, HERE / "io_shim.c", "-lpthread"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"io_shim.c does not compile here: {made.stderr.strip().splitlines()[0]}")
    return built


@pytest.fixture(scope="session")
def breaker(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A driver whose disk can be broken."""
    with Driver(tmp_path_factory.mktemp("breaker") / "errors", shim=shim) as running:
        yield running


@pytest.fixture
def new_root() -> Iterator[Callable[[], Path]]:
    """Gives an empty folder for a job, and removes the one before. In memory if possible: a thousand jobs sync a lot."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        made: list[Path] = []

        def root() -> Path:
            if made:
                shutil.rmtree(made.pop())
            made.append(Path(folder, f"root-{uuid.uuid4().hex[:8]}"))
            made[0].mkdir()
            return made[0]

        yield root


@pytest.fixture
def seed() -> int:
    """A test prints it; FLINKS_TORTURE_SEED repeats it."""
    return int(os.environ.get("FLINKS_TORTURE_SEED") or random.SystemRandom().randrange(1_000_000))


@pytest.fixture(scope="session")
def conninfo() -> Iterator[str]:
    """A PostgreSQL server, which is not what is killed here."""
    try:
        with running() as server:
            yield server.conninfo
    except Missing as missing:
        pytest.skip(f"no PostgreSQL server: {missing}")


@pytest.fixture
def order(output: str, request: pytest.FixtureRequest) -> Order:
    """The order that all runs of a test with the parameter `output` share."""
    for module in OUTPUTS[output].needs:
        pytest.importorskip(module)
    return Order(output=output, conninfo=request.getfixturevalue("conninfo") if output == POSTGRESQL else "")
