"""What can go wrong with a job, beside its tokens.

FlinksError
    └── JobError
        ├── JobMismatchError      the directory belongs to another job; the message says what differs
        ├── JobLockedError        another process works on the job
        ├── InputError            the file of tokens cannot be used
        │   └── InputChangedError     it is not the file any more that the job was started with
        ├── LedgerError           the ledger is broken, or of a newer version
        ├── StoreError            answers, ledger or report cannot be written
        │   ├── StoreMissingError     a job's answers are not where it put them
        │   └── UnfitAnswerError      one answer has a value that the store cannot hold
        └── WorkerError           worker processes end before their work does
"""

from __future__ import annotations

from typing import Any

from ..errors import FlinksError


class JobError(FlinksError):
    """The base of a job's errors."""


class JobMismatchError(JobError):
    """The directory belongs to another job, or to none."""


class JobLockedError(JobError):
    """Another process works on the job."""


class InputError(JobError):
    """The file of tokens cannot be read, or does not agree with its `Layout`. The message names line and column, and puts
    fields of `Layout` in backticks.

    Attributes:
        field: of `Layout` that is wrong or missing, such as `column`; None if the file itself is at fault.
    """

    _extra_fields = ("field",)

    def __init__(self, message: str = "", *, field: str | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.field = field


class InputChangedError(InputError):
    """The file of tokens is not the one any more that the job was started with."""


class LedgerError(JobError):
    """The ledger cannot be understood: broken, or written by a newer version."""


class StoreError(JobError):
    """Something cannot be written: the disk is full, a folder is gone, a database says no."""


class StoreMissingError(StoreError):
    """What holds the answers of a job is not there: file, folder or schema.

    Args:
        where: it should be.

    Attributes:
        where: it should be.
    """

    def __init__(self, where: str) -> None:
        super().__init__(f"{where} is missing")
        self.where = where

    def __reduce__(self) -> Any:
        return StoreMissingError, (self.where,)


class UnfitAnswerError(StoreError):
    """One answer has a value that no column of the store can hold. The job goes on without that answer.

    Attributes:
        line: of the input, whose answer it is.
    """

    def __init__(self, message: str, *, line: int) -> None:
        super().__init__(message)
        self.line = line

    def __reduce__(self) -> Any:
        return _unfit, (self.message, self.line)


def _unfit(message: str, line: int) -> UnfitAnswerError:
    return UnfitAnswerError(message, line=line)


class WorkerError(JobError):
    """Worker processes end before their work does, again and again, or cannot be started."""
