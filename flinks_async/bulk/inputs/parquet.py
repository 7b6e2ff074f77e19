"""Parquet files of tokens, read as if they were JSONL: one line for each row, with the columns that are needed.

So lines, offsets, shards and checks work as for other files. Needs pyarrow.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

import msgspec
from attrs import evolve

from ...checks import optional_import
from ..compression import Compression, Corrupt
from ..errors import InputError
from .formats import Layout
from .rows import choose_columns

if TYPE_CHECKING:
    import pyarrow

MAGIC: Final = b"PAR1"

_ROWS: Final = 1024
_BUFFER: Final = 256 * 1024
_encode: Final = msgspec.json.Encoder().encode_lines


def find_columns(raw: BinaryIO, layout: Layout) -> Layout:
    """The layout with the column of the tokens filled in."""
    schema = _open(raw).schema_arrow
    columns = choose_columns(schema.names, layout.columns)
    for field, name in columns.items():
        type_ = schema.field(name).type
        kind = _kind(type_)
        if kind is None or (kind != "text" and field != "key_column"):
            what = "text, a number, a date or a time" if field == "key_column" else "text"
            raise InputError(f"The column {name!r} must hold {what}; it is of type {type_}.", field=field)
    return evolve(layout, column=columns["column"])


class ParquetContent:
    """The rows of a file as lines of JSON, from its beginning; used like `Content`.

    Args:
        raw: the file. It is not closed.
        layout: names the columns to read.

    Attributes:
        position: bytes of lines before the next `read`.
        raw_position: about how many bytes of the file were read.
        group_end: number of rows up to the end of the row group where reading began.
    """

    compression: Compression = "none"

    def __init__(self, raw: BinaryIO, layout: Layout) -> None:
        self.position = 0
        self.raw_position = 0
        file = self._file = _open(raw)
        self._rows_in_all = max(1, file.metadata.num_rows)
        self._size = raw.seek(0, 2)
        self._columns = [name for name in layout.columns.values() if name is not None]
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
        self._batches: Iterator[Any] = self._file.iter_batches(_ROWS, row_groups=groups, columns=self._columns)

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
        return ParquetFile(raw, buffer_size=_BUFFER, pre_buffer=False)  # with it, a row group is read as a whole
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
