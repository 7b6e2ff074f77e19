"""What a line of a token file turns out to be, the parser of plain text, and the check of every row before it is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, Protocol

from attrs import field, frozen

from ...endpoint import INSTANCE_NAME, check_token
from ...errors import InvalidTokenError
from ...secret import Secret
from ..errors import InputError
from .detection import is_plain, is_usual_name, looks_like_data, problem_of_text
from .lines import BadLine, Line

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
        # Allowed on the wire, but in a file it is a mistake: a space that nobody sees.
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
