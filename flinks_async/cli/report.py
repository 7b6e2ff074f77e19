"""`flinks-async report`: the page of a job."""

from __future__ import annotations

import click

from .console import debug_option, say
from .exit_codes import Exit, epilog
from .options import directory_argument
from .output import to_stdout, whole_file
from .secret_input import STDIN
from .usage import UsageError


@click.command(epilog=epilog())
@directory_argument
@click.option("--out", metavar="FILE", help="Where to write the page, '-' for standard output [DIR/report.html].")
@click.option("--force", is_flag=True, help="Overwrite a file --out that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON report instead, as it stands now.")
@debug_option
def report(directory: str, out: str | None, force: bool, as_json: bool) -> int:
    """Make a page of what became of a job: outcome, throughput, response times, throttling, checksums.

    One HTML file that loads nothing. It holds no token, no secret and no personal data. The job may be running.
    """
    from ..bulk.report import is_page_of, json_report, report_page, write_report  # not needed by the other commands

    if as_json:
        if out is not None:
            raise UsageError("--json prints the report, and --out is for the page: give one of them.")
        to_stdout(json_report(directory))
    elif out is None or is_page_of(directory, out):
        say(f"The report is in {write_report(directory)}")
    elif out == STDIN:
        to_stdout(report_page(directory))
    else:
        with whole_file(out, directory, force=force) as file:
            file.write_now(report_page(directory))
        say(f"The report is in {out}")
    return Exit.OK
