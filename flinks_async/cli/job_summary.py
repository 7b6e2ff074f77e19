"""What a job has come to, in words."""

from __future__ import annotations

from typing import Any, Final

from ..bulk import Job, Progress, Totals
from ..bulk.files import FAILED, REPORT
from ..endpoint import OTHER_HEADER_FORMS, WHERE_SECRETS_COME_FROM
from .metrics import duration

_TITLE: Final = {"complete": "Done", "stopped": "Stopped", "refused": "Refused", "interrupted": "Interrupted"}


def summary(state: str, reason: str, job: Job, totals: Totals, progress: Progress | None) -> str:
    """Numbers of the job and of the run, where the files are, and what to do next."""
    why = f": {reason}" if reason and state != "refused" else ""
    lines = [f"{_TITLE[state]}{why}. The job has {totals.tokens:,} tokens."]
    lines += counted(totals, job.scanned.duplicates)
    if progress is not None and progress.requests:
        lines.append(f"  {_wire(progress)}")
    lines.append(f"  job: {job.directory} (store: {describe(job.manifest.store)}; {_files(totals)}{REPORT})")
    if state == "refused":
        lines.append(
            f"{reason[:1].upper()}{reason[1:]}. {WHERE_SECRETS_COME_FROM}. {OTHER_HEADER_FORMS} (--auth-scheme). "
            "If the secret is good and just these tokens are dead, a larger --refused-after goes past them."
        )
    if totals.pending:
        lines.append("The same command goes on with the tokens that are left.")
    elif totals.failures.get("exhausted"):
        lines.append(f"Another try may get {totals.failures['exhausted']:,} of the failed ones: flinks-async retry.")
    return "\n".join(lines)


def counted(totals: Totals, duplicates: int) -> list[str]:
    """What became of the tokens, one line each."""
    classes = ", ".join(f"{count:,} {name}" for name, count in totals.classes.items())
    rows = (
        ("fetched", totals.fetched, ""),
        ("failed", totals.failed, classes),
        ("left", totals.pending, _left(totals)),
        ("invalid", totals.invalid, "lines; nothing was sent"),
        ("duplicates", duplicates, "lines; fetched once"),
    )
    return [
        f"  {name:<10} {count:>10,}" + (f"  ({remark})" if remark and count else "")
        for name, count, remark in rows
        if count or name in ("fetched", "failed")
    ]


def _left(totals: Totals) -> str:
    if not totals.retrying:
        return "still to be fetched"
    of_them = "all" if totals.retrying == totals.pending else f"{totals.retrying:,}"
    return f"still to be fetched; {of_them} of them failed before, and count as failed too"


def describe(store: dict[str, Any]) -> str:
    """A store in a few words, from what it says of itself."""
    return ", ".join(str(value) for value in store.values() if value not in (None, "none"))


def _wire(progress: Progress) -> str:
    times = [f"{name} {duration(time)}" for name, time in (("p50", progress.p50), ("p95", progress.p95)) if time]
    done = f"this run: {progress.requests:,} requests in {duration(progress.seconds)}"
    return ", ".join([done, f"{progress.retries:,} retried", f"{progress.throttled:,} throttled", *times])


def _files(totals: Totals) -> str:
    return f"{FAILED}, " if totals.failed or totals.invalid else ""
