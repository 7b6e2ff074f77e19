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
import os
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
from typing import Any, ClassVar, Final, Protocol, TypedDict, TypeVar, Unpack
from urllib.parse import urlsplit

from attrs import evolve

from ... import checks
from ..._version import __version__
from ...errors import ConfigError, FlinksError
from ...runtime import fast_loop, in_daemon_thread
from ..counters import WAITED_FOR, Wait, WorkerState
from ..errors import WorkerError, portable
from ..selection import PSEUDONYM_KEY
from .dispatch import SILENCE, WorkerHandle, WorkersExecution, starts_of
from .processes import GRACE, REFERENCES, Outbox, SecretReference, Source, moved
from .protocol import NextTask, TakeFinished, Work
from .worker import Broken, Secrets, Start, Worker

T = TypeVar("T")

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
        restarts: as for `Processes` (default 10).
        patience: seconds to wait for a connection to the cluster, and for a worker while there is none (default 300).
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
    _refusal = " (no answer)"

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
        """Connects to the cluster. Returns how many workers are free. An OSError means that it may be there later; other
        exceptions end the run.
        """

    @abstractmethod
    async def _free_slot(self) -> Slot:
        """Waits for a free worker. Raises WorkerError if the cluster is lost."""

    async def _prepare(self) -> list[Start]:
        problem = f"no connection to {self._cluster}"
        with self._waiting(self._cluster, f"connecting to {self._cluster}", self._executor.patience) as wait:
            try:
                free = await self._patiently(self._reach(wait), wait, problem, "Start it, or correct the address")
            except FlinksError:
                raise
            except Exception as error:  # engines raise of all kinds
                problem += f" ({type(error).__name__})"
            else:
                return [] if free is None else starts_of(self._work, self._executor.workers or free or 1)[0]
        raise WorkerError(f"{problem}. Correct the address or the cluster, and run the job again to resume")

    async def _reach(self, wait: Wait) -> int:
        """Connects as soon as the cluster can be reached. Returns how many workers are free."""
        address = self._executor.address
        parts = urlsplit(address if "://" in address else f"//{address}")
        where = parts.hostname, parts.port
        while True:
            try:
                if parts.port:  # the engines tell after many seconds only that nobody listens
                    await in_daemon_thread(lambda: socket.create_connection(where, SILENCE).close())
                free = await self._connect()
            except OSError as error:
                self._refusal = f" ({_reason_of(error)})"
                wait.reason = f"no connection to {self._cluster}{self._refusal}"
                await asyncio.sleep(WAIT)
            else:
                self._refusal = ""
                return free

    async def _patiently(self, asking: Coroutine[Any, Any, T], wait: Wait, problem: str, advice: str) -> T | None:
        """The answer of the cluster; None if the run needs it no more. Raises WorkerError if there is none for `patience`, while
        no other worker fetches.
        """
        answer, alone = asyncio.ensure_future(asking), time.monotonic()
        try:
            while not (await asyncio.wait({answer}, timeout=WAIT))[0]:
                if self._all_done:
                    return None
                now, patience = time.monotonic(), self._executor.patience
                if self._workers:
                    alone = now
                wait.until = None if self._workers else alone + patience
                if now > alone + patience:
                    raise WorkerError(
                        f"{problem} for {patience:g} s{self._refusal}. {advice}, and run the job again to resume"
                    )
            return answer.result()
        finally:
            answer.cancel()

    async def _start(self, start: Start) -> WorkerHandle | None:
        """Begins a worker in a free process of the cluster. Waits until there is one."""
        missing = WorkerState(f"a worker of {self._cluster}", note=WAITED_FOR)
        problem = f"{self._cluster} has had no free worker"
        self._missing.append(missing)
        try:
            with self._waiting(missing.name, f"waiting for {missing.name}", self._executor.patience) as wait:
                slot = await self._patiently(self._free_slot(), wait, problem, "Start workers")
        finally:
            self._missing.remove(missing)
        return None if slot is None else ClusterWorker(slot, start, self._references)

    @property
    def _cluster(self) -> str:
        return f"the {self.engine} cluster at {self._executor.address}"

    def _lost(self) -> WorkerError:
        return WorkerError(
            f"the connection to {self._cluster} is lost. The answers so far are kept: run the job again to resume"
        )


def _reason_of(error: OSError) -> str:
    """Why there is no connection, in words without an address."""
    if isinstance(error, TimeoutError):
        return f"no answer for {SILENCE:g} s"
    number = error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or type(error).__name__


class ClusterWorker(WorkerHandle):
    """Begins a worker on a cluster. If that fails, its next message says so."""

    def __init__(self, slot: Slot, start: Start, references: list[SecretReference]) -> None:
        super().__init__()
        self.name = slot.name
        self.heard = time.monotonic()
        self._slot = slot
        self._worker = uuid.uuid4().hex
        self._outbox = Outbox()
        self._loss = "an unknown cause"
        self._talking = asyncio.create_task(self._talk(pickle.dumps((start, references))))

    def send(self, message: object) -> None:
        self._outbox.put(message, pickle.dumps(moved(message, -time.monotonic())))

    def kill(self) -> None:
        self._inbox.put_nowait(None)

    async def end(self) -> str:
        self._talking.cancel()
        with suppress(Exception):
            await asyncio.wait_for(self._call(end_worker), WAIT)
        self._slot.leave()
        return self._loss

    async def _talk(self, data: bytes) -> None:
        """Begins the worker and exchanges messages with it until it is lost."""
        try:
            async with asyncio.TaskGroup() as calls:
                if refusal := await self._call(begin_worker, __version__, data):
                    refused = pickle.loads(refusal)
                    if isinstance(refused, ConfigError):
                        self._inbox.put_nowait(Broken(refused))
                    raise WorkerError(f"a failed start ({refused})")
                calls.create_task(self._tell())
                while (messages := await self._call(messages_of_worker)) is not None:
                    self.heard = time.monotonic()
                    for one in messages:
                        self._inbox.put_nowait(moved(pickle.loads(one), time.monotonic()))
                raise WorkerError("a restart of its process")
        except ExceptionGroup as errors:
            error = errors.exceptions[0]
        if isinstance(error, WorkerError):
            self._loss = error.message
        elif isinstance(error, TimeoutError):
            self._loss = f"silence for {SILENCE:g} s"
        else:
            self._loss = f"a lost connection ({type(error).__name__})"
        self._inbox.put_nowait(None)

    async def _tell(self) -> None:
        while True:  # one call at a time, so that messages stay in order
            await self._call(tell_worker, await self._outbox.take())

    async def _call(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: object) -> Any:
        return await asyncio.wait_for(self._slot.call(function, self._worker, *args), SILENCE)


# --- in a process of the engine --------------------------------------------------------------------------------------

_threads: Final[dict[str, WorkerThread]] = {}


def refuse_other_version(version: str) -> None:
    if version != __version__:
        raise ConfigError(
            f"the worker on {socket.gethostname()} has flinks-async {__version__}, and the job {version}. Install the same"
        )


async def begin_worker(name: str, version: str, data: bytes) -> bytes:
    """Begins a worker. If this fails, returns the pickled error: engines change exceptions, and Dask logs the arguments of a
    call that raises. A ConfigError is about every machine, others may be about this one.
    """
    where = socket.gethostname()
    try:
        refuse_other_version(version)
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
        self._outbox = Outbox()
        self._of_engine = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop() if (new := fast_loop()) is None else new()
        self._worker = Worker(start, secrets, self._send, self._loop)
        threading.Thread(target=self._run, name="flinks-async-worker", daemon=True).start()

    async def messages(self) -> list[bytes]:
        """Called in the engine's event loop, as everything but `_run` and what it calls."""
        self._asked = time.monotonic()
        return await self._outbox.take(WAIT)

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
            self._of_engine.call_soon_threadsafe(self._outbox.put, message, data)
