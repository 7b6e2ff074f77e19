"""The executor on a Ray cluster. Needs the extra `ray`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Unpack
from urllib.parse import urlsplit

from ... import checks
from ...errors import ConfigError
from ..errors import WorkerError
from .cluster import SILENCE, ClusterExecution, ClusterExecutor, ClusterOptions, is_loopback
from .protocol import NextTask, TakeFinished, Work

HERE: Final = "auto"


class RayExecutor(ClusterExecutor):
    """Fetches on a Ray cluster, in an actor for each worker. Job and workers must see the job's directory and the file of
    tokens at the same paths.

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

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> RayExecution:
        return RayExecution(work, tasks, finished, self)


class Host:
    """The actor: calls functions of `cluster` in its process."""

    async def call(self, function: Callable[..., Any], *args: object) -> Any:
        return await function(*args)

    async def where(self) -> tuple[str, int]:
        return os.uname().nodename, os.getpid()


class RayExecution(ClusterExecution):
    """An `Execution` on a Ray cluster."""

    engine = "Ray"

    def __init__(self, work: Work, tasks: NextTask, finished: TakeFinished, executor: RayExecutor) -> None:
        super().__init__(work, tasks, finished, executor)
        self._is_ours = False

    async def _connect(self) -> int:
        ray, address = self._library, self._executor.address
        if not ray.is_initialized():
            if address != HERE:  # Ray itself tries for minutes, in code that cannot be cancelled
                parts = urlsplit(address if "://" in address else f"//{address}")
                _, writer = await asyncio.wait_for(
                    asyncio.open_connection(parts.hostname, parts.port), min(self._executor.patience, SILENCE)
                )
                writer.close()
            await asyncio.to_thread(self._open, address)
            self._is_ours = True
        return int((await asyncio.to_thread(ray.available_resources)).get("CPU", 0))

    def _open(self, address: str) -> None:
        try:
            self._library.init(address, namespace="flinks-async", log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            if "AuthenticationError" not in f"{error} {error.__cause__}":
                raise
        else:
            return
        raise WorkerError(
            f"{self._cluster} refuses this process's token. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or the file "
            "~/.ray/auth_token) before the program starts"
        )

    async def _free_slot(self) -> RaySlot:
        """An actor; Ray lets it wait for a free CPU."""
        ray = self._library
        if not ray.is_initialized():
            raise self._lost()
        actor = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0, max_concurrency=8)(Host).remote()
        slot = RaySlot(ray, actor)
        try:
            host, pid = await slot.result(actor.where.remote())
        except BaseException as error:
            slot.leave()
            if isinstance(error, asyncio.CancelledError):
                raise
            problem = error
        else:
            slot.name = f"the Ray worker {pid} on {host}"
            return slot
        if isinstance(getattr(problem, "cause", None) or problem, ImportError) or "No module named" in str(problem):
            raise ConfigError("a worker of the Ray cluster cannot import flinks_async. Install it on every machine")
        raise self._lost()

    async def _clean_up(self) -> None:
        if self._is_ours:
            with suppress(Exception):
                await asyncio.wait_for(asyncio.to_thread(self._library.shutdown), SILENCE)


class RaySlot:
    """An actor."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self.name = "a Ray worker"
        self._ray = ray
        self._actor = actor

    async def call(self, function: Callable[..., Any], *args: object) -> Any:
        return await self.result(self._actor.call.remote(function, *args))

    async def result(self, reference: Any) -> Any:
        """What a call returns. Cancelling does not reach Ray's own future, because Ray would fail to set it later."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def come(theirs: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle, theirs)

        def settle(theirs: Any) -> None:
            if done.done():
                return
            if (error := theirs.exception()) is not None:
                done.set_exception(error)
            else:
                done.set_result(theirs.result())

        reference.future().add_done_callback(come)
        return await done

    def leave(self) -> None:
        with suppress(Exception):  # the cluster is lost
            self._ray.kill(self._actor)
