"""Lines and rows of a token file: lines are pulled with a limit, and become tokens or skipped lines.

The parser of plain text is here; CSV and JSONL are in `formats`. `check` decides whether a row can be sent. Parquet files are
read as if they were JSONL: one line for each row, with the columns that are needed. So lines, offsets, shards and checks work
as for other files.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BufferedReader
from itertools import accumulate
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, Protocol

import msgspec
from attrs import field, frozen

from ...checks import optional_import
from ...endpoint import INSTANCE_NAME, check_token
from ...errors import InvalidTokenError
from ...secret import Secret
from ..compression import Compression, Corrupt, Pieces
from ..errors import InputError
from .detection import is_usual_name, looks_like_data, problem_of_text, problem_of_value

if TYPE_CHECKING:
    import pyarrow

MAX_LINE: Final = 1024 * 1024
_BUFFER: Final = 64 * 1024
_LF: Final = 10


@frozen
class BadLine:
    """A line that is not text, or too long to be kept."""

    message: str


NOT_UTF8: Final = BadLine("the line is not valid UTF-8")
TOO_LONG: Final = BadLine(f"the line is longer than {MAX_LINE} bytes")

Line = str | BadLine
"""One line, without its end."""


class Lines:
    """The lines of a file, pulled one by one. A line ends with LF or CR LF; the last one may end with the file.

    Args:
        read: returns the next piece of the file; empty at its end. Its errors pass.
        position: bytes before the first line.
        max_line: most bytes of a line. A longer one is dropped piece by piece.

    Attributes:
        count: the number of lines that were pulled.
        position: bytes before the next line.
        starts: bytes before each line. The reader of the lines removes entries that it no longer needs.
    """

    def __init__(self, read: Callable[[], bytes], position: int = 0, max_line: int = MAX_LINE) -> None:
        self._file = BufferedReader(Pieces(read), _BUFFER)
        self._max_line = max_line
        self.count = 0
        self.position = position
        self.starts: deque[int] = deque()

    def __iter__(self) -> Iterator[Line]:
        readline, most, started = self._file.readline, self._max_line + 1, self.starts.append
        while raw := readline(most):
            start = self.position
            line: Line
            if raw[-1] == _LF or len(raw) < most:
                try:
                    line = raw.decode().removesuffix("\n").removesuffix("\r")
                except UnicodeDecodeError:
                    line = NOT_UTF8
            else:
                line = TOO_LONG
                while raw and raw[-1] != _LF:
                    self.position += len(raw)
                    raw = readline(most)
            self.position += len(raw)
            self.count += 1
            started(start)
            yield line

    def skip_to(self, position: int) -> None:
        """Skips lines. The position is that of a later line."""
        while self.position < position and (piece := self._file.read(min(position - self.position, _BUFFER))):
            self.position += len(piece)


SkipReason = Literal["blank", "duplicate", "header", "continued", "invalid"]

NO_KEY: Final = object()


class Token(msgspec.Struct, frozen=True):  # made for each line: an attrs class takes four times as long
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
    """Turns lines into rows. When it knows the columns, it may begin with the first line of any row, again and again."""

    @property
    def ready(self) -> bool:
        """Whether the columns are known, so that only single lines can still be wrong."""
        ...

    def rows(self, lines: Iterable[Line], first: int = 1) -> Iterator[Row]:
        """The rows, in order. Every line is returned exactly once, as a row or as `continued`.

        Args:
            first: number of the first line.

        Raises:
            InputError: the header row is missing, cannot be read, or lacks a column.
        """
        ...


class TextParser:
    """One token a line. Spaces and tabs around it are not part of it; what `problem_of_text` rejects is invalid."""

    ready = True

    def rows(self, lines: Iterable[Line], first: int = 1) -> Iterator[Row]:
        for number, line in enumerate(lines, first):
            if isinstance(line, BadLine):
                yield SkippedLine(number, "invalid", line.message)
            elif token := line.strip(" \t"):
                problem = problem_of_text(token)
                yield SkippedLine(number, "invalid", f"the line {problem}") if problem else Token(number, Secret(token))
            else:
                yield SkippedLine(number, "blank")


def choose_column(names: Sequence[str], asked: str | None, field: str = "column") -> str:
    """The name of a column: the one that was asked for, else the only one, else the one with a usual name.

    Args:
        field: of `Layout`, where the column is named.
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


def choose_columns(names: Sequence[str], asked: Mapping[str, str | None]) -> dict[str, str]:
    """The names of the columns to read, by field of `Layout`. That of the tokens is always among them.

    Args:
        asked: by field of `Layout`; None for a column that is not read, or for the usual one of the tokens.
    """
    tokens = choose_column(names, asked["column"])
    found = {"column": tokens}
    for where, name in asked.items():
        if where == "column" or name is None:
            continue
        if name == tokens:
            raise InputError(
                f"`{where}` must be another column than `column`, which holds the tokens: its values are written to the "
                "output.",
                field=where,
            )
        found[where] = choose_column(names, name, where)
    return found


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
    if problem := problem_of_value(token.reveal()):
        return f"the access token {problem}"
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
    if isinstance(value, str):
        return bool(token) and token.reveal() in value
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


# --- Parquet (needs pyarrow) -------------------------------------------------------------------------------------------

_PARQUET_ROWS: Final = 1024
_PARQUET_BUFFER: Final = 256 * 1024
_encode: Final = msgspec.json.Encoder().encode_lines


def parquet_columns(raw: BinaryIO, wanted: Mapping[str, str | None]) -> dict[str, str]:
    """As `choose_columns`; the columns must hold what can be a token or a key."""
    schema = _open(raw).schema_arrow
    columns = choose_columns(schema.names, wanted)
    for where, name in columns.items():
        type_ = schema.field(name).type
        kind = _kind(type_)
        if kind is None or (kind != "text" and where != "key_column"):
            what = "text, a number, a date or a time" if where == "key_column" else "text"
            raise InputError(f"The column {name!r} must hold {what}; it is of type {type_}.", field=where)
    return columns


class ParquetContent:
    """The rows of a file as lines of JSON, from its beginning; used like `Content`.

    Args:
        raw: the file. It is not closed.
        columns: to be read.

    Attributes:
        position: bytes of lines before the next `read`.
        raw_position: about how many bytes of the file were read.
        group_end: number of rows up to the end of the row group where reading began.
    """

    compression: Compression = "none"

    def __init__(self, raw: BinaryIO, columns: Iterable[str | None]) -> None:
        self.position = 0
        self.raw_position = 0
        file = self._file = _open(raw)
        self._rows_in_all = max(1, file.metadata.num_rows)
        self._size = raw.seek(0, 2)
        self._columns = [name for name in columns if name is not None]
        groups = range(file.num_row_groups)
        self._ends = [*accumulate(file.metadata.row_group(group).num_rows for group in groups)]
        self.go_to(0)

    def go_to(self, row: int) -> None:
        """The next `read` begins with this row, from 0. Reads nothing before its row group."""
        group = min(bisect_right(self._ends, row), max(0, len(self._ends) - 1))
        self._rows = self._ends[group - 1] if group else 0
        self._skip = row - self._rows
        self.group_end = self._ends[group] if self._ends else 0
        groups = range(group, len(self._ends))
        self._batches: Iterator[Any] = self._file.iter_batches(_PARQUET_ROWS, row_groups=groups, columns=self._columns)

    def read(self) -> bytes:
        """The next lines; empty at the end."""
        batch: Any = None
        try:
            batch = next(self._batches, None)
            while batch is not None and self._skip >= batch.num_rows:
                self._skip -= batch.num_rows
                self._rows += batch.num_rows
                batch = next(self._batches, None)
            if batch is not None and self._skip:
                self._rows += self._skip
                batch, self._skip = batch.slice(self._skip), 0
            lines = b"" if batch is None else _encode(_plain(batch).to_pylist())
        except (optional_import("pyarrow", extra="arrow").ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the file; Arrow's own have no number
                raise
            lines = None
        if lines is None:
            raise Corrupt("the Parquet data is damaged, encrypted, or not valid UTF-8")
        if batch is not None:
            self._rows += batch.num_rows
        self.position += len(lines)
        self.raw_position = self._size * self._rows // self._rows_in_all
        return lines


def _open(raw: BinaryIO) -> Any:
    pa = optional_import("pyarrow", extra="arrow")
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(
            raw, buffer_size=_PARQUET_BUFFER, pre_buffer=False
        )  # with it, a row group is read as a whole
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
    raise InputError("The file of tokens cannot be read: it is not a Parquet file, or was cut short.")


def _kind(type_: pyarrow.DataType) -> Literal["text", "json", "other"] | None:
    """The JSON form of a type's values; `other` becomes text. None if the type cannot be used."""
    types = optional_import("pyarrow", extra="arrow").types
    values = type_.value_type if types.is_dictionary(type_) else type_
    if types.is_string(values) or types.is_large_string(values) or types.is_string_view(values):
        return "text"
    if types.is_integer(values) or types.is_floating(values) or types.is_boolean(values):
        return "json"
    other = types.is_decimal(type_) or types.is_date(type_) or types.is_timestamp(type_) or types.is_time(type_)
    return "other" if other else None


def _plain(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    pa = optional_import("pyarrow", extra="arrow")
    columns = [column.cast(pa.string()) if _kind(column.type) == "other" else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
