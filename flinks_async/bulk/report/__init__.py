"""The report of a job as a page to look at: one HTML file that loads nothing, made from the job's directory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from ...checks import optional_import
from ..directory import refuse_own_files
from ..errors import StoreError
from ..files import MANIFEST, PAGE, write_durably
from ..manifest import Manifest
from .facts import gather


def write_report(directory: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes the page of a job, which may be running.

    Args:
        directory: of the job.
        out: where to; `report.html` in the directory by default. A file that is there is replaced.

    Returns:
        where it was written.

    Raises:
        JobMismatchError: there is no job in the directory.
        JobError: it has only begun, and there is nothing to tell yet.
        LedgerError: its ledger cannot be understood.
        StoreError: the page cannot be written, or `out` is something else than a file.
        ConfigError: matplotlib or Jinja2 is not installed, or `out` is a file of the job's.
    """
    folder = Path(directory).absolute()
    path = folder / PAGE if out is None else Path(out).absolute()
    if not is_page_of(folder, path):
        refuse_own_files(folder, Manifest.load(folder / MANIFEST), path, path.with_name(path.name + ".tmp"))
        if path.exists() and not path.is_file():
            raise StoreError(f"{path} cannot be written: it is not a file")
    write_durably(path, report_page(folder))
    return path


def is_page_of(directory: str | os.PathLike[str], out: str | os.PathLike[str]) -> bool:
    """Whether this is the place in the directory of a job where its page lies."""
    place, asked = (os.path.realpath(folder) for folder in (directory, Path(out).absolute().parent))
    return place == asked and Path(out).name == PAGE


def report_page(directory: str | os.PathLike[str]) -> bytes:
    """The page of a job, which may be running: HTML in UTF-8.

    Raises:
        as `write_report`, but for what has to do with writing.
    """
    facts = gather(Path(directory).absolute())
    for library in ("jinja2", "matplotlib"):
        optional_import(library, extra="report")
    from .page import page

    return page(facts, time.time()).encode()


def json_report(directory: str | os.PathLike[str]) -> bytes:
    """What `report.json` says when a run ends, as it stands now. It needs no further library.

    Raises:
        as `write_report`, but for what has to do with the page.
    """
    return msgspec.json.format(msgspec.json.encode(gather(Path(directory).absolute()).json), indent=2) + b"\n"


__all__ = ["is_page_of", "json_report", "report_page", "write_report"]
