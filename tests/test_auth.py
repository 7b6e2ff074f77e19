"""An AuthSecret from a callable: fetched once, kept, and replaced when it is refused."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from flinks_async import AuthenticationError, ConfigError, Request, Secret, fingerprint
from flinks_async.middleware.auth import CONFIRMED_COOLDOWN, FAILED_COOLDOWN
from flinks_async.testing import KINDS, FakeClock, InMemoryTransport
from flinks_async.testing.in_memory import make_response

from .support import DOCUMENTED, client_of, turns


class Vault:
    def __init__(self, *secrets: Any) -> None:
        self.secrets = list(secrets)
        self.asked = 0

    async def __call__(self) -> str:
        self.asked += 1
        await asyncio.sleep(0)
        value = self.secrets.pop(0) if len(self.secrets) > 1 else self.secrets[0]
        if isinstance(value, BaseException):
            raise value
        return value


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def server(valid: str) -> InMemoryTransport:
    def answer(request: Request) -> Any:
        return DOCUMENTED if request.call.secret == Secret(valid) else KINDS["unauthorized"]

    return InMemoryTransport(default=answer)


async def test_a_secret_is_fetched_at_first_need_once_for_all_waiters() -> None:
    vault = Vault("good")
    async with client_of(server("good"), auth_secret=vault) as client:
        assert vault.asked == 0
        await asyncio.gather(*(client.partner_access(f"t{n}") for n in range(10)))
        await client.partner_access("later")
    assert vault.asked == 1


async def test_a_refused_secret_is_fetched_once_more() -> None:
    vault, transport = Vault("old", "good"), server("good")
    async with client_of(transport, auth_secret=vault) as client:
        answer = await client.partner_access("t")
        await client.partner_access("t")
    assert vault.asked == 2
    assert answer.meta.attempts == 2
    assert len(transport.requests) == 3


async def test_many_refusals_at_once_fetch_once() -> None:
    vault = Vault("old", "good")
    async with client_of(server("good"), auth_secret=vault) as client:
        await asyncio.gather(*(client.partner_access(f"t{n}") for n in range(10)))
    assert vault.asked == 2


async def test_a_confirmed_secret_is_not_fetched_again_during_the_cooldown() -> None:
    vault, clock = Vault("wrong"), FakeClock()
    async with client_of(server("good"), auth_secret=vault, clock=clock) as client:
        for _ in range(5):
            with pytest.raises(AuthenticationError):
                await client.partner_access("t")
        assert vault.asked == 2
        clock.advance(CONFIRMED_COOLDOWN + 1)
        vault.secrets = ["good"]
        await client.partner_access("t")
    assert vault.asked == 3


async def test_a_vault_that_fails_after_a_refusal_has_a_cooldown_and_the_refusal_stands() -> None:
    vault, clock, transport = Vault("old", OSError("canary")), FakeClock(), server("good")
    async with client_of(transport, auth_secret=vault, clock=clock) as client:
        for token in ("a", "b", "c"):
            with pytest.raises(AuthenticationError, match="the AuthSecret is refused") as caught:
                await client.partner_access(token)
            error = caught.value
            assert error.provider_problem == "the auth_secret callable raised OSError"
            assert error.message.endswith(f"not known: {error.provider_problem}")
            assert (error.status, error.flinks_code, error.attempts) == (401, "UNAUTHORIZED", 1)
            assert error.token_fingerprint == fingerprint(token)
            assert str(pickle.loads(pickle.dumps(error))) == str(error)
            assert "canary" not in repr(error)
        assert vault.asked == 2
        clock.advance(FAILED_COOLDOWN + 1)
        vault.secrets = ["good"]
        await client.partner_access("t")
        assert (await client.partner_access_raw("t")).status == 200
    assert vault.asked == 3


async def test_a_refusal_after_a_confirmation_does_not_mention_an_old_failure() -> None:
    vault, clock = Vault("old", OSError(), "old"), FakeClock()
    async with client_of(server("good"), auth_secret=vault, clock=clock) as client:
        with pytest.raises(AuthenticationError, match="not known"):
            await client.partner_access("t")
        clock.advance(FAILED_COOLDOWN + 1)
        with pytest.raises(AuthenticationError) as caught:
            await client.partner_access("t")
    assert caught.value.provider_problem is None
    assert "not known" not in caught.value.message


async def test_a_raw_answer_is_returned_when_the_vault_fails() -> None:
    async with client_of(server("good"), auth_secret=Vault("old", OSError())) as client:
        assert (await client.partner_access_raw("t")).status == 401


async def test_retry_after_is_kept_when_the_vault_fails() -> None:
    refused = make_response({"FlinksCode": "UNAUTHORIZED"}, status=401, headers={"Retry-After": "7"})
    async with client_of(InMemoryTransport(default=refused), auth_secret=Vault("old", OSError())) as client:
        with pytest.raises(AuthenticationError) as caught:
            await client.partner_access("t")
    assert caught.value.retry_after == 7.0


async def test_the_first_waiter_may_leave() -> None:
    vault = Vault("good")
    async with client_of(server("good"), auth_secret=vault) as client:
        first = asyncio.ensure_future(client.partner_access("a"))
        second = asyncio.ensure_future(client.partner_access("b"))
        await asyncio.sleep(0)
        first.cancel()
        await second
        await turns()
    assert first.cancelled()
    assert vault.asked == 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (OSError("vault down at https://vault.example/v1/canary"), "raised OSError"),
        (KeyError("canary"), "raised KeyError"),
        (Unspeakable("canary"), "raised Unspeakable"),
        (asyncio.CancelledError(), "raised CancelledError"),
        ("", "is missing"),
        ("canary\n", "line break"),
        (None, "is missing"),
        (5, "not int"),
    ],
)
async def test_a_vault_that_fails_is_a_config_error_and_is_called_again_next_time(value: Any, says: str) -> None:
    vault = Vault(value, "good")
    async with client_of(server("good"), auth_secret=vault) as client:
        with pytest.raises(ConfigError, match=says) as caught:
            await client.partner_access("t")
        assert "canary" not in repr(caught.value)
        await client.partner_access("t")
    assert vault.asked == 2


async def test_each_waiter_for_a_failing_vault_gets_its_own_error() -> None:
    async with client_of(server("good"), auth_secret=Vault(OSError())) as client:
        calls = (client.partner_access(token) for token in ("a", "b"))
        errors = await asyncio.gather(*calls, return_exceptions=True)
    told = [error.token_fingerprint for error in errors if isinstance(error, ConfigError)]
    assert told == [fingerprint("a"), fingerprint("b")]


async def test_a_hanging_vault_is_cancelled_with_its_last_waiter_and_called_again() -> None:
    hanging = asyncio.Event()
    asked = list[int]()

    async def vault() -> str:
        asked.append(1)
        if len(asked) == 1:
            await hanging.wait()
        return "good"

    async with client_of(server("good"), auth_secret=vault) as client:
        calls = [asyncio.ensure_future(client.partner_access(token)) for token in ("a", "b")]
        await turns()
        calls[0].cancel()
        await turns()
        assert not calls[1].done()
        calls[1].cancel()
        await turns()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await client.partner_access("c")
    assert len(asked) == 2


async def test_a_derived_client_shares_the_fetched_secret() -> None:
    vault = Vault("good")
    async with client_of(server("good"), auth_secret=vault) as client:
        await client.partner_access("t")
        await client.with_options(app_name="x").partner_access("t")
    assert vault.asked == 1
