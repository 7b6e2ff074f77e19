"""The command line `flinks-async`. One file a command.

This file imports nothing but the standard library, so that a missing extra can be named.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from .exit_codes import Exit

__all__ = ["main"]


def main() -> None:
    """The entry point of `flinks-async` and of `python -m flinks_async.cli`; leaves through `sys.exit`."""
    try:
        _main()
    except KeyboardInterrupt:  # before there is a command that could handle it, since imports take a moment
        print("Interrupted.", file=sys.stderr)
        sys.exit(Exit.SIGINT)


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
