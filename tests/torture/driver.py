"""Starts the driver, gives it orders, and kills what it runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .order import Ended, Order

ROOT = Path(__file__).parent.parent.parent


class Driver:
    """A process of `job_driver`. A context manager.

    Args:
        errors: a file that takes its standard error.
        shim: the compiled `io_shim.c`, to be loaded before everything else.
        tracer: a command to run it under.
        timeout: seconds that a run may take; it is killed then, which fails the test.
    """

    def __init__(
        self, errors: Path, *, shim: Path | None = None, tracer: tuple[str, ...] = (), timeout: float = 120.0
    ) -> None:
        self._errors_file = errors
        self._command = [*tracer, sys.executable, "-m", "tests.torture.job_driver"]
        self._environ = dict(os.environ) if shim is None else {**os.environ, "LD_PRELOAD": str(shim)}
        self._timeout = timeout
        self._process: subprocess.Popen[str]
        self._errors: IO[bytes]

    def run(self, order: Order, *, kill_after: float | None = None) -> Ended:
        """Runs a job to its end.

        Args:
            kill_after: seconds after which it is killed from outside, if it has not ended.
        """
        child = self.begin(order)
        killer = None if kill_after is None else threading.Timer(kill_after, _kill, (child,))
        if killer is not None:
            killer.start()
        try:
            return self.wait(child)
        finally:
            if killer is not None:
                killer.cancel()
                killer.join()

    def begin(self, order: Order) -> int:
        """Starts a job; gives the process."""
        assert self._process.stdin is not None
        self._process.stdin.write(order.to_json().decode() + "\n")
        self._process.stdin.flush()
        child: int = self._read()["pid"]
        return child

    def wait(self, child: int) -> Ended:
        """How a job ended that was begun: it was killed, or said how; anything else fails the test."""
        late = threading.Timer(self._timeout, _kill, (child,))
        late.start()
        result, line = None, self._read()
        if "code" not in line:
            result, line = line, self._read()
        hangs = not late.is_alive()
        late.cancel()
        late.join()
        assert not hangs, f"it hangs, and was killed\n{self.errors()}"
        assert line["code"] in (0, 5) or line["code"] < 0, f"it ended with a traceback\n{self.errors()}"
        if result is None:
            return Ended(line["code"], None)
        return Ended(line["code"], result, result.pop("places", {}), result.pop("met", False))

    def errors(self) -> str:
        """The end of its standard error."""
        return self._errors_file.read_text()[-4000:]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the driver ended: {self.errors()}"
        found: dict[str, Any] = json.loads(line)
        return found

    def __enter__(self) -> Driver:
        self._errors = self._errors_file.open("ab")
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, env=self._environ, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=self._timeout)
        self._errors.close()


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
