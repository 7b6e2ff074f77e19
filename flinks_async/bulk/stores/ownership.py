"""A file that a job made at a place that the user chose, told from all others.

A small file beside the ledger says which one it is, by device and inode. It is written before the file is made, and
once more after: so the file is made by the job or it is refused, wherever a crash falls in between.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import msgspec

from ...errors import ConfigError
from ..errors import StoreError
from ..files import PRIVATE_FILE, cannot_write, sync_folder, write_durably
from .answer_files import cannot_read

# [flinks_async.bulk.stores.given] Where the user wants a store's file.


class Claim:
    """A job's hold on a file.

    Args:
        path: of the file.
        note: of the small file that says so.
    """

    def __init__(self, path: Path, note: Path) -> None:
        self.path = path
        self._note = note

    def make(self) -> None:
        """Makes the file, unless that was done.

        Raises:
            StoreError: there is a file of somebody else's, or it cannot be made.
        """
        noted = self._noted()
        if noted is None:
            if os.path.lexists(self.path):
                raise self._not_ours("exists already")
            self._write(None)
        if noted is None or noted.file is None:
            self._create()

    def make_again(self) -> None:
        """Makes the file, which was removed."""
        self._write(None)
        self._create()

    def renew(self) -> None:
        """The file was copied or moved, and is the job's nevertheless."""
        self._write(self._identity())

    def holds(self) -> bool:
        """Whether the file is there, and is the one that was made."""
        noted = self._noted()
        return noted is not None and noted.file is not None and noted.file == self._identity()

    def release(self) -> None:
        """Forgets the file."""
        try:
            for path in (self._note, self._note.with_name(f"{self._note.name}.tmp")):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._note, error) from None

    def _create(self) -> None:
        try:
            self._open()
        except StoreError:  # no file, so no note: the job may be told to write elsewhere
            with suppress(StoreError):
                self.release()
            raise
        try:
            sync_folder(self.path.parent)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self._write(self._identity())

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        try:
            try:
                os.close(os.open(self.path, flags, PRIVATE_FILE))
            except FileExistsError:  # made just before a crash; or by somebody else, and then it is not empty
                found = os.lstat(self.path)
                if not stat.S_ISREG(found.st_mode) or found.st_size:
                    raise self._not_ours("exists already") from None
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise cannot_read(self.path, error) from None
        return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None

    def _noted(self) -> _Note | None:
        try:
            return msgspec.json.decode(self._note.read_bytes(), type=_Note)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise cannot_read(self._note, error) from None
        except msgspec.DecodeError:
            pass
        raise StoreError(f"{self._note} is broken: it says which file is the job's output")

    def _write(self, file: tuple[int, int] | None) -> None:
        write_durably(self._note, msgspec.json.encode(_Note(str(self.path), file)) + b"\n")

    def _not_ours(self, what: str) -> StoreError:
        return StoreError(f"{self.path} {what}, and is not this job's. Move it away, or let the job write elsewhere")


class _Note(msgspec.Struct):
    """`file` is device and inode; None until it is made."""

    path: str
    file: tuple[int, int] | None


def given_path(path: str | os.PathLike[str] | None) -> Path | None:
    """The path in a form that stays right when the working directory changes; None where none is given.

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


def in_folder(path: Path, folder: Path) -> bool:
    """Whether a file is in a folder, by whatever names."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
