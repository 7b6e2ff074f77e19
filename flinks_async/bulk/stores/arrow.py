"""Rows of the tables as Arrow, for the stores that take it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...columns import array_of, schema_of
from ...errors import ConfigError
from .rows import Row, Table, does_not_fit

if TYPE_CHECKING:
    import pyarrow


def library(extra: str) -> Any:
    """pyarrow.

    Args:
        extra: of this package, that brings it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow

        return pyarrow
    except ImportError:
        pass
    raise ConfigError(f"this store needs pyarrow: pip install 'flinks-async[{extra}]'")


def arrow_table(path: Path, table: Table, rows: list[Row]) -> pyarrow.Table:
    """Some rows as Arrow.

    Args:
        path: of the store, for the error.
        rows: of the table; at least one.

    Raises:
        StoreError: a value does not fit its column.
    """
    schema = schema_of(table)
    arrays = []
    for number, values in enumerate(zip(*rows, strict=True)):
        type_ = schema[number].type
        array = array_of(values, type_)
        if array is None:
            row = next(row for row in rows if array_of([row[number]], type_) is None)
            raise does_not_fit(path, table, table.columns[number], row, str(type_))
        arrays.append(array)
    return library("arrow").Table.from_arrays(arrays, schema=schema)
