"""The fast path: one request over aiohttp's connector and response parser, without `ClientSession`'s work per request.

Three quarters of the CPU time of a small request in aiohttp go into building it: URL, headers, timers, a writer, a
response object. Here the head of the request is two prepared byte strings with the token between them. Connection pool,
DNS, TLS and the HTTP parser are still aiohttp's.

The fast path uses names that aiohttp does not document (`TCPConnector.connect`, `ResponseHandler.set_response_params` and
`.read`). `SUPPORTED` says whether the installed aiohttp has them as expected; if not, a test fails and requests go through
`ClientSession`. So do borrowed sessions, proxies, requests with headers of their own, and all requests while a mock such as
aioresponses replaces methods of `ClientSession`.
"""

from __future__ import annotations

import inspect
import logging
import time
from contextlib import suppress
from types import FunctionType
from typing import Any, Final

import aiohttp
import aiohttp.client
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.streams import StreamReader
from attrs import define, field
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ..limits.notices import log_fields

_PARAMETERS: Final = {"read_until_eof", "auto_decompress"}


def _is_supported() -> bool:
    try:
        known = inspect.signature(ResponseHandler.set_response_params).parameters
        connect = inspect.signature(aiohttp.TCPConnector.connect).parameters
        return set(known) >= _PARAMETERS and list(connect)[1:] == ["req", "traces", "timeout"]
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
    """

    request: aiohttp.ClientRequest = field(repr=False)
    before: bytes
    after: bytes = field(repr=False)

    @classmethod
    def make(cls, base: URL, path: str, headers: CIMultiDict[str], tls: Any, loop: Any) -> Template:
        request = aiohttp.ClientRequest(
            "GET", base, headers=headers, loop=loop, ssl=tls, response_class=aiohttp.ClientResponse
        )
        lines = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        return cls(request, f"GET {path}".encode("ascii"), f" HTTP/1.1\r\n{lines}\r\n".encode("ascii"))


class Protocol(ResponseHandler):
    """aiohttp's parser of a connection's answers.

    Attributes:
        idle_since: when its last answer was read to its end, by `time.monotonic()`.
    """

    idle_since = float("-inf")

    def close(self) -> None:
        """Aborts the connection. A TLS connection that is closed waits up to 30 s for the peer's close_notify and keeps
        reading meanwhile, so an abandoned exchange would continue on the wire.
        """
        self.abort()


class Exchange:
    """A connection with a request under way. End it with `finish` or `abort`."""

    __slots__ = ("connection", "content", "headers", "status")

    def __init__(
        self, connection: Connection, status: int, headers: CIMultiDictProxy[str], content: StreamReader
    ) -> None:
        self.connection = connection
        self.status = status
        self.headers = headers
        self.content = content

    def finish(self) -> None:
        """Returns the connection to the pool after the body was read to its end, unless the server closes it."""
        protocol = self.connection.protocol
        if isinstance(protocol, Protocol):
            protocol.idle_since = time.monotonic()
        self.connection.release()

    def abort(self) -> None:
        """Closes the connection, because the body was not read to its end."""
        self.connection.close()


async def exchange(
    connector: aiohttp.BaseConnector, template: Template, segment: bytes, timeout: aiohttp.ClientTimeout
) -> Exchange:
    """Sends a request and waits for the head of the answer.

    Args:
        segment: the token as a path segment.
        timeout: only its `connect` is used.

    Raises:
        aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError: as aiohttp raises them.
    """
    connection: Connection | None = None
    with suppress(TimeoutError):
        connection = await connector.connect(template.request, [], timeout)
    if connection is None:
        raise aiohttp.ConnectionTimeoutError
    protocol = connection.protocol
    if protocol is None or (wire := protocol.transport) is None:  # it broke before this task ran again
        connection.close()
        raise aiohttp.ServerDisconnectedError
    try:
        # A body without a length ends with the connection. We inflate ourselves, with a cap.
        protocol.set_response_params(read_until_eof=True, auto_decompress=False)
        wire.write(b"".join((template.before, segment, template.after)))
        message, content = await protocol.read()
        while 100 <= message.code < 200 and message.code != 101:
            message, content = await protocol.read()
    except BaseException:
        connection.close()
        raise
    return Exchange(connection, message.code, message.headers, content)
