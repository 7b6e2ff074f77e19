"""The state that derived clients share, and its lifetime."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import Any

import pytest

from flinks_async import CircuitOpenError, FlinksClient, Limits, Pause, Request, Retry, ServerError
from flinks_async.testing import InMemoryTransport, VirtualClock, VirtualTimeLoop, run_virtual
from flinks_async.testing.in_memory import make_response
from flinks_async.transport import pool

OK = {"GetAccountsDetail": [], "RequestId": "r"}


def client_of(*answers: object, **options: object) -> FlinksClient:
    default = answers[0] if callable(answers[0]) else list(answers)
    transport = InMemoryTransport({}, default=default)
    return FlinksClient(auth_secret="s", transport=transport, clock=VirtualClock(), **options)


def kept(client: FlinksClient) -> tuple[int, int]:
    """How many governors and quotas there are in this loop."""
    gc.collect()
    shared = client._pool._loops[asyncio.get_running_loop()]
    return len(shared.governors), len(shared.quotas)


def abandon(task: asyncio.Task[Any]) -> None:
    """Ends one whose loop is closed, without a complaint of asyncio."""
    task._log_destroy_pending = False
    coroutine = task.get_coro()
    assert coroutine is not None
    coroutine.close()


async def ask_with_a_callable(client: FlinksClient, *, close: bool) -> None:
    async def provider() -> str:
        return "asked for"

    derived = client.with_options(auth_secret=provider)
    await derived.partner_access("t")
    if close:
        await derived.close()


async def ask_with_a_text(client: FlinksClient, secret: str) -> None:
    derived = client.with_options(auth_secret=secret)
    try:
        await derived.partner_access("t")
    finally:
        await derived.close()


@pytest.mark.parametrize("close", [True, False], ids=["closed", "collected"])
def test_the_state_of_a_callable_goes_with_the_last_client_that_uses_it(close: bool) -> None:
    async def main() -> None:
        async with client_of(OK) as client:
            for _ in range(20):
                await ask_with_a_callable(client, close=close)
            assert kept(client) == (1, 1)

    run_virtual(main())


def test_the_state_of_a_callable_stays_while_another_client_uses_it() -> None:
    async def provider() -> str:
        return "asked for"

    async def main() -> None:
        async with client_of(OK) as client:
            one = client.with_options(auth_secret=provider)
            other = client.with_options(auth_secret=provider, app_name="x")
            governor = one.governor
            assert other.governor is governor
            await one.close()
            assert kept(client) == (2, 2)
            assert client.with_options(auth_secret=provider).governor is governor
            await other.close()

    run_virtual(main())


def test_clients_derived_for_one_request_each_know_that_the_instance_is_down() -> None:
    async def main() -> None:
        async with client_of(make_response({}, status=500), retry=Retry(attempts=1)) as client:
            for _ in range(10):
                with pytest.raises(ServerError):
                    await ask_with_a_text(client, "tenant")
            with pytest.raises(CircuitOpenError):
                await ask_with_a_text(client, "tenant")
            with pytest.raises(ServerError):
                await ask_with_a_text(client, "another tenant")

    run_virtual(main())


def test_the_memory_of_texts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "REMEMBERED", 5)

    async def main() -> None:
        async with client_of(OK) as client:
            for n in range(30):
                await ask_with_a_text(client, f"tenant-{n}")
            governors, quotas = kept(client)
            assert governors <= 6
            assert quotas <= 6

    run_virtual(main())


@pytest.mark.parametrize(("pause", "stays"), [(None, False), (300.0, False), (2000.0, True)])
def test_a_text_that_was_not_used_for_long_is_forgotten_unless_it_is_paused(pause: float | None, stays: bool) -> None:
    answers = [OK, OK] if pause is None else [make_response({}, status=503, headers={"Retry-After": str(pause)}), OK]
    limits = Limits(breaker=None, pause=Pause(longest=5000.0), waits=True)

    async def main() -> None:
        async with client_of(*answers, retry=Retry(attempts=1), limits=limits) as client:
            tenant = client.with_options(auth_secret="tenant")
            await tenant.partner_access_raw("t")
            await tenant.close()
            del tenant
            await asyncio.sleep(1000.0)
            await ask_with_a_text(client, "s")  # the old ones are looked through
            assert kept(client)[0] == 1 + stays

    run_virtual(main())


def test_a_client_used_in_many_loops_keeps_none_that_is_closed() -> None:
    limits = Limits(concurrency=1)

    async def one(request: Request) -> object:
        await asyncio.sleep(1.0)
        return OK

    client = client_of(one, limits=limits)

    async def main(tokens: str = "ab") -> None:
        await asyncio.gather(*map(client.partner_access, tokens))

    waited = []
    for _ in range(5):
        run_virtual(main())
        waited.append(client.stats().queue_time)
        assert len(client._states) == len(client._pool._loops) == 1
    assert waited == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0])
    run_virtual(client.close())
    assert client.stats().queue_time == pytest.approx(5.0)

    # Closed in its last loop, too.
    client = client_of(one, limits=limits)
    run_virtual(main())

    async def last() -> None:
        await main("abc")
        await client.close()

    run_virtual(last())
    assert client.stats().queue_time == pytest.approx(1.0 + 3.0)
    assert not client._states


def test_a_client_is_closed_in_another_loop_than_one_that_ended_with_a_call_under_way() -> None:
    """No task was cancelled, as `asyncio.run` does: the loop was closed, and its call never ends."""
    client = client_of(lambda request: asyncio.sleep(50.0, OK))
    loop = VirtualTimeLoop()
    call = loop.create_task(client.partner_access("t"))
    loop.run_until_complete(asyncio.sleep(1.0))
    loop.close()
    assert client.stats().calls_in_flight == 0

    async def main() -> float:
        await client.close(grace=100.0)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 0.0
    assert client.closed
    with suppress(RuntimeError):  # of the virtual clock, outside of a loop
        abandon(call)


def test_a_callable_keeps_no_loop_that_was_closed_while_it_was_asked() -> None:
    asked = 0

    async def provider() -> str:
        nonlocal asked
        asked += 1
        if asked < 4:
            await asyncio.sleep(100.0)
        return "secret"

    client = client_of(OK).with_options(auth_secret=provider)
    tasks = []
    for _ in range(3):
        loop = VirtualTimeLoop()
        tasks.append(loop.create_task(client.partner_access("t")))
        loop.run_until_complete(asyncio.sleep(1.0))
        tasks += [task for task in asyncio.all_tasks(loop) if task not in tasks]
        loop.close()
    run_virtual(client.partner_access("t"))
    assert asked == 4
    assert client._source is not None
    assert client._source._running == {}
    for task in tasks:
        abandon(task)
    run_virtual(client.close())
