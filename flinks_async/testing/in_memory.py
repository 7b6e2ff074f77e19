"""A transport without a network, for unit tests of code that uses this package.

    transport = InMemoryTransport({"token-1": {"GetAccountsDetail": [], "RequestId": "r"}})
    async with FlinksClient(auth_secret="x", transport=transport) as flinks:
        await flinks.partner_access("token-1")
    assert [sent.token.reveal() for sent in transport.requests] == ["token-1"]

Retries, decoding and errors work as with a network.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Iterable, Mapping
from inspect import isawaitable
from typing import Any, Final, TypeAlias

import msgspec
from attrs import field, frozen
from multidict import CIMultiDict, CIMultiDictProxy

from ..errors import ClientClosedError, FlinksError
from ..messages import Request, Response
from ..secret import Secret, fingerprint
from .faults import KINDS, Fault, reply_headers

OneAnswer: TypeAlias = Mapping[str, Any] | bytes | Response | Fault | FlinksError

Answer: TypeAlias = OneAnswer | list[OneAnswer] | Callable[[Request], OneAnswer | Awaitable[OneAnswer]]

UNKNOWN_TOKEN: Final = KINDS["session_nonexistent"]
"""The default answer to an unknown token. Flinks does not document its own."""

_encode: Final = msgspec.json.Encoder(decimal_format="number").encode


@frozen
class SentRequest:
    """One attempt that reached the transport.

    Attributes:
        token: the access token; `reveal()` it to compare.
        fingerprint: the token's fingerprint, as in errors and logs.
        secret: the AuthSecret.
        host: host of the endpoint.
        headers: headers of the endpoint and the request, without authentication; lookups ignore case.
    """

    token: Secret
    fingerprint: str
    secret: Secret | None
    host: str
    headers: Mapping[str, str] = field(repr=lambda headers: f"<{', '.join(headers)}>")


class InMemoryTransport:
    """A `Transport` that answers from a mapping.

    Args:
        answers: answers by token. An answer is a mapping (sent as JSON with status 200), bytes (a body with status 200),
            a `Response`, a fault of `KINDS` that is a reply (such as `KINDS["http_503"]`), or a `FlinksError` (a copy is
            raised). A list gives its answers in order and repeats the last. A callable gets the `Request`, may be async,
            and returns one of these.
        default: answer for all other tokens; default 401 SESSION_NONEXISTENT.

    Attributes:
        answers: may be changed at any time.
        requests: the requests, in order.
        closed: whether `close()` was called.
    """

    def __init__(self, answers: Mapping[str, Answer] | None = None, *, default: Answer = UNKNOWN_TOKEN) -> None:
        self.answers: dict[str, Answer] = {token: _copied(answer) for token, answer in (answers or {}).items()}
        self.default = _copied(default)
        self.requests: list[SentRequest] = []
        self.closed = False

    async def send(self, request: Request, /) -> Response:
        if self.closed:
            raise ClientClosedError("the transport is closed")
        self.requests.append(_recorded(request))
        answer = self.answers.get(request.token.reveal(), self.default)
        one = await _resolve(answer, request)
        if isinstance(one, FlinksError):
            raise copy.copy(one)
        return make_response(one)

    async def close(self) -> None:
        self.closed = True

    def sent(self, token: str) -> int:
        """Number of requests for a token."""
        return sum(sent.token == Secret(token) for sent in self.requests)


def make_response(
    answer: Mapping[str, Any] | bytes | Response | Fault,
    *,
    status: int = 200,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
) -> Response:
    """A `Response` as a transport returns it.

    Args:
        answer: the body. A mapping becomes JSON (`Decimal` keeps its digits), a `Response` is returned unchanged, and a
            fault that is a reply has its own status and headers.
        status: HTTP status.
        headers: in addition to `Content-Type: application/json`.
    """
    if isinstance(answer, Response):
        return answer
    merged = CIMultiDict({"Content-Type": "application/json; charset=utf-8"})
    if isinstance(answer, Fault):
        if answer.mode != "reply":
            raise ValueError(f"the fault {answer.name!r} is not a reply; use the FlinksError that it causes instead")
        merged.update(reply_headers(answer))
        status, body = answer.status, answer.body
    else:
        body = answer if isinstance(answer, bytes) else _encode(answer)
    merged.update(headers)
    return Response(status, CIMultiDictProxy(merged), body)


async def _resolve(answer: Answer, request: Request) -> OneAnswer:
    if isinstance(answer, list):
        return answer.pop(0) if len(answer) > 1 else answer[0]
    if not callable(answer):
        return answer
    made = answer(request)
    return await made if isawaitable(made) else made


def _copied(answer: Answer) -> Answer:
    if isinstance(answer, list) and not answer:
        raise ValueError("a list of answers must not be empty")
    return list(answer) if isinstance(answer, list) else answer


def _recorded(request: Request) -> SentRequest:
    headers = CIMultiDict(request.endpoint.headers)
    headers.update(request.headers)
    return SentRequest(
        request.token,
        fingerprint(request.token),
        request.call.secret,
        request.endpoint.host,
        CIMultiDictProxy(headers),
    )
