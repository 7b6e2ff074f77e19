"""`flinks-async status`: shows the state of a job."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from attrs import asdict

from .. import bulk
from ..bulk.inputs import STDIN
from .console import counted, debug_option, duration, printable
from .display import answers_of, outcome_rows
from .exit_codes import Exit, epilog
from .options import directory_argument
from .output import Command, to_stdout

SILENT: Final = 60.0
"""Seconds without a sample after which a run counts as dead. A run saves a sample every ten seconds."""


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
        else _text(directory, found)
    )
    to_stdout(text + b"\n")
    return Exit.OK


def _plain(directory: str, found: bulk.Status) -> dict[str, Any]:
    manifest, totals = found.manifest, found.totals
    scanned = {} if found.scanned is None else asdict(found.scanned)
    return {
        "directory": printable(directory),
        "job": manifest.job,
        "created": manifest.created,
        "input": {"path": manifest.path, "size": manifest.size, "sha256": manifest.sha256, "scanned": scanned or None},
        "origin": manifest.origin,
        "store": manifest.store,
        "outcome": totals.to_dict(),
        "shards": {"all": totals.shards, "done": totals.shards_done, "size": totals.size},
        "runs": found.runs,
        "latest": found.latest,
    }


def _text(directory: str, found: bulk.Status) -> bytes:
    manifest, totals = found.manifest, found.totals
    lines = [
        f"Job {manifest.job} in {directory}, started {manifest.created}",
        f"  input: {'standard input' if manifest.path == STDIN else manifest.path} ({counted(manifest.size, 'byte')})",
        f"  answers: {answers_of(manifest.store, Path(directory))}",
    ]
    if found.scanned is None:
        lines.append("Its input was not read to the end yet.")
    else:
        lines.append(
            f"{counted(totals.tokens, 'token')} in {counted(totals.shards, 'shard')}, {totals.shards_done:,} done:"
        )
        lines += outcome_rows(totals, found.scanned)
    return printable("\n".join([*lines, *_runs(found, time.time())])).encode()


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
    return [f"{run} is running. {duration(silent)} ago: {_figures(latest)}."]


def _figures(latest: dict[str, Any]) -> str:
    parts = [f"{latest['rate']:,.0f} tokens/s", f"{latest['in_flight']:,} of {latest['limit']:,} in flight"]
    parts += [f"{name} {duration(latest[name])}" for name in ("p50", "p95") if latest[name] is not None]
    parts += [str(trouble["reason"]) for trouble in latest.get("troubles", ())]
    if latest["held_back"]:
        parts.append(f"paused for {duration(latest['held_back'])}")
    if latest["eta"] is not None:
        parts.append(f"about {duration(latest['eta'])} left")
    return ", ".join(parts)
