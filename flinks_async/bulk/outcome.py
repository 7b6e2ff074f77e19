"""The files of a job beside its answers: the log, failed and duplicate rows, and `report.json`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partialmethod
from pathlib import Path
from typing import Any, Final

import msgspec
from attrs import asdict

from .._version import __version__
from ..limits.notices import log_fields
from ..secret import SecretFilter
from .counters import WAITS
from .directory import Manifest
from .files import DUPLICATES, FAILED, REPORT, create, in_pieces, open_to_write, replaced, write_durably
from .inputs import Scanned
from .ledger import Ledger
from .records import Failure, to_json


def write_outcome(folder: Path, manifest: Manifest, ledger: Ledger, scanned: Scanned) -> None:
    """Writes the files. Each is replaced as a whole, or stays as it was."""
    _write_lines(folder / FAILED, map(_failed, ledger.failures()))
    if scanned.duplicates and not os.path.exists(folder / DUPLICATES):
        _write_lines(folder / DUPLICATES, ({"line": line, "first": first} for line, first in ledger.all_duplicates()))
    report = msgspec.json.format(msgspec.json.encode(report_of(manifest, ledger, scanned)), indent=2)
    write_durably(folder / REPORT, report + b"\n")


def report_of(manifest: Manifest, ledger: Ledger, scanned: Scanned) -> dict[str, Any]:
    """The report as plain JSON: numbers, names and checksums. It holds no token, no secret and no personal data."""
    totals = ledger.totals()
    return {
        "flinks_async": __version__,
        "job": manifest.job,
        "created": manifest.created,
        "input": {"size": manifest.size, "sha256": manifest.sha256},
        "lines": asdict(scanned),
        "origin": manifest.origin,
        "store": manifest.store,
        "selection": manifest.selection,
        "outcome": totals.to_dict(),
        "shards": {"all": totals.shards, "done": totals.shards_done, "size": totals.size},
        "runs": ledger.runs(),
    }


def _failed(failure: Failure) -> dict[str, Any]:
    return {name: value for name, value in asdict(failure).items() if value is not None or name in _ALWAYS}


_ALWAYS = frozenset({"token_fingerprint", "flinks_code", "status"})


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with replaced(path) as write:
        for piece in in_pieces(to_json(record) + b"\n" for record in records):
            write(piece)


_LOGGER: Final = logging.getLogger("flinks_async.bulk")


class JobLog(logging.Handler):
    """Appends lines to a file that only its owner can read, independent of the program's logging levels, and passes them on
    to the program's logging. On a full disk, lines are lost, but nothing fails. Also has the calls that last (see `Waits`).
    """

    def __init__(self, path: Path, job: str) -> None:
        super().__init__(logging.INFO)
        self._fields = log_fields("Job", job=job)
        self._file: int | None = None
        with suppress(OSError):
            self._file = open_to_write(path, os.O_APPEND) if path.is_file() else create(path)
        formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)
        self.addFilter(SecretFilter())
        WAITS.addHandler(self)

    def _write(self, level: int, message: str, *values: object) -> None:
        self.handle(_LOGGER.makeRecord(_LOGGER.name, level, "", 0, message, values, None))
        _LOGGER.log(level, message, *values, extra=self._fields)

    info = partialmethod(_write, logging.INFO)
    warning = partialmethod(_write, logging.WARNING)
    error = partialmethod(_write, logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.write(self._file, (self.format(record) + "\n").encode())

    def close(self) -> None:
        WAITS.removeHandler(self)
        if self._file is not None:
            os.close(self._file)
            self._file = None
        super().close()
