"""The fast path: one request over aiohttp's connector and response parser, without `ClientSession`'s work per request.

Three quarters of the CPU time of a small request in aiohttp go into building it: URL, headers, timers, a writer, a
response object. Here the head of the request is two prepared byte strings with the token between them, idle connections
are in a list, and a connection has one parser for all its answers. Connecting, DNS, TLS and the parser are still aiohttp's.

The fast path uses names that aiohttp does not document (`TCPConnector.connect` and `._factory`,
`ResponseHandler.set_response_params`, `.read` and `.should_close`). `SUPPORTED` says whether the installed aiohttp has them as expected; if not, a test fails and requests go through
`ClientSession`. So do borrowed sessions, proxies, requests with headers of their own, and all requests while a mock such as
aioresponses replaces methods of `ClientSession`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import select
import time
import weakref
from collections import deque
from collections.abc import Hashable
from contextvars import ContextVar
from functools import partial
from math import inf
from types import FunctionType
from typing import Any, Final

import aiohttp
import aiohttp.client
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from attrs import define, field
from multidict import CIMultiDict
from yarl import URL

from ..limits.notices import log_fields

_PARAMETERS: Final = {"read_until_eof", "auto_decompress"}


def _is_supported() -> bool:
    try:
        known = inspect.signature(ResponseHandler.set_response_params).parameters
        connect = inspect.signature(aiohttp.TCPConnector.connect).parameters
        has_key = hasattr(aiohttp.ClientRequest, "connection_key")
        return has_key and set(known) >= _PARAMETERS and list(connect)[1:] == ["req", "traces", "timeout"]
    except (AttributeError, ValueError, TypeError):
        return False


SUPPORTED: Final = _is_supported()

_AIOHTTP: Final = vars(aiohttp.client)


def is_untouched(method: object) -> bool:
    """Whether a method of `ClientSession` is aiohttp's own.

    A mock may copy its name and module, and may be in place when this module is imported, so neither tells.
    """
    return type(method) is FunctionType and method.__globals__ is _AIOHTTP


def session_is_untouched() -> bool:
    """Whether requests of a `ClientSession` would be sent by aiohttp's own functions."""
    cls = aiohttp.ClientSession
    return is_untouched(cls._request) and is_untouched(cls.get) and is_untouched(cls.request)


_log = logging.getLogger("flinks_async")

_reported: set[str] = set()


def warn_of_onlookers(session: aiohttp.ClientSession) -> None:
    """Logs once which other packages see the requests of a session: its trace configs, and wrappers of its methods."""
    watching = {
        getattr(handler, "__module__", type(handler).__module__)
        for trace in session.trace_configs
        for name in dir(trace)
        if name.startswith("on_")
        for handler in getattr(trace, name)
    }
    for method in (aiohttp.ClientSession._request, aiohttp.ClientSession.get, aiohttp.ClientSession.request):
        if hasattr(method, "__wrapped__"):  # it passes requests on, unlike a mock
            wrapper = getattr(method, "_self_wrapper", method)  # of wrapt
            watching.add(getattr(wrapper, "__globals__", {}).get("__name__", type(method).__module__))
    if new := sorted(watching - _reported):
        _reported.update(new)
        _log.warning(
            "the aiohttp session is watched by %s, which sees access tokens (in URLs), the AuthSecret (in a header) and "
            "answers, and may add headers to requests; make sure that it records and sends none of them",
            ", ".join(new),
            extra=log_fields("SessionWatched", watchers=new),
        )


@define(eq=False)
class Template:
    """A request without its token.

    Attributes:
        request: for the connector, which reads host, TLS and proxy from it.
        before, after: the bytes around the token.
        key: requests with the same one may share a connection.
    """

    request: aiohttp.ClientRequest = field(repr=False)
    before: bytes
    after: bytes = field(repr=False)
    key: Hashable = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.key = self.request.connection_key

    @classmethod
    def make(cls, base: URL, path: str, headers: CIMultiDict[str], tls: Any, loop: Any) -> Template:
        request = aiohttp.ClientRequest(
            "GET", base, headers=headers, loop=loop, ssl=tls, response_class=aiohttp.ClientResponse
        )
        lines = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        return cls(request, f"GET {path}".encode("ascii"), f" HTTP/1.1\r\n{lines}\r\n".encode("ascii"))


class Protocol(ResponseHandler):
    """aiohttp's parser of a connection's answers. The fast path makes one parser for all answers of a connection.

    Attributes:
        idle_since: when its last answer was read to its end, by `time.monotonic()`.
    """

    idle_since = float("-inf")
    _parser_is_ours = False
    _reads = True

    def expect_answer(self) -> None:
        if not self._parser_is_ours:
            # A body without a length ends with the connection. We inflate ourselves, with a cap.
            self.set_response_params(read_until_eof=True, auto_decompress=False)
            self._parser_is_ours = True

    def set_response_params(self, **options: Any) -> None:
        self._parser_is_ours = False
        super().set_response_params(**options)

    def pause_reading(self) -> None:
        self._reads = False
        super().pause_reading()

    def resume_reading(self, *arguments: Any, **options: Any) -> None:
        # Each answer that is read asks for it. An attempt to resume what was not paused costs a tenth of a small request.
        if not self._reads:
            self._reads = True
            super().resume_reading(*arguments, **options)

    def close(self) -> None:
        """Aborts the connection. A TLS connection that is closed waits up to 30 s for the peer's close_notify and keeps
        reading meanwhile, so an abandoned exchange would continue on the wire.
        """
        self.abort()


@define(eq=False)
class Wire:
    """The use of sockets by one attempt.

    Attributes:
        sockets: sockets that the connector opened for it; 0 if it reused a kept-alive connection.
        transport: the connection of a borrowed session, to be aborted if the attempt fails.
        fresh: the attempt must not use a kept-alive connection.
    """

    sockets: int = 0
    transport: asyncio.Transport | None = None
    fresh: bool = False


# A connection that was used within the last millisecond is not polled again.
_POLL_AFTER: Final = 0.001

wire_of_attempt: ContextVar[Wire | None] = ContextVar("flinks_async_wire", default=None)


class Connector(aiohttp.TCPConnector):
    """aiohttp's connector, with a list of idle connections of its own for the fast path, which is much cheaper to ask.

    It drops kept-alive connections that received unrequested data, or that the server has closed. aiohttp would take such
    data for the answer to the next request, which is for another token. The data may still be in the operating system's
    buffer if the event loop was busy, so the socket is polled too.
    """

    def __init__(self, keepalive: float, **options: Any) -> None:
        super().__init__(keepalive_timeout=keepalive, **options)
        self._running = asyncio.get_running_loop()
        self._factory: Any = partial(Protocol, loop=self._running)
        self._keepalive = keepalive
        self._idle: dict[Hashable, deque[Connection]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        wire = wire_of_attempt.get()
        passed_over: list[Connection] = []
        try:
            while True:
                connection = await super().connect(req, traces, timeout)
                if wire is None or wire.sockets > 0:
                    return connection
                if not _is_usable(connection, time.monotonic()):
                    connection.close()
                elif wire.fresh:
                    passed_over.append(connection)
                else:
                    return connection
        finally:
            for connection in passed_over:
                connection.release()

    def take(self, key: Hashable) -> Connection | None:
        """The idle connection that was used last, or None."""
        idle = self._idle.get(key)
        if idle:
            now = time.monotonic()
            while idle:
                connection = idle.pop()
                if _is_usable(connection, now, self._keepalive):
                    return connection
                connection.close()
        return None

    def keep(self, key: Hashable, connection: Connection) -> None:
        """Takes a connection back after its answer was read to its end; closes it if the server will close it."""
        protocol = connection.protocol
        if not isinstance(protocol, Protocol) or protocol.should_close or self.closed:
            connection.release()
            return
        protocol.idle_since = time.monotonic()
        idle = self._idle.get(key)
        if idle is None:
            idle = self._idle[key] = deque()
        idle.append(connection)
        if self._sweep is None:
            self._sweep_later()

    @property
    def idle(self) -> list[Connection]:
        """The idle connections, those that were used last at the end."""
        return [connection for idle in self._idle.values() for connection in idle]

    def _sweep_later(self) -> None:
        connector: weakref.ref[Connector] = weakref.ref(self)  # the timer must not keep a connector that nobody closed
        self._sweep = self._running.call_later(self._keepalive, _close_idle_of, connector)

    def _close_idle(self) -> None:
        """Closes the connections that were idle for too long."""
        self._sweep = None
        now = time.monotonic()
        for key, idle in tuple(self._idle.items()):
            while idle and not _is_usable(idle[0], now, self._keepalive):
                idle.popleft().close()
            if not idle:
                del self._idle[key]
        if self._idle:
            self._sweep_later()

    def release_idle(self) -> None:
        """Gives the idle connections to aiohttp, for requests by `ClientSession` and when it closes."""
        idle, self._idle = self.idle, {}
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in idle:
            connection.release()


def _close_idle_of(connector: weakref.ref[Connector]) -> None:
    if (alive := connector()) is not None:
        alive._close_idle()


def _is_usable(connection: Connection, now: float, keepalive: float = inf) -> bool:
    protocol = connection.protocol
    if protocol is None or protocol.transport is None or protocol.transport.is_closing() or protocol.should_close:
        return False
    idle = now - protocol.idle_since if isinstance(protocol, Protocol) else inf
    # A poll is a system call and costs a twentieth of a small request.
    return idle <= _POLL_AFTER or (idle <= keepalive and not _is_readable(protocol.transport))


def _is_readable(transport: asyncio.BaseTransport | None) -> bool:
    """Whether the operating system has data, or the end of the connection, that the event loop has not read yet."""
    connected = None if transport is None else transport.get_extra_info("socket")
    if connected is None:
        return False
    if not hasattr(select, "poll"):
        return bool(select.select([connected.fileno()], [], [], 0)[0])
    poll = select.poll()  # unlike select(), it accepts any file descriptor
    poll.register(connected.fileno(), select.POLLIN)
    return bool(poll.poll(0))
