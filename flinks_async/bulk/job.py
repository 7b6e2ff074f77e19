"""A job: a directory in which a file of tokens becomes answers, over as many runs as it takes."""

from __future__ import annotations

import datetime as dt
import os
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from attrs import asdict

from ..client import FlinksClient
from ..clock import Clock
from ..errors import ConfigError, FlinksError
from .directory import empty, enter, new_ledger, refuse_own_name, take_back
from .errors import InputChangedError, InputError, JobError, JobMismatchError
from .executors import Executor, InProcess, Work
from .files import LEDGER, LOG, MANIFEST, SCRATCH, SPOOLS, make_folder
from .inputs import STDIN, InputFile, Layout, Scanned, digest, scan
from .ledger import PURGING, Ledger, Totals
from .log import JobLog
from .manifest import Manifest
from .outcome import write_outcome
from .progress import Progress
from .records import FailureKind
from .rules import Rules
from .run import Result, Run
from .stores import Place, Store, from_description
from .thread import Thread, Worker

SHARD_SIZE: Final = 1000
"""Tokens in a shard, unless something else is asked for."""

OnScan = Callable[[int, int], object]


class Job:
    """A job, open and locked. `start` and `resume` make one; it is a context manager.

    All methods but `run` block: in an event loop, call them by `asyncio.to_thread`.

    Attributes:
        directory: of the job.
        manifest: what it is.
        scanned: what the input holds.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        scanned: Scanned,
        ledger: Ledger,
        store: Store,
        source: InputFile,
        log: JobLog,
        resources: ExitStack,
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.scanned = scanned
        self._ledger = ledger
        self._store = store
        self._source = source
        self._log = log
        self._resources = resources
        self._running: Run | None = None
        self._in_order = True

    @classmethod
    def start(
        cls,
        directory: str | os.PathLike[str],
        source: InputFile,
        store: Store,
        origin: Mapping[str, str] | None = None,
        *,
        shard_size: int = SHARD_SIZE,
        on_scan: OnScan | None = None,
    ) -> Job:
        """Begins a job in a new directory, or goes on with the one that is there.

        Args:
            directory: made if it is missing, readable by its owner only.
            source: the file of tokens.
            store: where the answers go.
            origin: where they come from: host by name of the instance ("" for rows that name none). Only to refuse a
                directory whose answers came from somewhere else.
            shard_size: tokens that are committed together (default 1,000). A job that is there keeps its own.
            on_scan: called now and then with the bytes read and the bytes in all, while the input is read through.

        Raises:
            JobMismatchError: the directory holds something else; the message says what differs.
            JobLockedError: another process works there.
            InputError: the input cannot be used.
            LedgerError, StoreError: ledger or store are broken, or cannot be written.
            ConfigError: the store would write over a file of the job.
        """
        folder = Path(directory).absolute()
        if type(shard_size) is not int or shard_size < 1:
            raise ConfigError(f"shard_size must be a whole number of at least 1, not {shard_size!r}")
        described = store.describe()
        refuse_own_name(folder, described.get("path"))
        size, sha256 = digest(source, on_scan)
        asked = Manifest(
            job=uuid.uuid4().hex,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            path=source.name,
            size=size,
            sha256=sha256,
            layout=asdict(source.layout),
            origin=dict(origin or {}),
            store=described,
            shard_size=shard_size,
        )
        asked.to_json()  # it may be refused, and then nothing was made
        with ExitStack() as resources:
            enter(folder, resources, new=True)
            found = folder / MANIFEST
            if found.exists():
                manifest = Manifest.load(found)
                manifest.refuse_other(asked, folder)
                ledger = Ledger(folder / LEDGER)
            else:
                manifest = asked
                ledger = new_ledger(folder, manifest.job)
                manifest.save(found)
            try:
                return cls._open(folder, manifest, ledger, store, source, resources, on_scan, new=manifest is asked)
            except FlinksError:
                if manifest is asked:
                    take_back(folder)
                raise

    @classmethod
    def resume(
        cls,
        directory: str | os.PathLike[str],
        *,
        path: str | os.PathLike[str] | None = None,
        store: Store | None = None,
        on_scan: OnScan | None = None,
    ) -> Job:
        """Opens a job that is there.

        Args:
            directory: of the job.
            path: of its input, if it lies somewhere else now.
            store: if it needs more than the manifest says.
            on_scan: as for `start`.

        Raises:
            as `start`; InputChangedError if the input has another content now.
        """
        folder = Path(directory).absolute()
        manifest = Manifest.load(folder / MANIFEST)
        source = _source(manifest, path)
        if digest(source, on_scan) != (manifest.size, manifest.sha256):
            raise InputChangedError(
                f"{source.path} is not the file any more that the job was started with. "
                "Put that one back, or start a new job in another directory"
            )
        chosen = store or from_description(manifest.store)
        if not manifest.same_store(chosen.describe(), folder):
            raise JobMismatchError(f"{folder} belongs to a job with another store")
        with ExitStack() as resources:
            enter(folder, resources)
            ledger = Ledger(folder / LEDGER)
            return cls._open(folder, manifest, ledger, chosen, source, resources, on_scan)

    @classmethod
    def _open(
        cls,
        folder: Path,
        manifest: Manifest,
        ledger: Ledger,
        store: Store,
        source: InputFile,
        resources: ExitStack,
        on_scan: OnScan | None,
        *,
        new: bool = False,
    ) -> Job:
        resources.callback(ledger.close)
        if ledger.get("job") != manifest.job:
            raise JobMismatchError(f"{folder / LEDGER} is not the ledger of {folder / MANIFEST}")
        log = JobLog(folder / LOG)
        resources.callback(log.close)
        for name in (SPOOLS, SCRATCH):
            empty(folder / name)
        if ledger.get(PURGING):  # one that failed, and now the job goes on instead
            ledger.put(PURGING, 0)
        # Before the input is read through, which may take minutes: a store that cannot be used is to be told at once.
        store.open(place_of(folder, manifest))
        resources.callback(store.close)
        try:
            _put_in_order(store, ledger)
            scanned = ledger.plan() or _plan(folder, manifest, ledger, source, on_scan, log)
        except FlinksError:
            if new:  # so that the next try may ask for something else
                with suppress(FlinksError):
                    store.purge()
            raise
        job = cls(folder, manifest, scanned, ledger, store, source, log, resources)
        job._resources = resources.pop_all()
        return job

    @property
    def totals(self) -> Totals:
        """Where the job stands, as far as it is committed."""
        return self._ledger.totals()

    def retry(self, kinds: Collection[FailureKind] = frozenset({"exhausted"})) -> int:
        """Lets the next run fetch failed tokens again.

        Args:
            kinds: which of them: `exhausted` (default), `final`, or both.

        Returns:
            how many tokens that is.

        Raises:
            JobError: there are tokens that were not tried yet; finish the job first.
        """
        if self.totals.pending:
            raise JobError(f"{self.totals.pending:,} tokens are still to be fetched; finish the job before retrying")
        return self._ledger.retry(kinds, self.manifest.shard_size)

    async def run(
        self,
        clients: FlinksClient | Mapping[str, FlinksClient],
        rules: Rules | None = None,
        *,
        executor: Executor | None = None,
        clock: Clock | None = None,
        worker: tuple[Worker, Worker] | None = None,
    ) -> Result:
        """Fetches what is to be fetched, until it is done or stopped.

        Args:
            clients: the client; for an input with a column of instances, one for each of their names.
            rules: when to stop.
            executor: where to fetch: `InProcess()` (default), or `Processes(4)` for four worker processes.
            clock, worker: for tests.

        Raises:
            ConfigError: the executor cannot work with these clients, or the input's tokens cannot.
            StoreError, LedgerError: something cannot be written. What was committed stays, and the job can go on.
            InputError: the input is gone, or not the same any more.
        """
        if self._running is not None:
            raise JobError("the job is running already")
        by_name: dict[str | None, FlinksClient] = {}
        if isinstance(clients, FlinksClient):
            by_name[None] = clients
        else:
            by_name.update(clients)
        self._refuse_clients(by_name)
        if not self._in_order:
            _put_in_order(self._store, self._ledger)
            self._in_order = True
        spools = self.directory / SPOOLS
        make_folder(spools)
        work = Work(
            self._source, self._ledger.get("key"), by_name, spools, self._store.spool_compression, rules or Rules(),
            secret_is_good=self.totals.fetched > 0, log=self._log,
        )  # fmt: skip
        chosen = executor or InProcess(clock=clock, worker=worker)
        writing = worker[0] if worker else Thread("flinks-async-outcome")
        self._running = Run(self._ledger, self._store, chosen, work, clock=clock, worker=worker)
        self._in_order = False
        try:
            result = await self._running.go()
            self._in_order = True
            await writing.do(self.write_outcome)
            return result
        finally:
            writing.close()
            self._running = None

    def _refuse_clients(self, clients: Mapping[str | None, FlinksClient]) -> None:
        """Before every token of the job fails for it."""
        if self.manifest.layout.get("instance_column") is None:
            if None not in clients:
                raise ConfigError("the tokens of this job name no instance: run it with one client")
        elif None in clients or not clients:
            raise ConfigError("the tokens of this job name their instance: run it with a client for each name")
        missing = {name: count for name, count in self.scanned.instances.items() if name not in clients}
        if missing:
            names = ", ".join(f"{name!r} ({count:,} tokens)" for name, count in islice(missing.items(), 5))
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise ConfigError(
                f"there are no settings for these instances of the input: {names}{more}; nothing was sent"
            )

    def stop(self, reason: str = "it was asked to") -> None:
        """Lets a run take no more tokens, and end. To be called in its event loop."""
        if self._running is not None:
            self._running.stop(reason)

    def progress(self) -> Progress | None:
        """How far the run is; None if there is none."""
        return None if self._running is None else self._running.progress()

    def write_outcome(self) -> None:
        """Writes `failed.jsonl`, `duplicates.jsonl` and `report.json`, as each run does at its end."""
        write_outcome(self.directory, self.manifest, self._ledger, self.scanned)

    def close(self) -> None:
        """Lets go of files, store and lock."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Job({str(self.directory)!r})"


def _source(manifest: Manifest, path: str | os.PathLike[str] | None) -> InputFile:
    if path is None and manifest.path == STDIN:
        raise InputError(
            "The tokens of this job came from standard input and were not kept. Name a file that holds the same bytes with --tokens."
        )
    try:
        return InputFile(Path(path or manifest.path), msgspec.convert(manifest.layout, Layout))
    except InputError as error:
        if path is not None:
            raise
        problem, field = error.message, error.field
    raise InputError(
        f"{problem} The job was started with {manifest.path}; if that file lies somewhere else now, name it with --tokens.",
        field=field,
    )


def place_of(folder: Path, manifest: Manifest) -> Place:
    """What the store has to know of a job."""
    layout = manifest.layout
    keyed, instances = (layout.get(name) is not None for name in ("key_column", "instance_column"))
    return Place(manifest.job, folder, keyed=keyed, instances=instances)


def _put_in_order(store: Store, ledger: Ledger) -> None:
    """Makes store and ledger agree, which they may not after a crash, or a run that broke off between the two."""
    for commit in store.recover(ledger.receipts()):
        ledger.commit(commit, run=0, now=dt.datetime.now(dt.UTC).timestamp())


def _plan(
    folder: Path, manifest: Manifest, ledger: Ledger, source: InputFile, on_scan: OnScan | None, log: JobLog
) -> Scanned:
    scratch = folder / SCRATCH
    make_folder(scratch)
    with ledger.planning() as planner:
        key: Any = ledger.get("key")
        scanned = scan(source, key=key, shard_size=manifest.shard_size, scratch=scratch, sink=planner, progress=on_scan)
        planner.finish(asdict(scanned))
    empty(scratch)
    log.info("planned: %d lines, %d tokens", scanned.lines, scanned.tokens)
    return scanned
