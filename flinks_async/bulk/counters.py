"""Counts of a run, its progress for users, and the calls that a process waits for.

There are two kinds of counts in a job. `Counters` are those of a run: live, sent by worker processes, added up, and gone when
it ends. `ledger.Totals` are those of the job, as far as it is committed. `Progress` is a snapshot for users made of both.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, Self

from attrs import asdict, define, evolve, field, fields, frozen

from ..client import FlinksClient
from ..codec.observed import Drift, joined
from ..limits.governor import Trouble
from ..limits.notices import LOG_EVERY, log_fields, trouble_line
from ..limits.rate import LearnedLimit

_SMALLEST: Final = 1e-4
_GROWTH: Final = math.log(1.05)
_PER_BUCKET: Final = 1 / _GROWTH
_log = math.log


class Histogram:
    """Times in buckets that are 5 % apart, so that a million of them take little memory."""

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}

    def add(self, seconds: float) -> None:
        bucket = int(_log(seconds / _SMALLEST) * _PER_BUCKET) + 1 if seconds > _SMALLEST else 0
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    @classmethod
    def sum_of(cls, parts: Iterable[Histogram]) -> Self:
        """One histogram with the times of all."""
        whole = cls()
        for part in parts:
            for bucket, count in part._buckets.items():
                whole._buckets[bucket] = whole._buckets.get(bucket, 0) + count
        return whole

    def percentile(self, share: float) -> float | None:
        """The time below which this share of all lies: the upper end of its bucket. None if the histogram is empty."""
        rank = math.ceil(share * sum(self._buckets.values()))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return _SMALLEST * math.exp(bucket * _GROWTH)
        return None


@frozen
class InstanceState:
    """An instance as a run sees it.

    Attributes:
        answered: it has answered a request of this run, with any status.
        trouble: the problem of its latest requests; None while they succeed.
        held_back: seconds until it gets the next request; 0 while nothing holds requests back.
        learned: its limit, learned from refused requests; None while unknown.
    """

    answered: bool = False
    trouble: Trouble | None = None
    held_back: float = 0.0
    learned: LearnedLimit | None = None

    def joined(self, other: InstanceState) -> InstanceState:
        """The same instance as two processes see it."""
        trouble = _joined(self.trouble, other.trouble)
        learned = other.learned if self.learned is None else self.learned.joined(other.learned)
        return InstanceState(self.answered or other.answered, trouble, max(self.held_back, other.held_back), learned)


def _joined(one: Trouble | None, other: Trouble | None) -> Trouble | None:
    if one is None or other is None:
        return one or other
    return evolve(one, attempts=one.attempts + other.attempts, since=min(one.since, other.since))


WAITED_FOR: Final = "waiting for one that is free"


@frozen
class WorkerState:
    """A worker of a run with several, at one moment or when it ended.

    Attributes:
        name: in words.
        fetched, failed, requests, in_flight, held_back: as in `Progress`.
        note: `WAITED_FOR`, or why it died and how many of its shards were handed out again; empty while it works.
        reassigned: its shards that were handed out again.
    """

    name: str
    fetched: int = 0
    failed: int = 0
    requests: int = 0
    in_flight: int = 0
    held_back: float = 0.0
    note: str = ""
    reassigned: int = 0

    def __str__(self) -> str:
        figures = f"{self.fetched:,} ok, {self.failed:,} failed, {self.in_flight:,} in flight"
        pause = f", held back for {self.held_back:,.0f} s" if self.held_back else ""
        return f"{self.name}: {figures}{pause}" + (f"; {self.note}" if self.note else "")


@define
class Counters:
    """Counts of a run so far, in one process or in several. Plain data that can be pickled and added up.

    Attributes:
        fetched, failed: tokens.
        failed_before: those of them that had already failed in an earlier run, and count as failed in the ledger.
        size: bytes of answers, as they came.
        requests, retries, throttled, in_flight, limit, held_back: as in `ClientStats`.
        times: seconds from sending to the last byte, of the last minute or two.
        instances: by host.
        waits: what worker processes or machines wait for beside instances, such as object storage that is down.
        workers: of a run with several; also those that have died.
        drift: how answers differ from their documentation.
    """

    fetched: int = 0
    failed: int = 0
    failed_before: int = 0
    size: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    in_flight: int = 0
    limit: int = 0
    held_back: float = 0.0
    times: Histogram = field(factory=Histogram)
    instances: dict[str, InstanceState] = field(factory=dict)
    waits: tuple[InstanceTrouble, ...] = ()
    workers: tuple[WorkerState, ...] = ()
    drift: tuple[Drift, ...] = ()

    def with_clients(self, clients: Iterable[FlinksClient], times: Histogram) -> Counters:
        """A copy with the counters of clients, and with recent times."""
        parts, drift = list[Counters]([self]), {}
        for client in clients:
            one = client.stats()
            state = InstanceState(one.answered, one.trouble, one.held_back, one.learned)
            parts.append(
                Counters(
                    requests=one.requests, retries=one.retries, throttled=one.throttled, in_flight=one.requests_in_flight,
                    limit=one.limit, held_back=one.held_back, instances={client.host: state},
                )
            )  # fmt: skip
            drift[client.options.codec] = one.drift  # clients may share a codec
        return evolve(Counters.sum_of(parts), times=times, workers=self.workers, drift=joined(drift.values()))

    @classmethod
    def sum_of(cls, parts: Iterable[Counters]) -> Counters:
        """All of them together; `held_back` is the longest."""
        whole, parts = cls(), [*parts]
        for part in parts:
            for name in _ADDED_UP:
                setattr(whole, name, getattr(whole, name) + getattr(part, name))
            whole.held_back = max(whole.held_back, part.held_back)
            for host, state in part.instances.items():
                whole.instances[host] = whole.instances.get(host, InstanceState()).joined(state)
        whole.times = Histogram.sum_of(part.times for part in parts)
        whole.drift = joined(part.drift for part in parts)
        whole.waits = joined_waits(trouble for part in parts for trouble in part.waits)
        return whole

    def ended(self) -> Counters:
        """The counters without requests in flight, for a process that has ended."""
        return evolve(self, in_flight=0, held_back=0.0, waits=())

    def without_troubles(self) -> Counters:
        """The counters of a process that has ended, while others know more about the instances."""
        instances = {host: InstanceState(one.answered) for host, one in self.instances.items()}
        return evolve(self, instances=instances, waits=())

    def learned(self) -> tuple[str, ...]:
        """The limits that were learned, one line an instance."""
        known = {host: one.learned for host, one in self.instances.items() if one.learned is not None}
        return tuple(f"{host}: {one}" if len(self.instances) > 1 else str(one) for host, one in known.items())

    def learned_rate(self) -> float | None:
        """Requests per second that the instances allow together; None while no limit of a rate is known."""
        rates = [one.learned.rate for one in self.instances.values() if one.learned is not None and one.learned.rate]
        return sum(rates) if rates else None

    def troubles(self, now: float, began: float) -> tuple[InstanceTrouble, ...]:
        """The instances that have a problem now, in a run that `began` then."""
        return tuple(
            InstanceTrouble(
                host, trouble.reason, trouble.attempts, now - max(trouble.since, began),
                state.held_back if math.isfinite(state.held_back) else 0.0,
            )
            for host, state in self.instances.items()
            if (trouble := state.trouble) is not None
        )  # fmt: skip


_ADDED_UP: Final = [field.name for field in fields(Counters) if str(field.type) == "int"]

Phase = Literal["fetching", "draining", "over"]


@frozen
class InstanceTrouble:
    """An instance whose latest requests failed or were throttled; or another place that the run waits for, such as object
    storage. `str` makes one line for people.

    Attributes:
        host: of the instance; or the other place, such as a URL.
        reason: of the latest failure, in words.
        attempts: that failed, with no success between; or calls that wait, 0 if nothing is called.
        seconds: since the first of them.
        next_try: seconds until the next request may be sent; 0 if it is not held back.
        gives_up: seconds after which the run, or the use of a worker, ends if this lasts; 0 if nothing is known about that.
    """

    host: str
    reason: str
    attempts: int
    seconds: float
    next_try: float = 0.0
    gives_up: float = 0.0

    @property
    def without_next_try(self) -> str:
        """The line without the time of the next try, for a run that makes none."""
        return trouble_line(self.reason, self.attempts, self.seconds)

    def __str__(self) -> str:
        next_try = self.next_try if self.next_try >= 1 else 0.0
        return trouble_line(self.reason, self.attempts, self.seconds, next_try, self.gives_up)


@frozen
class Progress:
    """A run at one moment. `total`, `fetched` and `failed` count tokens of the job, everything else is of this run.

    Attributes:
        phase: `draining` once no more tokens are taken.
        total: tokens of the job, retries not counted twice.
        fetched: tokens with an answer.
        failed: tokens that were tried and have none.
        requests, retries, throttled: requests that have ended, of these repeated ones, and of these answered with "slow
            down".
        in_flight: requests on the wire.
        limit: requests that may be on the wire at once.
        held_back: seconds for which nothing is sent, because the instance is down or asked for a pause.
        p50, p95: seconds from sending to the last byte, of the answers since the last minute began; None without any.
        rate: tokens per second, over the last 10 seconds.
        eta: seconds until the end, at the rate of the last minute; None if that is 0, or if an instance has had a problem for
            some seconds.
        seconds: since this run began.
        size: bytes of answers in this run, as they came.
        troubles: the instances that have a problem now, and what else the run waits for, such as object storage.
        learned: the limits that refused requests have shown, one line an instance, such as
            "1,470/s learned: refused at 1,520/s 12 s ago".
        learned_rate: requests per second that the instances allow, as far as their limits are known; None while no limit is.
        workers: of a run with several; also those that have died.
        drift: how the answers of this run differ from their documentation; the first 50.
    """

    phase: Phase
    total: int
    fetched: int
    failed: int
    requests: int
    retries: int
    throttled: int
    in_flight: int
    limit: int
    held_back: float
    p50: float | None
    p95: float | None
    rate: float
    eta: float | None
    seconds: float
    size: int
    troubles: tuple[InstanceTrouble, ...] = ()
    learned: tuple[str, ...] = ()
    learned_rate: float | None = None
    workers: tuple[WorkerState, ...] = ()
    drift: tuple[Drift, ...] = ()

    @property
    def done(self) -> int:
        """Tokens with an outcome."""
        return self.fetched + self.failed

    def to_dict(self) -> dict[str, Any]:
        """The fields and `done` as plain JSON, times rounded to milliseconds."""
        plain = _rounded(asdict(self, recurse=False))
        for name in ("troubles", "workers", "drift"):
            plain[name] = [_rounded(asdict(one)) for one in plain[name]]
        return {**plain, "done": self.done}


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in fields.items()}


# --- waits ------------------------------------------------------------------------------------------------------------

SILENCE: Final = 10.0
"""Seconds without an answer, of an instance or of a storage, after which this is a trouble."""

_LOOK_EVERY: Final = 1.0

WAITS: Final = logging.getLogger("flinks_async.bulk.waits")
"""The log of calls that last, also outside of a run."""


@define(eq=False)
class Wait:
    """A call that is under way.

    Attributes:
        place: what has to answer, as users know it.
        since: by the clock of `Waits`.
        until: when the call fails at the latest; None if unknown.
        reason: why it has not succeeded yet; None while there is no answer at all.
        attempts: 1 if it is a call to a storage, which has to answer.
        thread: the identifier of its thread.
    """

    place: str
    since: float
    until: float | None = None
    reason: str | None = None
    attempts: int = 0
    thread: int = field(factory=threading.get_ident)

    def trouble(self, now: float) -> InstanceTrouble:
        """How it is shown."""
        reason = self.reason or f"still no answer from {self.place}"
        gives_up = 0.0 if self.until is None else max(0.0, self.until - now)
        return InstanceTrouble(self.place, reason, self.attempts, now - self.since, gives_up=gives_up)


class Waits:
    """The calls of this process that block until a storage answers. While a call lasts longer than `SILENCE`, it is a
    trouble, and a thread logs it.

    Args:
        clock: for tests.

    Attributes:
        log: tell the log. Off in worker processes, because the job tells what all of them wait for.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.log = True
        self._clock = clock
        self._calls: set[Wait] = set()
        self._changing = threading.Lock()
        self._watched = False

    @contextmanager
    def call(self, place: str, most: float | None = None, *, work: str | None = None) -> Iterator[Wait]:
        """Makes a call known while it runs.

        Args:
            most: seconds after which it fails.
            work: what the place does, for work of any duration instead of a call. A call inside of it tells more.
        """
        now = self._clock()
        wait = Wait(place, now, None if most is None else now + most, work, int(work is None))
        with self._changing:
            self._calls.add(wait)
            begin, self._watched = self.log and not self._watched, self._watched or self.log
        if begin:
            threading.Thread(target=self._watch, name="flinks-async-waits", daemon=True).start()
        try:
            yield wait
        finally:
            with self._changing:
                self._calls.discard(wait)

    def troubles(self) -> tuple[InstanceTrouble, ...]:
        """The places that have not answered for `SILENCE` seconds."""
        now = self._clock()
        with self._changing:
            calls = [one for one in self._calls if now - one.since >= SILENCE]
        innermost = {one.thread: one for one in sorted(calls, key=lambda one: one.since)}
        return joined_waits(one.trouble(now) for one in innermost.values())

    def _watch(self) -> None:
        """Runs in a thread as long as there are calls."""
        told = dict[str, float]()
        while True:
            time.sleep(_LOOK_EVERY)
            with self._changing:
                if not self._calls and not told:
                    self._watched = False
                    return
            self.tell(told, self.troubles())

    def tell(self, told: dict[str, float], lasting: Collection[InstanceTrouble]) -> None:
        """Logs the troubles that last (see `to_log`)."""
        due, over = to_log(told, lasting, self._clock())
        for one in due:
            fields = log_fields("StoreWaits", place=one.host, reason=one.reason, seconds=one.seconds)
            WAITS.warning("waiting: %s", one, extra=fields)
        for place in over:
            WAITS.warning("the wait for %s is over", place, extra=log_fields("StoreWaited", place=place))


def to_log(
    told: dict[str, float], troubles: Collection[InstanceTrouble], now: float, *, least: float = 0.0
) -> tuple[list[InstanceTrouble], set[str]]:
    """The troubles to log now, because they have lasted for `least` seconds and were not logged within a minute, and the hosts
    whose trouble is over. `told` remembers when that of a host was logged.
    """
    due = [one for one in troubles if one.seconds >= least and now - told.get(one.host, -math.inf) >= LOG_EVERY]
    over = told.keys() - {one.host for one in troubles}
    for host in over:
        del told[host]
    told.update((one.host, now) for one in due)
    return due, over


waits: Final = Waits()


def joined_waits(troubles: Iterable[InstanceTrouble]) -> tuple[InstanceTrouble, ...]:
    """One trouble for each place, as several calls or processes see it."""
    places = dict[str, list[InstanceTrouble]]()
    for trouble in troubles:
        places.setdefault(trouble.host, []).append(trouble)
    return tuple(
        evolve(
            each[-1],
            attempts=sum(one.attempts for one in each),
            seconds=max(one.seconds for one in each),
            gives_up=min(filter(None, (one.gives_up for one in each)), default=0.0),
        )
        for each in places.values()
    )
