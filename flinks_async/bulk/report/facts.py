"""Reads the data of a report from a job's directory. It reads no token, key, message or fingerprint."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from ...codec.observed import Drift, from_json
from ..directory import Manifest
from ..errors import JobError
from ..files import LEDGER, MANIFEST
from ..inputs import Scanned
from ..ledger import Ledger, Totals
from ..outcome import report_of
from ..records import Commit, FailureKind
from .timeline import Interval, Timeline, intervals, timeline

MOST_FAILURES: Final = 50
"""Number of failure groups that the page lists."""

MOST_PARTS: Final = 1000
"""Number of parts that the page lists."""

MOST_RUNS: Final = 100
"""Number of runs that the page shows, the latest ones."""


Failures = tuple[FailureKind, str, str | None, int | None, int]
"""(kind, error, FlinksCode, status, number) of rows that failed with the same error."""


@frozen
class Parts:
    """The committed parts of a job.

    Attributes:
        listed: the first `MOST_PARTS`.
        sizes: bytes of each part.
        answers: number of answers in all parts.
    """

    listed: tuple[Commit, ...]
    sizes: array[int]
    answers: int


@frozen
class Facts:
    """The data of a report.

    Attributes:
        json: the JSON report.
        runs: the latest `MOST_RUNS` rows of `Ledger.runs`.
        earlier: number of older runs, which the report leaves out.
        failures: the most frequent groups, in descending order.
        drift: how the answers of the last run differ from their documentation.
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
    drift: tuple[Drift, ...]

    def sum(self, name: str, run: int | None = None) -> float:
        """Of an attribute of the intervals: of all, or of a run."""
        return float(sum(getattr(i, name) for i in self.intervals if run in (None, i.run)))


def gather(folder: Path) -> Facts:
    """Reads a job's directory without changing it. The job may be running.

    Raises:
        JobMismatchError: the directory holds no job.
        LedgerError: the ledger cannot be read.
        JobError: the job has not read its input yet.
    """
    manifest = Manifest.load(folder / MANIFEST)
    with closing(Ledger(folder / LEDGER, look=True)) as ledger, ledger.snapshot():
        scanned = ledger.plan()
        if scanned is None:
            raise JobError(
                f"the job in {folder} has not read its input yet, so there is nothing to report; run it first"
            )
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
            tuple(ledger.failure_counts(MOST_FAILURES)),
            timeline(runs, {interval.run: interval.end for interval in found}),
            found,
            _parts(ledger.commits()),
            from_json((ledger.latest_sample() or {}).get("drift")),
        )


def _parts(commits: Iterable[Commit]) -> Parts:
    listed: list[Commit] = []
    sizes = array("Q")
    answers = 0
    for commit in commits:
        if len(listed) < MOST_PARTS:
            listed.append(commit)
        sizes.append(commit.written.size)
        answers += commit.written.lines
    return Parts(tuple(listed), sizes, answers)
