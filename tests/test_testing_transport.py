"""`InMemoryTransport`: how users test their own code, with the real chain above it."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest

from flinks_async import FlinksClient
from flinks_async.config import Retry
from flinks_async.errors import APIStatusError, BadRequestError, ClientClosedError, ReadError, ServerError
from flinks_async.messages import Request, Response
from flinks_async.secret import fingerprint
from flinks_async.testing import KINDS, FakeClock, Fault, InMemoryTransport
from flinks_async.testing.in_memory import make_response

ANSWER: dict[str, Any] = {"GetAccountsDetail": [{"LoginId": "l", "CustomerId": "c"}], "RequestId": "r"}
OTHER: dict[str, Any] = {"GetAccountsDetail": None, "RequestId": "other"}


def client(transport: InMemoryTransport, **options: Any) -> FlinksClient:
    return FlinksClient(auth_secret="s3cret", transport=transport, **options)


async def test_a_mapping_is_the_answer() -> None:
    transport = InMemoryTransport({"t": ANSWER})
    async with client(transport) as flinks:
        answer = await flinks.partner_access("t")
    assert answer.to_dict() == ANSWER
    assert transport.closed


async def test_what_was_sent_is_recorded() -> None:
    transport = InMemoryTransport(default=ANSWER)
    async with client(transport, headers={"X-Trace": "1"}) as flinks:
        await flinks.partner_access("t")
        await flinks.partner_access("u")
    assert [sent.token.reveal() for sent in transport.requests] == ["t", "u"]
    assert (transport.sent("t"), transport.sent("other")) == (1, 0)
    sent = transport.requests[0]
    assert sent.secret is not None
    assert sent.secret.reveal() == "s3cret"
    assert sent.headers["x-trace"] == "1"
    assert sent.headers["ACCEPT"] == "application/json"
    assert sent.fingerprint == fingerprint(sent.token)
    assert "s3cret" not in repr(transport.requests)
    assert "'t'" not in repr(transport.requests)


async def test_a_list_is_consumed_in_order_and_its_last_repeats(fast: dict[str, Any]) -> None:
    answers: list[Any] = [KINDS["http_503"], ReadError("broken"), ANSWER, OTHER]
    transport = InMemoryTransport({"t": answers})
    async with client(transport, **fast) as flinks:
        first = await flinks.partner_access("t")
        assert (first.to_dict(), first.meta.attempts) == (ANSWER, 3)
        assert [(await flinks.partner_access("t")).request_id for _ in range(2)] == ["other", "other"]
    assert transport.sent("t") == 5
    assert len(answers) == 4, "the caller's list is left alone"


@pytest.fixture
def fast() -> dict[str, Any]:
    return {"retry": Retry(attempts=3, base=0, throttled_base=0)}


async def test_an_error_is_raised_anew_each_time(fast: dict[str, Any]) -> None:
    error = ServerError("down", status=503)
    transport = InMemoryTransport({"t": error})
    async with client(transport, **fast) as flinks:
        with pytest.raises(ServerError) as caught:
            await flinks.partner_access("t")
    assert caught.value is not error
    assert error.__traceback__ is None
    assert transport.sent("t") == 3


async def test_a_function_makes_the_answer() -> None:
    def by_token(request: Request) -> dict[str, Any]:
        return {"GetAccountsDetail": None, "RequestId": request.token.reveal()}

    async def later(request: Request) -> Response:
        await FakeClock().sleep(1)
        return make_response(by_token(request))

    async with client(InMemoryTransport({"a": later}, default=by_token)) as flinks:
        assert [(await flinks.partner_access(token)).request_id for token in ("a", "b")] == ["a", "b"]


async def test_an_unknown_token_is_refused_as_by_the_server() -> None:
    async with client(InMemoryTransport()) as flinks:
        with pytest.raises(APIStatusError) as caught:
            await flinks.partner_access("token-1")
    assert (caught.value.status, caught.value.flinks_code) == (401, "SESSION_NONEXISTENT")


async def test_the_documented_400() -> None:
    async with client(InMemoryTransport(default=KINDS["bad_request"])) as flinks:
        with pytest.raises(BadRequestError):
            await flinks.partner_access("t")


async def test_after_close_nothing_is_sent() -> None:
    transport = InMemoryTransport(default=ANSWER)
    async with client(transport) as flinks:
        await flinks.partner_access("t")
    with pytest.raises(ClientClosedError):
        await flinks.partner_access("t")
    assert transport.sent("t") == 1


async def test_many_calls_at_once_share_a_list(fast: dict[str, Any]) -> None:
    transport = InMemoryTransport({"t": [{"RequestId": str(number)} for number in range(20)]})
    async with client(transport, **fast) as flinks:
        answers = await asyncio.gather(*(flinks.partner_access("t") for _ in range(20)))
    assert sorted(int(answer.request_id or -1) for answer in answers) == list(range(20))


def test_responses() -> None:
    response = make_response({"Debit": Decimal("12.30")}, status=201, headers={"X-A": "1"})
    assert (response.status, response.body, response.headers["x-a"]) == (201, b'{"Debit":12.30}', "1")
    assert make_response(response) is response
    throttled = make_response(KINDS["http_429_seconds"])
    assert (throttled.status, throttled.headers["retry-after"]) == (429, "1")
    html = make_response(KINDS["html_200"])
    assert html.headers["CONTENT-TYPE"] == "text/html"
    assert json.loads(make_response(Fault.reply(418, {"a": 1})).body) == {"a": 1}


def test_a_fault_that_is_no_reply_cannot_be_a_response() -> None:
    with pytest.raises(ValueError, match="'reset' is not a reply"):
        make_response(KINDS["reset"])


def test_an_empty_list_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        InMemoryTransport({"t": []})
