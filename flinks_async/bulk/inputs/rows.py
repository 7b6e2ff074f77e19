"""What a line of a token file turns out to be, and the parser of plain text. CSV and JSONL are files of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, Protocol

from attrs import field, frozen

from ...endpoint import INSTANCE_NAME, check_token
from ...errors import InvalidTokenError
from ...secret import Secret
from ..errors import InputError
from .lines import BadLine, Line

# [flinks_async.bulk.inputs.check] Which rows are worth sending.


NoteKind = Literal["blank", "duplicate", "header", "continued", "invalid"]

NO_KEY: Final = object()


@frozen
class Token:
    """A line that names a token.

    Attributes:
        line: its number, from 1.
        token: as it stands there; `check` says whether it can be sent.
        key: the value of the key column; `NO_KEY` without one.
        instance: the value of the instance column; None without one.
    """

    line: int
    token: Secret
    key: Any = NO_KEY
    instance: str | None = None


@frozen
class Note:
    """A line without a token to fetch.

    Attributes:
        line: its number, from 1.
        kind: why; `continued` lines belong to the row of a line before.
        message: for an invalid line, what is wrong with it.
        token: for an invalid line whose token could be read.
        key: as in `Token`.
        instance: as in `Token`, if it is fit to be shown.
    """

    line: int
    kind: NoteKind
    message: str = ""
    token: Secret | None = None
    key: Any = field(default=NO_KEY)
    instance: str | None = None


Row = Token | Note


class RowParser(Protocol):
    """Lines into rows, in their order. Every line that is fed comes out exactly once, as a row or a `continued` note."""

    @property
    def ready(self) -> bool:
        """Whether the columns are known, so that nothing can be wrong with the file as a whole any more."""
        ...

    @property
    def held(self) -> int:
        """How many of the lines that were fed have not come out yet."""
        ...

    def feed(self, lines: Sequence[Line]) -> Iterator[Row]:
        """The rows that end in these lines, which follow those fed before.

        Raises:
            InputError: the header row cannot be read, or lacks a column.
        """
        ...

    def finish(self) -> Iterator[Row]:
        """What is left at the end of the file.

        Raises:
            InputError: the file has no header row.
        """
        ...

    def at(self, line: int) -> RowParser:
        """A parser with the same columns that begins with that line, which must be the first one of a row."""
        ...


class TextParser:
    """One token a line. Spaces and tabs around it are not part of it."""

    ready = True
    held = 0

    def __init__(self, line: int = 1) -> None:
        self._next = line

    def feed(self, lines: Sequence[Line]) -> Iterator[Row]:
        first = self._next
        self._next += len(lines)
        for number, line in enumerate(lines, first):
            if isinstance(line, BadLine):
                yield Note(number, "invalid", line.message)
            elif token := line.strip(" \t"):
                yield Token(number, Secret(token))
            else:
                yield Note(number, "blank")

    def finish(self) -> Iterator[Row]:
        return iter(())

    def at(self, line: int) -> TextParser:
        return TextParser(line)


_USUAL_NAMES: Final = frozenset({"token", "accesstoken", "flinksaccesstoken"})


def choose_column(names: Sequence[str], asked: str | None, option: str = "--column") -> str:
    """The name of a column: the one that was asked for, else the only one, else the one with a usual name.

    Raises:
        InputError: there is no such column, or more than one. The message lists the columns.
    """
    if asked is not None:
        found = [name for name in names if name == asked]
        problem = f"There is no column {asked!r} ({option})."
    elif len(names) == 1:
        return names[0]
    else:
        found = [name for name in names if name.lower().replace("_", "").replace(" ", "") in _USUAL_NAMES]
        problem = "Which column holds the tokens? Name it with --column."
    if len(found) == 1:
        return found[0]
    if found:
        problem = f"More than one column could be meant; {option} must name one that is there once."
    raise InputError(f"{problem} The columns are: {_listed(names)}.")


def choose_beside(names: Sequence[str], tokens: str, asked: str, option: str) -> str:
    """The name of another column than that of the tokens.

    Raises:
        InputError: it is that one; and as `choose_column`.
    """
    if asked == tokens:
        raise InputError(
            f"{option} must be another column than --column, which holds the tokens: its values are written to the output."
        )
    return choose_column(names, asked, option)


def _listed(names: Sequence[str], limit: int = 50) -> str:
    shown = [_shown(name) for name in names[:limit]]
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _shown(name: str) -> str:
    # Without a header row, the first row is data, and its "names" may be tokens.
    like_a_name = len(name) <= 40 and name.isprintable() and sum(map(str.isdigit, name)) < 5
    return repr(name) if like_a_name else f"(a name of {len(name)} characters that looks like data)"


def check(row: Row) -> Row:
    """The row itself, if its token can be sent; else a note that says why, and never shows the token."""
    if isinstance(row, Note):
        return row
    problem = _problem_of_token(row.token)
    key_holds_it = row.key is not NO_KEY and holds_token(row.key, row.token)
    if problem is None and key_holds_it:
        problem = "the key column holds the access token"
    instance_problem = None if row.instance is None else _problem_of_instance(row.instance, row.token)
    if problem is None and instance_problem is None:
        return row
    return Note(
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
        # Allowed on the wire, but in a file it is a byte-order mark or a space that nobody sees.
        return "the access token holds an invisible character"
    return None


def _problem_of_instance(instance: str, token: Secret) -> str | None:
    if not instance:
        return "the instance is missing"
    if not INSTANCE_NAME.fullmatch(instance):
        return "the instance column does not hold the name of an instance"
    return "the instance column holds the access token" if holds_token(instance, token) else None


def holds_token(value: Any, token: Secret) -> bool:
    """Whether a text, a number, or something inside of a list or an object contains the token."""
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
