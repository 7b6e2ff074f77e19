"""`flinks-async verify`: reads the answers of a job back and compares them with its ledger."""

from __future__ import annotations

import click

from .. import bulk
from .console import counted, debug_option, printable, say
from .exit_codes import Exit, epilog
from .options import directory_argument
from .output import Command, to_stdout


@click.command(cls=Command, epilog=epilog())
@directory_argument
@debug_option
def verify(directory: str) -> int:
    """Read the answers of the job in DIR back and compare them with its ledger.

    Each problem is one line on standard output.
    """
    problems = bulk.verify(directory)
    if not problems:
        say("No problem found.")
        return Exit.OK
    to_stdout("".join(printable(f"{problem.where}: {problem.what}") + "\n" for problem in problems).encode())
    say(f"{counted(len(problems), 'problem')} found.")
    return Exit.FAILED
