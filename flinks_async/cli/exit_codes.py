"""The exit codes of all commands, and their meaning. No other place has these numbers."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """The exit codes of `flinks-async`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    STOPPED = 3
    REFUSED = 4
    OUTPUT = 5
    UNEXPECTED = 70
    SIGHUP = 129
    SIGINT = 130
    SIGTERM = 143


MEANING: Final[dict[Exit, str]] = {
    Exit.OK: "all tokens were fetched; nothing is wrong",
    Exit.FAILED: "some tokens failed or could not be sent (see the file of failed tokens), or verify found a problem",
    Exit.USAGE: "wrong usage: an option, a missing secret, a file of tokens that cannot be used, the directory of another job",
    Exit.STOPPED: "stopped early: a limit was reached, a problem affects every token (a certificate, a redirect), or worker processes keep crashing; the same command resumes",
    Exit.REFUSED: "the AuthSecret, or the form of its header, is refused",
    Exit.OUTPUT: "output, store or ledger cannot be written, or the input changed or was cut short (no message if the reader of the output went away)",
    Exit.UNEXPECTED: "unexpected error; --debug shows details",
    Exit.SIGINT: "interrupted (Ctrl-C); 143: terminated; 129: hung up",
}


def epilog() -> str:
    """The table for `--help`."""
    rows = "\n".join(f"  {code.value:>3}  {meaning}" for code, meaning in MEANING.items())
    return f"\b\nExit codes:\n{rows}"
