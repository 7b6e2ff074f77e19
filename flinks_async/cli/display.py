"""How a run is shown on standard error: progress while it runs, a summary at its end; for people or for programs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

from attrs import frozen

from ..bulk import Job, Progress, Scanned, Totals
from ..bulk.counters import WAITED_FOR, WorkerState
from ..bulk.files import FAILED
from ..bulk.records import to_json
from ..bulk.rules import NEVER_ANSWERED
from ..bulk.stores import format_of
from ..checks import counted, duration
from ..codec import Drift
from ..endpoint import OTHER_HEADER_FORMS, WHERE_SECRETS_COME_FROM
from . import Exit
from .console import escaped, event, on_terminal, printable, say, use_events, with_options
from .options import ProgressKind

DisplayState = Literal["complete", "stopped", "refused", "interrupted"]

_TITLE: Final = {"complete": "Done", "stopped": "Stopped", "refused": "Refused", "interrupted": "Interrupted"}
_REDRAW: Final = 0.2
_PLAIN_EVERY: Final = 5.0
_JSON_EVERY: Final = 1.0
_DRIFT_SHOWN: Final = 5
_TROUBLES_SHOWN: Final = 2

RESUME: Final = "Run the same command again to fetch them."


@frozen
class Ended:
    """How a run ended without an error.

    Attributes:
        state: `interrupted` by a signal, or as in `Result`.
        reason: in words; empty if it is complete.
        exit: exit code of the process.
        job: the job; None if it was not opened.
        totals: of the job.
        progress: the last progress of the run, if anything was fetched.
        resume: how to fetch the tokens that are left.
    """

    state: DisplayState
    reason: str
    exit: Exit
    job: Job | None = None
    totals: Totals | None = None
    progress: Progress | None = None
    resume: str = RESUME


class Display:
    """Shows a run to people: a bar on a terminal, or a line now and then; and a summary at the end.

    Attributes:
        interval: seconds between two calls of `planning` or `progress`.
    """

    def __init__(self, interval: float = _PLAIN_EVERY, *, quiet: bool = False) -> None:
        self.interval = interval
        self._quiet = quiet

    def begin(self, text: str, **places: str | None) -> None:
        """Says where the job and the answers are: as text for people, as paths by name for programs."""
        self.note(text)

    def planning(self, read: int, size: int) -> None:
        """`read` of `size` bytes of the input were read."""
        share = read / size if size else None
        self._show(share, "" if share is None else f"{_percent(share)} read", "reading the tokens")

    def progress(self, progress: Progress) -> None:
        share = progress.done / progress.total if progress.total else None
        self._show(share, "" if share is None else _percent(share), *_progress_lines(progress))

    def note(self, text: str) -> None:
        """Says what the run does, unless the user wants only the summary."""
        if not self._quiet:
            say(text)

    def warn(self, text: str) -> None:
        """Says what needs the user's attention."""
        say(text)

    def row(self, kind: str, record: Mapping[str, Any]) -> None:
        """A line of the input without an answer, for which there is no file."""
        say(escaped(to_json(record).decode()))

    def close(self) -> None:
        """Ends the progress. May be called more than once."""

    def end(self, ended: Ended) -> None:
        """Shows the summary."""
        if ended.job is None or ended.totals is None:
            say("Interrupted before anything was fetched.")
        else:
            say(*summary(ended, ended.job, ended.totals))

    def _show(self, share: float | None, percent: str, headline: str, details: str = "") -> None:
        if not self._quiet:
            say(_joined(percent, headline, details))


class Bar(Display):
    """A bar and a line below it."""

    def __init__(self) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
        from rich.text import Text

        super().__init__(_REDRAW)
        self._progress = Progress(BarColumn(24), TaskProgressColumn(), TextColumn("{task.description}"))
        self._task = self._progress.add_task("", total=None)
        self._details = Text(no_wrap=True, overflow="ellipsis")
        # Without auto_refresh, rich needs no thread. Messages appear above the bar.
        self._live = Live(
            Group(self._progress, self._details),
            console=Console(stderr=True),
            auto_refresh=False,
            redirect_stdout=False,
            transient=True,
        )

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self._live.stop()

    def _show(self, share: float | None, percent: str, headline: str, details: str = "") -> None:
        total = None if share is None else 1.0
        self._progress.update(self._task, description=headline, total=total, completed=share or 0.0)
        self._details.plain = printable(details)
        with suppress(OSError, ValueError):  # the terminal is gone
            self._live.start()
            self._live.refresh()


class JSONLines(Display):
    """One object per line; docs/command-line.md describes them."""

    def begin(self, text: str, **places: str | None) -> None:
        event("begin", **places)

    def planning(self, read: int, size: int) -> None:
        event("planning", read=read, size=size)

    def progress(self, progress: Progress) -> None:
        event("progress", **progress.to_dict())

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        event("warning", text=text)

    def row(self, kind: str, record: Mapping[str, Any]) -> None:
        event(kind, **record)

    def end(self, ended: Ended) -> None:
        event(
            "end",
            state=ended.state,
            reason=ended.reason,
            exit_code=ended.exit,
            totals=None if ended.totals is None else ended.totals.to_dict(),
            run=None if ended.progress is None else ended.progress.to_dict(),
        )


def choose_display(kind: ProgressKind, *, beside_answers: bool = False) -> Display:
    """The display for an option. `beside_answers`: no bar, because answers are printed to the same terminal."""
    if kind == "json":
        use_events()
        return JSONLines(_JSON_EVERY)
    if kind == "auto" and on_terminal() and not beside_answers:
        return Bar()
    return Display(quiet=kind == "none")


def _progress_lines(progress: Progress) -> tuple[str, str]:
    left = "time left unknown" if progress.eta is None else f"{duration(progress.eta)} left"
    problems = (*map(str, progress.troubles[:_TROUBLES_SHOWN]), *worker_notes(progress.workers))
    headline = _joined(
        f"{progress.done:,} of {progress.total:,} done",
        f"{progress.rate:,.0f}/s",
        "stopping" if progress.phase == "draining" else left,
    )
    if not progress.limit:  # nothing is fetched: answers are read
        return headline, _joined(*problems)
    return headline, _joined(
        *problems,
        f"{progress.fetched:,} ok",
        f"{progress.failed:,} failed",
        f"{progress.retries:,} retried",
        f"{progress.throttled:,} throttled" if progress.throttled else "",
        f"p50 {duration(progress.p50)}, p95 {duration(progress.p95)}" if progress.p50 and progress.p95 else "",
        f"{progress.in_flight:,} of {progress.limit:,} in flight",
        *progress.learned[:_TROUBLES_SHOWN],
        f"paused for {duration(progress.held_back)}" if progress.held_back and not progress.troubles else "",
    )


def worker_notes(workers: Sequence[WorkerState]) -> list[str]:
    """How many workers are missing, and how many have died."""
    missing = sum(worker.note == WAITED_FOR for worker in workers)
    dead = sum(bool(worker.note) for worker in workers) - missing
    return [f"{counted(number, 'worker')} {what}" for number, what in ((missing, "missing"), (dead, "died")) if number]


def _percent(share: float) -> str:
    return f"{min(share, 1.0):.0%}"


def _joined(*parts: str) -> str:
    """The parts that are not empty, on one line."""
    return " · ".join(part for part in parts if part)


def summary(ended: Ended, job: Job, totals: Totals) -> list[str]:
    """The numbers of the job and of the run, where the files are, and what to do next."""
    why = f": {ended.reason}" if ended.reason and ended.state != "refused" else ""
    lines = [f"{_TITLE[ended.state]}{why}. The job has {counted(totals.tokens, 'token')}."]
    lines += outcome_rows(totals, job.scanned)
    if ended.progress is not None and ended.progress.requests:
        lines.append(f"  {_wire(ended.progress)}")
    elif ended.state == "complete" and totals.tokens:
        lines.append("  this run: nothing was left to fetch, so nothing was sent")
    if ended.progress is not None:
        problems = [trouble.without_next_try for trouble in ended.progress.troubles]
        lines += [f"  last problem: {problem}" for problem in problems if problem not in ended.reason]
        lines += drift_lines([one for one in ended.progress.drift if one.kind != "missing field"])  # which is normal
    lines += _places(job, totals)
    if ended.state == "refused":
        lines.append(
            f"{ended.reason[:1].upper()}{ended.reason[1:]}. {WHERE_SECRETS_COME_FROM}. {with_options(OTHER_HEADER_FORMS)}. "
            "If the secret is right and only these tokens have expired, a larger --refused-after continues after them."
        )
    if ended.state == "stopped" and ended.reason.endswith(NEVER_ANSWERED):
        lines.append("Check --instance, --base-url and the network; 'flinks-async doctor' tests them one by one.")
    if totals.pending:
        lines.append(f"{counted(totals.pending, 'token')} still to be fetched. {ended.resume}".rstrip())
    elif (exhausted := totals.failures.get("exhausted")) and ended.resume:
        lines.append(
            f"{counted(exhausted, 'failed token')} may succeed in another run: flinks-async retry {job.directory}"
        )
    return lines


def drift_lines(drift: Sequence[Drift]) -> list[str]:
    """How answers differ from their documentation, for people."""
    more = [f"  and {len(drift) - _DRIFT_SHOWN} more"] if len(drift) > _DRIFT_SHOWN else []
    lines = [f"  {one}" for one in drift[:_DRIFT_SHOWN]] + more
    return ["Answers differ from their documentation:", *lines] if lines else []


def outcome_rows(totals: Totals, scanned: Scanned) -> list[str]:
    """The outcomes of the lines of the input. They add up to all lines, except during a retry, which counts some twice."""
    classes = ", ".join(counted(count, _words(name)) for name, count in totals.classes.items())
    rows = (
        ("fetched", totals.fetched, ""),
        ("failed", totals.failed, classes),
        ("left", totals.pending, _left(totals)),
    )
    return count_rows((*rows, *other_lines(scanned)), always=("fetched", "failed"))


def other_lines(scanned: Scanned) -> Iterator[tuple[str, int, str]]:
    """(kind, number, remark) of the lines of the input for which nothing is sent."""
    yield "invalid", scanned.invalid, "lines; nothing was sent"
    yield "duplicates", scanned.duplicates, "lines; fetched once"
    yield "blank", scanned.blank, "lines"
    yield "header", scanned.header, ""
    yield "continued", scanned.continued, "lines; line breaks inside quotes"


def count_rows(rows: Iterable[tuple[str, int, str]], *, always: Collection[str]) -> list[str]:
    """The rows as lines, without those of 0 that are not in `always`."""
    return [
        f"  {name:<10} {count:>10,}" + (f"  ({remark})" if remark and count else "")
        for name, count, remark in rows
        if count or name in always
    ]


def _words(class_: str) -> str:
    """`BadRequestError` as `bad request error`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", class_).lower()


def _left(totals: Totals) -> str:
    if not totals.retrying:
        return "still to be fetched"
    of_them = "all" if totals.retrying == totals.pending else f"{totals.retrying:,}"
    return f"still to be fetched; {of_them} of them failed before, and count as failed too"


def _wire(progress: Progress) -> str:
    times = [f"{name} {duration(time)}" for name, time in (("p50", progress.p50), ("p95", progress.p95)) if time]
    done = f"this run: {counted(progress.requests, 'request')} in {duration(progress.seconds)}"
    return ", ".join([done, f"{progress.retries:,} retried", f"{progress.throttled:,} throttled", *times])


def _places(job: Job, totals: Totals) -> Iterator[str]:
    store = job.manifest.store
    if store.get("kind") == "stdout":  # and the directory is temporary
        return
    yield f"  answers: {answers_of(store, job.directory)}"
    if totals.failed or totals.invalid:
        yield f"  failed and invalid: {job.directory / FAILED}"
    yield f"  job: {job.directory}"


_PLACES: Final = ("kind", "path", "url")


def answers_of(store: Mapping[str, Any], directory: Path) -> str:
    """Where the answers are, and in which format, from the description of a store."""
    kind = str(store.get("kind"))
    more = [str(value) for name, value in store.items() if name not in _PLACES and value not in (None, "none")]
    format_ = ", ".join([format_of(kind), *more])
    if kind in ("jsonl-parts", "parquet"):
        return f"{store.get('url') or directory / 'parts'} ({format_})"
    if kind in ("jsonl", "sqlite", "duckdb"):
        return f"{store.get('path') or directory} ({format_})"
    return format_
