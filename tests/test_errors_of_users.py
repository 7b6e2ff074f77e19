"""Errors that a user's middleware raises, and error classes of users."""

from __future__ import annotations

import asyncio
import copy
import pickle
import traceback
from typing import Any

import pytest

from flinks_async import ConfigError, FlinksError, Retry, ServerError
from flinks_async.messages import Handler, Request, Response
from flinks_async.testing import InMemoryTransport

from .support import client_of


class PolicyError(FlinksError):
    """A user's error with a constructor of its own."""

    def __init__(self, rule: int, *, by: str) -> None:
        super().__init__(f"rule {rule} of {by}")
        self.rule, self.by = rule, by


def refuse() -> None:
    try:
        raise KeyError("the cause")
    except KeyError as error:
        problem = PolicyError(7, by="us")
        problem.add_note("a note")
        raise problem from error


async def refusing(request: Request, call_next: Handler) -> Response:
    refuse()
    return await call_next(request)


async def _assert_story(call: Any) -> None:
    with pytest.raises(PolicyError) as caught:
        await call
    error = caught.value
    assert (error.rule, error.by, error.message, error.__notes__) == (7, "us", "rule 7 of us", ["a note"])
    assert isinstance(error.__cause__, KeyError)
    assert isinstance(error.__context__, KeyError)
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names[-2:] == ["refusing", "refuse"]
    assert error.token_fingerprint is not None


@pytest.mark.parametrize("place", ["middleware", "attempt_middleware"])
@pytest.mark.parametrize("coalesce", [False, True])
async def test_an_error_of_a_users_middleware_keeps_its_story(place: str, coalesce: bool) -> None:
    options: dict[str, Any] = {place: [refusing], "coalesce": coalesce}
    async with client_of(InMemoryTransport(), **options) as client:
        await asyncio.gather(*(_assert_story(client.partner_access("t")) for _ in range(2)))


async def test_an_error_of_ours_that_a_users_middleware_raises_keeps_its_cause() -> None:
    async def translating(request: Request, call_next: Handler) -> Response:
        try:
            raise OSError("the database is down")
        except OSError as error:
            raise ServerError("no policy") from error

    async with client_of(InMemoryTransport(), middleware=[translating], retry=Retry(attempts=1)) as client:
        with pytest.raises(ServerError) as caught:
            await client.partner_access("t")
    assert isinstance(caught.value.__cause__, OSError)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "translating"


async def test_an_error_of_ours_that_passes_a_users_middleware_has_no_frames_of_ours() -> None:
    async def noting(request: Request, call_next: Handler) -> Response:
        try:
            return await call_next(request)
        except FlinksError as error:
            error.add_note("seen")
            raise PolicyError(1, by="them") from error

    transport = InMemoryTransport(default=ConfigError("ours"))
    async with client_of(transport, attempt_middleware=[noting], retry=Retry(attempts=1)) as client:
        with pytest.raises(PolicyError) as caught:
            await client.partner_access("t")
    cause = caught.value.__cause__
    assert isinstance(cause, ConfigError)
    assert (cause.__notes__, cause.__traceback__) == (["seen"], None)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_class_with_a_constructor_of_its_own_can_be_copied(copied: Any) -> None:
    error = PolicyError(7, by="us")
    error.add_note("a note")
    error.attempts = 3
    again = copied(error)
    assert (type(again), again.rule, again.by, str(again), again.args) == (PolicyError, 7, "us", str(error), error.args)
    again.add_note("another")
    assert error.__notes__ == ["a note"]


async def test_the_in_memory_transport_raises_an_error_class_of_the_users() -> None:
    transport = InMemoryTransport(default=PolicyError(7, by="us"))
    async with client_of(transport) as client:
        with pytest.raises(PolicyError) as caught:
            await client.partner_access("t")
    assert (caught.value.rule, caught.value.attempts) == (7, 1)
