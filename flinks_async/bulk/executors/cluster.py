"""The base of executors on clusters: a worker in each of several processes of an engine, such as Dask or Ray.

The engine starts processes, notices their deaths and carries calls. It gets no tasks, so that there are no results that it
could lose and compute again. The job asks each worker for its messages, and each request waits up to a second for one. A worker that
does not answer for `SILENCE` seconds is given up (a frozen machine, a lost network) and its shards are handed out again. Its
files are removed with its folder, also those that it writes later. A worker that no job asks for as long ends by itself.

Clocks of machines differ, so messages carry times as seconds from now.
"""

from __future__ import annotations

import asyncio
import math
import pickle
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypedDict, Unpack

from attrs import evolve

from ... import checks
from ..._version import __version__
from ...errors import ConfigError, FlinksError
from ...runtime import fast_loop
from ..counters import WAITED_FOR, WorkerState
from ..errors import WorkerError, portable
from ..selection import PSEUDONYM_KEY
from .dispatch import SILENCE, WorkerHandle, WorkersExecution, starts_of
from .processes import GRACE
from .protocol import NextTask, TakeFinished, Work
from .worker import (
    REFERENCES,
    Broken,
    PaceLearned,
    Report,
    SecretReference,
    Secrets,
    Source,
    Start,
    Worker,
)

WAIT: Final = 1.0
"""Seconds that a request for messages waits for one."""


class ClusterOptions(TypedDict, total=False):
    """Arguments of every executor on a cluster.

    The AuthSecret is never sent: each worker finds it itself, by exactly one of the arguments `secret_...`. For several
    instances, each of them may be a mapping with a name for each instance.

    Attributes:
        workers: workers to use; the limits are divided by this number (default: those that are free when the run begins).
            Further ones replace workers that are lost.
        secret_env: the environment variable with the AuthSecret.
        secret_file: the file with the AuthSecret.
        secret_from: the function that returns the AuthSecret, as `package.module:function`.
        restarts: lost workers that are replaced, in all, before the run is given up (default 10).
        patience: seconds to wait for the cluster, and for a worker (default 300).
    """

    workers: int | None
    secret_env: str | Mapping[str, str] | None
    secret_file: str | Mapping[str, str] | None
    secret_from: str | Mapping[str, str] | None
    restarts: int
    patience: float


class ClusterExecutor:
    """An executor on a cluster: what its run needs.

    Args:
        address: of the cluster.
        options: as in `ClusterOptions`.

    Raises:
        ConfigError: an argument is wrong.
    """

    def __init__(self, address: object, **options: Unpack[ClusterOptions]) -> None:
        if unknown := options.keys() - ClusterOptions.__annotations__.keys():
            raise ConfigError(f"{type(self).__name__} has no argument {', '.join(sorted(unknown))}")
        checks.kind("the address of the cluster", address, str)
        self.address = str(address)
        self.workers = options.get("workers")
        self.restarts = options.get("restarts", 10)
        self.patience = options.get("patience", 300.0)
        checks.integer("workers", 1 if self.workers is None else self.workers, 1)
        checks.integer("restarts", self.restarts, 0)
        checks.seconds("patience", self.patience)
        sources: list[Source] = [source for source in REFERENCES if options.get(source) is not None]
        if len(sources) != 1:
            raise ConfigError("name the AuthSecret of the workers by one of secret_env, secret_file and secret_from")
        self._source: Source = sources[0]
        self._names: str | Mapping[str, str] = options.get(self._source) or ""
        for name in self._names.values() if isinstance(self._names, Mapping) else [self._names]:
            checks.kind("the name of the AuthSecret", name, str)
            if not re.fullmatch(REFERENCES[self._source][1], name):
                raise _not_the_secret(self._source)

    module: ClassVar[str]

    def import_engine(self) -> Any:
        """The package of the engine. Raises ConfigError if it is not installed."""
        return checks.optional_import(self.module, extra="ray" if self.module == "ray" else "dask")

    async def look(self) -> dict[str, str]:
        """Internal; for `flinks-async doctor`: connects, and returns why each worker cannot fetch, empty if it can."""
        raise NotImplementedError

    def secret_of(self, instance: str | None) -> SecretReference:
        """The reference of the secret of an instance. Raises ConfigError if there is none."""
        name = self._names if isinstance(self._names, str) else self._names.get(instance or "")
        if not name:
            raise ConfigError(f"there is no reference to the AuthSecret of the instance {instance!r}")
        return SecretReference(self._source, name)


def _not_the_secret(source: Source) -> ConfigError:
    """The error for a reference that has not the form of one, or is the AuthSecret. It does not show it."""
    return ConfigError(
        f"{source} names the {REFERENCES[source][0]} that has the AuthSecret, and is not the AuthSecret itself"
    )


class Slot(Protocol):
    """A process of an engine that can run a worker.

    Attributes:
        name: in words, for the log.
    """

    name: str

    async def call(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: object) -> Any:
        """Calls a function of this module there. Any exception means that the process is lost."""
        ...

    def leave(self) -> None:
        """Gives the process back."""
        ...


class ClusterExecution(WorkersExecution):
    """An `Execution` on a cluster. Subclasses know its engine."""

    engine: ClassVar[str]

    def __init__(self, work: Work, tasks: NextTask, finished: TakeFinished, executor: ClusterExecutor) -> None:
        super().__init__(work, tasks, finished, restarts=executor.restarts, grace=GRACE)
        self._executor = executor
        self._engine = executor.import_engine()
        clients = list(dict.fromkeys(work.clients.values()))
        names = {client: name for name, client in work.clients.items()}
        self._references = [executor.secret_of(names[client]) for client in clients]
        _, secrets = starts_of(work, 1)  # refuses clients that cannot be made again in a worker
        known = {one.auth_secret.reveal() for one in secrets}
        for reference in self._references:
            if reference.name.strip() in known:
                raise _not_the_secret(reference.source)
        if len(set(self._references)) < len({one.auth_secret for one in secrets[: len(clients)]}):
            raise ConfigError("the AuthSecrets differ: name one for each instance, as in secret_env={'acme': 'A'}")
        if work.selection is not None and work.selection.pseudonyms:
            self._references.append(SecretReference("secret_env", PSEUDONYM_KEY))
        for client in clients:
            cannot = ["headers"] if client.options.headers else []
            cannot += ["connection.proxy"] if client.settings.connection.proxy else []
            if cannot:
                raise ConfigError(
                    f"these parts of a client may hold secrets, which are never sent to a cluster: {', '.join(cannot)}. "
                    "Leave them out, or use Processes"
                )

    @abstractmethod
    async def _connect(self) -> int:
        """Connects to the cluster. Returns how many workers are free. May raise what shows that there is no connection."""

    @abstractmethod
    async def _free_slot(self) -> Slot:
        """Waits for a free worker. Raises WorkerError if the cluster is lost."""

    async def _prepare(self) -> list[Start]:
        free, problem = 0, ""
        try:
            free = await self._connect()
        except FlinksError:
            raise
        except Exception as error:  # engines raise of all kinds
            problem = type(error).__name__
        if problem:
            raise WorkerError(f"there is no connection to {self._cluster} ({problem}). Is it running?")
        starts, _ = starts_of(self._work, self._executor.workers or free or 1)
        return starts

    async def _start(self, start: Start) -> WorkerHandle | None:
        """Begins a worker in a free process of the cluster. Waits until there is one."""
        since, patience = time.monotonic(), self._executor.patience
        missing = WorkerState(f"a worker of {self._cluster}", note=WAITED_FOR)
        finding = asyncio.ensure_future(self._free_slot())
        self._missing.append(missing)
        try:
            with self._waiting(missing.name, f"waiting for {missing.name}", patience):
                while not (await asyncio.wait({finding}, timeout=WAIT))[0]:
                    if self._all_done:
                        return None
                    waited = time.monotonic() - since
                    if waited > patience:
                        raise WorkerError(
                            f"{self._cluster} has had no free worker for {waited:.0f} s. Start workers and run the job again "
                            "to resume"
                        )
        finally:
            self._missing.remove(missing)
            finding.cancel()
        worker = ClusterWorker(await finding)
        worker.begin(start, self._references)
        return worker

    @property
    def _cluster(self) -> str:
        return f"the {self.engine} cluster at {self._executor.address}"

    def _lost(self) -> WorkerError:
        return WorkerError(
            f"the connection to {self._cluster} is lost. The answers so far are kept: run the job again to resume"
        )


class ClusterWorker(WorkerHandle):
    """The handle of a worker on a cluster."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.name = slot.name
        self.heard = time.monotonic()
        self._slot = slot
        self._worker = uuid.uuid4().hex
        self._inbox = asyncio.Queue[object]()
        self._outbox: list[object] = []
        self._death = ""
        self._begun = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()

    def begin(self, start: Start, references: list[SecretReference]) -> None:
        """Begins the worker. If that fails, the next message says so."""
        self._call_beside(self._begin(pickle.dumps((start, references))))

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
            await asyncio.wait_for(self._call(end_worker), WAIT)
        self._slot.leave()
        return self._death or "an unknown cause"

    async def _begin(self, data: bytes) -> None:
        if refusal := await self._call(begin_worker, __version__, data):
            error = pickle.loads(refusal)
            if isinstance(error, ConfigError):
                self._inbox.put_nowait(Broken(error))
            else:
                self._lost(f"a failed start ({error})")
            return
        self._begun.set()
        while (messages := await self._call(messages_of_worker)) is not None:
            self.heard = time.monotonic()
            for one in messages:
                self._inbox.put_nowait(moved(pickle.loads(one), time.monotonic()))
        self._lost("a restart of its process")

    async def _tell(self) -> None:
        await self._begun.wait()
        while self._outbox:  # one call at a time, so that messages stay in order
            data = [pickle.dumps(moved(one, -time.monotonic())) for one in self._outbox]
            await self._call(tell_worker, data)
            del self._outbox[: len(data)]

    async def _call(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: object) -> Any:
        return await asyncio.wait_for(self._slot.call(function, self._worker, *args), SILENCE)

    def _call_beside(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._done)

    def _done(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        error = asyncio.CancelledError() if call.cancelled() else call.exception()
        if error is not None:
            silent = isinstance(error, TimeoutError)
            self._lost(f"silence for {SILENCE:g} s" if silent else f"a lost connection ({type(error).__name__})")

    def _lost(self, death: str) -> None:
        if not self._death:  # the first reason: `end` cancels the other calls
            self._death = death
            self._inbox.put_nowait(None)


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


# --- in a process of the engine --------------------------------------------------------------------------------------

_threads: Final[dict[str, WorkerThread]] = {}


def _refuse_other(version: str) -> None:
    if version != __version__:
        raise ConfigError(
            f"the worker on {socket.gethostname()} has flinks-async {__version__}, and the job {version}. Install the same"
        )


async def obstacle(version: str, reference: SecretReference) -> str:
    """Why this machine cannot fetch with this secret; empty if it can."""
    try:
        _refuse_other(version)
        reference.resolve()
    except ConfigError as error:
        return error.message
    return ""


async def begin_worker(name: str, version: str, data: bytes) -> bytes:
    """Begins a worker. If this fails, returns the pickled error: engines change exceptions, and Dask logs the arguments of a
    call that raises. A ConfigError is about every machine, others may be about this one.
    """
    where = socket.gethostname()
    try:
        _refuse_other(version)
        start, references = pickle.loads(data)
        secrets = [  # first, because nobody would remove the folder; in a thread, because a function may ask a vault
            Secrets(await asyncio.to_thread(one.resolve)) for one in references
        ]
        if start.on_own_disk:
            start = evolve(start, spools=Path(tempfile.mkdtemp(prefix="flinks-async-")))
        elif not start.spools.is_dir():
            raise ConfigError(
                f"the worker on {where} does not see {start.spools}. The job's directory must be on a disk that all machines "
                "of the cluster mount at the same path"
            )
        _threads[name] = WorkerThread(name, start, secrets)
    except Exception as error:
        return pickle.dumps(portable(error))
    return b""


async def messages_of_worker(name: str) -> list[bytes] | None:
    """The next messages; None if this process has no such worker, because it has replaced one that died."""
    thread = _threads.get(name)
    return None if thread is None else await thread.messages()


async def tell_worker(name: str, messages: list[bytes]) -> None:
    if (thread := _threads.get(name)) is not None:
        for data in messages:
            thread.receive(moved(pickle.loads(data), time.monotonic()))


async def end_worker(name: str) -> None:
    if (worker := _threads.pop(name, None)) is not None:
        worker.end()


class WorkerThread:
    """A worker in a thread and an event loop of its own. It ends, and forgets its secrets, if nobody asks for its messages."""

    def __init__(self, name: str, start: Start, secrets: list[Secrets]) -> None:
        self._name = name
        self._spools, self._temporary = start.spools, start.on_own_disk
        self._asked = time.monotonic()
        self._outbox = asyncio.Queue[bytes]()
        self._of_engine = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop() if (new := fast_loop()) is None else new()
        self._worker = Worker(start, secrets, self._send, self._loop)
        threading.Thread(target=self._run, name="flinks-async-worker", daemon=True).start()

    async def messages(self) -> list[bytes]:
        """Called in the engine's event loop, as everything but `_run` and what it calls."""
        self._asked = time.monotonic()
        messages = list[bytes]()
        with suppress(TimeoutError):
            messages.append(await asyncio.wait_for(self._outbox.get(), WAIT))
        while not self._outbox.empty():
            messages.append(self._outbox.get_nowait())
        return messages

    def receive(self, message: object) -> None:
        with suppress(RuntimeError):  # its loop is closed
            self._worker.receive(message)

    def end(self) -> None:
        self._asked = -math.inf

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner, suppress(asyncio.CancelledError):
                runner.run(self._work())
        finally:
            if self._temporary:
                shutil.rmtree(self._spools, ignore_errors=True)

    async def _work(self) -> None:
        working = asyncio.create_task(self._worker.go())
        # Also after its end, until the job has its last messages.
        while time.monotonic() - self._asked <= SILENCE:  # noqa: ASYNC110
            await asyncio.sleep(WAIT / 10)
        working.cancel()
        await asyncio.wait({working})
        _threads.pop(self._name, None)

    def _send(self, message: object) -> None:
        data = pickle.dumps(moved(message, -time.monotonic()))
        with suppress(RuntimeError):  # the worker ends
            self._of_engine.call_soon_threadsafe(self._outbox.put_nowait, data)
