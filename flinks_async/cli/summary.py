"""What a run of `fetch` came to, in words."""

from __future__ import annotations

from typing import Final

from ..endpoint import OTHER_HEADER_FORMS, WHERE_SECRETS_COME_FROM
from .exit_codes import Exit
from .fetch_run import FetchRun
from .metrics import duration
from .output import LineFile

_STOPPED: Final = {
    Exit.SIGINT: "Interrupted",
    Exit.SIGTERM: "Terminated",
    Exit.SIGHUP: "Hung up",
    Exit.STOPPED: "Stopped",
    Exit.REFUSED: "Refused",
    Exit.OUTPUT: "Broken off",
}


def summary(run: FetchRun) -> str:
    """Numbers that add up to the lines of the file, where the lines are, and what to do next."""
    counts, notes = run.counts, run.counts.notes
    rows = [
        ("fetched", counts.fetched, ""),
        ("failed", counts.failed, _classes(run)),
        ("invalid", counts.invalid, "nothing was sent"),
        ("duplicates", notes["duplicate"], "fetched once"),
        ("blank", notes["blank"], ""),
        ("header", notes["header"], ""),
        ("continued", notes["continued"], "line breaks inside of quotes"),
        ("unfinished", counts.unfinished, "were in flight"),
    ]
    rate = counts.done / run.seconds if run.seconds > 0 else 0.0
    lines = [
        f"{_STOPPED.get(run.exit, 'Done')}: {_plural(counts.lines, 'line')} in {duration(run.seconds)} ({rate:,.0f}/s)"
    ]
    for name, count, remark in rows:
        if count or name in ("fetched", "failed"):
            lines.append(f"  {name:<10} {count:>10,}" + (f"  ({remark})" if remark and count else ""))
    wire = f"{_plural(run.metrics.attempts, 'attempt')}, {run.metrics.retried:,} retried, {run.metrics.throttled:,} throttled"
    times = run.metrics.percentiles(0.5, 0.95, 0.99)
    lines.append(f"  {wire}; {times}" if times else f"  {wire}")
    return "\n".join([*lines, *_where(run), *_advice(run)])


def _classes(run: FetchRun) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in run.counts.classes.most_common())


def _where(run: FetchRun) -> list[str]:
    outputs = (
        ("answers", run.outputs.out),
        ("failed and invalid", run.outputs.failed),
        ("skipped", run.outputs.skipped),
    )
    found = []
    for name, output in outputs:
        if isinstance(output, LineFile) and (output.lines or name == "answers"):
            if output.part in run.parts:
                found.append(f"  {name}: {output.part} (unfinished; its {output.lines:,} lines are whole)")
            elif output.finished:
                found.append(f"  {name}: {output.path}")
    return found


def _advice(run: FetchRun) -> list[str]:
    if run.exit is Exit.REFUSED:
        return [f"The AuthSecret is refused. {WHERE_SECRETS_COME_FROM}. {OTHER_HEADER_FORMS} (--auth-scheme)."]
    if run.file.error is not None:
        return [f"Reading the tokens broke off after line {run.counts.lines:,}: {run.file.error}."]
    advice = [f"{run.reason[:1].upper()}{run.reason[1:]}."] if run.exit is Exit.STOPPED else []
    if run.parts and not any(file.force for file in run.outputs.files()):
        advice.append("To run again, move the unfinished files away, or overwrite them with --force.")
    return advice


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
