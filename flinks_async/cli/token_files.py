"""A file of tokens, or standard input, read piece by piece while the fetching goes on."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from attrs import define, field

from ..bulk.compression import CompressedDataError
from ..bulk.errors import InputError
from ..bulk.inputs import Layout, Row
from ..bulk.inputs.lines import LineSplitter
from ..bulk.inputs.rows import RowParser
from ..bulk.inputs.source import Content, cannot_read, content_of, reason_of
from .daemon import DaemonThread
from .secret_input import STDIN
from .usage import UsageError, message_of


@define(eq=False)
class TokenFile:
    """An open file of tokens. `open_tokens` makes one.

    Attributes:
        size: of the file in bytes; None if it is not a regular file.
        position: bytes of the file whose rows were given out so far.
        error: why reading broke off, in words.
    """

    size: int | None
    _content: Content = field(repr=False)
    _close: Callable[[], object] = field(repr=False)
    _parser: RowParser = field(repr=False)
    position: int = field(default=0, init=False)
    error: str | None = field(default=None, init=False)
    _splitter: LineSplitter = field(factory=LineSplitter, init=False, repr=False)
    _backlog: list[Row] = field(factory=list, init=False, repr=False)
    _ended: bool = field(default=False, init=False)

    def begin(self) -> None:
        """Reads until the columns are known, so that a wrong file is told before anything is fetched."""
        while not self._ended:
            self._backlog += self._rows(self._content.read())
            if self._parser.ready:
                return

    async def rows(self, stop: asyncio.Event) -> AsyncGenerator[Row, None]:
        """The rows, until the file ends, cannot be read any more (`error`), or `stop` is set."""
        thread = DaemonThread("flinks-async-input")
        stopped = asyncio.ensure_future(stop.wait())
        chunk: asyncio.Future[bytes] | None = None
        try:
            while True:
                backlog, self._backlog = self._backlog, []
                start, end = self.position, self._content.raw_position
                for count, row in enumerate(backlog, start=1):
                    if stop.is_set():
                        return
                    self.position = start + (end - start) * count // len(backlog)
                    yield row
                if self._ended:
                    return
                chunk = thread.call(self._content.read)
                waiting: set[asyncio.Future[Any]] = {chunk, stopped}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not chunk.done():  # a pipe that says nothing
                    return
                try:
                    self._backlog = list(self._rows(chunk.result()))
                except (OSError, CompressedDataError) as error:
                    self.error = reason_of(error)
                    return
        finally:
            stopped.cancel()
            if chunk is not None:
                chunk.cancel()
            thread.close()

    def _rows(self, chunk: bytes) -> Iterator[Row]:
        yield from self._parser.feed(self._splitter.feed(chunk).lines)
        if not chunk:
            self._ended = True
            yield from self._parser.finish()

    def close(self) -> None:
        self._close()


def open_tokens(path: str, layout: Layout) -> TokenFile:
    """Opens a file of tokens ('-' is standard input) and reads its beginning.

    Raises:
        Wrong: it cannot be read, or is not in the format asked for. The message does not repeat the path.
        ConfigError: the library that decompresses it is not installed.
    """
    try:
        layout.parser(path)
        return _open(path, layout.for_file(path))
    except InputError as error:
        raise UsageError(message_of(error)) from None


def _open(path: str, layout: Layout) -> TokenFile:
    try:
        raw: Any = _stdin() if path == STDIN else open(path, "rb", buffering=0)  # noqa: SIM115 - closed by TokenFile.close
    except (OSError, ValueError) as error:
        raise cannot_read(error) from None
    close = (lambda: None) if path == STDIN else raw.close
    try:
        content = content_of(raw, layout.encoding)
        parser = layout.for_content(path, content.peek()).parser(path)
        file = TokenFile(_size(path, raw), content, close, parser)
        file.begin()
    except (OSError, CompressedDataError) as error:
        close()
        raise cannot_read(error) from None
    except BaseException:
        close()
        raise
    return file


def _size(path: str, raw: Any) -> int | None:
    regular = path != STDIN and os.path.isfile(path)
    return os.fstat(raw.fileno()).st_size if regular else None


def _stdin() -> Any:
    """Standard input without a buffer: a thread that waits in a buffer would hold its lock at exit."""
    if sys.stdin is None:
        raise OSError(errno.EBADF, "there is no standard input")
    try:
        number = sys.stdin.fileno()
    except (OSError, ValueError, AttributeError):  # replaced by a test
        return sys.stdin.buffer
    return open(number, "rb", buffering=0, closefd=False)
