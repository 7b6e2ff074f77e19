"""The report of a job as a page to look at: one HTML file that loads nothing, made from the job's directory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from ...errors import ConfigError
from ..disk import write_durably
from ..layout import PAGE
from .facts import gather


def write_report(directory: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes the page of a job, which may be running.

    Args:
        directory: of the job.
        out: where to; `report.html` in the directory by default.

    Returns:
        where it was written.

    Raises:
        JobMismatchError: there is no job in the directory.
        JobError: it has only begun, and there is nothing to tell yet.
        LedgerError: its ledger cannot be understood.
        StoreError: the page cannot be written.
        ConfigError: matplotlib or Jinja2 is not installed.
    """
    folder = Path(directory).absolute()
    path = folder / PAGE if out is None else Path(out).absolute()
    facts = gather(folder)
    try:
        from .page import page
    except ModuleNotFoundError as missing:
        name = str(missing.name).partition(".")[0]
        if name not in _LIBRARIES:
            raise
    else:
        write_durably(path, page(facts, time.time()).encode())
        return path
    raise ConfigError(f"the report needs {name}: pip install 'flinks-async[report]'")


def json_report(directory: str | os.PathLike[str]) -> bytes:
    """What `report.json` says when a run ends, as it stands now. It needs no further library.

    Raises:
        as `write_report`, but for what has to do with the page.
    """
    return msgspec.json.format(msgspec.json.encode(gather(Path(directory).absolute()).json), indent=2) + b"\n"


_LIBRARIES = ("jinja2", "markupsafe", "matplotlib")

__all__ = ["json_report", "write_report"]
