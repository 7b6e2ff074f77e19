"""Plain records of shards, failures, commits and progress. None holds a token.

There are two kinds of counts in a job. `Counters` are those of a run: live, sent by worker processes, added up, and gone when
it ends. `ledger.Totals` are those of the job, as far as it is committed. `Progress` is a snapshot for users made of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, Self

import msgspec
from attrs import asdict, define, evolve, field, fields, frozen

from ..client import FlinksClient
from ..limits.governor import Trouble
from ..limits.notices import trouble_line
from ..limits.rate import LearnedLimit

FailureKind = Literal["invalid", "final", "exhausted"]
"""`invalid`: nothing was sent. `final`: another try will fail too. `exhausted`: another try may succeed."""

RunState = Literal["complete", "stopped", "refused"]
"""`complete`: every token has an outcome. `stopped`: not yet, run the job again. `refused`: the AuthSecret is refused."""


class ExactNumber(float):
    """A number of JSON that keeps its text, because a key must not change: `1.10` is written as `1.10`, not as `1.1`."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Self:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __repr__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.text,)


def _exact(value: Any) -> msgspec.Raw:
    if isinstance(value, ExactNumber):
        return msgspec.Raw(value.text.encode())
    raise NotImplementedError


from_json: Final = msgspec.json.Decoder(float_hook=ExactNumber).decode
"""JSON with keys of the user's: fractions become `ExactNumber`."""


def key_from_json(text: bytes | msgspec.Raw) -> Any:
    """A key; `-0` too is an `ExactNumber`, because a Python int has no negative zero."""
    return ExactNumber("-0") if bytes(text) == b"-0" else from_json(text)


to_json: Final = msgspec.json.Encoder(enc_hook=_exact).encode
"""The JSON of values from `from_json`."""


@frozen
class Shard:
    """A piece of the input that is committed as a whole. It names rows, never tokens, so it may be stored or sent anywhere.

    Attributes:
        id: from 0, in the order in which shards were made.
        first: line of its first row, from 1.
        last: line of its last row, inclusive.
        offset: bytes of the (decompressed) input before its first row.
        tokens: how many tokens are to be fetched for it (duplicates are not).
        digest: keyed digest of all sendable tokens in it; shows whether the input has changed.
        round: 0 at first; each retry of failed tokens adds 1.
        only: the rows to fetch, ascending; None for all. Set for a shard that was left half done, and for a retry.
    """

    id: int
    first: int
    last: int
    offset: int
    tokens: int
    digest: str
    round: int = 0
    only: tuple[int, ...] | None = None


@frozen
class Failure:
    """A row without an answer, as in `failed.jsonl`.

    Attributes:
        line: its line in the input, from 1.
        kind: see `FailureKind`.
        error: class of the error, such as `ServerError`.
        message: in words, without token or secret.
        key: value of the key column, if there is one.
        token_fingerprint: keyed per job; None if no token could be read.
        flinks_code, status, attempts: as in `FlinksError`.
        instance: value of the instance column, if there is one.
    """

    line: int
    kind: FailureKind
    error: str
    message: str
    key: Any = None
    token_fingerprint: str | None = None
    flinks_code: str | None = None
    status: int | None = None
    attempts: int = 0
    instance: str | None = None


@frozen
class Written:
    """A finished file of answers.

    Attributes:
        lines: answers in it.
        size: bytes of the file.
        sha256: of the file's bytes, hexadecimal.
    """

    lines: int
    size: int
    sha256: str


@frozen
class Finished:
    """A shard whose answers are in a synced file, but not in the store yet.

    Attributes:
        shard: the shard.
        spool: the file.
        written: size and checksum of the file.
        failures: rows without an answer.
        left: rows without an outcome, ascending.
    """

    shard: Shard
    spool: Path
    written: Written
    failures: tuple[Failure, ...]
    left: tuple[int, ...]


@frozen
class Commit:
    """A shard whose answers are in the store, and the outcome of its rows.

    Attributes:
        shard: the shard.
        written: its answers, as they were handed to the store.
        failures: its rows without an answer.
        left: rows without an outcome, ascending; they go into another shard.
        receipt: where the store put the answers: plain JSON that only this store reads.
    """

    shard: Shard
    written: Written
    failures: tuple[Failure, ...] = ()
    left: tuple[int, ...] = ()
    receipt: dict[str, Any] = field(factory=dict)


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

    def with_clients(self, clients: Iterable[FlinksClient], times: Histogram) -> Counters:
        """A copy with the counters of clients, and with recent times."""
        parts = [self]
        for client in clients:
            one = client.stats()
            state = InstanceState(one.answered, one.trouble, one.held_back, one.learned)
            parts.append(
                Counters(
                    requests=one.requests, retries=one.retries, throttled=one.throttled, in_flight=one.requests_in_flight,
                    limit=one.limit, held_back=one.held_back, instances={client.host: state},
                )
            )  # fmt: skip
        return evolve(Counters.sum_of(parts), times=times)

    @classmethod
    def sum_of(cls, parts: Iterable[Counters]) -> Counters:
        """All of them together; `held_back` is the longest."""
        whole, times = cls(), list[Histogram]()
        for part in parts:
            for name in _ADDED_UP:
                setattr(whole, name, getattr(whole, name) + getattr(part, name))
            whole.held_back = max(whole.held_back, part.held_back)
            times.append(part.times)
            for host, state in part.instances.items():
                whole.instances[host] = whole.instances.get(host, InstanceState()).joined(state)
        whole.times = Histogram.sum_of(times)
        return whole

    def ended(self) -> Counters:
        """The counters without requests in flight, for a process that has ended."""
        return evolve(self, in_flight=0, held_back=0.0)

    def without_troubles(self) -> Counters:
        """The counters of a process that has ended, while others know more about the instances."""
        return evolve(self, instances={host: InstanceState(one.answered) for host, one in self.instances.items()})

    def learned(self) -> tuple[str, ...]:
        """The limits that were learned, one line an instance."""
        hosts = len(self.instances) > 1
        return tuple(
            f"{host}: {one.learned}" if hosts else str(one.learned)
            for host, one in self.instances.items()
            if one.learned is not None
        )

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
    """An instance whose latest requests failed or were throttled. `str` makes one line for people.

    Attributes:
        host: of the instance.
        reason: of the latest failure, in words.
        attempts: that failed, with no success between.
        seconds: since the first of them.
        next_try: seconds until the next request may be sent; 0 if it is not held back.
    """

    host: str
    reason: str
    attempts: int
    seconds: float
    next_try: float = 0.0

    @property
    def without_next_try(self) -> str:
        """The line without the time of the next try, for a run that makes none."""
        return trouble_line(self.reason, self.attempts, self.seconds)

    def __str__(self) -> str:
        return trouble_line(self.reason, self.attempts, self.seconds, self.next_try if self.next_try >= 1 else 0.0)


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
        troubles: the instances that have a problem now.
        learned: the limits that refused requests have shown, one line an instance, such as
            "1,470/s learned: refused at 1,520/s 12 s ago".
        learned_rate: requests per second that the instances allow, as far as their limits are known; None while no limit is.
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

    @property
    def done(self) -> int:
        """Tokens with an outcome."""
        return self.fetched + self.failed

    def to_dict(self) -> dict[str, Any]:
        """The fields and `done` as plain JSON, times rounded to milliseconds."""
        return {
            **_rounded(asdict(self, recurse=False)),
            "troubles": [_rounded(asdict(trouble)) for trouble in self.troubles],
            "done": self.done,
        }


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in fields.items()}


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
