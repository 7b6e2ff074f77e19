"""The commands for the directory of a job: `status`, `verify`, `export`, `purge`, `report` and `retry`."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from attrs import asdict
from click.core import ParameterSource

from .. import bulk
from ..bulk import InputFile, Job, JobMismatchError, Manifest
from ..bulk.compression import BY_SUFFIX, Compression, compressor, split_name
from ..bulk.counters import InstanceTrouble, WorkerState
from ..bulk.files import MANIFEST
from ..bulk.inputs import STDIN
from ..bulk.records import FailureKind
from ..checks import counted, duration
from ..codec.observed import from_json
from . import Exit, epilog
from .access import Clients, make_clients, pseudonym_key_option, read_pseudonym_key, stdin_is_terminal
from .console import UsageError, debug_option, printable, say
from .display import answers_of, choose_display, drift_lines, outcome_rows
from .job_run import JobRun, OnScan, RunOptions, run, run_options
from .options import directory_argument, file_name
from .output import HTML, LINES, Command, to_stdout, whole_file

SILENT: Final = 60.0
"""Seconds without a sample after which a run counts as dead. A run saves one at least every ten seconds."""


@click.command(cls=Command, epilog=epilog())
@directory_argument
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@debug_option
def status(directory: str, as_json: bool) -> int:
    """Show the state of the job in DIR. It may be running."""
    found = bulk.status(directory)
    text = (
        msgspec.json.format(msgspec.json.encode(_plain(directory, found)), indent=2)
        if as_json
        else printable(*_lines(directory, found)).encode()
    )
    to_stdout(text + b"\n")
    return Exit.OK


def _plain(directory: str, found: bulk.Status) -> dict[str, Any]:
    manifest, totals = found.manifest, found.totals
    scanned = {} if found.scanned is None else asdict(found.scanned)
    return {
        "directory": os.fsencode(directory).decode(errors="replace"),
        "job": manifest.job,
        "created": manifest.created,
        "input": {"path": manifest.path, "size": manifest.size, "sha256": manifest.sha256, "scanned": scanned or None},
        "origin": manifest.origin,
        "store": manifest.store,
        "selection": manifest.selection,
        "outcome": totals.to_dict(),
        "shards": {"all": totals.shards, "done": totals.shards_done, "size": totals.size},
        "runs": found.runs,
        "latest": found.latest,
    }


def _lines(directory: str, found: bulk.Status) -> list[str]:
    manifest, totals = found.manifest, found.totals
    lines = [
        f"Job {manifest.job} in {directory}, started {manifest.created}",
        f"  input: {'standard input' if manifest.path == STDIN else manifest.path} ({counted(manifest.size, 'byte')})",
        f"  answers: {answers_of(manifest.store, Path(directory))}",
    ]
    if manifest.selection is not None:
        replaced = manifest.selection["pseudonyms"]
        lines.append(f"  left out: {', '.join(manifest.selection['left_out'])}")
        lines += [f"  replaced by pseudonyms: {', '.join(replaced)}"] if replaced else []
    if found.scanned is None:
        lines.append("Its input was not read to the end yet.")
    else:
        lines.append(
            f"{counted(totals.tokens, 'token')} in {counted(totals.shards, 'shard')}, {totals.shards_done:,} done:"
        )
        lines += outcome_rows(totals, found.scanned)
    lines += _runs(found, time.time())
    return [*lines, *drift_lines(from_json((found.latest or {}).get("drift")))]


def _runs(found: bulk.Status, now: float) -> list[str]:
    if not found.runs:
        return ["It was not run yet."]
    last, latest = found.runs[-1], found.latest
    began = dt.datetime.fromtimestamp(last["started"], dt.UTC).isoformat(timespec="seconds")
    run = f"Run {last['run']} of {len(found.runs)}, started {began},"
    if last["ended"] is not None:
        return [f"{run} ended: {last['state']}" + (f", {last['reason']}." if last["reason"] else ".")]
    silent = now - (last["started"] if latest is None else latest["at"])
    if silent > SILENT:
        return [f"{run} has no end, and was silent for {duration(silent)}: it was killed, or its machine stopped."]
    if latest is None:
        return [f"{run} is running."]
    workers = [f"  {WorkerState(**worker)}" for worker in latest.get("workers", ())]
    return [f"{run} is running. {duration(silent)} ago: {_figures(latest)}.", *workers]


def _figures(latest: dict[str, Any]) -> str:
    parts = [f"{latest['rate']:,.0f} tokens/s", f"{latest['in_flight']:,} of {latest['limit']:,} in flight"]
    parts += [f"{name} {duration(latest[name])}" for name in ("p50", "p95") if latest[name] is not None]
    troubles = [InstanceTrouble(**trouble) for trouble in latest.get("troubles", ())]
    parts += map(str, troubles)
    if latest["held_back"] and not troubles:
        parts.append(f"paused for {duration(latest['held_back'])}")
    parts += latest.get("learned", ())
    if latest["eta"] is not None:
        parts.append(f"about {duration(latest['eta'])} left")
    return ", ".join(parts)


@click.command(cls=Command, epilog=epilog())
@directory_argument
@debug_option
def verify(directory: str) -> int:
    """Compare the answers of the job in DIR with its ledger.

    All answers are read back. Each problem is one line on standard output.
    """
    problems = bulk.verify(directory)
    if not problems:
        say("No problem found.")
        return Exit.OK
    to_stdout("".join(printable(f"{problem.where}: {problem.what}") + "\n" for problem in problems).encode())
    say(f"{counted(len(problems), 'problem')} found.")
    return Exit.FAILED


_PIECE: Final = 256 * 1024


@click.command(cls=Command, epilog=epilog())
@directory_argument
@file_name(
    "--out",
    required=True,
    help="'-' for standard output; compressed if it ends in .gz or .zst.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
@debug_option
def export(directory: str, out: str, force: bool) -> int:
    """Write the answers of the job in DIR to one file of JSONL.

    The store of the job must be JSONL. The file is outside of DIR, and complete or absent. Lines are in the order of the
    shards; within a shard in the order of arrival. Answers of retried tokens come last.
    """
    lines = bulk.export(directory)
    if out == STDIN:
        for piece in _pieces(lines, "none"):
            to_stdout(piece)
    else:
        with whole_file(out, directory, LINES, force=force) as write:
            for piece in _pieces(lines, BY_SUFFIX.get(split_name(out)[1], "none")):
                write(piece)
        say(f"Written: {out}")
    left = bulk.status(directory).totals.pending
    if left:
        say(f"The job is not done: {counted(left, 'token')} still to be fetched.")
    return Exit.OK


def _pieces(lines: Iterable[bytes], compression: Compression) -> Iterator[bytes]:
    """The content of the file, in pieces large enough for one write."""
    stream = compressor(compression)
    ready: list[bytes] = []
    size = 0
    for line in lines:
        ready.append(line)
        size += len(line)
        if size >= _PIECE:
            if data := stream.compress(b"".join(ready)):
                yield data
            ready.clear()
            size = 0
    if data := stream.compress(b"".join(ready)) + stream.flush():
        yield data


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
    """Remove the job in DIR and all its answers.

    The command lists what was removed. The file of tokens stays.
    """
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
    return click.confirm(f"Delete the job in {printable(directory)} and {answers} permanently?", err=True)


@click.command(cls=Command, epilog=epilog())
@directory_argument
@file_name("--out", help="File for the page, '-' for standard output [DIR/report.html].")
@click.option("--force", is_flag=True, help="Overwrite a file --out that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the current report as JSON instead.")
@debug_option
def report(directory: str, out: str | None, force: bool, as_json: bool) -> int:
    """Write a page about the job in DIR.

    It shows outcome, throughput, response times, throttling and checksums. It is one HTML file that loads nothing, and
    holds no token, no secret and no personal data. The job may be running.
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


_KINDS: Final[dict[str, frozenset[FailureKind]]] = {
    "exhausted": frozenset({"exhausted"}),
    "final": frozenset({"final"}),
    "all": frozenset({"exhausted", "final"}),
}


@click.command(cls=Command, epilog=epilog())
@directory_argument
@click.option(
    "--class",
    "class_",
    type=click.Choice([*_KINDS]),
    default="exhausted",
    help="Tokens that may succeed in another run, tokens that were refused permanently, or both.",
)
@file_name("--tokens", help="The job's file of tokens, if it was moved.")
@pseudonym_key_option
@run_options
@debug_option
def retry(directory: str, class_: str, tokens: str | None, pseudonym_key_file: str | None, options: RunOptions) -> int:
    """Fetch failed tokens of the job in DIR again.

    An interrupted retry first resumes with the tokens that it had started with.
    """
    display = choose_display(options.progress)
    manifest = Manifest.load(Path(directory) / MANIFEST)
    clients = make_clients(options.access, options.settings, options.instances, manifest.layout.get("instance_column"))
    _refuse_other_origin(manifest, clients)
    key = read_pseudonym_key(pseudonym_key_file)
    chosen = click.get_current_context().get_parameter_source("class_") is ParameterSource.COMMANDLINE

    def resume(source: InputFile | None, on_scan: OnScan) -> Job:
        job = Job.resume(directory, path=tokens, pseudonym_key=key, on_scan=on_scan)
        try:
            if retrying := job.totals.retrying:
                hint = "; --class applies to the next one" if chosen else ""
                display.warn(f"An interrupted retry of {counted(retrying, 'token')} is resumed first{hint}.")
            else:
                display.note(f"Fetching {counted(job.retry(_KINDS[class_]), 'failed token')} again.")
        except BaseException:
            job.close()
            raise
        return job

    return run(JobRun(resume, clients, options.rules, options.executor(), display).go)


def _refuse_other_origin(manifest: Manifest, clients: Clients) -> None:
    before = manifest.origin
    for name, host in clients.origin.items():
        if before.get(name, host) != host:
            of = f" of the instance {name!r}" if name else ""
            raise JobMismatchError(
                f"The answers{of} came from {before[name]}, and would come from {host} now. Use the same address as before"
            )
