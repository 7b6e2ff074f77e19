"""JSONL: one object a line, of which one field is the token. Lines that are just a string are tokens too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ..secret import Secret
from .lines import Line
from .rows import NO_KEY, Note, Row, Token, choose_column, decode


class JSONLParser:
    """Lines of JSON. The first object decides which field holds the token, unless it was named."""

    def __init__(self, column: str | None, key_column: str | None) -> None:
        self._column = column
        self._key_column = key_column
        self.ready = False

    def feed(self, line: Line) -> Iterator[Row]:
        yield self._row(line)

    def finish(self) -> Iterator[Row]:
        return iter(())

    def _row(self, line: Line) -> Row:
        text = decode(line)
        if isinstance(text, Note):
            return text
        if not text.strip(" \t"):
            return Note(line.number, "blank")
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return Note(line.number, "invalid", "the line is not valid JSON")
        if isinstance(value, str) and self._column is None and self._key_column is None:
            self.ready = True
            return Token(line.number, Secret(value))
        if not isinstance(value, dict):
            return Note(line.number, "invalid", "the line is not a JSON object")
        return self._from_object(line.number, value)

    def _from_object(self, number: int, value: dict[str, Any]) -> Row:
        if not self.ready:
            self._column = choose_column(list(value), self._column)
            if self._key_column is not None:
                choose_column(list(value), self._key_column, "--key-column")
            self.ready = True
        key = NO_KEY if self._key_column is None else value.get(self._key_column)
        if self._column not in value:
            return Note(number, "invalid", "the object has no such field as the one of the tokens", key=key)
        token = value[self._column]
        if not isinstance(token, str):
            return Note(number, "invalid", "the field of the token is not a text", key=key)
        return Token(number, Secret(token), key)
