"""Errors of jobs. Errors of single tokens are in `flinks_async.errors`.

FlinksError
    └── JobError
        ├── JobMismatchError      the directory belongs to another job; the message says what differs
        ├── JobLockedError        another process works on the job
        ├── InputError            the file of tokens cannot be used
        │   └── InputChangedError     it has changed since the job was started
        ├── LedgerError           the ledger is broken, or of a newer version
        ├── StoreError            answers, ledger or report cannot be written
        │   ├── StoreMissingError     a job's answers are not where it put them
        │   └── UnfitAnswerError      one answer has a value that the store cannot hold
        └── WorkerError           workers cannot be started or keep crashing, or a cluster is lost
"""

from __future__ import annotations

import traceback

import attrs

from ..errors import FlinksError


class JobError(FlinksError):
    """The base of the errors of jobs."""


class JobMismatchError(JobError):
    """The directory belongs to another job, or to none."""


class JobLockedError(JobError):
    """Another process works on the job, or has taken over its URL in object storage."""


@attrs.define(slots=False, eq=False, repr=False, auto_exc=False)
class InputError(JobError):
    """The file of tokens cannot be read, or does not agree with its `Layout`. The message names line and column, and puts
    fields of `Layout` in backticks.

    Attributes:
        field: of `Layout` that is wrong or missing, such as `column`; None if the file itself is at fault.
    """

    field: str | None = attrs.field(default=None, kw_only=True)


class InputChangedError(InputError):
    """The file of tokens has changed since the job was started."""


class LedgerError(JobError):
    """The ledger is broken, or was written by a newer version."""


class StoreError(JobError):
    """Something cannot be written: the disk is full, a folder is missing, a database refuses."""


class StoreMissingError(StoreError):
    """The file, folder or schema that holds the answers of a job is missing.

    Attributes:
        where: the missing thing should be.
    """

    def __init__(self, where: str) -> None:
        super().__init__(f"{where} is missing")
        self.where = where


class UnfitAnswerError(StoreError):
    """One answer has a value that no column of the store can hold. The job continues without it.

    Attributes:
        line: of the input, to which the answer belongs.
    """

    def __init__(self, message: str, *, line: int) -> None:
        super().__init__(message)
        self.line = line


class WorkerError(JobError):
    """Workers cannot be started or keep crashing, or a cluster is lost or has no free worker."""


def portable(error: Exception) -> Exception:
    """An error that can be pickled. The text of a foreign error is left out, because it may hold a token."""
    if isinstance(error, FlinksError):
        return error
    last = traceback.extract_tb(error.__traceback__)[-1]
    return WorkerError(f"a worker process failed: {type(error).__name__} at {last.filename}:{last.lineno}")
