"""The executor on a Dask cluster: a seat in each of several Dask workers. Needs the extra `dask`.

Dask starts workers, notices their deaths and carries messages; it gets no tasks, so that there are no results that it could
lose and compute again. The job asks each seat for its messages, and each request waits up to a second for one. A seat that
does not answer for `SILENCE` seconds is given up (a frozen machine, a lost network) and its shards are handed out again; a
seat that is not asked for as long ends by itself. What a seat that was given up still writes is removed with its folder.

The limits of requests in flight, of open shards and of the rate are divided among the seats. Clocks of machines differ, so
messages carry times as seconds from now.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from attrs import evolve, frozen

from ... import checks
from ..._version import __version__
from ...errors import ConfigError, FlinksError
from ...limits.rate import GCRA
from ...runtime import fast_loop
from ...secret import Secret
from ..errors import WorkerError
from ..selection import PSEUDONYM_KEY
from .dispatch import Worker, WorkersExecution, starts_of
from .processes import GRACE
from .protocol import NextTask, TakeFinished, Work
from .seat import Broken, PaceLearned, Report, Seat, Secrets, Start

if TYPE_CHECKING:
    import distributed

SILENCE: Final = 10.0
"""Seconds without an answer after which the other side is given up."""

WAIT: Final = 1.0
"""Seconds that a request for messages waits for one."""

Source = Literal["env", "file", "callable"]


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
            if self.source == "env":
                value: object = os.environ[self.name]
            elif self.source == "file":
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
        what = {"env": "environment variable", "file": "file", "callable": "function"}[self.source]
        raise ConfigError(
            f"the worker on {socket.gethostname()} finds no secret in the {what} {self.name} ({problem}). Provide it on "
            "every machine of the cluster"
        )


class DaskExecutor:
    """Fetches on a Dask cluster. Job and workers must see the job's directory and the file of tokens at the same paths.

    The AuthSecret is never sent: each worker finds it itself, by exactly one of the arguments `secret_...`. For several
    instances, each of them may be a mapping with a name for each instance.

    Args:
        scheduler: the address of the scheduler, such as `tls://scheduler:8786`, or a cluster object such as a `LocalCluster`.
        workers: Dask workers to use; the limits are divided by this number (default: those that are there when the run
            begins). Further ones replace workers that are lost.
        secret_env: the environment variable with the AuthSecret.
        secret_file: the file with the AuthSecret.
        secret_from: the function that returns the AuthSecret, as `package.module:function`.
        security: a `distributed.Security`, for TLS.
        allow_plaintext: accept an address without TLS that is not on this machine. Whoever reaches it can run code.
        restarts: lost workers that are replaced, in all, before the run is given up (default 10).
        patience: seconds to wait for the scheduler, and for a worker (default 300).

    Raises:
        ConfigError: an argument is wrong, or the address has no TLS.
    """

    def __init__(
        self,
        scheduler: str | Any,
        *,
        workers: int | None = None,
        secret_env: str | Mapping[str, str] | None = None,
        secret_file: str | Mapping[str, str] | None = None,
        secret_from: str | Mapping[str, str] | None = None,
        security: distributed.Security | None = None,
        allow_plaintext: bool = False,
        restarts: int = 10,
        patience: float = 300.0,
    ) -> None:
        checks.flag("allow_plaintext", allow_plaintext)
        checks.seconds("patience", patience)
        checks.integer("workers", 1 if workers is None else workers, 1)
        checks.integer("restarts", restarts, 0)
        given: dict[Source, str | Mapping[str, str] | None]
        given = {"env": secret_env, "file": secret_file, "callable": secret_from}
        found: list[tuple[Source, str | Mapping[str, str]]]
        found = [(source, names) for source, names in given.items() if names is not None]
        if len(found) != 1:
            raise ConfigError("name the AuthSecret of the workers by one of secret_env, secret_file and secret_from")
        self._reference = found[0]
        names = found[0][1]
        for name in names.values() if isinstance(names, Mapping) else [names]:
            checks.kind("the name of the AuthSecret", name, str)
        # An asynchronous client cannot use the cluster object itself, which has an event loop of its own.
        self.address = getattr(scheduler, "scheduler_address", scheduler)
        checks.kind("scheduler", self.address, str)
        self.security = security or getattr(scheduler, "security", None)
        self.workers = workers
        self.restarts = restarts
        self.patience = patience
        _refuse_plaintext(self.address, allow_plaintext)

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> DaskExecution:
        return DaskExecution(work, tasks, finished, self)

    def secret_of(self, instance: str | None) -> SecretReference:
        """The reference of the secret of an instance. Raises ConfigError if there is none."""
        source, names = self._reference
        name = names if isinstance(names, str) else names.get(instance or "")
        if not name:
            raise ConfigError(f"there is no reference to the AuthSecret of the instance {instance!r}")
        return SecretReference(source, name)


def _refuse_plaintext(address: str, allow: bool) -> None:
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    if allow or parts.scheme in ("tls", "inproc") or _is_loopback(parts.hostname or ""):
        return
    raise ConfigError(
        f"{address} has no TLS, so whoever reaches it could run code there and read answers. Use a tls:// address with "
        "`security`, or accept it with allow_plaintext=True"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class DaskExecution(WorkersExecution):
    """An `Execution` on a Dask cluster."""

    def __init__(self, work: Work, tasks: NextTask, finished: TakeFinished, executor: DaskExecutor) -> None:
        super().__init__(work, tasks, finished, restarts=executor.restarts, grace=GRACE)
        self._library = checks.optional_import("distributed", extra="dask")
        self._executor = executor
        self._client: Any = None
        self._taken: set[str] = set()
        self._begun = Counter[str]()  # seats so far, by address
        self._places = 1
        clients = list(dict.fromkeys(work.clients.values()))
        names = {client: name for name, client in work.clients.items()}
        self._references = [executor.secret_of(names[client]) for client in clients]
        if work.selection is not None and work.selection.pseudonyms:
            self._references.append(SecretReference("env", PSEUDONYM_KEY))
        starts_of(work, 1)  # refuses clients that cannot be made again in a worker
        for client in clients:
            cannot = [name for name in ("headers",) if getattr(client.options, name)]
            cannot += ["connection.proxy"] if client.settings.connection.proxy else []
            if cannot:
                raise ConfigError(
                    f"these parts of a client may hold secrets, which are never sent to a cluster: {', '.join(cannot)}. "
                    "Leave them out, or use Processes"
                )

    async def _prepare(self) -> list[Start]:
        executor = self._executor
        try:
            self._client = await self._library.Client(
                executor.address, security=executor.security, asynchronous=True, set_as_default=False,
                timeout=min(executor.patience, 30.0),
            )  # fmt: skip
        except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
            problem = type(error).__name__
        else:
            problem = ""
        if problem:
            raise WorkerError(
                f"there is no connection to the Dask scheduler at {executor.address} ({problem}). Is it running?"
            )
        port = (await self._identity())["services"].get("dashboard")
        if port is not None and not _is_loopback(urlsplit(executor.address).hostname or ""):
            self._work.log.warning(
                "the web page of the Dask scheduler listens on port %s without TLS. It shows addresses, but neither tokens "
                "nor answers; let nobody else reach it", port,
            )  # fmt: skip
        self._places = executor.workers or len(await self._free()) or 1
        starts, _ = starts_of(self._work, self._places)
        return starts

    async def _start(self, start: Start) -> Worker | None:
        """Begins a seat in a free worker. Waits until there is one."""
        since, told = time.monotonic(), False
        while not (free := await self._free()):
            if self._all_done:
                return None
            waited = time.monotonic() - since
            if waited > self._executor.patience:
                raise WorkerError(
                    f"the Dask cluster at {self._executor.address} has had no free worker for {waited:.0f} s. Start workers "
                    "and run the job again to resume"
                )
            if waited > 3 * WAIT and not told:
                told = True
                self._work.log.warning("waiting for a worker of the Dask cluster at %s", self._executor.address)
            await asyncio.sleep(WAIT)
        address = min(free, key=self._begun.__getitem__)  # another one than a frozen one that was just given up
        self._begun[address] += 1
        self._taken.add(address)
        worker = DaskWorker(self._client, address, self._taken.discard)
        worker.begin(start, self._references, self._places)
        return worker

    async def _free(self) -> list[str]:
        return [address for address in (await self._identity())["workers"] if address not in self._taken]

    async def _identity(self) -> Any:
        """What the scheduler knows. Raises WorkerError if the connection to it is lost."""
        with suppress(OSError, TimeoutError, RuntimeError):
            if self._client.status == "running":
                return await asyncio.wait_for(self._client.scheduler.identity(), SILENCE)
        raise WorkerError(
            f"the connection to the Dask scheduler at {self._executor.address} is lost. The answers so far are kept: run the "
            "job again to resume"
        )

    async def _clean_up(self) -> None:
        if self._client is not None:
            with suppress(OSError, TimeoutError, RuntimeError):
                await asyncio.wait_for(self._client.close(), SILENCE / 2)


class DaskWorker(Worker):
    """A seat in a Dask worker.

    Args:
        client: of the cluster.
        address: of the worker.
        ended: called with the address at the end.
    """

    def __init__(self, client: Any, address: str, ended: Callable[[str], object]) -> None:
        super().__init__()
        self.name = f"the Dask worker {address}"
        self._client = client
        self._address = address
        self._ended = ended
        self._seat = uuid.uuid4().hex
        self._inbox = asyncio.Queue[object]()
        self._outbox: list[object] = []
        self._death = ""
        self._begun = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()

    def begin(self, start: Start, references: list[SecretReference], places: int) -> None:
        """Begins the seat. If that fails, the next message says so."""
        self._call_beside(self._begin(pickle.dumps((start, references, places))))

    def send(self, message: object) -> None:
        self._outbox.append(message)
        if len(self._outbox) == 1:
            self._call_beside(self._tell())

    async def receive(self) -> object:
        return await self._inbox.get()

    def kill(self) -> None:
        self._inbox.put_nowait(None)

    async def end(self) -> str:
        for call in self._calls:
            call.cancel()
        with suppress(Exception):
            await asyncio.wait_for(self._call(end_seat), WAIT)
        self._ended(self._address)
        return self._death or "an unknown cause"

    async def _begin(self, data: bytes) -> None:
        try:
            await self._call(begin_seat, __version__, data)
            self._begun.set()
            while True:
                for one in await self._call(messages_of_seat):
                    self._inbox.put_nowait(_moved(pickle.loads(one), time.monotonic()))
        except FlinksError as error:
            self._inbox.put_nowait(Broken(error))

    async def _tell(self) -> None:
        await self._begun.wait()
        while self._outbox:  # one call at a time, so that messages stay in order
            data = [pickle.dumps(_moved(one, -time.monotonic())) for one in self._outbox]
            await self._call(tell_seat, data)
            del self._outbox[: len(data)]

    async def _call(self, function: Callable[..., object], *args: object) -> Any:
        calling = self._client.run(function, self._seat, *args, workers=[self._address])
        return (await asyncio.wait_for(calling, SILENCE))[self._address]

    def _call_beside(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._done)

    def _done(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        error = asyncio.CancelledError() if call.cancelled() else call.exception()
        if error is not None and not self._death:  # the first reason: `end` cancels the other calls
            silent = isinstance(error, TimeoutError)
            self._death = f"silence for {SILENCE:g} s" if silent else f"a lost connection ({type(error).__name__})"
            self._inbox.put_nowait(None)


def _moved(message: object, seconds: float) -> object:
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


# --- in the Dask worker -----------------------------------------------------------------------------------------------

_seats: Final[dict[str, HostedSeat]] = {}


async def begin_seat(name: str, version: str, data: bytes) -> None:
    """Begins a seat. Raises ConfigError if this worker cannot do the work."""
    where = socket.gethostname()
    if version != __version__:
        raise ConfigError(
            f"the worker on {where} has flinks-async {__version__}, and the job {version}. Install the same"
        )
    start, references, places = pickle.loads(data)
    if not start.spools.is_dir():
        raise ConfigError(
            f"the worker on {where} does not see {start.spools}. The job's directory must be on a disk that all machines of the "
            "cluster mount at the same path"
        )
    _seats[name] = HostedSeat(name, start, [Secrets(one.resolve()) for one in references], places)


async def messages_of_seat(name: str) -> list[bytes]:
    return await _seats[name].messages()


async def tell_seat(name: str, messages: list[bytes]) -> None:
    for data in messages:
        _seats[name].receive(_moved(pickle.loads(data), time.monotonic()))


async def end_seat(name: str) -> None:
    if (seat := _seats.pop(name, None)) is not None:
        seat.end()


class HostedSeat:
    """A seat in a thread and an event loop of its own. It ends if nobody asks for its messages."""

    def __init__(self, name: str, start: Start, secrets: list[Secrets], places: int) -> None:
        self._name = name
        self._places = places
        self._asked = time.monotonic()
        self._outbox = asyncio.Queue[bytes]()
        self._of_dask = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop() if (new := fast_loop()) is None else new()
        self._seat = Seat(start, secrets, self._send, self._limiter, self._loop)
        threading.Thread(target=self._run, name="flinks-async-seat", daemon=True).start()

    async def messages(self) -> list[bytes]:
        """Called in Dask's event loop, as everything but `_run` and what it calls."""
        self._asked = time.monotonic()
        messages = list[bytes]()
        with suppress(TimeoutError):
            messages.append(await asyncio.wait_for(self._outbox.get(), WAIT))
        while not self._outbox.empty():
            messages.append(self._outbox.get_nowait())
        return messages

    def receive(self, message: object) -> None:
        with suppress(RuntimeError):  # its loop is closed
            self._seat.receive(message)

    def end(self) -> None:
        self._asked = -SILENCE

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner, suppress(asyncio.CancelledError):
            runner.run(self._work())

    async def _work(self) -> None:
        working = asyncio.create_task(self._seat.go())
        while not working.done():
            await asyncio.wait({working}, timeout=WAIT / 10)
            if time.monotonic() - self._asked > SILENCE:
                working.cancel()
                _seats.pop(self._name, None)

    def _send(self, message: object) -> None:
        data = pickle.dumps(_moved(message, -time.monotonic()))
        with suppress(RuntimeError):  # the worker ends
            self._of_dask.call_soon_threadsafe(self._outbox.put_nowait, data)

    def _limiter(self, client: int, rate: float, burst: int | None) -> GCRA:
        return GCRA(rate / self._places, burst and max(1, burst // self._places))
