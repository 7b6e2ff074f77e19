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
from ..progress import Counters
from ..records import Finished
from .clients import Secrets, to_line
from .protocol import Task
from .worker_messages import Link, Start

# Signals are for the job, which tells its workers: SIGTERM, too, since service managers send it to every process.
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
    _APART = {"process_group": 0}  # out of reach of Ctrl-C while it starts, too

_ENOUGH_TO_KNOW: Final = 8
"""Characters of a secret that are no coincidence inside of another text."""


class WorkerProcess:
    """Starts a worker. It begins with asking for a shard.

    The secrets go through its standard input, and through nothing that others can see.

    Attributes:
        link: to it.
        tasks: the shards that it has, by id.
        counters: what it said last.

    Raises:
        WorkerError: the system does not start it.
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
        with suppress(OSError):  # it has died already, which the link will find out
            sink.write(first)
            sink.flush()
        self.link = Link(source, sink)
        self.link.send(start)

    def _pipes(self) -> tuple[BinaryIO, BinaryIO]:
        source: Any = self._process.stdout
        sink: Any = self._process.stdin
        return source, sink

    @property
    def pid(self) -> int:
        return self._process.pid

    def finished(self, shard: Finished) -> None:
        """It hands a shard over."""
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
        """Its counters once it has died: everything it had sent, but only the tokens that it had handed over."""
        stored = self._stored
        return evolve(
            self.counters.ended(),
            fetched=stored.fetched,
            failed=stored.failed,
            failed_before=stored.failed_before,
            limit=0,
        )

    def kill(self) -> None:
        """Ends it, whatever it does."""
        self._process.kill()

    def end(self) -> str:
        """Ends it if it still runs, and how it ended, in words. Blocks for a moment."""
        self.kill()
        code = self._process.wait()
        self.link.close()
        self._pipes()[0].close()
        return ending(code)


def ending(code: int) -> str:
    """What a process has ended by, from its exit code as `subprocess` gives it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {Signals(-code).name}"
    except ValueError:  # most signals for real time have no names
        return f"signal {-code}"


def _search_path() -> bytes:
    """Where modules are looked for, one line. Python passes over what is no text there, and so does this."""
    return json.dumps([entry for entry in sys.path if isinstance(entry, str)]).encode() + b"\n"


def environment_without(secrets: list[Secrets]) -> dict[str, str]:
    """The environment without those variables that hold one of the secrets."""
    hidden = [secret for one in secrets for secret in one.all]
    return {name: value for name, value in os.environ.items() if not any(_tells(value, one) for one in hidden)}


def _tells(value: str, secret: Secret) -> bool:
    return value.strip() == secret.reveal() or (len(secret) >= _ENOUGH_TO_KNOW and secret.reveal() in value)
