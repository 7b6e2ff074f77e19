"""The interface of a store. It takes finished files of answers, each as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import msgspec
from attrs import frozen

from ..compression import Compression
from ..errors import LedgerError, StoreError
from ..objects import Objects, Readable
from ..records import Commit, Written
from ..spool import difference, read_answers

T = TypeVar("T")


@frozen
class Place:
    """Where a job keeps its files.

    Attributes:
        job: the job's id: 32 hexadecimal digits, random. File names in `parts` contain it.
        folder: the job's directory.
        keyed: whether rows have a key of the user's.
        instances: whether rows name their instance.
        tables: names of the tables that get rows; None for all.
    """

    job: str
    folder: Path
    keyed: bool = False
    instances: bool = False
    tables: frozenset[str] | None = None

    @property
    def parts(self) -> Path:
        """The folder for stores that write one file for each shard."""
        return self.folder / "parts"

    def gets_rows(self, table: str) -> bool:
        """Whether a table gets rows. The others stay empty."""
        return self.tables is None or table in self.tables


@frozen
class Problem:
    """Something that `verify` found.

    Attributes:
        where: the file or table.
        what: what is wrong with it, in words.
        shard: the shard that is affected; None if it is not a single one.
    """

    where: str
    what: str
    shard: int | None = None


def opened(resource: T | None) -> T:
    """The resource of an open store.

    Raises:
        StoreError: the store is not open.
    """
    if resource is None:
        raise StoreError("the store is not open")
    return resource


def receipt_as(kind: type[T], receipt: Mapping[str, Any]) -> T:
    """A receipt from the ledger. Somebody may have edited it, so each store checks what it is led to.

    Raises:
        LedgerError: it is not such a receipt.
    """
    try:
        return msgspec.convert(receipt, kind)
    except msgspec.ValidationError:
        pass
    raise foreign_receipt("has a receipt that the job's store does not write")


def foreign_receipt(what: str) -> LedgerError:
    """The error for a receipt that was edited."""
    return LedgerError(f"the ledger {what}: it was changed by another program, or is broken")


@runtime_checkable
class Store(Protocol):
    """Where the answers of a job go. All methods block, and are called from one thread at a time.

    A job hands over *spools*: finished, synced files with one line for each answer:
    `{"line": 7, "key": "u-1", "instance": "acme", "response": {...}, "meta": {"status": 200, "attempts": 1}}`
    (`key` and `instance` only where the input has such columns; `response` is the body as it came, on one line). A store
    whose attribute `keeps_spools` is False only reads them, so they are not synced and have no SHA-256.

    Every failure raises a `StoreError` whose message says what failed, where and why. If `put` raises an
    `UnfitAnswerError`, it has stored nothing of the shard; it is called again with a spool that lacks that answer.
    """

    @property
    def spool_compression(self) -> Compression:
        """The compression of the spools that `put` takes."""
        ...

    def describe(self) -> dict[str, Any]:
        """The store's kind and the arguments of its class, as plain JSON without secrets. A job must be resumed with an
        equal description, and `from_description` makes the store again."""
        ...

    def open(self, place: Place, *, existing: bool = False) -> None:
        """Opens the store: creates files and tables that are missing, and refuses those that are not the job's.

        Args:
            place: where the job keeps its files.
            existing: open to look, export or purge: nothing is created or changed. The output need not be the job's;
                `missing` and `verify` tell.

        Raises:
            StoreMissingError: with `existing`: there is no output.
        """
        ...

    def recover(self, receipts: Mapping[int, Mapping[str, Any]]) -> Iterable[Commit]:
        """Makes the store consistent with the ledger after a crash. Called once after `open`, before any `put`.

        Output of this job that the ledger does not know is removed; nothing else is touched. A store with transactions of
        its own keeps it instead, and returns the shards that the ledger lacks.

        Args:
            receipts: the receipts of the shards that the ledger knows, by shard id.
        """
        ...

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        """Stores a spool, by moving or reading it. When `put` returns, the answers survive a power cut. It is called
        once for each shard; again if the process crashed before the ledger was written.

        Returns:
            the receipt: plain JSON that tells the store where the answers are.
        """
        ...

    def verify(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        """Reads all answers and compares them with what was committed."""
        ...

    def missing(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        """Finds shards whose answers are not there, without reading all answers. For `purge`, which then stops.

        Args:
            commits: shards with answers.
        """
        ...

    def lines(self, commits: Iterable[Commit]) -> Iterator[bytes]:
        """The answers as lines of the spools, uncompressed. For `export`."""
        ...

    def purge(self) -> list[str]:
        """Removes all answers of the job.

        Returns:
            what was removed, in words; a text that begins with `left` names something that was not removed.
        """
        ...

    def close(self) -> None:
        """Closes files and connections. It may be called more than once."""
        ...


def keeps_spools(store: Store) -> bool:
    """Whether spools become output of the job."""
    return getattr(store, "keeps_spools", True)


@runtime_checkable
class SharedStore(Store, Protocol):
    """A store whose `put` may be called in several threads and processes at once, and for one shard more than once: the
    ledger says which receipt counts. A worker opens it with `existing` and its description.
    """

    @property
    def by_workers(self) -> bool:
        """Whether workers write to this store."""
        ...

    def check(self) -> None:
        """Called by the job before the ledger is told of a shard.

        Raises:
            JobLockedError: another process has taken over the output.
        """
        ...

    def drop(self, receipt: Mapping[str, Any]) -> None:
        """Removes the answers of a receipt that the ledger will not get."""
        ...

    def settle(self, receipts: Mapping[int, Mapping[str, Any]], *, complete: bool) -> None:
        """Called at the end of a run. Output that the ledger does not know is removed.

        Args:
            receipts: as for `recover`.
            complete: every token has an outcome: readers are told that the output is complete.
        """
        ...


def shared_store(store: Store) -> SharedStore | None:
    """The store, if workers write to it."""
    return store if isinstance(store, SharedStore) and store.by_workers else None


SUCCESS: Final = "_SUCCESS"
"""The object that lists the files of a complete job."""


def success_of(job: str, names: Iterable[str]) -> bytes:
    """The content of `_SUCCESS`."""
    data = bytearray(f'{{"job": "{job}", "files": [', "ascii")
    for name in names:
        data += b"\n " + msgspec.json.encode(name) + b","
    return bytes(data.removesuffix(b",")) + b"\n]}\n"


def job_of_success(objects: Objects) -> str | None:
    """The id of the job whose `_SUCCESS` is at a place; empty if another program wrote it, such as Spark; None without one."""
    if objects.find(SUCCESS) is None:
        return None
    with objects.at(SUCCESS).open("rb") as file:
        found = re.search(rb'"job": "([0-9a-f]{32})"', file.read())
    return found[1].decode() if found else ""


def compare(
    path: Readable, compression: Compression, written: Written, shard: int, start: int = 0, size: int | None = None
) -> Iterator[Problem]:
    """Reads a file or a range of it, and yields a problem if its answers differ from what was written."""
    what = difference(path, written, start, size)
    if what is None:
        try:
            lines = sum(1 for _ in read_answers(path, compression, start, size))
            what = None if lines == written.lines else f"it has {lines:,} answers, but {written.lines:,} were written"
        except StoreError as error:
            what = error.message
    if what is not None:
        yield Problem(str(path) if size is None else f"{path}, bytes {start:,} to {start + size:,}", what, shard)
