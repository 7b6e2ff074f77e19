"""How far a run is: a bar on a terminal, a plain line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

from attrs import frozen

from .books import Counts
from .console import on_terminal, say
from .metrics import Metrics

_REDRAW: Final = 0.2
_PLAIN_EVERY: Final = 5.0
_RATE_OVER: Final = 5.0


class File(Protocol):
    """How much of the input there is, and how much was read."""

    size: int | None
    position: int


@frozen
class Watched:
    """What progress looks at."""

    counts: Counts
    metrics: Metrics
    file: File

    def done(self, rate: float) -> str:
        return f"{self.counts.done:,} done · {rate:,.0f}/s"

    def details(self) -> str:
        counts, metrics = self.counts, self.metrics
        parts = [
            f"{counts.fetched:,} ok",
            f"{counts.failed + counts.invalid:,} failed",
            f"{metrics.retried:,} retried",
            metrics.percentiles(0.5, 0.95),
        ]
        return " · ".join(part for part in parts if part)


class Rate:
    """Tokens a second, over the last few seconds."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def at(self, now: float, done: int) -> float:
        self._points.append((now, done))
        while len(self._points) > 2 and self._points[1][0] <= now - _RATE_OVER:
            self._points.popleft()
        then, before = self._points[0]
        return (done - before) / (now - then) if now > then else 0.0


class Display(Protocol):
    """A way to show progress."""

    interval: float

    def show(self, watched: Watched, rate: float) -> None: ...

    def close(self) -> None: ...


class PlainLines:
    """For logs and pipes."""

    def __init__(self, interval: float = _PLAIN_EVERY) -> None:
        self.interval = interval

    def show(self, watched: Watched, rate: float) -> None:
        file = watched.file
        share = f"{min(file.position / file.size, 1.0):.0%} read · " if file.size else ""
        say(f"{share}{watched.done(rate)} · {watched.details()}")

    def close(self) -> None:
        pass


class Bar:
    """For a terminal. It shows how much of the file was read, since the number of lines is not known before."""

    interval = _REDRAW

    def __init__(self) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.text import Text

        columns = (BarColumn(24), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn(True))
        self._progress = Progress(*columns)
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

    def show(self, watched: Watched, rate: float) -> None:
        file = watched.file
        self._progress.update(self._task, description=watched.done(rate), total=file.size, completed=file.position)
        self._details.plain = watched.details()
        with suppress(OSError, ValueError):  # the terminal is gone
            self._live.refresh()

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self._live.stop()


def choose_display(*, quiet: bool, beside_answers: bool = False) -> Display | None:
    """The display that fits standard error; no bar where it would get between answers on the same terminal."""
    if quiet:
        return None
    return Bar() if on_terminal() and not beside_answers else PlainLines()


@asynccontextmanager
async def shown(watched: Watched, display: Display | None) -> AsyncIterator[None]:
    """Shows progress while the block runs."""
    if display is None:
        yield
        return
    ticker = asyncio.ensure_future(_tick(watched, display))
    try:
        yield
    finally:
        ticker.cancel()
        await asyncio.wait({ticker})
        display.close()


async def _tick(watched: Watched, display: Display) -> None:
    rate = Rate()
    rate.at(time.monotonic(), watched.counts.done)
    while True:
        await asyncio.sleep(display.interval)
        display.show(watched, rate.at(time.monotonic(), watched.counts.done))
