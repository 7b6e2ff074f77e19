"""`flinks-async report`: writes an HTML page about a job."""

from __future__ import annotations

import click

from ..bulk.inputs import STDIN
from .console import UsageError, debug_option, say
from .exit_codes import Exit, epilog
from .options import directory_argument
from .output import HTML, Command, to_stdout, whole_file


@click.command(cls=Command, epilog=epilog())
@directory_argument
@click.option("--out", metavar="FILE", help="File for the page, '-' for standard output [DIR/report.html].")
@click.option("--force", is_flag=True, help="Overwrite a file --out that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the current report as JSON instead.")
@debug_option
def report(directory: str, out: str | None, force: bool, as_json: bool) -> int:
    """Write a page about a job: outcome, throughput, response times, throttling, checksums.

    It is one HTML file that loads nothing, and holds no token, no secret and no personal data. The job may be running.
    """
    from ..bulk.report import is_page_of, json_report, report_page, write_report  # not needed by the other commands

    if as_json:
        if out is not None:
            raise UsageError("--json prints the report and --out writes the page: use one of them.")
        to_stdout(json_report(directory))
    elif out is None or is_page_of(directory, out):
        say(f"The report is in {write_report(directory)}")
    elif out == STDIN:
        to_stdout(report_page(directory))
    else:
        with whole_file(out, directory, HTML, force=force) as write:
            write(report_page(directory))
        say(f"The report is in {out}")
    return Exit.OK
