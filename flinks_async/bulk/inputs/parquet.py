"""Parquet files of tokens, read as if they were JSONL: one line for each row, with the columns that are needed.

So lines, offsets, shards and checks work as for other files. Needs pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    """

    compression: Compression = "none"

    def __init__(self, raw: BinaryIO, layout: Layout) -> None:
        self.position = 0
        self.raw_position = 0
        file = _open(raw)
        self._rows_in_all = max(1, file.metadata.num_rows)
        self._size = raw.seek(0, 2)
        self._rows = 0
        columns = [name for name in layout.columns.values() if name is not None]
        self._batches: Iterator[Any] = file.iter_batches(_ROWS, columns=columns)

    def read(self) -> bytes:
        """The next lines; empty at the end."""
        batch: Any = None
        try:
            batch = next(self._batches, None)
            lines = b"" if batch is None else _encode(_plain(batch).to_pylist())
        except (optional_import("pyarrow", extra="arrow").ArrowException, OSError, ValueError):
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
    except (pa.ArrowException, OSError, ValueError):
        pass
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
