"""The commands for the directory of a job: `status`, `verify`, `export`, `purge`, `report` and `retry`."""

from __future__ import annotations

import datetime as dt
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from attrs import asdict
from click.core import ParameterSource

from .. import bulk
from ..bulk import InProcess, InputFile, Job, JobMismatchError, Manifest
from ..bulk.compression import BY_SUFFIX, Compression, compressor, split_name
from ..bulk.counters import InstanceTrouble, WorkerState
from ..bulk.files import MANIFEST, in_pieces
from ..bulk.inputs import STDIN
from ..bulk.reading import OnProgress
from ..bulk.records import FailureKind
from ..checks import counted, duration, is_url
from ..codec.observed import from_json
from . import Exit, epilog
from .access import Clients, make_clients, pseudonym_key_option, read_pseudonym_key, stdin_is_terminal
from .console import UsageError, debug_option, event, printable, say
from .display import answers_of, choose_display, drift_lines, outcome_rows
from .job_run import JobRun, OnScan, RunOptions, run, run_options
from .options import ProgressKind, Workers, directory_argument, file_name, progress_options, reading_options
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


@contextmanager
def _shown(progress: ProgressKind, out: str | None = None) -> Iterator[OnProgress]:
    """Shows how far the answers of a job are read. SIGTERM and SIGHUP end the block as Ctrl-C does, so that workers end and
    unfinished files are removed.
    """
    display = choose_display(progress, beside_answers=out == STDIN)
    shown, codes, before = time.monotonic(), list[Exit](), {}

    def show(found: bulk.Progress) -> None:
        nonlocal shown
        if time.monotonic() - shown >= display.interval:
            shown = time.monotonic()
            display.progress(found)

    def interrupt(number: int, frame: object) -> None:
        codes.append(Exit(128 + number))
        signal.raise_signal(signal.SIGINT)

    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup does
        before = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield show
    except KeyboardInterrupt:
        code = codes[0] if codes else Exit.SIGINT
        _end("interrupted", code, code.name, "Interrupted.")
        raise click.exceptions.Exit(code) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        display.close()


def _end(state: str, code: Exit, reason: str, *lines: str) -> None:
    """Says how a command ended: as lines for people, or as an event."""
    if not event("end", state=state, reason=reason, exit_code=code) and lines:
        say(*lines)


@click.command(cls=Command, epilog=epilog())
@directory_argument
@reading_options
@progress_options
@debug_option
def verify(directory: str, workers: Workers, progress: ProgressKind) -> int:
    """Compare the answers of the job in DIR with its ledger.

    All answers are read back. Each problem is one line on standard output.
    """
    with _shown(progress) as show:
        problems = bulk.verify(directory, executor=workers.for_reading(), on_progress=show)
    if problems:
        to_stdout("".join(printable(f"{problem.where}: {problem.what}") + "\n" for problem in problems).encode())
    code = Exit.FAILED if problems else Exit.OK
    _end("complete", code, "", f"{counted(len(problems), 'problem')} found." if problems else "No problem found.")
    return code


@click.command(cls=Command, epilog=epilog())
@directory_argument
@file_name(
    "--out",
    required=True,
    help="'-' for standard output; compressed if it ends in .gz or .zst; a URL such as s3://bucket/folder/ for many files.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
@reading_options
@progress_options
@debug_option
def export(directory: str, out: str, force: bool, workers: Workers, progress: ProgressKind) -> int:
    """Write the answers of the job in DIR to one file, or to a URL.

    One file is JSONL, and the store of the job must be JSONL too. The file is outside of DIR, and complete or absent. Lines are in the
    order of the shards; within a shard in the order of arrival. Answers of retried tokens come last.

    At a URL (s3://, gs://, az://, file://), JSONL parts and Parquet keep their names and content. Each is compared with the
    ledger before it is written. _SUCCESS, which lists them, comes last, and only if the job is done.
    """
    executor = workers.for_reading()
    if executor is not None and not is_url(out):
        raise UsageError(
            "--executor and --processes copy files to a URL, such as --out s3://bucket/folder/ or file:///mnt/folder/. One file "
            "is written by one process, in the order of the shards."
        )
    with _shown(progress, out) as show:
        if is_url(out):
            if split_name(out.rpartition("/")[2])[0]:
                raise UsageError(
                    "--out: an object cannot grow, so a URL names a folder for many: s3://bucket/folder/. For one file, use --out - "
                    "and pipe it to another tool."
                )
            names = bulk.export_files(directory, out, executor=executor or InProcess(), on_progress=show)
            done = [f"{counted(len(names), 'file')} written to {out}"]
        elif out == STDIN:
            done = []
            for piece in in_pieces(bulk.export(directory, on_progress=show)):
                to_stdout(piece)
        else:
            done = [f"Written: {out}"]
            lines = bulk.export(directory, on_progress=show)
            with whole_file(out, directory, LINES, force=force) as write:
                for piece in _compressed(lines, BY_SUFFIX.get(split_name(out)[1], "none")):
                    write(piece)
    left = bulk.status(directory).totals.pending
    if left:
        done.append(f"The job is not done: {counted(left, 'token')} still to be fetched.")
    _end("complete", Exit.OK, "", *done)
    return Exit.OK


def _compressed(lines: Iterable[bytes], compression: Compression) -> Iterator[bytes]:
    """The content of the file, in pieces."""
    stream = compressor(compression)
    yield from filter(None, map(stream.compress, in_pieces(lines)))
    yield stream.flush()


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
