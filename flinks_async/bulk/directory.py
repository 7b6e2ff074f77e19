"""The directory of a job: creates and locks it, and protects directories and files that are not the job's."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

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
    SQLITE_SUFFIXES,
    cannot_write,
    make_folder,
)
from .ledger import Ledger
from .manifest import Manifest


def enter(folder: Path, resources: ExitStack, *, new: bool = False) -> None:
    """Locks the directory of a job until `resources` are closed.

    Args:
        new: create the directory if it is missing; an empty one is accepted.

    Raises:
        ConfigError: it is on a network file system.
        JobMismatchError: it holds something else than a job.
        JobLockedError: another process works on the job.
        StoreError: it cannot be created.
    """
    refuse_network(folder)
    if not (folder / MANIFEST).exists():
        if not new:
            raise JobMismatchError(f"{folder} is not the directory of a job: it has no {MANIFEST}")
        if folder.exists() and not folder.is_dir():
            raise JobMismatchError(f"{folder} is a file, but a job needs a directory. Choose another name")
        make_folder(folder)
        _refuse_foreign(folder)
    _lock(folder, resources)


def _refuse_foreign(folder: Path) -> None:
    try:
        foreign = sorted({entry.name for entry in folder.iterdir()} - BEFORE_MANIFEST)
    except OSError as error:
        raise cannot_write(folder, error) from None
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise JobMismatchError(
            f"{folder} is not the directory of a job and not empty: it holds {', '.join(foreign[:3])}{more}. "
            "Choose a new directory"
        )


def refuse_own_name(folder: Path, output: str | None) -> None:
    """Refuses an output in the directory of the job under a name that the job uses itself.

    Raises:
        ConfigError: the job would overwrite it.
    """
    if output is None:
        return
    first = Path(os.path.relpath(os.path.realpath(output), os.path.realpath(folder))).parts[:1]
    if OWN.intersection(first):
        raise ConfigError(f"{output} is a name that the job uses itself. Choose another file for the answers")


def refuse_own_files(folder: Path, manifest: Manifest, *outputs: Path) -> None:
    """Refuses to write an export or a report over a file that the job has or needs.

    Args:
        folder: the directory of the job.
        outputs: the files that would be written.

    Raises:
        ConfigError: one of them is in the directory of the job, belongs to its answers, or is its file of tokens.
    """
    own = {manifest.path: "the job's file of tokens"}
    if answers := manifest.store.get("path"):
        own |= {f"{answers}{suffix}": "where the job's answers are" for suffix in _BESIDE_ANSWERS}
    for output in outputs:
        if any(_same(parent, folder) for parent in Path(os.path.realpath(output)).parents):
            raise ConfigError(
                f"{output} is in the directory of the job, which only the job writes to. Choose another place"
            )
        for path, what in own.items():
            if _same(output, path):
                raise ConfigError(f"{output} is {what}. Choose another place")


_BESIDE_ANSWERS: Final = (*SQLITE_SUFFIXES, ".wal")
"""What SQLite and DuckDB append to the name of a database for their own files."""


def _same(one: Path, other: str | Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)  # under another name
    except OSError:  # one of them does not exist
        return False


def take_back(folder: Path) -> None:
    """Removes the manifest of a job that could not begin, so that the next attempt may differ. If the store has created
    something in the directory, the manifest stays.
    """
    with suppress(OSError):
        if {entry.name for entry in folder.iterdir()} <= BEFORE_MANIFEST | {MANIFEST}:
            (folder / MANIFEST).unlink()


def _lock(folder: Path, resources: ExitStack) -> None:
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
        raise JobLockedError(f"another process works on the job in {folder}. Wait until it ends, or stop it")
    resources.callback(held.release)


def new_ledger(folder: Path, job: str) -> Ledger:
    """Creates a ledger; it replaces the ledger of a job that never began."""
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
    """Removes a folder of temporary files, if it exists."""
    with suppress(FileNotFoundError):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise cannot_write(folder, error) from None


_MOUNTS: Final = Path("/proc/self/mountinfo")

_NETWORK_TYPES: Final = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "glusterfs", "lustre", "gpfs", "beegfs",
        "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.ceph-fuse",
    }
)  # fmt: skip


def refuse_network(folder: Path) -> None:
    """Refuses a folder on a network file system, because locks and fsync may silently do nothing there. Only Linux tells.

    Raises:
        ConfigError: it is on a network file system.
    """
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    kind = file_system_of(os.path.realpath(folder), mounts)
    if kind in _NETWORK_TYPES:
        raise ConfigError(
            f"{folder} is on a network file system ({kind}), where a job's lock and ledger are not safe. "
            "Choose a directory on a local disk; write the answers to a database, or copy them when the job is done"
        )


def file_system_of(path: str, mounts: str) -> str:
    """The type of the file system of an absolute path.

    Args:
        mounts: the text of /proc/self/mountinfo (see proc(5)): the fifth field of a line is the mount point, and the
            first field after the dash is the type.
    """
    best, found = "", ""
    for line in mounts.splitlines():
        where, _, what = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), where.split(" ")[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # a later mount at the same point covers the earlier one
            best, found = point, what.split(" ")[0]
    return found
