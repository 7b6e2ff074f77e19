"""CSV with a header row. Quoted fields may hold line breaks; a quote that never ends costs one line, not the file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Final

from attrs import frozen

from ...secret import Secret
from ..errors import InputError
from .lines import BadLine, Line
from .rows import NO_KEY, Note, Row, Token, choose_beside, choose_column

_MAX_LINES_OF_A_ROW: Final = 100
_MAX_ROW: Final = 1024 * 1024


@frozen
class _Header:
    """How many columns there are, and where those of interest are."""

    width: int
    token: int
    key: int | None
    instance: int | None


class CSVParser:
    """Rows of the token column, and of the key and instance columns if there are."""

    def __init__(
        self,
        column: str | None,
        key_column: str | None = None,
        delimiter: str = ",",
        instance_column: str | None = None,
    ) -> None:
        self._column = column
        self._key_column = key_column
        self._delimiter = delimiter
        self._instance_column = instance_column
        self._next = 1
        self._open: list[tuple[int, str]] = []  # lines of a row whose quoted field has not ended yet
        self._header: _Header | None = None

    @property
    def ready(self) -> bool:
        return self._header is not None

    @property
    def held(self) -> int:
        return len(self._open)

    def feed(self, lines: Sequence[Line]) -> Iterator[Row]:
        first = self._next
        self._next += len(lines)
        for number, line in enumerate(lines, first):
            if isinstance(line, BadLine):
                yield from self._give_up_all()
                if not self.ready:
                    raise InputError(f"The header row of the CSV file (line {number}) cannot be read: {line.message}.")
                yield Note(number, "invalid", line.message)
            elif self._open or '"' in line:
                yield from self._add(number, line)
            else:
                yield self._simple(number, line)

    def finish(self) -> Iterator[Row]:
        yield from self._give_up_all()
        if not self.ready:
            raise InputError("The CSV file has no header row.")

    def at(self, line: int) -> CSVParser:
        parser = CSVParser(self._column, self._key_column, self._delimiter, self._instance_column)
        parser._header = self._header
        parser._next = line
        return parser

    def _simple(self, number: int, text: str) -> Row:
        """A row on one line, without quotes."""
        return self._row(number, text.split(self._delimiter)) if text.strip(" \t") else Note(number, "blank")

    def _add(self, number: int, text: str) -> Iterator[Row]:
        if not self._open and '"' not in text:
            yield self._simple(number, text)
            return
        self._open.append((number, text))
        try:
            fields = self._parse() if '"' in text else None
        except csv.Error:  # a field that is larger than the csv module takes
            yield from self._give_up()
            return
        if fields is not None:
            numbers = [number for number, _ in self._open]
            self._open.clear()
            yield self._row(numbers[0], fields)
            for continued in numbers[1:]:
                yield Note(continued, "continued")
        elif len(self._open) >= _MAX_LINES_OF_A_ROW or sum(len(part) for _, part in self._open) > _MAX_ROW:
            yield from self._give_up()

    def _parse(self) -> list[str] | None:
        """The fields of the open lines; None if their last field has not ended."""
        ended = True

        def lines() -> Iterator[str]:
            nonlocal ended
            yield from (text + "\n" for _, text in self._open)
            ended = False  # the reader asks for another line

        fields = next(csv.reader(lines(), delimiter=self._delimiter), [])
        return fields if ended else None

    def _give_up_all(self) -> Iterator[Row]:
        while self._open:  # each turn leaves fewer lines
            yield from self._give_up()

    def _give_up(self) -> Iterator[Row]:
        """The first open line has a quote that does not end: report it, and read the others anew."""
        (first, _), *others = self._open
        self._open.clear()
        if not self.ready:
            raise InputError(f"The header row of the CSV file (line {first}) has a quote that does not end.")
        yield Note(first, "invalid", "the row has a quote that does not end, or a field that is too long")
        for number, text in others:
            yield from self._add(number, text)

    def _row(self, number: int, fields: list[str]) -> Row:
        header = self._header
        if header is None:
            self._header = self._read_header(fields)
            return Note(number, "header")
        if len(fields) != header.width:
            return Note(number, "invalid", f"the row has {len(fields)} fields, the header has {header.width}")
        return Token(
            number,
            Secret(fields[header.token].strip(" \t")),
            NO_KEY if header.key is None else fields[header.key],
            None if header.instance is None else fields[header.instance].strip(" \t"),
        )

    def _read_header(self, fields: list[str]) -> _Header:
        names = [name.strip() for name in fields]
        tokens = choose_column(names, self._column)

        def place(asked: str | None, option: str) -> int | None:
            return None if asked is None else names.index(choose_beside(names, tokens, asked, option))

        return _Header(
            len(names),
            names.index(tokens),
            place(self._key_column, "--key-column"),
            place(self._instance_column, "--instance-column"),
        )
