"""Answers as tables of a DuckDB database. Needs duckdb and pyarrow.

Tables and commit marks are as in SQLite, with DuckDB's types: amounts are `DECIMAL(38, 18)`. The tables of answers have no
indexes, because DuckDB keeps indexes in memory and scans fast without them.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ...checks import optional_import
from ...errors import ConfigError
from ...limits.notices import log_fields
from ...tables import ColumnType, Table
from ..errors import StoreError
from ..files import (
    PRIVATE_FILE,
    SPOOLS,
    cannot_write,
    crash_points,
    create,
    rename_durably,
    sync_file,
    sync_folder,
    write_all,
)
from ..records import Commit
from .answer_rows import Rows
from .database import DatabaseFile
from .database_schema import quoted
from .protocol import Place

__all__ = ["DuckDBStore"]

if TYPE_CHECKING:
    import duckdb

_CONFIG: Final = {
    "threads": 1,  # shards are small, and fetching needs the other cores
    "autoinstall_known_extensions": False,  # otherwise an SQLite file makes it load code from the network
}

_MEMORY: Final = 30
"""MB of DuckDB's own memory while it writes. By default it would keep the database in four fifths of the machine's memory."""

_MOST_MEMORY: Final = 2_000
"""MB below which it gets more for a shard with large texts, each of which it holds in memory as a whole."""

_INCOMING: Final = "flinks_incoming"

_ROWS: Final = 40_000
"""Rows of a table that are inserted at once, unless the shard ends before: each INSERT costs a millisecond."""

_TORN: Final = re.compile(r"Corrupt WAL file: entry at byte position ([0-9]+)")
"""DuckDB's error for a log in which the bytes of an entry are not those that it wrote, and where that entry is."""

_log: Final = logging.getLogger("flinks_async.bulk")


class DuckDBStore(DatabaseFile["duckdb.DuckDBPyConnection"]):
    """A database of this job alone, or of several that run one after the other: DuckDB allows one process.

    Args:
        path: the database (default `answers.duckdb` in the job's directory). It is created if it is missing. Other tables
            in it are not touched; if one has a name of ours, the database is refused.

    Raises:
        ConfigError: duckdb or pyarrow is not installed, or the path cannot be the name of a file.
    """

    kind: ClassVar[str] = "duckdb"
    suffixes: ClassVar[tuple[str, ...]] = ("", ".wal", ".wal.torn")
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
    read_as: ClassVar[dict[ColumnType, str]] = {
        "amount": "CAST(replace(CAST({} AS VARCHAR), '.', '') AS HUGEINT)",  # units of 1e-18
        "date": "CAST({} AS VARCHAR)",
        "instant": "strftime(make_timestamp(epoch_us({})), '%Y-%m-%dT%H:%M:%S.%fZ')",
    }
    unique: ClassVar[bool] = False

    _texts = False

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._library = optional_import("duckdb", extra="duckdb")
        optional_import("pyarrow", extra="duckdb")
        self._held = dict[Table, list[Rows]]()
        self._memory, self._short = _MEMORY, False
        super().__init__(path)

    def open(self, place: Place, *, existing: bool = False) -> None:
        """As `Store.open`.

        Raises:
            ConfigError: DuckDB would open another path, or put its log elsewhere, readable for everybody.
        """
        self._spilled = str(place.folder / SPOOLS)
        for path in () if existing else (str(self._file_of(place)), self._spilled):
            if "?" in path or (os.sep == "/" and "\\" in path) or path.encode(errors="ignore") != os.fsencode(path):
                raise ConfigError(
                    f"path must be one that DuckDB can open, without ?, \\ and bytes that are not UTF-8, not {path!a}. "
                    "Choose another file or job directory"
                )
        super().open(place, existing=existing)

    def _prepared(self) -> None:
        """Limits the memory. A larger shard is written in part to the folder of spools, which is private and temporary."""
        spilled = self._spilled.replace("'", "''")
        self.run(f"SET memory_limit = '{self._memory}MB'")
        self.run(f"SET temp_directory = '{spilled}'")

    def put(self, commit: Commit, spool: Path) -> dict[str, Any]:
        while True:
            self._short = False
            try:
                return super().put(commit, spool)
            except StoreError:
                if not self._short or self._memory >= _MOST_MEMORY:
                    raise
            self._memory *= 4
            text = "DuckDB gets %d MB of memory, because shard %d has large texts"
            _log.info(text, self._memory, commit.shard.id, extra=log_fields("DuckDBMemory", megabytes=self._memory))
            self._opened.close()
            self._db = self._do(lambda: self._connect(look=False))
            self._prepared()

    def run(self, sql: str, *values: Any) -> int:
        rows = self.fetch(sql, *values)
        return rows[0][0] if rows and isinstance(rows[0][0], int) else 0

    def _insert(self, table: Table, rows: Rows) -> None:
        held = self._held.setdefault(table, [])
        held.append(rows)
        if sum(map(len, held)) >= _ROWS:
            self._insert_held(table)

    def _insert_held(self, table: Table) -> None:
        db, rows = self._opened, optional_import("pyarrow", extra="duckdb").concat_tables(self._held.pop(table))
        columns = ", ".join(quoted(table))
        self._do(lambda: db.register(_INCOMING, rows))
        try:
            self.run(f"INSERT INTO {table.name} (job, {columns}) SELECT {self._job}, {columns} FROM {_INCOMING}")
        finally:
            with suppress(self._library.Error):
                db.unregister(_INCOMING)

    def _inserted(self) -> None:
        """Inserts the last rows. Creates the log with private permissions, before DuckDB creates it with others and a commit
        writes rows to it.
        """
        for table in list(self._held):
            self._insert_held(table)
        log = self._files()[1]
        try:
            os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
        except FileExistsError:
            pass
        except OSError as error:
            raise cannot_write(log, error) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._held.clear()  # of a shard that failed
        with super()._transaction():
            yield
        crash_points.reach("database committed")
        self._settle()

    def _create_file(self) -> bool:
        # Under another name first, because half a database, left by a crash, could not be opened.
        if os.path.lexists(self._path):
            return False
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
        return True

    def _connect(self, *, look: bool) -> duckdb.DuckDBPyConnection:
        try:
            return self._connected(look)
        except self._library.Error as error:
            torn = None if look else _TORN.search(str(error))
            if torn is None:
                raise
        self._cut_log(int(torn[1]))
        return self._connected(look)

    def _cut_log(self, size: int) -> None:
        """Keeps a copy of the log, and cuts it where DuckDB refuses it.

        A power cut tears only what was not synced: a commit that the ledger does not know. If a disk has changed older
        bytes, `recover` misses their shards.
        """
        _, log, torn = self._files()
        try:
            file = create(torn)
            try:
                write_all(file, log.read_bytes())
                os.fsync(file)
            finally:
                os.close(file)
            sync_folder(torn.parent)
            os.truncate(log, size)
            sync_file(log)
        except OSError as error:
            raise cannot_write(log, error) from None
        text = f"{log} is torn after {size:,} bytes, probably by a power cut. The rest is cut off; {torn} is a copy of the log"
        _log.warning("%s", text, extra=log_fields("LogCut", reason=text))

    def _connected(self, look: bool) -> duckdb.DuckDBPyConnection:
        connection: duckdb.DuckDBPyConnection = self._library.connect(str(self._path), read_only=look, config=_CONFIG)
        return connection

    def _table_names(self) -> set[str]:
        return {name for (name,) in self.fetch("SELECT table_name FROM information_schema.tables")}

    def _delete_rows(self) -> list[str]:
        removed = super()._delete_rows()
        self.run("CHECKPOINT")
        return removed

    def _settle(self) -> None:
        """Makes the files private and syncs their folder: DuckDB syncs only their content."""
        try:
            for path in self._files():
                with suppress(FileNotFoundError):
                    path.chmod(PRIVATE_FILE)
            sync_folder(self._path.parent)
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def _store_error(self, error: duckdb.Error) -> StoreError:
        self._short = isinstance(error, self._library.OutOfMemoryException) or "could not allocate" in str(error)
        return StoreError(f"{self._path} cannot be read or written: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Why DuckDB fails: the first line of its text, but not if it may quote a value."""
    kind = type(error).__name__
    if kind in ("ConversionException", "ConstraintException", "OutOfRangeException", "InvalidInputException"):
        return f"the data is refused ({kind})"
    if _TORN.search(str(error)):
        return "its log is torn, probably by a power cut. Run the job again: this cuts the torn part off"
    return str(error).partition("\n")[0]
