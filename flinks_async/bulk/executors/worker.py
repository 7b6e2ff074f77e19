"""The worker side of a run, for any engine: a worker fetches the shards that it is handed and returns files of answers.

It knows neither ledger nor store, nor how its messages travel. No message has a token, and only `Secrets` has secrets.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from attrs import evolve, field, fields, frozen

from ...client import FlinksClient
from ...client_options import ClientOptions
from ...clock import SystemClock
from ...codec import Codec, Transactions, WrongTypes
from ...config import RateLimiter, Settings
from ...errors import ConfigError
from ...limits.rate import PaceState
from ...limits.shared import PermitBuffer
from ...secret import Secret
from ..compression import Compression
from ..counters import Counters, waits
from ..errors import portable
from ..inputs import InputFile, Layout
from ..records import Finished, RunState
from ..rules import Rules
from ..selection import Selection
from ..stores import Place, from_description
from ..stores.protocol import shared_store
from .protocol import Function, FunctionExecution, LocalExecution, Task, Work, within_open_files

_log = logging.getLogger("flinks_async.bulk")

_OBJECTS: Final = ("middleware", "attempt_middleware", "observers", "session", "transport")
_NOT_SENT: Final = frozenset({*_OBJECTS, "auth_secret", "settings", "codec", "clock"})


@frozen
class Description:
    """Everything about a client but its secrets, in a form that can be pickled.

    Attributes:
        arguments: of `FlinksClient`; headers may hold another secret.
        settings: of the client, without the proxy and the rate.
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
    proxy: Secret | None = None

    @property
    def all(self) -> list[Secret]:
        return [secret for secret in (self.auth_secret, self.proxy) if secret]


def describe(client: FlinksClient) -> tuple[Description, Secrets]:
    """Splits a client into a description and its secrets.

    Raises:
        ConfigError: a part cannot be sent to another process; the message names it.
    """
    options, settings = client.options, client.settings
    secret, proxy = options.auth_secret, settings.connection.proxy
    found = [name for name in _OBJECTS if getattr(options, name)]
    beside = {
        f"the class {type(client).__name__}": type(client) is not FlinksClient,
        "auth_secret as a function": not isinstance(secret, Secret),
        "clock": not isinstance(options.clock, SystemClock),
        "codec": type(options.codec) is not Codec,
        "connection.ssl_context": settings.connection.ssl_context is not None,
    }
    found += [name for name, is_used in beside.items() if is_used]
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
    sent = evolve(
        settings,
        connection=evolve(settings.connection, proxy=None),
        limits=evolve(settings.limits, rate=None, burst=None, rate_limiter=None),
    )
    return Description(arguments, sent, options.codec.transactions, options.codec.wrong_types), Secrets(secret, proxy)


def make(description: Description, secrets: Secrets, rate: RateLimiter | None) -> FlinksClient:
    """Makes the client again.

    Args:
        rate: the limiter, if the client has one.
    """
    settings = description.settings
    return FlinksClient(
        **description.arguments,
        auth_secret=secrets.auth_secret,
        codec=Codec(transactions=description.transactions, wrong_types=description.wrong_types),
        settings=evolve(
            settings,
            limits=evolve(settings.limits, rate_limiter=rate),
            connection=evolve(settings.connection, proxy=secrets.proxy),
        ),
    )


# --- messages to a worker ---------------------------------------------------------------------------------------------


@frozen
class Start:
    """How to work. Other attributes are as in `Work`.

    Attributes:
        path: of the file of tokens, or its URL; empty for a function.
        layout: of the file of tokens.
        clients: descriptions from which the worker makes its clients. Other messages name a client by its index here.
        permits: for each client, how many permits of its rate the worker asks for at once; 0 for no limit of the rate.
        names: index of the client by name of the instance.
        spools: a folder for this worker alone.
        rules: of this worker alone.
        store: the description of a shared store, to which the worker gives its shards.
        place: for this store.
        selection: as in `Work`, without its key, which comes after the secrets of the clients.
    """

    path: str
    layout: Layout | None
    key: bytes = field(repr=False)
    clients: tuple[Description, ...]
    permits: tuple[int, ...]
    names: dict[str | None, int]
    spools: Path
    compression: Compression
    rules: Rules
    report_every: float
    store: dict[str, Any] | None = None
    place: Place | None = None
    selection: Selection | None = None
    function: Function | None = None
    kept: bool = True

    @property
    def on_own_disk(self) -> bool:
        """Whether the job reads none of the spools, so that the machines need not share a disk."""
        return self.store is not None or self.function is not None


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
    """A finished shard is in the store and in the ledger.

    Attributes:
        then: the next shard, so that the worker need not ask for it; None if there are no more.
    """

    shard: int
    then: Assigned | None = None


@frozen
class StopWorker:
    """Take no more tokens (see `Execution.stop`)."""

    reason: str
    state: RunState


@frozen
class Permits:
    """The answer to `WantPermits`.

    Attributes:
        client: index of the client.
        waits: seconds from now until each permit.
    """

    client: int
    waits: tuple[float, ...]


# --- messages from a worker -------------------------------------------------------------------------------------------


@frozen
class Next:
    """The worker has room for another shard. Finished shards are sent as `Finished`."""


@frozen
class WantPermits:
    """The worker needs permits of the rate of a client."""

    client: int
    count: int


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
class Warned:
    """For the log of the job."""

    text: str


@frozen
class Broken:
    """The worker cannot continue; this is its last message."""

    error: Exception


@frozen
class PaceLearned:
    """To and from a worker: somebody has learned something about the limit of an instance, or waits for it.

    Attributes:
        client: index of the client.
        state: what was learned.
    """

    client: int
    state: PaceState


def within_limits(start: Start, warn: Callable[..., object]) -> Start:
    """A start that this process can follow: see `within_open_files`."""
    limits = within_open_files([one.settings.limits for one in start.clients], start.rules, warn)
    clients = zip(start.clients, limits, strict=True)
    return evolve(start, clients=tuple(evolve(one, settings=evolve(one.settings, limits=few)) for one, few in clients))


class Worker:
    """Fetches shards. `go()` may be awaited once.

    Args:
        start: how to work.
        secrets: of the clients.
        send: takes a message to the job. Called in the event loop.
        loop: the event loop of `go`.
    """

    def __init__(
        self,
        start: Start,
        secrets: list[Secrets],
        send: Callable[[object], object],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._start = start
        self._secrets = secrets  # until the clients are made
        self._send = send
        self._limiters: dict[int, PermitBuffer] = {}
        self._early: list[object] | None = []  # messages before the beginning
        self._loop = loop
        self._assigned = asyncio.Queue[Task | None]()
        self._ahead = 0  # shards that it has not asked for
        self._storing: dict[int, asyncio.Future[None]] = {}
        self._clients: list[FlinksClient] = []
        self._execution: LocalExecution | FunctionExecution

    def receive(self, message: object) -> None:
        """Takes a message from the job. May be called in any thread."""
        self._loop.call_soon_threadsafe(self._handle, message)

    async def go(self) -> None:
        """Fetches shards until there are no more, or until it is stopped. The last message tells how it ended."""
        try:
            self._execution = self._begin()
            early, self._early = self._early or [], None
            for message in early:
                self._handle(message)
            reporting = asyncio.ensure_future(self._report_often())
            try:
                await self._execution.go()
                last = self._report(over=True)
            finally:
                reporting.cancel()
                for client in self._clients:  # also if it is given up: the process of a cluster goes on
                    await client.close()
            self._send(last)
        except Exception as error:
            self._send(Broken(portable(error)))

    def _begin(self) -> LocalExecution | FunctionExecution:
        start = self._start
        if start.function is not None:
            work = Work.of_function(start.function, start.spools, _log, start.rules.open_shards)
            return FunctionExecution(work, self._next, self._take)
        assert start.layout is not None
        start = within_limits(start, lambda text, *numbers: self._send(Warned(text % numbers)))
        of_clients, others = self._secrets[: len(start.clients)], self._secrets[len(start.clients) :]
        self._secrets, selection = [], start.selection
        if selection is not None:
            selection = selection.with_key(others[0].auth_secret if others else None)
        for number, (description, secrets) in enumerate(zip(start.clients, of_clients, strict=True)):
            if start.permits[number]:
                ask = partial(self._tell, WantPermits, number)
                self._limiters[number] = PermitBuffer(ask, start.permits[number], SystemClock().now)
            client = make(description, secrets, self._limiters.get(number))
            client.governor.on_pace = partial(self._tell, PaceLearned, number)
            self._clients.append(client)
        store = None
        if start.store is not None and start.place is not None:
            store = shared_store(from_description(start.store))
            assert store is not None, "the job's store is shared"
            store.open(start.place, existing=True)
        work = Work(
            InputFile(start.path, start.layout), start.key, {name: self._clients[n] for name, n in start.names.items()},
            start.spools, start.compression, start.rules,
            secret_is_good=False, log=_log, shared=store, selection=selection, kept=start.kept,
        )  # fmt: skip
        return LocalExecution(work, self._next, self._take)

    def _handle(self, message: object) -> None:
        match message:
            case _ if self._early is not None:
                self._early.append(message)
            case Assigned(task, secret_is_good):
                self._execution.secret_is_good = secret_is_good
                self._assigned.put_nowait(task)
            case Stored(shard, then):
                if then is not None:
                    self._ahead += 1
                    self._handle(then)
                self._storing.pop(shard).set_result(None)
            case StopWorker(reason, state):
                self._execution.stop(reason, state)
            case PaceLearned(client, state):
                self._clients[client].governor.join(state)
            case Permits(client, times):
                self._limiters[client].grant(times)

    def _report(self, *, over: bool = False) -> Report:
        counters = evolve(self._execution.counters(), waits=waits.troubles())
        return Report(counters, self._execution.stopped, over=over)

    async def _report_often(self) -> None:
        while True:
            await asyncio.sleep(self._start.report_every)
            self._send(self._report())

    def _tell(self, kind: Callable[[int, Any], object], client: int, value: Any) -> None:
        self._send(kind(client, value))

    async def _next(self) -> Task | None:
        if self._ahead:
            self._ahead -= 1
        else:
            self._send(Next())
        return await self._assigned.get()

    async def _take(self, finished: Finished) -> None:
        stored = self._storing[finished.shard.id] = self._loop.create_future()
        self._send(finished)
        await stored
