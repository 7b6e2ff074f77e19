"""The messages between a job and its worker processes, and the channel that carries them over a pair of pipes.

No message holds a token. Secrets do not travel as messages: see `worker_process`.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

from attrs import field, frozen

from ..compression import Compression
from ..inputs import Layout
from ..progress import Counters
from ..records import RunState
from ..rules import Rules
from .clients import Description
from .protocol import Task

# --- from the job ---


@frozen
class Start:
    """The first message: how to work. Other attributes are as in `Work`.

    Attributes:
        path: of the file of tokens.
        layout: of the file of tokens.
        clients: descriptions from which the worker makes its clients. Other messages name a client by its index here.
        names: index of the client by name of the instance.
        rates: by index of the client: the file of its rate limit, which all processes share.
        spools: a folder for this worker alone.
        rules: of this worker alone.
    """

    path: Path
    layout: Layout
    key: bytes = field(repr=False)
    clients: tuple[Description, ...]
    names: dict[str | None, int]
    rates: dict[int, Path]
    spools: Path
    compression: Compression
    rules: Rules


@frozen
class Assigned:
    """The answer to `Next`.

    Attributes:
        task: the shard; None when there are no more.
        secret_is_good: the AuthSecret has worked in this job.
    """

    task: Task | None
    secret_is_good: bool


@frozen
class Stored:
    """A finished shard is in the store and in the ledger."""

    shard: int


@frozen
class StopWorker:
    """Take no more tokens (see `Fetcher.stop`)."""

    reason: str
    state: RunState


# --- from a worker ---


@frozen
class Next:
    """The worker has room for another shard."""


@frozen
class Report:
    """How far the worker is.

    Attributes:
        counters: of this worker.
        stopped: how and why it stopped; None while it takes tokens.
        over: the worker has finished; this is its last message.
    """

    counters: Counters
    stopped: tuple[RunState, str] | None = None
    over: bool = False


@frozen
class Broken:
    """The worker cannot go on."""

    error: Exception


# --- both ways ---


@frozen
class Paused:
    """An instance demands a pause.

    Attributes:
        client: index of the client.
        until: time on the machine's monotonic clock.
        in_a_row: number of pauses with no success between.
    """

    client: int
    until: float
    in_a_row: int


class Channel:
    """One end of a pair of pipes. It starts in the running event loop.

    Two threads read and write, because asyncio's pipes do not work with every event loop and system; there are only a few
    messages per second.

    Args:
        source, sink: the pipes; the sink is closed with this object.
        on_end: called in a thread when the other end is closed.
    """

    def __init__(self, source: BinaryIO, sink: BinaryIO, on_end: Callable[[], object] = lambda: None) -> None:
        self._source = source
        self._sink = sink
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="flinks-async-receive", daemon=True)
        self._writer = threading.Thread(target=self._write, name="flinks-async-send", daemon=True)
        self._reader.start()
        self._writer.start()

    def send(self, message: object) -> None:
        """Queues a message to be sent. It is dropped if the other end is closed."""
        self._outbox.put(pickle.dumps(message))

    async def receive(self) -> Any:
        """The next message; None once the other end is closed."""
        return await self._inbox.get()

    def close(self) -> None:
        """Sends the queued messages and closes the sink. Blocks until then."""
        self._outbox.put(None)
        self._writer.join()

    def _read(self) -> None:
        with suppress(Exception):  # the other end is closed, perhaps in the middle of a message
            while True:
                self._hand_over(pickle.load(self._source))
        self._on_end()
        self._hand_over(None)

    def _hand_over(self, message: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, message)

    def _write(self) -> None:
        with suppress(OSError, ValueError):
            while (data := self._outbox.get()) is not None:
                self._sink.write(data)
                self._sink.flush()
        with suppress(OSError, ValueError):
            self._sink.close()
