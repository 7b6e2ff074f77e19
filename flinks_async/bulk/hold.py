"""One job at a URL, and one driver at a time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from .errors import JobLockedError, JobMismatchError, StoreError
from .objects import Objects

MARKS: Final = "_flinks"
"""The folder of a URL for the marks of jobs. Readers of tables ignore names that begin with an underscore."""

RENEW: Final = 15.0
"""Seconds between two renewals of a hold."""

EXPIRES: Final = 60.0
"""Seconds after the last renewal at which another driver may take over."""


class Hold:
    """Lets one job use a URL, and one driver work on the job. Needs no conditional requests.

    A driver writes its mark and then lists all marks. So of two drivers that come together, at least one sees the other and
    gives up. It renews its mark while it works. A mark that is not renewed for `EXPIRES` seconds, by the clock of the object
    storage, is removed by the next driver; the old one, if it only slept, finds its mark gone and stops. Until then it may
    write parts. They have names of their own, so they do not change the output, and are swept later.

    Args:
        objects: the place.
        job: the job's id.
        driver: identifies the job's directory on this machine. Its lock tells that no other process works there, so a driver
            that was killed can be followed at once.
        has_files: whether there are files of a job. A job without any, whose driver is gone, gives way to another.
        clock: for tests.
    """

    def __init__(
        self,
        objects: Objects,
        job: str,
        driver: str,
        has_files: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects = objects
        self._job = f"{MARKS}/job-{job}"
        self._driver = f"{MARKS}/driver-{driver}"
        self._has_files = has_files
        self._clock = clock
        self._renewed = 0.0
        self._lost = False
        self._ended = threading.Event()

    def take(self) -> None:
        """Takes the place for the job and this driver.

        Raises:
            JobMismatchError: it belongs to another job.
            JobLockedError: another driver works on the job.
            OSError: it cannot be reached.
        """
        known = self.is_known()
        mine = [self._driver] if known else [self._driver, self._job]
        try:
            problem = self._take()
        except OSError:
            with suppress(OSError):
                self._objects.delete(mine)
            raise
        if problem is not None:
            self._objects.delete(mine)
            raise problem

    def _take(self) -> JobMismatchError | JobLockedError | None:
        self._objects.put(self._job, b"")
        self._mark()
        marks = {mark.name: mark for mark in self._objects.list(MARKS)}
        mine = marks.pop(self._driver, None)
        if mine is None or marks.pop(self._job, None) is None:  # a driver that came at the same time has removed them
            return JobLockedError(f"another program begins to write to {self._objects}. Run this again")
        others = (mark.modified for name, mark in marks.items() if name.startswith(f"{MARKS}/driver-"))
        wait = EXPIRES - (mine.modified - max(others, default=-math.inf))
        for name in marks:
            kind, _, job = name.removeprefix(f"{MARKS}/").partition("-")
            if kind == "job" and (wait > 0 or self._has_files(job)):
                return JobMismatchError(
                    f"{self._objects} belongs to the job {job}. Choose another URL, or purge that job first"
                )
        if wait > 0:
            return JobLockedError(
                f"another program works on this job and writes to {self._objects}. If it was killed, run this again in "
                f"{wait:.0f} s"
            )
        self._objects.delete(marks)
        return None

    def is_known(self) -> bool:
        """Whether the job has used the place."""
        return self._objects.find(self._job) is not None

    def keep(self) -> None:
        """Renews the hold in a thread until `release`."""
        threading.Thread(target=self._keep, name="flinks-async-hold", daemon=True).start()

    def check(self) -> None:
        """Raises JobLockedError if another driver has taken over, OSError if that cannot be found out."""
        if not self._lost and self._clock() - self._renewed > EXPIRES / 2:
            self.renew()
        if self._lost:
            raise JobLockedError(
                f"another program has taken over {self._objects}, because this one was silent for {EXPIRES:.0f} s or more. "
                "Its answers since then do not count"
            )

    def renew(self) -> None:
        """Renews the hold, if no other driver has taken over."""
        names = {mark.name for mark in self._objects.list(MARKS)}
        self._lost = self._lost or names != {self._job, self._driver}
        if not self._lost:
            self._mark()

    def release(self, *, purged: bool = False) -> None:
        """Lets other drivers in.

        Args:
            purged: and other jobs.
        """
        self._ended.set()
        if not self._lost:
            self._objects.delete([self._driver, self._job] if purged else [self._driver])

    def _mark(self) -> None:
        now = self._clock()
        self._objects.put(self._driver, b"")
        self._renewed = now

    def _keep(self) -> None:
        while not self._ended.wait(RENEW):
            with suppress(OSError, StoreError):  # `check` tells if it lasts
                self.renew()
