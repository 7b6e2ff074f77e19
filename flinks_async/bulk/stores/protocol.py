"""What a store is: it takes finished files of answers, each as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from attrs import frozen

from ..compression import Compression
from ..records import Commit


@frozen
class Place:
    """Where a job keeps its files.

    Attributes:
        job: the job's id, 32 hexadecimal digits, new for each job; it is part of the name of every file of a part.
        folder: the job's directory.
        keyed: rows have a key of the user's.
        instances: rows name their instance.
    """

    job: str
    folder: Path
    keyed: bool = False
    instances: bool = False

    @property
    def parts(self) -> Path:
        """Where parts lie."""
        return self.folder / "parts"


@frozen
class Problem:
    """Something that `verify` found.

    Attributes:
        where: the file or table.
        what: what is wrong with it, in words.
        shard: the shard that is concerned.
    """

    where: str
    what: str
    shard: int | None = None


class Store(Protocol):
    """Where the answers of a job go. All methods block, and are called from one thread at a time.

    A job hands over a *spool*: a finished, synced file with one line for each answer, of the job's making:
    `{"line": 7, "key": "u-1", "instance": "acme", "response": {...}, "meta": {"status": 200, "attempts": 1}}`
    (`key` and `instance` only where the input has such columns; `response` is the body as it came, on one line).

    Everything that fails raises a `StoreError` whose message says what, where and why. If `put` raises an
    `UnfitAnswerError`, it has stored nothing of the shard, and is called again with a spool without that answer.
    """

    @property
    def spool_compression(self) -> Compression:
        """How the store wants its spools."""
        ...

    def describe(self) -> dict[str, Any]:
        """What must be the same when the job goes on: kind and place, as plain JSON, without any secret."""
        ...

    def open(self, place: Place, *, existing: bool = False) -> None:
        """Prepares the store: makes what is missing, refuses what is not the job's.

        Args:
            place: of the job.
            existing: only to look, to export or to purge: nothing is made, claimed or changed, and what is there need not
                be the job's, which `missing` and `verify` will say.

        Raises:
            StoreMissingError: only with `existing`: there is nothing.
        """
        ...

    def recover(self, receipts: Mapping[int, Mapping[str, Any]]) -> Iterable[Commit]:
        """Puts the store in order after a crash; called once after `open`, before any `put`.

        What bears this job's id and the ledger does not know is removed, and nothing else is touched. A store that
        commits in transactions of its own gives the shards that it has and the ledger does not.

        Args:
            receipts: of the shards that the ledger knows, by their id.
        """
        ...

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        """Takes a spool over, moving or reading it. When it returns, the answers are durable: a power cut does not
        take them. Called once for each shard; after a crash in between, again.

        Returns:
            the receipt.
        """
        ...

    def verify(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        """Reads everything back and compares it with what was committed."""
        ...

    def missing(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        """Those of some shards whose answers are not there, without reading all answers; for `purge`, which stops then.

        Args:
            commits: shards with answers.
        """
        ...

    def lines(self, commits: Iterable[Commit]) -> Iterator[bytes]:
        """The answers again, as lines of the spools, uncompressed; for `export`."""
        ...

    def purge(self) -> list[str]:
        """Removes all answers of the job; says what was removed, in words. What begins with `left` was not."""
        ...

    def close(self) -> None:
        """Lets go of files and connections. May be called more than once."""
        ...
