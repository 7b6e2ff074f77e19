"""How a run is shown on standard error: progress while it runs, a summary at its end; for people or for programs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import click
from attrs import frozen

from ..bulk import Job, Progress, Scanned, Totals
from ..bulk.files import FAILED
from ..bulk.records import to_json
from ..checks import counted
from ..endpoint import OTHER_HEADER_FORMS, WHERE_SECRETS_COME_FROM
from ..errors import FlinksError
from . import Exit
from .console import duration, exit_code_of, log_as_events, on_terminal, say, text_of, with_options
from .options import ProgressKind

DisplayState = Literal["complete", "stopped", "refused", "interrupted", "failed"]

_TITLE: Final = {"complete": "Done", "stopped": "Stopped", "refused": "Refused", "interrupted": "Interrupted"}
_REDRAW: Final = 0.2
_PLAIN_EVERY: Final = 5.0
_JSON_EVERY: Final = 1.0
_NEVER: Final = 3600.0
_TROUBLES_SHOWN: Final = 2

RESUME: Final = "Run the same command again to fetch them."


@frozen
class Ended:
    """How a run ended.

    Attributes:
        state: `failed` if an error ended it.
        reason: in words; empty if it is complete.
        exit: exit code of the process.
        job: the job; None if it could not be opened.
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


class Display(Protocol):
    """A way to show a run.

    Attributes:
        interval: seconds between two calls of `planning` or `progress`.
    """

    interval: float

    def begin(self, text: str, **places: str | None) -> None:
        """Where the run keeps things: in words for people, by name for programs."""
        ...

    def planning(self, read: int, size: int) -> None:
        """`read` of `size` bytes of the input were read."""
        ...

    def progress(self, progress: Progress) -> None: ...

    def note(self, text: str) -> None:
        """Something happened."""
        ...

    def warn(self, text: str) -> None:
        """Something needs the user's attention."""
        ...

    def row(self, kind: str, record: Mapping[str, Any]) -> None:
        """A line of the input without an answer, for which there is no file."""
        ...

    def close(self) -> None:
        """Ends the progress. May be called more than once."""
        ...

    def end(self, ended: Ended) -> None:
        """Shows the summary."""
        ...


def choose_display(kind: ProgressKind, *, beside_answers: bool = False) -> Display:
    """The display for an option. `beside_answers`: no bar, because answers are printed to the same terminal."""
    if kind == "json":
        log_as_events()
        return JSONLines()
    if kind == "none":
        return ForPeople(None)
    return ForPeople(Bar() if kind == "auto" and on_terminal() and not beside_answers else PlainLines())


@contextmanager
def reporting_errors(kind: ProgressKind) -> Iterator[None]:
    """An error before the run is also reported as an `end` event."""
    try:
        yield
    except (click.UsageError, FlinksError) as error:
        if kind == "json":
            if isinstance(error, click.UsageError):
                ended = Ended("failed", error.format_message(), Exit.USAGE)
            else:
                ended = Ended("failed", text_of(error), exit_code_of(error))
            JSONLines().end(ended)
        raise


@asynccontextmanager
async def repeated(interval: float, action: Callable[[], object]) -> AsyncIterator[None]:
    """Calls `action` every `interval` seconds during the block."""

    async def repeat() -> None:
        while True:
            await asyncio.sleep(interval)
            action()

    task = asyncio.ensure_future(repeat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@frozen
class View:
    """The content of a bar or a line.

    Attributes:
        headline, details: in words.
        share: from 0 to 1; None if it is not known.
        of: what it is a share of, in a word.
    """

    headline: str
    details: str = ""
    share: float | None = None
    of: str = ""

    def line(self) -> str:
        share = "" if self.share is None else f"{min(self.share, 1.0):.0%} {self.of}".rstrip()
        return joined(share, self.headline, self.details)


def joined(*parts: str) -> str:
    """The parts that are not empty, on one line."""
    return " · ".join(part for part in parts if part)


def view(progress: Progress) -> View:
    """The progress in words."""
    left = "time left unknown" if progress.eta is None else f"{duration(progress.eta)} left"
    return View(
        joined(
            f"{progress.done:,} of {progress.total:,} done",
            f"{progress.rate:,.0f}/s",
            "stopping" if progress.phase == "draining" else left,
        ),
        joined(
            *map(str, progress.troubles[:_TROUBLES_SHOWN]),
            f"{progress.fetched:,} ok",
            f"{progress.failed:,} failed",
            f"{progress.retries:,} retried",
            f"{progress.throttled:,} throttled" if progress.throttled else "",
            f"p50 {duration(progress.p50)}, p95 {duration(progress.p95)}" if progress.p50 and progress.p95 else "",
            f"{progress.in_flight:,} of {progress.limit:,} in flight",
            *progress.learned[:_TROUBLES_SHOWN],
            f"paused for {duration(progress.held_back)}" if progress.held_back and not progress.troubles else "",
        ),
        progress.done / progress.total if progress.total else None,
    )


class PlainLines:
    """A line now and then, for logs and pipes."""

    interval = _PLAIN_EVERY

    def show(self, view: View) -> None:
        say(view.line())

    def close(self) -> None:
        pass


class Bar:
    """A bar and a line below it, for a terminal."""

    interval = _REDRAW

    def __init__(self) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
        from rich.text import Text

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
        self._live.start()

    def show(self, view: View) -> None:
        total = None if view.share is None else 1.0
        self._progress.update(self._task, description=view.headline, total=total, completed=view.share or 0.0)
        self._details.plain = view.details
        with suppress(OSError, ValueError):  # the terminal is gone
            self._live.refresh()

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self._live.stop()


class ForPeople:
    """A bar, or lines, or neither; and a summary at the end."""

    def __init__(self, shown: Bar | PlainLines | None) -> None:
        self._shown = shown
        self.interval = _NEVER if shown is None else shown.interval

    def begin(self, text: str, **places: str | None) -> None:
        self.note(text)

    def planning(self, read: int, size: int) -> None:
        if self._shown is not None:
            self._shown.show(View("reading the tokens", share=read / size if size else None, of="read"))

    def progress(self, progress: Progress) -> None:
        if self._shown is not None:
            self._shown.show(view(progress))

    def note(self, text: str) -> None:
        if self._shown is not None:
            say(text)

    def warn(self, text: str) -> None:
        say(text)

    def row(self, kind: str, record: Mapping[str, Any]) -> None:
        say(to_json(record).decode())

    def close(self) -> None:
        if self._shown is not None:
            self._shown.close()

    def end(self, ended: Ended) -> None:
        self.close()
        if ended.job is None:
            if ended.state == "interrupted":
                say("Interrupted before anything was fetched.")
        elif ended.totals is not None:
            say(summary(ended, ended.job, ended.totals))
        elif ended.exit in (Exit.OUTPUT, Exit.STOPPED):
            say(
                "The run ended early because of an error. Committed answers are kept. Fix the cause and run the same command:"
            )


class JSONLines:
    """One object per line; docs/command-line.md describes them."""

    interval = _JSON_EVERY

    def begin(self, text: str, **places: str | None) -> None:
        _say("begin", **places)

    def planning(self, read: int, size: int) -> None:
        _say("planning", read=read, size=size)

    def progress(self, progress: Progress) -> None:
        _say("progress", **progress.to_dict())

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        _say("warning", text=text)

    def row(self, kind: str, record: Mapping[str, Any]) -> None:
        _say(kind, **record)

    def close(self) -> None:
        pass

    def end(self, ended: Ended) -> None:
        _say(
            "end",
            state=ended.state,
            reason=ended.reason,
            exit_code=int(ended.exit),
            totals=None if ended.totals is None else ended.totals.to_dict(),
            run=None if ended.progress is None else ended.progress.to_dict(),
        )


def _say(event: str, /, **values: Any) -> None:
    say(to_json({"event": event, **values}).decode())


def summary(ended: Ended, job: Job, totals: Totals) -> str:
    """The numbers of the job and of the run, where the files are, and what to do next."""
    why = f": {ended.reason}" if ended.reason and ended.state != "refused" else ""
    lines = [f"{_TITLE[ended.state]}{why}. The job has {counted(totals.tokens, 'token')}."]
    lines += outcome_rows(totals, job.scanned)
    if ended.progress is not None and ended.progress.requests:
        lines.append(f"  {_wire(ended.progress)}")
    if ended.progress is not None:
        problems = [trouble.without_next_try for trouble in ended.progress.troubles]
        lines += [f"  last problem: {problem}" for problem in problems if problem not in ended.reason]
    lines += _places(job, totals)
    if ended.state == "refused":
        lines.append(
            f"{ended.reason[:1].upper()}{ended.reason[1:]}. {WHERE_SECRETS_COME_FROM}. {with_options(OTHER_HEADER_FORMS)}. "
            "If the secret is right and only these tokens have expired, a larger --refused-after continues after them."
        )
    if totals.pending:
        lines.append(f"{counted(totals.pending, 'token')} still to be fetched. {ended.resume}".rstrip())
    elif (exhausted := totals.failures.get("exhausted")) and ended.resume:
        lines.append(
            f"{counted(exhausted, 'failed token')} may succeed in another run: flinks-async retry {job.directory}"
        )
    return "\n".join(lines)


def outcome_rows(totals: Totals, scanned: Scanned) -> list[str]:
    """The outcomes of the lines of the input. They add up to all lines, except during a retry, which counts some twice."""
    classes = ", ".join(counted(count, _words(name)) for name, count in totals.classes.items())
    rows = (
        ("fetched", totals.fetched, ""),
        ("failed", totals.failed, classes),
        ("left", totals.pending, _left(totals)),
        ("invalid", totals.invalid, "lines; nothing was sent"),
        ("duplicates", scanned.duplicates, "lines; fetched once"),
        ("blank", scanned.blank, "lines"),
        ("header", scanned.header, ""),
        ("continued", scanned.continued, "lines; line breaks inside quotes"),
    )
    return [
        f"  {name:<10} {count:>10,}" + (f"  ({remark})" if remark and count else "")
        for name, count, remark in rows
        if count or name in ("fetched", "failed")
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


_FORMATS: Final = {
    "jsonl-parts": "JSONL",
    "jsonl": "JSONL",
    "sqlite": "SQLite",
    "duckdb": "DuckDB",
    "parquet": "Parquet",
    "postgresql": "PostgreSQL",
}


def answers_of(store: Mapping[str, Any], directory: Path) -> str:
    """Where the answers are, and in which format, from the description of a store."""
    kind = str(store.get("kind"))
    more = [str(value) for name, value in store.items() if name not in ("kind", "path") and value not in (None, "none")]
    format_ = ", ".join([_FORMATS.get(kind, kind), *more])
    if kind in ("jsonl-parts", "parquet"):
        return f"{directory / 'parts'} ({format_})"
    if kind in ("jsonl", "sqlite", "duckdb"):
        return f"{store.get('path') or directory} ({format_})"
    return format_
