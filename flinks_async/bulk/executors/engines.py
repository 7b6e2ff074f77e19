"""The executors on a Dask cluster (extra `dask`) and on a Ray cluster (extra `ray`)."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Unpack
from urllib.parse import urlsplit

from ... import checks
from ..._version import __version__
from ...errors import ConfigError
from ...runtime import in_daemon_thread
from ..errors import WorkerError
from .cluster import WAIT, ClusterExecution, ClusterExecutor, ClusterOptions, refuse_other_version
from .dispatch import SILENCE, SILENT
from .processes import SecretReference
from .protocol import NextTask, TakeFinished, Work

if TYPE_CHECKING:
    import distributed

HERE: Final = "auto"
LONGEST_LOOK: Final = 30.0
CANNOT_IMPORT: Final = "it cannot import flinks_async. Install it on every machine"


def is_loopback(address: str) -> bool:
    """Whether an address such as `tcp://127.0.0.1:8786` is on this machine."""
    host = urlsplit(address if "://" in address else f"tcp://{address}").hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


async def obstacle(version: str, reference: SecretReference) -> str:
    """Why this machine cannot fetch with this secret; empty if it can."""
    try:
        refuse_other_version(version)
        reference.resolve()
    except ConfigError as error:
        return error.message
    return ""


class DaskExecutor(ClusterExecutor):
    """Fetches on a Dask cluster. Job and workers must see the job's directory and the file of tokens at the same paths, unless
    tokens and answers are in object storage.

    Args:
        scheduler: the address of the scheduler, such as `tls://scheduler:8786`, or a cluster object such as a `LocalCluster`.
        security: a `distributed.Security`, for TLS (default: Dask's configuration).
        allow_plaintext: accept an address without TLS that is not on this machine. Everybody who reaches the address can then run code.
        options: as in `ClusterOptions`; one of `secret_env`, `secret_file` and `secret_from` is needed.

    Raises:
        ConfigError: an argument is wrong, or the address has no TLS.
    """

    module = "distributed"

    def __init__(
        self,
        scheduler: str | Any,
        *,
        security: distributed.Security | None = None,
        allow_plaintext: bool = False,
        **options: Unpack[ClusterOptions],
    ) -> None:
        checks.flag("allow_plaintext", allow_plaintext)
        # An asynchronous client cannot use the cluster object itself, which has an event loop of its own.
        super().__init__(getattr(scheduler, "scheduler_address", scheduler), **options)
        self.security = security or getattr(scheduler, "security", None)
        if not (allow_plaintext or self.address.startswith(("tls://", "inproc://")) or is_loopback(self.address)):
            raise ConfigError(
                f"{self.address} has no TLS, so whoever reaches it could run code there and read answers. Use a tls:// address "
                "with `security`, or accept it with allow_plaintext=True"
            )

    def client(self, patience: float) -> Any:
        """Internal: a Dask client that is not connected yet. Raises ConfigError if TLS lacks its files."""
        engine = self.import_engine()
        tls = (self.security or engine.Security()).get_connection_args("client").get("ssl_context")
        if self.address.startswith("tls://") and tls is None:
            raise ConfigError(
                f"no certificates are set for {self.address}. Name them in Dask's configuration (distributed.comm.tls), or pass "
                "`security`"
            )
        return engine.Client(
            self.address, security=self.security, asynchronous=True, set_as_default=False, timeout=patience
        )

    async def look(self) -> dict[str, str]:
        client = self.client(SILENCE)
        try:
            async with asyncio.timeout(LONGEST_LOOK):
                await client
                found = await client.run(obstacle, __version__, self.secret_of(None), on_error="return")
        finally:
            await _close(client)
        return {name: one if isinstance(one, str) else CANNOT_IMPORT for name, one in found.items()}

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> DaskExecution:
        return DaskExecution(work, tasks, finished, self)


class DaskExecution(ClusterExecution):
    """An `Execution` on a Dask cluster."""

    engine = "Dask"

    def __init__(self, work: Work, tasks: NextTask, finished: TakeFinished, executor: DaskExecutor) -> None:
        super().__init__(work, tasks, finished, executor)
        self._executor: DaskExecutor = executor
        self._client: Any = None
        self._taken: set[str] = set()
        self._begun = Counter[str]()  # workers so far, by address

    async def _connect(self) -> int:
        address = self._executor.address
        await self._clean_up()  # of an attempt before this one
        self._client = self._executor.client(SILENCE)
        refused = False
        async with asyncio.timeout(SILENCE):  # a scheduler that accepts and never answers would keep Dask waiting
            try:
                await self._client
            except self._engine.comm.core.FatalCommClosedError:
                refused = True
        if refused:
            raise WorkerError(f"{self._cluster} has other TLS certificates. Check `security`, or Dask's configuration")
        port = (await self._identity())["services"].get("dashboard")
        if port is not None and not is_loopback(address):
            self._work.log.warning(
                "the web page of the Dask scheduler listens on port %s without TLS. It shows addresses, but neither tokens "
                "nor answers; let nobody else reach it", port,
            )  # fmt: skip
        return len(await self._free())

    async def _free_slot(self) -> DaskSlot:
        while not (free := await self._free()):  # noqa: ASYNC110
            await asyncio.sleep(WAIT)
        address = min(free, key=self._begun.__getitem__)  # another one than a frozen one that was just given up
        self._begun[address] += 1
        self._taken.add(address)
        return DaskSlot(self._client, address, self._taken)

    async def _free(self) -> list[str]:
        return [address for address in (await self._identity())["workers"] if address not in self._taken]

    async def _identity(self) -> Any:
        """The state of the scheduler. Raises WorkerError if the connection to it is lost."""
        with (
            self._waiting(self._cluster, f"no answer from {self._cluster}", SILENCE),
            suppress(OSError, TimeoutError, RuntimeError),
        ):
            if self._client.status == "running":
                return await asyncio.wait_for(self._client.scheduler.identity(), SILENCE)
        raise self._lost()

    async def _clean_up(self) -> None:
        if self._client is not None:
            await _close(self._client)


async def _close(client: Any) -> None:
    """Closes a Dask client, also one that is not connected."""
    with suppress(OSError, TimeoutError, RuntimeError):
        await asyncio.wait_for(client.close(), SILENCE / 2)


class DaskSlot:
    """A Dask worker. It is in `taken` until it is left.

    Calls go straight to the worker if it can be reached from here, and through the scheduler otherwise, which then passes on
    four messages for each.
    """

    def __init__(self, client: Any, address: str, taken: set[str]) -> None:
        self.name = f"the Dask worker {address}"
        self._client = client
        self._address = address
        self._taken = taken
        self._direct: Any = None

    async def call(self, function: Callable[..., Any], *args: object) -> Any:
        if self._direct is None:
            self._direct = await self._reached()
        if not self._direct:
            return (await self._client.run(function, *args, workers=[self._address]))[self._address]
        answer = await self._direct.run(function=pickle.dumps(function), args=pickle.dumps(args))
        if answer["status"] != "OK":
            raise ConnectionError
        return answer["result"]

    async def _reached(self) -> Any:
        """The worker itself; False if its address leads nowhere from here, or to something else."""
        worker, address = self._client.rpc(self._address), self._address
        with suppress(Exception):
            known = await self._client.scheduler.broadcast(msg={"op": "identity"}, workers=[address])
            if (await asyncio.wait_for(worker.identity(), SILENT))["id"] == known[address]["id"]:
                return worker
        return False

    def leave(self) -> None:
        self._taken.discard(self._address)


class RayExecutor(ClusterExecutor):
    """Fetches on a Ray cluster, in an actor for each worker. Job and workers must see the job's directory and the file of
    tokens at the same paths, unless tokens and answers are in object storage.

    Args:
        address: `ray://head:10001` from anywhere, `head:6379` from a machine of the cluster, or `auto` for the cluster that
            runs on this machine. A program that has called `ray.init` keeps its connection.
        allow_unauthenticated: accept a cluster on other machines without token authentication (`RAY_AUTH_MODE=token`). Whoever
            reaches it can run code.
        options: as in `ClusterOptions`; one of `secret_env`, `secret_file` and `secret_from` is needed. Each worker takes one
            CPU of Ray.

    Raises:
        ConfigError: an argument is wrong, or token authentication is off.
    """

    module = "ray"

    def __init__(
        self, address: str = HERE, *, allow_unauthenticated: bool = False, **options: Unpack[ClusterOptions]
    ) -> None:
        checks.flag("allow_unauthenticated", allow_unauthenticated)
        super().__init__(address, **options)
        authenticated = os.environ.get("RAY_AUTH_MODE", "").strip().lower() == "token"
        if not (allow_unauthenticated or authenticated or self.address == HERE or is_loopback(self.address)):
            raise ConfigError(
                f"{self.address} is used without token authentication, so whoever reaches it could run code there and read "
                "answers. Set RAY_AUTH_MODE=token on all machines, or accept it with allow_unauthenticated=True"
            )

    def connect(self) -> None:
        """Internal: connects this process. Raises WorkerError if the cluster refuses its token or versions, and ConnectionError."""
        try:
            self.import_engine().init(
                self.address, namespace="flinks-async", log_to_driver=False, configure_logging=False
            )
        except (ConnectionError, RuntimeError) as error:
            told = " ".join(f"{error} {error.__cause__}".split())
        else:
            return
        token = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or the file ~/.ray/auth_token)"
        if "AuthenticationError" in told:
            problem = f"refuses this process's token. Set {token} before the program starts"
        elif "cluster was started with" in told:
            problem = f"has another version of Ray or Python. Install the same. Ray says: {told}"
        elif "Initialization failure" in told:
            raise ConnectionError(
                0, "Ray's client server there cannot start a process; its ray_client_server.err says why"
            )
        else:  # Ray's client says the same of a wrong token, of another program at the port, and of a head that is busy
            raise ConnectionError(
                0, f"Ray does not answer there, or refuses this process's token. Compare the port, and {token}"
            )
        raise WorkerError(f"the Ray cluster at {self.address} {problem}")

    async def look(self) -> dict[str, str]:
        ray = self.import_engine()
        await in_daemon_thread(self.connect)
        try:
            nodes = [one for one in await in_daemon_thread(ray.nodes) if one["Alive"] and one["Resources"].get("CPU")]
            found = await asyncio.gather(*(self._look_at(ray, one["NodeID"]) for one in nodes))
        finally:
            await _disconnect(ray)
        return {
            f"a Ray worker on {one['NodeManagerHostname']}": problem for one, problem in zip(nodes, found, strict=True)
        }

    async def _look_at(self, ray: Any, node: str) -> str:
        """Why a worker on a machine of the cluster cannot fetch."""
        there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        slot = RaySlot(ray, ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy=there)(Host).remote())
        try:
            return str(await asyncio.wait_for(slot.call(obstacle, __version__, self.secret_of(None)), LONGEST_LOOK))
        except TimeoutError:
            return f"it has not begun within {LONGEST_LOOK:g} s. Wait until a CPU of Ray is free there"
        except ray.exceptions.RayError:  # it cannot unpickle `Host`
            return CANNOT_IMPORT
        finally:
            slot.leave()

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> RayExecution:
        return RayExecution(work, tasks, finished, self)


class Host:
    """The actor: calls functions of `cluster` in its process."""

    async def call(self, function: Callable[..., Any], *args: object) -> Any:
        return await function(*args)

    async def where(self) -> tuple[str, int]:
        return socket.gethostname(), os.getpid()


class RayExecution(ClusterExecution):
    """An `Execution` on a Ray cluster."""

    engine = "Ray"

    def __init__(self, work: Work, tasks: NextTask, finished: TakeFinished, executor: RayExecutor) -> None:
        super().__init__(work, tasks, finished, executor)
        self._open = executor.connect
        self._is_ours = False

    async def _connect(self) -> int:
        ray = self._engine
        if not ray.is_initialized():
            await in_daemon_thread(self._open)  # Ray tries for up to a minute, in code that cannot be cancelled
            self._is_ours = True
        return int((await in_daemon_thread(ray.available_resources)).get("CPU", 0))

    async def _free_slot(self) -> RaySlot:
        """An actor; Ray lets it wait for a free CPU. Another one if it dies while it starts."""
        ray = self._engine
        while ray.is_initialized():
            actor = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0, max_concurrency=8)(Host).remote()
            slot = RaySlot(ray, actor)
            try:
                host, pid = await slot.result(actor.where.remote())
            except asyncio.CancelledError:
                slot.leave()
                raise
            except Exception as error:  # Ray raises of many kinds
                slot.leave()
                problem = error
            else:
                slot.name = f"the Ray worker {pid} on {host}"
                return slot
            if isinstance(getattr(problem, "cause", None), ImportError) or "No module named" in str(problem):
                raise ConfigError("a worker of the Ray cluster cannot import flinks_async. Install it on every machine")
            self._work.log.warning("a Ray worker died while it started (%s)", type(problem).__name__)
            await asyncio.sleep(WAIT)
        raise self._lost()

    async def _clean_up(self) -> None:
        if self._is_ours:
            await _disconnect(self._engine)


async def _disconnect(ray: Any) -> None:
    """Ends this process's connection. If that blocks, the process can still end."""
    with suppress(Exception):
        await asyncio.wait_for(in_daemon_thread(ray.shutdown), SILENCE)


class RaySlot:
    """An actor."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self.name = "a Ray worker"
        self._ray = ray
        self._actor = actor

    async def call(self, function: Callable[..., Any], *args: object) -> Any:
        return await self.result(self._actor.call.remote(function, *args))

    async def result(self, reference: Any) -> Any:
        """The result of a call. Cancelling leaves Ray's own future alone, because Ray would fail to set it later."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def come(theirs: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle, theirs)

        def settle(theirs: Any) -> None:
            if not done.done():
                done.set_result(theirs)

        reference.future().add_done_callback(come)
        return (await done).result()

    def leave(self) -> None:
        with suppress(Exception):  # the cluster is lost
            self._ray.kill(self._actor)
