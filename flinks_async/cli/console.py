"""Standard error: messages, the log, and the switch for details."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import environ

import click

from ..errors import FlinksError
from ..secret import SecretFilter, redact, redact_request
from .usage import message_of

_debug = False


def say(message: str) -> None:
    """One message on standard error. If nobody can read it, the run goes on."""
    with suppress(OSError, ValueError, AttributeError):  # closed, closed as a file, never there
        print(printable(message), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Without the control characters that could steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def tell(error: FlinksError) -> None:
    """The error that ended a command."""
    say(f"Error: {type(error).__name__}: {message_of(error)}")
    trace(error)


def trace(error: BaseException) -> None:
    """Where an error came from, if --debug was given."""
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
        logging.getLogger("flinks_async").setLevel(logging.DEBUG)


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_debug,
    help="Show the log of the package, and where an unexpected error came from. Secrets stay masked.",
)


class _Said(logging.Handler):
    """Writes where `say` does: standard error as it is now, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """While a command runs, warnings of any library go to standard error, with URLs and headers masked."""
    handler = _Said()
    handler.addFilter(SecretFilter())
    handler.setFormatter(logging.Formatter("%(levelname)s: %(name)s: %(message)s"))
    root, package = logging.getLogger(), logging.getLogger("flinks_async")
    level = package.level
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        package.setLevel(level)
