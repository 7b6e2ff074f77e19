"""Parquet files of tokens, read as if they were JSONL: one line for each row, with the columns that are needed.

So lines, offsets, shards and checks work as for other files. Needs pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import msgspec
from attrs import frozen

from ...checks import optional_import
from ..compression import Compression, Corrupt
from ..errors import InputError
from .formats import JSONLParser
from .rows import choose_column, choose_other_column

if TYPE_CHECKING:
    import pyarrow

MAGIC: Final = b"PAR1"

_ROWS: Final = 1024
_BUFFER: Final = 256 * 1024
_encode: Final = msgspec.json.Encoder().encode_lines


@frozen
class ParquetColumns:
    """The columns of a file that are read.

    Attributes:
        token, key, instance: their names.
    """

    token: str
    key: str | None
    instance: str | None

    @classmethod
    def find(cls, raw: BinaryIO, token: str | None, key: str | None, instance: str | None) -> ParquetColumns:
        """Finds them.

        Raises:
            InputError: it is not a Parquet file, a column is missing, or has a type that cannot be used.
            ConfigError: pyarrow is not installed.
        """
        schema = _open(raw).schema_arrow
        chosen = cls(choose_column(schema.names, token), key, instance)
        _check_type(schema, chosen.token, _is_text, "text", "column")
        for name, field in ((key, "key_column"), (instance, "instance_column")):
            if name is not None:
                choose_other_column(schema.names, chosen.token, name, field)
        if key is not None:
            _check_type(schema, key, _is_plain, "text, a number, a date or a time", "key_column")
        if instance is not None:
            _check_type(schema, instance, _is_text, "text", "instance_column")
        return chosen

    @property
    def names(self) -> list[str]:
        return [name for name in (self.token, self.key, self.instance) if name is not None]

    def parser(self) -> JSONLParser:
        """The parser for the lines of `ParquetContent`."""
        return JSONLParser(self.token, self.key, self.instance)


class ParquetContent:
    """The rows of a file as lines of JSON, from its beginning; used like `Content`.

    Args:
        raw: the file. It is not closed.
        columns: to read.

    Attributes:
        position: bytes of lines before the next `read`.
        raw_position: about how many bytes of the file were read.
    """

    compression: Compression = "none"

    def __init__(self, raw: BinaryIO, columns: ParquetColumns) -> None:
        self.position = 0
        self.raw_position = 0
        file = _open(raw)
        self._rows_in_all = max(1, file.metadata.num_rows)
        self._size = raw.seek(0, 2)
        self._rows = 0
        self._batches: Iterator[Any] = file.iter_batches(_ROWS, columns=columns.names)

    def read(self) -> bytes:
        """The next lines; empty at the end.

        Raises:
            CompressedDataError: the file is damaged.
        """
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


def _check_type(schema: pyarrow.Schema, name: str, fits: Any, what: str, field: str) -> None:
    type_ = schema.field(name).type
    if not fits(type_):
        raise InputError(f"The column {name!r} must hold {what}; it is of type {type_}.", field=field)


def _values(type_: pyarrow.DataType) -> pyarrow.DataType:
    return type_.value_type if optional_import("pyarrow", extra="arrow").types.is_dictionary(type_) else type_


def _is_text(type_: pyarrow.DataType) -> bool:
    types = optional_import("pyarrow", extra="arrow").types
    values = _values(type_)
    return bool(types.is_string(values) or types.is_large_string(values) or types.is_string_view(values))


def _is_plain(type_: pyarrow.DataType) -> bool:
    return _is_text(type_) or _is_json(type_) or _is_written_out(type_)


def _is_json(type_: pyarrow.DataType) -> bool:
    types = optional_import("pyarrow", extra="arrow").types
    values = _values(type_)
    return bool(types.is_integer(values) or types.is_floating(values) or types.is_boolean(values))


def _is_written_out(type_: pyarrow.DataType) -> bool:
    """Types that JSON lacks; they become text."""
    types = optional_import("pyarrow", extra="arrow").types
    return bool(types.is_decimal(type_) or types.is_date(type_) or types.is_timestamp(type_) or types.is_time(type_))


def _plain(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    pa = optional_import("pyarrow", extra="arrow")
    columns = [column.cast(pa.string()) if _is_written_out(column.type) else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
