"""Lines and rows of a token file: bytes are split into lines with a limit, and a line becomes a token or a skipped line.

The parser of plain text is here; CSV and JSONL are in `formats`. `check` decides whether a row can be sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Final, Literal, Protocol

from attrs import field, frozen

from ...endpoint import INSTANCE_NAME, check_token
from ...errors import InvalidTokenError
from ...secret import Secret
from ..errors import InputError
from .detection import is_plain, is_usual_name, looks_like_data, problem_of_text

MAX_LINE: Final = 1024 * 1024


@frozen
class BadLine:
    """A line that is not text, or too long to be kept."""

    message: str


NOT_UTF8: Final = BadLine("the line is not valid UTF-8")

TOO_LONG: Final = BadLine(f"the line is longer than {MAX_LINE} bytes")

Line = str | BadLine
"""One line, without its end."""


@frozen
class LineBatch:
    """Successive lines.

    Attributes:
        lines: the lines.
        sizes: the bytes of each, including its end.
    """

    lines: list[Line]
    sizes: list[int]


class LineSplitter:
    """Cuts chunks of bytes into lines. A line ends with LF or CR LF; the last one may end with the file."""

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._rest = bytearray()  # the beginning of an incomplete line
        self._dropped = 0  # its bytes that were dropped, because it is too long

    def feed(self, chunk: bytes) -> LineBatch:
        """The lines that end in this chunk. An empty chunk is the end of the file."""
        end = chunk.rfind(b"\n") + 1
        if not chunk:
            batch = self._last()
        elif end:
            batch = self._ended(chunk, end)
        else:
            self._keep(chunk)
            return LineBatch([], [])
        self._rest.clear()
        self._dropped = 0
        self._keep(chunk[end:])
        return batch

    def _keep(self, piece: bytes) -> None:
        self._rest += piece
        if self._dropped or len(self._rest) > self._max_line:
            self._dropped += len(self._rest)
            self._rest.clear()

    def _ended(self, chunk: bytes, end: int) -> LineBatch:
        first = chunk.index(b"\n")
        if not self._dropped and len(self._rest) + first <= self._max_line:
            return self._split(bytes(self._rest) + chunk[:end])
        batch = self._split(chunk[first + 1 : end])
        size = self._dropped + len(self._rest) + first + 1
        return LineBatch([TOO_LONG, *batch.lines], [size, *batch.sizes])

    def _split(self, block: bytes) -> LineBatch:
        """Whole lines, split at once: much faster than one by one."""
        raw = block.split(b"\n")
        raw.pop()  # after the last line end
        lines: list[Line]
        if len(block) > self._max_line or not block.isascii():
            lines = [self._decoded(line) for line in raw]
        else:
            texts = block.decode("ascii").split("\n")
            texts.pop()
            lines = [text.removesuffix("\r") for text in texts] if b"\r" in block else [*texts]
        return LineBatch(lines, [len(line) + 1 for line in raw])

    def _decoded(self, line: bytes) -> Line:
        if len(line) > self._max_line:
            return TOO_LONG
        try:
            return line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError:
            return NOT_UTF8

    def _last(self) -> LineBatch:
        if self._dropped:
            return LineBatch([TOO_LONG], [self._dropped])
        return LineBatch([self._decoded(bytes(self._rest))], [len(self._rest)]) if self._rest else LineBatch([], [])


class LineOffsets:
    """Offsets of the latest lines.

    Args:
        position: bytes before the first line.
    """

    def __init__(self, position: int) -> None:
        self._end = position
        self._first = 1
        self._starts: list[int] = []

    def add(self, sizes: Sequence[int]) -> None:
        """Adds lines by their sizes."""
        starts = list(accumulate(sizes, initial=self._end))
        self._end = starts.pop()
        self._starts += starts

    def of(self, line: int) -> int:
        """Bytes before a line."""
        return self._starts[line - self._first]

    def keep(self, count: int) -> None:
        """Drops all but the last lines."""
        forgotten = len(self._starts) - count
        self._first += forgotten
        del self._starts[:forgotten]


SkipReason = Literal["blank", "duplicate", "header", "continued", "invalid"]

NO_KEY: Final = object()


@frozen
class Token:
    """A line that names a token.

    Attributes:
        line: its number, from 1.
        token: as it stands there; `check` decides whether it can be sent.
        key: the value of the key column; `NO_KEY` without one.
        instance: the value of the instance column; None without one.
    """

    line: int
    token: Secret
    key: Any = NO_KEY
    instance: str | None = None


@frozen
class SkippedLine:
    """A line without a token to fetch.

    Attributes:
        line: its number, from 1.
        kind: the reason; `continued` lines belong to the row of an earlier line.
        message: of an invalid line, what is wrong with it.
        token: of an invalid line whose token could be read.
        key: as in `Token`.
        instance: as in `Token`, if it is the name of an instance.
    """

    line: int
    kind: SkipReason
    message: str = ""
    token: Secret | None = None
    key: Any = field(default=NO_KEY)
    instance: str | None = None


Row = Token | SkippedLine


class RowParser(Protocol):
    """Turns lines into rows, in order. Every line that is fed is returned exactly once, as a row or as `continued`."""

    @property
    def ready(self) -> bool:
        """Whether the columns are known, so that only single lines can still be wrong."""
        ...

    @property
    def held(self) -> int:
        """How many of the lines that were fed have not been returned yet."""
        ...

    def feed(self, lines: Sequence[Line]) -> Iterator[Row]:
        """The rows that end in these lines, which follow those fed before.

        Raises:
            InputError: the header row cannot be read, or lacks a column.
        """
        ...

    def finish(self) -> Iterator[Row]:
        """The remaining rows, at the end of the file.

        Raises:
            InputError: the file has no header row.
        """
        ...

    def at(self, line: int) -> RowParser:
        """A parser with the same columns that begins with this line, which must be the first line of a row."""
        ...


class TextParser:
    """One token a line. Spaces and tabs around it are not part of it; what `problem_of_text` rejects is invalid."""

    ready = True
    held = 0

    def __init__(self, line: int = 1) -> None:
        self._next = line

    def feed(self, lines: Sequence[Line]) -> Iterator[Row]:
        first = self._next
        self._next += len(lines)
        for number, line in enumerate(lines, first):
            if isinstance(line, BadLine):
                yield SkippedLine(number, "invalid", line.message)
            elif token := line.strip(" \t"):
                problem = None if is_plain(token) else problem_of_text(token)
                yield SkippedLine(number, "invalid", f"the line {problem}") if problem else Token(number, Secret(token))
            else:
                yield SkippedLine(number, "blank")

    def finish(self) -> Iterator[Row]:
        return iter(())

    def at(self, line: int) -> TextParser:
        return TextParser(line)


def choose_column(names: Sequence[str], asked: str | None, field: str = "column") -> str:
    """The name of a column: the one that was asked for, else the only one, else the one with a usual name.

    Args:
        field: of `Layout`, where the column is named.

    Raises:
        InputError: there is no such column, or more than one. The message lists the columns.
    """
    if asked is not None:
        found = [name for name in names if name == asked]
        problem = f"There is no column {asked!r} (`{field}`)."
    elif len(names) == 1:
        return names[0]
    else:
        found = [name for name in names if is_usual_name(name)]
        problem = "Which column holds the tokens? Name it with `column`."
    if len(found) == 1:
        return found[0]
    if found:
        problem = f"More than one column could be meant; `{field}` must name a column that exists once."
    if any(looks_like_data(name) for name in names):
        problem += " The first row looks like data; if the file has no header row, use `header=False`."
    raise InputError(f"{problem} The columns are: {_listed(names)}.", field=field)


def choose_other_column(names: Sequence[str], tokens: str, asked: str, field: str) -> str:
    """The name of a column that does not hold the tokens.

    Raises:
        InputError: it is the column of the tokens; and as `choose_column`.
    """
    if asked == tokens:
        raise InputError(
            f"`{field}` must be another column than `column`, which holds the tokens: its values are written to the output.",
            field=field,
        )
    return choose_column(names, asked, field)


def _listed(names: Sequence[str], limit: int = 50) -> str:
    shown = [
        f"(a name of {len(name)} characters that looks like data)" if looks_like_data(name) else repr(name)
        for name in names[:limit]
    ]
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def check(row: Row) -> Row:
    """The row itself, if its token can be sent; else a skipped line with the reason, which never shows the token."""
    if isinstance(row, SkippedLine):
        return row
    problem = _problem_of_token(row.token)
    key_holds_it = row.key is not NO_KEY and contains_token(row.key, row.token)
    if problem is None and key_holds_it:
        problem = "the key column holds the access token"
    instance_problem = None if row.instance is None else _problem_of_instance(row.instance, row.token)
    if problem is None and instance_problem is None:
        return row
    return SkippedLine(
        row.line,
        "invalid",
        problem or instance_problem or "",
        row.token,
        None if key_holds_it else row.key,
        row.instance if instance_problem is None else None,
    )


def _problem_of_token(token: Secret) -> str | None:
    try:
        check_token(token)
    except InvalidTokenError as error:
        return error.message
    if not token.reveal().isprintable():
        # Allowed on the wire, but in a file it is a mistake: an invisible space.
        return "the access token holds an invisible character"
    return None


def _problem_of_instance(instance: str, token: Secret) -> str | None:
    if not instance:
        return "the instance is missing"
    if not INSTANCE_NAME.fullmatch(instance):
        return "the instance column does not hold the name of an instance"
    return "the instance column holds the access token" if contains_token(instance, token) else None


def contains_token(value: Any, token: Secret) -> bool:
    """Whether a text, a number, or anything inside a list or an object contains the token."""
    left = [value] if token else []
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
        elif isinstance(value, (str, int, float)) and token.reveal() in str(value):
            return True
    return False
