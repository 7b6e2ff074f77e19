"""Messages between two processes, over a pair of pipes.

Threads read and write, so that this works with every event loop and on every system; there are a few messages a second.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, BinaryIO


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
