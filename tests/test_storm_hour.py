"""A simulated hour: a total outage, 30 s on and 30 s off, a recovery; 10,000 tokens."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from attrs import evolve

from flinks_async import (
    CircuitOpenError,
    ConnectError,
    Failed,
    FlinksError,
    QuotaExhaustedError,
    Retry,
    ServerError,
    config,
)
from flinks_async.testing import run_virtual

from .simulation import Instance, client_of

TOKENS = 10_000


def an_hour(now: float) -> bool:
    """Up for 5 minutes, down for 15, up for 5, then 20 minutes of flapping, then up."""
    if 300 <= now < 1200:
        return False
    if 1500 <= now < 2700:
        return now // 30 % 2 == 1
    return True


def flapping(now: float) -> bool:
    return now // 30 % 2 == 1


JOBS = [
    # when it is up, requests per second, seconds to an answer, how it fails
    pytest.param(an_hour, 4.0, 0.2, "503", id="the hour, at 4 per second"),
    pytest.param(an_hour, 6.0, 2.0, "refused", id="the hour, slow answers", marks=pytest.mark.slow),
    pytest.param(flapping, None, 0.2, "503", id="flapping, as fast as it goes", marks=pytest.mark.slow),
    pytest.param(flapping, 20.0, 0.2, "refused", id="flapping, at 20 per second", marks=pytest.mark.slow),
    pytest.param(flapping, None, 2.0, "503", id="flapping, slow answers", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("is_up", "rate", "latency", "failure"), JOBS)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_job_loses_no_token_and_hardly_repeats_itself(
    is_up: object, rate: float | None, latency: float, failure: str, seed: int
) -> None:
    async def main() -> tuple[Instance, int, int]:
        instance = Instance(is_up, latency=latency, failure=failure, seed=seed)
        bulk = config.bulk()
        settings = evolve(bulk, limits=evolve(bulk.limits, rate=rate))
        answered = lost = 0
        async with client_of(instance, settings, seed=seed) as client:
            async for outcome in client.partner_access_many(f"token-{i}" for i in range(TOKENS)):
                lost += isinstance(outcome, Failed)
                answered += not isinstance(outcome, Failed)
        return instance, answered, lost

    instance, answered, lost = run_virtual(main())
    assert (answered, lost) == (TOKENS, 0)
    assert len(instance.sent) == TOKENS
    assert len(instance.times) <= 1.2 * TOKENS
    if is_up is an_hour:
        assert instance.sent_between(310, 1200) < 160  # in the outage only probes


async def calls(instance: Instance, settings: config.Settings, *, rate: float, seconds: float) -> Counter[type]:
    """Independent calls at a steady rate: how often which outcome."""
    found: Counter[type] = Counter()
    async with client_of(instance, settings) as client:

        async def one(number: int) -> None:
            try:
                await client.partner_access(f"token-{number}")
                found[type(None)] += 1
            except FlinksError as error:
                found[type(error)] += 1

        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                group.create_task(one(number))
                await asyncio.sleep(1 / rate)
    return found


@pytest.mark.parametrize("failure", ["503", "refused"])
def test_a_service_names_each_failure_and_does_not_add_to_the_trouble(failure: str) -> None:
    instance = Instance(an_hour, failure=failure)
    found = run_virtual(calls(instance, config.service(), rate=3.0, seconds=3600.0))
    assert found.total() == 3 * 3600
    assert found.keys() <= {type(None), CircuitOpenError, QuotaExhaustedError, ServerError, ConnectError}
    # Down for 25 of 60 minutes; what is answered is nearly all that can be.
    assert found[type(None)] > 0.9 * 35 / 60 * found.total()
    assert len(instance.times) < 1.02 * found.total() * 35 / 60 + 500
    assert instance.sent_between(310, 1200) < 160


@pytest.mark.slow
def test_the_quota_alone_bounds_the_amplification() -> None:
    instance = Instance(lambda now: now < 60)
    service = config.service()
    settings = evolve(service, limits=evolve(service.limits, breaker=None))
    found = run_virtual(calls(instance, settings, rate=20.0, seconds=600.0))
    failed = found.total() - found[type(None)]
    retries = len(instance.times) - found.total()
    assert failed == found[QuotaExhaustedError] + found[ServerError]
    assert retries <= 500 // 14 + 1
    naive = Instance(lambda now: now < 60)
    settings = evolve(settings, retry=Retry(quota=None))
    run_virtual(calls(naive, settings, rate=20.0, seconds=600.0))
    assert len(naive.times) - found.total() > 20_000  # what three attempts each would have been
