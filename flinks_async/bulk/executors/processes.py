"""The executor of several processes on this machine, and the program of a worker process: a `Worker` at the end of two pipes.
And what a worker on a cluster has in place of the pipes: references of secrets, and an outbox for messages.

A worker process ends with the job: when the pipe closes, it exits at once and writes nothing more.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from signal import Signals
from typing import IO, Any, BinaryIO, Final, Literal

import msgspec
from attrs import evolve, frozen

from ...checks import integer
from ...errors import ConfigError
from ...limits.notices import is_no_notice
from ...runtime import fast_loop
from ...secret import Secret
from ..counters import waits
from ..errors import WorkerError
from ..files import allow_open_files
from ..selection import PSEUDONYM_KEY
from .dispatch import WorkerHandle, WorkersExecution, starts_of
from .protocol import FILES, NextTask, TakeFinished, Work
from .worker import PaceLearned, Report, Secrets, Start, Worker, within_limits

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
from flinks_async.bulk.executors.processes import main
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
        restarts: the run ends when more workers than this die in a row, each as the replacement of the one before, and none of
            them has finished a shard. Even if every second worker died so early, 11 in a row would happen to one worker in
            2,048: the cause is then no chance (default 10).

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
        starts, self._secrets = starts_of(work, count)
        # Here too, to refuse a limit of open files that is too low before anything starts: workers inherit it.
        self._starts = [
            within_limits(starts[0], work.log.warning),
            *(within_limits(one, _ignore) for one in starts[1:]),
        ]

    async def _prepare(self) -> list[Start]:
        return self._starts

    async def _start(self, start: Start) -> WorkerProcess:
        return WorkerProcess(start, self._secrets)


def _ignore(*_: object) -> None:
    """The first worker's warning is enough."""


class WorkerProcess(WorkerHandle):
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
        source, sink = self._process.stdout, self._process.stdin
        assert source is not None
        assert sink is not None
        self._source = source
        with suppress(OSError):  # it has died already, which the channel will find out
            sink.write(first)
            sink.flush()
        self._loop = asyncio.get_running_loop()
        self._channel = Channel(source, sink)
        self._channel.listen(self._received)
        self.send(start)

    def _received(self, message: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, message)

    def send(self, message: object) -> None:
        self._channel.send(message)

    def kill(self) -> None:
        self._process.kill()

    async def end(self) -> str:
        self.kill()
        code = self._process.wait()  # blocks for a moment
        self._channel.close()
        self._source.close()
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


# --- in the worker process --------------------------------------------------------------------------------------------


def main() -> None:
    """The program of the process. Standard input: the secrets as a line of JSON, then messages. Standard output:
    messages.
    """
    source = sys.stdin.buffer
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # output of print must not mix with the messages
    logging.getLogger("flinks_async").addFilter(is_no_notice)  # the job tells of an outage once, for all workers
    waits.log = False
    try:
        secrets = from_line(source.readline())
        start: Start = pickle.load(source)
    except (EOFError, msgspec.DecodeError, pickle.UnpicklingError):  # the job has ended already
        os._exit(1)
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(_run(start, secrets, source, sink))
    os._exit(0)  # without waiting for the reading thread


async def _run(start: Start, secrets: list[Secrets], source: BinaryIO, sink: BinaryIO) -> None:
    channel = Channel(source, sink)
    worker = Worker(start, secrets, channel.send, asyncio.get_running_loop())
    channel.listen(lambda message: os._exit(1) if message is None else worker.receive(message))
    await worker.go()
    channel.close()


def to_line(secrets: Iterable[Secrets]) -> bytes:
    """One line of plain text, to be written to a private pipe and nowhere else."""
    return msgspec.json.encode([[secret.reveal() for secret in one.all] for one in secrets]) + b"\n"


def from_line(line: bytes) -> list[Secrets]:
    """Reads the output of `to_line`."""
    rows = msgspec.json.decode(line, type=list[list[str]])
    return [Secrets(Secret(first), Secret(rest[0]) if rest else None) for first, *rest in rows]


class Channel:
    """One end of a pair of pipes.

    Two threads read and write, because asyncio's pipes do not work with every event loop and system; there are only a few
    messages per second.

    Args:
        source, sink: the pipes; the sink is closed with this object.
    """

    def __init__(self, source: IO[bytes], sink: IO[bytes]) -> None:
        self._source = source
        self._sink = sink
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="flinks-async-send", daemon=True)
        self._writer.start()

    def listen(self, receive: Callable[[object], object]) -> None:
        """Calls `receive` in a thread with each message, and with None when the other end is closed."""
        threading.Thread(target=self._read, args=[receive], name="flinks-async-receive", daemon=True).start()

    def send(self, message: object) -> None:
        """Queues a message to be sent. It is dropped if the other end is closed."""
        self._outbox.put(pickle.dumps(message))

    def close(self) -> None:
        """Sends the queued messages and closes the sink. Blocks until then."""
        self._outbox.put(None)
        self._writer.join()

    def _read(self, receive: Callable[[object], object]) -> None:
        with suppress(Exception):  # the other end is closed, perhaps in the middle of a message
            while True:
                receive(pickle.load(self._source))
        receive(None)

    def _write(self) -> None:
        with suppress(OSError, ValueError):
            while (data := self._outbox.get()) is not None:
                self._sink.write(data)
                self._sink.flush()
        with suppress(OSError, ValueError):
            self._sink.close()


# --- to workers of a cluster ------------------------------------------------------------------------------------------

Source = Literal["secret_env", "secret_file", "secret_from"]

REFERENCES: Final[dict[Source, tuple[str, str, str]]] = {
    "secret_env": ("environment variable", r"[^\W\d]\w*", "[A-Z][A-Z0-9_]*"),
    "secret_file": ("file", ".+", r".*[/\\].*"),
    "secret_from": ("function", r"[\w.]+:\w+", r"[\w.]+:\w+"),
}
"""The kind of place that a reference names, its form, and the form that errors show: others may be the secret itself."""


@frozen
class SecretReference:
    """Where a worker finds an AuthSecret. Only this is sent to the cluster.

    Attributes:
        source: the kind of the place.
        name: of the environment variable, of the file, or of the function as `package.module:function`.
    """

    source: Source
    name: str

    def resolve(self) -> Secret:
        """The secret. Called in the worker. Raises ConfigError if it is not there."""
        try:
            if self.source == "secret_env":
                value: object = os.environ[self.name]
            elif self.source == "secret_file":
                value = Path(self.name).read_text(encoding="utf-8")
            else:
                module, _, function = self.name.partition(":")
                value = getattr(import_module(module), function)()
        except Exception as error:  # whatever a user's function raises
            problem = type(error).__name__
        else:
            if isinstance(value, Secret):
                return value
            if isinstance(value, str) and value.strip():
                return Secret(value.strip())
            problem = "it is empty, or not text"
        what, _, shown = REFERENCES[self.source]
        name = self.name if re.fullmatch(shown, self.name) else f"that {self.source} names"
        raise ConfigError(
            f"the worker on {socket.gethostname()} finds no secret in the {what} {name} ({problem}). Provide it on "
            "every machine of the cluster"
        )


class Outbox:
    """Messages on their way to the other side, which takes them in calls. Each call costs the engine about a millisecond, so
    reports go with other messages, or when the other side has waited long enough; only the latest counts.
    """

    def __init__(self) -> None:
        self._messages = list[bytes]()
        self._report = list[bytes]()
        self._any = asyncio.Event()

    def put(self, message: object, data: bytes) -> None:
        if isinstance(message, Report) and not (message.over or message.stopped):
            self._report = [data]
        else:
            self._messages.append(data)
            self._any.set()

    async def take(self, most: float | None = None) -> list[bytes]:
        """The messages, as soon as there are some, or after some seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(most):
                await self._any.wait()
        self._any.clear()
        taken = self._messages + self._report
        self._messages, self._report = [], []
        return taken


def moved(message: object, seconds: float) -> object:
    """A message whose moments are moved: into seconds from now, or back into moments of this machine's clock."""
    if isinstance(message, PaceLearned) and message.state.until:
        return evolve(message, state=evolve(message.state, until=max(message.state.until + seconds, 1e-9)))
    if isinstance(message, Report):
        instances = {
            host: one
            if one.trouble is None
            else evolve(one, trouble=evolve(one.trouble, since=one.trouble.since + seconds))
            for host, one in message.counters.instances.items()
        }
        return evolve(message, counters=evolve(message.counters, instances=instances))
    return message
