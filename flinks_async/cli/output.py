"""Files that are whole or not there: written beside their final name, and renamed at the end."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from ..bulk.directory import refuse_own_files
from ..bulk.files import MANIFEST, PRIVATE_FILE, sync_folder, write_all
from ..bulk.manifest import Manifest
from .console import say
from .daemon import DaemonThread
from .usage import UsageError

PART: Final = ".part"


class OutputError(Exception):
    """The output cannot be written. The message says which file, and why."""


class ReaderGone(OutputError):
    """Nobody reads standard output any more."""


class LineFile:
    """A file of lines, `FILE.part` until `finish()`. Made when the first line comes, readable by its owner only.

    Whatever ends the run, the part holds whole lines only: each is written at once, and what a full disk cut off is
    taken away again.
    """

    def __init__(self, path: Path, *, force: bool) -> None:
        self.path = path
        self.part = path.with_name(path.name + PART)
        self.lines = 0
        self.finished = False
        self.force = force
        self._size = 0
        self._file: int | None = None

    def check(self) -> None:
        """Looks whether it may be written.

        Raises:
            Wrong: it exists already.
            OutputError: there is something that is not a file.
        """
        if not self.path.parent.is_dir():
            raise OutputError(f"{self.path} cannot be written: there is no folder {self.path.parent}")
        for path in (self.path, self.part):
            try:
                mode = path.stat().st_mode
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                self._fail(error)
            if not stat.S_ISREG(mode):
                raise OutputError(f"{path} is not a file; for standard output there is '--out -'")
            if not self.force:
                why = ", from a run that did not end" if path == self.part else ""
                raise UsageError(f"{path} exists already{why}. Move it away, or overwrite it with --force.")

    def open(self) -> None:
        """Makes the part. Does nothing if it is open."""
        if self._file is not None:
            return
        try:
            if self.force:
                self.part.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
            self._file = os.open(self.part, flags, PRIVATE_FILE)
        except (OSError, ValueError) as error:
            self._fail(error)

    async def write(self, line: bytes) -> None:
        self.write_now(line)

    def write_now(self, line: bytes) -> None:
        """Writes one line, with its line end."""
        self.open()
        assert self._file is not None
        try:
            write_all(self._file, line)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            self._fail(error)
        self._size += len(line)
        self.lines += 1

    def finish(self) -> None:
        """Gives the file its name, once its content is on the disk. A file that was never opened is not there."""
        if self._file is None:
            if self.force:
                with suppress(OSError):
                    self.path.unlink(missing_ok=True)
            return
        file, self._file = self._file, None
        try:
            try:
                os.fsync(file)
            finally:
                os.close(file)
            if not self.force and self.path.exists():
                raise OutputError(f"{self.path} has come into being meanwhile; the lines are in {self.part}")
            os.replace(self.part, self.path)
            self.finished = True
        except OSError as error:
            self._fail(error)
        with suppress(OSError):
            sync_folder(self.path.parent)

    def abandon(self) -> Path | None:
        """Closes the part and leaves it, if it holds a line. Its path, or None."""
        if self._file is None:
            return None
        file, self._file = self._file, None
        with suppress(OSError):
            os.close(file)
        if self.lines:
            return self.part
        with suppress(OSError):
            self.part.unlink()
        return None

    def discard(self) -> None:
        """Removes the part. Does nothing after `finish()`."""
        part = self.abandon()
        if part is not None:
            with suppress(OSError):
                part.unlink()

    def _fail(self, error: OSError | ValueError) -> NoReturn:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a name for a file"
        raise OutputError(f"{self.part} cannot be written: {reason}") from None


@contextmanager
def whole_file(path: str, directory: str, *, force: bool) -> Iterator[LineFile]:
    """A file about a job. It is whole after the block, and not there, or what it was before, if the block fails.

    Args:
        path: of the file.
        directory: of the job.
        force: it may exist.

    Raises:
        Wrong, OutputError: as `LineFile`.
        ConfigError: it would take the place of something that the job has or needs.
        JobMismatchError, LedgerError: there is no job in the directory, or its manifest is broken.
    """
    file = LineFile(Path(path), force=force)
    folder = Path(directory)
    refuse_own_files(folder, Manifest.load(folder / MANIFEST), file.path, file.part)
    file.check()
    try:
        file.open()
        yield file
        file.finish()
    finally:
        file.discard()


class Stdout:
    """Standard output as a file of lines. A slow reader does not stop the event loop."""

    def __init__(self) -> None:
        self.lines = 0
        self._thread = DaemonThread("flinks-async-output")

    async def write(self, line: bytes) -> None:
        await self._thread.call(lambda: _write_stdout(line))
        self.lines += 1

    def close(self) -> None:
        self._thread.close()


class StderrLines:
    """Standard error as a file of lines, when the answers go to standard output and there is no file for the others."""

    def __init__(self) -> None:
        self.lines = 0

    async def write(self, line: bytes) -> None:
        say(line.decode().rstrip("\n"))
        self.lines += 1


def to_stdout(data: bytes) -> None:
    """Writes to standard output, all of it and now.

    Raises:
        OutputError: it cannot be written; `ReaderGone` if it is a pipe that nobody reads.
    """
    _write_stdout(data)


def _write_stdout(data: bytes) -> None:
    if sys.stdout is None:
        raise OutputError("standard output cannot be written: it is closed")
    try:
        try:
            number = sys.stdout.fileno()
        except (OSError, ValueError, AttributeError):  # replaced by a test
            sys.stdout.buffer.write(data)
            return
        sys.stdout.flush()
        write_all(number, data)
    except BrokenPipeError:
        raise ReaderGone("standard output is closed") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is closed"
        raise OutputError(f"standard output cannot be written: {reason}") from None
