"""The executor of several processes on this machine, and its worker processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import suppress
from signal import Signals
from typing import Any, BinaryIO, Final

from ...checks import integer
from ...secret import Secret
from ..errors import WorkerError
from ..files import allow_open_files
from ..selection import PSEUDONYM_KEY
from .dispatch import Worker, WorkersExecution, starts_of
from .in_process import FILES
from .protocol import NextTask, TakeFinished, Work
from .seat import Secrets, Start
from .worker import Channel, SharedRate, to_line

MOST_PROCESSES: Final = 1024

GRACE: Final = 10.0
"""Seconds beyond `Rules.drain` after which a worker that has not handed over its shards is killed."""

# Workers ignore signals: the job handles them and tells its workers. Service managers send SIGTERM to every process.
_PROGRAM: Final = """\
import json, signal, sys
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
    if hasattr(signal, name):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
sys.path[:] = json.loads(sys.stdin.buffer.readline())
from flinks_async.bulk.executors.worker import main
main()
"""
_APART: dict[str, Any]
if sys.platform == "win32":
    _APART = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
else:
    _APART = {"process_group": 0}  # Ctrl-C must not reach it while it starts, either

_SECRET_VARIABLES: Final = frozenset({"FLINKS_AUTH_SECRET", "FLINKS_ACCESS_TOKEN", PSEUDONYM_KEY, "PGPASSWORD"})
"""Variables that a worker does not need, because it gets its secrets by pipe and does not write to the store."""

_SHORTEST_LEAK: Final = 8
"""Shortest secret whose appearance inside an environment value counts as a leak."""


class Processes:
    """Fetches in worker processes on this machine.

    They share the rate limit; what one of them learns about the limit of an instance, and a pause, holds for all. The
    concurrency is divided among them. Each makes its own clients from the settings of the job's clients.

    Args:
        count: number of processes.
        restarts: dead workers that are replaced, in all, before the run is given up (default 10).

    Raises:
        ConfigError: a number is wrong.
    """

    def __init__(self, count: int, *, restarts: int = 10) -> None:
        integer("the number of processes", count, 1, MOST_PROCESSES)
        integer("restarts", restarts, 0)
        self.count = count
        self.restarts = restarts

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> ProcessesExecution:
        return ProcessesExecution(work, tasks, finished, self.count, self.restarts)


class ProcessesExecution(WorkersExecution):
    """An `Execution` in worker processes."""

    def __init__(self, work: Work, tasks: NextTask, finished: TakeFinished, count: int, restarts: int) -> None:
        super().__init__(work, tasks, finished, restarts=restarts, grace=GRACE)
        allow_open_files(count * FILES)  # pipes and spools; workers inherit the limit
        self._starts, self._secrets = starts_of(work, count)
        self._rates = [
            SharedRate.path(work.spools, number)
            for number, client in enumerate(self._starts[0].clients)
            if client.settings.limits.rate is not None
        ]

    async def _prepare(self) -> list[Start]:
        for path in self._rates:
            SharedRate.make(path)
        return self._starts

    async def _start(self, start: Start) -> WorkerProcess:
        return WorkerProcess(start, self._secrets)

    async def _clean_up(self) -> None:
        for path in self._rates:
            path.unlink(missing_ok=True)


class WorkerProcess(Worker):
    """Starts a worker process. Its first message asks for a shard.

    The secrets go through its standard input, never through arguments or environment, which other users can read.

    Raises:
        WorkerError: the operating system cannot start it.
    """

    def __init__(self, start: Start, secrets: list[Secrets]) -> None:
        super().__init__()
        first = _search_path() + to_line(secrets)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment_without(secrets), **_APART,
            )  # fmt: skip
        except OSError as error:
            problem = error.strerror
        else:
            problem = None
        if problem is not None:
            raise WorkerError(f"a worker process cannot be started: {problem}")
        self.name = f"worker process {self._process.pid}"
        source, sink = self._pipes()
        with suppress(OSError):  # it has died already, which the channel will find out
            sink.write(first)
            sink.flush()
        self._loop = asyncio.get_running_loop()
        self._inbox = asyncio.Queue[object]()
        self._channel = Channel(source, sink)
        self._channel.listen(self._received)
        self.send(start)

    def _received(self, message: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, message)

    def _pipes(self) -> tuple[BinaryIO, BinaryIO]:
        source: Any = self._process.stdout
        sink: Any = self._process.stdin
        return source, sink

    def send(self, message: object) -> None:
        self._channel.send(message)

    async def receive(self) -> object:
        return await self._inbox.get()

    def kill(self) -> None:
        self._process.kill()

    async def end(self) -> str:
        self.kill()
        code = self._process.wait()  # blocks for a moment
        self._channel.close()
        self._pipes()[0].close()
        return ending(code)


def ending(code: int) -> str:
    """How a process ended, in words, from its exit code as `subprocess` returns it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {Signals(-code).name}"
    except ValueError:  # most real-time signals have no names
        return f"signal {-code}"


def _search_path() -> bytes:
    """`sys.path` as one line of JSON. Python ignores entries that are not strings, and so does this."""
    return json.dumps([entry for entry in sys.path if isinstance(entry, str)]).encode() + b"\n"


def environment_without(secrets: list[Secrets]) -> dict[str, str]:
    """The environment without the variables that hold one of the secrets, or whose name says that they hold another one."""
    hidden = [secret for one in secrets for secret in one.all]
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _SECRET_VARIABLES and not any(_holds(value, one) for one in hidden)
    }


def _holds(value: str, secret: Secret) -> bool:
    return value.strip() == secret.reveal() or (len(secret) >= _SHORTEST_LEAK and secret.reveal() in value)
