"""Standard error: messages, the text and the exit code of an error, the log, and `--debug`."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import environ
from typing import Any, Final

import click

from ..bulk.errors import JobError, JobLockedError, LedgerError, StoreError, WorkerError
from ..bulk.inputs.scan import NO_TOKENS
from ..bulk.records import to_json
from ..bulk.run import LASTING_TROUBLE
from ..checks import counted, duration
from ..errors import AuthenticationError, ConfigError, FlinksError, InvalidTokenError, shortage
from ..limits.notices import is_no_notice
from ..secret import SecretFilter, redact, redact_request
from . import Exit

_debug = False
_json_events = False


def use_events() -> None:
    """From now on, until the end of the command, log lines and the error that ends it are JSON events."""
    global _json_events
    _json_events = True


def event(name: str, /, **values: Any) -> bool:
    """Writes a JSON event to standard error, if the command shows its progress so. False if not."""
    if _json_events:
        say(escaped(to_json({"event": name, **values}).decode()))
    return _json_events


class UsageError(click.UsageError):
    """Wrong usage. The message repeats no value that was typed, except names of options, columns and existing files."""

    def __init__(self, message: str) -> None:
        super().__init__(message, click.get_current_context(silent=True))


class OutputError(Exception):
    """The output cannot be written. The message names the file and the reason."""


class ReaderGone(OutputError):
    """The program that read standard output has closed it."""


def say(*lines: str) -> None:
    """Writes a message to standard error. A closed standard error does not end the run."""
    with suppress(OSError, ValueError, AttributeError):
        print(printable(*lines), file=sys.stderr, flush=True)


def printable(*lines: str) -> str:
    """The lines without control characters and marks of direction, which could steer a terminal or a reader.

    A line break inside of a line is one of them: in the name of a file, it could pretend a message of ours.
    """
    return "\n".join(_without_controls(line, "\t", lambda c: "\N{REPLACEMENT CHARACTER}") for line in lines)


def escaped(text: str) -> str:
    """The same for JSON, without loss: in JSON, these characters occur only inside strings, and become escapes."""
    return _without_controls(text, "\n\t", lambda c: json.dumps(c)[1:-1])


def _without_controls(text: str, kept: str, replace: Callable[[str], str]) -> str:
    return "".join(c if c.isprintable() or c in kept else replace(c) for c in text)


_OPTION_OF: Final = {
    "instance must": "--instance must",
    "auth_scheme": "--auth-scheme",
    "base_url": "--base-url",
    "allow_http=True": "--allow-http",
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
"""Options by the settings that messages of the library name."""
_SETTING: Final = re.compile("|".join(map(re.escape, _OPTION_OF)))


def with_options(message: str) -> str:
    """A message of the library with options in place of settings."""
    return _SETTING.sub(lambda name: _OPTION_OF[name[0]], message)


def text_of(error: FlinksError) -> str:
    """An error in words: its message, and in brackets what else is known about the request."""
    message = with_options(error.message)
    known = (
        f"status {error.status}" if error.status is not None and str(error.status) not in message else "",
        error.flinks_code if error.flinks_code is not None and error.flinks_code not in message else "",
        f"request id {error.request_id}" if error.request_id else "",
        counted(error.attempts, "attempt") if error.attempts is not None else "",
        f"after {duration(error.elapsed)}" if error.elapsed is not None else "",
        f"retry after {duration(error.retry_after)}" if error.retry_after is not None else "",
        f"token fingerprint {error.token_fingerprint}" if error.token_fingerprint else "",
    )
    details = ", ".join(part for part in known if part)
    return f"{message} ({details})" if details else message


def described(error: Exception) -> tuple[str, Exit]:
    """An error that ended a command in words, and the exit code for it."""
    if isinstance(error, click.UsageError):
        return error.format_message(), Exit.USAGE
    if isinstance(error, OutputError):
        return str(error), Exit.OUTPUT
    if isinstance(error, FlinksError):
        return text_of(error), next((code for kind, code in _CODES.items() if isinstance(error, kind)), Exit.FAILED)
    if (reason := shortage(error)) is not None:
        return (
            f"this process is short of memory, threads or files ({reason}). What was committed is kept. Give it more, or use a "
            "lower --concurrency, --open-shards, --shard-size or --processes, and run the same command again",
            Exit.STOPPED,
        )
    return f"unexpected {type(error).__name__}", Exit.UNEXPECTED


_CODES: Final[dict[type[FlinksError], Exit]] = {
    AuthenticationError: Exit.REFUSED,
    StoreError: Exit.OUTPUT,
    LedgerError: Exit.OUTPUT,
    WorkerError: Exit.STOPPED,
    JobLockedError: Exit.LOCKED,
    ConfigError: Exit.USAGE,
    InvalidTokenError: Exit.USAGE,
    JobError: Exit.USAGE,
}
"""Exit codes by class of error; the first one that fits counts."""


def trace(error: BaseException) -> None:
    """Shows the traceback of an error if `--debug` was given."""
    if not _debug:
        return
    for block in traceback.format_exception(error):
        for line in block.splitlines():
            say(redact(redact_request(line), limit=500))


def on_terminal() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    try:
        return sys.stderr.isatty() and environ.get("TERM") != "dumb"
    except (OSError, ValueError, AttributeError):
        return False


def _set_debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    global _debug
    _debug = value
    if value:
        logging.getLogger("flinks_async").setLevel(logging.INFO)


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_debug,
    help="Show the log of the package, and the traceback of an error. Secrets stay masked.",
)


class _ConsoleHandler(logging.Handler):
    """Writes to the current standard error, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        fields = {name: value for name, value in vars(record).items() if name.startswith("flinks_")}
        if not event("log", text=text, **fields):
            say(*text.split("\n"))


class _Formatter(logging.Formatter):
    """One line and perhaps a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _is_news(record: logging.LogRecord) -> bool:
    """Not what the command reports itself: an outage, an input without tokens, the error that ended a run. --debug shows the
    first two.
    """
    if record.name == "flinks_async.bulk" and str(record.msg).startswith("run broken off"):
        return False
    return _debug or (is_no_notice(record) and record.msg not in (LASTING_TROUBLE, NO_TOKENS))


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """While a command runs, writes warnings of all libraries to standard error, with URLs and headers masked."""
    handler = _ConsoleHandler()
    handler.addFilter(_is_news)
    handler.addFilter(SecretFilter())
    handler.setFormatter(_Formatter("%(levelname)s: %(name)s: %(message)s"))
    root, package = logging.getLogger(), logging.getLogger("flinks_async")
    level = package.level
    root.addHandler(handler)
    try:
        yield
    finally:
        global _json_events
        _json_events = False
        root.removeHandler(handler)
        package.setLevel(level)
