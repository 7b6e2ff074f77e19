"""What a report is made of, as it stands in the directory of a job. No token, key, message or fingerprint is read."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from ..errors import JobError
from ..files import LEDGER, MANIFEST
from ..inputs import Scanned
from ..ledger import Ledger, Totals
from ..manifest import Manifest
from ..outcome import report_of
from ..records import Commit, FailureKind
from .timeline import Interval, Timeline, intervals, timeline

MOST_FAILURES: Final = 50
"""Groups of failures that are listed."""

MOST_PARTS: Final = 1000
"""Parts that are listed."""

MOST_RUNS: Final = 100
"""Runs that are shown, the last ones."""


@frozen
class Failures:
    """Rows that failed alike.

    Attributes:
        kind, error, flinks_code, status: as in `Failure`.
        rows: how many.
    """

    kind: FailureKind
    error: str
    flinks_code: str | None
    status: int | None
    rows: int


@frozen
class Part:
    """The answers of one shard, as they were handed to the store.

    Attributes:
        shard: which.
        first, last: lines of the input, inclusive.
        answers: in it.
        size: bytes.
        sha256: hexadecimal.
    """

    shard: int
    first: int
    last: int
    answers: int
    size: int
    sha256: str


@frozen
class Parts:
    """What is in the store.

    Attributes:
        listed: the first ones.
        sizes: bytes of all of them.
        answers: in all of them.
    """

    listed: tuple[Part, ...] = ()
    sizes: array[int] = field(factory=lambda: array("Q"))
    answers: int = 0


@frozen
class Facts:
    """What a report is made of.

    Attributes:
        json: the JSON report.
        runs: as `Ledger.runs` gives them, the last `MOST_RUNS`.
        earlier: how many runs came before these; nothing else is known of them here.
        failures: the most frequent ones, the most frequent one first.
        last: the last interval of each run.
    """

    json: dict[str, Any]
    manifest: Manifest
    scanned: Scanned
    totals: Totals
    runs: tuple[dict[str, Any], ...]
    earlier: int
    failures: tuple[Failures, ...]
    timeline: Timeline
    intervals: tuple[Interval, ...]
    parts: Parts


def gather(folder: Path) -> Facts:
    """Reads the directory of a job, which may be running. Changes nothing.

    Raises:
        JobMismatchError: there is no job in it.
        LedgerError: its ledger cannot be understood.
        JobError: it has only begun, and there is nothing to tell yet.
    """
    manifest = Manifest.load(folder / MANIFEST)
    with closing(Ledger(folder / LEDGER)) as ledger, ledger.snapshot():
        scanned = ledger.plan()
        if scanned is None:
            raise JobError(f"the job in {folder} has not read its input through yet, so there is nothing to report")
        every = ledger.runs()
        runs = tuple(every[-MOST_RUNS:])
        shown = {run["run"] for run in runs}
        found = tuple(interval for interval in intervals(ledger.samples()) if interval.run in shown)
        return Facts(
            report_of(manifest, ledger, scanned),
            manifest,
            scanned,
            ledger.totals(),
            runs,
            len(every) - len(runs),
            tuple(Failures(*row) for row in ledger.failure_counts(MOST_FAILURES)),
            timeline(runs, {interval.run: interval.end for interval in found}),
            found,
            _parts(ledger.commits()),
        )


def _parts(commits: Iterable[Commit]) -> Parts:
    listed: list[Part] = []
    sizes = array("Q")
    answers = 0
    for commit in commits:
        shard, written = commit.shard, commit.written
        if len(listed) < MOST_PARTS:
            listed.append(Part(shard.id, shard.first, shard.last, written.lines, written.size, written.sha256))
        sizes.append(written.size)
        answers += written.lines
    return Parts(tuple(listed), sizes, answers)
