"""The simulator: an HTTP server on loopback that answers as the specification says, and fails on request.

async with FlinksServer(faults=Faults(share=0.03)) as server:
    async with FlinksClient(auth_secret=server.auth_secret, base_url=server.base_url) as flinks:
        answer = await flinks.partner_access(token)
    assert answer.to_dict() == server.expected(token)
    assert server.stats.per_token[token] == 1
"""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import time
import uuid
from collections import Counter, deque
from collections.abc import Container, Iterable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from aiohttp import web
from attrs import asdict, define, field, fields, frozen

from ..config import AUTH_SCHEMES, AuthScheme
from .data import SHAPES, SIZES, Shape, Size, expected_answer, expected_body, uniform
from .fault_injection import accepts, end, has_secret, inject, json_response, reply
from .faults import KINDS, Fault, Latency, Plan, Throttle, fault
from .in_memory import UNKNOWN_TOKEN

_KEPT = 10_000


@frozen
class RecordedRequest:
    """One request as sent. It contains secrets: for tests only."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]

    def header(self, name: str) -> str | None:
        """The first header with this name; case does not matter."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@define
class ServerStats:
    """Counts since the server started, or since `reset()`.

    Attributes:
        requests: complete request heads, except those for `/_sim/`.
        per_token: requests with an accepted secret, by token.
        statuses: replies by status.
        faults: faults by name.
        answered: normal answers.
        connections: TCP connections opened.
        in_flight: requests being handled now.
        max_in_flight: maximum of `in_flight`.
        missing_secret: requests without any authentication header.
        refused_secret: requests with a wrong secret or header form.
        throttled: requests refused by the rate limit.
        seconds: from the heads of all requests to their replies, added up.
        paths: the last 10,000 request targets, as sent.
    """

    requests: int = 0
    per_token: Counter[str] = field(factory=Counter, repr=lambda kept: str(len(kept)))
    statuses: Counter[int] = field(factory=Counter)
    faults: Counter[str] = field(factory=Counter)
    answered: int = 0
    connections: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    missing_secret: int = 0
    refused_secret: int = 0
    throttled: int = 0
    seconds: float = 0.0
    paths: deque[str] = field(factory=lambda: deque(maxlen=_KEPT), repr=lambda kept: str(len(kept)))

    def reset(self) -> None:
        """Resets all counts, except of requests being handled. The numbers of a token's requests start at 1 again."""
        fresh = ServerStats(in_flight=self.in_flight, max_in_flight=self.in_flight)
        for attribute in fields(ServerStats):
            setattr(self, attribute.name, getattr(fresh, attribute.name))

    def as_dict(self) -> dict[str, Any]:
        """The counts without tokens and paths, for `/_sim/stats`."""
        counts = asdict(self, recurse=False, filter=lambda count, _: count.name not in ("per_token", "paths"))
        statuses = {str(status): count for status, count in sorted(self.statuses.items())}
        return counts | {
            "tokens": len(self.per_token),
            "statuses": statuses,
            "faults": dict(sorted(self.faults.items())),
        }


_NOT_FOUND: Final = Fault.envelope(404, "NOT_FOUND")

_NOT_ALLOWED: Final = Fault.envelope(405, "METHOD_NOT_ALLOWED", headers={"Allow": "GET"})

_REFUSED: Final = KINDS["unauthorized"]


class _Server(web.Server):
    """aiohttp's server with a count of its connections."""

    stats: ServerStats

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        self.stats.connections += 1
        super().connection_made(handler, transport)


def _secret_or_new(secret: str | None) -> str:
    return str(uuid.uuid4()) if secret is None else secret


@define(kw_only=True, eq=False, repr=False, slots=False)
class FlinksServer:
    """The simulator. Use it with `async with`, or call `start()` and `stop()`.

    Args:
        auth_secret: the AuthSecret to accept; default a new GUID.
        auth_scheme: the one form of the authentication header to accept; default all three.
        tokens: the known access tokens; default: every token is known.
        unknown_token: the answer to other tokens; default 401 SESSION_NONEXISTENT.
        size: of the answers: `small`, `medium` (default) or `large`; see `expected_body`.
        shape: of `GetAccountsDetail`: `list` (default), `object` or `null`.
        seed: of the data and the latency.
        faults: which requests fail, such as `Faults(share=0.03)`; default none.
        latency: wait before each reply, such as `Latency.lognormal(0.2)`; default none.
        rate_limit: such as `RateLimit(rate=100)`; default none.
        compress: gzip answers for clients that accept it.
        record: number of requests to keep in `requests`, with their headers; default 0.
        path_prefix: path before `/partneraccess`, such as `/flinks`.
        keepalive: seconds until an idle connection is closed.
        admin: serve the counts as JSON at `GET /_sim/stats`, which needs the secret.
        host, port: address to listen on; port 0 (default) takes a free port.
        ssl_context: for https.

    Attributes:
        auth_secret: may be changed while the server runs.
        base_url: URL for the client, known after the start.
        stats, requests: counts of what was on the wire, and the last `record` requests.
    """

    auth_secret: str = field(default=None, converter=_secret_or_new)
    auth_scheme: AuthScheme | None = None
    tokens: Container[str] | None = None
    unknown_token: Fault = field(default=UNKNOWN_TOKEN, converter=fault)
    size: Size = "medium"
    shape: Shape = "list"
    seed: int = 0
    faults: Plan | None = None
    latency: Latency | None = None
    rate_limit: Throttle | None = None
    compress: bool = False
    _record: int = field(default=0, alias="record")
    _path_prefix: str = field(default="", alias="path_prefix")
    _keepalive: float = field(default=75.0, alias="keepalive")
    _admin: bool = field(default=False, alias="admin")
    _host: str = field(default="127.0.0.1", alias="host")
    _port: int = field(default=0, alias="port")
    _ssl_context: ssl.SSLContext | None = field(default=None, alias="ssl_context")
    stats: ServerStats = field(factory=ServerStats, init=False)
    requests: deque[RecordedRequest] = field(init=False)
    _runner: web.ServerRunner | None = field(default=None, init=False)
    _scripts: dict[str, deque[Fault | None]] = field(factory=dict, init=False)
    _script_all: deque[Fault | None] = field(factory=deque, init=False)
    _answers: dict[str, bytes] = field(factory=dict, init=False)
    _released: asyncio.Event = field(factory=asyncio.Event, init=False)
    _arrived: asyncio.Event = field(factory=asyncio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        if self.size not in SIZES or self.shape not in SHAPES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, shape one of {', '.join(SHAPES)}")
        if self.auth_scheme not in (None, *AUTH_SCHEMES):
            raise ValueError(f"auth_scheme must be one of {', '.join(AUTH_SCHEMES)}")
        self._path_prefix = self._path_prefix.rstrip("/")
        self.requests = deque(maxlen=self._record)

    async def __aenter__(self) -> FlinksServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts to listen; does nothing if it already listens."""
        if self._runner is not None:
            return
        server = _Server(self._serve, handler_cancellation=True, access_log=None, keepalive_timeout=self._keepalive)
        server.stats = self.stats
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, ssl_context=self._ssl_context, backlog=1024).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Closes all connections. The server can be started again, on the same port."""
        runner, self._runner = self._runner, None
        self.release()
        if runner is not None:
            await runner.cleanup()

    @property
    def base_url(self) -> str:
        if self._port == 0:
            raise RuntimeError("the server has no address before start()")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._ssl_context else 'http'}://{host}:{self._port}{self._path_prefix}"

    def expected(self, token: str) -> dict[str, Any]:
        """The answer that this server generates for a token; amounts are `Decimal`."""
        return expected_answer(token, size=self.size, shape=self.shape, seed=self.seed)

    def script(self, token: str, steps: Iterable[str | Fault | Mapping[str, Any] | None]) -> None:
        """Sets what the next requests for a token get, in order.

        Each item is a fault or its name in `KINDS`, a dictionary that is sent as the answer, or None for the normal
        answer. Then come the faults of `script_all`, then those of `faults=`, which count every request.
        """
        self._scripts.setdefault(token, deque()).extend(map(_step, steps))

    def script_all(self, steps: Iterable[str | Fault | Mapping[str, Any] | None]) -> None:
        """Sets what the next requests get, for any token (see `script`)."""
        self._script_all.extend(map(_step, steps))

    def set_answer(self, token: str, answer: bytes | dict[str, Any]) -> None:
        """From now on, answers a token with this body instead of the generated one."""
        self._answers[token] = answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def release(self) -> None:
        """Gives every hanging request its normal answer."""
        self._released.set()
        self._released = asyncio.Event()

    async def received(self, count: int) -> None:
        """Waits until `count` requests have arrived since the start (or since `stats.reset()`)."""
        while self.stats.requests < count:
            await self._arrived.wait()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path
        if self._admin and path.startswith("/_sim/"):
            return self._serve_admin(request)
        stats = self.stats
        stats.requests += 1
        stats.paths.append(path)
        stats.in_flight += 1
        stats.max_in_flight = max(stats.max_in_flight, stats.in_flight)
        began = time.monotonic()
        if self.requests.maxlen:
            self.requests.append(RecordedRequest(request.method, path, tuple(request.headers.items())))
        self._arrived.set()
        self._arrived = asyncio.Event()
        try:
            response = await self._answer(request, path.partition("?")[0])
            if response is None:
                return web.Response()  # not sent: the connection is closed
            stats.statuses[response.status] += 1
            return response
        finally:
            stats.in_flight -= 1
            stats.seconds += time.monotonic() - began

    async def _answer(self, request: web.BaseRequest, path: str) -> web.Response | None:
        before, found, segment = path.partition(f"{self._path_prefix}/partneraccess/")
        if before or not found or not segment or "/" in segment:
            return reply(_NOT_FOUND)
        if request.method != "GET":
            return reply(_NOT_ALLOWED)
        if not self._accepts(request):
            return reply(_REFUSED)
        token = unquote(segment, errors="surrogateescape")
        self.stats.per_token[token] += 1
        number = self.stats.per_token[token]
        if self.latency is not None:
            await asyncio.sleep(self.latency.seconds(uniform(self.seed, "latency", token, number)))
        if self.rate_limit is not None and (refusal := self.rate_limit.take(time.monotonic())) is not None:
            self.stats.throttled += 1
            return reply(refusal)
        if self.tokens is not None and token not in self.tokens:
            return reply(self.unknown_token)
        chosen = self._choose(token, number)
        if chosen is not None:
            self.stats.faults[chosen.name] += 1
            if chosen.delay:
                await asyncio.sleep(chosen.delay)
            if chosen.mode == "hang":
                if not await self._hang(chosen.hang_for):
                    end(request)
                    return None
            elif chosen.mode != "answer":
                return await inject(request, chosen, self._body(token))
        self.stats.answered += 1
        return self._normal(request, token)

    def _choose(self, token: str, number: int) -> Fault | None:
        script = self._scripts.get(token)
        if script:
            return script.popleft()
        if self._script_all:
            return self._script_all.popleft()
        return None if self.faults is None else self.faults.for_request(token, number)

    def _body(self, token: str) -> bytes:
        own = self._answers.get(token)
        return own if own is not None else expected_body(token, size=self.size, shape=self.shape, seed=self.seed)

    def _normal(self, request: web.BaseRequest, token: str) -> web.Response:
        body = self._body(token)
        if self.compress and "gzip" in request.headers.get("Accept-Encoding", ""):
            return json_response(gzip.compress(body, 1, mtime=0), headers={"Content-Encoding": "gzip"})
        return json_response(body)

    async def _hang(self, seconds: float | None) -> bool:
        released = self._released
        try:
            async with asyncio.timeout(seconds):
                await released.wait()
        except TimeoutError:
            return False
        return self._runner is not None

    def _accepts(self, request: web.BaseRequest) -> bool:
        if accepts(request.headers, self.auth_secret, self.auth_scheme):
            return True
        if has_secret(request.headers):
            self.stats.refused_secret += 1
        else:
            self.stats.missing_secret += 1
        return False

    def _serve_admin(self, request: web.BaseRequest) -> web.Response:
        if request.raw_path != "/_sim/stats" or request.headers.get("flinks-auth-key") != self.auth_secret:
            return reply(_NOT_FOUND)
        return json_response(json.dumps(self.stats.as_dict()).encode())


def _step(step: str | Fault | Mapping[str, Any] | None) -> Fault | None:
    if isinstance(step, Mapping):
        return Fault.reply(200, dict(step), name="answer", clears="none")
    return None if step is None else fault(step)
