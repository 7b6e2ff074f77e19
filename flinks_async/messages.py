"""The messages of the chain (`Request`, `Response`), its links (`Handler`, `Middleware`, `Transport`), and how they join.

The contract of a `Handler`: it **returns** a `Response` for every HTTP status, with the whole body and the connection
already back in the pool. It **raises** a `FlinksError` or lets `asyncio.CancelledError` through, and nothing else. So a
middleware never holds a connection, and a truncated body reaches it as an error.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, ItemsView, Iterable, Iterator, Mapping, Sequence
from inspect import isawaitable, isfunction
from types import MappingProxyType
from typing import Any, Final, Protocol

from attrs import define, evolve, field, frozen
from multidict import CIMultiDict, CIMultiDictProxy

from .clock import Clock
from .endpoint import Endpoint
from .errors import ConfigError, FlinksError
from .limits.rate import read_retry_after
from .models import NO_META, Meta, PartnerAccessResponse
from .runtime import CancelScope, LoopState
from .schema import maker
from .secret import Secret
from .verdict import EMPTY_ENVELOPE, Envelope, Verdict

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Headers(Mapping[str, str]):
    """The headers of a response, decoded when they are first asked for, which is seldom. Names are compared without regard
    to case. A name that was sent more than once has its first value; `getall` returns all of them.

    Args:
        fields: names and values in turn, as they were sent.
    """

    __slots__ = ("_decoded", "_fields")

    def __init__(self, fields: Sequence[bytes]) -> None:
        self._fields = fields
        self._decoded: CIMultiDict[str] | None = None

    def _all(self) -> CIMultiDict[str]:
        if self._decoded is None:
            texts = iter([field.decode("utf-8", "surrogateescape") for field in self._fields])
            self._decoded = CIMultiDict(zip(texts, texts, strict=True))
        return self._decoded

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._fields) // 2

    def __repr__(self) -> str:
        return f"<Headers: {len(self)}>"  # values may be personal

    def items(self) -> ItemsView[str, str]:
        return self._all().items()

    def getall(self, name: str, default: Sequence[str] = ()) -> Sequence[str]:
        """All values of a name, or the default."""
        return self._all().getall(name, default)


MAX_HEADER: Final = 8190
MAX_HEADERS: Final = 128


def check_fields(fields: Sequence[bytes]) -> bytes:
    """Checks headers as they were sent, and returns the names and values joined by line feeds. The limits are those of
    aiohttp's parser.

    Raises:
        ValueError: they are too many or too long, or have a control character.
    """
    text = b"\n".join(fields)
    if len(fields) > 2 * MAX_HEADERS or b"\0" in text or b"\r" in text:
        raise ValueError("too many headers, or a control character in one")
    if len(text) > MAX_HEADER:
        sizes = [len(field) for field in fields]
        if max(map(sum, zip(sizes[::2], sizes[1::2], strict=True))) > MAX_HEADER:
            raise ValueError("a header is too long")
    return text


def may_continue(status: int, headers: Mapping[str, str]) -> bool:
    """Whether data may follow the answer, when another request may be on its way: after a 101, and a 204 that announces a body."""
    return status == 101 or (
        status == 204 and (headers.get("Content-Length", "0").strip("0") != "" or "Transfer-Encoding" in headers)
    )


def ends_with_connection(headers: Headers | CIMultiDictProxy[str]) -> bool:
    """Whether the body of an answer has neither a length nor chunks."""
    coding = ",".join(headers.getall("Transfer-Encoding", ())).lower().rpartition(",")[2].strip(" \t")
    return "Content-Length" not in headers and coding != "chunked"


def _names(headers: Mapping[str, str]) -> str:
    return f"<{', '.join(headers)}>"


# Headers that this package reads, and headers that servers and proxies commonly send.
_KNOWN_HEADERS: Final = {
    name.lower(): name
    for name in (
        *("Cache-Control", "Connection", "Content-Encoding", "Content-Length", "Content-Type", "Date", "ETag"),
        *("Expires", "Keep-Alive", "Location", "Pragma", "Proxy-Authenticate", "RateLimit", "RateLimit-Limit"),
        *("RateLimit-Policy", "RateLimit-Remaining", "RateLimit-Reset", "Retry-After", "Retry-After-Ms", "Server"),
        *("Set-Cookie", "Strict-Transport-Security", "Transfer-Encoding", "Vary", "Via", "WWW-Authenticate"),
        *("X-Ms-Retry-After-Ms", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-Request-Id"),
    )
}


def _known_names(headers: Mapping[str, str]) -> str:
    """The well-known names and a count of the others, because a server may put the token into a header name."""
    names = {name.lower() for name in headers}
    shown = [known for name, known in _KNOWN_HEADERS.items() if name in names]
    others = len(names) - len(shown)
    return f"<{', '.join([*shown, f'{others} more'] if others else shown)}>"


@define(eq=False)
class SharedDeadline:
    """A deadline that moves, because the calls that share a request come and go (see `middleware.coalesce`)."""

    at: float | None


@define(eq=False)
class SendPermit:
    """Lets the owner of a call end it without wasting a request: once revoked, the call sends nothing more, but its
    request on the wire may finish.

    Attributes:
        revoked: set by the owner, who then cancels the call if `on_wire` is 0.
        on_wire: attempts that were sent and are not decoded yet.
    """

    revoked: bool = False
    on_wire: int = 0


@define(eq=False)
class Call:
    """The state of one call, updated by the chain while it runs. Times are seconds of the client's clock.

    Attributes:
        started: when the call started.
        deadline: when it must end, or None. A wait that would pass it is not started. It may change: read it each time.
        attempts: attempts handed to the transport; each is at most one request on the wire.
        queue_time: seconds spent waiting for a free place.
        wire_time: seconds from sending to the last byte.
        secret: the AuthSecret to send.
        fresh: the next attempt must not use a kept-alive connection.
        headers_at: when the headers of the latest response arrived; None if the transport does not say.
        problem: what went wrong in the latest attempt, in words; empty if nothing did.
        failure: the error of the latest attempt that a retry follows or should have followed; None before the first one.
        down: the latest attempt failed while its instance counted as down.
        retrying: the next attempt repeats a failed one.
        shared: the deadline, if several calls share it.
        permit: lets the owner of the call end it.
        scope: of the call's deadline.
        blocked: the latest attempt failed because this process blocked the event loop or is short of something, such as file
            descriptors; it says nothing of the server.
        local: state that this call shares with the others of its client in its event loop.
    """

    started: float
    local: LoopState = field(repr=False)
    _deadline: float | None = None
    scope: CancelScope | None = None
    secret: Secret | None = None
    permit: SendPermit | None = None
    attempts: int = 0
    queue_time: float = 0.0
    wire_time: float = 0.0
    fresh: bool = False
    headers_at: float | None = None
    problem: str = ""
    failure: FlinksError | None = None
    down: bool = False
    retrying: bool = False
    shared: SharedDeadline | None = None
    blocked: bool = False
    _id: str = ""

    @property
    def id(self) -> str:
        """32 random hexadecimal digits that identify the call in errors, events, logs and spans; made when first read. All
        its attempts have the same one. It is not sent, unless an attempt middleware adds it to the headers.
        """
        if not self._id:
            self._id = os.urandom(16).hex()
        return self._id

    @property
    def deadline(self) -> float | None:
        return self._deadline if self.shared is None else self.shared.at

    def copy(self, **changes: Any) -> Call:
        """A copy with the same id, for a task of its own."""
        return evolve(self, id=self.id, **changes)

    def add(self, copy: Call, *, since: Call) -> None:
        """Adds what a copy of this call has counted since an earlier copy, and takes the id that it sent."""
        self._id = copy.id
        self.attempts += copy.attempts - since.attempts
        self.queue_time += copy.queue_time - since.queue_time
        self.wire_time += copy.wire_time - since.wire_time
        self.down, self.blocked = copy.down, copy.blocked
        self.problem, self.failure = copy.problem, copy.failure

    def headers_came(self) -> None:
        """A transport calls this when status and headers have arrived, before the body."""
        self.headers_at = self.local.now()


@frozen(eq=False, weakref_slot=False)
class Request:
    """A call for one token. To change it, pass `request.evolve(...)` on.

    Attributes:
        endpoint: where it is sent.
        token: the access token.
        call: the state of the call, shared by all its attempts.
        headers: sent with this request; they win over those of the endpoint.
        raw: the caller wants the HTTP response, so a 200 is not decoded.
    """

    endpoint: Endpoint = field(repr=lambda endpoint: endpoint.host)
    token: Secret
    call: Call
    headers: Mapping[str, str] = field(default=NO_HEADERS, repr=_names)
    raw: bool = False

    def evolve(self, **changes: Any) -> Request:
        """A copy with some fields changed, for example `request.evolve(headers={**request.headers, "X-Trace": id})`."""
        return evolve(self, **changes)


new_request = maker(Request)


_NOT_READ: Final = -1.0


@frozen(eq=False, weakref_slot=False)
class Response:
    """An HTTP response with its whole body. Its headers are looked up case-insensitively.

    Attributes:
        status: as sent by the server.
        headers: as sent by the server.
        body: decompressed, undecoded bytes.
        answer: the decoded body of a success, unless the request was raw.
        envelope: code, message and request id, if the body has them.
        verdict: what the response means (see `classify`).
        meta: status, attempts and times.
    """

    status: int
    headers: Mapping[str, str] = field(default=NO_HEADERS, repr=_known_names)
    body: bytes = field(default=b"", repr=lambda body: f"<{len(body)} bytes>")
    answer: PartnerAccessResponse | None = field(default=None, repr=False)
    envelope: Envelope = EMPTY_ENVELOPE
    verdict: Verdict | None = None
    meta: Meta = NO_META
    _retry_after: float | None = field(default=_NOT_READ, init=False, repr=False)

    def retry_after(self, clock: Clock) -> float | None:
        """Seconds that the server asks to wait, or None if it does not say. The headers are parsed once.

        Args:
            clock: its wall clock is compared with a date if the server does not send its own `Date`.
        """
        seconds = self._retry_after
        if seconds == _NOT_READ:  # most responses are never asked
            seconds = read_retry_after(self.headers, clock.time())
            object.__setattr__(self, "_retry_after", seconds)
        return seconds

    def evolve(self, **changes: Any) -> Response:
        """A copy with some fields changed."""
        return evolve(self, **changes)

    def __reduce__(self) -> tuple[Any, ...]:  # aiohttp's header mapping does not pickle
        headers = CIMultiDict(self.headers.items())
        return Response, (self.status, headers, self.body, self.answer, self.envelope, self.verdict, self.meta)


new_response = maker(Response)


Handler = Callable[[Request], Awaitable[Response]]
"""The rest of the chain, as a middleware calls it; its contract is at the top of this module."""


class Middleware(Protocol):
    """A link of the chain: an async callable that receives a request and the rest of the chain.

    It may change the request, respond without calling `call_next`, call it more than once, or change the response. It
    must keep the contract of a `Handler`.
    """

    def __call__(self, request: Request, call_next: Handler, /) -> Awaitable[Response]: ...


def compose(middlewares: Iterable[Middleware], handler: Handler) -> Handler:
    """Puts middlewares in front of a handler, the first one outermost. Done once, when a client is made."""
    for middleware in reversed(tuple(middlewares)):
        handler = _bind(middleware, handler)
    return handler


def _bind(middleware: Middleware, call_next: Handler) -> Handler:
    link = middleware if isfunction(middleware) else middleware.__call__  # a method is called faster than an object
    return lambda request: link(request, call_next)


def name_of(part: object) -> str:
    """The name of a user's callable, for messages."""
    return str(getattr(part, "__qualname__", type(part).__qualname__))


def checked(middleware: Middleware) -> Middleware:
    """Wraps a user's middleware, so that one that forgets to return the response is named in the error."""

    async def link(request: Request, call_next: Handler, /) -> Response:
        returned: object = middleware(request, call_next)
        if not isawaitable(returned):
            raise ConfigError(
                f"the middleware {name_of(middleware)} must be async, and returned {type(returned).__name__} at once"
            )
        response: object = await returned
        if isinstance(response, Response):
            return response
        raise ConfigError(
            f"the middleware {name_of(middleware)} must return a Response, and returned {type(response).__name__}"
        )

    return link


class Transport(Protocol):
    """Makes one attempt: one request on the wire, no retry, no redirect.

    `send` returns a `Response` (status, headers, body) for every HTTP status, with the whole body decompressed and the
    connection back in the pool. It raises a `TransportError`, `ProtocolError` or `ResponseTooLargeError`, or lets
    `CancelledError` through. The secret to send is `request.call.secret`.
    """

    async def send(self, request: Request, /) -> Response: ...

    async def close(self) -> None: ...
