"""How commands fail: wrong usage, said in our own words, and the exit codes of errors."""

from __future__ import annotations

import re
from typing import Final

import click

from ..bulk.errors import JobError, LedgerError, StoreError, WorkerError
from ..errors import AuthenticationError, ConfigError, FlinksError, InvalidTokenError
from .exit_codes import Exit


class UsageError(click.UsageError):
    """Wrong usage. Its message holds no value that was typed, except names of options, files and columns."""

    def __init__(self, message: str) -> None:
        super().__init__(message, click.get_current_context(silent=True))


_OPTIONS: Final = {
    "`format`": "--format",
    "`column`": "--column",
    "`key_column`": "--key-column",
    "`instance_column`": "--instance-column",
    "`delimiter`": "--delimiter",
    "`encoding`": "--encoding",
    "`header=False`": "--no-header",
    "`path`": "--tokens",
    "`forget_answers`": "--forget-answers",
}


def message_of(error: FlinksError) -> str:
    """The error's text, with options of the command line in place of fields of `Layout`."""
    return re.sub("`[a-z_]+(?:=[A-Za-z]+)?`", lambda field: _OPTIONS.get(field[0], field[0]), str(error))


def exit_code_of(error: FlinksError) -> Exit:
    """The exit code for an error that ended a command."""
    if isinstance(error, AuthenticationError):
        return Exit.REFUSED
    if isinstance(error, (StoreError, LedgerError)):
        return Exit.OUTPUT
    if isinstance(error, WorkerError):
        return Exit.STOPPED
    return Exit.USAGE if isinstance(error, (ConfigError, InvalidTokenError, JobError)) else Exit.FAILED
