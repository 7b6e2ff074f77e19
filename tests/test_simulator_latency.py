"""Latency and rate limit of the simulated Flinks."""

from __future__ import annotations

import statistics

import pytest

from flinks_async.testing import Latency, RateLimit

CHANCES = [number / 1000 for number in range(1000)]


def test_latencies() -> None:
    assert Latency.fixed(0.2).seconds(0.9) == 0.2
    assert [Latency.uniform(1, 3).seconds(chance) for chance in (0, 0.5)] == [1, 2]
    lognormal = [Latency.lognormal(0.2, 0.5).seconds(chance) for chance in CHANCES]
    assert statistics.median(lognormal) == pytest.approx(0.2, rel=0.01)
    assert statistics.quantiles(lognormal, n=100)[98] == pytest.approx(0.64, rel=0.02)
    assert min(lognormal) > 0


def test_a_bucket_refills() -> None:
    limit = RateLimit(rate=8, burst=3)
    assert [limit.take(100.0) for _ in range(4)] == [None, None, None, limit.answer]
    assert limit.take(100.0625) is limit.answer, "half a token"
    assert limit.take(100.125) is None
    assert [limit.take(1000.0) for _ in range(4)] == [None, None, None, limit.answer], "never above the burst"


def test_the_two_forms_of_the_refusal() -> None:
    assert (RateLimit(1).answer.status, RateLimit(1).answer.name) == (401, "too_many_requests")
    other = RateLimit.status_429(1, retry_after=7).answer
    assert (other.status, other.retry_after) == (429, 7)
