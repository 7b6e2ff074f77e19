"""Where answers go: stores by name, standard output, and files that are complete or absent."""

from __future__ import annotations

import select
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import click
from attrs import frozen

from ..bulk import Commit, Place, Problem, Store
from ..bulk.compression import BY_SUFFIX, Compression, split_name
from ..bulk.directory import Manifest, refuse_own_files
from ..bulk.files import MANIFEST, replaced, write_all
from ..bulk.inputs import STDIN
from ..bulk.stores import from_description
from ..checks import is_url
from .console import OutputError, ReaderGone, UsageError, escaped

_JSONL: Final[dict[str, Compression]] = {"jsonl": "none", "jsonl.gz": "gzip", "jsonl.zst": "zstd"}
WITHOUT_FILE: Final = ("parquet", "postgresql")
STORES: Final = (*_JSONL, "sqlite", "duckdb", *WITHOUT_FILE)

_ATOMIC: Final[int] = getattr(select, "PIPE_BUF", 512)  # bytes that a writable pipe takes without blocking
_POLL: Final = 0.2


@frozen
class FileFormat:
    """A format, and the names of files that promise it.

    Attributes:
        name: such as JSONL.
        suffixes: ends of names; the empty one for a name without an end.
        example: a good name.
    """

    name: str
    suffixes: tuple[str, ...]
    example: str

    def refuse_other_name(self, path: str) -> None:
        """Raises:
        UsageError: the name promises another format.
        """
        suffix, compressed = split_name(path)
        if suffix not in self.suffixes or (compressed and self is not LINES):
            raise UsageError(
                f"--out: the name of the file ends in {suffix}{compressed}, but {self.name} would be written. "
                f"Use a name such as {self.example}."
            )


LINES: Final = FileFormat("JSONL", ("", ".jsonl", ".ndjson", ".txt"), "answers.jsonl or answers.jsonl.gz")
HTML: Final = FileFormat("HTML", ("", ".html", ".htm"), "report.html")
_DATABASES: Final = {
    "sqlite": FileFormat("an SQLite database", ("", ".sqlite", ".sqlite3", ".db"), "answers.sqlite"),
    "duckdb": FileFormat("a DuckDB database", ("", ".duckdb", ".db"), "answers.duckdb"),
}


def store_of(name: str | None, out: str | None) -> str:
    """The store that was chosen, else the one that fits the name of the output file.

    Raises:
        UsageError: the name of the file promises another format than that of the store.
    """
    if out is None or out == STDIN or is_url(out):
        return name or "jsonl"
    suffix, compressed = split_name(out)
    if name is None:
        databases = [database for database, file in _DATABASES.items() if suffix and suffix in file.suffixes]
        name = databases[0] if databases else f"jsonl{compressed}"
    file = LINES if name in _JSONL else _DATABASES.get(name)
    if file is not None:
        file.refuse_other_name(out)
    if compressed and _JSONL.get(name) != BY_SUFFIX[compressed]:
        raise UsageError(f"--out: the name of the file ends in {compressed}, which --store {name} does not write.")
    return name


def make_store(name: str, out: str | None, fetched_on: str | None = None) -> Store:
    """A store.

    Args:
        name: one of `STORES`.
        out: its file; None for one or many files in the job's directory.
        fetched_on: as for `ParquetStore`.

    Raises:
        UsageError: this store has no such file, or no days.
        ConfigError: a library for it is missing, or the day is none.
    """
    if fetched_on is not None and name != "parquet":
        raise UsageError("--fetched-on needs --store parquet, whose files it puts into a folder for that day.")
    if out is not None and name in WITHOUT_FILE and not is_url(out):
        where = "PGHOST, PGDATABASE and so on say where it is" if name == "postgresql" else "its files are in DIR/parts"
        raise UsageError(f"--store {name} does not take --out: {where}.")
    if is_url(out):
        return _store_at(name, str(out), fetched_on)
    description: dict[str, Any] = {"kind": name} if out is None else {"kind": name, "path": out}
    if fetched_on is not None:
        description["fetched_on"] = fetched_on
    if name in _JSONL:
        description |= {"kind": "jsonl-parts" if out is None else "jsonl", "compression": _JSONL[name]}
    return from_description(description)


def _store_at(name: str, url: str, fetched_on: str | None) -> Store:
    if name not in (*_JSONL, "parquet"):
        raise UsageError(
            f"--store {name} cannot write to a URL, because a database needs a disk or a server. Use --store jsonl or parquet "
            "there, or name a file."
        )
    if split_name(url.rpartition("/")[2])[0]:
        raise UsageError("--out: an object cannot grow, so a URL names a folder for many: s3://bucket/folder/.")
    if name == "parquet":
        return from_description({"kind": "parquet", "url": url, "fetched_on": fetched_on})
    return from_description({"kind": "jsonl-parts", "compression": _JSONL[name], "url": url})


class StdoutStore:
    """A store that prints the answers of each shard when it is done. Nothing can be read back.

    A full pipe blocks the thread of the store, and so slows the fetching. `abandon` ends that wait.
    """

    spool_compression: Compression = "none"
    keeps_spools = False

    def __init__(self) -> None:
        self._abandoned = threading.Event()

    def describe(self) -> dict[str, Any]:
        return {"kind": "stdout"}

    def open(self, place: Place, *, existing: bool = False) -> None:
        pass

    def recover(self, receipts: Mapping[int, Mapping[str, Any]]) -> Iterable[Commit]:
        return ()

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        with spool.open("rb") as lines:
            for line in lines:
                to_stdout(line, self._abandoned.is_set)
        return {}

    def verify(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        return iter(())

    def missing(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        return iter(())

    def lines(self, commits: Iterable[Commit]) -> Iterator[bytes]:
        return iter(())

    def purge(self) -> list[str]:
        return []

    def abandon(self) -> None:
        """Ends a `put` that waits for the reader of the pipe."""
        self._abandoned.set()

    def close(self) -> None:
        pass


class Command(click.Command):
    """A command whose `--help` fails if standard output cannot be written."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _show_help
        return option


def _show_help(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        to_stdout(f"{ctx.get_help()}\n".encode())
        ctx.exit()


def stdout_is_terminal() -> bool:
    try:
        return sys.stdout is not None and sys.stdout.isatty()
    except ValueError:  # closed
        return False


def to_stdout(data: bytes, abandoned: Callable[[], bool] | None = None) -> None:
    """Writes to standard output, completely and immediately. Control characters do not reach a terminal.

    Args:
        abandoned: looked at while the reader of a pipe does not read; True ends the wait.

    Raises:
        OutputError: it cannot be written; `ReaderGone` if it is a pipe that was closed, or the wait was ended.
    """
    if sys.stdout is None:
        raise OutputError("standard output cannot be written: it is closed")
    if stdout_is_terminal():
        data = escaped(data.decode("utf-8", "replace")).encode()
    try:
        try:
            number = sys.stdout.fileno()
        except (OSError, ValueError, AttributeError):  # replaced by a test
            sys.stdout.buffer.write(data)
            return
        sys.stdout.flush()
        if abandoned is None or sys.platform == "win32":  # where select knows sockets only
            write_all(number, data)
        else:
            _write_unless(abandoned, number, data)
    except BrokenPipeError:
        raise ReaderGone("standard output is closed") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is closed"
        raise OutputError(f"standard output cannot be written: {reason}") from None


def _write_unless(abandoned: Callable[[], bool], number: int, data: bytes) -> None:
    for start in range(0, len(data), _ATOMIC):
        while not select.select([], [number], [], _POLL)[1]:
            if abandoned():
                raise ReaderGone("the run was interrupted while it waited for the reader of standard output")
        write_all(number, data[start : start + _ATOMIC])


@contextmanager
def whole_file(path: str, directory: str, format_: FileFormat, *, force: bool) -> Iterator[Callable[[bytes], None]]:
    """A file about a job. It is complete after the block, and unchanged if the block fails. Gives the function to write.

    Args:
        path: of the file.
        directory: of the job.
        format_: of the file, which its name must not contradict.
        force: the file may exist.

    Raises:
        UsageError: the file exists, or its name promises another format.
        OutputError: there is something that is not a file, or no folder.
        ConfigError: the file belongs to the job.
        JobMismatchError, LedgerError: there is no job in the directory, or its manifest is broken.
        StoreError: it cannot be written.
    """
    target, folder = Path(path), Path(directory)
    beside = target.with_name(f"{target.name}.tmp")
    refuse_own_files(folder, Manifest.load(folder / MANIFEST), target, beside)
    format_.refuse_other_name(path)
    check_output(target)
    if target.exists() and not force:
        raise UsageError(f"{target} exists. Move it away, or overwrite it with --force.")
    try:
        beside.unlink(missing_ok=True)
        with replaced(target) as write:
            yield write
            if target.exists() and not force:
                raise OutputError(f"{target} was made by another program meanwhile, and is not overwritten")
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def check_output(path: Path) -> None:
    """Refuses a place where no file can be written.

    Raises:
        OutputError: there is no folder, or something that is not a file.
    """
    if is_url(path):
        raise OutputError(
            "this output must be a file on a disk. For object storage, use --out - and pipe it to another tool"
        )
    try:
        if not path.parent.is_dir():
            raise OutputError(f"{path} cannot be written: there is no folder {path.parent}")
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is not a file; for standard output, use --out -")
    except ValueError:
        raise OutputError("--out cannot be written: it is not a name for a file") from None
