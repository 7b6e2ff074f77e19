"""The log of a job: `job.log` in its directory, beside whatever the program's own logging does with it."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..secret import SecretFilter
from .files import PRIVATE_FILE

_PUBLIC: Final = logging.getLogger("flinks_async.bulk")


class JobLog(logging.Handler):
    """Appends lines to a file, for its owner only, whatever the levels of the program's logging, and hands them to the
    latter. A disk that is full costs lines and nothing else.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        try:
            self._file: int | None = os.open(path, flags, PRIVATE_FILE)
        except OSError:
            self._file = None
        formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)
        self.addFilter(SecretFilter())

    def info(self, message: str, *values: object) -> None:
        self._say(logging.INFO, message, values)

    def warning(self, message: str, *values: object) -> None:
        self._say(logging.WARNING, message, values)

    def error(self, message: str, *values: object) -> None:
        self._say(logging.ERROR, message, values)

    def _say(self, level: int, message: str, values: tuple[object, ...]) -> None:
        self.handle(_PUBLIC.makeRecord(_PUBLIC.name, level, "", 0, message, values, None))
        _PUBLIC.log(level, message, *values)

    def emit(self, record: logging.LogRecord) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.write(self._file, (self.format(record) + "\n").encode())

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        super().close()
