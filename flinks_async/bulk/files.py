"""Files that survive a power cut, and the names of the files in the directory of a job.

A file is written, synced and renamed, and then its folder is synced.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from . import crash_points
from .errors import StoreError

PRIVATE_FILE: Final = 0o600
PRIVATE_FOLDER: Final = 0o700

MANIFEST: Final = "manifest.json"
LEDGER: Final = "ledger.sqlite"
LOCK: Final = "job.lock"
LOG: Final = "job.log"
FAILED: Final = "failed.jsonl"
DUPLICATES: Final = "duplicates.jsonl"
REPORT: Final = "report.json"
PAGE: Final = "report.html"
NOTE: Final = "out.json"
"""Names the output file that belongs to the job (see `stores.answer_files`)."""
SPOOLS: Final = "spools"
SCRATCH: Final = "scratch"

SQLITE_SUFFIXES: Final = ("", "-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite keeps beside a database; "" is the database itself."""

LEDGER_FILES: Final = tuple(LEDGER + suffix for suffix in SQLITE_SUFFIXES)
TEMPORARY: Final = tuple(f"{name}.tmp" for name in (MANIFEST, FAILED, DUPLICATES, REPORT, PAGE, NOTE))

BEFORE_MANIFEST: Final = frozenset({LOCK, LOG, SPOOLS, SCRATCH, *LEDGER_FILES, *TEMPORARY})
"""Files that a job may have left if it crashed before it wrote its manifest."""

OWN: Final = BEFORE_MANIFEST | {MANIFEST, FAILED, DUPLICATES, REPORT, PAGE, NOTE}
"""Names in the directory that the job uses itself; an output must not have one of them."""


def make_folder(path: Path) -> None:
    """Makes a folder for its owner only, unless it exists. Its name and those of its new parents are durable.

    Raises:
        StoreError: it cannot be made.
    """
    try:
        new = [folder for folder in path.parents if not folder.exists()]
        for folder in (*reversed(new), path):  # parents=True would make them readable for everybody
            folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        for folder in (path, *new):  # also an existing one: a crash may have prevented its sync
            with suppress(PermissionError):  # a parent of another user, which we may not open
                sync_folder(folder.parent)
    except OSError as error:
        raise cannot_write(path, error) from None


def create(path: Path) -> int:
    """Opens a new file, for its owner only. A file left by a crash is emptied.

    Raises:
        OSError: as from `os.open`.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.open(path, flags, PRIVATE_FILE)


def write_all(file: int, data: bytes | memoryview) -> None:
    """Writes all the data: `os.write` may write less."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


@contextmanager
def replaced(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Replaces a file as a whole: it keeps its old content until the block ends, and if the block fails. The block gets
    the function that writes.

    Raises:
        StoreError: it cannot be written; the old file is unchanged.
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
    """Writes a small file as a whole.

    Raises:
        StoreError: as from `replaced`.
    """
    with replaced(path) as write:
        write(data)


def rename_durably(source: Path, target: Path) -> None:
    """Renames a synced file and makes the new name durable.

    Raises:
        OSError: it fails.
    """
    os.replace(source, target)
    crash_points.reach("renamed")
    sync_folder(target.parent)
    crash_points.reach("folder synced")


def sync_file(path: Path) -> None:
    """Syncs a file that another library has written.

    Raises:
        OSError: it fails.
    """
    file = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    if sys.platform == "win32":  # folders cannot be opened there, and names need no sync
        return
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def cannot_write(path: Path, error: OSError | ValueError) -> StoreError:
    """The error for a path that cannot be written. Raise it `from None`."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a valid file name"
    return StoreError(f"{path} cannot be written: {reason}")


def cannot_read(path: Path, error: OSError) -> StoreError:
    """The error for a file that cannot be read. Raise it `from None`."""
    return StoreError(f"{path} cannot be read: {error.strerror or error}")


def size_of(path: Path) -> int | None:
    """The size of a file; None if it does not exist. A file that may not be looked at is not missing.

    Raises:
        StoreError: it cannot be looked at.
    """
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot_read(path, error) from None


def newer_version(where: object, version: int) -> str:
    """Error text for a file or database whose format this version does not know."""
    return f"{where} was written by a newer version of flinks-async (format {version}). Update flinks-async"


def sync_every_commit(db: sqlite3.Connection, path: Path) -> None:
    """Lets SQLite write ahead and sync the disk at every commit.

    Raises:
        StoreError: the file system does not support a write-ahead log.
        sqlite3.Error: SQLite fails.
    """
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(f"{path}: this file system has no write-ahead log (SQLite uses {mode}). Use a local disk")
    for setting in ("synchronous = FULL", "fullfsync = ON", "checkpoint_fullfsync = ON"):
        db.execute(f"PRAGMA {setting}")


def connect_to_look(path: Path, *, timeout: float) -> sqlite3.Connection:
    """Connects to an SQLite database without changing its files, also after a crash or on a read-only disk.

    The last ordinary connection that is closed writes a log that a crash has left into the database. Here the log stays.

    Args:
        timeout: seconds to wait for a lock.

    Raises:
        sqlite3.Error: SQLite fails.
    """
    in_memory = False
    if _has_content(path, "-wal") or _has_content(path, "-journal"):
        options = "mode=ro"
        if sys.platform != "win32" and not _is_open_elsewhere(path):
            # Nobody writes, so that no lock is needed; with locks, SQLite would create or rewrite the `-shm` file.
            options, in_memory = "mode=ro&vfs=unix-none", True
    else:
        options = "mode=rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "immutable=1"
    where = f"{path.absolute().as_uri()}?{options}"
    db = sqlite3.connect(where, uri=True, isolation_level=None, check_same_thread=False, timeout=timeout)
    if in_memory:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # keeps in memory what would be in the `-shm` file
    return db


def _has_content(path: Path, suffix: str) -> bool:
    try:
        return os.path.getsize(f"{path}{suffix}") > 0
    except OSError:
        return False


_LOCKS: Final = Path("/proc/locks")


def _is_open_elsewhere(path: Path) -> bool:
    """Whether a process, perhaps this one, has a database with a log open: it then holds a lock on the `-shm` file. True if
    the system does not tell."""
    try:
        inode = os.stat(f"{path}-shm").st_ino
        return f":{inode} " in _LOCKS.read_text()
    except FileNotFoundError as error:
        return str(error.filename) == str(_LOCKS)
    except OSError:
        return True


def absolute_path(path: str | os.PathLike[str] | None) -> Path | None:
    """A path from the user, independent of the working directory; None stays None.

    Raises:
        ConfigError: it cannot be the name of a file.
    """
    if path is None:
        return None
    absolute = Path(path).absolute()
    try:
        possible = b"\0" not in os.fsencode(absolute)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ConfigError(f"path must be the name of a file, not {str(path)!a}")
    return absolute


def is_inside(path: str | os.PathLike[str], folder: Path) -> bool:
    """Whether a path is in a folder, with links resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
