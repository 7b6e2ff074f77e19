"""The command line `flinks-async`. One file a command.

This file imports nothing but the standard library, so that a missing extra can be named.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from .exit_codes import Exit


def main() -> None:
    """The entry point of `flinks-async` and of `python -m flinks_async.cli`; leaves through `sys.exit`."""
    try:
        _main()
    except KeyboardInterrupt:  # before there is a command that could handle it, since imports take a moment
        print("Interrupted.", file=sys.stderr)
        sys.exit(Exit.SIGINT)


def _main() -> NoReturn:
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError as missing:
        print(
            f"flinks-async: the command line needs {missing.name}, which is not installed. "
            "It comes with the extra 'cli':\n\n    python -m pip install 'flinks-async[cli]'\n",
            file=sys.stderr,
        )
        sys.exit(Exit.USAGE)
    from .app import app

    app.main(prog_name="flinks-async")
