"""Secrets and tokens, from a file, standard input, the environment or a hidden prompt; never from an argument."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import BinaryIO, Final, TypeVar

import click

from ..bulk.errors import InputError
from ..bulk.inputs import STDIN
from ..bulk.selection import PSEUDONYM_KEY
from ..endpoint import WHERE_SECRETS_COME_FROM
from ..secret import Secret
from .console import UsageError

T = TypeVar("T")

_MAX_FILE: Final = 64 * 1024
_PIECE: Final = 1024 * 1024
_BOM: Final = b"\xef\xbb\xbf"


def read_secret(secret_file: str | None) -> Secret:
    """The AuthSecret: from --secret-file, else from FLINKS_AUTH_SECRET.

    Raises:
        UsageError: there is none, or the file cannot be read. The message shows no value.
    """
    if secret_file is not None:
        return read_line(secret_file, "--secret-file")
    if value := os.environ.get("FLINKS_AUTH_SECRET", "").strip():
        return Secret(value)
    raise UsageError(
        f"No AuthSecret. Set FLINKS_AUTH_SECRET, or name a file with --secret-file ('-' is standard input). "
        f"{WHERE_SECRETS_COME_FROM}."
    )


def read_pseudonym_key(key_file: str | None) -> Secret | None:
    """The key of pseudonyms: from --pseudonym-key-file, else from FLINKS_PSEUDONYM_KEY; None if there is none.

    Raises:
        UsageError: as for `read_secret`.
    """
    if key_file is not None:
        return read_line(key_file, "--pseudonym-key-file")
    value = os.environ.get(PSEUDONYM_KEY, "").strip()
    return Secret(value) if value else None


def read_token(token_file: str | None) -> Secret:
    """The access token: from --token-file, else from FLINKS_ACCESS_TOKEN, else from a hidden prompt on a terminal.

    Raises:
        UsageError: as for `read_secret`.
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
        UsageError: as for `read_secret`.
    """
    lines = [line for line in (line.strip(" \t\r") for line in read_text(path, option).split("\n")) if line]
    if not lines:
        raise UsageError(f"The input for {option}{named(path)} is empty.")
    if len(lines) > 1:
        raise UsageError(f"The input for {option}{named(path)} has {len(lines):,} lines instead of one. {hint}".strip())
    return Secret(lines[0])


def read_text(path: str, option: str) -> str:
    """A small file, '-' for standard input.

    Raises:
        UsageError: as for `read_secret`.
    """
    try:
        text = _read(path, option).removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if text is None:  # raised here, since the error above holds the text
        raise UsageError(f"The input for {option}{named(path)} is not UTF-8 text.")
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
        raise UsageError(f"The file given with {option}{named(path)} cannot be read: {reason}.") from None
    if len(data) > _MAX_FILE:
        raise UsageError(f"The file given with {option}{named(path)} is larger than {_MAX_FILE:,} bytes.")
    return data


_FILE_ENDS: Final = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".gz", ".zst", ".toml")


def named(path: str) -> str:
    """The name of a file for a message, in brackets. Empty for a name without such a file and without a usual end: it may be
    a secret in the wrong place.
    """
    return f" ({path})" if path != STDIN and (os.path.exists(path) or path.lower().endswith(_FILE_ENDS)) else ""


def read_all_stdin() -> bytes:
    """Standard input to its end. Without a buffer, since a daemon thread that waits in one would hold its lock at exit.

    Raises:
        InputError: it is closed, or cannot be read.
    """
    try:
        try:
            number = _stdin().fileno()
        except ValueError:  # replaced by a test
            return _stdin().read()
        return b"".join(iter(partial(os.read, number, _PIECE), b""))
    except OSError as error:
        raise InputError(f"Standard input cannot be read: {error.strerror}.") from None


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """Calls `function()` in a thread. If the function blocks forever, the process can still end."""
    future = Future[T]()
    future.set_running_or_notify_cancel()  # so that whoever waits can give up, but not cancel it

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="flinks-async-input", daemon=True).start()
    return await asyncio.wrap_future(future)


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise OSError(errno.EBADF, "it is closed")
    return sys.stdin.buffer


def stdin_is_terminal() -> bool:
    """Whether the user can be asked."""
    try:
        return sys.stdin is not None and sys.stdin.isatty()
    except ValueError:  # closed
        return False
