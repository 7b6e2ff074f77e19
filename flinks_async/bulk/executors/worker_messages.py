"""Messages between a job and its worker processes, descriptions of clients, and the channel.

No message has a token. Secrets are sent once, at the start, through the worker's own pipe.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, Final

import msgspec
from attrs import evolve, field, fields, frozen

from ...client import FlinksClient
from ...client_options import ClientOptions
from ...clock import SystemClock
from ...codec import Codec, Transactions, WrongTypes
from ...config import RateLimiter, Settings
from ...errors import ConfigError
from ...limits.rate import PaceState
from ...secret import Secret
from ..compression import Compression
from ..inputs import Layout
from ..records import Counters, RunState
from ..rules import Rules
from .protocol import Task

_OBJECTS: Final = ("middleware", "attempt_middleware", "observers", "session", "transport")

_NOT_SENT: Final = frozenset({*_OBJECTS, "auth_secret", "settings", "codec", "clock"})


@frozen
class Description:
    """Everything about a client but its secrets, in a form that can be pickled.

    Attributes:
        arguments: of `FlinksClient`; headers may hold another secret.
        settings: of the client, without the proxy.
        transactions, wrong_types: of the codec.
    """

    arguments: dict[str, Any] = field(repr=False)
    settings: Settings
    transactions: Transactions
    wrong_types: WrongTypes


@frozen
class Secrets:
    """The secrets of one client.

    Attributes:
        auth_secret: the AuthSecret.
        proxy: URL of the proxy, or None.
    """

    auth_secret: Secret
    proxy: Secret | None

    @property
    def all(self) -> list[Secret]:
        return [secret for secret in (self.auth_secret, self.proxy) if secret]


def to_line(secrets: Iterable[Secrets]) -> bytes:
    """One line of plain text, to be written to a private pipe and nowhere else."""
    return msgspec.json.encode([[secret.reveal() for secret in one.all] for one in secrets]) + b"\n"


def from_line(line: bytes) -> list[Secrets]:
    """Reads the output of `to_line`.

    Raises:
        msgspec.DecodeError: the line is truncated.
    """
    rows = msgspec.json.decode(line, type=list[list[str]])
    return [Secrets(Secret(first), Secret(rest[0]) if rest else None) for first, *rest in rows]


def describe(client: FlinksClient) -> tuple[Description, Secrets]:
    """Splits a client into a description and its secrets.

    Raises:
        ConfigError: a part cannot be sent to another process; the message names it.
    """
    options, settings = client.options, client.settings
    found = [name for name in _OBJECTS if getattr(options, name)]
    if type(client) is not FlinksClient:
        found.append(f"the class {type(client).__name__}")
    secret, proxy = options.auth_secret, settings.connection.proxy
    if not isinstance(secret, Secret):
        found.append("auth_secret as a function")
    if not isinstance(options.clock, SystemClock):
        found.append("clock")
    if type(options.codec) is not Codec:
        found.append("codec")
    if settings.limits.rate_limiter is not None:
        found.append("limits.rate_limiter")
    if settings.connection.ssl_context is not None:
        found.append("connection.ssl_context")
    if found or not isinstance(secret, Secret):
        raise ConfigError(
            f"worker processes make their own clients and cannot use these parts of yours: {', '.join(found)}. "
            "Leave them out, or run the job in one process"
        )
    # A Secret refuses to be pickled. The URL was checked and holds no password.
    revealed = {
        "base_url": None if options.base_url is None else options.base_url.reveal(),
        "headers": {name: value.reveal() for name, value in (options.headers or {}).items()},
    }
    names = [attribute.name for attribute in fields(ClientOptions) if attribute.name not in _NOT_SENT]
    arguments = {name: revealed[name] if name in revealed else getattr(options, name) for name in names}
    sent = evolve(settings, connection=evolve(settings.connection, proxy=None))
    return Description(arguments, sent, options.codec.transactions, options.codec.wrong_types), Secrets(secret, proxy)


def make(description: Description, secrets: Secrets, rate: RateLimiter | None) -> FlinksClient:
    """Makes the client again.

    Args:
        rate: the limiter that all workers share, if there is one; it replaces the rate of the settings.
    """
    settings = description.settings
    return FlinksClient(
        **description.arguments,
        auth_secret=secrets.auth_secret,
        codec=Codec(transactions=description.transactions, wrong_types=description.wrong_types),
        settings=evolve(
            settings,
            limits=evolve(settings.limits, rate=None, burst=None, rate_limiter=rate),
            connection=evolve(settings.connection, proxy=secrets.proxy),
        ),
    )


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
    """The worker cannot continue."""

    error: Exception


# --- both ways ---


@frozen
class PaceLearned:
    """A process has learned something about the limit of an instance, or waits for it.

    Attributes:
        client: index of the client.
        state: what it learned.
    """

    client: int
    state: PaceState


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
