"""The retry quota. The rows for the token bucket are published by AWS for its standard retry mode."""

from __future__ import annotations

import pickle

import pytest

from flinks_async import (
    ConnectError,
    FlinksClient,
    FlinksError,
    Limits,
    QuotaExhaustedError,
    Retry,
    ServerError,
    ShareQuota,
    TokenBucketQuota,
)
from flinks_async.limits.quota import RetryQuota, TokenBucket, TrafficShare, make_quota
from flinks_async.testing import FakeClock, InMemoryTransport
from flinks_async.testing.in_memory import make_response
from flinks_async.verdict import Kind

OK = {"GetAccountsDetail": [], "RequestId": "r"}


def client_with(answers: list[object], retry: Retry, **options: object) -> tuple[FlinksClient, InMemoryTransport]:
    transport = InMemoryTransport({}, default=answers)
    options = {"limits": Limits(breaker=None), "clock": FakeClock(random=0.5), **options}
    return FlinksClient(auth_secret="not in any text", transport=transport, retry=retry, **options), transport


def answer(status: int) -> object:
    return OK if status == 200 else make_response({}, status=status)


def quota_of(client: FlinksClient) -> RetryQuota:
    assert client._state is not None
    assert client._state.quota is not None
    return client._state.quota


ROWS = [
    # capacity, attempts, statuses, attempts made, left, error
    pytest.param(500, 3, [200], 1, 500, None, id="a clean success never overfills"),
    pytest.param(500, 3, [500, 500, 200], 3, 486, None, id="two retries, the last one refunded"),
    pytest.param(500, 3, [502, 502, 502], 3, 472, FlinksError, id="attempts end first"),
    pytest.param(14, 3, [500, 502], 2, 0, QuotaExhaustedError, id="used up after one retry"),
    pytest.param(0, 3, [500], 1, 0, QuotaExhaustedError, id="nothing to begin with"),
    pytest.param(13, 3, [500], 1, 13, QuotaExhaustedError, id="not enough for a transient one"),
    pytest.param(13, 3, [429, 429, 200], 3, 8, None, id="throttled ones are cheaper"),
    pytest.param(500, 3, [400], 1, 500, FlinksError, id="a final answer costs nothing"),
    pytest.param(500, 5, [500, 500, 500, 500, 200], 5, 458, None, id="only the last retry is refunded"),
]


@pytest.mark.parametrize(("capacity", "attempts", "statuses", "made", "left", "error"), ROWS)
async def test_published_rows(
    capacity: int, attempts: int, statuses: list[int], made: int, left: int, error: type[FlinksError] | None
) -> None:
    retry = Retry(attempts=attempts, quota=TokenBucketQuota(capacity=capacity))
    client, transport = client_with([answer(status) for status in statuses], retry)
    async with client:
        if error is None:
            await client.partner_access("t")
        else:
            with pytest.raises(error):
                await client.partner_access("t")
        assert len(transport.requests) == made
        assert quota_of(client).left(0.0) == left


def test_a_refund_does_not_overfill() -> None:
    bucket = TokenBucket(TokenBucketQuota(capacity=20))
    assert bucket.take(Kind.TRANSIENT, 0.0) == 14
    for _ in range(10):
        bucket.succeeded(None)
    assert bucket.left(0.0) == 16
    bucket.succeeded(14)
    assert bucket.left(0.0) == 20


async def test_calls_share_one_bucket_and_successes_fill_it() -> None:
    answers = [answer(500), answer(500), *[answer(200)] * 5]
    client, _ = client_with(answers, Retry(quota=TokenBucketQuota(capacity=20)))
    async with client:
        with pytest.raises(QuotaExhaustedError):  # 20 - 14 = 6 are not enough for another retry
            await client.partner_access("a")
        for expected in (7, 8, 9, 10, 11):
            await client.partner_access("b")
            assert quota_of(client).left(0.0) == expected


async def test_derived_clients_share_the_bucket_and_other_secrets_have_their_own() -> None:
    client, _ = client_with([answer(500)], Retry(quota=TokenBucketQuota(capacity=14)))
    async with client:
        same, other = client.with_options(app_name="x"), client.with_options(auth_secret="another")
        with pytest.raises(QuotaExhaustedError):
            await client.partner_access("a")
        with pytest.raises(QuotaExhaustedError) as caught:
            await same.partner_access("a")
        assert caught.value.attempts == 1
        with pytest.raises(QuotaExhaustedError) as caught:
            await other.partner_access("a")
        assert caught.value.attempts == 2


async def test_the_error_carries_the_last_failure_and_nothing_else() -> None:
    body = make_response(
        {"FlinksCode": "RETRY_LATER", "Message": "busy", "RequestId": "q-1"}, status=500, headers={"Retry-After": "7"}
    )
    client, _ = client_with([body], Retry(quota=TokenBucketQuota(capacity=0)))
    async with client:
        with pytest.raises(QuotaExhaustedError, match=r"retry quota.*answered 500 RETRY_LATER: busy") as caught:
            await client.partner_access("canary-token")
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.status, error.flinks_code, error.request_id, error.attempts) == (500, "RETRY_LATER", "q-1", 1)
    assert (error.server_message, error.retry_after) == ("busy", 7.0)
    assert "canary" not in repr(error)
    cause = caught.value.__cause__
    assert isinstance(cause, ServerError)
    assert (cause.__traceback__, cause.__cause__, cause.__context__) == (None, None, None)
    assert "canary" not in repr(cause)
    assert caught.value.__context__ is None


async def test_a_connection_failure_is_named_too() -> None:
    client, _ = client_with([ConnectError("no connection to x")], Retry(quota=TokenBucketQuota(capacity=0)))
    async with client:
        with pytest.raises(QuotaExhaustedError, match="no connection to x"):
            await client.partner_access("t")


async def test_a_raw_call_gets_its_response() -> None:
    client, _ = client_with([answer(503)], Retry(quota=TokenBucketQuota(capacity=0)))
    async with client:
        assert (await client.partner_access_raw("t")).status == 503


def test_a_share_of_the_traffic() -> None:
    quota = TrafficShare(ShareQuota(share=0.2, minimum=1.0, window=10.0))
    taken = 0
    for _ in range(100):
        quota.request(0.0)
    while quota.take(Kind.TRANSIENT, 0.5) is not None:
        taken += 1
    assert taken == 30  # 20 % of 100, and 1 a second for 10 seconds


def test_old_traffic_allows_no_retry() -> None:
    quota = TrafficShare(ShareQuota(share=0.2, minimum=1.0, window=10.0))
    for _ in range(100):
        quota.request(0.0)
    assert quota.left(9.9) == pytest.approx(30)
    assert quota.left(10.1) == pytest.approx(10)


def test_withdrawals_expire() -> None:
    quota = TrafficShare(ShareQuota(share=0.2, minimum=1.0, window=10.0))
    now = 0.0
    while quota.take(Kind.TRANSIENT, now) is not None:
        pass
    waits = 0
    while quota.take(Kind.TRANSIENT, now) is None:
        wait = quota.wait(now)
        assert wait is not None
        assert wait > 0
        now += wait
        waits += 1
    assert 9.9 < now < 10.1
    assert waits == 10


def test_each_slice_expires_separately() -> None:
    quota = TrafficShare(ShareQuota(share=0.5, minimum=1.0, window=5.0))  # slices of half a second
    quota.request(0.1)
    quota.request(2.6)
    assert quota.take(Kind.TRANSIENT, 2.7) == 1
    assert quota.left(4.9) == pytest.approx(5 + 0.5 + 0.5 - 1)
    assert quota.left(5.1) == pytest.approx(5 + 0.5 - 1)
    assert quota.left(7.4) == pytest.approx(5 + 0.5 - 1)
    assert quota.left(7.6) == pytest.approx(5)


def test_the_wait_ends_with_the_slice() -> None:
    quota = TrafficShare(ShareQuota(minimum=1.0, window=5.0))
    assert quota.wait(0.1) == pytest.approx(0.4, abs=1e-5)
    assert quota.wait(7.3) == pytest.approx(0.2, abs=1e-5)
    assert quota.wait(7.5) == pytest.approx(0.5, abs=1e-5)


def test_time_alone_allows_nothing_without_a_whole_retry_in_reserve() -> None:
    assert TrafficShare(ShareQuota(minimum=0.19, window=5.0)).wait(0.0) is None
    assert TrafficShare(ShareQuota(minimum=0.2, window=5.0)).wait(0.0) is not None


async def test_a_call_that_waits_waits_for_its_quota() -> None:
    clock = FakeClock(random=0.5)
    retry = Retry(attempts=6, quota=ShareQuota(share=0.01, minimum=0.1, window=10.0))
    limits = Limits(breaker=None, waits=True)
    client, transport = client_with([answer(500)] * 4 + [OK], retry, limits=limits, clock=clock)
    async with client:
        await client.partner_access("t")
    assert len(transport.requests) == 5
    assert clock.now() > 25  # one retry each ten seconds


async def test_without_a_quota_attempts_are_the_only_bound() -> None:
    client, transport = client_with([answer(500)], Retry(attempts=60, quota=None, base=0.0))
    async with client:
        with pytest.raises(FlinksError):
            await client.partner_access("t")
    assert len(transport.requests) == 60


def test_settings_and_states_go_together() -> None:
    assert make_quota(None) is None
    assert isinstance(make_quota(TokenBucketQuota()), TokenBucket)
    assert isinstance(make_quota(ShareQuota()), TrafficShare)
