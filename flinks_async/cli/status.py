"""`flinks-async status`: where a job stands."""

from __future__ import annotations

import datetime as dt
from typing import Any

import click
import msgspec
from attrs import asdict

from .. import bulk
from .console import debug_option, printable
from .exit_codes import Exit, epilog
from .job_summary import counted, describe
from .options import directory_argument
from .output import to_stdout


@click.command(epilog=epilog())
@directory_argument
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@debug_option
def status(directory: str, as_json: bool) -> int:
    """Say where the job in DIR stands. It may be running."""
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
    }


def _text(directory: str, found: bulk.Status) -> bytes:
    manifest, totals = found.manifest, found.totals
    lines = [
        f"Job {manifest.job} in {directory}, begun {manifest.created}",
        f"  input: {manifest.path} ({manifest.size:,} bytes)",
        f"  store: {describe(manifest.store)}",
    ]
    if found.scanned is None:
        lines.append("Its input has not been read through yet.")
    else:
        lines.append(f"{totals.tokens:,} tokens in {totals.shards:,} shards, of which {totals.shards_done:,} are done:")
        lines += counted(totals, found.scanned.duplicates)
    return printable("\n".join([*lines, *_runs(found.runs)])).encode()


def _runs(runs: list[dict[str, Any]]) -> list[str]:
    if not runs:
        return ["It has not been run yet."]
    last = runs[-1]
    began = dt.datetime.fromtimestamp(last["started"], dt.UTC).isoformat(timespec="seconds")
    if last["ended"] is None:
        how = "has no end: it is running, or was killed"
    else:
        how = f"ended: {last['state']}" + (f", {last['reason']}" if last["reason"] else "")
    return [f"Run {last['run']} of {len(runs)}, begun {began}, {how}."]
