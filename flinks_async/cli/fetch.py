"""`flinks-async fetch`: the tokens of a file become answers, by a job; and `flinks-async get` for one token."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import click
import msgspec
from attrs import define, field, frozen

from .. import config
from ..bulk import (
    SHARD_SIZE,
    Failure,
    InputBytes,
    InputError,
    InputFile,
    Job,
    Layout,
    Scanned,
    Selection,
    Shard,
    Store,
    scan,
)
from ..bulk.compression import split_name
from ..bulk.files import MANIFEST
from ..bulk.inputs import NO_KEY, STDIN, ShardReader, Token
from ..checks import counted, duration, is_url
from ..client import FlinksClient
from ..models import PartnerAccessResponse
from ..secret import Secret
from . import Exit, epilog
from .access import (
    Access,
    access_options,
    make_clients,
    named,
    pseudonym_key_option,
    read_all_stdin,
    read_pseudonym_key,
    read_token,
)
from .console import UsageError, debug_option, printable, say
from .display import RESUME, choose_display, count_rows, other_lines
from .job_run import JobRun, OnScan, RunOptions, run, run_options
from .options import F, file_name, grouped, layout_options, path_name, positive, timeout_option, whole
from .output import (
    STORES,
    WITHOUT_FILE,
    Command,
    StdoutStore,
    check_output,
    make_store,
    stdout_is_terminal,
    store_of,
    to_stdout,
)

_HELP = """Fetch the data behind many access tokens.

TOKENS is a text file with one token per line, a CSV file with a header row, a JSONL file or a Parquet file, plain or
compressed with gzip or Zstandard, on a disk or in object storage (s3://bucket/tokens.csv); '-' is standard input.

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
_LONGEST_SHAPE: Final = 40


def _selection(
    tables: tuple[str, ...],
    columns: tuple[str, ...],
    drop: tuple[str, ...],
    pseudonyms: tuple[str, ...],
    pseudonym_key_file: str | None,
) -> Selection | None:
    if not (tables or columns or drop or pseudonyms):
        if pseudonym_key_file is not None:
            raise UsageError("--pseudonym-key-file needs --pseudonyms, the columns whose values are replaced.")
        return None
    key = read_pseudonym_key(pseudonym_key_file) if pseudonyms else None
    if pseudonyms and key is None:
        raise UsageError(
            "No key for --pseudonyms. Set FLINKS_PSEUDONYM_KEY, or name a file with --pseudonym-key-file ('-' is standard input)."
        )
    return Selection(tables=tables or None, columns=columns, drop=drop, pseudonyms=pseudonyms, pseudonym_key=key)


def _names_option(name: str, help_: str) -> Callable[[F], F]:
    """An option that takes names with commas between, and may be repeated."""
    return click.option(
        name,
        metavar="NAMES",
        multiple=True,
        callback=lambda ctx, param, given: tuple(part.strip() for text in given for part in text.split(",")),
        help=help_,
    )


selection_options = grouped(
    "selection",
    _selection,
    _names_option(
        "--tables", "Tables to keep [all]: accounts, transactions, holders. Nothing else is written anywhere."
    ),
    _names_option("--columns", "Columns to keep [all], such as accounts.id."),
    _names_option("--drop", "Tables and columns to leave out, such as holders,accounts.title."),
    _names_option(
        "--pseudonyms", "Columns whose values are replaced by a keyed HMAC, such as accounts.account_number."
    ),
    pseudonym_key_option,
)


@click.command(cls=Command, help=_HELP, epilog=epilog())
@click.argument("tokens", metavar="TOKENS", callback=path_name)
@file_name(
    "--out",
    help="File for the answers, '-' for standard output, or a folder in object storage: s3://bucket/folder/ (or gs, az).",
)
@file_name(
    "--job", "directory", metavar="DIR", help="Directory of the job [FILE.job]. Without --out, it has the answers."
)
@click.option(
    "--store",
    type=click.Choice(STORES),
    help="Format of the answers [by the name of FILE, else jsonl]. PGHOST, PGDATABASE and so on say where PostgreSQL is.",
)
@click.option(
    "--fetched-on",
    metavar="DAY",
    help="Day of the job, such as 2026-11-28: Parquet files go into a Hive partition fetched_on=DAY.",
)
@layout_options
@selection_options
@whole(
    "--shard-size",
    most=1_000_000,
    help=f"Tokens that are committed together [{SHARD_SIZE:,}; {_STREAMED_SHARD} with --out -].",
)
@click.option("--dry-run", "dry", is_flag=True, help="Only report what TOKENS holds. Needs no secret and no network.")
@positive("--assume-rate", help="Tokens per second that --dry-run expects [--rate].")
@run_options
@debug_option
def fetch(
    tokens: str,
    out: str | None,
    directory: str | None,
    store: str | None,
    fetched_on: str | None,
    layout: Layout,
    selection: Selection | None,
    shard_size: int | None,
    dry: bool,
    assume_rate: float | None,
    options: RunOptions,
) -> int:
    if dry:
        rate = assume_rate or options.settings.limits.rate
        to_stdout(printable(*dry_run(_open_source(tokens, layout), shard_size or SHARD_SIZE, rate), "").encode())
        return Exit.OK
    if assume_rate is not None:
        raise UsageError("--assume-rate needs --dry-run. To limit the rate of a run, use --rate.")
    display = choose_display(options.progress, beside_answers=out == STDIN)
    target = _target(tokens, out, directory, store, fetched_on)
    clients = make_clients(options.access, options.settings, options.instances, layout.instance_column)

    def open_source() -> InputFile:
        source = None if tokens == STDIN else _open_source(tokens, layout)
        place = None if target.directory is None else str(target.directory)
        display.begin(target.words, job=place, answers=target.answers)
        return source or _open_source(tokens, layout)

    with tempfile.TemporaryDirectory(prefix="flinks-async-") if out == STDIN else nullcontext() as temporary:
        folder = target.directory or Path(temporary or "", "job")
        size = shard_size or (_STREAMED_SHARD if out == STDIN else SHARD_SIZE)

        def start(source: InputFile | None, on_scan: OnScan) -> Job:
            assert source is not None
            try:
                return Job.start(
                    folder,
                    source,
                    target.store,
                    clients.origin,
                    shard_size=size,
                    selection=selection,
                    on_scan=on_scan,
                )
            except InputError as error:
                raise _named(error, tokens, layout) from None

        job_run = JobRun(
            start,
            clients,
            options.rules,
            options.executor(),
            display,
            open_source=open_source,
            resume=target.resume,
            show_rows=out == STDIN,
            abandon=target.store.abandon if isinstance(target.store, StdoutStore) else lambda: None,
        )
        code = run(job_run.go)
    if code is Exit.OK and directory is None and out != STDIN and options.progress != "json":
        say(f"{folder} is not needed to resume any more: delete it, or keep it for status, verify and report.")
    return code


# --- where answers go -------------------------------------------------------------------------------------------------


@frozen
class _Target:
    """Where a run keeps its job and its answers.

    Attributes:
        directory: of the job; None if it is temporary.
        store: for the answers.
        words: what is said at the start.
        answers: file of the answers; None if they are in the directory or in a database.
        resume: how to fetch what is left.
    """

    directory: Path | None
    store: Store
    words: str
    answers: str | None = None
    resume: str = RESUME


def _target(tokens: str, out: str | None, directory: str | None, store: str | None, fetched_on: str | None) -> _Target:
    """Decides it by the options.

    Raises:
        UsageError: they do not go together, or the output file exists and belongs to no job.
        OutputError: the output cannot be written.
    """
    if out == STDIN:
        if directory is not None:
            raise UsageError(
                "--job does not go with --out -: print the answers of a job with flinks-async export DIR --out -."
            )
        if store not in (None, "jsonl"):
            raise UsageError("--out - prints JSONL. For another --store, name a file.")
        if fetched_on is not None:
            raise UsageError("--fetched-on needs --store parquet, which does not go with --out -.")
        words = "Answers go to standard output. This run cannot be resumed; for that, name a file with --out FILE."
        return _Target(None, StdoutStore(), words, STDIN, "A run with --out - cannot be resumed.")
    if tokens == STDIN and out is None and directory is None:
        raise UsageError(
            "Missing option '--out FILE' (a file for the answers, '-' for standard output) or '--job DIR' (a directory)."
        )
    name = store_of(store, out)
    if directory is None and (is_url(out) or (out is None and is_url(tokens))):
        raise UsageError(
            "With a URL, name --job DIR: a directory on a disk that records what is done. Keep it until the job is complete."
        )
    if out is None and directory is None and name not in WITHOUT_FILE:
        out = _beside(tokens, name)
    folder = Path(directory or f"{out or tokens}.job")
    if out is not None and not is_url(out):
        _check_file(tokens, Path(out), folder)
    target = make_store(name, out, fetched_on)
    if tokens == STDIN:
        words = (f"Answers go to {out}, the job is in {folder}. " if out else f"The job is in {folder}. ") + (
            "The tokens from standard input stay in memory, so this run cannot be resumed without the same input."
        )
        resume = "Standard input is not kept: to fetch them, run the same command with the same input."
        return _Target(folder, target, words, out, resume)
    words = f"Answers go to {out}. " if out is not None else ""
    words += f"The job is in {folder}: after an interruption, run the same command again to resume."
    if is_url(out):
        words += " To resume on another machine, copy this directory there."
    return _Target(folder, target, words, out)


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
            f"{out} exists, and there is no job in {folder} that wrote it. If that directory was moved, name it with --job; "
            "if not, move the file away, or use another --out."
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
        raise _named(error, tokens, layout) from None


def _named(error: InputError, tokens: str, layout: Layout) -> InputError:
    """The error with the name of the file, and without the name of a column, which may be a secret in the wrong place."""
    column = getattr(layout, error.field) if error.field in ("column", "key_column", "instance_column") else None
    message = error.message if column is None else error.message.replace(repr(column), "with this name")
    name = "Standard input" if tokens == STDIN else tokens if named(tokens) else ""
    if name and not message.startswith(f"{name}: "):
        message = f"{name}: {message}"
    return type(error)(message, field=error.field)


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


def dry_run(source: InputFile, shard_size: int, rate: float | None) -> list[str]:
    """Reads the input, and says what a job would do. The temporary files that find duplicates hold no tokens.

    Args:
        rate: tokens per second, to estimate the time.

    Raises:
        InputError, StoreError: as `scan`.
    """
    found, key = _Found(), secrets.token_bytes(32)
    with tempfile.TemporaryDirectory(prefix="flinks-async-") as scratch:
        scanned = scan(source, key=key, shard_size=shard_size, scratch=Path(scratch), sink=found)
    lines = _counts(scanned)
    if found.first is not None:
        reader = ShardReader(source, key)
        lines += map(_masked, reader.read(found.first)[:_ROWS_SHOWN])
        reader.close()
    lines += (f"  line {failure.line}: {failure.message}" for failure in found.bad)
    if more := scanned.invalid - len(found.bad):
        lines.append(f"  and {more:,} more")
    if not scanned.tokens:
        lines.append("There are no tokens to fetch.")
    elif rate is None:
        lines.append("For an estimate of the time, add --rate or --assume-rate.")
    else:
        lines.append(f"At {rate:g} tokens per second, it takes at least {duration(scanned.tokens / rate)}.")
    return lines


def _masked(token: Token) -> str:
    """One row as it was understood, without what it holds."""
    key = "" if token.key is NO_KEY else f", key {_shape(str(token.key))}"
    instance = "" if token.instance is None else f", instance {token.instance}"
    return f"  line {token.line}: token {_shape(token.token.reveal())}{key}{instance}"


def _shape(text: str) -> str:
    """`x` for letters, `9` for digits, so that a GUID, a number and an e-mail address look different."""
    shape = "".join("x" if c.isalpha() else "9" if c.isdigit() else c for c in text[:_LONGEST_SHAPE])
    return shape + (f"... ({len(text):,} characters)" if len(text) > _LONGEST_SHAPE else "")


def _counts(scanned: Scanned) -> list[str]:
    tokens = ("tokens", scanned.tokens, "would be fetched")
    instances = ((f"  {name}", count, "tokens of this instance") for name, count in scanned.instances.items())
    rows = (tokens, *other_lines(scanned), ("shards", scanned.shards, ""), *instances)
    return [
        f"{counted(scanned.lines, 'line')}, {counted(scanned.size, 'byte')}",
        *count_rows(rows, always=("tokens", "shards")),
    ]


# --- one token --------------------------------------------------------------------------------------------------------


@click.command(cls=Command, epilog=epilog())
@file_name(
    "--token-file",
    help="File with the access token, '-' for standard input [FLINKS_ACCESS_TOKEN, else a hidden prompt].",
)
@click.option("--pretty/--compact", default=None, help="Indented, or on one line [indented on a terminal].")
@access_options
@timeout_option
@debug_option
def get(access: Access, timeout: float | None, token_file: str | None, pretty: bool | None) -> int:
    """Fetch the data behind one access token and print it.

    The output is JSON with every field and digit of the answer.
    """
    client = access.client(config.service())
    token = read_token(token_file)
    answer = run(lambda: _ask(client, token, timeout)).to_json()
    if stdout_is_terminal() if pretty is None else pretty:
        answer = msgspec.json.format(answer, indent=2)
    to_stdout(answer + b"\n")
    return Exit.OK


async def _ask(client: FlinksClient, token: Secret, timeout: float | None) -> PartnerAccessResponse:
    async with client:
        if timeout is None:
            return await client.partner_access(token)
        return await client.partner_access(token, timeout=timeout)
