"""The fetch of a demo: in this process, or in one of its own that kills itself on purpose.

`python -m flinks_async.cli.demo_fetch` takes its orders from the first line of standard input, so that the secret is in
no process' arguments or environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from attrs import asdict, evolve, field, frozen

from ..bulk import InProcess, InputFile, Job, JSONLParts, Rules, crash_points
from ..client import FlinksClient
from ..config import Pause, Settings
from .instances import Clients
from .job_display import choose_job_display
from .job_run import JobRun
from .options import Speed
from .run import run

KILL: Final[int] = getattr(signal, "SIGKILL", signal.SIGTERM)
"""What a process kills itself with; it cannot be caught, on Windows neither."""


@frozen
class DemoFetch:
    """What is to be fetched.

    Attributes:
        tokens: file with one token a line.
        directory: of the job.
        base_url, auth_secret: of the simulator.
        concurrency: requests at once; None as the preset.
        shard_size: tokens in a shard.
    """

    tokens: str
    directory: str
    base_url: str
    auth_secret: str = field(repr=False)
    concurrency: int | None
    shard_size: int

    def run(self) -> int:
        """Starts the job or goes on with it; the exit code."""
        client = FlinksClient(
            auth_secret=self.auth_secret, base_url=self.base_url, settings=_settings(self.concurrency)
        )
        return run(JobRun(self._open, Clients(client), Rules(), InProcess(), choose_job_display("auto")).go)

    def run_and_crash(self, after: int) -> bool:
        """Does the same in a process of its own that kills itself; whether it did.

        Args:
            after: shards that reach the store. The last of them is not in the ledger yet: the worst moment.
        """
        orders = msgspec.json.encode({"after": after, "fetch": asdict(self)})
        ended = subprocess.run([sys.executable, "-m", __name__], input=orders, check=False)
        return abs(ended.returncode) == KILL

    def _open(self, on_scan: Callable[[int, int], None]) -> Job:
        source = InputFile(Path(self.tokens))
        origin = {"": self.base_url}
        return Job.start(self.directory, source, JSONLParts(), origin, shard_size=self.shard_size, on_scan=on_scan)


def _settings(concurrency: int | None) -> Settings:
    """The bulk preset but for its pauses, so that the demo takes no minutes: here a throttled answer is made up for one
    token, while in earnest it speaks for all, and the preset then comes back slowly, and more so each time.
    """
    settings = Speed(concurrency).settings()
    return evolve(settings, limits=evolve(settings.limits, pause=Pause(base=0.5, cap=0.5, ramp=0.5)))


def main() -> None:
    """The process that kills itself."""
    orders = msgspec.json.decode(sys.stdin.readline())
    stored = 0

    def die_at(name: str) -> None:
        nonlocal stored
        stored += name == "stored"
        if stored == orders["after"]:
            os.kill(os.getpid(), KILL)

    crash_points.hook = die_at
    sys.exit(DemoFetch(**orders["fetch"]).run())


if __name__ == "__main__":
    main()
