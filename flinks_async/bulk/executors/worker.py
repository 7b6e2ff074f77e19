"""The program of a worker process: a seat at the end of a pair of pipes.

It ends with the job: when the pipe closes, it exits at once and writes nothing more.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import pickle
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO, Final

import msgspec

from ...limits.notices import is_no_notice
from ...limits.rate import GCRA
from ...runtime import fast_loop
from ...secret import Secret
from ..files import cannot_write, create, write_all
from .seat import Seat, Secrets, Start


def main() -> None:
    """The program of the process. Standard input: the secrets as a line of JSON, then messages. Standard output:
    messages.
    """
    source = sys.stdin.buffer
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # output of print must not mix with the messages
    logging.getLogger("flinks_async").addFilter(is_no_notice)  # the job tells of an outage once, for all workers
    try:
        secrets = from_line(source.readline())
        start: Start = pickle.load(source)
    except (EOFError, msgspec.DecodeError, pickle.UnpicklingError):  # the job has ended already
        os._exit(1)
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(_run(start, secrets, source, sink))
    os._exit(0)  # without waiting for the reading thread


async def _run(start: Start, secrets: list[Secrets], source: BinaryIO, sink: BinaryIO) -> None:
    def limiter(client: int, rate: float, burst: int | None) -> SharedRate:
        return SharedRate(SharedRate.path(start.spools.parent, client), rate, burst)

    channel = Channel(source, sink)
    seat = Seat(start, secrets, channel.send, limiter, asyncio.get_running_loop())
    channel.listen(lambda message: os._exit(1) if message is None else seat.receive(message))
    await seat.go()
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

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
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


_NUMBER: Final = struct.Struct("<d")


class SharedRate(GCRA):
    """A `RateLimiter` whose state is in a file that `make` has made, so that processes of one machine share it.

    The state of GCRA is one number, the theoretical arrival time of the next request (see `limits.rate`). Every process maps
    the file, and locks it for the few microseconds of a reservation. All processes have the same clock, because the
    monotonic clock counts from the start of the machine. A process that dies loses its lock and at most one reservation.

    Args:
        path: of the file.
        rate, burst: as for `GCRA`, the same in all processes.
    """

    def __init__(self, path: Path, rate: float, burst: int | None = None) -> None:
        super().__init__(rate, burst)
        self._file = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        self._memory = mmap.mmap(self._file, _NUMBER.size)

    def reserve(self, now: float, /) -> float:
        with _locked(self._file):
            (self._next,) = _NUMBER.unpack_from(self._memory)
            wait = super().reserve(now)
            _NUMBER.pack_into(self._memory, 0, self._next)
        return wait

    def close(self) -> None:
        self._memory.close()
        os.close(self._file)

    @staticmethod
    def path(spools: Path, client: int) -> Path:
        """The file of a client's rate, in the folder that holds the folders of all workers."""
        return spools / f"rate-{client}"

    @staticmethod
    def make(path: Path) -> None:
        """Makes the file, with the state before the first request."""
        try:
            file = create(path)
            try:
                write_all(file, _NUMBER.pack(float("-inf")))
            finally:
                os.close(file)
        except OSError as error:
            raise cannot_write(path, error) from None


if sys.platform == "win32":
    import msvcrt

    @contextmanager
    def _locked(file: int) -> Iterator[None]:
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_LOCK, 1)
        try:
            yield
        finally:
            os.lseek(file, 0, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    @contextmanager
    def _locked(file: int) -> Iterator[None]:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
