"""`flinks-async purge`: a job's data, removed."""

from __future__ import annotations

import click

from .. import bulk
from .console import debug_option, say
from .exit_codes import Exit, epilog
from .options import directory_argument
from .secret_input import stdin_is_terminal
from .usage import UsageError


@click.command(epilog=epilog())
@directory_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--forget-answers",
    is_flag=True,
    help="Remove the job also if its answers cannot be found: they stay where they are.",
)
@debug_option
def purge(directory: str, yes: bool, forget_answers: bool) -> int:
    """Remove the job in DIR and all its answers, and say what was removed. Its file of tokens stays."""
    if not yes and not _confirmed(directory):
        say("Nothing was removed.")
        return Exit.OK
    for line in bulk.purge(directory, forget_answers=forget_answers):
        say(line if line.startswith("left") else f"removed: {line}")
    return Exit.OK


def _confirmed(directory: str) -> bool:
    if not stdin_is_terminal():
        raise UsageError("This removes data for good. To say that it is meant, add --yes.")
    try:
        answers = f"its {bulk.status(directory).totals.fetched:,} answers"
    except bulk.LedgerError:  # broken, or gone with a purge that was interrupted
        answers = "its answers"
    return click.confirm(f"Remove the job in {directory} and {answers} for good?", err=True)
