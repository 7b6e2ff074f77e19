"""What a job and its worker processes say to each other. No message holds a token; the secrets go by themselves."""

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

# [flinks_async.bulk.executors.link] Messages between two processes, over a pair of pipes.
#
# Threads read and write, so that this works with every event loop and on every system; there are a few messages a second.


# --- from the job ---


@frozen
class Start:
    """The first message: how to work. Attributes as in `Work`, where not told otherwise.

    Attributes:
        path: of the file of tokens.
        layout: how to read it.
        clients: how to make them. The other messages name them by their place here, from 0.
        names: number of the client by name of the instance.
        rates: a file for each client with a rate limit, which all processes share, by the client's number.
        spools: a folder of this worker's own.
        rules: this worker's own.
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
        secret_is_good: the AuthSecret has worked, as far as it is known.
    """

    task: Task | None
    secret_is_good: bool


@frozen
class Stored:
    """A finished shard is in store and ledger."""

    shard: int


@frozen
class StopWorker:
    """Take no more tokens."""

    reason: str
    state: RunState


# --- from a worker ---


@frozen
class Next:
    """There is room for another shard."""


@frozen
class Report:
    """How far it is.

    Attributes:
        counters: the counts.
        stopped: how and why it takes no more tokens; None while it does.
        over: everything is done; the last message.
    """

    counters: Counters
    stopped: tuple[RunState, str] | None = None
    over: bool = False


@frozen
class Broken:
    """It cannot go on."""

    error: Exception


# --- both ways ---


@frozen
class Paused:
    """An instance asked for a pause.

    Attributes:
        client: which.
        until: on the machine's monotonic clock.
        in_a_row: how many pauses there were without a success between.
    """

    client: int
    until: float
    in_a_row: int


class Link:
    """One end. It begins at once, in the running event loop.

    Args:
        source, sink: the pipes; the sink is closed with this object.
        on_end: called, in a thread, when the other end is gone.
    """

    def __init__(self, source: BinaryIO, sink: BinaryIO, on_end: Callable[[], object] = lambda: None) -> None:
        self._source = source
        self._sink = sink
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="flinks-async-link-in", daemon=True)
        self._writer = threading.Thread(target=self._write, name="flinks-async-link-out", daemon=True)
        self._reader.start()
        self._writer.start()

    def send(self, message: object) -> None:
        """Sends, sooner or later; nothing happens if the other end is gone."""
        self._outbox.put(pickle.dumps(message))

    async def receive(self) -> Any:
        """The next message; None once the other end is gone."""
        return await self._inbox.get()

    def close(self) -> None:
        """Sends what is to be sent, and no more. Blocks as long as that takes."""
        self._outbox.put(None)
        self._writer.join()

    def _read(self) -> None:
        with suppress(Exception):  # the other end is gone, perhaps in the middle of a message
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
