"""The executor on a Dask cluster. Needs the extra `dask`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Unpack

from ... import checks
from ...errors import ConfigError
from .cluster import SILENCE, WAIT, ClusterExecution, ClusterExecutor, ClusterOptions, is_loopback
from .protocol import NextTask, TakeFinished, Work

if TYPE_CHECKING:
    import distributed


class DaskExecutor(ClusterExecutor):
    """Fetches on a Dask cluster. Job and workers must see the job's directory and the file of tokens at the same paths.

    Args:
        scheduler: the address of the scheduler, such as `tls://scheduler:8786`, or a cluster object such as a `LocalCluster`.
        security: a `distributed.Security`, for TLS (default: Dask's configuration).
        allow_plaintext: accept an address without TLS that is not on this machine. Whoever reaches it can run code.
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

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> DaskExecution:
        return DaskExecution(work, tasks, finished, self)


class DaskExecution(ClusterExecution):
    """An `Execution` on a Dask cluster."""

    engine = "Dask"

    def __init__(self, work: Work, tasks: NextTask, finished: TakeFinished, executor: DaskExecutor) -> None:
        super().__init__(work, tasks, finished, executor)
        self._security = executor.security
        self._client: Any = None
        self._taken: set[str] = set()
        self._begun = Counter[str]()  # seats so far, by address

    async def _connect(self) -> int:
        address = self._executor.address
        self._client = await self._library.Client(
            address, security=self._security, asynchronous=True, set_as_default=False,
            timeout=min(self._executor.patience, 30.0),
        )  # fmt: skip
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
        """What the scheduler knows. Raises WorkerError if the connection to it is lost."""
        with suppress(OSError, TimeoutError, RuntimeError):
            if self._client.status == "running":
                return await asyncio.wait_for(self._client.scheduler.identity(), SILENCE)
        raise self._lost()

    async def _clean_up(self) -> None:
        if self._client is not None:
            with suppress(OSError, TimeoutError, RuntimeError):
                await asyncio.wait_for(self._client.close(), SILENCE / 2)


class DaskSlot:
    """A Dask worker. It is in `taken` until it is left."""

    def __init__(self, client: Any, address: str, taken: set[str]) -> None:
        self.name = f"the Dask worker {address}"
        self._client = client
        self._address = address
        self._taken = taken

    async def call(self, function: Callable[..., Any], *args: object) -> Any:
        return (await self._client.run(function, *args, workers=[self._address]))[self._address]

    def leave(self) -> None:
        self._taken.discard(self._address)
