"""The chain as users meet it. Layer two: aiohttp's request is replaced by aioresponses, or the transport is in memory."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import traceback
import weakref
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from unittest.mock import MagicMock, create_autospec

import aiohttp
import pytest

from flinks_async import (
    AttemptTimeoutError,
    AuthenticationError,
    BadRequestError,
    CircuitOpenError,
    ClientClosedError,
    Codec,
    ConfigError,
    DeadlineExceededError,
    Event,
    FlinksClient,
    FlinksError,
    InvalidTokenError,
    NotJSONError,
    PendingError,
    ProtocolError,
    QuotaExhaustedError,
    RateLimitedError,
    ReadError,
    Request,
    Response,
    Retry,
    RetryScheduled,
    ServerError,
    Timeouts,
    TransportError,
    WrongTypeError,
    config,
    errors,
)
from flinks_async.clock import SystemClock
from flinks_async.messages import Handler
from flinks_async.testing import (
    KINDS,
    FakeClock,
    InMemoryTransport,
    VirtualClock,
    aioresponses,
    expected_body,
    run_virtual,
)

from .support import DOCUMENTED, SECRET, client_of, record

URL = "https://toolbox-api.private.fin.ag/partneraccess/t"


@pytest.fixture
def wire() -> Iterator[aioresponses]:
    with aioresponses() as mocked:
        yield mocked


async def test_the_documented_example_comes_back_typed(wire: aioresponses) -> None:
    wire.get(URL, payload=DOCUMENTED)
    async with FlinksClient("toolbox", auth_secret=SECRET) as flinks:
        answer = await flinks.partner_access("t")
    assert answer.details[0].login_id == "5e115eac-1209-4f19-641c-08d6d484e2fe"
    assert (answer.request_id, answer.accounts) == ("r-1", ())
    assert (answer.meta.status, answer.meta.attempts) == (200, 1)
    assert answer.meta.wire_time > 0
    assert answer.to_dict() == DOCUMENTED


async def test_the_documented_400_with_an_empty_object_is_a_bad_request_with_nothing_known(wire: aioresponses) -> None:
    wire.get(URL, status=400, payload={})
    async with FlinksClient(auth_secret=SECRET) as flinks:
        with pytest.raises(BadRequestError) as caught:
            await flinks.partner_access("t")
    error = caught.value
    assert (error.flinks_code, error.server_message, error.request_id, error.retry_after) == (None,) * 4
    assert (error.status, error.attempts) == (400, 1)


async def test_the_headers_are_those_of_the_specification(wire: aioresponses) -> None:
    wire.get(URL, payload=DOCUMENTED, repeat=True)
    for scheme, name, value in (
        ("flinks-auth-key", "flinks-auth-key", f"Bearer {SECRET}"),
        ("flinks-auth-key-raw", "flinks-auth-key", SECRET),
        ("bearer", "Authorization", f"Bearer {SECRET}"),
    ):
        async with FlinksClient(auth_secret=SECRET, auth_scheme=scheme, app_name="acme/1") as flinks:
            await flinks.partner_access("t")
        (calls,) = wire.requests.values()
        sent = calls[-1].kwargs
        assert sent["headers"][name] == value
        assert sent["headers"]["Accept"] == sent["headers"]["Content-Type"] == "application/json"
        assert sent["headers"]["User-Agent"].startswith("acme/1 flinks-async/")
        assert sent["allow_redirects"] is False


async def test_users_own_aioresponses_tests_see_retries(wire: aioresponses) -> None:
    wire.get(URL, status=503)
    wire.get(URL, exception=aiohttp.ServerDisconnectedError())
    wire.get(URL, payload=DOCUMENTED)
    async with FlinksClient(auth_secret=SECRET, clock=FakeClock()) as flinks:
        assert (await flinks.partner_access("t")).meta.attempts == 3


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (aiohttp.ClientConnectionError("Connection refused: GET http://canary"), TransportError),
        (aiohttp.ClientPayloadError("canary"), ReadError),
        (aiohttp.ServerDisconnectedError(), ReadError),
        (TimeoutError("canary"), AttemptTimeoutError),
        (OSError(104, "canary"), errors.ConnectError),
        (RuntimeError("Session is closed"), ClientClosedError),
        (ZeroDivisionError("canary"), TransportError),
        (aiohttp.ClientResponseError(None, (), status=400, message="canary"), ProtocolError),
    ],
)
async def test_aiohttps_errors_become_ours_without_their_texts(
    wire: aioresponses, raised: Exception, becomes: type[FlinksError]
) -> None:
    wire.get(URL, exception=raised, repeat=True)
    async with FlinksClient(auth_secret=SECRET, clock=FakeClock()) as flinks:
        with pytest.raises(becomes) as caught:
            await flinks.partner_access("t")
    assert type(caught.value) in (becomes, errors.StaleConnectionError)
    assert caught.value.status is None
    assert "canary" not in repr(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.parametrize(
    ("answers", "attempts", "error"),
    [
        (["http_503", "http_503", DOCUMENTED], 3, None),
        (["http_503"] * 9, 3, ServerError),
        (["http_429", DOCUMENTED], 2, None),
        (["retry_later", "card_in_use", DOCUMENTED], 3, None),
        ([b"", DOCUMENTED], 2, None),
        ([b"<html>"] * 9, 2, NotJSONError),
        ([b"<html>", "http_503", b"<html>", DOCUMENTED], 3, NotJSONError),
        ([b'{"RequestId": 5}'], 1, WrongTypeError),
        ([b"[]"], 1, WrongTypeError),
        (["bad_request"], 1, BadRequestError),
        (["unauthorized"], 1, AuthenticationError),
        (["operation_pending"], 1, PendingError),
        ([ProtocolError()] * 9, 3, ProtocolError),
        ([ReadError(), errors.ConnectError(), DOCUMENTED], 3, None),
        ([errors.CertificateError()], 1, errors.CertificateError),
        ([errors.ResponseTooLargeError()], 1, errors.ResponseTooLargeError),
        ([errors.StaleConnectionError(), ReadError(), ReadError(), DOCUMENTED], 4, None),
        ([errors.StaleConnectionError()] * 9, 4, errors.StaleConnectionError),
    ],
)
async def test_what_is_tried_again_and_how_often(
    answers: list[Any], attempts: int, error: type[FlinksError] | None
) -> None:
    transport = InMemoryTransport({"t": [KINDS[a] if isinstance(a, str) else a for a in answers]})
    async with client_of(transport) as flinks:
        if error is None:
            assert (await flinks.partner_access("t")).meta.attempts == attempts
        else:
            with pytest.raises(error) as caught:
                await flinks.partner_access("t")
            assert type(caught.value) is error
            assert caught.value.attempts == attempts
        assert flinks.stats().requests == attempts == transport.sent("t")
        assert flinks.stats().retries == attempts - 1


async def test_waits_are_jittered_exponentially_and_longer_when_throttled() -> None:
    clock = FakeClock(random=1.0)
    transport = InMemoryTransport({"t": [*[KINDS["http_503"]] * 3, DOCUMENTED]})
    async with client_of(transport, clock=clock, retry=Retry(attempts=4)) as flinks:
        await flinks.partner_access("t")
    assert clock.sleeps == pytest.approx([0.05, 0.1, 0.2])


async def test_a_retry_after_is_waited_for() -> None:
    clock = FakeClock(random=0.0)
    throttled = Response(503, {"Retry-After": "7"})
    async with client_of(InMemoryTransport({"t": [throttled, DOCUMENTED]}), clock=clock) as flinks:
        await flinks.partner_access("t")
    assert clock.sleeps == [7.0]


async def test_a_retry_after_that_is_too_long_ends_the_call_and_is_told() -> None:
    clock = FakeClock()
    async with client_of(InMemoryTransport({"t": Response(429, {"Retry-After": "1000000000"})}), clock=clock) as flinks:
        with pytest.raises(RateLimitedError) as caught:
            await flinks.partner_access("t")
    assert (caught.value.retry_after, caught.value.attempts, clock.sleeps) == (1e9, 1, [])


async def test_a_wait_that_would_pass_the_deadline_is_not_begun() -> None:
    clock = FakeClock(random=0.0)
    slow = Response(503, {"Retry-After": "7"})
    async with client_of(InMemoryTransport({"t": [slow, DOCUMENTED]}), clock=clock) as flinks:
        with pytest.raises(DeadlineExceededError) as caught:
            await flinks.partner_access("t", timeout=5)
    error = caught.value
    assert (clock.sleeps, error.retry_after, error.status, error.attempts) == ([], 7.0, 503, 1)
    assert error.message == (
        f"not retried, because the wait of 7 s would pass the deadline; the last attempt: {error.host} answered 503"
    )
    _assert_cause(error, ServerError)


def _assert_cause(error: FlinksError, cls: type[FlinksError]) -> None:
    """The cause is the error of the last attempt, without frames of ours, which could hold a secret."""
    cause = error.__cause__
    assert type(cause) is cls
    assert (cause.__context__, cause.__cause__) == (None, None)
    frames = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(cause.__traceback__)]
    assert frames == ([] if cls is ServerError else [__name__])


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("hedge", [None, config.Hedge()])
@pytest.mark.parametrize(
    ("failure", "cls"), [(Response(503, {}), ServerError), (ReadError("broke off"), ReadError)], ids=["answer", "error"]
)
@pytest.mark.parametrize("end", ["timer", "backoff", "pause", "quota", "breaker"])
def test_a_call_that_is_given_up_has_the_last_failure_as_its_cause(
    end: str, failure: Any, cls: type[FlinksError], coalesce: bool, hedge: config.Hedge | None
) -> None:
    """`timer`: it ends on the wire; `pause`: the rate holds the retry back; the other ways are what they say."""
    expected = {"quota": QuotaExhaustedError, "breaker": CircuitOpenError}.get(end, DeadlineExceededError)

    async def main() -> None:
        clock, sent = VirtualClock(), list[object]()

        async def fail(request: Request) -> Any:
            sent.append(request)
            if end == "timer" and len(sent) == 2:
                await asyncio.Event().wait()
            if isinstance(failure, FlinksError):
                raise copy.copy(failure)
            return failure

        def take_down(event: Event) -> None:
            if end == "breaker" and isinstance(event, RetryScheduled):
                for _ in range(20):
                    record(flinks.governor, event.verdict, sent=clock.now(), problem="down")

        options: dict[str, Any] = {
            "limits": config.Limits(rate=0.01 if end == "pause" else None, burst=1 if end == "pause" else None),
            "retry": Retry(
                base=1e6 if end == "backoff" else 0.001,
                cap=1e6,
                quota=config.TokenBucketQuota(capacity=0) if end == "quota" else None,
            ),
            "timeouts": Timeouts(attempt=None, deadline=10),
            "observers": [take_down],
        }
        transport = InMemoryTransport(default=fail)
        async with client_of(transport, clock=clock, coalesce=coalesce, hedge=hedge, **options) as flinks:
            with pytest.raises(expected) as caught:
                await flinks.partner_access("t")
            _assert_cause(caught.value, cls)
            assert flinks.stats().requests_in_flight == 0

    run_virtual(main())


def test_the_deadline_ends_queue_attempts_and_waits() -> None:
    async def main() -> None:
        async def never(request: Request) -> Any:
            await asyncio.Event().wait()

        clock = VirtualClock()
        for timeouts, error, after in (
            (Timeouts(attempt=None, deadline=10), DeadlineExceededError, 10),
            (Timeouts(attempt=None, deadline=None), DeadlineExceededError, 3),
            (Timeouts(attempt=2, deadline=60), AttemptTimeoutError, 6),
        ):
            async with client_of(InMemoryTransport(default=never), clock=clock, timeouts=timeouts) as flinks:
                begun = clock.now()
                with pytest.raises(error) as caught:
                    await flinks.partner_access("t", timeout=3 if after == 3 else None)
                assert after <= clock.now() - begun < after * 1.3
                assert caught.value.elapsed == pytest.approx(clock.now() - begun)
                assert caught.value.attempts == (3 if error is AttemptTimeoutError else 1)
                assert flinks.stats().requests_in_flight == 0

    run_virtual(main())


def test_time_in_the_queue_does_not_count_as_time_on_the_wire() -> None:
    async def main() -> None:
        clock = VirtualClock()

        async def one_second(request: Request) -> Any:
            await clock.sleep(1)
            return DOCUMENTED

        options: dict[str, Any] = {
            "clock": clock,
            "timeouts": Timeouts(attempt=2),
            "limits": config.Limits(concurrency=1),
        }
        async with client_of(InMemoryTransport(default=one_second), **options) as flinks:
            answers = await asyncio.gather(*(flinks.partner_access(f"t{n}") for n in range(5)))
            assert [round(answer.meta.queue_time) for answer in answers] == [0, 1, 2, 3, 4]
            assert {round(answer.meta.wire_time) for answer in answers} == {1}
            assert round(flinks.stats().queue_time) == 10

    run_virtual(main())


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e308, 10**400, "5", True, Decimal(5)])
async def test_a_timeout_must_be_positive_and_a_number_that_timers_can_work_with(timeout: Any) -> None:
    async with client_of(InMemoryTransport()) as flinks:
        with pytest.raises(ConfigError, match="timeout"):
            await flinks.partner_access("t", timeout=timeout)
        with pytest.raises(ConfigError, match="timeout"):
            flinks.partner_access_many(["t"], timeout=timeout)
        assert flinks.stats().calls_in_flight == 0


async def test_the_longest_timeout_that_is_taken_works() -> None:
    async with client_of(InMemoryTransport(default=DOCUMENTED), clock=SystemClock()) as flinks:
        assert (await flinks.partner_access("t", timeout=1e12)).request_id == "r-1"


async def test_a_hostile_token_is_refused_before_anything_is_sent() -> None:
    transport = InMemoryTransport(default=DOCUMENTED)
    async with client_of(transport) as flinks:
        with pytest.raises(InvalidTokenError):
            await flinks.partner_access("..")
    assert transport.requests == []


async def test_the_raw_response_is_given_whatever_its_status() -> None:
    transport = InMemoryTransport({"t": [KINDS["http_503"], KINDS["bad_request"]], "u": b"not json"})
    async with client_of(transport) as flinks:
        response = await flinks.partner_access_raw("t")
        assert (response.status, response.meta.attempts) == (400, 2)
        other = await flinks.partner_access_raw("u")
        assert (other.status, other.body, other.answer) == (200, b"not json", None)
        assert pickle.loads(pickle.dumps(other)).body == b"not json"


async def test_outcomes_pickle_with_answers_and_errors() -> None:
    async with client_of(InMemoryTransport({"a": DOCUMENTED})) as flinks:
        outcomes = [outcome async for outcome in flinks.partner_access_many(["a", "b"], ordered=True)]
    first, second = pickle.loads(pickle.dumps(outcomes))
    assert first == outcomes[0]
    assert second.error.fields() == outcomes[1].error.fields()


async def test_a_large_answer_is_decoded_in_turns_with_the_rest_of_the_loop() -> None:
    large = expected_body("t", size="large")
    assert len(large) > 1_000_000
    turns_taken = 0

    async def count_turns() -> None:
        nonlocal turns_taken
        while True:
            turns_taken += 1
            await asyncio.sleep(0)

    async with client_of(InMemoryTransport({"t": large, "bad": large[:-1] + b',"RequestId":5}'})) as flinks:
        counting = asyncio.ensure_future(count_turns())
        answer = await flinks.partner_access("t")
        counting.cancel()
        with pytest.raises(WrongTypeError, match="RequestId"):
            await flinks.partner_access("bad")
        assert (await flinks.partner_access_raw("t")).body == large
    assert turns_taken > 10
    assert sum(len(account.transactions) for account in answer.accounts) == 10_000
    assert answer == Codec().decode(large)
    assert answer.meta.attempts == 1


@pytest.mark.parametrize("place", ["middleware", "attempt_middleware"])
async def test_a_middleware_that_forgets_to_return_the_response_is_named(place: str) -> None:
    async def forgetful(request: Request, call_next: Handler) -> Any:
        await call_next(request)

    async with client_of(InMemoryTransport(default=DOCUMENTED), **{place: [forgetful]}) as flinks:
        with pytest.raises(ConfigError, match="forgetful must return a Response, and returned NoneType"):
            await flinks.partner_access("token")


async def test_the_error_of_a_call_is_freed_without_the_garbage_collector() -> None:
    alive: list[weakref.ref[FlinksError]] = []
    async with client_of(InMemoryTransport(default=errors.ConnectError("no connection"))) as client:
        gc.disable()
        try:
            try:
                await client.partner_access("t")
            except FlinksError as error:
                alive.append(weakref.ref(error))
            assert alive[0]() is None
        finally:
            gc.enable()


def test_a_mock_can_be_made_from_a_client_outside_an_event_loop() -> None:
    flinks = client_of(InMemoryTransport())
    for mock in (
        create_autospec(flinks),
        MagicMock(spec=flinks),
        MagicMock(spec=FlinksClient),
        create_autospec(FlinksClient),
    ):
        assert callable(mock.partner_access)


async def test_a_call_without_events_and_errors_makes_no_id_and_sends_none(wire: aioresponses) -> None:
    made: list[str] = []

    async def look(request: Request, call_next: Handler) -> Response:
        response = await call_next(request)
        made.append(request.call._id)
        return response

    wire.get(URL, payload=DOCUMENTED, repeat=True)
    async with FlinksClient(auth_secret=SECRET, middleware=[look]) as flinks:
        await flinks.partner_access("t")
    ((call,),) = wire.requests.values()
    assert made == [""]
    assert sorted(call.kwargs["headers"]) == [
        "Accept",
        "Accept-Encoding",
        "Content-Type",
        "User-Agent",
        "flinks-auth-key",
    ]
