"""Ways to show how far a run is: a bar on a terminal, a plain line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

from attrs import frozen

from ..bulk.progress import Rate
from .console import on_terminal, say
from .metrics import Metrics, duration
from .options import ProgressKind
from .outcome_writer import Counts

_REDRAW: Final = 0.2
_PLAIN_EVERY: Final = 5.0
_RATE_OVER: Final = 5.0


@frozen
class View:
    """What is shown.

    Attributes:
        headline, details: in words.
        share: how much is done, from 0 to 1; None if that is not known.
        of: what it is a share of, in a word.
    """

    headline: str
    details: str = ""
    share: float | None = None
    of: str = ""

    def line(self) -> str:
        """All of it on one line."""
        share = "" if self.share is None else f"{min(self.share, 1.0):.0%} {self.of}".rstrip()
        return joined(share, self.headline, self.details)


def joined(*parts: str) -> str:
    """The parts that are not empty, in one line."""
    return " · ".join(part for part in parts if part)


class File(Protocol):
    """How much of the input there is, and how much was read."""

    @property
    def size(self) -> int | None: ...

    @property
    def position(self) -> int: ...


class Watched:
    """A run of `fetch` without a job. It shows how much of the file was read, since its lines are not known before."""

    def __init__(self, counts: Counts, metrics: Metrics, file: File, now: Callable[[], float] = time.monotonic) -> None:
        self._counts = counts
        self._metrics = metrics
        self._file = file
        self._now = now
        self._started = now()
        self._rate = Rate(_RATE_OVER)
        self._rate.at(self._started, counts.done)

    def view(self) -> View:
        counts, metrics, file = self._counts, self._metrics, self._file
        now = self._now()
        share = file.position / file.size if file.size else None
        left = duration((now - self._started) * (1 - share) / share) if share else None
        return View(
            joined(
                f"{counts.done:,} done",
                f"{self._rate.at(now, counts.done):,.0f}/s",
                f"{left} left" if left else "",
            ),
            joined(
                f"{counts.fetched:,} ok",
                f"{counts.failed + counts.invalid:,} failed",
                f"{metrics.retried:,} retried",
                metrics.percentiles(0.5, 0.95),
            ),
            share,
            "read",
        )


class Display(Protocol):
    """A way to show progress.

    Attributes:
        interval: seconds between two views.
    """

    interval: float

    def show(self, view: View) -> None: ...

    def close(self) -> None: ...


class PlainLines:
    """For logs and pipes."""

    def __init__(self, interval: float = _PLAIN_EVERY) -> None:
        self.interval = interval

    def show(self, view: View) -> None:
        say(view.line())

    def close(self) -> None:
        pass


class Bar:
    """For a terminal."""

    interval = _REDRAW

    def __init__(self) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
        from rich.text import Text

        self._progress = Progress(BarColumn(24), TaskProgressColumn(), TextColumn("{task.description}"))
        self._task = self._progress.add_task("", total=None)
        self._details = Text(no_wrap=True, overflow="ellipsis")
        # Refreshed by us: a thread less. What is said meanwhile appears above it.
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


def choose_display(kind: ProgressKind = "auto", *, beside_answers: bool = False) -> Display | None:
    """The display that fits standard error; no bar where it would get between answers on the same terminal."""
    if kind == "none":
        return None
    return Bar() if kind == "auto" and on_terminal() and not beside_answers else PlainLines()


@asynccontextmanager
async def shown(view: Callable[[], View], display: Display | None) -> AsyncIterator[None]:
    """Shows progress while the block runs."""
    if display is None:
        yield
        return
    try:
        async with repeated(display.interval, lambda: display.show(view())):
            yield
    finally:
        display.close()


@asynccontextmanager
async def repeated(interval: float, action: Callable[[], object]) -> AsyncIterator[None]:
    """Does something now and then while the block runs."""

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
