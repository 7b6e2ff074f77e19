"""What the exit code of a command says. The only place that has the numbers."""

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
    Exit.FAILED: "some tokens failed or could not be sent: see the file of failed tokens; verify: a problem was found",
    Exit.USAGE: "wrong usage: an option, a missing secret, a file of tokens that cannot be used, another job's directory",
    Exit.STOPPED: "stopped before the end: by a rule, by what would meet every token (a certificate, a redirect), or since worker processes end again and again; the same command goes on with a job",
    Exit.REFUSED: "the AuthSecret, or the form of its header, is refused",
    Exit.OUTPUT: "output, store or ledger fails, or the input breaks off or changes under a run (without a message: its reader went away)",
    Exit.UNEXPECTED: "an error that should not happen; --debug shows where",
    Exit.SIGINT: "interrupted (Ctrl-C); 143: terminated; 129: hung up",
}


def epilog() -> str:
    """The table above for `--help`."""
    rows = "\n".join(f"  {code.value:>3}  {meaning}" for code, meaning in MEANING.items())
    return f"\b\nExit codes:\n{rows}"
