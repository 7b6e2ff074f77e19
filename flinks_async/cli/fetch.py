"""`flinks-async fetch`: a file of tokens in, a file of answers out; or a job that goes on whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Final

import click
from click.core import ParameterSource

from ..bulk import SHARD_SIZE, Executor, InputFile, Job, Layout
from .console import debug_option, say
from .dry_run import dry_run
from .exit_codes import Exit, epilog
from .fetch_run import FetchRun
from .instances import instances_option, make_clients
from .job_display import choose_job_display, told
from .job_run import JobRun
from .metrics import Metrics
from .options import (
    Access,
    Speed,
    Stops,
    Telling,
    access_options,
    grouped,
    processes_option,
    progress_options,
    speed_options,
    stop_options,
)
from .output import OutputError, ReaderGone, to_stdout
from .outputs import make_outputs
from .run import run
from .secret_input import STDIN
from .stores import STORES, make_store
from .summary import summary
from .token_files import open_tokens
from .usage import UsageError

_HELP = """Fetch the data behind many access tokens.

TOKENS is a text file with one token a line, a CSV file with a header row, or a JSONL file, plain or compressed (gzip,
Zstandard); '-' is standard input.
Every line of it ends up in one of three files: FILE (the answers), FILE.failed.jsonl (failed tokens and invalid
lines, by line number, never with the token) and FILE.skipped.jsonl (blank lines and duplicates).

With --job it is a job: what is done is kept in DIR, and after whatever ended it, the same command goes on with it.

The first Ctrl-C takes no more tokens and finishes what is in flight; the second one stops at once.
"""

_OF_JOBS: Final = frozenset(
    {
        "--store", "--shard-size", "--open-shards", "--max-failures", "--max-duration", "--instances",
        "--instance-column", "--assume-rate", "--processes", "--drain",
    }
)  # fmt: skip
_NOT_OF_JOBS: Final = frozenset({"--failed", "--skipped", "--ordered", "--force"})


def _delimiter(ctx: click.Context, param: click.Parameter, given: str | None) -> str | None:
    if given is None:
        return None
    delimiter = {"tab": "\t", "\\t": "\t"}.get(given, given)
    if delimiter not in (",", ";", "\t", "|"):
        raise UsageError("--delimiter must be one of ',' ';' '|' and 'tab'.")
    return delimiter


layout_options = grouped(
    "layout",
    Layout,
    click.option(
        "--format", type=click.Choice(["auto", "text", "csv", "jsonl", "parquet"]), default="auto", help="Of TOKENS."
    ),
    click.option("--column", metavar="NAME", help="Column or field with the token."),
    click.option(
        "--key-column", metavar="NAME", help="Column or field that is copied to the output, to find rows again."
    ),
    click.option("--instance-column", metavar="NAME", help="Column or field with the token's instance (jobs)."),
    click.option(
        "--delimiter", metavar="CHAR", callback=_delimiter, help="Of CSV: ',' ';' '|' or 'tab' [as in the header row]."
    ),
    click.option("--encoding", metavar="NAME", help="Of TOKENS, such as utf-16 or cp1252 [utf-8]."),
    click.option(
        "--no-header",
        "header",
        flag_value=True,
        is_flag=True,
        callback=lambda ctx, param, given: False if given else None,
        help="The CSV file has no header row: its columns are called 1, 2 and so on.",
    ),
)


@click.command(help=_HELP, epilog=epilog())
@click.argument("tokens", metavar="TOKENS")
@click.option(
    "--out", metavar="FILE", help="JSONL file for the answers, '-' for standard output. Of a job: see --store."
)
@click.option("--failed", metavar="FILE", help="File for failed tokens [FILE.failed.jsonl].")
@click.option("--skipped", metavar="FILE", help="File for blank lines and duplicates [FILE.skipped.jsonl].")
@click.option("--ordered", is_flag=True, help="Answers in the order of TOKENS.")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@layout_options
@click.option("--job", "directory", metavar="DIR", help="Directory of a job: begin it there, or go on with it.")
@click.option(
    "--store",
    type=click.Choice(STORES),
    default="jsonl",
    show_default=True,
    help="Of a job: where answers go; to DIR, or to the file --out. PostgreSQL: as PGHOST, PGDATABASE and so on say.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    default=SHARD_SIZE,
    show_default=True,
    help="Tokens of a job that are committed together.",
)
@stop_options
@processes_option
@instances_option
@click.option("--dry-run", "dry", is_flag=True, help="Only say what TOKENS holds; needs no secret and no network.")
@click.option(
    "--assume-rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="For --dry-run: tokens a second to expect [--rate].",
)
@speed_options
@progress_options
@access_options
@debug_option
def fetch(
    tokens: str,
    out: str | None,
    failed: str | None,
    skipped: str | None,
    ordered: bool,
    force: bool,
    layout: Layout,
    directory: str | None,
    store: str,
    shard_size: int,
    stops: Stops,
    executor: Executor,
    instances: str | None,
    dry: bool,
    assume_rate: float | None,
    speed: Speed,
    telling: Telling,
    access: Access,
) -> int:
    if dry:
        _refuse_mixture(as_job=True)
        to_stdout(f"{dry_run(InputFile(tokens, layout), shard_size, assume_rate or speed.rate)}\n".encode())
        return Exit.OK
    if directory is not None:
        with told(telling.kind):
            _refuse_mixture(as_job=True)
            clients = make_clients(access, speed.settings(), instances, layout.instance_column)
            chosen = make_store(store, out)

        def start(on_scan: Callable[[int, int], None]) -> Job:
            source = InputFile(tokens, layout)
            return Job.start(directory, source, chosen, clients.origin, shard_size=shard_size, on_scan=on_scan)

        return run(JobRun(start, clients, stops.rules(), executor, choose_job_display(telling.kind)).go)
    _refuse_mixture(as_job=False)
    if out is None:
        raise UsageError(
            "Missing option '--out FILE' (a file for the answers, '-' for standard output) or '--job DIR' (a directory)."
        )
    if tokens == STDIN and access.secret_file == STDIN:
        raise UsageError("TOKENS and --secret-file cannot both be '-'.")
    if telling.progress == "json":
        raise UsageError("--progress json is for jobs; add --job DIR.")
    metrics = Metrics()
    client = access.client(speed.settings(), metrics)
    outputs = make_outputs(out, failed, skipped, tokens, force=force)
    with closing(open_tokens(tokens, layout)) as file:
        outputs.open()
        return _run_and_tell(
            FetchRun(client, file, outputs, metrics, speed.concurrency, ordered, stops.refused_after, telling.kind)
        )


def _refuse_mixture(*, as_job: bool) -> None:
    """Options that would do nothing are refused."""
    context = click.get_current_context()
    given = {
        option
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        for option in parameter.opts
    }
    wrong = sorted(given & (_NOT_OF_JOBS if as_job else _OF_JOBS))
    if wrong:
        raise UsageError(f"{', '.join(wrong)}: {'not for jobs' if as_job else 'for jobs only; add --job DIR'}.")


def _run_and_tell(fetching: FetchRun) -> int:
    """Runs it and says what it came to; its exit code."""
    try:
        run(fetching.go)
    except ReaderGone:
        return fetching.exit  # in silence, like every program before a `| head`
    except OutputError as error:
        say(f"Error: {error}")
    say(summary(fetching))
    return fetching.exit
