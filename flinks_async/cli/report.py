"""`flinks-async report`: the page of a job."""

from __future__ import annotations

import click

from .console import debug_option, say
from .exit_codes import Exit, epilog
from .output import to_stdout
from .usage import Wrong


@click.command(epilog=epilog())
@click.argument("directory", metavar="DIR")
@click.option("--out", metavar="FILE", help="Where to write the page [DIR/report.html].")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON report instead, as it stands now.")
@debug_option
def report(directory: str, out: str | None, as_json: bool) -> int:
    """Make a page of what became of a job: outcome, throughput, response times, throttling, checksums.

    One HTML file that loads nothing. It holds no token, no secret and no personal data. The job may be running.
    """
    from ..bulk.report import json_report, write_report  # not needed by the other commands

    if as_json:
        if out is not None:
            raise Wrong("--json prints the report, and --out is for the page: give one of them.")
        to_stdout(json_report(directory))
    else:
        say(f"The report is in {write_report(directory, out)}")
    return Exit.OK
