"""Files that are still there after a power cut: written, synced, renamed, and the folder synced too."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from . import crash_points
from .errors import StoreError

# [flinks_async.bulk.layout] What lies where in the directory of a job.

# [flinks_async.bulk.file_systems] Which file system a folder is on. A ledger needs one of this machine: over a network, locks and syncs may be a show.


PRIVATE_FILE: Final = 0o600

PRIVATE_FOLDER: Final = 0o700


def make_folder(path: Path) -> None:
    """Makes a folder for its owner only; it may be there already. Its name is durable, and those of its new parents.

    Raises:
        StoreError: it cannot be made.
    """
    try:
        new = [folder for folder in path.parents if not folder.exists()]
        for folder in (*reversed(new), path):  # not by parents=True, which makes them for everybody
            folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        for folder in (path, *new):  # also one that was there: a crash may have come before its sync
            with suppress(PermissionError):  # a parent that may not be read, and was made by somebody else
                sync_folder(folder.parent)
    except OSError as error:
        raise cannot_write(path, error) from None


def create(path: Path) -> int:
    """Opens a new file, for its owner only. One that is left from a crash is emptied.

    Raises:
        OSError: as `os.open`.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.open(path, flags, PRIVATE_FILE)


def write_all(file: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


@contextmanager
def replaced(path: Path) -> Iterator[Callable[[bytes], None]]:
    """A file as a whole: after the block it holds all that was written in it, and before, or if the block fails, what it
    held before. The block gets the function to write with.

    Raises:
        StoreError: it cannot be written; nothing has changed.
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        file = create(beside)
        try:
            yield partial(write_all, file)
            os.fsync(file)
        finally:
            os.close(file)
        rename_durably(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def write_durably(path: Path, data: bytes) -> None:
    """A small file as a whole.

    Raises:
        StoreError: as `replaced`.
    """
    with replaced(path) as write:
        write(data)


def rename_durably(source: Path, target: Path) -> None:
    """Gives a synced file its name.

    Raises:
        OSError: it cannot.
    """
    os.replace(source, target)
    crash_points.reach("renamed")
    sync_folder(target.parent)
    crash_points.reach("folder synced")


def sync_file(path: Path) -> None:
    """Makes durable what another library has written to a file.

    Raises:
        OSError: it cannot.
    """
    file = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(path: Path) -> None:
    """Makes names in a folder durable."""
    if sys.platform == "win32":  # folders cannot be opened there, and names need no sync of their own
        return
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def cannot_write(path: Path, error: OSError | ValueError) -> StoreError:
    """The error for a path that cannot be written. To be raised `from None`."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a name for a file"
    return StoreError(f"{path} cannot be written: {reason}")


MANIFEST: Final = "manifest.json"

LEDGER: Final = "ledger.sqlite"

LOCK: Final = "job.lock"

LOG: Final = "job.log"

FAILED: Final = "failed.jsonl"

DUPLICATES: Final = "duplicates.jsonl"

REPORT: Final = "report.json"

PAGE: Final = "report.html"

NOTE: Final = "out.json"
"""Which file is the job's output (see `stores.claim`)."""

SPOOLS: Final = "spools"

SCRATCH: Final = "scratch"

LEDGER_FILES: Final = (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm", f"{LEDGER}-journal")

TEMPORARY: Final = tuple(f"{name}.tmp" for name in (MANIFEST, FAILED, DUPLICATES, REPORT, PAGE, NOTE))

BEFORE_MANIFEST: Final = frozenset({LOCK, LOG, SPOOLS, SCRATCH, *LEDGER_FILES, *TEMPORARY})
"""What a job that died while it began may have left."""

OWN: Final = BEFORE_MANIFEST | {MANIFEST, FAILED, DUPLICATES, REPORT, PAGE, NOTE}
"""What no output may be called."""

_MOUNTS: Final = Path("/proc/self/mountinfo")

_OF_A_NETWORK: Final = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "glusterfs", "lustre", "gpfs", "beegfs",
        "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.ceph-fuse",
    }
)  # fmt: skip


def refuse_network(folder: Path) -> None:
    """Refuses a folder of another machine. Where the system does not tell (other than Linux), nothing is refused.

    Raises:
        ConfigError: it is on a network file system.
    """
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    kind = file_system_of(os.path.realpath(folder), mounts)
    if kind in _OF_A_NETWORK:
        raise ConfigError(
            f"{folder} is on a network file system ({kind}), where the lock and the ledger of a job are not safe. "
            "Take a directory on a disk of this machine; answers may go to a database, or be copied when the job is done"
        )


def file_system_of(path: str, mounts: str) -> str:
    """The type of the file system that an absolute path is on.

    Args:
        mounts: as in /proc/self/mountinfo (proc(5)): the fifth field of a line is where it is mounted, and the first one
            after the dash its type.
    """
    best, found = "", ""
    for line in mounts.splitlines():
        where, _, what = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), where.split(" ")[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two in the same place, the later one covers the other
            best, found = point, what.split(" ")[0]
    return found
