"""How a token file is to be read."""

from __future__ import annotations

import os
from typing import Final, Literal

from attrs import evolve, frozen

from ..errors import InputError
from .rows import RowParser, TextParser
from .rows_csv import CSVParser
from .rows_jsonl import JSONLParser

Format = Literal["auto", "text", "csv", "jsonl", "parquet"]

_COMPRESSED: Final = frozenset({".gz", ".zst"})
_SUFFIXES: Final[dict[str, Format]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


@frozen
class Layout:
    """How to read the file. None and `auto` are found out from its name and its first row.

    Attributes:
        format: `text`, `csv`, `jsonl`, `parquet`, or `auto` (default): by the name (`users.csv.gz` is CSV), else text.
        column: with the tokens; without it, the only one, or the one with a usual name.
        key_column: of values that come back with the answers.
        instance_column: of the names of the instances where the tokens belong.
        delimiter: of CSV; without it a comma, in a `.tsv` file a tab.
    """

    format: Format = "auto"
    column: str | None = None
    key_column: str | None = None
    instance_column: str | None = None
    delimiter: str | None = None

    def format_of(self, path: str) -> Format:
        """The format of a file of that name; never `auto`."""
        return _SUFFIXES.get(_suffix(path), "text") if self.format == "auto" else self.format

    def for_file(self, path: str) -> Layout:
        """The same with what the name of a file says, so that the file may have another name later."""
        chosen, delimiter = self.format_of(path), self.delimiter
        if chosen == "csv" and delimiter is None:
            delimiter = "\t" if _suffix(path) == ".tsv" else ","
        return evolve(self, format=chosen, delimiter=delimiter)

    def parser(self, path: str) -> RowParser:
        """The parser for a file of that name. A Parquet file is read as JSONL (see `parquet`).

        Raises:
            InputError: options that do not go together.
        """
        named = self.for_file(path)
        chosen = named.format
        columns = {"--key-column": self.key_column, "--instance-column": self.instance_column}
        given = [option for option, name in columns.items() if name is not None]
        if chosen == "text" and (self.column is not None or given):
            options = " and ".join(["--column", *(given or ["--key-column"])])
            raise InputError(f"A text file has no columns. For {options}, add --format csv or --format jsonl.")
        if chosen != "csv" and self.delimiter is not None:
            raise InputError("--delimiter is for CSV files; add --format csv.")
        if chosen == "text":
            return TextParser()
        if chosen in ("jsonl", "parquet"):
            return JSONLParser(self.column, self.key_column, self.instance_column)
        return CSVParser(self.column, self.key_column, named.delimiter or ",", self.instance_column)


def _suffix(path: str) -> str:
    """The end of a name that tells the format."""
    stem, suffix = os.path.splitext(path.lower())
    return os.path.splitext(stem)[1] if suffix in _COMPRESSED else suffix
