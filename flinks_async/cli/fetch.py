"""`flinks-async fetch`: a file of tokens in, a file of answers out."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import click
from attrs import evolve

from .. import config
from ..config import Settings
from .console import debug_option, say
from .exit_codes import epilog
from .fetch_run import REFUSED_AFTER, FetchRun, Outputs
from .metrics import Metrics
from .one_value import STDIN
from .options import Access, access_options
from .output import LineFile, OutputError, ReaderGone, Stdout
from .run import run
from .stderr_lines import StderrLines
from .summary import summary
from .token_files import Format, Layout, open_tokens
from .usage import Wrong

_HELP = """Fetch the data behind many access tokens.

TOKENS is a text file with one token a line, a CSV file with a header row, or a JSONL file; '-' is standard input.
Every line of it ends up in one of three files: FILE (the answers), FILE.failed.jsonl (failed tokens and invalid
lines, by line number, never with the token) and FILE.skipped.jsonl (blank lines and duplicates).

The first Ctrl-C takes no more tokens and finishes what is in flight; the second one stops at once.
"""


@click.command(help=_HELP, epilog=epilog())
@click.argument("tokens", metavar="TOKENS")
@click.option("--out", metavar="FILE", required=True, help="JSONL file for the answers, '-' for standard output.")
@click.option("--failed", metavar="FILE", help="File for failed tokens [FILE.failed.jsonl].")
@click.option("--skipped", metavar="FILE", help="File for blank lines and duplicates [FILE.skipped.jsonl].")
@click.option(
    "--format", "format_", type=click.Choice(["auto", "text", "csv", "jsonl"]), default="auto", help="Of TOKENS."
)
@click.option("--column", metavar="NAME", help="Column or field with the token.")
@click.option("--key-column", metavar="NAME", help="Column or field that is copied to the output, to find rows again.")
@click.option("--delimiter", metavar="CHAR", help="Of CSV: ',' ';' or 'tab' [',', in a .tsv file 'tab'].")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Requests at once, a fixed number [as the bulk preset].",
)
@click.option("--attempts", type=click.IntRange(1, 100), metavar="N", help="Attempts for each token [6].")
@click.option("--ordered", is_flag=True, help="Answers in the order of TOKENS.")
@click.option(
    "--refused-after",
    type=click.IntRange(min=1),
    metavar="N",
    default=REFUSED_AFTER,
    show_default=True,
    help="Stop when so many tokens in a row are answered that the AuthSecret is refused.",
)
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@click.option("--quiet", is_flag=True, help="No progress; the summary stays.")
@access_options
@debug_option
def fetch(
    tokens: str,
    out: str,
    failed: str | None,
    skipped: str | None,
    format_: Format,
    column: str | None,
    key_column: str | None,
    delimiter: str | None,
    concurrency: int | None,
    attempts: int | None,
    ordered: bool,
    refused_after: int,
    force: bool,
    quiet: bool,
    access: Access,
    timeout: float | None,
) -> int:
    if tokens == STDIN and access.secret_file == STDIN:
        raise Wrong("TOKENS and --secret-file cannot both be '-'.")
    metrics = Metrics()
    client = access.client(bulk_settings(concurrency, attempts, timeout), metrics)
    outputs = _outputs(out, failed, skipped, tokens, force=force)
    layout = Layout(format_, column, key_column, _delimiter(delimiter))
    with closing(open_tokens(tokens, layout)) as file:
        outputs.open()
        job = FetchRun(client, file, outputs, metrics, concurrency, ordered, refused_after, quiet)
        return run_and_tell(job)


def run_and_tell(job: FetchRun) -> int:
    """Runs a job and says what it came to; its exit code."""
    try:
        run(job.go())
    except ReaderGone:
        return job.exit  # in silence, like every program before a `| head`
    except OutputError as error:
        say(f"Error: {error}")
    say(summary(job))
    return job.exit


def bulk_settings(
    concurrency: int | None = None, attempts: int | None = None, timeout: float | None = None
) -> Settings:
    """The bulk preset, with what was asked for on the command line."""
    settings = config.bulk()
    if concurrency is not None:
        settings = evolve(settings, limits=evolve(settings.limits, concurrency=concurrency))
    if attempts is not None:
        settings = evolve(settings, retry=evolve(settings.retry, attempts=attempts))
    if timeout is not None:
        settings = evolve(settings, timeouts=evolve(settings.timeouts, deadline=timeout))
    return settings


def _delimiter(given: str | None) -> str | None:
    if given is None:
        return None
    delimiter = {"tab": "\t", "\\t": "\t"}.get(given, given)
    if delimiter not in (",", ";", "\t", "|"):
        raise Wrong("--delimiter must be one of ',' ';' '|' and 'tab'.")
    return delimiter


def _outputs(out: str, failed: str | None, skipped: str | None, tokens: str, *, force: bool) -> Outputs:
    def beside(given: str | None, kind: str) -> LineFile | StderrLines:
        if given is not None:
            return LineFile(Path(given), force=force)
        return StderrLines() if out == STDIN else LineFile(_beside(Path(out), kind), force=force)

    outputs = Outputs(
        Stdout() if out == STDIN else LineFile(Path(out), force=force),
        beside(failed, "failed"),
        beside(skipped, "skipped"),
    )
    files = outputs.files()
    if len({os.path.normcase(os.path.abspath(file.path)) for file in files}) < len(files):
        raise Wrong("--out, --failed and --skipped must be different files.")
    if any(_same_file(tokens, path) for file in files for path in (file.path, file.part)):
        raise Wrong("The file of tokens cannot be an output file too.")
    return outputs


def _beside(out: Path, kind: str) -> Path:
    """`answers.jsonl` -> `answers.failed.jsonl`."""
    return out.with_name(f"{out.stem if out.suffix == '.jsonl' else out.name}.{kind}.jsonl")


def _same_file(tokens: str, path: Path) -> bool:
    try:
        return tokens != STDIN and os.path.samefile(tokens, path)
    except (OSError, ValueError):  # one of them does not exist
        return False
