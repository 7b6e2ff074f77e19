"""Tokens of shards through the client into spools. It knows neither ledger nor store, so it may run anywhere.

Tokens are taken in the order of the shards and answered in any order; a shard ends with its last token.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from ..client import FlinksClient
from ..clock import Clock
from ..errors import ClientClosedError, ConfigError, FlinksError
from ..messages import Response
from ..secret import fingerprint
from .compression import Compression
from .failures import concerns_all, failure_of, suspicion, why_all, why_row
from .inputs import Token
from .progress import Figures, Histogram
from .records import Failure, Finished, RunState, Shard
from .rules import Rules
from .spool import OpenShard, Spool, key_of, spool_line
from .thread import Worker

Loaded = tuple[Shard, list[Token]]


class Tally:
    """What became of the tokens so far.

    Attributes:
        fetched, failed: tokens.
        again: those of them that had failed before.
        size: bytes of answers, as they came.
        times: seconds from sending to the last byte: of the minute before, and of this one.
    """

    def __init__(self, clock: Clock) -> None:
        self.fetched = self.failed = self.again = self.size = 0
        self.times = [Histogram(), Histogram()]
        self._clock = clock
        self._since = clock.now()

    def answered(self, response: Response, again: bool) -> None:
        self.fetched += 1
        self.again += again
        self.size += len(response.body)
        self.times[1].add(response.meta.wire_time)

    def figures(self) -> Figures:
        """The counts as they stand, without those of the clients."""
        now = self._clock.now()
        if now - self._since > 60.0:
            self.times = [self.times[1], Histogram()]
            self._since = now
        recent = self.times[1] if self.times[1].percentile(0.5) is not None else self.times[0]
        return Figures(self.fetched, self.failed, self.again, self.size, times=recent)


@frozen
class _Suspect:
    """A token whose error may be its own, or that of all.

    Attributes:
        number: of the suspects of its instance, from 0.
        kind: the suspicion.
    """

    number: int
    kind: str
    opened: OpenShard
    failure: Failure
    error: FlinksError


class _Suspects:
    """Those of one instance about whom it is not known yet.

    Attributes:
        tokens: in the order in which they failed.
        noted: how many there ever were.
        in_a_row: by suspicion, with no success between.
        any_success: the instance has answered a token.
    """

    def __init__(self) -> None:
        self.tokens: deque[_Suspect] = deque()
        self.noted = 0
        self.in_a_row = Counter[str]()
        self.any_success = False

    def add(self, kind: str, opened: OpenShard, failure: Failure, error: FlinksError) -> int:
        """How many of this kind there are in a row now."""
        self.tokens.append(_Suspect(self.noted, kind, opened, failure, error.with_traceback(None)))
        self.noted += 1
        self.in_a_row[kind] += 1
        return self.in_a_row[kind]

    def cleared(self, noted: int | None = None) -> list[_Suspect]:
        """Takes out those that were noted before, or all. Their errors were their own."""
        until = self.noted if noted is None else noted
        found = list[_Suspect]()
        while self.tokens and self.tokens[0].number < until:
            found.append(self.tokens.popleft())
        return found


class Fetcher:
    """Fetches shards until there are no more. `go()` may be awaited once.

    Args:
        load: gives the next shard with its tokens, or None.
        finished: takes a finished shard; it may move the file. Until it returns, the shard keeps its place.
        clients: by name of the instance; None for rows that name none.
        key: of fingerprints.
        spools: an empty folder for the files.
        compression: of the files.
        rules: when to stop.
        secret_is_good: the AuthSecret has worked before in this job.
        clock: tells the time.
        writing: does the blocking work.

    Attributes:
        tally: what became of the tokens so far.
        stopped: how and why it takes no more tokens; None while it does.
        secret_is_good: as above; may be set once it is known.
    """

    def __init__(
        self,
        load: Callable[[], Awaitable[Loaded | None]],
        finished: Callable[[Finished], Awaitable[object]],
        clients: Mapping[str | None, FlinksClient],
        key: bytes,
        spools: Path,
        compression: Compression,
        rules: Rules,
        *,
        secret_is_good: bool,
        clock: Clock,
        writing: Worker,
    ) -> None:
        self.tally = Tally(clock)
        self.stopped: tuple[RunState, str] | None = None
        self._source = load
        self._finished = finished
        self._clients = clients
        self._key = key
        self._spools = spools
        self._compression: Compression = compression
        self._rules = rules
        self.secret_is_good = secret_is_good
        self._clock = clock
        self._writing = writing
        self._queue: deque[tuple[OpenShard, Token]] = deque()
        self._loading = asyncio.Lock()
        self._exhausted = False
        self._open: dict[int, OpenShard] = {}
        self._room = asyncio.Event()
        self._stop = asyncio.Event()
        self._broken: BaseException | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._in_flight = 0
        self._suspects = {name: _Suspects() for name in clients}

    def stop(self, reason: str, state: RunState = "stopped") -> None:
        """Takes no more tokens; what is in flight has `Rules.drain` seconds to end. The first reason counts."""
        if self.stopped is None:
            self.stopped = (state, reason)
            self._stop.set()
            self._room.set()

    def break_off(self, error: BaseException) -> None:
        """Ends at once; `go()` raises the error."""
        if self._broken is None:
            self._broken = error
        self.stop("it broke off")

    async def go(self) -> None:
        """Fetches until there are no more shards, or until it is stopped. What the shards under way have then is
        finished too, and says which rows are left.

        Raises:
            what `load` and `finished` raise. Spools that are not finished are removed.
        """
        try:
            await self._fetch_all()
            await self._finish_the_rest()
        except BaseException:
            await self._abandon()
            raise

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
        while self._is_full() and not self._only_suspects() and self.stopped is None:
            self._room.clear()
            await self._room.wait()
        if self.stopped is not None:
            return
        loaded = await self._source()
        if loaded is None:
            self._exhausted = True
            return
        shard, tokens = loaded
        opened = self._open[shard.id] = OpenShard(shard, {token.line for token in tokens})
        self._queue.extend((opened, token) for token in tokens)
        if not tokens:
            self._finish_if_done(opened)

    def _is_full(self) -> bool:
        """A store that is slower than the instance slows the fetching, too."""
        return len(self._open) + len(self._ending) >= self._rules.open_shards

    def _only_suspects(self) -> bool:
        """All places are taken by shards that wait until it is known whether their errors are their own. Other tokens
        must tell, so one more is opened; before long there are enough suspects.
        """
        return not self._in_flight and not self._queue and not self._ending

    # --- one token ----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        try:
            while (place := await self._take()) is not None:
                opened, token = place
                client = self._clients.get(token.instance)
                if client is None:
                    error = ConfigError(f"there are no settings for the instance {token.instance!r}")
                    self._failed_for_good(opened, self._failure(token, error))
                    continue
                noted = self._suspects[token.instance].noted
                self._in_flight += 1
                try:
                    response = await client.respond(token.token)
                except ClientClosedError:
                    raise  # no token can be fetched any more, and this one has not failed
                except FlinksError as error:
                    self._note_failure(opened, token, error)
                else:
                    self._note_answer(opened, token, response, noted)
                finally:
                    self._in_flight -= 1
                if opened.full:
                    await self._writing.do(self._spill, opened, opened.take_lines())
                if self._only_suspects():
                    self._room.set()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.break_off(error)

    def _note_answer(self, opened: OpenShard, token: Token, response: Response, noted: int) -> None:
        """`noted`: how many suspects there were when it was asked for. Those that came later may have failed after the
        server had answered: an answer that was long on its way tells nothing about them.
        """
        suspects = self._suspects[token.instance]
        suspects.any_success = True
        suspects.in_a_row.clear()
        self._settle(suspects.cleared(noted))
        opened.answered(token.line, spool_line(token, response))
        self.tally.answered(response, again=opened.shard.round > 0)
        self._finish_if_done(opened)

    def _note_failure(self, opened: OpenShard, token: Token, error: FlinksError) -> None:
        if concerns_all(error):
            self.stop(why_all(error, token.instance))
            return
        failure, kind = self._failure(token, error), suspicion(error)
        if kind is None:
            self._failed_for_good(opened, failure)
            return
        suspects = self._suspects[token.instance]
        if suspects.add(kind, opened, failure, error) >= self._rules.refused_after:
            self._stop_for_row(token.instance, suspects)

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
        tally = self.tally
        tally.failed += 1
        tally.again += opened.shard.round > 0
        broken = self._rules.broken_by(tally.failed, tally.fetched + tally.failed)
        if broken is not None:
            self.stop(broken)
        self._finish_if_done(opened)

    def _settle(self, suspects: Sequence[_Suspect]) -> None:
        for suspect in suspects:
            self._failed_for_good(suspect.opened, suspect.failure)

    def _stop_for_row(self, instance: str | None, suspects: _Suspects) -> None:
        """For what the last of them says."""
        last = suspects.tokens[-1]
        reason = why_row(last.error, instance, suspects.in_a_row[last.kind])
        self.stop(reason, "refused" if last.kind == "refused" else "stopped")

    # --- answers out --------------------------------------------------------------------------------------------------

    def _finish_if_done(self, opened: OpenShard) -> None:
        if not opened.open and self._open.pop(opened.shard.id, None) is not None:
            self._end_soon(opened, ())

    def _end_soon(self, opened: OpenShard, left: tuple[int, ...]) -> None:
        ending = asyncio.ensure_future(self._end(opened, left))
        self._ending.add(ending)
        ending.add_done_callback(self._ended)

    async def _end(self, opened: OpenShard, left: tuple[int, ...]) -> None:
        await self._finished(
            await self._writing.do(self._write_end, opened, opened.take_lines(), opened.failures, left)
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        self._room.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self.break_off(error)

    def _spill(self, opened: OpenShard, lines: Sequence[bytes]) -> None:
        """In the writing thread."""
        if opened.spool is None:
            opened.spool = Spool(self._spools / f"{opened.shard.id:06d}.spool", self._compression)
        opened.spool.write(lines)

    def _write_end(
        self, opened: OpenShard, lines: Sequence[bytes], failures: tuple[Failure, ...], left: tuple[int, ...]
    ) -> Finished:
        """In the writing thread."""
        self._spill(opened, lines)
        assert opened.spool is not None
        written = opened.spool.finish()
        return Finished(opened.shard, opened.spool.path, written, failures, left)

    # --- all of it ----------------------------------------------------------------------------------------------------

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
        self._raise_if_broken()

    async def _finish_the_rest(self) -> None:
        """What the shards under way have so far. The rows that are left are named."""
        for name, suspects in self._suspects.items():
            if suspects.tokens and self.stopped is None:
                if suspects.any_success or self.secret_is_good:
                    self._settle(suspects.cleared())
                else:
                    self._stop_for_row(name, suspects)
        for opened in list(self._open.values()):
            if opened.begun:
                del self._open[opened.shard.id]
                self._end_soon(opened, tuple(sorted(opened.open)))
        while self._ending:
            await asyncio.wait(self._ending)
        self._raise_if_broken()
        await self._abandon()

    async def _abandon(self) -> None:
        if self._ending:
            await asyncio.wait(self._ending)
        for opened in self._open.values():
            if opened.spool is not None:
                await self._writing.do(opened.spool.abandon)

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            raise self._broken
