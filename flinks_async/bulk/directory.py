"""The directory of a job: made, locked, and told from other people's directories."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

from ..checks import optional_import
from ..errors import ConfigError
from .errors import JobLockedError, JobMismatchError
from .files import (
    BEFORE_MANIFEST,
    LEDGER,
    LEDGER_FILES,
    LOCK,
    MANIFEST,
    OWN,
    PRIVATE_FILE,
    cannot_write,
    make_folder,
    refuse_network,
)
from .ledger import Ledger
from .manifest import Manifest


def enter(folder: Path, resources: ExitStack, *, new: bool = False) -> None:
    """Locks the directory of a job until `resources` are closed.

    Args:
        new: it may be made, or be empty.

    Raises:
        ConfigError: it is on a network file system.
        JobMismatchError: there is no job in it, and something else is.
        JobLockedError: another process has it.
        StoreError: it cannot be made.
    """
    refuse_network(folder)
    if not (folder / MANIFEST).exists():
        if not new:
            raise JobMismatchError(f"{folder} is not the directory of a job: it has no {MANIFEST}")
        if folder.exists() and not folder.is_dir():
            raise JobMismatchError(f"{folder} is a file, and a job needs a directory. Take another name")
        make_folder(folder)
        refuse_foreign(folder)
    lock(folder, resources)


def refuse_foreign(folder: Path) -> None:
    try:
        foreign = sorted({entry.name for entry in folder.iterdir()} - BEFORE_MANIFEST)
    except OSError as error:
        raise cannot_write(folder, error) from None
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise JobMismatchError(
            f"{folder} is not the directory of a job, and not empty: {', '.join(foreign[:3])}{more}. Take a new one"
        )


def refuse_own_name(folder: Path, output: str | None) -> None:
    """Answers may lie in the directory of the job, but not where it writes something else.

    Raises:
        ConfigError: they would be overwritten.
    """
    if output is None:
        return
    inside = os.path.relpath(os.path.realpath(output), os.path.realpath(folder))
    if Path(inside).parts[:1] and Path(inside).parts[0] in OWN:
        raise ConfigError(f"{output} is a place that the job needs for itself; let the answers go elsewhere")


def refuse_own_files(folder: Path, manifest: Manifest, *outputs: Path) -> None:
    """What is written on request must not take the place of something that the job has or needs.

    Args:
        folder: of the job.
        outputs: where it would be written to.

    Raises:
        ConfigError: one of them is in the directory of the job, is its file of answers or a file that belongs to that, or
            is its file of tokens.
    """
    own = {manifest.path: "the job's file of tokens"}
    if answers := manifest.store.get("path"):
        own |= {f"{answers}{suffix}": "where the job's answers are" for suffix in _BESIDE_ANSWERS}
    for output in outputs:
        if any(_same(parent, folder) for parent in Path(os.path.realpath(output)).parents):
            raise ConfigError(f"{output} is in the directory of the job, which it has for itself; take another place")
        for path, what in own.items():
            if _same(output, path):
                raise ConfigError(f"{output} is {what}; take another place")


_BESIDE_ANSWERS = ("", "-wal", "-shm", "-journal", ".wal")
"""What SQLite and DuckDB add to the name of their file for files of the moment."""


def _same(one: Path, other: str | Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)  # by another name
    except OSError:  # one of them is not there
        return False


def take_back(folder: Path) -> None:
    """Removes the manifest of a job that could not begin, so that the next try may ask for something else. Not if the store
    has made anything there: that is the job's, and goes on with it.
    """
    with suppress(OSError):
        if {entry.name for entry in folder.iterdir()} <= BEFORE_MANIFEST | {MANIFEST}:
            (folder / MANIFEST).unlink()


def lock(folder: Path, resources: ExitStack) -> None:
    filelock = optional_import("filelock", extra="bulk")
    # A job may be opened in one thread and closed in another.
    held = filelock.FileLock(folder / LOCK, timeout=0, mode=PRIVATE_FILE, thread_local=False)
    try:
        held.acquire()
    except filelock.Timeout:
        pass
    except OSError as error:
        raise cannot_write(folder / LOCK, error) from None
    if not held.is_locked:
        raise JobLockedError(f"another process works on the job in {folder}; wait until it has ended, or stop it")
    resources.callback(held.release)


def new_ledger(folder: Path, job: str) -> Ledger:
    """A new ledger, in place of one whose job never began."""
    try:
        for name in LEDGER_FILES:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(folder / LEDGER, error) from None
    ledger = Ledger(folder / LEDGER, new=True)
    try:
        ledger.put("key", secrets.token_bytes(32))
        ledger.put("job", job)
    except BaseException:
        ledger.close()
        raise
    return ledger


def empty(folder: Path) -> None:
    """Removes a folder of temporary files."""
    with suppress(FileNotFoundError):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise cannot_write(folder, error) from None
