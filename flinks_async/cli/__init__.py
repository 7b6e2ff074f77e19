"""The command line `flinks-async`. One file a command.

This file imports nothing but the standard library, so that a missing extra can be named.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from .exit_codes import Exit

__all__ = ["main"]


def main() -> None:
    """The entry point of `flinks-async` and of `python -m flinks_async.cli`; leaves through `sys.exit`."""
    _open_missing_streams()
    try:
        _main()
    except KeyboardInterrupt:  # before there is a command that could handle it, since imports take a moment
        print("Interrupted.", file=sys.stderr)
        sys.exit(Exit.SIGINT)


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
