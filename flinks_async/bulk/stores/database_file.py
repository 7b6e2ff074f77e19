"""The base of the stores in a database that is one file: SQLite and DuckDB."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from ..errors import StoreMissingError
from ..files import absolute_path, cannot_write, is_inside
from .database import ConnectionT, DatabaseStore
from .database_schema import NAMES, prepare
from .protocol import Place


class DatabaseFile(DatabaseStore[ConnectionT]):
    """A database of this job alone or of several jobs.

    Args:
        path: the database (default `answers.KIND` in the job's directory). It is created if it is missing. Other tables
            in it are not touched; if one has a name of ours, the database is refused.

    Raises:
        ConfigError: the path cannot be the name of a file.
    """

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    """What the library appends to the path for its own files; "" is the database itself."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._user_path = absolute_path(path)
        self._path = Path()
        self._db: ConnectionT | None = None
        self._own = False  # created by this job: by this store, or in the job's directory, which was empty

    @abstractmethod
    def _create_file(self) -> bool:
        """Creates the database with private permissions, unless the file exists; returns whether it did."""

    @abstractmethod
    def _connect(self) -> ConnectionT:
        """Connects to the existing file."""

    @abstractmethod
    def _table_names(self) -> set[str]:
        """The names of all tables and views in the database."""

    def _prepared(self) -> None:
        """Called when the tables are there."""

    @property
    def where(self) -> str:
        return str(self._path)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": None if self._user_path is None else str(self._user_path)}

    def open(self, place: Place, *, existing: bool = False) -> None:
        self.close()
        self._path = self._user_path or place.folder / f"answers.{self.kind}"
        created = not existing and self._create_file()
        self._own = created or is_inside(self._path, place.folder)
        if existing and not self._path.exists():
            raise StoreMissingError(str(self._path))
        self._db = self._do(self._connect)
        try:
            if existing:
                self._look(place.job)
                return
            with self._transaction():  # before any setting is changed, because the database may be refused
                self._job = prepare(self, place.job)
            self._prepared()
        except BaseException:
            self.close()
            raise

    def purge(self) -> list[str]:
        if self._own and self._alone() and self._table_names() <= NAMES:
            return [self._remove_files()]
        return [] if self._bare else self._delete_rows()

    def _remove_files(self) -> str:
        self.close()
        try:
            size = self._path.stat().st_size
            for path in self._files():
                path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._path, error) from None
        return f"{self._path} ({size:,} bytes)"

    def _files(self) -> list[Path]:
        return [self._path.with_name(self._path.name + suffix) for suffix in self.suffixes]
