"""A file of tokens that a job can read again and again."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Final

from ..errors import InputChangedError, InputError
from .content import Content
from .layout import Layout
from .lines import LineSplitter
from .parquet import ParquetColumns, ParquetContent
from .reading import cannot_read, content_of, next_chunk
from .rows import RowParser

STDIN: Final = "-"


class InputFile:
    """A file of tokens: Parquet; or text, CSV or JSONL, plain or compressed with gzip or Zstandard.

    It is opened for each reading, and read now until its columns are known.

    Args:
        path: of the file.
        layout: how to read it.

    Attributes:
        layout: as given, with what the file's name says in the place of `auto`.
        size: of the file in bytes, as it is.
        compression: of the file.
        seekable: it can be read from the offset of any line.
        columns: a parser that knows the columns; `at` makes one for a part of the file.

    Raises:
        InputError: it cannot be read (missing, a folder, a pipe, UTF-16, a spreadsheet, cut short), options do not go
            together, or there is no such column. The message says what to do, and does not repeat the path.
    """

    def __init__(self, path: str | os.PathLike[str], layout: Layout | None = None) -> None:
        self.path = Path(path)
        self.layout = (layout or Layout()).for_file(os.fspath(path))
        if os.fspath(path) == STDIN:
            raise InputError(
                "The tokens are read more than once, so they must be in a file; standard input ('-') is read only once."
            )
        self._parquet: ParquetColumns | None = None
        self.columns = self.parser()
        self._seen = self._look()
        self.size = self._seen[0]
        if self.layout.format == "parquet":
            with self.raw() as raw:
                names = (self.layout.column, self.layout.key_column, self.layout.instance_column)
                self._parquet = ParquetColumns.find(raw, *names)
            self.columns = self.parser()
        with self.content() as content:
            self.compression = content.compression
            self._find_columns(content)
        self.seekable = self.compression == "none" and self._parquet is None

    def parser(self) -> RowParser:
        """A parser for the file from its beginning."""
        return self.layout.parser(os.fspath(self.path)) if self._parquet is None else self._parquet.parser()

    def raw(self) -> FileIO:
        """The file as it is, to be closed by the caller.

        Raises:
            InputError: it cannot be opened.
        """
        try:
            return open(self.path, "rb", buffering=0)
        except (OSError, ValueError) as error:
            raise cannot_read(error) from None

    @contextmanager
    def content(self) -> Iterator[Content | ParquetContent]:
        """Its content from the beginning.

        Raises:
            InputError: it cannot be opened, or not even its beginning can be read.
        """
        with self.raw() as file:
            yield self.content_of(file)

    def content_of(self, raw: FileIO) -> Content | ParquetContent:
        """The content of the file, which was opened by `raw`.

        Raises:
            InputError: not even its beginning can be read.
        """
        return content_of(raw) if self._parquet is None else ParquetContent(raw, self._parquet)

    def refuse_change(self) -> None:
        """To be called after a reading.

        Raises:
            InputChangedError: the file was changed since this object was made.
        """
        if self._look() != self._seen:
            raise InputChangedError("The file of tokens was changed while it was read. Try again with a file at rest.")

    def _look(self) -> tuple[int, ...]:
        try:
            found = os.stat(self.path)
        except (OSError, ValueError) as error:
            raise cannot_read(error) from None
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise InputError(
                "The tokens are read more than once, so they must be in a file; what was given is a pipe or a device."
            )
        return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev

    def _find_columns(self, content: Content | ParquetContent) -> None:
        splitter = LineSplitter()
        while not self.columns.ready and (chunk := next_chunk(content, 0)):
            for _ in self.columns.feed(splitter.feed(chunk).lines):
                pass
        if not self.columns.ready:
            for _ in (*self.columns.feed(splitter.feed(b"").lines), *self.columns.finish()):
                pass

    def __repr__(self) -> str:
        return f"InputFile({str(self.path)!r}, {self.layout!r})"
