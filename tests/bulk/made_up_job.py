"""Directories of jobs that never ran: ledgers with made-up samples, to see what a report makes of them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from attrs import asdict

from flinks_async.bulk import JSONLParts
from flinks_async.bulk.counters import Progress
from flinks_async.bulk.directory import Manifest
from flinks_async.bulk.files import LEDGER, MANIFEST
from flinks_async.bulk.inputs import Scanned
from flinks_async.bulk.ledger import Ledger
from flinks_async.bulk.records import Commit, Failure, FailureKind, Shard, Written

EVENING = 1_795_473_000.0
"""2026-11-23 22:30 UTC."""


MESSAGE: Final = "canary-message about alice@example.com"
KEY: Final = "canary-key"
FINGERPRINT: Final = "canaryfingerprint"
PATH: Final = "/home/canary-alice/tokens.csv"


def make_job(
    folder: Path,
    *,
    tokens: int = 0,
    shard_size: int = 1000,
    duplicates: int = 0,
    store: dict[str, Any] | None = None,
    origin: str = "acme-api.private.fin.ag",
) -> Ledger:
    """A planned job; its ledger, open."""
    shards = math.ceil(tokens / shard_size)
    scanned = Scanned(
        lines=tokens + duplicates + 1, tokens=tokens, duplicates=duplicates, invalid=0, blank=0, header=1, continued=0,
        shards=shards, size=38 * (tokens + duplicates),
    )  # fmt: skip
    Manifest(
        job="5f0c1d2e3a4b5968778695a4b3c2d1e0",
        created="2026-11-23T22:29:31+00:00",
        path=PATH,
        size=scanned.size,
        sha256="9e107d9d372bb6826bd81d3542a419d6" * 2,
        layout={"format": "csv", "column": "token", "key_column": "user_id", "instance_column": None},
        origin={"": origin},
        store=store or JSONLParts("zstd").describe(),
        shard_size=shard_size,
    ).save(folder / MANIFEST)
    ledger = Ledger(folder / LEDGER, new=True)
    ledger._db.execute("PRAGMA synchronous = OFF")  # made up faster
    with ledger.planning() as planner:
        for number in range(shards):
            first = number * shard_size + 2
            count = min(shard_size, tokens - number * shard_size)
            planner.shard(Shard(number, first, first + count - 1, 38 * first, count, f"d{number}"))
        planner.finish(asdict(scanned))
    return ledger


def progress(**figures: Any) -> dict[str, Any]:
    """A sample."""
    nothing: dict[str, Any] = {
        "phase": "fetching", "total": 0, "fetched": 0, "failed": 0, "requests": 0, "retries": 0, "throttled": 0,
        "in_flight": 0, "limit": 20, "held_back": 0.0, "p50": None, "p95": None, "rate": 0.0, "eta": None,
        "seconds": 0.0, "size": 0,
    }  # fmt: skip
    return Progress(**(nothing | figures)).to_dict()


def failure(
    line: int,
    kind: FailureKind = "exhausted",
    error: str = "ServerError",
    code: str | None = None,
    status: int | None = 503,
) -> Failure:
    """A failed row, with everything that a report must not show."""
    return Failure(line, kind, error, MESSAGE, KEY, FINGERPRINT, code, status, 3)


def commit(ledger: Ledger, shard: Shard, *failures: Failure) -> None:
    """The rest of the shard has arrived."""
    answers = shard.tokens - len(failures)
    ledger.commit(Commit(shard, Written(answers, 5000 * answers, "ab" * 32), failures), run=1, now=EVENING)


def a_night(folder: Path) -> None:
    """600,000 tokens: a quick evening, throttling, an outage with a pause, a kill, and the rest in the morning."""
    chance = random.Random(7)
    ledger = make_job(folder, tokens=600_000, shard_size=2500, duplicates=1_812)
    shards = list(ledger.pending())
    first = ledger.begin_run(EVENING)
    reached = 0
    for sample in _evening(chance):
        ledger.add_sample(first, EVENING + sample["seconds"], sample)
        reached = sample["fetched"] + sample["failed"]
    committed = reached // 2500 - 3  # the kill took what was under way
    _commit(ledger, shards[:committed], first, EVENING, chance)
    morning = EVENING + 8.4 * 3600
    second = ledger.begin_run(morning)
    before = ledger.totals()
    last = progress()
    for sample in _morning(chance, before.fetched, before.failed, before.pending):
        ledger.add_sample(second, morning + sample["seconds"], sample)
        last = sample
    _commit(ledger, shards[committed:], second, morning, chance)
    ledger.end_run(second, morning + last["seconds"], "complete", "", last)
    ledger.close()


def _evening(chance: random.Random) -> Iterator[dict[str, Any]]:
    """Fast; from minute 25 on throttled; an outage from minute 45 to 57; killed in minute 70."""
    counted = _Counted(600_000)
    for second in range(10, 70 * 60, 10):
        minute = second / 60
        if 45 <= minute < 57:
            probes = 2 if second % 60 == 0 else 0
            yield counted.sample(second, tokens=0, requests=probes, retries=probes, throttled=0, in_flight=0,
                                 limit=20, held_back=60.0 - second % 60, p50=None, p95=None)  # fmt: skip
            continue
        throttled = 25 <= minute < 40
        limit = int(60 + 40 * math.sin(minute)) if throttled else min(200, 20 + 4 * second // 10)
        if minute >= 57:
            limit = min(160, 20 + int((minute - 57) * 30))
        p50 = (0.42 if throttled else 0.85) * (0.9 + 0.2 * chance.random())
        tokens = int(10 * limit / p50 / 3 * (0.85 + 0.3 * chance.random()))
        refused = int(tokens * (0.06 + 0.08 * chance.random())) if throttled else int(tokens * 0.001)
        yield counted.sample(
            second, tokens=tokens, requests=tokens + refused + tokens // 300, retries=refused + tokens // 300,
            throttled=refused, in_flight=int(limit * (0.93 + 0.07 * chance.random())), limit=limit,
            held_back=0.8 if throttled and chance.random() < 0.15 else 0.0, p50=p50, p95=p50 * (2.2 + chance.random()),
        )  # fmt: skip


def _morning(chance: random.Random, fetched: int, failed: int, pending: int) -> Iterator[dict[str, Any]]:
    """Calm until it is done; the instance gets slow for some minutes in between."""
    counted = _Counted(600_000, fetched, failed)
    second = 0.0
    while pending > 0:
        second += 10
        slow = 900 <= second < 1300
        p50 = (3.8 if slow else 0.55) * (0.9 + 0.2 * chance.random())
        limit = max(24, 180 - int(second - 900)) if slow else 180
        tokens = min(pending, int(10 * limit / p50 / 3 * (0.9 + 0.2 * chance.random())))
        pending -= tokens
        yield counted.sample(
            second, tokens=tokens, requests=tokens + tokens // 250, retries=tokens // 250, throttled=0,
            in_flight=int(limit * (0.9 + 0.1 * chance.random())), limit=limit, held_back=0.0, p50=p50,
            p95=p50 * (2.0 + chance.random()),
        )  # fmt: skip


class _Counted:
    """Adds up what samples count."""

    def __init__(self, total: int, fetched: int = 0, failed: int = 0) -> None:
        self.total, self.fetched, self.failed = total, fetched, failed
        self.requests = self.retries = self.throttled = 0

    def sample(
        self, second: float, *, tokens: int, requests: int, retries: int, throttled: int, **figures: Any
    ) -> dict[str, Any]:
        lost = tokens * 4 // 1000
        self.fetched += tokens - lost
        self.failed += lost
        self.requests += requests
        self.retries += retries
        self.throttled += throttled
        return progress(
            total=self.total, fetched=self.fetched, failed=self.failed, requests=self.requests, retries=self.retries,
            throttled=self.throttled, rate=tokens / 10, seconds=float(second), **figures,
        )  # fmt: skip


_FAILURES: tuple[tuple[float, FailureKind, str, str | None, int | None], ...] = (
    (0.0022, "final", "NotFoundError", None, 404),
    (0.0008, "final", "BadRequestError", "SESSION_EXPIRED", 400),
    (0.0005, "exhausted", "ServerError", "AGGREGATION_ERROR", 500),
    (0.0003, "exhausted", "AttemptTimeoutError", None, None),
    (0.0002, "exhausted", "PendingError", "OPERATION_PENDING", 202),
)


def _commit(ledger: Ledger, shards: list[Shard], run: int, now: float, chance: random.Random) -> None:
    for number, shard in enumerate(shards):
        lines = iter(chance.sample(range(shard.first, shard.last + 1), shard.tokens // 10))
        failures = [
            failure(next(lines), kind, error, code, status)
            for share, kind, error, code, status in _FAILURES
            for _ in range(int(share * shard.tokens + chance.random()))
        ]
        answers = shard.tokens - len(failures)
        digest = f"{chance.getrandbits(256):064x}"
        written = Written(answers, int(answers * chance.gauss(5200, 90)), digest)
        ledger.commit(Commit(shard, written, tuple(failures)), run=run, now=now + number)
