"""What the exit code of a command says. The only place that has the numbers."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """The exit codes of `flinks-async`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 4
    OUTPUT = 5
    UNEXPECTED = 70
    SIGHUP = 129
    SIGINT = 130
    SIGTERM = 143


MEANING: Final[dict[Exit, str]] = {
    Exit.OK: "all tokens were fetched",
    Exit.FAILED: "some tokens failed or could not be sent; they are in the file of failed tokens",
    Exit.USAGE: "wrong usage: an option, a missing secret, an input file that cannot be read",
    Exit.REFUSED: "the AuthSecret, or the form of its header, is refused",
    Exit.OUTPUT: "the output cannot be written, or the input broke off (without a message: its reader went away)",
    Exit.UNEXPECTED: "an error that should not happen; --debug shows where",
    Exit.SIGINT: "interrupted (Ctrl-C); 143: terminated; 129: hung up",
}


def epilog() -> str:
    """The table above for `--help`."""
    rows = "\n".join(f"  {code.value:>3}  {meaning}" for code, meaning in MEANING.items())
    return f"\b\nExit codes:\n{rows}"
