"""Functions for a job that is not being run: its status, verification, export and removal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import NoneType
from typing import Any

from attrs import field, frozen

from .. import checks
from ..errors import ConfigError
from .directory import Manifest, empty, enter, refuse_own_files
from .errors import JobMismatchError, LedgerError, StoreError, StoreMissingError
from .executors import Executor
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
    writing,
)
from .inputs import Scanned
from .job import place_of
from .ledger import PURGING, Ledger, Totals
from .objects import Folder, Objects, place_at
from .reading import OnProgress, ReadingProgress, ReadShard, read_on
from .records import Commit
from .stores import Problem, Store, from_description
from .stores.protocol import SUCCESS, job_of_success, success_of
from .stores.shard_files import ShardFiles


@frozen
class Status:
    """The state of a job.

    Attributes:
        manifest: the description that it was started with.
        scanned: counts of the input's lines and tokens; None until the first scan is finished.
        totals: counts of the tokens that are committed.
        runs: the runs so far (see `Ledger.runs`).
        latest: the latest sample of the last run: `Progress.to_dict()`, with `run` and `at` (seconds since 1970). A run
            takes a sample at least every ten seconds. None before the first one.
    """

    manifest: Manifest
    scanned: Scanned | None
    totals: Totals
    runs: list[dict[str, Any]]
    latest: dict[str, Any] | None = None


def status(directory: str | os.PathLike[str]) -> Status:
    """The state of a job, which may be running.

    Raises:
        JobMismatchError: there is no job in the directory.
        LedgerError: its ledger cannot be read.
    """
    folder = checks.path("directory", directory)
    manifest = Manifest.load(folder / MANIFEST)
    with closing(Ledger(folder / LEDGER, look=True)) as ledger, ledger.snapshot():
        return Status(manifest, ledger.plan(), ledger.totals(), ledger.runs(), ledger.latest_sample())


def verify(
    directory: str | os.PathLike[str],
    store: Store | None = None,
    *,
    executor: Executor | None = None,
    on_progress: OnProgress | None = None,
) -> list[Problem]:
    """Reads the answers of a job back and compares them with its ledger. Changes nothing.

    Args:
        store: if it needs settings that the manifest does not hold.
        executor: where to read, as for `Job.run` (default: here). Others than the default need files for each shard, as
            `JSONLParts` and `ParquetStore` write them. The workers of a cluster need no AuthSecret.
        on_progress: called some times a second, with the answers that were read as `Progress.fetched`.

    Returns:
        the differences; empty if all answers are there and unchanged.

    Raises:
        JobLockedError: the job is running.
        JobMismatchError, LedgerError, StoreError: job, ledger or store cannot be opened.
        ConfigError: the executor cannot read the answers of this store.
        WorkerError: workers keep crashing, or the cluster is lost.
    """
    checks.kind("executor", executor, Executor, NoneType)
    with ExitStack() as resources:
        folder, manifest, ledger = _look(directory, store, on_progress, resources)
        broken = ledger.problems()
        if broken:
            raise LedgerError(f"{ledger.path} is broken: {broken[0]}")
        found = list(_wrong_counts(ledger))
        try:
            chosen = _open_store(folder, manifest, store, resources)
        except StoreMissingError as error:
            if ledger.totals().shards_done:
                found.append(Problem(error.where, "it is missing"))
            return found
        progress = ReadingProgress(ledger.totals(), on_progress)
        if executor is None:
            return [*found, *chosen.verify(progress.counted(ledger.commits()))]
        files = _shard_files(chosen, "An executor")
        known = set(_names(files, ledger))
        read = ReadShard(files.describe(), place_of(folder, manifest))
        return [*found, *read_on(executor, read, ledger.commits(), progress), *files.unknown(known)]


def export(
    directory: str | os.PathLike[str], store: Store | None = None, *, on_progress: OnProgress | None = None
) -> Iterator[bytes]:
    """The answers of a job as lines of JSON. Shards are in the order of the input; within a shard, answers are in the order
    in which they arrived. Answers of retried tokens come last.

    Args:
        store, on_progress: as for `verify`.

    Raises:
        StoreMissingError: the answers are not where the job put them.
        FlinksError: as for `verify`.
    """
    with ExitStack() as resources:
        folder, manifest, ledger = _look(directory, store, on_progress, resources)
        try:
            chosen = _open_store(folder, manifest, store, resources)
        except StoreMissingError:
            if ledger.totals().shards_done:
                raise
            return
        yield from chosen.lines(ReadingProgress(ledger.totals(), on_progress).counted(ledger.commits()))


def export_files(
    directory: str | os.PathLike[str],
    url: str,
    store: Store | None = None,
    *,
    executor: Executor | None = None,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Copies the files of answers of a job (JSONL parts or Parquet) to another place. Each copy is compared with the ledger
    before it is written there. The object `_SUCCESS`, which lists the files, is written last, and only if the job is done.

    After an interruption, call it again: it writes all files again, with the same names and content.

    Args:
        url: the place, as for `JSONLParts`.
        store, executor, on_progress: as for `verify`. The workers of a cluster write to the place.

    Returns:
        the names of the files.

    Raises:
        StoreMissingError: the answers are not where the job put them.
        StoreError: answers differ from what the job wrote, or cannot be read or copied.
        JobMismatchError: the place has a `_SUCCESS` of another job or program.
        ConfigError: the place belongs to the job itself, or the job has no files for each shard.
        FlinksError: as for `verify`.
    """
    checks.kind("executor", executor, Executor, NoneType)
    url = checks.checked_url(url)
    with ExitStack() as resources:
        folder, manifest, ledger = _look(directory, store, on_progress, resources)
        files = _shard_files(_open_store(folder, manifest, store, resources), "An export to a URL")
        names, target = [*_names(files, ledger)], place_at(url, folder)
        _refuse_own_place(folder, manifest, target)
        read = ReadShard(files.describe(), place_of(folder, manifest), url)
        with writing(target):
            if job_of_success(target) not in (None, manifest.job):
                raise JobMismatchError(
                    f"{target} holds the output of another job or program, which has an object {SUCCESS}. Choose another URL"
                )
            target.prepare(("", *files.folders))
            target.delete([SUCCESS])
            read_on(executor, read, ledger.commits(), ReadingProgress(ledger.totals(), on_progress))
            if not ledger.totals().pending:
                target.put(SUCCESS, success_of(manifest.job, names))
        return names


def _shard_files(store: Store, what: str) -> ShardFiles:
    """The store, if workers can read its shards."""
    if isinstance(store, ShardFiles):
        return store
    raise ConfigError(
        f"{what} needs files for each shard, as JSONL parts and Parquet have. The answers of this job are in one file or in a "
        "database, which one process reads"
    )


def _names(files: ShardFiles, ledger: Ledger) -> Iterator[str]:
    for commit in ledger.commits():
        yield from files.files(commit.receipt)


def _refuse_own_place(folder: Path, manifest: Manifest, target: Objects) -> None:
    if isinstance(target, Folder):
        refuse_own_files(folder, manifest, target.path)
    own = place_at(manifest.store.get("url"), place_of(folder, manifest).parts)
    if os.path.realpath(str(own)) == os.path.realpath(str(target)):  # a URL stays one
        raise ConfigError(f"{target} is where the job's answers are. Choose another place")


def purge(directory: str | os.PathLike[str], store: Store | None = None, *, forget_answers: bool = False) -> list[str]:
    """Removes everything that a job has made: answers, ledger, failed rows, report, log. The input is kept.

    If answers are not where the job put them, nothing is removed, because the job's files are the only record of where they
    were.

    Args:
        store: if it needs settings that the manifest does not hold.
        forget_answers: remove the rest even if answers cannot be found or reached.

    Returns:
        the things that were removed, in words; entries that begin with `left` were not removed, because they do not belong
        to the job or could not be found.

    Raises:
        StoreError: answers are missing, or cannot be removed.
        JobLockedError, JobMismatchError, LedgerError: as for `verify`. A ledger that is broken, or was removed by an
            interrupted purge, is no error.
        ConfigError: `forget_answers` is neither True nor False.
    """
    checks.flag("forget_answers", forget_answers)
    checks.kind("store", store, Store, NoneType)
    folder = checks.path("directory", directory)
    with ExitStack() as resources:
        manifest = Manifest.load(folder / MANIFEST)
        enter(folder, resources)
        removed = _remove_answers(folder, manifest, store, forget_answers)
        with writing(folder):
            for name in (SPOOLS, SCRATCH):
                empty(folder / name)
            for name in (FAILED, DUPLICATES, REPORT, PAGE, LOG, NOTE, *TEMPORARY, *LEDGER_FILES, MANIFEST):
                if os.path.lexists(folder / name):
                    (folder / name).unlink()
                    removed.append(name)
    with suppress(OSError):
        (folder / LOCK).unlink()
    with suppress(OSError):
        folder.rmdir()
        return [*removed, f"the directory {folder}"]
    left = ", ".join(sorted(entry.name for entry in folder.iterdir()))
    return [*removed, f"left, because it does not belong to the job: {left}"]


@frozen
class _Recorded:
    """The answers that the ledger knows of.

    Attributes:
        folder: of the job.
        answers: the number of answers by shard.
        none: the job never began to fetch, so there are no answers.
        removed: an interrupted purge has removed some answers, or all.
        broken: the ledger cannot be read, so nothing is recorded.
    """

    folder: Path
    answers: dict[int | None, int] = field(factory=dict)
    none: bool = False
    removed: bool = False
    broken: bool = False

    @classmethod
    def of(cls, folder: Path) -> _Recorded:
        if not (folder / LEDGER).exists():  # a purge removes it after the answers
            return cls(folder, removed=True)
        try:
            with closing(Ledger(folder / LEDGER)) as ledger:
                answers: dict[int | None, int] = {}
                for one in ledger.commits():
                    if one.written.lines:
                        answers[one.shard.id] = one.written.lines
                return cls(folder, answers, none=ledger.plan() is None, removed=bool(ledger.get(PURGING)))
        except (LedgerError, StoreError):
            return cls(folder, broken=True)

    def commits(self) -> Iterator[Commit]:
        """The shards with answers. They are read again, because there may be 100,000."""
        if self.answers:
            with closing(Ledger(self.folder / LEDGER)) as ledger:
                yield from (commit for commit in ledger.commits() if commit.shard.id in self.answers)


def _remove_answers(folder: Path, manifest: Manifest, store: Store | None, forget: bool) -> list[str]:
    recorded = _Recorded.of(folder)
    with ExitStack() as resources:
        try:
            chosen = _open_store(folder, manifest, store, resources)
        except StoreError as error:
            gone = isinstance(error, StoreMissingError)
            if recorded.none or (gone and (recorded.removed or not (recorded.answers or recorded.broken))):
                return []
            if forget:
                return [f"left, because they could not be found: answers of the job ({error.message})"]
            if not gone:
                raise
            lost = sum(recorded.answers.values())
            problem = error.message
        else:
            try:
                missing = list(chosen.missing(recorded.commits()))
            except LedgerError:  # its receipts were edited: what is surely the job's is removed
                missing = []
            lost = (
                0
                if recorded.removed
                else sum(recorded.answers.get(shard, 0) for shard in {problem.shard for problem in missing})
            )
            if not lost or forget:
                if recorded.answers:
                    _note_purge(folder)
                told = chosen.purge()
                return [*told, f"left, because they could not be found: {lost:,} answers of the job"] if lost else told
            problem = f"{missing[0].where}: {missing[0].what}"
    if recorded.broken:
        raise _missing_answers("answers", f"{problem}, and the ledger is broken")
    raise _missing_answers(f"{lost:,} answers", problem)


def _note_purge(folder: Path) -> None:
    """Notes that answers are being removed, so that after an interruption the next purge does not miss them. A full disk is
    no obstacle.
    """
    with suppress(StoreError, LedgerError), closing(Ledger(folder / LEDGER)) as ledger:
        ledger.put(PURGING, 1)


def _missing_answers(answers: str, what: str) -> StoreError:
    return StoreError(
        f"Nothing was removed: {answers} of the job are not where it put them ({what}). Restore them; or use "
        "`forget_answers` to remove the job without them, and with it the record of where they were"
    )


def _look(
    directory: str | os.PathLike[str], store: Store | None, on_progress: OnProgress | None, resources: ExitStack
) -> tuple[Path, Manifest, Ledger]:
    """Checks the arguments of a function that reads answers, locks the job, and opens its ledger read-only."""
    checks.kind("store", store, Store, NoneType)
    checks.function_or_none("on_progress", on_progress)
    folder = checks.path("directory", directory)
    manifest = Manifest.load(folder / MANIFEST)
    if os.access(folder, os.W_OK):  # no lock in a read-only copy, where no job can run
        enter(folder, resources)
    return folder, manifest, resources.enter_context(closing(Ledger(folder / LEDGER, look=True)))


def _open_store(folder: Path, manifest: Manifest, store: Store | None, resources: ExitStack) -> Store:
    chosen = from_description(manifest.store) if store is None else store
    chosen.open(place_of(folder, manifest), existing=True)
    resources.callback(chosen.close)
    return chosen


def _wrong_counts(ledger: Ledger) -> Iterator[Problem]:
    plan, totals = ledger.plan(), ledger.totals()
    if plan is not None and plan.tokens != totals.tokens:
        yield Problem(str(ledger.path), f"it accounts for {totals.tokens:,} tokens, and the input has {plan.tokens:,}")
