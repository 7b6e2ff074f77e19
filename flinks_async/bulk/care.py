"""A job that is not running: looked at, checked, exported, removed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from .directory import empty, enter
from .disk import cannot_write
from .errors import LedgerError
from .inputs import Scanned
from .job import place_of
from .layout import (
    DUPLICATES,
    FAILED,
    LEDGER,
    LEDGER_FILES,
    LOCK,
    LOG,
    MANIFEST,
    PAGE,
    REPORT,
    SCRATCH,
    SPOOLS,
    TEMPORARY,
)
from .ledger import Ledger, Totals
from .manifest import Manifest
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
    with ExitStack() as resources:
        ledger, chosen = _open(Path(directory).absolute(), store, resources)
        broken = ledger.problems()
        if broken:
            raise LedgerError(f"{ledger.path} is broken: {broken[0]}")
        found = list(_miscounted(ledger))
        found += chosen.verify(ledger.commits())
        return found


def export(directory: str | os.PathLike[str], store: Store | None = None) -> Iterator[bytes]:
    """The answers of a job as lines of JSON, in the order of its input but for those that were retried.

    Raises:
        as `verify`.
    """
    with ExitStack() as resources:
        ledger, chosen = _open(Path(directory).absolute(), store, resources)
        yield from chosen.lines(ledger.commits())


def purge(directory: str | os.PathLike[str], store: Store | None = None) -> list[str]:
    """Removes what a job has made: answers, ledger, failed rows, report, log. Its input is not the job's, and stays.

    Returns:
        what was removed, in words; and what was left, since it is not the job's.

    Raises:
        as `verify`; but the ledger may be broken, or gone with a purge that was interrupted.
    """
    folder = Path(directory).absolute()
    with ExitStack() as resources:
        chosen = _open_store(folder, _enter(folder, resources), store, resources)
        removed = chosen.purge()
        chosen.close()
        try:
            for name in (SPOOLS, SCRATCH):
                empty(folder / name)
            for name in (FAILED, DUPLICATES, REPORT, PAGE, LOG, *TEMPORARY, *LEDGER_FILES, MANIFEST):
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


def _open(folder: Path, store: Store | None, resources: ExitStack) -> tuple[Ledger, Store]:
    manifest = _enter(folder, resources)
    ledger = Ledger(folder / LEDGER)
    resources.callback(ledger.close)
    return ledger, _open_store(folder, manifest, store, resources)


def _enter(folder: Path, resources: ExitStack) -> Manifest:
    manifest = Manifest.load(folder / MANIFEST)
    enter(folder, resources)
    return manifest


def _open_store(folder: Path, manifest: Manifest, store: Store | None, resources: ExitStack) -> Store:
    chosen = store or from_description(manifest.store)
    chosen.open(place_of(folder, manifest))
    resources.callback(chosen.close)
    return chosen


def _miscounted(ledger: Ledger) -> Iterator[Problem]:
    plan, totals = ledger.plan(), ledger.totals()
    if plan is not None and plan.tokens != totals.tokens:
        yield Problem(str(ledger.path), f"it accounts for {totals.tokens:,} tokens, and the input has {plan.tokens:,}")
