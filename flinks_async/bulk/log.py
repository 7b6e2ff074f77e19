"""The log of a job: `job.log` in its directory, and the logger `flinks_async.bulk`."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..secret import SecretFilter
from .files import PRIVATE_FILE

_LOGGER: Final = logging.getLogger("flinks_async.bulk")


class JobLog(logging.Handler):
    """Appends lines to a file that only its owner can read, whatever levels the program's logging has, and passes them on to
    that logging. On a full disk lines are lost, but nothing fails.
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
        self._write(logging.INFO, message, values)

    def warning(self, message: str, *values: object) -> None:
        self._write(logging.WARNING, message, values)

    def error(self, message: str, *values: object) -> None:
        self._write(logging.ERROR, message, values)

    def _write(self, level: int, message: str, values: tuple[object, ...]) -> None:
        self.handle(_LOGGER.makeRecord(_LOGGER.name, level, "", 0, message, values, None))
        _LOGGER.log(level, message, *values)

    def emit(self, record: logging.LogRecord) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.write(self._file, (self.format(record) + "\n").encode())

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        super().close()
