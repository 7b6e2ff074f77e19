"""A worker process: fetches the shards that a job hands out. It knows neither ledger nor store.

It ends with the job: when the pipe closes, it exits at once and writes nothing more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import sys
import traceback
from functools import partial
from typing import BinaryIO, Final

import msgspec

from ...clock import SystemClock
from ...errors import FlinksError
from ...limits.notices import is_no_notice
from ...limits.rate import PaceState
from ...runtime.loop_state import fast_loop
from ..errors import WorkerError
from ..fetching import Fetcher
from ..inputs import InputFile
from ..records import Finished
from ..thread import Thread
from .in_process import ShardLoader
from .processes import SharedRate
from .protocol import Task
from .worker_messages import (
    Assigned,
    Broken,
    Channel,
    Next,
    PaceLearned,
    Report,
    Secrets,
    Start,
    StopWorker,
    Stored,
    from_line,
    make,
)

REPORT_EVERY: Final = 0.2
"""Seconds between two reports."""


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
    channel = Channel(source, sink, on_end=lambda: os._exit(1))
    try:
        await WorkerRun(start, secrets, channel).go()
    except Exception as error:
        channel.send(Broken(_portable(error)))
    channel.close()


def _portable(error: Exception) -> Exception:
    """An error that can be pickled. The text of a foreign error is left out, because it may hold a token."""
    if isinstance(error, FlinksError):
        return error
    last = traceback.extract_tb(error.__traceback__)[-1]
    return WorkerError(f"a worker process failed: {type(error).__name__} at {last.filename}:{last.lineno}")


class WorkerRun:
    """The run of a worker. `go()` may be awaited once.

    Raises:
        ConfigError, InputError: the run cannot begin.
    """

    def __init__(self, start: Start, secrets: list[Secrets], channel: Channel) -> None:
        self._channel = channel
        self._clients = [
            make(description, secret, _shared_rate(start, number))
            for number, (description, secret) in enumerate(zip(start.clients, secrets, strict=True))
        ]
        self._assigned: asyncio.Future[Task | None] | None = None
        self._storing: dict[int, asyncio.Future[None]] = {}
        self._writing = Thread("flinks-async-spool")
        source = InputFile(start.path, start.layout)
        self._loader = ShardLoader(self._next, source, start.key, Thread("flinks-async-input"))
        by_name = {name: self._clients[number] for name, number in start.names.items()}
        self._fetcher = Fetcher(
            self._loader.load, self._take, by_name, start.key, start.spools, start.compression, start.rules,
            secret_is_good=False, clock=SystemClock(), writing=self._writing,
        )  # fmt: skip

    async def go(self) -> None:
        """Fetches shards until there are no more, or until it is stopped.

        Raises:
            Exception: what `Fetcher.go` raises.
        """
        for number, client in enumerate(self._clients):
            client.governor.on_pace = partial(self._paced, number)
        beside = [asyncio.ensure_future(self._listen()), asyncio.ensure_future(self._report())]
        for task in beside:
            task.add_done_callback(self._failed)
        try:
            await self._fetcher.go()
            counters = self._fetcher.counters()
            for client in self._clients:
                await client.close()
            self._channel.send(Report(counters, self._fetcher.stopped, over=True))
        finally:
            for task in beside:
                task.cancel()
            self._loader.close()
            self._writing.close()

    async def _listen(self) -> None:
        while (message := await self._channel.receive()) is not None:
            match message:
                case Assigned(task, secret_is_good):
                    self._fetcher.secret_is_good = secret_is_good
                    if self._assigned is not None and not self._assigned.done():
                        self._assigned.set_result(task)
                case Stored(shard):
                    self._storing.pop(shard).set_result(None)
                case StopWorker(reason, state):
                    self._fetcher.stop(reason, state)
                case PaceLearned(client, state):
                    self._clients[client].governor.join(state)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY)
            self._channel.send(Report(self._fetcher.counters(), self._fetcher.stopped))

    def _failed(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fetcher.break_off(error)

    def _paced(self, client: int, state: PaceState) -> None:
        self._channel.send(PaceLearned(client, state))

    async def _next(self) -> Task | None:
        self._assigned = asyncio.get_running_loop().create_future()
        self._channel.send(Next())
        return await self._assigned

    async def _take(self, finished: Finished) -> None:
        stored = self._storing[finished.shard.id] = asyncio.get_running_loop().create_future()
        self._channel.send(finished)
        await stored


def _shared_rate(start: Start, number: int) -> SharedRate | None:
    limits = start.clients[number].settings.limits
    return None if limits.rate is None else SharedRate(start.rates[number], limits.rate, limits.burst)
