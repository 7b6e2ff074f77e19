"""`flinks-async purge`: deletes a job and its answers."""

from __future__ import annotations

import click

from .. import bulk
from .console import UsageError, debug_option, say
from .exit_codes import Exit, epilog
from .options import directory_argument
from .output import Command
from .secret_input import stdin_is_terminal


@click.command(cls=Command, epilog=epilog())
@directory_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--forget-answers",
    is_flag=True,
    help="Remove the job even if its answers cannot be found; they stay where they are.",
)
@debug_option
def purge(directory: str, yes: bool, forget_answers: bool) -> int:
    """Remove the job in DIR and all its answers, and list what was removed. The file of tokens stays."""
    if not yes and not _confirmed(directory):
        say("Nothing was removed.")
        return Exit.OK
    for line in bulk.purge(directory, forget_answers=forget_answers):
        say(line if line.startswith("left") else f"removed: {line}")
    return Exit.OK


def _confirmed(directory: str) -> bool:
    if not stdin_is_terminal():
        raise UsageError("purge deletes data permanently. Confirm it with --yes.")
    try:
        answers = f"its {bulk.status(directory).totals.fetched:,} answers"
    except bulk.LedgerError:  # broken, or removed by a purge that was interrupted
        answers = "its answers"
    return click.confirm(f"Delete the job in {directory} and {answers} permanently?", err=True)
