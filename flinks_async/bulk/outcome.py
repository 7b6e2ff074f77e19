"""The files that a run writes at its end, beside the answers: failed rows, duplicates and the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from attrs import asdict

from .._version import __version__
from .files import DUPLICATES, FAILED, REPORT, replaced, write_durably
from .inputs import Scanned
from .ledger import Ledger
from .manifest import Manifest
from .records import Failure

_BATCH = 1000


def write_outcome(folder: Path, manifest: Manifest, ledger: Ledger, scanned: Scanned) -> None:
    """Writes the files. Each is replaced as a whole, or stays as it was.

    Raises:
        StoreError: one of them cannot be written.
    """
    _write_lines(folder / FAILED, map(_failed, ledger.failures()))
    if scanned.duplicates and not (folder / DUPLICATES).exists():
        _write_lines(folder / DUPLICATES, ({"line": line, "first": first} for line, first in ledger.all_duplicates()))
    report = msgspec.json.format(msgspec.json.encode(report_of(manifest, ledger, scanned)), indent=2)
    write_durably(folder / REPORT, report + b"\n")


def report_of(manifest: Manifest, ledger: Ledger, scanned: Scanned) -> dict[str, Any]:
    """The report as plain JSON: numbers, names and checksums. It holds no token, no secret and no personal data."""
    totals = ledger.totals()
    return {
        "flinks_async": __version__,
        "job": manifest.job,
        "created": manifest.created,
        "input": {"size": manifest.size, "sha256": manifest.sha256},
        "lines": asdict(scanned),
        "origin": manifest.origin,
        "store": manifest.store,
        "outcome": totals.to_dict(),
        "shards": {"all": totals.shards, "done": totals.shards_done, "size": totals.size},
        "runs": ledger.runs(),
    }


def _failed(failure: Failure) -> dict[str, Any]:
    return {name: value for name, value in asdict(failure).items() if value is not None or name in _ALWAYS}


_ALWAYS = frozenset({"token_fingerprint", "flinks_code", "status"})


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with replaced(path) as write:
        for batch in _batches(records):
            write(batch)


def _batches(records: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    lines: list[bytes] = []
    for record in records:
        lines.append(msgspec.json.encode(record) + b"\n")
        if len(lines) >= _BATCH:
            yield b"".join(lines)
            lines.clear()
    yield b"".join(lines)
