"""Coalescing: equal tokens in flight share one way to the server."""

from __future__ import annotations

import asyncio
import gc

import pytest

from flinks_async import DeadlineExceededError, FlinksClient, FlinksError, Limits, ReadError, Retry, ServerError
from flinks_async.messages import Request, Response
from flinks_async.testing import VirtualClock, run_virtual
from flinks_async.testing.transport import make_response

OK = {"GetAccountsDetail": [], "RequestId": "r"}


class OneSecond:
    """A transport that answers after a second."""

    def __init__(self, *failures: FlinksError | int) -> None:
        self.sent: list[str] = []
        self.in_flight = 0
        self._failures = list(failures)

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
        return make_response(OK if failure == 200 else {}, status=failure)

    async def close(self) -> None:
        pass


def client_of(transport: OneSecond, **options: object) -> FlinksClient:
    options = {"coalesce": True, "retry": Retry(attempts=1), "limits": Limits(breaker=None), **options}
    return FlinksClient(auth_secret="s", transport=transport, clock=VirtualClock(), **options)  # type: ignore[arg-type]


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


def test_without_it_each_call_is_its_own() -> None:
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
            assert [error.elapsed for error in errors] == pytest.approx([1.0, 0.5])  # type: ignore[union-attr]

    run_virtual(main())


def test_each_waiter_keeps_its_own_deadline() -> None:
    async def main() -> None:
        transport = OneSecond(503)  # the second attempt comes when the first caller is long gone
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


async def test_an_error_that_comes_when_the_last_waiter_has_just_left_is_no_complaint_of_asyncio() -> None:
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
