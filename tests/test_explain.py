"""`explain()`: what a client will do, as text."""

from __future__ import annotations

import pytest

from flinks_async import Connection, FlinksClient, Hedge, Limits, Retry, Settings, config
from flinks_async.explain import schedule


def test_the_schedule() -> None:
    assert list(schedule(Retry())) == [
        "attempt 1: at once",
        "attempt 2: after a random 0 to 0.05 s (0 to 1 s if throttled), or Retry-After if that is longer",
        "attempt 3: after a random 0 to 0.1 s (0 to 2 s if throttled), or Retry-After if that is longer",
    ]


@pytest.mark.parametrize(
    ("retry", "last"),
    [
        (
            Retry(attempts=20),
            "attempt 20: after a random 0 to 20 s (0 to 20 s if throttled), or Retry-After if that is longer",
        ),
        (
            Retry(attempts=10**6),
            "999,980 more attempts: each after a random 0 to 20 s (0 to 20 s if throttled), "
            "or Retry-After if that is longer",
        ),
        (
            Retry(attempts=23, base=0.001, throttled_base=0.5, cap=3000),
            "3 more attempts: each after a random 0 to 524.288 s, growing to 2097.15 s (0 to 3000 s if throttled), "
            "or Retry-After if that is longer",
        ),
    ],
)
def test_the_schedule_ends_with_what_holds_from_then_on(retry: Retry, last: str) -> None:
    lines = list(schedule(retry))
    assert lines[-1] == last
    assert lines[19].startswith("attempt 20: ")
    assert len(lines) == 20 + (retry.attempts > 20)


SAYINGS = [
    (config.service(), "quota: 500 tokens, 14 a retry, 5 after throttling: 35 retries in a row without a success"),
    (config.service(), "calls fail at once with CircuitOpenError"),
    (config.service(), "a Retry-After above 60 s: the call ends, with retry_after set"),
    (config.service(), "requests at once: 4 to 200, from 20"),
    (config.bulk(), "quota: 20% of the requests of the last 10 s, and 10 per second"),
    (config.bulk(), "calls wait and lose no attempt"),
    (config.bulk(), "a Retry-After above 60 s: all calls pause"),
    (Settings(limits=Limits(concurrency=7, breaker=None), retry=Retry(quota=None)), "requests at once: 7"),
    (Settings(limits=Limits(breaker=None)), "instance down: not detected"),
    (Settings(retry=Retry(quota=None)), "quota: none"),
]


@pytest.mark.parametrize(("settings", "saying"), SAYINGS)
def test_what_it_says(settings: Settings, saying: str) -> None:
    assert saying in FlinksClient(auth_secret="x", settings=settings).explain()


def test_every_setting_is_there() -> None:
    text = FlinksClient(auth_secret="x", hedge=Hedge(percentile=0.9)).explain()
    for name in (
        "Retry.attempts = 3",
        "Timeouts.deadline = 60.0",
        "Limits.waits = False",
        "Connection.keepalive = 15.0",
    ):
        assert name in text
    assert "hedge = Hedge(percentile=0.9" in text
    assert "coalesce" not in text


def test_no_secret_is_there() -> None:
    class Limiter:
        key = "canary"

        def reserve(self, now: float, /) -> float:
            return 0.0

        def __repr__(self) -> str:
            return "canary"

    client = FlinksClient(
        auth_secret="canary",
        connection=Connection(proxy="http://canary:canary@proxy.test"),
        headers={"X-Key": "canary"},
        limits=Limits(rate_limiter=Limiter()),
    )
    text = client.explain()
    assert "canary" not in text
    assert "X-Key" in text
    assert "Limits.rate_limiter = <Limiter>" in text
