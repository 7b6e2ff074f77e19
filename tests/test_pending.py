"""Polling a "not yet"."""

from __future__ import annotations

import pytest

from flinks_async import ConfigError, FlinksClient, PendingError, PollPending, Timeouts
from flinks_async.middleware.retry import may_poll
from flinks_async.testing import FakeClock, InMemoryTransport
from flinks_async.testing.in_memory import make_response

OK = {"GetAccountsDetail": [], "RequestId": "r"}
NOT_YET = make_response({"FlinksCode": "OPERATION_PENDING"}, status=202)
NO_DEADLINE = Timeouts(deadline=None)


def client_of(answers: list[object], **options: object) -> tuple[FlinksClient, InMemoryTransport, FakeClock]:
    clock, transport = FakeClock(), InMemoryTransport({}, default=answers)
    client = FlinksClient(auth_secret="s", transport=transport, clock=clock, timeouts=NO_DEADLINE, **options)
    return client, transport, clock


async def test_off_by_default() -> None:
    client, transport, clock = client_of([NOT_YET])
    async with client:
        with pytest.raises(PendingError):
            await client.partner_access("t")
    assert (len(transport.requests), clock.sleeps) == (1, [])


async def test_it_polls_at_the_documented_interval() -> None:
    client, transport, clock = client_of([NOT_YET, NOT_YET, NOT_YET, OK], poll_pending=PollPending())
    async with client:
        assert (await client.partner_access("t")).request_id == "r"
    assert (len(transport.requests), clock.sleeps) == (4, [10.0, 10.0, 10.0])


async def test_it_gives_up_after_the_bound() -> None:
    client, transport, clock = client_of([NOT_YET], poll_pending=PollPending())
    async with client:
        with pytest.raises(PendingError) as caught:
            await client.partner_access("t")
    assert clock.now() == 1800.0
    assert caught.value.attempts == len(transport.requests) == 181


async def test_it_does_not_wait_past_the_deadline() -> None:
    client, _, clock = client_of([NOT_YET], poll_pending=PollPending())
    async with client:
        with pytest.raises(PendingError):
            await client.partner_access("t", timeout=25.0)
    assert clock.sleeps == [10.0, 10.0]


async def test_other_answers_end_it() -> None:
    client, transport, _ = client_of([NOT_YET, make_response({}, status=202), OK], poll_pending=PollPending())
    async with client:
        await client.partner_access("t")
    assert len(transport.requests) == 3


@pytest.mark.parametrize(("asked", "waits"), [("25", 25.0), ("3", 10.0), ("soon", 10.0)])
async def test_it_waits_for_retry_after_if_that_is_longer(asked: str, waits: float) -> None:
    not_yet = make_response({}, status=202, headers={"Retry-After": asked})
    client, transport, clock = client_of([not_yet, not_yet, OK], poll_pending=PollPending())
    async with client:
        await client.partner_access("t")
    assert (len(transport.requests), clock.sleeps) == (3, [waits, waits])


@pytest.mark.parametrize(("bound", "timeout"), [(29.0, None), (1800.0, 30.0)])
async def test_retry_after_does_not_extend_the_bound_or_the_deadline(bound: float, timeout: float | None) -> None:
    not_yet = make_response({}, status=202, headers={"Retry-After": "30"})
    client, transport, clock = client_of([not_yet], poll_pending=PollPending(bound=bound))
    async with client:
        with pytest.raises(PendingError) as caught:
            await client.partner_access("t", timeout=timeout)
    assert (len(transport.requests), clock.sleeps) == (1, [])
    assert caught.value.retry_after == 30.0


@pytest.mark.parametrize(
    ("wait", "waited", "left", "expected"),
    [
        (10, 0, None, True),
        (10, 1790, None, True),
        (10, 1791, None, False),
        (10, 0, 10.0, False),
        (10, 0, 10.1, True),
        (20, 1790, None, False),
    ],
)
def test_may_poll(wait: float, waited: float, left: float | None, expected: bool) -> None:
    assert may_poll(PollPending(), wait=wait, waited=waited, remaining=left) is expected


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="poll_pending must be PollPending or None"):
        FlinksClient(auth_secret="s", poll_pending=10)
    with pytest.raises(ConfigError, match=r"PollPending\.interval"):
        PollPending(interval=0)
