"""Reads the answers of all shards of a job, in this process or on an executor. For `verify` and `export`."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from attrs import define, evolve, field

from ..errors import ConfigError
from ..runtime import fast_loop, repeated
from .counters import Counters, Progress, joined_waits, waits
from .errors import StoreError, StoreMissingError
from .executors import Executor, Work
from .executors.protocol import Task
from .files import replaced, writing
from .ledger import Totals
from .objects import Objects, place_at
from .records import Commit, Finished, Shard, Written
from .run import Rate
from .spool import pieces_of
from .stores import Place, Problem, from_description
from .stores.shard_files import ShardFiles

_log = logging.getLogger("flinks_async.bulk")

OnProgress = Callable[[Progress], object]

AT_ONCE: Final = 16
"""Shards that are read at once by all workers together. Each worker reads at least one."""

_TELL_EVERY: Final = 0.2
"""Seconds between two calls of `OnProgress`."""


class ReadingProgress:
    """Counts the answers that were read.

    Args:
        totals: of the job.
        tell: called with the progress.
    """

    def __init__(self, totals: Totals, tell: OnProgress | None) -> None:
        self._answers = totals.fetched
        self._tell = tell
        self._read, self._size = 0, 0
        self._started = self._told = time.monotonic()
        self._rate = Rate()

    def counted(self, commits: Iterable[Commit]) -> Iterator[Commit]:
        """The same shards. Each counts as read when the next one is asked for."""
        for commit in commits:
            yield commit
            self.add(commit.written)
            if time.monotonic() - self._told >= _TELL_EVERY:
                self.tell(Counters())

    def add(self, written: Written) -> None:
        self._read += written.lines
        self._size += written.size

    def tell(self, counters: Counters) -> None:
        """Calls `tell`.

        Args:
            counters: of the executor.
        """
        if self._tell is None:
            return
        now = self._told = time.monotonic()
        rate = self._rate.at(now, self._read)
        self._tell(
            Progress(
                "fetching", self._answers, self._read, failed=0, requests=0, retries=0, throttled=0, in_flight=0, limit=0,
                held_back=0.0, p50=None, p95=None, rate=rate, eta=(self._answers - self._read) / rate if rate else None,
                seconds=now - self._started, size=self._size, troubles=joined_waits((*counters.waits, *waits.troubles())),
                workers=counters.workers,
            )
        )  # fmt: skip


@define(eq=False)
class ReadShard:
    """Reads a shard in any process, compares it with what was committed, and may copy its files.

    Only the attributes are sent to the process, which opens the store itself.

    Attributes:
        description: of the store.
        place: of the job.
        target: the URL to which the files are copied; None to compare only.
    """

    description: dict[str, Any]
    place: Place
    target: str | None = None
    _opened: tuple[ShardFiles, Objects, Objects | None] | None = field(default=None, init=False)

    def __reduce__(self) -> tuple[type[ReadShard], tuple[dict[str, Any], Place, str | None]]:
        return ReadShard, (self.description, self.place, self.target)

    def __call__(self, task: Task, scratch: Path) -> Finished:
        """The function of `Work`: a task is about a commit, and the receipt has the problems of the shard."""
        commit: Commit = task.about
        problems = self.problems(commit, scratch)
        return Finished(task.shard, Path(), commit.written, (), (), {"problems": problems} if problems else None)

    def problems(self, commit: Commit, scratch: Path) -> list[Problem]:
        """How the files of a shard differ from what was committed.

        Args:
            scratch: a folder for copies.

        Raises:
            StoreError: the files cannot be copied, or differ and should be copied.
            ConfigError: this machine does not see the answers.
        """
        if self._opened is None:
            self._opened = self._open()  # another thread may do the same
        store, source, target = self._opened
        if target is None:
            return [*store.compare(commit)]
        with TemporaryDirectory(dir=scratch) as folder:
            self._copy(commit, store.files(commit.receipt), source, target, evolve(self.place, folder=Path(folder)))
        return []

    def _open(self) -> tuple[ShardFiles, Objects, Objects | None]:
        try:
            store = _open_files(self.description, self.place)
        except StoreMissingError as error:
            missing = error.where
        else:
            target = None if self.target is None else place_at(self.target, Path())
            return store, place_at(self.description.get("url"), self.place.parts), target
        raise ConfigError(
            f"the worker on {socket.gethostname()} does not see {missing}. The answers must be at the same path on all machines "
            "of the cluster, or in object storage"
        )

    def _copy(self, commit: Commit, names: Sequence[str], source: Objects, target: Objects, here: Place) -> None:
        """Copies files by way of this disk, where the copies are compared. A file that is copied twice has the same name and
        content.
        """
        for name in names:
            path = here.parts / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with replaced(path) as write:
                for piece in pieces_of(source.at(name)):
                    write(piece)
        url = {"url": here.parts.as_uri()} if "url" in self.description else {}
        for problem in _open_files({**self.description, **url}, here).compare(commit):
            where = problem.where.replace(str(here.parts), str(source), 1)
            raise StoreError(f"{where} differs from what the job wrote: {problem.what}")
        for name in names:
            with writing(target.at(name)):
                target.put(name, here.parts / name)


def _open_files(description: dict[str, Any], place: Place) -> ShardFiles:
    store = from_description(description)
    assert isinstance(store, ShardFiles)
    store.open(place, existing=True)
    return store


def read_on(
    executor: Executor | None, read: ReadShard, commits: Iterator[Commit], progress: ReadingProgress
) -> list[Problem]:
    """Reads shards on an executor, or one after the other, and returns when all are read. The shards of a worker that died are
    read again, and count once.

    Returns:
        the problems that were found, in the order of the shards.

    Raises:
        ConfigError: it was called in an event loop.
        FlinksError: of the executor, or of `ReadShard`.
    """
    if executor is None:
        with TemporaryDirectory(prefix="flinks-async-") as scratch:
            return [one for commit in progress.counted(commits) for one in read.problems(commit, Path(scratch))]
    found: dict[Shard, list[Problem]] = {}

    async def next_task() -> Task | None:
        commit = next(commits, None)
        return None if commit is None else Task(commit.shard, about=commit)

    async def take(finished: Finished) -> None:
        progress.add(finished.written)
        if finished.receipt is not None:
            found[finished.shard] = finished.receipt["problems"]

    async def go() -> None:
        with TemporaryDirectory(prefix="flinks-async-") as spools:
            execution = executor.map_shards(Work.of_function(read, Path(spools), _log, AT_ONCE), next_task, take)
            logged = dict[str, float]()

            def tell() -> None:
                counters = execution.counters()
                progress.tell(counters)
                waits.tell(logged, counters.waits)

            async with repeated(_TELL_EVERY, tell):
                await execution.go()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise ConfigError("an `executor` needs an event loop of its own: call this with asyncio.to_thread")
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(go())
    shards = sorted(found, key=lambda shard: (shard.round, shard.first, shard.id))
    return [problem for shard in shards for problem in found[shard]]
