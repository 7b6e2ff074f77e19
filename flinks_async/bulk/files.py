"""Files that survive a power cut, and the names of the files in the directory of a job.

A file is written, synced and renamed, and then its folder is synced. Functions raise StoreError if something cannot be
written or read, and ConfigError if a path must not be used; those that only wrap a call of the system raise OSError.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from ..errors import ConfigError
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
"""Names the output file that belongs to the job (see `OwnedFile` in `stores.jsonl`)."""
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


class CrashPoints:
    """Named places where tests kill the process, to prove that a job survives it. Outside of tests they do nothing.

    Attributes:
        hook: called with the name of each point that is reached. For tests and the demo's crash only.
    """

    hook: Callable[[str], object] | None = None

    def reach(self, name: str) -> None:
        """Marks the point with this name."""
        if self.hook is not None:
            self.hook(name)


crash_points: Final = CrashPoints()


def make_folder(path: Path) -> None:
    """Makes a folder for its owner only; an existing one becomes private. Its name and those of its new parents are durable."""
    refuse_untrusted(path)
    with writing(path):
        new = [folder for folder in path.parents if not folder.exists()]
        for folder in (*reversed(new), path):  # parents=True would make them readable for everybody
            folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        for folder in (path, *new):  # also an existing one: a crash may have prevented its sync
            with suppress(PermissionError):  # a parent of another user, which we may not open
                sync_folder(folder.parent)
    with suppress(OSError):  # a trusted folder of another user
        path.chmod(PRIVATE_FOLDER)


TRUSTED_FOLDERS: Final = "FLINKS_TRUSTED_FOLDERS"
"""The environment variable with folders in which, at any depth, jobs may be although other users can write there."""


def refuse_untrusted(path: Path) -> None:
    """Refuses a folder or a file, existing or not, that another user could make or replace, with the rules of ssh: it, all
    its parents and the links on the way belong to the user or to root, and nobody else can write to them. In a parent with
    the sticky bit, such as /tmp, others cannot replace our files.

    Raises:
        ConfigError: another user owns a part of the path, or can write to it.
    """
    if sys.platform == "win32":
        return
    names = [name for name in os.environ.get(TRUSTED_FOLDERS, "").split(os.pathsep) if name]
    if not all(map(os.path.isabs, names)):  # a relative one would trust whatever folder the process runs in
        raise ConfigError(f"{TRUSTED_FOLDERS} must hold absolute paths, separated by '{os.pathsep}'")
    trusted = [Path(os.path.realpath(name)) for name in names]
    real = Path(os.path.realpath(path))
    for part, found in _way_to(path):
        problem = _untrusted(found, shared=part != real)
        if problem is not None and not any(part.is_relative_to(one) for one in trusted):
            raise ConfigError(
                f"{part} {problem}, so files of the job could be read or replaced. Choose a directory that only you can "
                f"write to, or correct owner and mode; if you trust these users, name {part} in {TRUSTED_FOLDERS}"
            )


if sys.platform != "win32":
    import grp
    import pwd

    def _way_to(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
        """All existing folders and links through which a path leads, the root first."""
        here = Path("/")
        rest = [*reversed(folder.absolute().parts)]
        for _ in range(_LONGEST_WAY):
            if not rest:
                return
            name = rest.pop()
            path = here.parent if name == ".." else here / name
            try:
                found = path.lstat()
            except (OSError, ValueError):  # it does not exist, or cannot be used, which the caller finds out
                return
            yield path, found
            if stat.S_ISLNK(found.st_mode):
                rest.extend(reversed(Path(os.readlink(path)).parts))
            else:
                here = path

    def _untrusted(found: os.stat_result, *, shared: bool) -> str | None:
        """The reason not to trust a file; None if there is none.

        Args:
            shared: others may write to a folder that has the sticky bit.
        """
        if found.st_uid not in (0, os.geteuid()):
            return f"belongs to another user ({_name_of(found.st_uid)})"
        writable = 0o002 if _is_private_group(found) else 0o022
        if stat.S_ISLNK(found.st_mode) or not found.st_mode & writable or (shared and found.st_mode & stat.S_ISVTX):
            return None
        return f"can be written by other users (mode {stat.S_IMODE(found.st_mode):04o})"

    def _is_private_group(found: os.stat_result) -> bool:
        """Whether the group has the owner's name and no other member, as systems with a umask of 002 make it."""
        try:
            group = grp.getgrgid(found.st_gid)
        except KeyError:
            return False
        name = _name_of(found.st_uid)
        return group.gr_name == name and set(group.gr_mem) <= {name}

    def _name_of(uid: int) -> str:
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)


def is_own(found: os.stat_result) -> bool:
    """Whether a file belongs to the user. Windows does not tell."""
    return sys.platform == "win32" or found.st_uid == os.geteuid()


_LONGEST_WAY: Final = 1000
"""Names in a path, with its links resolved; links may form a circle."""

_BINARY: Final = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


def create(path: Path) -> int:
    """Opens a new file, for its owner only. It replaces what has its name, such as a file that a crash has left, or a link."""
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, PRIVATE_FILE)


def open_to_write(path: Path, more: int = 0) -> int:
    """Opens an existing file, but not through a link.

    Args:
        more: flags of `os.open`.
    """
    return os.open(path, os.O_WRONLY | _BINARY | more)


def allow_open_files(count: int) -> int:
    """Raises the soft limit of open files to the hard one, if this process may open fewer than `count` more.

    Returns:
        how many more it may open now.
    """
    if sys.platform == "win32":  # there is no such limit
        return count
    import resource

    opened = len(os.listdir("/dev/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, _OPEN_MAX):
        if soft != resource.RLIM_INFINITY and soft < opened + count:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return count if soft == resource.RLIM_INFINITY else soft - opened


class SpareFiles:
    """Descriptors that are held until there may be no others, so that what was fetched can still be written."""

    def __init__(self, count: int = 8) -> None:
        self._held = _open_nulls(count)

    def needed(self) -> bool:
        """Whether the next file might find no descriptor. Then the run should stop, and `close` frees these."""
        if not self._held:
            return False
        found = _open_nulls(_FOR_ONE_STEP)
        short = len(found) < _FOR_ONE_STEP
        _close_all(found)
        return short

    def close(self) -> None:
        _close_all(self._held)


_FOR_ONE_STEP: Final = 4
"""Descriptors that are open at once while a shard is stored: its spool, the output, its folder, a journal."""


def _open_nulls(count: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        while len(found) < count:
            found.append(os.open(os.devnull, os.O_RDONLY | _BINARY))
    return found


def _close_all(files: list[int]) -> None:
    while files:
        os.close(files.pop())


OPEN_FILES_SHORT: Final = (
    "this process may open no more files. Raise the limit (ulimit -n), or lower concurrency and open_shards"
)
"""Why a run stops when descriptors are short."""


_OPEN_MAX: Final = 10_240
"""The highest soft limit of macOS (`OPEN_MAX`), whose hard limit is often infinite and is refused as a soft one."""


def in_pieces(lines: Iterable[bytes], size: int = 256 * 1024) -> Iterator[bytes]:
    """The lines, joined to pieces of at least `size` bytes, so that few writes are needed. The last piece may be shorter."""
    ready, held = list[bytes](), 0
    for line in lines:
        ready.append(line)
        held += len(line)
        if held >= size:
            yield b"".join(ready)
            ready, held = [], 0
    if ready:
        yield b"".join(ready)


def write_all(file: int, data: bytes | memoryview) -> None:
    """Writes all the data: `os.write` may write less."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


@contextmanager
def replaced(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Replaces a file as a whole: it keeps its old content until the block ends, and if the block fails. The block gets
    the function that writes.
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        with descriptor(create(beside)) as file:
            yield partial(write_all, file)
            os.fsync(file)
        rename_durably(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def write_durably(path: Path, data: bytes) -> None:
    """Writes a small file as a whole."""
    with replaced(path) as write:
        write(data)


def rename_durably(source: Path, target: Path) -> None:
    """Renames a synced file and makes the new name durable."""
    os.replace(source, target)
    crash_points.reach("renamed")
    sync_folder(target.parent)
    crash_points.reach("folder synced")


def sync_file(path: Path) -> None:
    """Syncs a file that another library has written."""
    with descriptor(os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))) as file:
        os.fsync(file)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    if sys.platform == "win32":  # folders cannot be opened there, and names need no sync
        return
    with descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as folder:
        os.fsync(folder)


def cannot_write(path: object, error: OSError | ValueError) -> StoreError:
    """The error for a path that cannot be written. Raise it `from None`."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a valid file name"
    return StoreError(f"{path} cannot be written: {reason}")


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Raises StoreError if the block cannot write to a path."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None


@contextmanager
def descriptor(file: int) -> Iterator[int]:
    """Closes a file descriptor after the block."""
    try:
        yield file
    finally:
        os.close(file)


def cannot_read(path: object, error: OSError) -> StoreError:
    """The error for a file that cannot be read. Raise it `from None`."""
    return StoreError(f"{path} cannot be read: {error.strerror or error}")


def size_of(path: Path) -> int | None:
    """The size of a file; None if it does not exist. A file that may not be looked at is not missing."""
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


def is_inside(path: str | os.PathLike[str], folder: Path) -> bool:
    """Whether a path is in a folder, with links resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
