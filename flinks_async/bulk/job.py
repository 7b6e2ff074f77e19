"""A job: a directory with everything that is needed to fetch a file of tokens in one run or in several.

`Job.start` reads the input once and plans shards in the ledger; `Job.run` fetches the shards that are not committed yet (see
`run`). After an interruption, open the job again and run it.
"""

from __future__ import annotations

import datetime as dt
import os
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, closing, suppress
from itertools import islice
from pathlib import Path
from types import NoneType, TracebackType
from typing import Final, Self, get_args

import msgspec
from attrs import asdict, define, field

from .. import checks
from ..client import FlinksClient
from ..clock import Clock
from ..errors import ConfigError, FlinksError
from ..secret import Secret, wrap_secret
from .counters import Progress
from .directory import VERSION, Manifest, empty, enter, new_ledger, refuse_own_name, take_back
from .errors import InputChangedError, InputError, JobError, JobMismatchError
from .executors import Executor, InProcess, Work
from .fetching import Thread
from .files import LEDGER, LOG, MANIFEST, SCRATCH, SPOOLS, make_folder
from .inputs import STDIN, InputFile, Layout, Scanned, digest, scan
from .ledger import PURGING, Ledger, Totals
from .outcome import JobLog, write_outcome
from .records import FailureKind
from .rules import Rules
from .run import Result, Run
from .selection import Selection
from .stores import Place, Store, from_description
from .stores.protocol import keeps_spools, shared_store

SHARD_SIZE: Final = 1000
"""Default number of tokens in a shard."""

OnScan = Callable[[int, int], object]


@define(eq=False, repr=False, slots=False)
class Job:
    """An open, locked job. Make one with `start` or `resume`; it is a context manager.

    All methods except `run`, `stop` and `progress` block: in an event loop, call them with `asyncio.to_thread`.

    Attributes:
        directory: of the job.
        manifest: the description that the job was started with.
        scanned: counts of the input's lines and tokens.
    """

    directory: Path
    manifest: Manifest
    scanned: Scanned = field(init=False)
    _ledger: Ledger
    _store: Store
    _source: InputFile
    _log: JobLog = field(init=False)
    _selection: Selection | None
    _resources: ExitStack
    _running: Run | None = field(default=None, init=False)
    _reconciled: bool = field(default=True, init=False)

    @classmethod
    def start(
        cls,
        directory: str | os.PathLike[str],
        source: InputFile,
        store: Store,
        origin: Mapping[str, str] | None = None,
        *,
        shard_size: int = SHARD_SIZE,
        selection: Selection | None = None,
        on_scan: OnScan | None = None,
    ) -> Job:
        """Starts a job in a new directory, or opens the same job if the directory holds it.

        Args:
            directory: created if it is missing, readable by its owner only.
            source: the file of tokens.
            store: where the answers go.
            origin: where the answers come from: host by name of the instance ("" for rows that name none). Used only to
                refuse a directory whose answers come from other hosts.
            shard_size: tokens that are committed together (default 1,000). An existing job keeps its own.
            selection: what is kept of the answers (default: everything). Nothing else is written to a file.
            on_scan: called repeatedly with the bytes read and the total, while the input is scanned.

        Raises:
            JobMismatchError: the directory holds something else; the message names the difference.
            JobLockedError: another process works on the job.
            InputError: the input cannot be used.
            LedgerError, StoreError: ledger or store is broken, or cannot be written.
            ConfigError: the store would overwrite a file of the job.
        """
        folder = checks.path("directory", directory)
        checks.kind("source", source, InputFile)
        checks.kind("store", store, Store)
        checks.kind("origin", origin, Mapping, NoneType)
        for text in (*(origin or {}), *(origin or {}).values()):
            checks.kind("origin: each name and host", text, str)
        checks.function_or_none("on_scan", on_scan)
        checks.integer("shard_size", shard_size, 1)
        checks.kind("selection", selection, Selection, NoneType)
        refuse_own_name(folder, store.describe().get("path"))
        asked = _new_manifest(source, store, origin or {}, shard_size, selection, digest(source, on_scan))
        with ExitStack() as resources:
            enter(folder, resources, new=True)
            found = folder / MANIFEST
            new = not os.path.exists(found)
            if new:
                manifest = asked
                ledger = new_ledger(folder, manifest.job)
                manifest.save(found)
            else:
                manifest = Manifest.load(found)
                manifest.refuse_other(asked, folder)
                ledger = Ledger(folder / LEDGER)
            try:
                return cls(folder, manifest, ledger, store, source, selection, resources)._open(on_scan, new=new)
            except FlinksError:
                if new:
                    take_back(folder)
                raise

    @classmethod
    def resume(
        cls,
        directory: str | os.PathLike[str],
        *,
        path: str | os.PathLike[str] | None = None,
        store: Store | None = None,
        pseudonym_key: Secret | str | None = None,
        on_scan: OnScan | None = None,
    ) -> Job:
        """Opens an existing job.

        Args:
            directory: of the job.
            path: of its input, if the file was moved.
            store: if it needs settings that the manifest does not hold.
            pseudonym_key: the same key as before, if the job replaces values by pseudonyms.
            on_scan: as for `start`.

        Raises:
            ConfigError: `pseudonym_key` is missing or another one.
            InputChangedError: the content of the input has changed.
            FlinksError: as for `start`.
        """
        pseudonym_key = wrap_secret(pseudonym_key)  # bound to the same name, so that a traceback does not show it
        folder = checks.path("directory", directory)
        checks.kind("store", store, Store, NoneType)
        checks.function_or_none("on_scan", on_scan)
        manifest = Manifest.load(folder / MANIFEST)
        selection = None
        if manifest.selection is not None:
            selection = Selection.from_description(manifest.selection).with_key(pseudonym_key)
        source = _source(manifest, path)
        if digest(source, on_scan) != (manifest.size, manifest.sha256):
            raise InputChangedError(
                f"{source.name} has changed since the job was started. "
                "Restore the original file, or start a new job in another directory"
            )
        chosen = from_description(manifest.store) if store is None else store
        if not manifest.same_store(chosen.describe(), folder):
            raise JobMismatchError(f"{folder} belongs to a job with another store")
        with ExitStack() as resources:
            enter(folder, resources)
            ledger = Ledger(folder / LEDGER)
            return cls(folder, manifest, ledger, chosen, source, selection, resources)._open(on_scan)

    def _open(self, on_scan: OnScan | None, *, new: bool = False) -> Job:
        folder, manifest, ledger, resources = self.directory, self.manifest, self._ledger, self._resources
        resources.callback(ledger.close)
        if ledger.get("job") != manifest.job:
            raise JobMismatchError(f"{folder / LEDGER} is not the ledger of {folder / MANIFEST}")
        self._log = JobLog(folder / LOG, manifest.job)
        resources.callback(self._log.close)
        for name in (SPOOLS, SCRATCH):
            empty(folder / name)
        if ledger.get(PURGING):  # a purge failed, and now the job is resumed instead
            ledger.put(PURGING, 0)
        # Before the scan, which may take minutes, so that an unusable store is reported at once.
        self._store.open(place_of(folder, manifest))
        resources.callback(self._store.close)
        try:
            self._reconcile()
            self.scanned = ledger.plan() or self._plan(on_scan)
        except FlinksError:
            if new:  # so that the next attempt may use other settings
                with suppress(FlinksError):
                    self._store.purge()
            raise
        self._resources = resources.pop_all()
        return self

    def _reconcile(self) -> None:
        """Makes store and ledger agree. They may differ after a crash between the two steps of a commit."""
        for commit in self._store.recover(self._ledger.receipts()):
            self._ledger.commit(commit, run=0, now=dt.datetime.now(dt.UTC).timestamp())

    def _plan(self, on_scan: OnScan | None) -> Scanned:
        scratch, key = self.directory / SCRATCH, self._ledger.get("key")
        make_folder(scratch)
        with self._ledger.planning() as planner:
            size = self.manifest.shard_size
            scanned = scan(self._source, key=key, shard_size=size, scratch=scratch, sink=planner, progress=on_scan)
            planner.finish(asdict(scanned))
        empty(scratch)
        self._log.info("planned: %d lines, %d tokens", scanned.lines, scanned.tokens)
        return scanned

    @property
    def totals(self) -> Totals:
        """Counts of the tokens that are committed. It may be read while the job runs."""
        with closing(self._ledger.reader()) as ledger:  # a run writes through the other connection in a thread
            return ledger.totals()

    def retry(self, kinds: Collection[FailureKind] = frozenset({"exhausted"})) -> int:
        """Makes the next run fetch failed tokens again.

        Args:
            kinds: of failures: `exhausted` (default), `final`, or both.

        Returns:
            the number of tokens.

        Raises:
            JobError: some tokens have not been tried yet.
            ConfigError: there is no such kind.
        """
        checks.kind("kinds", kinds, Collection)
        for kind in kinds:
            checks.choice("each of kinds", kind, get_args(FailureKind))
        if self.totals.pending:
            raise JobError(f"{self.totals.pending:,} tokens are not fetched yet; finish the job before you retry")
        return self._ledger.retry(kinds, self.manifest.shard_size)

    async def run(
        self,
        clients: FlinksClient | Mapping[str, FlinksClient],
        rules: Rules | None = None,
        *,
        executor: Executor | None = None,
        clock: Clock | None = None,
        threads: tuple[Thread, Thread] | None = None,
    ) -> Result:
        """Fetches the tokens that are not fetched yet, until all are done or the run stops.

        Args:
            clients: the client; for an input with a column of instances, a client for each name in it.
            rules: when to stop.
            executor: where to fetch: `InProcess()` (default), `Processes(4)` for four worker processes, or a `DaskExecutor` or
                `RayExecutor` for a cluster.
            clock, threads: for tests.

        Raises:
            ConfigError: the clients do not fit the input or the executor.
            StoreError, LedgerError: something cannot be written. Committed answers are kept; run the job again to resume.
            InputError: the input is gone, or has changed.
        """
        if self._running is not None:
            raise JobError("the job is already running")
        checks.kind("clients", clients, FlinksClient, Mapping)
        checks.kind("rules", rules, Rules, NoneType)
        checks.kind("executor", executor, Executor, NoneType)
        by_name: dict[str | None, FlinksClient] = {}
        if isinstance(clients, FlinksClient):
            by_name[None] = clients
        else:
            by_name.update(clients)
        for client in by_name.values():
            checks.kind("clients: each value", client, FlinksClient)
        self._refuse_clients(by_name)
        if not self._reconciled:
            self._reconcile()
            self._reconciled = True
        spools = self.directory / SPOOLS
        make_folder(spools)
        work = Work(
            self._source, self._ledger.get("key"), by_name, spools, self._store.spool_compression, rules or Rules(),
            secret_is_good=self.totals.fetched > 0, log=self._log, selection=self._selection,
            shared=shared_store(self._store), place=place_of(self.directory, self.manifest),
            kept=keeps_spools(self._store),
        )  # fmt: skip
        chosen = executor or InProcess(clock=clock, threads=threads)
        writing = threads[0] if threads else Thread("flinks-async-outcome")
        self._running = Run(self._ledger, self._store, chosen, work, clock=clock, threads=threads)
        self._reconciled = False
        try:
            result = await self._running.go()
            self._reconciled = True
            await writing.do(self.write_outcome)
            return result
        finally:
            writing.close()
            self._running = None

    def _refuse_clients(self, clients: Mapping[str | None, FlinksClient]) -> None:
        """Raises ConfigError if a token of the job would have no client."""
        if self.manifest.layout.get("instance_column") is None:
            if None not in clients:
                raise ConfigError(
                    "the input has no column of instances: run the job with one client, not with a mapping"
                )
        elif None in clients or not clients:
            raise ConfigError(
                "the input has a column of instances: run the job with a mapping that has a client for each name"
            )
        missing = {name: count for name, count in self.scanned.instances.items() if name not in clients}
        if missing:
            names = ", ".join(f"{name!r} ({count:,} tokens)" for name, count in islice(missing.items(), 5))
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise ConfigError(
                f"there are no settings for these instances of the input: {names}{more}; nothing was sent"
            )

    def stop(self, reason: str = "it was asked to") -> None:
        """Stops the run: no more tokens are taken, and requests on the wire have `Rules.drain` seconds to end. Call it in
        the run's event loop.
        """
        checks.kind("reason", reason, str)
        if self._running is not None:
            self._running.stop(reason)

    def progress(self) -> Progress | None:
        """How far the run is; None if the job is not running."""
        return None if self._running is None else self._running.progress()

    def write_outcome(self) -> None:
        """Writes `failed.jsonl`, `duplicates.jsonl` and `report.json`, as every run does at its end."""
        write_outcome(self.directory, self.manifest, self._ledger, self.scanned)

    def close(self) -> None:
        """Closes files and store, and releases the lock."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Job({str(self.directory)!r})"


def _new_manifest(
    source: InputFile,
    store: Store,
    origin: Mapping[str, str],
    shard_size: int,
    selection: Selection | None,
    digested: tuple[int, str],
) -> Manifest:
    """Raises what `Manifest.to_json` raises if it is invalid."""
    size, sha256 = digested
    manifest = Manifest(
        job=uuid.uuid4().hex,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        path=source.name,
        size=size,
        sha256=sha256,
        layout=asdict(source.layout),
        origin=dict(origin),
        store=store.describe(),
        shard_size=shard_size,
        selection=None if selection is None else selection.with_key(selection.pseudonym_key).describe(),
        version=1 if selection is None else VERSION,
    )
    manifest.to_json()
    return manifest


def _source(manifest: Manifest, path: str | os.PathLike[str] | None) -> InputFile:
    if path is None and manifest.path == STDIN:
        raise InputError(
            "The tokens of this job came from standard input and were not kept. To resume it, put the same bytes into a file "
            "and give its `path`"
        )
    try:
        return InputFile(manifest.path if path is None else path, msgspec.convert(manifest.layout, Layout))
    except InputError as error:
        if path is not None:
            raise
        problem, field = error.message, error.field
    raise InputError(
        f"{problem} The job was started with {manifest.path}; if that file was moved, give its new `path`",
        field=field,
    )


def place_of(folder: Path, manifest: Manifest) -> Place:
    """The facts of a job that its store needs."""
    layout = manifest.layout
    keyed, instances = (layout.get(name) is not None for name in ("key_column", "instance_column"))
    chosen = None if manifest.selection is None else Selection.from_description(manifest.selection).kept_tables
    return Place(manifest.job, folder, keyed=keyed, instances=instances, tables=chosen)
