"""Stores with files of their own for each shard, on a disk or at a URL; and the marks that reserve a URL for one job."""

from __future__ import annotations

import math
import os
import re
import secrets
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from ...checks import checked_url
from ..errors import JobLockedError, JobMismatchError, StoreError, StoreMissingError
from ..files import LEDGER, cannot_read, cannot_write, size_of, writing
from ..objects import Found, Objects, place_at
from ..records import Commit
from .protocol import SUCCESS, Place, Problem, foreign_receipt, job_of_success, opened, success_of


class ShardFiles(ABC):
    """The base of stores that write files of their own for each shard, named by shard and job: in the folder `parts` of the
    job's directory, or at a URL.

    At a URL, several workers may write the same shard. Then a name also has the id of the attempt, and the ledger alone says
    which attempt counts.

    Args:
        url: the place; None for the folder `parts`.

    Attributes:
        folders: the folders that hold the files; "" is the place itself.
        by_workers: as in `SharedStore`.
    """

    folders: tuple[str, ...] = ("",)

    _place: Place | None = None
    _hold: Hold | None = None
    _objects: Objects

    def __init__(self, url: str | None) -> None:
        self._url = None if url is None else checked_url(url)
        self.by_workers = url is not None

    @property
    @abstractmethod
    def _own(self) -> str:
        """A regular expression for the names of this job's files, without their folder."""

    @abstractmethod
    def files(self, receipt: Mapping[str, Any]) -> Sequence[str]:
        """The names of the files of a shard.

        Raises:
            LedgerError: the receipt names files that are not this job's.
        """

    @abstractmethod
    def compare(self, commit: Commit) -> Iterator[Problem]:
        """Reads the files of a shard and compares them with what was committed. It may be called in several threads and
        processes at once.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """As `Store.describe`."""

    def _described(self, description: dict[str, Any]) -> dict[str, Any]:
        return description if self._url is None else {**description, "url": self._url}

    def open(self, place: Place, *, existing: bool = False) -> None:
        objects = self._objects = place_at(self._url, place.parts)
        self._place = place
        with self._naming("read" if existing else "written"):
            if self._url is None:
                if not existing:
                    objects.prepare(self.folders)
                elif size_of(place.parts) is None:
                    raise StoreMissingError(str(place.parts))
                return
            if not existing:
                objects.prepare((*self.folders, MARKS))
                hold = Hold(objects, place.job, _driver(place.folder), self.folders)
                hold.take()
                hold.keep()
                self._hold = hold
            elif objects.find(_mark_of(place.job)) is None:
                with suppress(StoreError):  # somebody may have removed the marks
                    if any(self._own_files()):
                        return
                raise StoreMissingError(str(objects))

    def recover(self, receipts: Mapping[int, Mapping[str, Any]]) -> Iterable[Commit]:
        unknown = [name for name in self._own_files() if not self._is_known(name, receipts)]
        self.check()  # after the list: so it has no file of a driver that took over meanwhile
        self._remove(unknown)
        return ()

    def _is_known(self, name: str, receipts: Mapping[int, Mapping[str, Any]]) -> bool:
        """Whether a receipt names a file. Receipts are asked for one by one, because there may be 100,000."""
        shard = _SHARD.search(name.rpartition("/")[2])
        receipt = None if shard is None else receipts.get(int(shard[0]))
        return receipt is not None and name in self.files(receipt)

    def check(self) -> None:
        """Raises JobLockedError if another driver has taken over the URL, StoreError if that cannot be found out."""
        if self._hold is not None:
            with self._naming("read"):
                self._hold.check()

    def drop(self, receipt: Mapping[str, Any]) -> None:
        """As `SharedStore.drop`."""
        self._remove(self.files(receipt))

    def settle(self, receipts: Mapping[int, Mapping[str, Any]], *, complete: bool) -> None:
        """As `SharedStore.settle`: at a URL, `_SUCCESS` lists the files of a complete job."""
        self.recover(receipts)
        with self._naming("written"):
            if complete:
                names = (name for receipt in receipts.values() for name in self.files(receipt))
                self._objects.put(SUCCESS, success_of(self._opened.job, names))
            else:
                self._objects.delete([SUCCESS])

    def verify(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        known = set[str]()
        for commit in commits:
            known.update(self.files(commit.receipt))
            yield from self.compare(commit)
        yield from self.unknown(known)

    def unknown(self, known: Container[str]) -> Iterator[Problem]:
        """Finds files of this job beside the known ones."""
        for name in self._own_files():
            if name not in known:
                where = str(self._objects.at(name))
                yield Problem(where, "the ledger does not know it; the next run of the job removes it")

    def missing(self, commits: Iterable[Commit]) -> Iterator[Problem]:
        own = set(self._own_files())
        for commit in commits:
            if gone := next((name for name in self.files(commit.receipt) if name not in own), None):
                yield Problem(str(self._objects.at(gone)), "it is missing", commit.shard.id)

    def purge(self) -> list[str]:
        place = self._opened
        if self._url is not None and self._hold is None:
            self._hold = Hold(self._objects, place.job, _driver(place.folder), self.folders)
            with self._naming("written"):
                self._hold.take()
        names = [*self._own_files()]
        self._remove(names)
        if self._hold is not None:
            with self._naming("written"):
                self._objects.delete([SUCCESS])
                self._hold.release(purged=True)
            self._hold = None
        else:
            above = (folder.rpartition("/")[0] for folder in self.folders)
            for folder in dict.fromkeys((*self.folders, *above, "")):
                with suppress(OSError):  # it holds other files
                    (place.parts / folder).rmdir()
        counts = Counter(name.rpartition("/")[0] for name in names)
        return [
            f"{counts[folder]:,} files of answers in {self._objects.at(folder) if folder else self._objects}"
            for folder in self.folders
            if counts[folder]
        ]

    def close(self) -> None:
        hold, self._hold = self._hold, None
        self._place = None
        if hold is not None:
            hold.let_go()

    @property
    def _opened(self) -> Place:
        return opened(self._place)

    def _name(self, shard: str, attempt: str | None = None) -> str:
        """The name of a file without its end.

        Args:
            shard: number of the shard, or an expression for it.
            attempt: id of the attempt, or an expression for it (default: a new id).
        """
        if self._url is None:
            return f"{shard}-{self._opened.job[:8]}"
        return f"{shard}-{self._opened.job[:8]}-{attempt or secrets.token_hex(4)}"

    def _put(self, names: Sequence[str], files: Sequence[Path]) -> None:
        """Adds the files of a shard.

        Raises:
            StoreError: one of them cannot be written. The next sweep removes the others.
        """
        for name, file in zip(names, files, strict=True):
            with writing(self._objects.at(name)):
                self._objects.put(name, file)

    def _file(self, name: str, folder: str = "") -> str:
        """The name of a file that a receipt names.

        Args:
            name: relative to the place.
            folder: where it must be.

        Raises:
            LedgerError: the name is not one of this job's.
        """
        path = self._objects.at(name)
        foreign = not re.fullmatch(f"{folder}/{self._own}".lstrip("/"), name, re.ASCII)
        if foreign or (isinstance(path, Path) and path.is_symlink()):
            raise foreign_receipt(f"names the file {name!a}, which is not of this job")
        return name

    def _own_files(self) -> Iterator[str]:
        """The names of all files with this job's id, unfinished ones too.

        Raises:
            StoreError: a folder cannot be read.
        """
        own = re.compile(rf"{self._own}|\.{self._own}\.tmp", re.ASCII)
        with self._naming("read"):
            for folder in self.folders:
                for one in self._objects.list(folder):
                    if own.fullmatch(one.name.rpartition("/")[2]):
                        yield one.name

    def _remove(self, names: Iterable[str]) -> None:
        with self._naming("written"):
            self._objects.delete(names)

    @contextmanager
    def _naming(self, what: Literal["read", "written"]) -> Iterator[None]:
        """Turns errors of the place into StoreErrors."""
        try:
            yield
            return
        except OSError as error:
            problem = (cannot_read if what == "read" else cannot_write)(self._objects, error)
        raise problem


def _driver(folder: Path) -> str:
    """Identifies a job's directory on this machine. A copy of it has another identity."""
    found = os.stat(folder / LEDGER)
    return sha256(f"{socket.gethostname()} {found.st_dev} {found.st_ino}".encode()).hexdigest()[:16]


_SHARD: Final = re.compile(r"\d{6,}")


# --- one driver at a URL ----------------------------------------------------------------------------------------------

MARKS: Final = "_flinks"
"""The folder of a URL for the marks of jobs. Readers of tables ignore names that begin with an underscore."""

RENEW: Final = 15.0
"""Seconds between two renewals of a hold."""

RELEASE: Final = 5.0
"""Seconds that the end of a job waits for the object storage to remove its mark."""

EXPIRES: Final = 60.0
"""Seconds after the last renewal at which another driver may take over."""


def _mark_of(job: str) -> str:
    """The name of the mark of a job, which stays at its URL until the job is purged."""
    return f"{MARKS}/job-{job}"


class Hold:
    """Lets one job use a URL, and one driver work on the job. Needs no conditional requests.

    A driver writes its mark and then lists all marks. So of two drivers that come together, at least one sees the other and
    gives up. It renews its mark while it works. A mark that is not renewed for `EXPIRES` seconds, by the clock of the object
    storage, is removed by the next driver; the old one, if it only slept, finds its mark gone and stops. Until then it may
    write parts. They have names of their own, so they do not change the output, and are swept later.

    A driver that is refused leaves its mark for a moment. The others know it, because it is not `EXPIRES` seconds younger than
    theirs. The mark of a job says in which folders its files are.

    Args:
        objects: the place.
        job: the job's id.
        driver: identifies the job's directory on this machine. Its lock tells that no other process works there, so a driver
            that was killed can be followed at once.
        folders: where the files of the job are. A job without any, whose driver is gone, gives way to another.
        clock: for tests.
    """

    def __init__(
        self,
        objects: Objects,
        job: str,
        driver: str,
        folders: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects = objects
        self._job = _mark_of(job)
        self._driver = f"{MARKS}/driver-{driver}"
        self._folders = folders
        self._clock = clock
        self._renewed = 0.0
        self._lost = False
        self._ended = threading.Event()
        self._renewing = threading.Lock()

    def take(self) -> None:
        """Takes the place for the job and this driver.

        Raises:
            JobMismatchError: it belongs to another job.
            JobLockedError: another driver works on the job.
            OSError: it cannot be reached.
        """
        known = self._objects.find(self._job) is not None
        if not known and job_of_success(self._objects) == "":
            raise JobMismatchError(
                f"{self._objects} holds the output of another program, which has an object {SUCCESS}. Choose another URL"
            )
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
        self._objects.put(self._job, msgspec.json.encode(self._folders))
        self._mark()
        marks = self._marks()
        mine = marks.pop(self._driver, None)
        if mine is None or marks.pop(self._job, None) is None:  # a driver that came at the same time has removed them
            return JobLockedError(f"another program begins to write to {self._objects}. Run this again")
        others = (mark.modified for name, mark in marks.items() if name.startswith(f"{MARKS}/driver-"))
        wait = EXPIRES - (mine.modified - max(others, default=-math.inf))
        for name in marks:
            kind, _, job = name.removeprefix(f"{MARKS}/").partition("-")
            if kind == "job" and ((files := self._has_files(name, job)) or wait > 0):
                later = "" if files else f"; if it has ended without any answer, run this again in {wait:.0f} s"
                return JobMismatchError(
                    f"{self._objects} belongs to the job {job}. Choose another URL, or purge that job first{later}"
                )
        if wait > 0:
            return JobLockedError(
                f"another program works on this job and writes to {self._objects}. If it was killed, run this again in "
                f"{wait:.0f} s"
            )
        self._objects.delete(marks)
        return None

    def _marks(self) -> dict[str, Found]:
        return {mark.name: mark for mark in self._objects.list(MARKS)}

    def _has_files(self, mark: str, job: str) -> bool:
        """Whether the place has files of another job, by its mark."""
        folders = self._folders
        with self._objects.at(mark).open("rb") as file, suppress(msgspec.DecodeError):
            folders = msgspec.json.decode(file.read(), type=list[str])
        return any(f"-{job[:8]}-" in one.name for folder in folders for one in self._objects.list(folder))

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
        with self._renewing:
            if self._ended.is_set():
                return
            marks, late = self._marks(), self._clock() - self._renewed > EXPIRES / 2
            before = marks.get(self._driver)
            self._lost = self._lost or before is None or self._is_taken(marks, before)
            if not self._lost and before is not None:
                self._mark()
                if late:  # another driver may have found the mark expired before it was renewed
                    self._lost = self._is_taken(self._marks(), before)

    def _is_taken(self, marks: Mapping[str, Found], mine: Found) -> bool:
        """Whether another driver has taken over, or will: it has seen the mark `mine` and found it expired."""
        others = (mark.modified for name, mark in marks.items() if name not in (self._job, self._driver))
        return (
            not {self._job, self._driver} <= marks.keys() or max(others, default=-math.inf) - mine.modified >= EXPIRES
        )

    def release(self, *, purged: bool = False) -> None:
        """Lets other drivers in.

        Args:
            purged: and other jobs.
        """
        self._ended.set()
        with self._renewing:
            if not self._lost:
                self._objects.delete([self._driver, self._job] if purged else [self._driver])

    def let_go(self) -> None:
        """Lets other drivers in, at the latest when the hold expires."""

        def release() -> None:
            with suppress(OSError):
                self.release()

        releasing = threading.Thread(target=release, name="flinks-async-release", daemon=True)
        releasing.start()
        releasing.join(RELEASE)

    def _mark(self) -> None:
        now = self._clock()
        self._objects.put(self._driver, b"")
        self._renewed = now

    def _keep(self) -> None:
        while not self._ended.wait(RENEW):
            with suppress(OSError, StoreError):  # `check` tells if it lasts
                self.renew()
