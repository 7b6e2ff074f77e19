"""Coalescing: simultaneous calls for one token share one request."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable
from typing import Any

import pytest

from flinks_async import (
    AttemptTimeoutError,
    DeadlineExceededError,
    FlinksClient,
    FlinksError,
    Limits,
    PendingError,
    PollPending,
    RateLimitedError,
    ReadError,
    Retry,
    ServerError,
    Timeouts,
)
from flinks_async.messages import Handler, Request, Response
from flinks_async.testing import VirtualClock, run_virtual
from flinks_async.testing.in_memory import make_response

OK = {"GetAccountsDetail": [], "RequestId": "r"}


class OneSecond:
    """A transport that answers after a second."""

    def __init__(self, *failures: FlinksError | int, headers: dict[str, str] | None = None) -> None:
        self.sent: list[str] = []
        self.in_flight = 0
        self._failures = list(failures)
        self._headers = headers or {}

    async def send(self, request: Request, /) -> Response:
        self.sent.append(request.token.reveal())
        self.in_flight += 1
        try:
            await asyncio.sleep(1.0)
        finally:
            self.in_flight -= 1
        failure = self._failures.pop(0) if self._failures else 200
        if isinstance(failure, FlinksError):
            raise failure
        if failure == 200:
            return make_response(OK)
        return make_response({}, status=failure, headers=self._headers)

    async def close(self) -> None:
        pass


class Hanging(OneSecond):
    """A transport that never answers."""

    async def send(self, request: Request, /) -> Response:
        self.sent.append(request.token.reveal())
        await asyncio.Event().wait()
        raise AssertionError


def client_of(transport: OneSecond, **options: object) -> FlinksClient:
    options = {
        "auth_secret": "s",
        "coalesce": True,
        "retry": Retry(attempts=1),
        "limits": Limits(breaker=None),
        **options,
    }
    return FlinksClient(transport=transport, clock=VirtualClock(), **options)


async def outcome_of(call: Awaitable[object]) -> tuple[str, float]:
    """The outcome of a call, and its time."""
    try:
        await call
        kind = "answer"
    except FlinksError as error:
        kind = type(error).__name__
    return kind, round(asyncio.get_running_loop().time(), 1)


def test_equal_tokens_share_one_request() -> None:
    async def main() -> None:
        transport = OneSecond()
        async with client_of(transport) as client:
            answers = await asyncio.gather(*(client.partner_access(token) for token in ["a", "b", "a", "a", "b"]))
            assert sorted(transport.sent) == ["a", "b"]
            assert [answer.request_id for answer in answers] == ["r"] * 5
            assert client.stats().requests == 2
            await client.partner_access("a")  # not a cache
            assert len(transport.sent) == 3
            assert client.stats().requests == 3

    run_virtual(main())


def test_without_coalescing_each_call_sends_its_own_request() -> None:
    async def main() -> None:
        transport = OneSecond()
        async with client_of(transport, coalesce=False) as client:
            await asyncio.gather(*(client.partner_access("a") for _ in range(3)))
            assert len(transport.sent) == 3

    run_virtual(main())


def test_a_raw_call_does_not_share_with_a_decoded_one() -> None:
    async def main() -> None:
        transport = OneSecond()
        async with client_of(transport) as client:
            await asyncio.gather(client.partner_access("a"), client.partner_access_raw("a"))
            assert len(transport.sent) == 2

    run_virtual(main())


def test_calls_with_different_headers_do_not_share_a_request() -> None:
    async def main() -> None:
        transport = OneSecond()
        async with client_of(transport) as client:
            headers: list[dict[str, str] | None] = [None, {"X-A": "1"}, {"X-A": "2"}, {"x-a": "1"}, {}, {"X-B": "1"}]
            await asyncio.gather(*(client.partner_access("a", headers=each) for each in headers))
            assert len(transport.sent) == 4  # without, X-A 1 (twice), X-A 2, X-B
            many = client.partner_access_many(["a", "a"], headers={"X-A": "1"})
            outcomes = [outcome async for outcome in many]
            assert len(outcomes) == 2
            assert len(transport.sent) == 5

    run_virtual(main())


def test_calls_that_share_a_request_have_the_id_that_it_has() -> None:
    async def main() -> None:
        ids: list[str] = []
        transport = OneSecond(400)
        events: list[Any] = []

        async def look(request: Request, call_next: Handler) -> Response:
            ids.append(request.call.id)
            return await call_next(request)

        async with client_of(transport, attempt_middleware=[look], observers=[events.append]) as client:
            calls = (client.partner_access("a") for _ in range(3))
            errors = await asyncio.gather(*calls, return_exceptions=True)
        assert len(transport.sent) == len(ids) == 1
        assert [error.call_id for error in errors if isinstance(error, FlinksError)] == ids * 3
        assert {event.call_id for event in events} == set(ids)

    run_virtual(main())


@pytest.mark.parametrize("failure", [503, ReadError("broken")], ids=repr)
def test_each_waiter_gets_its_own_error(failure: FlinksError | int) -> None:
    async def main() -> None:
        async with client_of(OneSecond(failure)) as client:
            first = asyncio.ensure_future(client.partner_access("a"))
            await asyncio.sleep(0.5)
            second = asyncio.ensure_future(client.partner_access("a"))
            await asyncio.wait([first, second])
            errors = first.exception(), second.exception()
            assert all(isinstance(error, (ServerError, ReadError)) for error in errors)
            assert errors[0] is not errors[1]
            assert [error.elapsed for error in errors] == pytest.approx([1.0, 0.5])

    run_virtual(main())


def test_each_waiter_keeps_its_own_deadline() -> None:
    async def main() -> None:
        transport = OneSecond(503)  # the second attempt starts after the first caller has left
        async with client_of(transport, retry=Retry(attempts=2)) as client:
            hasty = asyncio.ensure_future(client.partner_access("a", timeout=0.3))
            await asyncio.sleep(0.1)
            patient = asyncio.ensure_future(client.partner_access("a", timeout=10.0))
            with pytest.raises(DeadlineExceededError):
                await hasty
            assert (await patient).request_id == "r"
            assert len(transport.sent) == 2
            assert client.stats().requests == 2

    run_virtual(main())


@pytest.mark.parametrize("leavers", [1, 2, 3])
def test_the_task_ends_when_its_last_waiter_leaves(leavers: int) -> None:
    async def main() -> None:
        transport = OneSecond()
        async with client_of(transport) as client:
            calls = [asyncio.ensure_future(client.partner_access("a")) for _ in range(3)]
            await asyncio.sleep(0.5)
            for call in calls[:leavers]:
                call.cancel()
            await asyncio.wait(calls[:leavers])
            assert asyncio.get_running_loop().time() == 0.5
            assert transport.in_flight == (0 if leavers == 3 else 1)
            if leavers == 3:
                assert len(asyncio.all_tasks()) == 1
                assert client.stats().requests_in_flight == 0
            for call in calls[leavers:]:
                assert (await call).request_id == "r"
            assert client.stats().requests == 1
            await client.partner_access("a")
            assert len(transport.sent) == 2

    run_virtual(main())


async def test_an_error_after_the_last_waiter_left_is_not_logged_by_asyncio() -> None:
    complaints, calls = list[object](), list[asyncio.Future[object]]()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    class LeftAlone(OneSecond):
        async def send(self, request: Request, /) -> Response:
            await asyncio.sleep(0)
            calls[0].cancel()
            raise ReadError("broke")

    async with client_of(LeftAlone(), retry=Retry(attempts=1)) as client:
        calls.append(asyncio.ensure_future(client.partner_access("a")))
        await asyncio.wait(calls)
        assert calls.pop().cancelled()
    gc.collect()
    assert complaints == []


def test_closing_ends_the_shared_task_too() -> None:
    async def main() -> None:
        transport = OneSecond()
        client = client_of(transport)
        calls = [asyncio.ensure_future(client.partner_access("a")) for _ in range(3)]
        await asyncio.sleep(0.5)
        await client.close(grace=0)
        await asyncio.wait(calls)
        assert transport.in_flight == 0
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())


def test_a_fetched_secret_is_hidden_in_the_errors_of_all_waiters() -> None:
    async def provider() -> str:
        return "sk-live-canary"

    async def main() -> None:
        transport = OneSecond(302, headers={"Location": "https://sk-live-canary.example/"})
        async with client_of(transport, auth_secret=provider) as client:
            outcomes = await asyncio.gather(*(client.partner_access("token") for _ in range(3)), return_exceptions=True)
            assert len(transport.sent) == 1
            for outcome in outcomes:
                assert "https" not in str(outcome)
                assert "a redirect to ***.example" in str(outcome)

    run_virtual(main())


@pytest.mark.parametrize("coalesce", [False, True])
def test_deadlines_that_pass_on_the_wire_count_as_failures_of_the_instance(coalesce: bool) -> None:
    async def main() -> None:
        async with client_of(Hanging(), coalesce=coalesce, limits=Limits()) as client:
            outcomes = [await outcome_of(client.partner_access("a", timeout=0.1)) for _ in range(14)]
            assert [kind for kind, _ in outcomes] == ["DeadlineExceededError"] * 10 + ["CircuitOpenError"] * 4

    run_virtual(main())


def test_the_deadline_of_the_last_waiter_counts() -> None:
    async def main() -> None:
        async with client_of(Hanging(), limits=Limits()) as client:
            for _ in range(10):
                patient = asyncio.ensure_future(client.partner_access("a", timeout=50.0))
                hasty = asyncio.ensure_future(client.partner_access("a", timeout=0.2))
                await asyncio.sleep(0.1)
                patient.cancel()
                with pytest.raises(DeadlineExceededError):
                    await hasty
            assert (await outcome_of(client.partner_access("a")))[0] == "CircuitOpenError"

    run_virtual(main())


def test_cancelled_callers_do_not_count_against_the_instance() -> None:
    async def main() -> None:
        async with client_of(Hanging(), limits=Limits()) as client:
            for _ in range(20):
                calls = [asyncio.ensure_future(client.partner_access("a", timeout=timeout)) for timeout in (0.1, 9.0)]
                await asyncio.wait(calls[:1])
                calls[1].cancel()
                await asyncio.wait(calls)
            assert client.governor.breaker is not None
            assert client.governor.breaker.closed

    run_virtual(main())


@pytest.mark.parametrize("coalesce", [False, True])
def test_a_wait_that_would_pass_the_deadline_is_not_started(coalesce: bool) -> None:
    async def main() -> None:
        transport = OneSecond(429, headers={"Retry-After": "30"})
        async with client_of(transport, coalesce=coalesce, retry=Retry(attempts=3)) as client:
            with pytest.raises(DeadlineExceededError) as caught:
                await client.partner_access("a", timeout=5.0)
            assert isinstance(caught.value.__cause__, RateLimitedError)
            assert (caught.value.retry_after, caught.value.elapsed) == (30.0, 1.0)
        transport = OneSecond(*[202] * 9)
        async with client_of(transport, coalesce=coalesce, poll_pending=PollPending(interval=1.0)) as client:
            with pytest.raises(PendingError) as pending:
                await client.partner_access("a", timeout=4.0)
            assert (pending.value.attempts, pending.value.elapsed) == (2, 3.0)

    run_virtual(main())


def test_the_shared_deadline_is_the_latest_among_the_waiters() -> None:
    async def outcomes(*timeouts: float | None, leaves: int | None = None) -> list[tuple[str, float]]:
        start = asyncio.get_running_loop().time()
        transport = OneSecond(429, headers={"Retry-After": "10"})
        limits = Limits(breaker=None)
        deadline = Timeouts(deadline=None)
        async with client_of(transport, retry=Retry(attempts=3), limits=limits, timeouts=deadline) as client:
            calls = [asyncio.ensure_future(client.partner_access("a", timeout=timeout)) for timeout in timeouts]
            await asyncio.sleep(0.5)
            if leaves is not None:
                calls.pop(leaves).cancel()
            found = await asyncio.gather(*map(outcome_of, calls))
        return [(kind, 12 if kind == "answer" and at - start >= 12 else round(at - start)) for kind, at in found]

    async def main() -> None:
        assert await outcomes(5.0, 8.0) == [("DeadlineExceededError", 1)] * 2
        assert await outcomes(5.0, 40.0) == [("DeadlineExceededError", 5), ("answer", 12)]
        assert await outcomes(5.0, None) == [("DeadlineExceededError", 5), ("answer", 12)]
        assert await outcomes(5.0, 40.0, leaves=1) == [("DeadlineExceededError", 1)]
        assert await outcomes(None, 5.0, leaves=0) == [("DeadlineExceededError", 1)]
        assert await outcomes(5.0, 40.0, leaves=0) == [("answer", 12)]

    run_virtual(main())


def test_a_waiter_with_more_time_extends_the_wait_for_a_slot() -> None:
    async def main() -> None:
        async with client_of(OneSecond(), limits=Limits(breaker=None, concurrency=1)) as client:
            asked = [*((f"other-{n}", 20.0) for n in range(4)), ("a", 3.0), ("a", 30.0)]
            calls: list[asyncio.Future[tuple[str, float]]] = []
            for token, timeout in asked:
                calls.append(asyncio.ensure_future(outcome_of(client.partner_access(token, timeout=timeout))))
                await asyncio.sleep(0.01)
            *others, hasty, patient = await asyncio.gather(*calls)
            assert [outcome for outcome, _ in others] == ["answer"] * 4
            assert (hasty[0], patient[0]) == ("DeadlineExceededError", "answer")
            assert 3.0 <= hasty[1] < 3.2 < 4.8 <= patient[1] < 5.2

    run_virtual(main())


def test_an_attempt_started_under_a_short_deadline_keeps_its_timeout() -> None:
    async def main() -> None:
        async with client_of(Hanging(), timeouts=Timeouts(attempt=2.0)) as client:
            hasty = asyncio.ensure_future(client.partner_access("a", timeout=0.5))
            await asyncio.sleep(0.1)
            with pytest.raises(AttemptTimeoutError) as caught:
                await client.partner_access("a", timeout=30.0)
            assert caught.value.elapsed == pytest.approx(1.9, abs=0.1)
            with pytest.raises(DeadlineExceededError):
                await hasty

    run_virtual(main())


def test_a_call_after_the_answer_sends_its_own_request() -> None:
    clients: list[FlinksClient] = []
    late: list[asyncio.Future[object]] = []

    class Finishing(OneSecond):
        async def send(self, request: Request, /) -> Response:
            response = await super().send(request)
            if not late:
                late.append(asyncio.ensure_future(clients[0].partner_access("a")))
            return response

    async def main() -> None:
        transport = Finishing()
        clients.append(client_of(transport))
        async with clients[0] as client:
            await client.partner_access("a")
            await late[0]
            assert len(transport.sent) == 2

    run_virtual(main())


def test_a_middleware_may_call_on_twice() -> None:
    async def again(request: Request, call_next: Handler) -> Response:
        await call_next(request)
        return await call_next(request)

    async def twice_at_once(request: Request, call_next: Handler) -> Response:
        one, other = (asyncio.ensure_future(call_next(request)) for _ in range(2))
        await asyncio.sleep(0.5)
        one.cancel()
        return await other

    async def main() -> None:
        transport = OneSecond()
        async with client_of(transport, middleware=[again]) as client:
            answers = await asyncio.gather(*(client.partner_access("a") for _ in range(3)))
            assert client.stats().requests == len(transport.sent) == 2
            assert {answer.meta.attempts for answer in answers} == {2}
        async with client_of(transport, middleware=[twice_at_once]) as client:
            await client.partner_access("a")
            assert (client.stats().requests, len(transport.sent)) == (1, 3)

    run_virtual(main())
