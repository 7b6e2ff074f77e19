"""The directory of a job: its lock, its manifest, and what protects files that are not the job's.

The manifest says what a job is. It is written once, when the job is created, and compared with the arguments of each resume.
What is refused here raises ConfigError; what cannot be written, StoreError.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from attrs import asdict, evolve, frozen

from .. import checks
from ..checks import MOST, is_url, optional_import
from ..errors import ConfigError, FlinksError
from .errors import InputError, JobLockedError, JobMismatchError, LedgerError
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
    newer_version,
    refuse_untrusted,
    write_durably,
    writing,
)
from .inputs import Layout
from .ledger import Ledger
from .selection import Selection

VERSION: Final = 2
"""Version of the manifest. Only one with a selection has 2, so that an older version refuses to resume it without."""

_CHOICES: Final = {
    "tables": "`tables`",
    "columns": "`columns`",
    "drop": "`drop`",
    "pseudonyms": "`pseudonyms`",
    "key_fingerprint": "the fingerprint of the key of pseudonyms",
}
"""The parts of a selection that must stay, in words."""


@frozen
class Manifest:
    """A job's identity. It holds no token and no secret.

    Attributes:
        job: 32 hexadecimal digits.
        created: UTC, ISO 8601.
        path: absolute path of the input, or its URL.
        size: bytes of the input.
        sha256: SHA-256 of the input's bytes; at a URL, of its ETag and version (see `digest`).
        layout: how the input is read.
        origin: the host that answers, by the name of the instance ("" for rows that name none).
        store: the description of the store. In the file, a path in the job's directory is relative, so that the directory
            may be moved.
        shard_size: tokens in a shard.
        selection: what is kept of the answers (`Selection.describe`); None for everything.
        version: format of this file.
    """

    job: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    created: str
    path: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    layout: dict[str, Any]
    origin: dict[str, str]
    store: dict[str, Any]
    shard_size: Annotated[int, msgspec.Meta(ge=1, le=int(MOST))]
    selection: dict[str, Any] | None = None
    version: Annotated[int, msgspec.Meta(ge=1)] = 1

    def to_json(self) -> bytes:
        """The content of the file.

        Raises:
            InputError: a path is not UTF-8, so it could not be found again.
            ConfigError: `store` is not JSON.
        """
        try:
            return msgspec.json.format(msgspec.json.encode(asdict(self)), indent=2) + b"\n"
        except UnicodeEncodeError:
            problem: FlinksError = InputError(
                "The path of the file of tokens or of the output is not UTF-8. Rename the file or its folder."
            )
        except (TypeError, ValueError):
            problem = ConfigError("the store must describe itself as JSON")
        raise problem

    def save(self, path: Path) -> None:
        """Writes the file."""
        write_durably(path, evolve(self, store=_relative(self.store, path.parent)).to_json())

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Reads the file.

        Raises:
            ConfigError: another user can write to the directory of the job.
            JobMismatchError: it does not exist.
            LedgerError: it is broken, or was written by a newer version.
        """
        path = checks.path("path", path)
        _refuse_untrusted(path.parent)
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            data = None
        except OSError as error:
            raise LedgerError(f"{path} cannot be read: {error.strerror}") from None
        if data is None:
            beside = path.parent.with_name(f"{path.parent.name}.job")
            hint = f". The job of this output is in {beside}" if (beside / path.name).exists() else ""
            raise JobMismatchError(f"{path.parent} is not the directory of a job: it has no {path.name}{hint}")
        try:
            values = msgspec.json.decode(data)
            version = values["version"]
            if version > VERSION:
                raise LedgerError(newer_version(path, version))
            manifest = msgspec.convert(values, cls)
            msgspec.convert(manifest.layout, Layout)
            msgspec.convert(manifest.store.get("path"), str | None)
            chosen = manifest.selection
            if chosen is not None:
                chosen = Selection.from_description(chosen).describe()
            if version == (1 if chosen is None else VERSION):
                return evolve(manifest, store=_absolute(manifest.store, path.parent), selection=chosen)
        except (msgspec.DecodeError, TypeError, KeyError, ConfigError):
            pass
        raise LedgerError(f"{path} is broken")

    def same_store(self, described: Mapping[str, Any], directory: Path) -> bool:
        """Whether a description is that of the job's store, even if the job's directory was moved."""
        return _relative(self.store, directory) == _relative(described, directory)

    def refuse_other(self, other: Manifest, directory: Path) -> None:
        """Compares with the job that is asked for now.

        Raises:
            JobMismatchError: they differ. The message lists the differences.
        """
        if self.same_store(other.store, directory):
            other = evolve(other, store=self.store)
        found = list(_differences(self, other))
        if found:
            raise JobMismatchError(
                f"{directory} belongs to another job: {'; '.join(found)}. "
                "Use another directory and another output, or the settings of the job"
            )


def _relative(store: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """A store's description; its path is relative if it is in the job's directory."""
    path = store.get("path")
    if isinstance(path, str):
        try:  # resolves the folder only, because the file may be a link
            inside = Path(os.path.realpath(Path(path).parent)).relative_to(os.path.realpath(directory))
        except ValueError:
            return dict(store)
        return {**store, "path": (inside / Path(path).name).as_posix()}
    return dict(store)


def _absolute(store: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """A store's description with an absolute path."""
    path = store.get("path")
    return {**store, "path": str(directory.absolute() / path)} if isinstance(path, str) else dict(store)


def _differences(was: Manifest, now: Manifest) -> list[str]:
    found = []
    if (was.size, was.sha256) != (now.size, now.sha256):
        how = "ETag" if is_url(now.path) else "SHA-256"
        found.append(f"the file of tokens has changed (from {was.size:,} to {now.size:,} bytes; compared by {how})")
    for name in ("layout", "origin", "store"):
        before, after = getattr(was, name), getattr(now, name)
        keys = sorted({*before, *after})
        if name == "store" and before.get("kind") != after.get("kind"):
            keys = ["kind"]  # other settings of two kinds of stores cannot be compared
        for key in keys:
            if name == "origin" and not (key in before and key in after):
                continue  # a new or missing instance does not affect the answers of the others
            if before.get(key) != after.get(key):
                found.append(f"{_subject(name, key)} was {_shown(before.get(key))} and is now {_shown(after.get(key))}")
    chosen, now_chosen = was.selection or {}, now.selection or {}
    for choice, words in _CHOICES.items():
        before, after = chosen.get(choice) or None, now_chosen.get(choice) or None
        if before != after:
            found.append(f"{words} was {_shown(before)} and is now {_shown(after)}")
    return found


def _subject(name: str, key: str) -> str:
    """Names a difference in words. Fields of `Layout` are in backticks."""
    if name == "layout":
        return f"`{key}`"
    if name == "origin":
        return f"the host of the instance {key}" if key else "the host"
    return "the store" if key == "kind" else f"the {key} of the store"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    names = {None: "not set", "jsonl-parts": "one JSONL file per shard", "jsonl": "one JSONL file"}
    return names.get(value, str(value)) if isinstance(value, str | None) else str(value)


def enter(folder: Path, resources: ExitStack, *, new: bool = False) -> None:
    """Locks the directory of a job until `resources` are closed.

    Args:
        new: create the directory if it is missing; an empty one is accepted.

    Raises:
        ConfigError: it is on a network file system, or another user can write to it.
        JobMismatchError: it holds something else than a job.
        JobLockedError: another process works on the job.
        StoreError: it cannot be created.
    """
    refuse_network(folder)
    if not os.path.exists(folder / MANIFEST):
        if not new:
            raise JobMismatchError(f"{folder} is not the directory of a job: it has no {MANIFEST}")
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise JobMismatchError(f"{folder} is a file, but a job needs a directory. Choose another name")
        _refuse_untrusted(folder)
        _refuse_foreign(folder)
    make_folder(folder)
    _lock(folder, resources)


def _refuse_untrusted(folder: Path) -> None:
    """As `refuse_untrusted`, also for the files that a job trusts."""
    for path in (folder, *(folder / name for name in sorted(OWN))):
        if path != folder and os.path.islink(path):
            raise ConfigError(f"{path} is a link, and a job makes none. Remove it")
        refuse_untrusted(path)


def _refuse_foreign(folder: Path) -> None:
    if not os.path.exists(folder):
        return
    with writing(folder):
        foreign = sorted({entry.name for entry in folder.iterdir()} - BEFORE_MANIFEST)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise JobMismatchError(
            f"{folder} is not the directory of a job and not empty: it holds {', '.join(foreign[:3])}{more}. "
            "Choose a new directory"
        )


def refuse_own_name(folder: Path, output: str | None) -> None:
    """Refuses an output in the directory of the job under a name that the job uses itself."""
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
"""Suffixes of the files that SQLite and DuckDB keep beside a database."""


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
    with writing(folder / LOCK), suppress(filelock.Timeout):
        held.acquire()
    if not held.is_locked:
        raise JobLockedError(f"another process works on the job in {folder}. Wait until it ends, or stop it")
    resources.callback(held.release)


def new_ledger(folder: Path, job: str) -> Ledger:
    """Creates a ledger; it replaces the ledger of a job that never began."""
    with writing(folder / LEDGER):
        for name in LEDGER_FILES:
            (folder / name).unlink(missing_ok=True)
    ledger = Ledger(folder / LEDGER, new=True)
    try:
        ledger.put("key", secrets.token_bytes(32))
        ledger.put("job", job)
    except BaseException:
        ledger.close()
        raise
    return ledger


def empty(folder: Path) -> None:
    """Removes a folder of temporary files, if it exists. A worker on a cluster may write and remove files there meanwhile."""
    for left in reversed(range(10)):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            if not folder.exists():
                return
            if not left or error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise cannot_write(folder, error) from None
        else:
            return


_MOUNTS: Final = Path("/proc/self/mountinfo")

_NETWORK_TYPES: Final = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "glusterfs", "lustre", "gpfs", "beegfs",
        "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.ceph-fuse",
    }
)  # fmt: skip


def refuse_network(folder: Path) -> None:
    """Refuses a folder on a network file system, because locks and fsync may silently do nothing there. Only Linux tells."""
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
