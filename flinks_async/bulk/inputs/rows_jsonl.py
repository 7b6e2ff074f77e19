"""JSONL: one object a line, of which one field is the token. Lines that are just a string are tokens too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from ...secret import Secret
from .check import holds_token
from .lines import BadLine, Line
from .rows import NO_KEY, Note, Row, Token, choose_beside, choose_column


class JSONLParser:
    """Lines of JSON. The first object decides which field holds the token, unless it was named."""

    held = 0

    def __init__(self, column: str | None, key_column: str | None = None, instance_column: str | None = None) -> None:
        self._column = column
        self._key_column = key_column
        self._instance_column = instance_column
        self._next = 1
        self.ready = False

    def feed(self, lines: Sequence[Line]) -> Iterator[Row]:
        first = self._next
        self._next += len(lines)
        for number, line in enumerate(lines, first):
            yield self._row(number, line)

    def finish(self) -> Iterator[Row]:
        return iter(())

    def at(self, line: int) -> JSONLParser:
        parser = JSONLParser(self._column, self._key_column, self._instance_column)
        parser.ready = self.ready
        parser._next = line
        return parser

    def _row(self, number: int, line: Line) -> Row:
        if isinstance(line, BadLine):
            return Note(number, "invalid", line.message)
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError):
            if not line.strip(" \t"):
                return Note(number, "blank")
            return Note(number, "invalid", "the line is not valid JSON")
        if isinstance(value, dict):
            return self._from_object(number, value)
        if isinstance(value, str) and self._column is self._key_column is self._instance_column is None:
            self.ready = True
            return Token(number, Secret(value))
        return Note(number, "invalid", "the line is not a JSON object")

    def _from_object(self, number: int, value: dict[str, Any]) -> Row:
        if not self.ready:
            self._choose(list(value))
        key = NO_KEY if self._key_column is None else value.get(self._key_column)
        if self._column not in value:
            return Note(number, "invalid", "the object has no such field as the one of the tokens", key=key)
        token = value[self._column]
        if not isinstance(token, str):
            shown = None if holds_token(key, Secret(str(token))) else key
            return Note(number, "invalid", "the field of the token is not a text", key=shown)
        if self._instance_column is None:
            return Token(number, Secret(token), key)
        instance = value.get(self._instance_column)
        # What is no text is no name either, as the check says of an empty one.
        return Token(number, Secret(token), key, instance if isinstance(instance, str) else "")

    def _choose(self, names: list[str]) -> None:
        self._column = choose_column(names, self._column)
        if self._key_column is not None:
            choose_beside(names, self._column, self._key_column, "--key-column")
        if self._instance_column is not None:
            choose_beside(names, self._column, self._instance_column, "--instance-column")
        self.ready = True
