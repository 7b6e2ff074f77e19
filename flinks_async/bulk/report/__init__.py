"""The report of a job: one HTML page that loads nothing, written from the job's directory.

`facts` reads the directory, `findings` decides what the page says, `plots` and `plots_over_time` draw it, and `page` puts
it together.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from ...checks import optional_import, path
from ...errors import ConfigError
from ..directory import Manifest, refuse_own_files
from ..errors import StoreError
from ..files import MANIFEST, PAGE, write_durably
from .facts import gather


def write_report(directory: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes the page of a job. The job may be running.

    Args:
        directory: the job's directory.
        out: the file to write; default `report.html` in the job's directory. An existing file is replaced.

    Returns:
        the path of the page.

    Raises:
        JobMismatchError: the directory holds no job.
        JobError: the job has not read its input yet.
        LedgerError: the ledger cannot be read.
        StoreError: the page cannot be written, or `out` is not a regular file.
        ConfigError: matplotlib or Jinja2 is not installed, matplotlib may write nowhere, or `out` is one of the job's own files.
    """
    folder = path("directory", directory)
    target = folder / PAGE if out is None else path("out", out)
    if not is_page_of(folder, target):
        refuse_own_files(folder, Manifest.load(folder / MANIFEST), target, target.with_name(target.name + ".tmp"))
        if os.path.exists(target) and not os.path.isfile(target):
            raise StoreError(f"{target} cannot be written: it is not a file")
    write_durably(target, report_page(folder))
    return target


def is_page_of(directory: str | os.PathLike[str], out: str | os.PathLike[str]) -> bool:
    """Whether `out` is the page inside the job's own directory."""
    place, asked = (os.path.realpath(folder) for folder in (directory, Path(out).absolute().parent))
    return place == asked and Path(out).name == PAGE


def report_page(directory: str | os.PathLike[str]) -> bytes:
    """The page of a job as HTML in UTF-8. The job may be running.

    Raises:
        see `write_report`, except for errors of writing.
    """
    facts = gather(path("directory", directory))
    optional_import("jinja2", extra="report")
    # matplotlib reads this at its import, and fails if a notebook has set a backend that is not installed here.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        optional_import("matplotlib", extra="report")
        from .page import page
    except OSError:
        raise ConfigError(
            "matplotlib found no folder for its cache: set MPLCONFIGDIR to a folder that this process may write to"
        ) from None
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend

    return page(facts, time.time()).encode()


def json_report(directory: str | os.PathLike[str]) -> bytes:
    """The current state in the form of `report.json`. It needs no optional package.

    Raises:
        see `write_report`, except for errors of the page.
    """
    return msgspec.json.format(msgspec.json.encode(gather(path("directory", directory)).json), indent=2) + b"\n"


__all__ = ["is_page_of", "json_report", "report_page", "write_report"]
