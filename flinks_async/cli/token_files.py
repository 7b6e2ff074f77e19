"""A file of tokens: opened, its format found out, and read piece by piece while the fetching goes on."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, Final, Literal

from attrs import define, field, frozen

from .daemon import DaemonThread
from .lines import LineSplitter
from .one_value import STDIN
from .rows import Row, RowParser, TextParser
from .rows_csv import CSVParser
from .rows_jsonl import JSONLParser
from .usage import Wrong

Format = Literal["auto", "text", "csv", "jsonl"]

_CHUNK: Final = 64 * 1024
_BOM: Final = b"\xef\xbb\xbf"
_FOREIGN: Final = {
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
    b"\x1f\x8b": "is compressed; give the output of 'gzip -dc' as '-'",
    b"PK\x03\x04": "is a ZIP archive or a spreadsheet; export it as CSV",
}
_SUFFIXES: Final[dict[str, Format]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}


@frozen
class Layout:
    """How to read the file; None and `auto` are found out from its name and its first row."""

    format: Format = "auto"
    column: str | None = None
    key_column: str | None = None
    delimiter: str | None = None

    def parser(self, path: str) -> RowParser:
        """The parser for a file of that name.

        Raises:
            Wrong: options that do not go together.
        """
        suffix = os.path.splitext(path)[1].lower()
        chosen = _SUFFIXES.get(suffix, "text") if self.format == "auto" else self.format
        if chosen == "text" and (self.column is not None or self.key_column is not None):
            raise Wrong(
                "A text file has no columns. For --column and --key-column, add --format csv or --format jsonl."
            )
        if chosen != "csv" and self.delimiter is not None:
            raise Wrong("--delimiter is for CSV files; add --format csv.")
        if chosen == "text":
            return TextParser()
        if self.key_column is not None and self.key_column == self.column:
            raise Wrong("--key-column must be another column than --column: keys are written to the output.")
        if chosen == "jsonl":
            return JSONLParser(self.column, self.key_column)
        return CSVParser(self.column, self.key_column, self.delimiter or ("\t" if suffix == ".tsv" else ","))


@define(eq=False)
class TokenFile:
    """An open file of tokens. `open_tokens` makes one.

    Attributes:
        size: of the file in bytes; None if it is not a regular file.
        position: bytes whose rows were given out so far.
            error: why reading broke off.
    """

    size: int | None
    _read: Callable[[], bytes] = field(repr=False)
    _close: Callable[[], object] = field(repr=False)
    _parser: RowParser = field(repr=False)
    position: int = field(default=0, init=False)
    error: OSError | None = field(default=None, init=False)
    _splitter: LineSplitter = field(factory=LineSplitter, init=False, repr=False)
    _backlog: list[Row] = field(factory=list, init=False, repr=False)
    _taken: int = field(default=0, init=False)
    _ended: bool = field(default=False, init=False)

    def begin(self) -> None:
        """Reads until the columns are known, so that a wrong file is told before anything is fetched."""
        while not self._ended:
            self._backlog += self._rows(self._read() if self._taken else self._read_first())
            if self._parser.ready:
                return

    def _read_first(self) -> bytes:
        head = b""
        while len(head) < 4 and (piece := self._read()):
            head += piece
        for magic, problem in _FOREIGN.items():
            if head.startswith(magic):
                raise Wrong(f"The file of tokens {problem}.")
        self._taken += len(head) - len(head.removeprefix(_BOM))
        return head.removeprefix(_BOM)

    async def rows(self, stop: asyncio.Event) -> AsyncGenerator[Row, None]:
        """The rows, until the file ends, cannot be read any more (`error`), or `stop` is set."""
        thread = DaemonThread("flinks-async-input")
        stopped = asyncio.ensure_future(stop.wait())
        chunk: asyncio.Future[bytes] | None = None
        try:
            while True:
                backlog, self._backlog = self._backlog, []
                start = self.position
                for count, row in enumerate(backlog, start=1):
                    if stop.is_set():
                        return
                    self.position = start + (self._taken - start) * count // len(backlog)
                    yield row
                if self._ended:
                    return
                chunk = thread.call(self._read)
                waiting: set[asyncio.Future[Any]] = {chunk, stopped}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not chunk.done():  # a pipe that says nothing
                    return
                try:
                    self._backlog = list(self._rows(chunk.result()))
                except OSError as error:
                    self.error = error
                    return
        finally:
            stopped.cancel()
            if chunk is not None:
                chunk.cancel()
            thread.close()

    def _rows(self, chunk: bytes) -> Iterator[Row]:
        self._taken += len(chunk)
        for line in self._splitter.feed(chunk):
            yield from self._parser.feed(line)
        if not chunk:
            self._ended = True
            yield from self._parser.finish()

    def close(self) -> None:
        self._close()


def open_tokens(path: str, layout: Layout) -> TokenFile:
    """Opens a file of tokens ('-' is standard input) and reads its beginning.

    Raises:
        Wrong: it cannot be read, or is not in the format asked for. The message does not repeat the path.
    """
    parser = layout.parser(path)
    try:
        file = _open(path, parser)
        try:
            file.begin()
        except BaseException:
            file.close()
            raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a file"
        raise Wrong(f"The file of tokens cannot be read: {reason}.") from None
    return file


def _open(path: str, parser: RowParser) -> TokenFile:
    if path != STDIN:
        raw: Any = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by TokenFile.close
    else:
        raw = _stdin()
    try:
        regular = path != STDIN and os.path.isfile(path)
        size = os.fstat(raw.fileno()).st_size if regular else None
    except (OSError, ValueError):
        size = None
    return TokenFile(size, lambda: raw.read(_CHUNK) or b"", raw.close if path != STDIN else lambda: None, parser)


def _stdin() -> Any:
    """Standard input without a buffer: a thread that waits in a buffer would hold its lock at exit."""
    if sys.stdin is None:
        raise OSError(errno.EBADF, "there is no standard input")
    try:
        number = sys.stdin.fileno()
    except (OSError, ValueError, AttributeError):  # replaced by a test
        return sys.stdin.buffer
    return open(number, "rb", buffering=0, closefd=False)
