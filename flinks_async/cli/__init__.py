"""The command line `flinks-async`: its start, and the exit codes of all commands.

This file imports only the standard library before it has checked that the packages of the extra `cli` are installed.
"""

from __future__ import annotations

import os
import sys
import textwrap
from enum import IntEnum
from typing import Final, NoReturn

__all__ = ["main"]


def main() -> None:
    """The entry point of `flinks-async` and of `python -m flinks_async.cli`; leaves through `sys.exit`."""
    _open_missing_streams()
    try:
        _main()
    except KeyboardInterrupt:  # before there is a command that could handle it, since imports take a moment
        print("Interrupted.", file=sys.stderr)
        sys.exit(Exit.SIGINT)
    finally:
        try:
            sys.stderr.flush()
        except (OSError, AttributeError):  # full, or closed; Python 3.14 would try again at its end, and exit with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _open_missing_streams() -> None:
    """Opens the null device in place of standard streams that are closed. Otherwise the next file or socket would get one of
    their numbers: messages would be written to it, and uvloop aborts. `sys.stdout` stays None, so lost output is noticed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def _main() -> NoReturn:
    from ..checks import optional_import
    from ..errors import ConfigError

    try:
        for package in ("click", "rich"):
            optional_import(package, extra="cli")
    except ConfigError as error:
        print(f"flinks-async: {error.message}", file=sys.stderr)
        sys.exit(Exit.USAGE)
    from .app import app

    app.main(prog_name="flinks-async")


class Exit(IntEnum):
    """The exit codes of `flinks-async`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    STOPPED = 3
    REFUSED = 4
    OUTPUT = 5
    LOCKED = 6
    UNEXPECTED = 70
    SIGHUP = 129
    SIGINT = 130
    SIGTERM = 143


MEANING: Final[dict[Exit, str]] = {
    Exit.OK: "all tokens were fetched; nothing is wrong",
    Exit.FAILED: "some tokens failed or could not be sent (see the file of failed tokens), or verify or doctor found a problem",
    Exit.USAGE: "wrong usage: an option, a missing secret, a file of tokens that cannot be used, the directory of another job",
    Exit.STOPPED: "stopped early: a limit was reached, a problem affects every token (a certificate, a redirect), workers keep crashing, a cluster is lost or has no worker, or memory is short; the same command resumes",
    Exit.REFUSED: "the AuthSecret, or the form of its header, is refused",
    Exit.OUTPUT: "output, store or ledger cannot be written, or the input changed or was cut short (no message if the reader of the output went away)",
    Exit.LOCKED: "another process works on the job; nothing was done, so run the same command again when it has ended",
    Exit.UNEXPECTED: "unexpected error; --debug shows details",
    Exit.SIGINT: "interrupted (Ctrl-C); 143: terminated; 129: hung up",
}


def epilog() -> str:
    """The table for `--help`."""
    rows = (
        textwrap.fill(meaning, 78, initial_indent=f"  {code.value:>3}  ", subsequent_indent=" " * 7)
        for code, meaning in MEANING.items()
    )
    return "\b\nExit codes:\n" + "\n".join(rows)
