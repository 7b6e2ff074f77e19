"""Fetches the tokens of shards and writes their answers into spools. It knows neither ledger nor store, so it can run in
any process.

Tokens are taken in the order of the shards and answered in any order; a shard ends with its last token. When the run
stops, requests on the wire may end; calls that wait (for a place, in a pause, before a retry) are cancelled, so that
nothing more is sent. `rules` describes why a run stops.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from attrs import define, field

from ..client import FlinksClient
from ..clock import Clock
from ..errors import ClientClosedError, ConfigError, FlinksError
from ..messages import Response, SendPermit
from ..secret import fingerprint
from .compression import Compression
from .counters import Counters, Histogram
from .errors import StoreError
from .files import OPEN_FILES_SHORT, SpareFiles
from .inputs import Token
from .records import Failure, Finished, RunState, Shard
from .rules import DoubtfulTokens, Rules, doubt_about, failure_of, meets_every_token, reason_for_all
from .spool import OpenShard, Spool, key_of, spool_line

Loaded = tuple[Shard, list[Token]]

T = TypeVar("T")


class RecentTimes:
    """Times of one to two minutes: those of the current minute and of the one before."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._before, self._current = Histogram(), Histogram()
        self.add = self._current.add

    def histogram(self, now: float) -> Histogram:
        """The times of the current minute, or those of the one before if there is none yet."""
        if now - self._since > 60.0:
            self._since = now
            self._before, self._current = self._current, Histogram()
            self.add = self._current.add
        return self._current if self._current.percentile(0.5) is not None else self._before


class Thread:
    """One thread that runs blocking functions one after the other, in the order of the calls; or several."""

    def __init__(self, name: str, count: int = 1) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    def do(self, function: Callable[..., T], /, *args: object) -> Awaitable[T]:
        """Returns or raises what `function(*args)` does. The function runs even if the caller is cancelled."""
        # Shielded: cancelling a call that waits in the queue would take it out of the queue.
        return asyncio.shield(asyncio.get_running_loop().run_in_executor(self._pool, function, *args))

    def close(self) -> None:
        """Finishes the calls that were made. Blocks until then."""
        self._pool.shutdown()


class NoThread(Thread):
    """Runs each function at once, in the caller's thread. For tests in virtual time."""

    def __init__(self) -> None:
        pass

    def do(self, function: Callable[..., T], /, *args: object) -> Awaitable[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass


@define(eq=False, repr=False, slots=False)
class Fetcher:
    """Fetches shards until there are no more. `go()` may be awaited once.

    Args:
        load: returns the next shard with its tokens, or None.
        finished: takes a finished shard and may move its file. Until it returns, the shard counts as open.
        clients: by name of the instance; None for rows that name none.
        key: of fingerprints.
        spools: an empty folder for the files.
        compression: of the files.
        kept: the files become output of the job (see `Spool`).
        rules: when to stop.
        secret_is_good: the AuthSecret has worked before in this job.
        clock: tells the time.
        writing: the thread for blocking work.
        select: makes, of the JSON of an answer, the JSON that is kept; None keeps everything.

    Attributes:
        stopped: how and why no more tokens are taken; None while they are.
        secret_is_good: as above; set it when it becomes known.
    """

    _load_next: Callable[[], Awaitable[Loaded | None]] = field(alias="load")
    _finished: Callable[[Finished], Awaitable[object]]
    _clients: Mapping[str | None, FlinksClient]
    _key: bytes = field(repr=False)
    _spools: Path
    _compression: Compression
    _rules: Rules
    secret_is_good: bool = field(kw_only=True)
    _clock: Clock = field(kw_only=True, alias="clock")
    _writing: Thread = field(kw_only=True, alias="writing")
    _select: Callable[[bytes], bytes] | None = field(kw_only=True, alias="select", default=None)
    _kept: bool = field(kw_only=True, alias="kept", default=True)
    stopped: tuple[RunState, str] | None = field(default=None, init=False)
    _counters: Counters = field(factory=Counters, init=False)
    _times: RecentTimes = field(init=False)
    _queue: deque[tuple[OpenShard, Token]] = field(factory=deque, init=False)
    _loading: asyncio.Lock = field(factory=asyncio.Lock, init=False)
    _exhausted: bool = field(default=False, init=False)
    _open: dict[int, OpenShard] = field(factory=dict, init=False)
    _room: asyncio.Event = field(factory=asyncio.Event, init=False)
    _stop: asyncio.Event = field(factory=asyncio.Event, init=False)
    _broken: BaseException | None = field(default=None, init=False)
    _spare: SpareFiles = field(factory=SpareFiles, init=False)
    _ending: set[asyncio.Task[None]] = field(factory=set, init=False)
    _calls: dict[SendPermit, asyncio.Task[Any]] = field(factory=dict, init=False)
    _doubtful: dict[str | None, DoubtfulTokens[tuple[OpenShard, Failure]]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._times = RecentTimes(self._clock.now())
        self._doubtful = {name: DoubtfulTokens() for name in self._clients}

    def counters(self) -> Counters:
        """The counters as they stand."""
        return self._counters.with_clients(set(self._clients.values()), self._times.histogram(self._clock.now()))

    def stop(self, reason: str, state: RunState = "stopped") -> None:
        """As `Execution.stop`."""
        if self.stopped is not None:
            return
        self.stopped = (state, reason)
        self._spare.close()
        self._stop.set()
        self._room.set()
        for permit, call in self._calls.items():
            permit.revoked = True
            if not permit.on_wire:
                call.cancel()

    def break_off(self, error: BaseException) -> None:
        """As `Execution.break_off`."""
        if self._broken is None:
            self._broken = error
        self.stop("it broke off")

    async def go(self) -> None:
        """As `Execution.go`. Raises what `load` and `finished` raise, and StoreError; spools that cannot be finished are
        removed.
        """
        try:
            await self._fetch_all()
            await self._finish_the_rest()
        except BaseException:
            await self._abandon()
            raise
        finally:
            self._spare.close()

    # --- tokens in ----------------------------------------------------------------------------------------------------

    async def _take(self) -> tuple[OpenShard, Token] | None:
        """The next token; None when no more are taken."""
        while not self._queue:
            if self._exhausted or self.stopped is not None:
                return None
            async with self._loading:
                if not self._queue and not self._exhausted and self.stopped is None:
                    await self._load()
        return None if self.stopped is not None else self._queue.popleft()

    async def _load(self) -> None:
        """Opens the next shard, once there is room for it."""
        # Shards that the store has not taken yet count, so that a slow store slows the fetching.
        while (
            len(self._open) + len(self._ending) >= self._rules.open_shards
            and not self._only_doubtful()
            and self.stopped is None
        ):
            self._room.clear()
            await self._room.wait()
        if self.stopped is not None:
            return
        loaded = await self._load_next()
        if loaded is None:
            self._exhausted = True
            return
        shard, tokens = loaded
        opened = self._open[shard.id] = OpenShard(shard, {token.line for token in tokens})
        self._queue.extend((opened, token) for token in tokens)
        if not tokens:
            self._finish_if_done(opened)

    def _only_doubtful(self) -> bool:
        """All open shards wait for doubtful tokens. Only other tokens can show whose errors these are, so one more shard
        is opened; soon a success settles them, or there are enough of them to stop.
        """
        return not self._calls and not self._queue and not self._ending

    # --- one token ----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        permit = SendPermit()
        try:
            while (place := await self._take()) is not None:
                opened, token = place
                client = self._clients.get(token.instance)
                if client is None:
                    error = ConfigError(f"there are no settings for the instance {token.instance!r}")
                    self._failed_for_good(opened, self._failure(token, error))
                    continue
                doubtful_before = self._doubtful[token.instance].added
                outcome: Response | FlinksError
                self._calls[permit] = task
                try:
                    outcome = await client.respond(token.token, permit)
                except ClientClosedError:
                    raise  # no token can be fetched any more, and this one has not failed
                except FlinksError as raised:
                    outcome = raised
                finally:
                    del self._calls[permit]
                if isinstance(outcome, Response):
                    self._note_answer(opened, token, outcome, doubtful_before)
                else:
                    self._note_failure(opened, token, outcome)
                if opened.full:
                    self._stop_if_short()
                    await self._writing.do(self._spill, opened, opened.take_lines())
                if self._only_doubtful():
                    self._room.set()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.break_off(error)

    def _note_answer(self, opened: OpenShard, token: Token, response: Response, doubtful_before: int) -> None:
        self._settle(self._doubtful[token.instance].succeeded(doubtful_before))
        opened.answered(token.line, spool_line(token, response, self._select))
        counters = self._counters
        counters.fetched += 1
        counters.failed_before += opened.shard.round > 0
        counters.size += len(response.body)
        self._times.add(response.meta.wire_time)
        self._finish_if_done(opened)

    def _note_failure(self, opened: OpenShard, token: Token, error: FlinksError) -> None:
        if meets_every_token(error):
            self.stop(reason_for_all(error, token.instance))
            return
        failure, doubt = self._failure(token, error), doubt_about(error)
        if self.stopped is not None and failure.kind == "exhausted":
            return  # the stop took its retries away; the next run has them
        if doubt is None:
            self._failed_for_good(opened, failure)
            return
        doubtful = self._doubtful[token.instance]
        if doubtful.add((opened, failure), doubt, error) >= self._rules.refused_after:
            self._stop_for_row(token.instance)

    def _failure(self, token: Token, error: FlinksError) -> Failure:
        return failure_of(
            error,
            token.line,
            key=key_of(token),
            instance=token.instance,
            token_fingerprint=fingerprint(token.token, key=self._key),
        )

    def _failed_for_good(self, opened: OpenShard, failure: Failure) -> None:
        opened.failed(failure)
        counters = self._counters
        counters.failed += 1
        counters.failed_before += opened.shard.round > 0
        broken = self._rules.broken_by(counters.failed, counters.fetched + counters.failed)
        if broken is not None:
            self.stop(broken)
        self._finish_if_done(opened)

    def _settle(self, doubtful: Sequence[tuple[OpenShard, Failure]]) -> None:
        """Their errors were their own."""
        for opened, failure in doubtful:
            self._failed_for_good(opened, failure)

    def _stop_for_row(self, instance: str | None) -> None:
        state, reason = self._doubtful[instance].reason(instance)
        self.stop(reason, state)

    # --- answers out --------------------------------------------------------------------------------------------------

    def _finish_if_done(self, opened: OpenShard) -> None:
        if not opened.open and self._open.pop(opened.shard.id, None) is not None:
            self._end_soon(opened, ())

    def _end_soon(self, opened: OpenShard, left: tuple[int, ...]) -> None:
        ending = asyncio.ensure_future(self._end(opened, left))
        self._ending.add(ending)
        ending.add_done_callback(self._ended)

    async def _end(self, opened: OpenShard, left: tuple[int, ...]) -> None:
        self._stop_if_short()
        await self._finished(
            await self._writing.do(self._write_end, opened, opened.take_lines(), opened.failures, left)
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        self._room.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self.break_off(error)

    def _spill(self, opened: OpenShard, lines: Sequence[bytes]) -> None:
        """Runs in the writing thread."""
        if opened.lost is not None:
            raise opened.lost
        try:
            if opened.spool is None:
                path = self._spools / f"{opened.shard.id:06d}.spool"
                opened.spool = Spool(path, self._compression, kept=self._kept)
            opened.spool.write(lines)
        except StoreError as error:
            opened.lost = error
            if opened.spool is not None:
                opened.spool.abandon()  # on a full disk, its space may be enough for the other shards
            raise

    def _stop_if_short(self) -> None:
        if self._spare.needed():
            self.stop(OPEN_FILES_SHORT)

    def _write_end(
        self, opened: OpenShard, lines: Sequence[bytes], failures: tuple[Failure, ...], left: tuple[int, ...]
    ) -> Finished:
        """Runs in the writing thread."""
        self._spill(opened, lines)
        assert opened.spool is not None
        written = opened.spool.finish()
        return Finished(opened.shard, opened.spool.path, written, failures, left)

    # --- start and end ------------------------------------------------------------------------------------------------

    async def _fetch_all(self) -> None:
        count = self._rules.concurrency or sum(client.settings.limits.most_at_once for client in self._clients.values())
        workers = {asyncio.ensure_future(self._work()) for _ in range(count)}
        stopped = asyncio.ensure_future(self._stop.wait())
        working: set[asyncio.Future[Any]] = {*workers}
        try:
            while working and not stopped.done():
                _, rest = await asyncio.wait({*working, stopped}, return_when=asyncio.FIRST_COMPLETED)
                working = rest - {stopped}
            if working and self._broken is None:
                await asyncio.wait(working, timeout=self._rules.drain)
        finally:
            for task in (*workers, stopped):
                task.cancel()
            await asyncio.wait({*workers, stopped})

    async def _finish_the_rest(self) -> None:
        """Finishes the open shards with the answers they have, and names the rows that are left. After an error, those
        that it does not concern.
        """
        for name, doubtful in self._doubtful.items():
            if doubtful and self.stopped is None:
                if doubtful.any_success or self.secret_is_good:
                    self._settle(doubtful.take())
                else:
                    self._stop_for_row(name)
        for opened in list(self._open.values()):
            if opened.begun:
                del self._open[opened.shard.id]
                self._end_soon(opened, tuple(sorted(opened.open)))
        while self._ending:
            await asyncio.wait(self._ending)
        if self._broken is not None:
            raise self._broken
        await self._abandon()

    async def _abandon(self) -> None:
        if self._ending:
            await asyncio.wait(self._ending)
        for opened in self._open.values():
            if opened.spool is not None:
                await self._writing.do(opened.spool.abandon)
