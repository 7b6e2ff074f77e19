"""A worker process, as the job sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from signal import Signals
from typing import Any, BinaryIO, Final

from attrs import evolve

from ...secret import Secret
from ..errors import WorkerError
from ..records import Counters, Finished
from .protocol import Task
from .worker_messages import Channel, Secrets, Start, to_line

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

_SHORTEST_LEAK: Final = 8
"""Shortest secret whose appearance inside an environment value counts as a leak."""


class WorkerProcess:
    """Starts a worker process. Its first message asks for a shard.

    The secrets go through its standard input, never through arguments or environment, which other users can read.

    Attributes:
        channel: to the worker.
        tasks: the shards that it has, by id.
        counters: of its latest report.

    Raises:
        WorkerError: the operating system cannot start it.
    """

    def __init__(self, start: Start, secrets: list[Secrets]) -> None:
        self.tasks: dict[int, Task] = {}
        self.counters = Counters()
        self._stored = Counters()
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
        source, sink = self._pipes()
        with suppress(OSError):  # it has died already, which the channel will find out
            sink.write(first)
            sink.flush()
        self.channel = Channel(source, sink)
        self.channel.send(start)

    def _pipes(self) -> tuple[BinaryIO, BinaryIO]:
        source: Any = self._process.stdout
        sink: Any = self._process.stdin
        return source, sink

    @property
    def pid(self) -> int:
        return self._process.pid

    def finished(self, shard: Finished) -> None:
        """Counts a shard that the worker has handed over."""
        del self.tasks[shard.shard.id]
        done = shard.written.lines + len(shard.failures)
        stored = self._stored
        self._stored = evolve(
            stored,
            fetched=stored.fetched + shard.written.lines,
            failed=stored.failed + len(shard.failures),
            failed_before=stored.failed_before + (done if shard.shard.round else 0),
        )

    def remains(self) -> Counters:
        """Its counters after it has died: all its requests, but only the tokens of shards that it had handed over."""
        stored = self._stored
        return evolve(
            self.counters.ended(),
            fetched=stored.fetched,
            failed=stored.failed,
            failed_before=stored.failed_before,
            limit=0,
        )

    def kill(self) -> None:
        """Kills the process."""
        self._process.kill()

    def end(self) -> str:
        """Kills the process if it still runs. Returns how it ended, in words. Blocks for a moment."""
        self.kill()
        code = self._process.wait()
        self.channel.close()
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
    """The environment without the variables that hold one of the secrets."""
    hidden = [secret for one in secrets for secret in one.all]
    return {name: value for name, value in os.environ.items() if not any(_holds(value, one) for one in hidden)}


def _holds(value: str, secret: Secret) -> bool:
    return value.strip() == secret.reveal() or (len(secret) >= _SHORTEST_LEAK and secret.reveal() in value)
