"""Answers as tables of a DuckDB database. Needs duckdb and pyarrow.

Tables and marks as in SQLite, with DuckDB's own types: amounts are `DECIMAL(38, 18)`. The tables have no indexes: DuckDB
keeps those in memory, and scans without.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ...checks import optional_import
from ...tables import ColumnType, arrow_table
from .. import crash_points
from ..errors import StoreError, StoreMissingError
from ..files import PRIVATE_FILE, cannot_write, rename_durably, sync_file, sync_folder
from .answer_rows import Row, Table, does_not_fit
from .database import DatabaseStore
from .database_schema import NAMES, job_number, prepare, quoted
from .ownership import given_path, in_folder
from .protocol import Place

if TYPE_CHECKING:
    import duckdb

_CONFIG: Final = {
    "threads": 1,  # a shard is small, and the fetching beside it needs the machine
    "autoinstall_known_extensions": False,  # else a file of SQLite's makes it load code from the network
}

_INCOMING: Final = "flinks_incoming"


class DuckDBStore(DatabaseStore["duckdb.DuckDBPyConnection"]):
    """A database, of this job alone or of several that run one after the other: DuckDB lets one process in.

    Args:
        path: of the database (default `answers.duckdb` in the job's directory). It is made if it is missing; tables of
            somebody else in it are left alone, but for a name that both want: then the database is refused.

    Raises:
        ConfigError: duckdb or pyarrow is not installed, or the path cannot be the name of a file.
    """

    types: ClassVar[dict[ColumnType, str]] = {
        "text": "VARCHAR",
        "json": "JSON",
        "amount": "DECIMAL(38, 18)",
        "integer": "BIGINT",
        "position": "BIGINT NOT NULL",
        "flag": "BOOLEAN",
        "date": "DATE",
        "instant": "TIMESTAMPTZ",
    }
    unique: ClassVar[bool] = False

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._library = optional_import("duckdb", extra="duckdb")
        optional_import("pyarrow", extra="duckdb")
        self._given = given_path(path)
        self._path = Path()
        self._db: duckdb.DuckDBPyConnection | None = None
        self._own = False  # made by this job: here, or in its directory, which was empty when it began

    def describe(self) -> dict[str, Any]:
        return {"kind": "duckdb", "path": None if self._given is None else str(self._given)}

    def open(self, place: Place, *, existing: bool = False) -> None:
        self.close()
        self._path = self._given or place.folder / "answers.duckdb"
        found = os.path.lexists(self._path)
        self._own = not (existing or found) or in_folder(self._path, place.folder)
        if existing and not self._path.exists():
            raise StoreMissingError(str(self._path))
        if not found:
            self._make()
        self._db = self._do(lambda: self._library.connect(str(self._path), config=_CONFIG))
        try:
            if existing:
                self._look(place.job)
                return
            with self._transaction():
                prepare(self)
                self._job = job_number(self, place.job)
        except BaseException:
            self.close()
            raise

    def purge(self) -> list[str]:
        names = {name for (name,) in self.fetch("SELECT table_name FROM information_schema.tables")}
        if self._own and self._alone() and names <= NAMES:
            self.close()
            try:
                size = self._path.stat().st_size
                for path in self._files():
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(self._path, error) from None
            return [f"{self._path} ({size:,} bytes)"]
        if self._bare:
            return []
        removed = self._delete_rows()
        self.run("CHECKPOINT")
        return removed

    @property
    def where(self) -> str:
        return str(self._path)

    def run(self, sql: str, *values: Any) -> int:
        rows = self.fetch(sql, *values)
        return rows[0][0] if rows and isinstance(rows[0][0], int) else 0

    def _select(self, table: Table) -> list[str]:
        # Python objects of instants would need pytz.
        return [
            f"epoch_us(t.{name})" if column.type == "instant" else f"t.{name}"
            for name, column in zip(quoted(table), table.columns, strict=True)
        ]

    def _insert(self, table: Table, rows: list[Row]) -> list[Row]:
        db = self._opened
        batch = arrow_table(table, rows, partial(does_not_fit, self._path, table))
        columns = ", ".join(quoted(table))
        self._do(lambda: db.register(_INCOMING, batch))
        try:
            self.run(f"INSERT INTO {table.name} (job, {columns}) SELECT {self._job}, {columns} FROM {_INCOMING}")
        finally:
            with suppress(self._library.Error):
                db.unregister(_INCOMING)
        return rows

    def _inserted(self) -> None:
        """Makes the log with its mode, before DuckDB makes it with another one and a commit writes the rows to it."""
        _, log = self._files()
        try:
            os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
        except FileExistsError:
            pass
        except OSError as error:
            raise cannot_write(log, error) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with super()._transaction():
            yield
        crash_points.reach("database committed")
        self._settle()

    def _make(self) -> None:
        """Makes an empty database under another name, and renames it: half of one, after a crash, could not be opened."""
        draft = self._path.with_name(f"{self._path.name}.new")
        try:
            try:
                draft.unlink(missing_ok=True)
                self._do(lambda: self._library.connect(str(draft), config=_CONFIG).close())
                draft.chmod(PRIVATE_FILE)
                sync_file(draft)
                rename_durably(draft, self._path)
            except BaseException:
                with suppress(OSError):
                    draft.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def _settle(self) -> None:
        """Makes the files private, and their names durable: DuckDB syncs only what is in them."""
        try:
            for path in self._files():
                with suppress(FileNotFoundError):
                    path.chmod(PRIVATE_FILE)
            sync_folder(self._path.parent)
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def _files(self) -> tuple[Path, Path]:
        return self._path, self._path.with_name(f"{self._path.name}.wal")

    def _store_error(self, error: duckdb.Error) -> StoreError:
        return StoreError(f"{self._path} cannot be read or written: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Why DuckDB says no: the first line, without the value that a conversion or constraint would quote."""
    kind = type(error).__name__
    if kind in ("ConversionException", "ConstraintException", "OutOfRangeException", "InvalidInputException"):
        return f"the data is refused ({kind})"
    return str(error).partition("\n")[0]
