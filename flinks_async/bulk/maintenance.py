"""A job that is not running: looked at, checked, exported, removed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from attrs import field, frozen

from ..checks import flag
from .directory import empty, enter
from .errors import LedgerError, StoreError, StoreMissingError
from .files import (
    DUPLICATES,
    FAILED,
    LEDGER,
    LEDGER_FILES,
    LOCK,
    LOG,
    MANIFEST,
    NOTE,
    PAGE,
    REPORT,
    SCRATCH,
    SPOOLS,
    TEMPORARY,
    cannot_write,
)
from .inputs import Scanned
from .job import place_of
from .ledger import PURGING, Ledger, Totals
from .manifest import Manifest
from .records import Commit
from .stores import Problem, Store, from_description


@frozen
class Status:
    """Where a job stands.

    Attributes:
        manifest: what it is.
        scanned: what its input holds; None while it is read through for the first time.
        totals: what is committed.
        runs: its runs so far (see `Ledger.runs`).
        latest: the last figures of the last run (`Progress.to_dict()`, with `run` and `at` in seconds since 1970); a run
            notes them every ten seconds. None before the first ones.
    """

    manifest: Manifest
    scanned: Scanned | None
    totals: Totals
    runs: list[dict[str, Any]]
    latest: dict[str, Any] | None = None


def status(directory: str | os.PathLike[str]) -> Status:
    """Where a job stands. It may be running.

    Raises:
        JobMismatchError: there is no job in the directory.
        LedgerError: its ledger cannot be understood.
    """
    folder = Path(directory).absolute()
    manifest = Manifest.load(folder / MANIFEST)
    with closing(Ledger(folder / LEDGER)) as ledger, ledger.snapshot():
        return Status(manifest, ledger.plan(), ledger.totals(), ledger.runs(), ledger.latest_sample())


def verify(directory: str | os.PathLike[str], store: Store | None = None) -> list[Problem]:
    """Reads the answers of a job back and compares them with its ledger. Changes nothing.

    Args:
        store: if it needs more than the manifest says.

    Raises:
        JobLockedError: the job is running.
        JobMismatchError, LedgerError, StoreError: it cannot be looked at at all.
    """
    folder = Path(directory).absolute()
    with ExitStack() as resources:
        manifest = _enter(folder, resources, only_read=True)
        ledger = _ledger(folder, resources)
        broken = ledger.problems()
        if broken:
            raise LedgerError(f"{ledger.path} is broken: {broken[0]}")
        found = list(_miscounted(ledger))
        try:
            chosen = _open_store(folder, manifest, store, resources)
        except StoreMissingError as error:
            if ledger.totals().shards_done:
                found.append(Problem(error.where, "it is missing"))
        else:
            found += chosen.verify(ledger.commits())
        return found


def export(directory: str | os.PathLike[str], store: Store | None = None) -> Iterator[bytes]:
    """The answers of a job as lines of JSON: shard by shard in the order of its input, within a shard as they came; those
    of retried tokens come last.

    Raises:
        as `verify`; StoreMissingError: the answers are not where the job put them.
    """
    folder = Path(directory).absolute()
    with ExitStack() as resources:
        manifest = _enter(folder, resources, only_read=True)
        ledger = _ledger(folder, resources)
        try:
            chosen = _open_store(folder, manifest, store, resources)
        except StoreMissingError:
            if ledger.totals().shards_done:
                raise
            return
        yield from chosen.lines(ledger.commits())


def purge(directory: str | os.PathLike[str], store: Store | None = None, *, forget_answers: bool = False) -> list[str]:
    """Removes what a job has made: answers, ledger, failed rows, report, log. Its input is not the job's, and stays.

    If answers are not where the job put them, nothing is removed: what the job knows of them is then the only trace that
    leads to them.

    Args:
        store: if it needs more than the manifest says.
        forget_answers: remove the rest although answers cannot be found or reached, and forget where they were.

    Returns:
        what was removed, in words; and, beginning with `left`, what was left, since it is not the job's or not there.

    Raises:
        StoreError: also if answers are not there.
        JobLockedError, JobMismatchError, LedgerError: as `verify`; but the ledger may be broken, or gone with a purge
            that was interrupted.
        ConfigError: `forget_answers` is neither True nor False.
    """
    flag("forget_answers", forget_answers)
    folder = Path(directory).absolute()
    with ExitStack() as resources:
        removed = _remove_answers(folder, _enter(folder, resources), store, forget_answers)
        try:
            for name in (SPOOLS, SCRATCH):
                empty(folder / name)
            for name in (FAILED, DUPLICATES, REPORT, PAGE, LOG, NOTE, *TEMPORARY, *LEDGER_FILES, MANIFEST):
                if (folder / name).exists():
                    (folder / name).unlink()
                    removed.append(name)
        except OSError as error:
            raise cannot_write(folder, error) from None
    with suppress(OSError):
        (folder / LOCK).unlink()
    with suppress(OSError):
        folder.rmdir()
        return [*removed, f"the directory {folder}"]
    left = ", ".join(sorted(entry.name for entry in folder.iterdir()))
    return [*removed, f"left, since it is not the job's: {left}"]


@frozen
class _Known:
    """What the ledger knows of the answers.

    Attributes:
        commits: shards with answers.
        none: there can be no answers: the job never began to fetch.
        removed: a purge has removed answers already, or all of them.
        broken: the ledger is, and nothing is known.
    """

    commits: list[Commit] = field(factory=list)
    none: bool = False
    removed: bool = False
    broken: bool = False

    @classmethod
    def of(cls, folder: Path) -> _Known:
        if not (folder / LEDGER).exists():  # which a purge removes after the answers
            return cls(removed=True)
        try:
            with closing(Ledger(folder / LEDGER)) as ledger:
                commits = [commit for commit in ledger.commits() if commit.written.lines]
                return cls(commits, none=ledger.plan() is None, removed=bool(ledger.get(PURGING)))
        except (LedgerError, StoreError):
            return cls(broken=True)

    def lines(self, shards: Collection[int | None]) -> int:
        """The answers of some shards."""
        return sum(commit.written.lines for commit in self.commits if commit.shard.id in shards)


def _remove_answers(folder: Path, manifest: Manifest, store: Store | None, forget: bool) -> list[str]:
    known = _Known.of(folder)
    with ExitStack() as resources:
        try:
            chosen = _open_store(folder, manifest, store, resources)
        except StoreError as error:
            gone = isinstance(error, StoreMissingError)
            if known.none or (gone and (known.removed or not (known.commits or known.broken))):
                return []
            if forget:
                return [f"left, since they could not be found: answers of the job ({error.message})"]
            if not gone:
                raise
            lost = known.lines({commit.shard.id for commit in known.commits})
            problem = error.message
        else:
            missing = list(chosen.missing(known.commits))
            lost = 0 if known.removed else known.lines({problem.shard for problem in missing})
            if not lost or forget:
                if known.commits:
                    _note_purge(folder)
                told = chosen.purge()
                return [*told, f"left, since they could not be found: {lost:,} answers of the job"] if lost else told
            problem = f"{missing[0].where}: {missing[0].what}"
    if known.broken:
        raise _not_there("answers", f"{problem}, and the ledger is broken")
    raise _not_there(f"{lost:,} answers", problem)


def _note_purge(folder: Path) -> None:
    """So that one that is interrupted does not miss what it has removed itself. On a full disk it must do without."""
    with suppress(StoreError, LedgerError), closing(Ledger(folder / LEDGER)) as ledger:
        ledger.put(PURGING, 1)


def _not_there(answers: str, what: str) -> StoreError:
    return StoreError(
        f"Nothing was removed: {answers} of the job are not where it put them ({what}). Put them back; or, with "
        "--forget-answers, remove the job without them, and with it what is known of where they were"
    )


def _ledger(folder: Path, resources: ExitStack) -> Ledger:
    ledger = Ledger(folder / LEDGER)
    resources.callback(ledger.close)
    return ledger


def _enter(folder: Path, resources: ExitStack, *, only_read: bool = False) -> Manifest:
    manifest = Manifest.load(folder / MANIFEST)
    if not only_read or os.access(folder, os.W_OK):  # no job can run where nothing can be written, such as a snapshot
        enter(folder, resources)
    return manifest


def _open_store(folder: Path, manifest: Manifest, store: Store | None, resources: ExitStack) -> Store:
    chosen = store or from_description(manifest.store)
    chosen.open(place_of(folder, manifest), existing=True)
    resources.callback(chosen.close)
    return chosen


def _miscounted(ledger: Ledger) -> Iterator[Problem]:
    plan, totals = ledger.plan(), ledger.totals()
    if plan is not None and plan.tokens != totals.tokens:
        yield Problem(str(ledger.path), f"it accounts for {totals.tokens:,} tokens, and the input has {plan.tokens:,}")
