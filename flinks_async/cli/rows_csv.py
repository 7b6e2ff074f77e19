"""CSV with a header row. Quoted fields may hold line breaks; a quote that never ends costs one line, not the file."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Final

from ..secret import Secret
from .lines import Line
from .rows import NO_KEY, Note, Row, Token, choose_column, decode
from .usage import Wrong

_MAX_LINES_OF_A_ROW: Final = 100
_MAX_ROW: Final = 1024 * 1024


class CSVParser:
    """Rows of the token column, and of the key column if there is one."""

    def __init__(self, column: str | None, key_column: str | None, delimiter: str = ",") -> None:
        self._column = column
        self._key_column = key_column
        self._delimiter = delimiter
        self._open: list[tuple[int, str]] = []  # lines of a row whose quoted field has not ended yet
        self._width = 0
        self._token_at = 0
        self._key_at: int | None = None
        self.ready = False

    def feed(self, line: Line) -> Iterator[Row]:
        text = decode(line)
        if isinstance(text, Note):
            yield from self._give_up_all()
            if not self.ready:
                raise Wrong(f"The header row of the CSV file (line {line.number}) cannot be read: {text.message}.")
            yield text
        else:
            yield from self._add(line.number, text)

    def finish(self) -> Iterator[Row]:
        yield from self._give_up_all()
        if not self.ready:
            raise Wrong("The CSV file has no header row.")

    def _add(self, number: int, text: str) -> Iterator[Row]:
        if not self._open and '"' not in text:
            yield self._row(number, text.split(self._delimiter)) if text.strip(" \t") else Note(number, "blank")
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
            raise Wrong(f"The header row of the CSV file (line {first}) has a quote that does not end.")
        yield Note(first, "invalid", "the row has a quote that does not end, or a field that is too long")
        for number, text in others:
            yield from self._add(number, text)

    def _row(self, number: int, fields: list[str]) -> Row:
        if not self.ready:
            return self._header(number, fields)
        if len(fields) != self._width:
            return Note(number, "invalid", f"the row has {len(fields)} fields, the header has {self._width}")
        key = NO_KEY if self._key_at is None else fields[self._key_at]
        return Token(number, Secret(fields[self._token_at].strip(" \t")), key)

    def _header(self, number: int, fields: list[str]) -> Note:
        names = [name.strip() for name in fields]
        self._token_at = names.index(choose_column(names, self._column))
        if self._key_column is not None:
            self._key_at = names.index(choose_column(names, self._key_column, "--key-column"))
        self._width = len(names)
        self.ready = True
        return Note(number, "header")
