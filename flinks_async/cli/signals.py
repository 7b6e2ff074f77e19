"""Runs a coroutine function, on uvloop if it is installed. The first signal requests a stop, the second cancels."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ..runtime import fast_loop
from . import Exit

T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """`asyncio.run(main())` on the fastest loop. `main` is called when there is a loop, so an interruption before that
    leaves no coroutine that was never awaited.
    """
    # A full garbage collection walks every object and stops the loop meanwhile. Modules and classes never become garbage, so
    # they are excluded: stalls of 15 to 40 ms become 3 ms (benchmarks/stall.py).
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            return runner.run(main())
    finally:
        gc.unfreeze()


_EXITS = {"SIGINT": Exit.SIGINT, "SIGBREAK": Exit.SIGINT, "SIGTERM": Exit.SIGTERM, "SIGHUP": Exit.SIGHUP}


class StopSignals:
    """Whether a signal has asked the run to end.

    Attributes:
        requested: set by the first signal.
        exit: exit code of the first signal; None before it.
    """

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.exit: Exit | None = None

    @contextmanager
    def on_signals(self, heard: Callable[[Exit, bool], object]) -> Iterator[None]:
        """Handles signals during the block. The first one sets `requested`, the second one cancels the current task.

        Args:
            heard: called with the exit code, and whether it is not the first signal.
        """
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()

        def on_signal(code: Exit) -> None:
            again = self.exit is not None
            self.exit = self.exit or code
            heard(code, again)
            if again:
                task.cancel()
            self.requested.set()

        with _handlers(loop, on_signal):
            yield


@contextmanager
def _handlers(loop: asyncio.AbstractEventLoop, on_signal: Callable[[Exit], None]) -> Iterator[None]:
    found = {number: code for name, code in _EXITS.items() if (number := getattr(signal, name, None)) is not None}
    before = {number: signal.getsignal(number) for number in found}
    for number, code in found.items():
        if before[number] is signal.SIG_IGN and code is Exit.SIGHUP:  # started by nohup
            continue
        _listen(loop, number, on_signal, code)
    try:
        yield
    finally:
        for number, handler in before.items():
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(number)
            with suppress(ValueError, TypeError):  # not the main thread; a handler that was not set from Python
                signal.signal(number, handler)


def _listen(
    loop: asyncio.AbstractEventLoop, number: signal.Signals, on_signal: Callable[[Exit], None], code: Exit
) -> None:
    try:
        loop.add_signal_handler(number, on_signal, code)
        return
    except NotImplementedError:  # Windows
        pass
    except (RuntimeError, ValueError):  # not the main thread, which gets no signals
        return
    with suppress(ValueError):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(on_signal, code))
