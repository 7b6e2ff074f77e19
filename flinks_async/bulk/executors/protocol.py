"""What an executor is given to do: rows of the input, never tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

from attrs import field, frozen

from ...client import FlinksClient
from ..compression import Compression
from ..inputs import InputFile
from ..log import JobLog
from ..progress import Counters
from ..records import Finished, RunState, Shard
from ..rules import Rules

# [flinks_async.bulk.executors.protocol] What an executor is: it maps shards to files of answers, wherever that is done.


@frozen
class Task:
    """A shard to be fetched, and where its rows are. Plain data, so it may go anywhere.

    Attributes:
        shard: which.
        cuts: the pieces of the plan that hold its rows.
        duplicates: lines among them whose token came before.
    """

    shard: Shard
    cuts: tuple[Shard, ...]
    duplicates: frozenset[int] = frozenset()


NextTask = Callable[[], Awaitable[Task | None]]

TakeFinished = Callable[[Finished], Awaitable[object]]


@frozen
class Work:
    """What is the same for all shards of a run.

    Attributes:
        source: the file of tokens. Whoever fetches a shard reads its tokens there.
        key: of fingerprints, and of the digests of shards.
        clients: by name of the instance; None for rows that name none.
        spools: an empty folder for the files of answers, on a disk that the job sees too.
        compression: of these files.
        rules: how to work, and when to stop. They hold for all places of work together.
        secret_is_good: the AuthSecret has worked before in this job.
        log: of the job.
    """

    source: InputFile
    key: bytes = field(repr=False)
    clients: Mapping[str | None, FlinksClient]
    spools: Path
    compression: Compression
    rules: Rules
    secret_is_good: bool
    log: JobLog = field(repr=False)


class Execution(Protocol):
    """Shards being fetched. All methods are called in the event loop of `go`."""

    @property
    def stopped(self) -> tuple[RunState, str] | None:
        """How and why no more tokens are taken; None while they are."""
        ...

    async def go(self) -> None:
        """Fetches until there are no more shards, or until it is stopped. What the shards under way have then is
        finished too, and says which rows are left. Awaited once; cancelled, it ends at once and leaves no files.

        Raises:
            InputError: the file of tokens is gone, or not the same any more.
            StoreError: spools cannot be written; and what `finished` raises.
        """
        ...

    def stop(self, reason: str, state: RunState = "stopped") -> None:
        """Takes no more tokens; what is in flight has `Rules.drain` seconds to end. The first reason counts."""
        ...

    def break_off(self, error: BaseException) -> None:
        """Ends at once; `go` raises the error."""
        ...

    def counters(self) -> Counters:
        """The counts as they stand."""
        ...


class Executor(Protocol):
    """Maps shards to spools, in one process or in many. It knows neither ledger nor store: shards come as rows of the
    input, and answers go back as files, each handed over once. A shard that is lost on the way is done again.
    """

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> Execution:
        """Gets ready.

        Args:
            work: what is the same for all shards.
            tasks: gives the next shard, or None when there are no more. Called again only after it has returned.
            finished: takes a finished shard over, with its file; what it raises ends everything. Shards that it has not
                taken yet count as open (`Rules.open_shards`), so that a slow store slows the fetching.

        Raises:
            ConfigError: it cannot work with these clients.
        """
        ...
