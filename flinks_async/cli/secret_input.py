"""One secret or one token, from a file, standard input, the environment or a hidden prompt; never an argument."""

from __future__ import annotations

import errno
import os
import sys
from typing import BinaryIO, Final

import click

from ..endpoint import WHERE_SECRETS_COME_FROM
from ..secret import Secret
from .usage import UsageError

STDIN: Final = "-"

_MAX_FILE: Final = 64 * 1024

_BOM: Final = b"\xef\xbb\xbf"


def read_secret(secret_file: str | None) -> Secret:
    """The AuthSecret: from --secret-file, else from FLINKS_AUTH_SECRET.

    Raises:
        Wrong: there is none, or the file cannot be read. The message names no value.
    """
    if secret_file is not None:
        return read_line(secret_file, "--secret-file")
    if value := os.environ.get("FLINKS_AUTH_SECRET", "").strip():
        return Secret(value)
    raise UsageError(
        f"No AuthSecret. Set FLINKS_AUTH_SECRET, or name a file with --secret-file ('-' is standard input). "
        f"{WHERE_SECRETS_COME_FROM}."
    )


def read_token(token_file: str | None) -> Secret:
    """The access token: from --token-file, else from FLINKS_ACCESS_TOKEN, else from a hidden prompt on a terminal.

    Raises:
        Wrong: as for `read_secret`.
    """
    if token_file is not None:
        return read_line(token_file, "--token-file", "For many tokens there is 'fetch'.")
    if value := os.environ.get("FLINKS_ACCESS_TOKEN", "").strip(" \t\r\n"):
        return Secret(value)
    if stdin_is_terminal():
        return Secret(click.prompt("Access token", hide_input=True, err=True).strip(" \t\r\n"))
    raise UsageError(
        "No access token. Name a file with --token-file ('-' is standard input), or set FLINKS_ACCESS_TOKEN; "
        "on a terminal you are asked for it."
    )


def read_line(path: str, option: str, hint: str = "") -> Secret:
    """The only line of a file.

    Args:
        option: how the file was given.
        hint: what to do if there are more lines.

    Raises:
        Wrong: as for `read_secret`.
    """
    lines = [line for line in (line.strip(" \t\r") for line in read_text(path, option).split("\n")) if line]
    if not lines:
        raise UsageError(f"What was read for {option} is empty.")
    if len(lines) > 1:
        raise UsageError(f"What was read for {option} has {len(lines)} lines instead of one. {hint}".strip())
    return Secret(lines[0])


def read_text(path: str, option: str) -> str:
    """A small file, '-' for standard input.

    Raises:
        Wrong: as for `read_secret`.
    """
    try:
        text = _read(path, option).removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if text is None:  # raised here, since the error above holds the text
        raise UsageError(f"What was read for {option} is not UTF-8 text.")
    return text


def _read(path: str, option: str) -> bytes:
    try:
        if path == STDIN:
            data = _stdin().read(_MAX_FILE + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(_MAX_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a file"
        # Without the name: somebody may have typed the secret itself.
        raise UsageError(f"The file given with {option} cannot be read: {reason}.") from None
    if len(data) > _MAX_FILE:
        raise UsageError(f"The file given with {option} is larger than {_MAX_FILE} bytes.")
    return data


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise OSError(errno.EBADF, "there is no standard input")
    return sys.stdin.buffer


def stdin_is_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()
