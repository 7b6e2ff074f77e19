"""What can go wrong while a token file is read, in words that do not repeat its path: somebody may have typed a token."""

from __future__ import annotations

from ..compression import CompressedDataError, Source
from ..errors import InputError
from .content import Content
from .parquet import ParquetContent


def reason_of(error: OSError | ValueError) -> str:
    """Why a file cannot be opened or read."""
    if isinstance(error, CompressedDataError):
        return str(error)
    return error.strerror if isinstance(error, OSError) and error.strerror else "it is not a file"


def cannot_read(error: OSError | ValueError) -> InputError:
    """The error for a file that cannot be opened. To be raised `from None`."""
    return InputError(f"The file of tokens cannot be read: {reason_of(error)}.")


def content_of(raw: Source) -> Content:
    """The content of an open file.

    Raises:
        InputError: not even its beginning can be read.
    """
    try:
        return Content(raw)
    except (OSError, CompressedDataError) as error:
        raise cannot_read(error) from None


def next_chunk(content: Content | ParquetContent, line: int) -> bytes:
    """The next piece of a file of which so many lines were read; nothing at its end.

    Raises:
        InputError: it cannot be read any further.
    """
    try:
        return content.read()
    except (OSError, CompressedDataError) as error:
        reason = reason_of(error)
    raise InputError(f"Reading the tokens broke off after line {line:,}: {reason}.")
