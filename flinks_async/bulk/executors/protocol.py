"""The interface of executors: they map shards to files of answers, in one process or in many.

An executor knows neither ledger nor store. Shards reach it as rows of the input, never as tokens, and answers go back as
files, each handed over once. A shard that is lost on the way is fetched again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from logging import Logger
from pathlib import Path
from typing import Protocol, runtime_checkable

from attrs import field, frozen

from ...client import FlinksClient
from ..compression import Compression
from ..inputs import InputFile
from ..outcome import JobLog
from ..records import Counters, Finished, RunState, Shard
from ..rules import Rules
from ..selection import Selection


@frozen
class Task:
    """A shard to be fetched, and where its rows are. Plain data: it can be pickled.

    Attributes:
        shard: the shard.
        cuts: the pieces of the plan that hold its rows.
        duplicates: lines among them whose token occurs on an earlier line.
    """

    shard: Shard
    cuts: tuple[Shard, ...]
    duplicates: frozenset[int] = frozenset()


NextTask = Callable[[], Awaitable[Task | None]]

TakeFinished = Callable[[Finished], Awaitable[object]]


@frozen
class Work:
    """Everything that is the same for all shards of a run.

    Attributes:
        source: the file of tokens; the process that fetches a shard reads its tokens from it.
        key: of fingerprints and of the digests of shards.
        clients: by name of the instance; None for rows that name none.
        spools: an empty folder for the files of answers, on a disk that the job can read.
        compression: of these files.
        rules: how to work and when to stop; they hold for all processes together.
        secret_is_good: the AuthSecret has worked before in this job.
        log: of the job; the program's in a worker.
        selection: what is kept of the answers; None for everything.
    """

    source: InputFile
    key: bytes = field(repr=False)
    clients: Mapping[str | None, FlinksClient]
    spools: Path
    compression: Compression
    rules: Rules
    secret_is_good: bool
    log: JobLog | Logger = field(repr=False)
    selection: Selection | None = None


class Execution(Protocol):
    """Shards being fetched. All methods are called in the event loop of `go`."""

    @property
    def stopped(self) -> tuple[RunState, str] | None:
        """How and why the run stopped; None while it takes tokens."""
        ...

    async def go(self) -> None:
        """Fetches until there are no more shards, or until it is stopped. Then the open shards are finished too, with the
        answers they have and the rows that are left. Awaited once; if it is cancelled, it ends at once and leaves no files.

        Raises:
            InputError: the file of tokens is gone, or has changed.
            StoreError: spools cannot be written.
            Exception: what `finished` raises.
        """
        ...

    def stop(self, reason: str, state: RunState = "stopped") -> None:
        """Takes no more tokens and sends nothing more. Requests on the wire have `Rules.drain` seconds to end. The first
        reason counts.
        """
        ...

    def break_off(self, error: BaseException) -> None:
        """Ends at once; `go` raises the error."""
        ...

    def counters(self) -> Counters:
        """The counts as they stand."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Maps shards to files of answers."""

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> Execution:
        """Prepares a run.

        Args:
            work: everything that is the same for all shards.
            tasks: returns the next shard, or None when there are no more. Called again only after it has returned.
            finished: takes over a finished shard and its file; an exception ends the run. Shards that it has not taken yet
                count as open (`Rules.open_shards`), so that a slow store slows the fetching.

        Raises:
            ConfigError: the executor cannot work with these clients.
        """
        ...
