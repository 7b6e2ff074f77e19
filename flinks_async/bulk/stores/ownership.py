"""Proves that an output file at a path of the user's belongs to the job.

A note beside the ledger records the file's device and inode. It is written before the file is created, and again
afterwards. So wherever a crash falls, an existing file either was created by the job or is refused.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import msgspec

from ..errors import StoreError
from ..files import PRIVATE_FILE, cannot_read, cannot_write, sync_folder, write_durably


class OwnedFile:
    """An output file that belongs to one job.

    Args:
        path: the output file.
        note: the file that records its identity.
    """

    def __init__(self, path: Path, note: Path) -> None:
        self.path = path
        self._note = note

    def create(self) -> None:
        """Creates the file, unless the job has done so before.

        Raises:
            StoreError: another file is there, or it cannot be created.
        """
        noted = self._noted()
        if noted is None:
            if os.path.lexists(self.path):
                raise self._not_ours()
            self._write(None)
        if noted is None or noted.file is None:
            self._create()

    def create_again(self) -> None:
        """Creates the file after it was removed."""
        self._write(None)
        self._create()

    def adopt(self) -> None:
        """Records that the file, which was copied or moved, is the job's."""
        self._write(self._identity())

    def is_ours(self) -> bool:
        """Whether the file exists and is the one that the job created."""
        noted = self._noted()
        return noted is not None and noted.file is not None and noted.file == self._identity()

    def forget(self) -> None:
        """Removes the note."""
        try:
            for path in (self._note, self._note.with_name(f"{self._note.name}.tmp")):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._note, error) from None

    def _create(self) -> None:
        try:
            self._open()
        except StoreError:  # without a file there must be no note, so that the job may write elsewhere
            with suppress(StoreError):
                self.forget()
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
            except FileExistsError:  # created just before a crash; a file of somebody else is not empty
                found = os.lstat(self.path)
                if not stat.S_ISREG(found.st_mode) or found.st_size:
                    raise self._not_ours() from None
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
        raise StoreError(f"{self._note} is broken; it records which file is the job's output")

    def _write(self, file: tuple[int, int] | None) -> None:
        write_durably(self._note, msgspec.json.encode(_Note(str(self.path), file)) + b"\n")

    def _not_ours(self) -> StoreError:
        return StoreError(
            f"{self.path} exists already and is not this job's. Move it away, or let the job write elsewhere"
        )


class _Note(msgspec.Struct):
    """`file` is device and inode; None until the file is created."""

    path: str
    file: tuple[int, int] | None
