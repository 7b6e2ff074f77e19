"""Many tokens at once: outcomes, their keys and order, back pressure, and every way to end early."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from flinks_async import (
    ClientClosedError,
    ConfigError,
    DeadlineExceededError,
    Failed,
    Fetched,
    FlinksError,
    InvalidTokenError,
    PartnerAccessResponse,
    Response,
    Secret,
)
from flinks_async.errors import ServerError
from flinks_async.fanout import fan_out
from flinks_async.testing import InMemoryTransport, VirtualClock, run_virtual
from flinks_async.testing.in_memory import make_response

from .support import DOCUMENTED, client_of, turns


class Gate:
    """A call that waits until it is let through, and counts."""

    def __init__(self) -> None:
        self.running: dict[str, asyncio.Future[None]] = {}
        self.begun: list[str] = []
        self.cancelled: list[str] = []

    async def __call__(self, token: Secret) -> PartnerAccessResponse:
        name = token.reveal()
        self.begun.append(name)
        self.running[name] = asyncio.get_running_loop().create_future()
        try:
            await self.running[name]
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        finally:
            del self.running[name]
        return PartnerAccessResponse(request_id=name)

    def let(self, name: str) -> None:
        self.running[name].set_result(None)


async def answer(token: Secret) -> PartnerAccessResponse:
    if token.reveal().startswith("bad"):
        raise ServerError("it failed")
    if token.reveal().endswith("slow"):
        await turns(5)
    return PartnerAccessResponse(request_id=token.reveal())


async def collect(*args: Any, **options: Any) -> list[Any]:
    return [outcome async for outcome in fan_out(*args, **options)]


async def test_bare_tokens_have_their_position_as_key() -> None:
    outcomes = await collect(["a", "bad", "c"], answer, concurrency=1)
    assert [outcome.key for outcome in outcomes] == [0, 1, 2]
    assert outcomes[0].unwrap().request_id == "a"
    assert isinstance(outcomes[1], Failed)
    with pytest.raises(ServerError):
        outcomes[1].unwrap()


async def test_pairs_keep_their_keys_of_any_kind() -> None:
    outcomes = await collect([(("u", 1), "a"), (None, Secret("b"))], answer, concurrency=2)
    assert {outcome.key for outcome in outcomes} == {("u", 1), None}


async def test_an_async_iterable_of_tokens_works_too() -> None:
    async def tokens() -> AsyncIterator[str]:
        for number in range(50):
            if number % 7 == 0:
                await asyncio.sleep(0)
            yield f"t{number}"

    outcomes = await collect(tokens(), answer, concurrency=5, ordered=True)
    assert [outcome.response.request_id for outcome in outcomes] == [f"t{number}" for number in range(50)]


async def test_unordered_outcomes_come_as_they_come_and_ordered_ones_in_order() -> None:
    names = ["0-slow", "1", "2-slow", "3", "4"]
    assert [o.key for o in await collect(names, answer, concurrency=5)][:3] == [1, 3, 4]
    assert [o.key for o in await collect(names, answer, concurrency=5, ordered=True)] == [0, 1, 2, 3, 4]


async def test_hostile_tokens_fail_and_the_others_go_on() -> None:
    outcomes = await collect(["a", "..", None, 5, b"x", "ok\n", ("k", ""), "b"], answer, concurrency=3)
    failed = {outcome.key for outcome in outcomes if isinstance(outcome, Failed)}
    assert failed == {1, 2, 3, 4, 5, "k"}
    assert all(isinstance(o.error, InvalidTokenError) for o in outcomes if isinstance(o, Failed))
    assert len(outcomes) == 8


async def test_the_token_is_not_in_the_outcome() -> None:
    (outcome,) = await collect(["bad-canary"], answer, concurrency=1)
    assert "canary" not in repr(outcome)


async def test_no_tokens_no_outcomes() -> None:
    assert await collect([], answer, concurrency=3) == []


async def test_at_most_so_many_are_in_flight_and_a_slow_consumer_holds_the_workers_back() -> None:
    gate, taken = Gate(), []

    def tokens() -> Iterator[str]:
        for number in range(1000):
            taken.append(number)
            yield str(number)

    async with aclosing(fan_out(tokens(), gate, concurrency=4)) as outcomes:
        first = asyncio.ensure_future(anext(outcomes))
        await turns()
        assert len(gate.running) == 4
        for _ in range(100):  # every call that begins is answered, and no outcome is taken
            for name in list(gate.running):
                gate.let(name)
            await turns(3)
        await first
        await turns()
        # The first outcome made room for one more: at most 2 N tokens are taken whose outcomes are not yielded.
        assert len(taken) == 9


async def test_leaving_early_cancels_what_is_in_flight_and_closes_the_source() -> None:
    gate, closed = Gate(), []

    async def tokens() -> AsyncIterator[str]:
        try:
            for number in range(100):
                yield str(number)
        finally:
            closed.append(True)

    before = asyncio.all_tasks()
    async with aclosing(fan_out(tokens(), gate, concurrency=3)) as outcomes:
        pending = asyncio.ensure_future(anext(outcomes))
        await turns()
        gate.let("1")
        await pending
    assert {"0", "2"} <= set(gate.cancelled)
    assert "1" not in gate.cancelled
    assert gate.running == {}
    assert closed == [True]
    assert asyncio.all_tasks() == before


async def test_a_plain_break_cleans_up_as_well() -> None:
    gate = Gate()
    asyncio.get_running_loop().call_soon(lambda: None)

    async def leave() -> None:
        async for _ in fan_out((str(n) for n in range(9)), gate, concurrency=3):
            break

    task = asyncio.ensure_future(leave())
    await turns()
    gate.let("0")
    await task
    gc.collect()
    await turns()
    assert gate.running == {}


async def test_cancelling_the_consumer_cancels_the_calls() -> None:
    gate = Gate()
    task = asyncio.ensure_future(collect(["a", "b"], gate, concurrency=2))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(gate.cancelled) == ["a", "b"]


async def test_an_error_of_the_source_comes_after_the_outcomes_taken_before_it() -> None:
    def tokens() -> Iterator[str]:
        yield "a"
        yield "b"
        raise OSError("the file is gone")

    got = []
    with pytest.raises(OSError, match="the file is gone"):
        async for outcome in fan_out(tokens(), answer, concurrency=4):
            got.append(outcome.key)
    assert sorted(got) == [0, 1]


async def test_an_unexpected_error_of_the_call_is_not_swallowed() -> None:
    async def call(token: Secret) -> PartnerAccessResponse:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await collect(["a", "b"], call, concurrency=2)


async def test_a_call_that_cancels_itself_loses_no_token_in_silence() -> None:
    async def call(token: Secret) -> PartnerAccessResponse:
        raise asyncio.CancelledError

    outcomes = await collect(["a", "b"], call, concurrency=1)
    assert [o.key for o in outcomes if isinstance(o, Failed) and "cancelled by a middleware" in o.error.message] == [
        0,
        1,
    ]


async def test_a_call_that_cancels_its_task_ends_the_fan_out_with_an_error_and_an_outcome() -> None:
    async def call(token: Secret) -> PartnerAccessResponse:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return await asyncio.Event().wait()

    got = []
    with pytest.raises(FlinksError, match="cancelled by a middleware"):
        async for outcome in fan_out(["a", "b"], call, concurrency=1):
            got.append(outcome)
    assert [(o.key, type(o)) for o in got] == [(0, Failed)]


async def test_a_base_exception_of_the_call_is_not_swallowed() -> None:
    class Odd(BaseException):
        pass

    async def call(token: Secret) -> PartnerAccessResponse:
        raise Odd

    with pytest.raises(Odd):
        await collect(["a", "b"], call, concurrency=1)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.parametrize("tokens", [0, 1, 2, 9])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_eager_tasks(tokens: int, kind: str) -> None:
    async def pages() -> AsyncIterator[str]:
        for number in range(tokens):
            yield str(number)

    async def at_once(token: Secret) -> PartnerAccessResponse:
        return PartnerAccessResponse(request_id=token.reveal())

    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    try:
        for call in (answer, at_once):
            items: Any = pages() if kind == "async" else map(str, range(tokens))
            async with asyncio.timeout(10):
                outcomes = await collect(items, call, concurrency=4)
            assert sorted(outcome.key for outcome in outcomes) == list(range(tokens))
    finally:
        loop.set_task_factory(None)


async def test_what_a_source_holds_over_a_yield_belongs_to_one_task() -> None:
    tasks = set()

    async def pages() -> AsyncIterator[str]:
        tasks.add(asyncio.current_task())
        try:
            async with asyncio.timeout(None) as patience:
                yield "a"
                yield "b"
                patience.reschedule(asyncio.get_running_loop().time())
                await asyncio.Event().wait()
        except TimeoutError:
            pass
        finally:
            tasks.add(asyncio.current_task())
        yield "c"

    outcomes = await collect(pages(), answer, concurrency=3)
    assert sorted(outcome.key for outcome in outcomes if isinstance(outcome, Fetched)) == [0, 1, 2]
    assert len(tasks) == 1
    assert asyncio.current_task() not in tasks


async def test_a_source_that_cancels_its_reader_between_two_items_loses_no_token_in_silence() -> None:
    async def pages() -> AsyncIterator[str]:
        async with asyncio.timeout(None) as patience:
            yield "a"
            patience.reschedule(asyncio.get_running_loop().time())
            yield "b"
            yield "c"

    gate = Gate()
    fan = fan_out(pages(), gate, concurrency=1)
    got = [asyncio.ensure_future(anext(fan))]
    await turns(5)
    gate.let("a")
    assert (await got[0]).key == 0
    second = asyncio.ensure_future(anext(fan))
    await turns(5)
    gate.let("b")
    assert (await second).key == 1
    with pytest.raises(FlinksError, match="the iterator of tokens raised CancelledError"):
        await anext(fan)


async def test_leaving_waits_for_all_however_often_it_is_cancelled() -> None:
    gate, closed = Gate(), []

    async def slow(token: Secret) -> PartnerAccessResponse:
        try:
            return await gate(token)
        finally:
            await turns(5)

    async def tokens() -> AsyncIterator[str]:
        try:
            for number in range(100):
                yield str(number)
        finally:
            await turns(5)
            closed.append(True)

    before = asyncio.all_tasks()

    async def consume() -> None:
        async with aclosing(fan_out(tokens(), slow, concurrency=3)) as outcomes:
            async for _ in outcomes:
                pass

    task = asyncio.ensure_future(consume())
    await turns(5)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()
    assert closed == [True]
    assert gate.running == {}
    assert asyncio.all_tasks() == before


async def test_a_generator_that_is_left_early_is_closed() -> None:
    closed = []

    def tokens() -> Iterator[str]:
        try:
            yield from map(str, range(100))
        finally:
            closed.append(True)

    kept = tokens()
    async with aclosing(fan_out(kept, answer, concurrency=3)) as outcomes:
        await anext(outcomes)
    assert closed == [True]


async def test_what_a_source_raises_when_it_is_closed_is_raised() -> None:
    async def tokens() -> AsyncIterator[str]:
        try:
            while True:
                yield "a"
        finally:
            raise OSError("the cursor is gone")

    with pytest.raises(OSError, match="the cursor is gone"):
        async with aclosing(fan_out(tokens(), answer, concurrency=2)) as outcomes:
            await anext(outcomes)


async def test_closing_the_client_does_not_wait_for_the_next_token() -> None:
    async def tokens() -> AsyncIterator[str]:
        yield "a"
        await asyncio.Event().wait()

    gate = asyncio.Event()

    async def wait(request: object, call_next: Any) -> Any:
        await gate.wait()
        return await call_next(request)

    client = client_of(InMemoryTransport(default=DOCUMENTED), middleware=[wait])
    task = asyncio.ensure_future(anext(fan := client.partner_access_many(tokens(), concurrency=2)))
    await turns(5)
    await client.close(grace=0)
    assert isinstance((await task).error, ClientClosedError)
    with pytest.raises(ClientClosedError):
        await anext(fan)


async def test_a_failure_keeps_no_frames_and_so_no_body() -> None:
    page = make_response(b"<html>" + b"x" * 100_000, status=404)
    async with client_of(InMemoryTransport(default=page)) as client:
        (outcome,) = [o async for o in client.partner_access_many(["a"])]
        with pytest.raises(FlinksError) as caught:
            await client.partner_access("a")
    assert isinstance(outcome, Failed)
    assert outcome.error.__traceback__ is None
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__) if "_run" in frame.f_code.co_name]
    assert frames
    assert not [value for frame in frames for value in frame.f_locals.values() if isinstance(value, Response)]


async def test_closing_the_client_ends_the_fan_out_with_an_error_not_with_a_failure_for_every_token() -> None:
    client = client_of(InMemoryTransport(default=DOCUMENTED))
    got = []
    with pytest.raises(ClientClosedError):
        async for outcome in client.partner_access_many((str(n) for n in range(10_000)), concurrency=2):
            got.append(outcome)
            if len(got) == 5:
                await client.close()
    assert 5 <= len(got) <= 9


@pytest.mark.parametrize("tokens", ["abc", b"abc", Secret("abc"), 5, None])
async def test_one_token_is_not_mistaken_for_many(tokens: Any) -> None:
    async with client_of(InMemoryTransport()) as client:
        with pytest.raises(ConfigError, match="iterable of tokens"):
            client.partner_access_many(tokens)


async def test_the_keys_of_a_mapping_are_not_sent_as_tokens() -> None:
    async with client_of(transport := InMemoryTransport(default=DOCUMENTED)) as client:
        with pytest.raises(ConfigError, match="items"):
            client.partner_access_many({"user-1": "a"})
        assert [o.key async for o in client.partner_access_many({"user-1": "a"}.items())] == ["user-1"]
    assert len(transport.requests) == 1


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, "3"])
async def test_concurrency_must_be_a_positive_whole_number(concurrency: Any) -> None:
    async with client_of(InMemoryTransport()) as client:
        with pytest.raises(ConfigError, match="concurrency"):
            client.partner_access_many(["a"], concurrency=concurrency)


async def test_every_token_has_exactly_one_outcome() -> None:
    transport = InMemoryTransport({f"t{n}": {"RequestId": str(n)} for n in range(0, 500, 2)})
    async with client_of(transport) as client:
        outcomes = [o async for o in client.partner_access_many((f"t{n}" for n in range(500)), concurrency=17)]
    assert sorted(o.key for o in outcomes) == list(range(500))
    assert {o.key for o in outcomes if isinstance(o, Fetched)} == set(range(0, 500, 2))


GROWTH = """
import asyncio, resource, sys
from flinks_async import FlinksClient, Response
BODY = b'{"GetAccountsDetail":[{"LoginId":"l","CustomerId":"c"}],"RequestId":"r"}'
class Stub:
    async def send(self, request):
        await asyncio.sleep(0)
        return Response(200, {}, BODY)
    async def close(self): pass
async def main():
    async with FlinksClient(auth_secret="s", transport=Stub()) as client:
        async def run(number):
            async for outcome in client.partner_access_many(map(str, range(number)), concurrency=64):
                outcome.unwrap()
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        small = await run(10_000)
        print((await run(int(sys.argv[1])) - small) / 1024)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    "tokens", [100_000, pytest.param(1_000_000, marks=[pytest.mark.torture, pytest.mark.timeout(600)])]
)
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read with resource, which is POSIX")
def test_memory_does_not_grow_with_the_number_of_tokens(tokens: int) -> None:
    # A process of its own: peak memory cannot be reset.
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GROWTH), str(tokens)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 20  # MiB over 10,000 tokens


def test_each_call_can_have_its_own_time() -> None:
    async def slow(request: object) -> Any:
        await asyncio.sleep(30)

    async def main() -> list[Any]:
        async with client_of(InMemoryTransport({"a": DOCUMENTED}, default=slow), clock=VirtualClock()) as client:
            with pytest.raises(ConfigError, match="timeout"):
                client.partner_access_many(["a"], timeout=0)
            return [o async for o in client.partner_access_many(["a", "b"], ordered=True, timeout=0.01)]

    outcomes = run_virtual(main())
    assert isinstance(outcomes[0], Fetched)
    assert isinstance(outcomes[1], Failed)
    assert isinstance(outcomes[1].error, DeadlineExceededError)


async def test_an_outcome_that_is_unwrapped_often_keeps_no_frames() -> None:
    async with client_of(InMemoryTransport(default=FlinksError("no"))) as flinks:
        outcomes = [outcome async for outcome in flinks.partner_access_many(["token-1"])]

    def frames(error: BaseException) -> int:
        return len(traceback.extract_tb(error.__traceback__))

    (outcome,) = outcomes
    assert isinstance(outcome, Failed)
    before = frames(outcome.error)
    for _ in range(1000):
        with pytest.raises(FlinksError) as caught:
            outcome.unwrap()
    assert frames(outcome.error) == before
    assert frames(caught.value) <= before + 2
    assert caught.value.fields() == outcome.error.fields()
