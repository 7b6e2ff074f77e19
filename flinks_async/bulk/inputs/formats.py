"""How a token file is read: its `Layout`, and the parsers of CSV and JSONL."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterable, Iterator
from io import BytesIO, TextIOWrapper
from types import NoneType
from typing import Any, Final, Literal, get_args

import msgspec
from attrs import evolve, field, frozen

from ...checks import choice, one_of, validator
from ...secret import Secret
from ..compression import split_name
from ..errors import InputError
from ..records import from_json, key_from_json
from .detection import (
    delimiter_of,
    first_lines,
    problem_of_text,
    refuse_other_than_csv,
    refuse_other_than_jsonl,
    refuse_other_than_text,
)
from .rows import (
    NO_KEY,
    BadLine,
    Line,
    Row,
    RowParser,
    SkippedLine,
    TextParser,
    Token,
    choose_columns,
    contains_token,
)

Format = Literal["auto", "text", "csv", "jsonl", "parquet"]

FORMATS: Final[dict[str, Format]] = {
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
"""Formats by the end of a file's name."""

_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_MAX_LINES_OF_A_ROW: Final = 100
_MAX_ROW: Final = 1024 * 1024


@frozen
class Layout:
    """How to read the file. None and `auto` mean that its name and its first row decide.

    Attributes:
        format: `text`, `csv`, `jsonl`, `parquet`, or `auto` (default): by the name (`users.csv.gz` is CSV), else text.
        column: holds the tokens. Default: the only column, or the one with a usual name such as `access_token`.
        key_column: holds values that are returned with the answers.
        instance_column: holds the names of the instances that the tokens belong to.
        delimiter: of CSV. Default: the one that the header row holds.
        encoding: of the text, such as `utf-16` or `cp1252`. Default: UTF-8.
        header: False for a CSV file without a header row; its columns are then called `1`, `2` and so on. Default: the
            first row is the header, and is refused if it looks like data; True accepts it anyway.
    """

    format: Format = field(default="auto", validator=validator(choice, get_args(Format)))
    column: str | None = field(default=None, validator=one_of(str, NoneType))
    key_column: str | None = field(default=None, validator=one_of(str, NoneType))
    instance_column: str | None = field(default=None, validator=one_of(str, NoneType))
    delimiter: str | None = field(default=None, validator=one_of(str, NoneType))
    encoding: str | None = field(default=None, validator=one_of(str, NoneType))
    header: bool | None = field(default=None, validator=one_of(bool, NoneType))

    @property
    def columns(self) -> dict[str, str | None]:
        """The names of the columns, by field; None for one that is not named."""
        return {"column": self.column, "key_column": self.key_column, "instance_column": self.instance_column}

    def format_of(self, path: str) -> Format:
        """The format of a file of that name; never `auto`."""
        return FORMATS.get(split_name(path)[0], "text") if self.format == "auto" else self.format

    def for_file(self, path: str) -> Layout:
        """The same layout with what the file's name decides filled in, so that the file may be renamed later."""
        return evolve(self, format=self.format_of(path), encoding=_known_encoding(self.encoding))

    def for_content(self, path: str, sample: bytes) -> Layout:
        """The same layout with what the file's name and content decide filled in.

        Args:
            sample: the beginning of the file, as UTF-8.

        Raises:
            InputError: the content does not agree with the format, so it would not be tokens that are sent.
        """
        layout = self.for_file(path)
        lines = [] if layout.format == "parquet" else first_lines(sample)
        if layout.format == "csv":
            default = "\t" if split_name(path)[0] == ".tsv" else ","
            delimiter = self.delimiter or (delimiter_of(lines, self.column, default) if lines else default)
            layout = evolve(layout, delimiter=delimiter)
            if lines:
                refuse_other_than_csv(lines, delimiter, self.column, has_header=self.header)
        elif lines and layout.format == "text":
            refuse_other_than_text(lines)
        elif lines:
            refuse_other_than_jsonl(lines)
        return layout

    def parser(self, path: str) -> RowParser:
        """The parser for a file of that name. A Parquet file is read as JSONL (see `parquet`).

        Raises:
            InputError: fields exclude each other.
        """
        named = self.for_file(path)
        chosen = named.format
        if chosen == "text":
            for field, name in self.columns.items():
                if name is not None:
                    raise InputError(
                        f"A text file has no columns, so `{field}` cannot be used. Set `format` to csv or jsonl.",
                        field=field,
                    )
        if chosen != "csv" and self.delimiter is not None:
            raise InputError("`delimiter` is for CSV files. Set `format` to csv.", field="delimiter")
        if chosen != "csv" and self.header is not None:
            raise InputError("Only CSV files have a header row. Set `format` to csv.", field="header")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise InputError("`delimiter` must be one character, such as ';'.", field="delimiter")
        if chosen == "parquet" and self.encoding is not None:
            raise InputError("A Parquet file has no `encoding`.", field="encoding")
        if chosen == "text":
            return TextParser()
        return CSVParser(self) if chosen == "csv" else JSONLParser(self)


def _known_encoding(name: str | None) -> str | None:
    """The encoding by its usual name; None for UTF-8."""
    if name is None:
        return None
    try:
        TextIOWrapper(BytesIO(), encoding=name)  # refuses what encodes no text, such as base64
        known = codecs.lookup(name).name
    except (LookupError, ValueError):
        known = ""
    if not known:
        raise InputError(
            "`encoding` is not a text encoding that Python knows, such as utf-16 or cp1252.", field="encoding"
        )
    return None if known in ("utf-8", "utf-8-sig") else known


@frozen
class _Header:
    """The number of columns, and the places of those that are read."""

    width: int
    token: int
    key: int | None
    instance: int | None


_Begun = list[tuple[int, str]]
"""The lines of a row whose quoted field has not ended yet, with their numbers."""


class CSVParser:
    """CSV with a header row. Quoted fields may hold line breaks; a quote that never ends costs one line, not the file."""

    def __init__(self, layout: Layout) -> None:
        self._has_header = layout.header is not False
        self._columns = layout.columns
        self._delimiter = layout.delimiter or ","
        self._header: _Header | None = None

    @property
    def ready(self) -> bool:
        return self._header is not None

    def rows(self, lines: Iterable[Line], first: int = 1) -> Iterator[Row]:
        begun: _Begun = []
        for number, line in enumerate(lines, first):
            if isinstance(line, BadLine):
                yield from self._give_up_all(begun)
                if not self.ready:
                    raise InputError(f"The header row of the CSV file (line {number}) cannot be read: {line.message}.")
                yield SkippedLine(number, "invalid", line.message)
            elif begun or '"' in line:
                yield from self._add(begun, number, line)
            else:
                yield self._simple(number, line)
        yield from self._give_up_all(begun)
        if not self.ready:
            raise InputError("The CSV file is empty: it has no header row.")

    def _simple(self, number: int, text: str) -> Row:
        """A row on one line, without quotes."""
        if not text.strip(" \t" + self._delimiter):  # nothing, or separators only, as spreadsheets write empty rows
            return SkippedLine(number, "blank")
        return self._row(number, text.split(self._delimiter))

    def _add(self, begun: _Begun, number: int, text: str) -> Iterator[Row]:
        if not begun and '"' not in text:
            yield self._simple(number, text)
            return
        begun.append((number, text))
        try:
            fields = self._parse(begun) if '"' in text else None
        except csv.Error:  # a field that exceeds the limit of the csv module
            yield from self._give_up(begun)
            return
        if fields is not None:
            numbers = [number for number, _ in begun]
            begun.clear()
            blank = not any(field.strip(" \t") for field in fields)
            yield SkippedLine(numbers[0], "blank") if blank else self._row(numbers[0], fields)
            for continued in numbers[1:]:
                yield SkippedLine(continued, "continued")
        elif len(begun) >= _MAX_LINES_OF_A_ROW or sum(len(part) for _, part in begun) > _MAX_ROW:
            yield from self._give_up(begun)

    def _parse(self, begun: _Begun) -> list[str] | None:
        """The fields of a row; None if its last field has not ended."""
        ended = True

        def lines() -> Iterator[str]:
            nonlocal ended
            yield from (text + "\n" for _, text in begun)
            ended = False  # the reader asks for another line

        fields = next(csv.reader(lines(), delimiter=self._delimiter), [])
        return fields if ended else None

    def _give_up_all(self, begun: _Begun) -> Iterator[Row]:
        while begun:  # each turn leaves fewer lines
            yield from self._give_up(begun)

    def _give_up(self, begun: _Begun) -> Iterator[Row]:
        """The first line has a quote that does not end: report it, and read the other lines again."""
        (first, _), *others = begun
        begun.clear()
        if not self.ready:
            raise InputError(f"The header row of the CSV file (line {first}) has a quote that does not end.")
        yield SkippedLine(first, "invalid", "the row has a quote that does not end, or a field that is too long")
        for number, text in others:
            yield from self._add(begun, number, text)

    def _row(self, number: int, fields: list[str]) -> Row:
        header = self._header
        if header is None:
            names = fields if self._has_header else [str(place) for place in range(1, len(fields) + 1)]
            header = self._header = self._read_header(names)
            if self._has_header:
                return SkippedLine(number, "header")
        if len(fields) != header.width:
            return SkippedLine(number, "invalid", f"the row has {len(fields)} fields, the header has {header.width}")
        token = fields[header.token].strip(" \t")
        if header.width == 1 and token and (problem := problem_of_text(token)):
            return SkippedLine(number, "invalid", f"the line {problem}")
        return Token(
            number,
            Secret(token),
            NO_KEY if header.key is None else fields[header.key],
            None if header.instance is None else fields[header.instance].strip(" \t"),
        )

    def _read_header(self, fields: list[str]) -> _Header:
        names = [name.strip() for name in fields]
        places = {field: names.index(name) for field, name in choose_columns(names, self._columns).items()}
        return _Header(len(names), places["column"], places.get("key_column"), places.get("instance_column"))


class JSONLParser:
    """One JSON object a line. Unless `column` names it, the first object decides which field holds the token.

    Without columns, a line that is just a JSON string is a token, too.
    """

    def __init__(self, layout: Layout) -> None:
        self._asked = layout.columns
        self._column = layout.column
        self._key_column = layout.key_column
        self._instance_column = layout.instance_column
        self.ready = False

    def rows(self, lines: Iterable[Line], first: int = 1) -> Iterator[Row]:
        for number, line in enumerate(lines, first):
            yield self._row(number, line)

    def _row(self, number: int, line: Line) -> Row:
        if isinstance(line, BadLine):
            return SkippedLine(number, "invalid", line.message)
        try:
            value = from_json(line)
        except (msgspec.DecodeError, RecursionError):
            if not line.strip(" \t"):
                return SkippedLine(number, "blank")
            return SkippedLine(number, "invalid", "the line is not valid JSON")
        if isinstance(value, dict):
            return self._from_object(number, line, value)
        if isinstance(value, str) and self._column is self._key_column is self._instance_column is None:
            self.ready = True
            return Token(number, Secret(value))
        return SkippedLine(number, "invalid", "the line is not a JSON object")

    def _from_object(self, number: int, line: str, value: dict[str, Any]) -> Row:
        if not self.ready:
            self._column = choose_columns(list(value), self._asked)["column"]
            self.ready = True
        key = NO_KEY if self._key_column is None else value.get(self._key_column)
        if key == 0 and "-0" in line and self._key_column is not None:
            key = key_from_json(_fields(line)[self._key_column])
        if self._column not in value:
            return SkippedLine(number, "invalid", "the object lacks the field of the token", key=key)
        token = value[self._column]
        if not isinstance(token, str):
            shown = None if contains_token(key, Secret(str(token))) else key
            return SkippedLine(number, "invalid", "the field of the token is not a text", key=shown)
        if self._instance_column is None:
            return Token(number, Secret(token), key)
        instance = value.get(self._instance_column)
        # Another type than text is no name: `check` reports it as missing.
        return Token(number, Secret(token), key, instance if isinstance(instance, str) else "")
