"""`flinks-async fetch`: the tokens of a file or of standard input become answers, by a job."""

from __future__ import annotations

import secrets
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NoReturn

import click
from attrs import define, field, frozen

from ..bulk import (
    SHARD_SIZE,
    Executor,
    Failure,
    InputBytes,
    InputError,
    InputFile,
    Job,
    Layout,
    Scanned,
    Shard,
    Store,
    scan,
)
from ..bulk.files import MANIFEST
from ..bulk.inputs import NO_KEY, STDIN, ShardReader, Token
from ..checks import counted
from . import Exit, epilog
from .access import Access, access_options, instances_option, make_clients
from .console import UsageError, debug_option, duration, say
from .display import RESUME, choose_display, reporting_errors
from .job_run import JobRun, OnScan
from .options import (
    Speed,
    Stops,
    Telling,
    layout_options,
    path_name,
    processes_option,
    progress_options,
    speed_options,
    stop_options,
)
from .output import (
    STORES,
    WITHOUT_FILE,
    Command,
    StdoutStore,
    check_output,
    make_store,
    split_name,
    store_of,
    to_stdout,
)
from .secret_input import named, read_all_stdin
from .signals import run

_HELP = """Fetch the data behind many access tokens.

TOKENS is a text file with one token per line, a CSV file with a header row, a JSONL file or a Parquet file, plain or
compressed with gzip or Zstandard; '-' is standard input.

The answers go to FILE; without --out, to a file beside TOKENS. The progress is kept in a directory beside FILE (FILE.job,
or DIR): after any interruption, run the same command again to resume. DIR/failed.jsonl has one line for each failed token
and each invalid line, with its line number and never with the token.

With --out -, answers are printed as shards complete, and failed lines go to standard error; such a run cannot be resumed.

The first Ctrl-C takes no more tokens and waits for requests in flight; the second one stops at once.
"""
_STREAMED_SHARD: Final = 100
"""Tokens in a shard whose answers are printed, so that the first ones appear soon."""
_SHOWN: Final = 5
_ROWS_SHOWN: Final = 3


@click.command(cls=Command, help=_HELP, epilog=epilog())
@click.argument("tokens", metavar="TOKENS", callback=path_name)
@click.option("--out", metavar="FILE", callback=path_name, help="File for the answers, '-' for standard output.")
@click.option(
    "--job",
    "directory",
    metavar="DIR",
    callback=path_name,
    help="Directory of the job [FILE.job]. Without --out, it has the answers.",
)
@click.option(
    "--store",
    type=click.Choice(STORES),
    help="Format of the answers [by the name of FILE, else jsonl]. PGHOST, PGDATABASE and so on say where PostgreSQL is.",
)
@layout_options
@click.option(
    "--shard-size",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help=f"Tokens that are committed together [{SHARD_SIZE:,}; {_STREAMED_SHARD} with --out -].",
)
@stop_options
@processes_option
@instances_option
@click.option("--dry-run", "dry", is_flag=True, help="Only report what TOKENS holds. Needs no secret and no network.")
@click.option(
    "--assume-rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Tokens per second that --dry-run expects [--rate].",
)
@speed_options
@progress_options
@access_options
@debug_option
def fetch(
    tokens: str,
    out: str | None,
    directory: str | None,
    store: str | None,
    layout: Layout,
    shard_size: int | None,
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
        report = dry_run(_open_source(tokens, layout), shard_size or SHARD_SIZE, assume_rate or speed.rate)
        to_stdout(f"{report}\n".encode())
        return Exit.OK
    with ExitStack() as stack:
        with reporting_errors(telling.kind):
            if tokens == STDIN and access.secret_file == STDIN:
                raise UsageError("TOKENS and --secret-file cannot both be '-'.")
            target = _target(tokens, out, directory, store, stack)
            clients = make_clients(access, speed.settings(), instances, layout.instance_column)
        size = shard_size or (_STREAMED_SHARD if out == STDIN else SHARD_SIZE)

        def start(source: InputFile | None, on_scan: OnScan) -> Job:
            assert source is not None
            try:
                job = Job.start(
                    target.directory, source, target.store, clients.origin, shard_size=size, on_scan=on_scan
                )
            except InputError as error:
                _raise_named(error, tokens, layout)
            return job

        def open_source() -> InputFile:
            source = None if tokens == STDIN else _open_source(tokens, layout)
            display.begin(target.words, job=target.shown, answers=target.answers)
            return source or _open_source(tokens, layout)

        display = choose_display(telling.kind, beside_answers=out == STDIN)
        job_run = JobRun(
            start,
            clients,
            stops.rules(),
            executor,
            display,
            open_source=open_source,
            resume=target.resume,
            show_rows=target.streamed,
            abandon=target.store.abandon if isinstance(target.store, StdoutStore) else lambda: None,
        )
        code = run(job_run.go)
    if code is Exit.OK and directory is None and not target.streamed:
        say(
            f"{target.directory} is not needed to resume any more: delete it, or keep it for status, verify and report."
        )
    return code


# --- where answers go -------------------------------------------------------------------------------------------------


@frozen
class _Target:
    """Where a run keeps its job and its answers.

    Attributes:
        directory: of the job.
        store: for the answers.
        words: what is said at the start.
        answers: file of the answers; None if they are in the directory or in a database.
        streamed: answers are printed, and the directory is temporary.
        resume: how to fetch what is left.
    """

    directory: Path
    store: Store
    words: str
    answers: str | None = None
    streamed: bool = False
    resume: str = RESUME

    @property
    def shown(self) -> str | None:
        return None if self.streamed else str(self.directory)


def _target(tokens: str, out: str | None, directory: str | None, store: str | None, stack: ExitStack) -> _Target:
    """Decides it by the options.

    Raises:
        UsageError: they do not go together, or the output file exists and belongs to no job.
        OutputError: the output cannot be written.
    """
    if out == STDIN:
        return _streamed(directory, store, stack)
    if tokens == STDIN and out is None and directory is None:
        raise UsageError(
            "Missing option '--out FILE' (a file for the answers, '-' for standard output) or '--job DIR' (a directory)."
        )
    name = store_of(store, out)
    if out is None and directory is None and name not in WITHOUT_FILE:
        out = _beside(tokens, name)
    folder = Path(directory or f"{out or tokens}.job")
    if out is not None:
        _check_file(tokens, Path(out), folder)
    resume = RESUME
    words = f"Answers go to {out}. " if out is not None else ""
    words += f"The job is in {folder}: after an interruption, run the same command again to resume."
    if tokens == STDIN:
        resume = "Standard input is not kept: to fetch them, run the same command with the same input."
        words = (f"Answers go to {out}, the job is in {folder}. " if out else f"The job is in {folder}. ") + (
            "The tokens from standard input stay in memory, so this run cannot be resumed without the same input."
        )
    return _Target(folder, make_store(name, out), words, out, resume=resume)


def _streamed(directory: str | None, store: str | None, stack: ExitStack) -> _Target:
    if directory is not None:
        raise UsageError(
            "--job does not go with --out -: print the answers of a job with flinks-async export DIR --out -."
        )
    if store not in (None, "jsonl"):
        raise UsageError("--out - prints JSONL. For another --store, name a file.")
    temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="flinks-async-"))
    words = "Answers go to standard output. This run cannot be resumed; for that, name a file with --out FILE."
    resume = "A run with --out - cannot be resumed."
    return _Target(Path(temporary) / "job", StdoutStore(), words, STDIN, streamed=True, resume=resume)


def _beside(tokens: str, store: str) -> str:
    """The output file for a file of tokens: `users.csv.gz` has `users.answers.jsonl`."""
    format_, compressed = split_name(tokens)
    stem = tokens[: len(tokens) - len(format_) - len(compressed)] or tokens
    return f"{stem}.answers.{store}"


def _check_file(tokens: str, out: Path, folder: Path) -> None:
    check_output(out)
    try:
        same = tokens != STDIN and out.samefile(tokens)
    except OSError:  # one of them does not exist
        same = False
    if same:
        raise UsageError("--out names the file of tokens. Use another file for the answers.")
    if out.exists() and not (folder / MANIFEST).exists():
        raise UsageError(
            f"{out} exists, and there is no job in {folder} that wrote it. Move it away, or use another --out."
        )


# --- where tokens come from -------------------------------------------------------------------------------------------


def _open_source(tokens: str, layout: Layout) -> InputFile:
    """The input. Standard input is read to its end, and stays in memory.

    Raises:
        InputError, ConfigError: it cannot be used.
    """
    try:
        return InputBytes(read_all_stdin(), layout) if tokens == STDIN else InputFile(tokens, layout)
    except InputError as error:
        _raise_named(error, tokens, layout)


def _raise_named(error: InputError, tokens: str, layout: Layout) -> NoReturn:
    """Raises the error with the name of the file, and without the name of a column, which may be a secret in the wrong place."""
    column = getattr(layout, error.field) if error.field in ("column", "key_column", "instance_column") else None
    message = error.message if column is None else error.message.replace(repr(column), "with this name")
    name = "Standard input" if tokens == STDIN else tokens if named(tokens) else ""
    if name and not message.startswith(f"{name}: "):
        message = f"{name}: {message}"
    raise type(error)(message, field=error.field) from None


# --- --dry-run --------------------------------------------------------------------------------------------------------


@define
class _Found:
    """A `PlanSink` that keeps the first shard and the first invalid lines."""

    first: Shard | None = None
    bad: list[Failure] = field(factory=list)

    def shard(self, shard: Shard, /) -> None:
        self.first = self.first or shard

    def duplicate(self, line: int, first: int, /) -> None:
        pass

    def invalid(self, failure: Failure, /) -> None:
        if len(self.bad) < _SHOWN:
            self.bad.append(failure)


def dry_run(source: InputFile, shard_size: int, rate: float | None) -> str:
    """Reads the input, and says what a job would do. The temporary files that find duplicates hold no tokens.

    Args:
        rate: tokens per second, to estimate the time.

    Raises:
        InputError, StoreError: as `scan`.
    """
    found, key = _Found(), secrets.token_bytes(32)
    with tempfile.TemporaryDirectory(prefix="flinks-async-") as scratch:
        scanned = scan(source, key=key, shard_size=shard_size, scratch=Path(scratch), sink=found)
    rows = []
    if found.first is not None:
        reader = ShardReader(source, key)
        rows = [_masked(token) for token in reader.read(found.first)[:_ROWS_SHOWN]]
        reader.close()
    return "\n".join([*_counts(scanned), *rows, *_bad(found.bad, scanned), _time(scanned.tokens, rate)])


def _masked(token: Token) -> str:
    """One row as it was understood, without what it holds."""
    key = "" if token.key is NO_KEY else f", key {_shape(str(token.key))}"
    instance = "" if token.instance is None else f", instance {token.instance}"
    return f"  line {token.line}: token {_shape(token.token.reveal())}{key}{instance}"


def _shape(text: str) -> str:
    """`x` for letters, `9` for digits, so that a GUID, a number and an e-mail address look different."""
    shape = "".join("x" if c.isalpha() else "9" if c.isdigit() else c for c in text[:_LONGEST_SHAPE])
    return shape + (f"... ({len(text):,} characters)" if len(text) > _LONGEST_SHAPE else "")


_LONGEST_SHAPE: Final = 40


def _counts(scanned: Scanned) -> list[str]:
    rows = (
        ("tokens", scanned.tokens, "would be fetched"),
        ("duplicates", scanned.duplicates, "of tokens on earlier lines"),
        ("invalid", scanned.invalid, "nothing can be sent"),
        ("blank", scanned.blank, ""),
        ("header", scanned.header, ""),
        ("continued", scanned.continued, "line breaks inside quotes"),
        ("shards", scanned.shards, ""),
        *((f"  {name}", count, "tokens of this instance") for name, count in scanned.instances.items()),
    )
    return [
        f"{counted(scanned.lines, 'line')}, {counted(scanned.size, 'byte')}",
        *(
            f"  {name:<10} {count:>13,}" + (f"  ({remark})" if remark and count else "")
            for name, count, remark in rows
            if count or name in ("tokens", "shards")
        ),
    ]


def _bad(failures: list[Failure], scanned: Scanned) -> list[str]:
    lines = [f"  line {failure.line}: {failure.message}" for failure in failures]
    more = scanned.invalid - len(failures)
    return [*lines, f"  and {more:,} more"] if more else lines


def _time(tokens: int, rate: float | None) -> str:
    if not tokens:
        return "There are no tokens to fetch."
    if rate is None:
        return "For an estimate of the time, add --rate or --assume-rate."
    return f"At {rate:g} tokens per second, it takes at least {duration(tokens / rate)}."
