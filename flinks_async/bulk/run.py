"""One run of a job: shards go from the ledger through an executor into the store, and are then marked in the ledger.

The guarantee is in the order in which a shard ends: its spool is finished, the store takes it over durably, and only then
does one transaction of the ledger mark the shard as done. So a crash may repeat requests, but never an answer in the output.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from attrs import frozen

from ..checks import counted
from ..clock import Clock, SystemClock
from ..codec import Drift
from ..errors import FlinksError
from ..limits.shared import RedisRateLimiter
from .counters import SILENCE, Counters, InstanceTrouble, Phase, Progress, joined_waits, to_log, waits
from .errors import LedgerError, StoreError, UnfitAnswerError
from .executors import Executor, Work
from .executors.protocol import Task, put
from .fetching import Thread
from .files import crash_points
from .ledger import Ledger, Totals
from .records import Finished, RunState
from .stores.protocol import Store, shared_store

SAMPLE_EVERY: Final = 10.0
"""Seconds between two samples for the report and for `status`, while the instances are neither in trouble nor out of it."""

WATCH_EVERY: Final = 1.0
"""Seconds between two checks of the instances."""

LASTING: Final = 5.0
"""Seconds after which a trouble is logged, and the time that is left is unknown."""

LASTING_TROUBLE: Final = "%s"
"""Log line about a trouble that lasts."""

MOST_DRIFT: Final = 50
"""Differences between answers and their documentation that the progress has."""


@frozen
class Result:
    """How a run ended.

    Attributes:
        state: `complete`: every token has an outcome. `stopped`: not yet; run the job again to resume. `refused`: the
            AuthSecret is refused.
        reason: why the run stopped, in words; empty if it is complete.
        totals: of the job.
        progress: of this run, at its end.
    """

    state: RunState
    reason: str
    totals: Totals
    progress: Progress


class Run:
    """One run. `go()` may be awaited once.

    Args:
        ledger, store: of the job, open.
        executor: where the shards are fetched.
        work: everything that is the same for all shards.
        clock: for tests.
        threads: for tests; for writing to store and ledger, and for reading the ledger.

    Raises:
        ConfigError: the executor cannot work with these clients.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        executor: Executor,
        work: Work,
        *,
        clock: Clock | None = None,
        threads: tuple[Thread, Thread] | None = None,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._shared = shared_store(store)
        self._rules = work.rules
        self._log = work.log
        self._selection = work.selection
        self._one_instance = None in work.clients
        limiters = {client.settings.limits.rate_limiter for client in work.clients.values()}
        self._limiters = [one for one in limiters if isinstance(one, RedisRateLimiter)]
        self._clock = clock or SystemClock()
        self._execution = executor.map_shards(work, self._next, self._take)
        self._writing, self._reading = threads or (Thread("flinks-async-store"), Thread("flinks-async-ledger"))
        self._pending = ledger.reader()
        self._shards = self._pending.pending()
        self._before = ledger.totals()
        self._started = self._clock.now()
        self._silent = (0, self._started)  # requests that had ended, and since when no other has
        self._in_trouble = set[str]()  # hosts; a trouble shorter than a second is none
        self._logged_troubles = dict[str, float]()  # when the trouble of a host was logged
        self._logged_drift = set[tuple[str, str]]()
        self._rate, self._rate_of_last_minute = Rate(), Rate(60.0)
        for rate in (self._rate, self._rate_of_last_minute):
            rate.at(self._started, 0)
        self._over = False
        self._run = 0
        self._broken: BaseException | None = None
        self._unfit = 0  # answers that the store could not hold

    def stop(self, reason: str, state: RunState = "stopped") -> None:
        """As `Execution.stop`."""
        if self._execution.stopped is None:
            self._log.info("stopping: %s", reason)
        self._execution.stop(reason, state)

    async def go(self) -> Result:
        """Runs until every token has an outcome, or until the run stops.

        A cancellation ends it at once; shards that are not committed are fetched again by the next run.

        Raises:
            StoreError, LedgerError: store or ledger cannot be written. Committed answers are kept.
            InputChangedError: the file of tokens has changed.
        """
        before = self._before
        broke_off: tuple[str, str] | None = None
        shards = counted(before.shards - before.shards_done, "shard")
        self._log.info("run begins: %s in %s to do", counted(before.pending, "token"), shards)
        if self._shared is not None:
            where = self._ledger.path.parent
            self._log.info("what is done is recorded in %s only. To resume on another machine, copy it there", where)
        beside: set[asyncio.Future[None]] = set()
        try:
            self._run = await self._writing.do(self._ledger.begin_run, self._clock.time())
            beside.add(asyncio.ensure_future(self._sample()))
            beside.add(asyncio.ensure_future(self._watch()))
            if self._rules.max_duration is not None:
                beside.add(asyncio.ensure_future(self._stop_after(self._rules.max_duration)))
            await self._execution.go()
            return await self._end()
        except BaseException as error:
            broke_off = state, reason = _broke_off(error)
            if state == "interrupted":
                self._log.info("run interrupted: %s", reason)
            else:
                self._log.error("run broken off: %s", reason)
            if isinstance(error, FlinksError):
                with suppress(FlinksError):  # the store may be the reason
                    await self._writing.do(self._settle, False)
            raise
        finally:
            self._over = True
            for task in beside:
                task.cancel()
            self._reading.close()
            self._writing.close()
            self._pending.close()
            if broke_off is not None and self._run:  # after the threads have finished their last calls
                crash_points.reach("broken off")
                with suppress(StoreError, LedgerError):  # the disk may be the reason
                    self._write_end(*broke_off, self.progress().to_dict())

    # --- shards in ----------------------------------------------------------------------------------------------------

    async def _next(self) -> Task | None:
        """The next pending shard."""
        return await self._reading.do(self._read_next)

    def _read_next(self) -> Task | None:
        """Runs in the reading thread."""
        shard = next(self._shards, None)
        if shard is None:
            return None
        whole = shard.only is None
        duplicates = self._pending.duplicates(shard.first, shard.last) if whole else ()
        return Task(shard, tuple(self._pending.cuts(shard)), frozenset(duplicates))

    # --- shards out ---------------------------------------------------------------------------------------------------

    async def _take(self, finished: Finished) -> None:
        await self._writing.do(self._store_shard, finished)
        if self._unfit:
            counters = self._counters()
            broken = self._rules.broken_by(counters.failed + self._unfit, counters.failed + counters.fetched)
            if broken is not None:
                self.stop(broken)

    def _store_shard(self, finished: Finished) -> None:
        """Adds a shard to the output and then to the ledger. Runs in the writing thread."""
        try:
            if self._broken is not None:  # the store may hold a shard that the ledger does not know
                raise self._broken
            if finished.receipt is None:
                finished = put(self._store, finished)
            elif self._shared is not None:
                self._shared.check()
        except BaseException as error:
            self._broken = error
            if finished.receipt is not None and self._shared is not None:  # the ledger will not know it
                with suppress(StoreError):
                    self._shared.drop(finished.receipt)
            raise
        try:
            crash_points.reach("stored")
            self._ledger.commit(finished.commit, run=self._run, now=self._clock.time())
        except BaseException as error:
            self._broken = error
            raise
        for failure in finished.failures:
            if failure.error == UnfitAnswerError.__name__:
                self._unfit += 1
                self._log.info("line %d counts as failed: %s", failure.line, failure.message)
        shard = finished.shard
        self._log.info(
            "shard %d done: lines %d to %d, %d answers, %d failed, %d left",
            shard.id, shard.first, shard.last, finished.written.lines, len(finished.failures), len(finished.left),
        )  # fmt: skip

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _end(self) -> Result:
        totals = await self._writing.do(self._ledger.totals)
        state, reason = self._execution.stopped or ("complete", "")
        if state == "stopped" and not totals.pending:  # the stop came with the last token
            state, reason = "complete", ""
        self._over = True
        progress = self.progress()
        if state == "complete":  # the last troubles may have ended since the last look
            self._log_troubles(progress.troubles, self._clock.now())
        self._log_drift(progress.drift)
        await self._writing.do(self._settle, state == "complete")
        await self._writing.do(self._write_end, state, reason, progress.to_dict())
        self._log.info("run over: %s%s", state, f" ({reason})" if reason else "")
        return Result(state, reason, totals, progress)

    def _settle(self, complete: bool) -> None:
        """Removes output that the ledger does not know."""
        if self._shared is not None:
            self._shared.settle(self._ledger.receipts(), complete=complete)

    def _write_end(self, state: str, reason: str, summary: dict[str, Any]) -> None:
        self._ledger.add_sample(self._run, self._clock.time(), summary)
        self._ledger.end_run(self._run, self._clock.time(), state, reason, summary)

    async def _stop_after(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self.stop(f"the time limit of {seconds:g} s is reached")

    async def _watch(self) -> None:
        """Logs the troubles of instances, and stops the run for an instance that has never answered."""
        answered_before = self._before.fetched > 0 and self._one_instance
        while True:
            await self._clock.sleep(WATCH_EVERY)
            now, counters = self._clock.now(), self._counters()
            troubles = self._troubles(counters, now)
            lasting = [one for one in (*troubles, *waits.troubles()) if one.seconds >= WATCH_EVERY]
            self._in_trouble = {trouble.host for trouble in lasting}
            self._log_troubles(troubles, now)
            self._log_drift(counters.drift)
            for trouble in counters.troubles(now, self._started):  # without silence: its requests may still be answered
                answered = answered_before or counters.instances[trouble.host].answered
                reason = self._rules.unreachable(trouble, answered=answered)
                if reason is not None:
                    self.stop(reason)

    def _troubles(self, counters: Counters, now: float) -> tuple[InstanceTrouble, ...]:
        """The instances that have a problem now; also that they keep all requests waiting, which is no failure yet. And what
        workers wait for.
        """
        ended, since = self._silent
        if counters.requests != ended or not counters.in_flight:
            since = now
            self._silent = (counters.requests, now)
        troubles = counters.troubles(now, self._started)
        if not troubles and now - since >= SILENCE:
            troubles = tuple(
                InstanceTrouble(host, f"still no answer from {host}", counters.in_flight, now - since)
                for host in counters.instances
            )
        without_redis = max((limiter.without_redis for limiter in self._limiters), default=0.0)
        if without_redis:
            reason = "Redis does not answer, so the rate is not shared"
            troubles += (InstanceTrouble("Redis", reason, 0, without_redis),)
        return troubles + counters.waits

    def _log_troubles(self, troubles: Sequence[InstanceTrouble], now: float) -> None:
        due, over = to_log(self._logged_troubles, troubles, now, least=LASTING)
        for trouble in due:
            self._log.warning(LASTING_TROUBLE, trouble)
        for host in over:
            self._log.info("%s answers again", host)

    def _log_drift(self, drift: Sequence[Drift]) -> None:
        """Logs each difference when it is first seen. Missing fields are only counted, because they are normal."""
        for one in drift:
            if one.kind != "missing field" and (one.kind, one.path) not in self._logged_drift:
                self._logged_drift.add((one.kind, one.path))
                self._log.warning("answers differ from their documentation: %s", one)

    async def _sample(self) -> None:
        """Saves the progress every `SAMPLE_EVERY` seconds, and when an instance gets into trouble or out of it."""
        passed, before = 0.0, set[str]()
        while True:
            await self._clock.sleep(WATCH_EVERY)
            passed += WATCH_EVERY
            if passed < SAMPLE_EVERY and self._in_trouble == before:
                continue
            passed, before = 0.0, self._in_trouble
            try:
                sample = self.progress().to_dict()
                # Not in the writing thread, which may wait for a storage for minutes.
                await self._reading.do(self._pending.add_sample, self._run, self._clock.time(), sample)
            except Exception as error:
                self._execution.break_off(error)
                return

    def _counters(self) -> Counters:
        counters = self._execution.counters()
        if self._selection is not None and counters.drift:
            counters.drift = self._selection.drift(counters.drift)
        return counters

    def progress(self) -> Progress:
        """The counters as they stand."""
        now, before, counters = self._clock.now(), self._before, self._counters()
        done = counters.fetched + counters.failed
        lately = self._rate_of_last_minute.at(now, done)
        troubles = joined_waits((*self._troubles(counters, now), *waits.troubles()))
        # A missing worker, with no attempts, leaves the time of the others.
        moving = lately > 0 and not any(trouble.attempts and trouble.seconds >= LASTING for trouble in troubles)
        phase: Phase = "over" if self._over else "fetching" if self._execution.stopped is None else "draining"
        return Progress(
            phase=phase,
            total=before.tokens,
            fetched=before.fetched + counters.fetched - self._unfit,
            failed=before.failed + counters.failed - counters.failed_before + self._unfit,
            requests=counters.requests,
            retries=counters.retries,
            throttled=counters.throttled,
            in_flight=counters.in_flight,
            limit=counters.limit,
            held_back=counters.held_back,
            p50=counters.times.percentile(0.5),
            p95=counters.times.percentile(0.95),
            rate=self._rate.at(now, done),
            eta=(before.pending - done) / lately if moving else None,
            seconds=now - self._started,
            size=counters.size,
            troubles=troubles,
            learned=counters.learned(),
            learned_rate=counters.learned_rate(),
            workers=counters.workers,
            drift=counters.drift[:MOST_DRIFT],
        )


class Rate:
    """Tokens per second over the last seconds."""

    def __init__(self, over: float = 10.0) -> None:
        self._over = over
        self._points: list[tuple[float, int]] = []

    def at(self, now: float, done: int) -> float:
        points = self._points
        points.append((now, done))
        while len(points) > 2 and points[1][0] <= now - self._over:
            del points[0]
        then, before = points[0]
        return (done - before) / (now - then) if now > then else 0.0


def _broke_off(error: BaseException) -> tuple[str, str]:
    """How and why a run was broken off."""
    if isinstance(error, FlinksError):
        return "failed", error.message
    stopped = isinstance(error, (asyncio.CancelledError, KeyboardInterrupt))
    return ("interrupted", "it was cancelled") if stopped else ("failed", type(error).__name__)
