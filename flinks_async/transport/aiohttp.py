"""`AiohttpTransport` makes one attempt with aiohttp: one request on the wire, no retry, no redirect.

It uses connections of its own (see `http1`) where possible, and aiohttp's `ClientSession` for borrowed sessions, proxies, and
while a mock such as aioresponses replaces methods of `ClientSession`. It reads and inflates the body under a cap, and
translates errors into those of `flinks_async.errors`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from attrs import define, field
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ..config import Timeouts
from ..endpoint import Endpoint, encode_token
from ..errors import (
    AttemptTimeoutError,
    CertificateError,
    ClientClosedError,
    ConfigError,
    ConnectError,
    ConnectTimeoutError,
    FlinksError,
    ProtocolError,
    ProxyError,
    ReadError,
    ResponseTooLargeError,
    ShortageError,
    StaleConnectionError,
    TransportError,
    os_reason,
    shortage,
)
from ..messages import Headers, Request, Response, ends_with_connection, may_continue, new_response
from ..runtime import cut, mark_retrieved
from ..secret import Secret, plain
from .http1 import Origin
from .inflate import Inflater
from .session import SessionManager, Wire, is_untouched, session_is_untouched, wire_of_attempt


class _ConnectionBroken(Exception):
    """Hides a connection error from aiohttp, which would send the request again by itself."""

    def __init__(self, error: aiohttp.ClientError) -> None:
        super().__init__()
        self.error = error


async def _one_request(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:  # an aiohttp client middleware
    """Keeps one attempt one request: aiohttp silently repeats a GET whose connection broke.

    It also notes the connection, because aiohttp forgets it when it closes it, and refuses one on which something has arrived
    since its last answer: aiohttp would take it for the answer to this request, which is for another token.
    """
    wire = wire_of_attempt.get()
    if wire is not None:
        send = request.send

        async def noted(conn: Connection) -> aiohttp.ClientResponse:
            wire.transport, wire.protocol = conn.transport, conn.protocol
            if wire.protocol is not None and wire.protocol.should_close:
                raise aiohttp.ServerDisconnectedError
            return await send(conn)

        request.send = noted  # type: ignore[method-assign]
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise  # nothing was sent, and aiohttp does not repeat these
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        broken = _ConnectionBroken(error)
    raise broken


@define(eq=False, repr=False)
class _Prepared:
    """The parts that all requests to one endpoint share.

    Attributes:
        origin: of a connection of our own; None for requests that go through an aiohttp session.
        before: the start of a request, up to its token.
        lines: the rest of its head.
    """

    endpoint: Endpoint
    origin: Origin | None
    before: bytes
    lines: bytes = field(repr=False)
    base: URL
    path: str
    headers: CIMultiDict[str] = field(repr=False)
    secret: Secret | None
    proxy: str | None
    proxy_headers: CIMultiDict[str] | None = field(repr=False)
    tls: ssl.SSLContext | bool


class AiohttpTransport:
    """Sends on a connection of the running event loop."""

    def __init__(self, sessions: SessionManager, timeouts: Timeouts, max_body: int) -> None:
        self._sessions = sessions
        self._connect_timeout = timeouts.connect
        # aiohttp times only `connect`, which costs nothing on open connections. The other timers are ours and cheaper.
        self._timeout = aiohttp.ClientTimeout(total=None, connect=timeouts.connect)
        self._max_body = max_body
        self._prepared: _Prepared | None = None  # for the latest endpoint and secret, which seldom change

    async def send(self, request: Request, /) -> Response:
        sessions = self._sessions
        prepared = self._prepared
        if prepared is None or prepared.endpoint is not request.endpoint or prepared.secret is not request.call.secret:
            prepared = self._prepared = await self._prepare(request)
        sessions.in_use += 1
        wire: Wire | None = None
        stopped: BaseException | None = None
        try:
            if prepared.origin is not None and session_is_untouched():
                return await self._send(prepared, prepared.origin, request)
            wire = Wire(fresh=request.call.fresh)
            return await self._send_by_session(prepared, request, wire)
        except asyncio.CancelledError as cancelled:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                stopped = cancelled
            else:  # not this call: the event loop's executor was shut down while it resolved the host name
                stopped = ConnectError(
                    f"no connection to {request.endpoint.host} (the event loop's executor was shut down)"
                )
        except FlinksError as error:
            stopped = error
        except Exception as error:
            stopped = self._translate(error, request.endpoint.host, wire)
        except BaseException as error:  # such as the SystemExit of a signal handler
            stopped = error
        finally:
            if stopped is not None and wire is not None:
                if wire.transport is not None:
                    wire.transport.abort()
                for opened in wire.sockets:
                    cut(opened)
            sessions.in_use -= 1
        assert stopped is not None
        # Raised here, without the frames and errors of aiohttp, because their variables hold the URL and the headers.
        stopped.__traceback__ = stopped.__context__ = stopped.__cause__ = None
        raise stopped

    async def _send(self, prepared: _Prepared, origin: Origin, request: Request) -> Response:
        """Sends on a connection of our own."""
        call, sessions = request.call, self._sessions
        pool = sessions.pools.get(call.local.loop) or await sessions.pool()
        connection = None if call.fresh else pool.take(origin)
        if connection is None:
            with call.local.timer.scope(self._connect_timeout):
                tls = prepared.tls if isinstance(prepared.tls, ssl.SSLContext) else None
                connection = await pool.connect(origin, request.endpoint.host, tls)
            if connection is None:
                raise self._not_connected(request.endpoint.host)
            sessions.created += 1
        else:
            sessions.reused += 1
        try:
            lines = prepared.lines
            if request.headers:
                lines = _lines(prepared.base, _with_extra(prepared.headers, request))
            segment = encode_token(request.token).reveal().encode("ascii")
            await connection.ask(b"".join((prepared.before, segment, lines)), self._max_body, call.headers_came)
            connection.check()
            status, headers = connection.status, connection.headers
            if connection.encoded:
                body = await self._inflated(status, headers, connection.read)
            else:
                chunks = connection.chunks
                body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except BaseException:
            connection.abort()  # the answer was not read to its end
            raise
        pool.keep(origin, connection)
        return new_response(status, headers, body)

    async def _inflated(
        self, status: int, headers: Headers | CIMultiDictProxy[str], read: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """The plain body, read up to an empty chunk."""
        chunk = await read()
        if not chunk:
            return b""
        # A list may be spread over several lines (RFC 9110, section 5.3).
        encoding = ", ".join(headers.getall("Content-Encoding", ()))
        inflater = Inflater(encoding, self._max_body, lenient=status >= 400)
        pieces: list[bytes] = []
        while chunk:
            for piece in inflater.steps(chunk):
                if piece:
                    pieces.append(piece)
                else:  # even a small body can take long to inflate: let timers and other tasks run
                    await asyncio.sleep(0)
            chunk = await read()
        inflater.finish()
        return b"".join(pieces)

    async def _send_by_session(self, prepared: _Prepared, request: Request, wire: Wire) -> Response:
        session = await self._sessions.session()
        token = wire_of_attempt.set(wire)
        try:
            response = await self._request(session, prepared, request, wire)
            if wire.transport is not None and (
                wire.transport.is_closing() or may_continue(response.status, response.headers)
            ):
                wire.transport.abort()  # see `HTTPConnection.abort`
            return response
        finally:
            self._sessions.reused += not wire.sockets
            with suppress(ValueError):  # a coroutine was closed from another context
                wire_of_attempt.reset(token)

    async def _request(
        self, session: aiohttp.ClientSession, prepared: _Prepared, request: Request, wire: Wire
    ) -> Response:
        host = request.endpoint.host
        # A test may have replaced either method.
        get = session.get if is_untouched(aiohttp.ClientSession.request) else partial(session.request, "GET")
        response = await get(
            prepared.base.with_path(prepared.path + encode_token(request.token).reveal(), encoded=True),
            headers=_with_extra(prepared.headers, request),
            allow_redirects=False,
            auto_decompress=False,
            raise_for_status=False,
            middlewares=(_one_request,),
            timeout=self._timeout,
            ssl=prepared.tls,
            proxy=prepared.proxy,
            proxy_headers=prepared.proxy_headers,
        )
        request.call.headers_came()
        status, headers = response.status, response.headers
        try:
            if status < 100 or not all(headers.getall("Transfer-Encoding", ())):
                raise ProtocolError(f"the answer of {host} is not valid HTTP")
            length = headers.get("Content-Length", "")
            if length.isdecimal() and int(length[:20]) > self._max_body and status not in (101, 204, 304):
                raise ResponseTooLargeError(f"the body is larger than Limits.max_body = {self._max_body} bytes")
            with _end_with_connection(response.content, response.connection, host):
                body = await self._inflated(status, headers, response.content.readany)
            problem = None if wire.protocol is None else wire.protocol.exception()
            if isinstance(problem, HttpProcessingError):  # after the last byte of the body
                raise _not_http(host)
            if isinstance(problem, aiohttp.ClientOSError) and ends_with_connection(headers):
                raise _cut_short(host)
        except BaseException:
            response.close()
            raise
        response.release()  # after a 101 it is still open, and aiohttp would warn with the URL
        return new_response(status, headers, body)

    async def _prepare(self, request: Request) -> _Prepared:
        endpoint, secret = request.endpoint, request.call.secret
        base = URL(endpoint.url, encoded=True)
        proxy = None if self._sessions.borrowed else self._sessions.proxy_for(endpoint)
        tls = True if self._sessions.borrowed or base.scheme == "http" else await self._sessions.tls()
        headers = CIMultiDict(endpoint.headers)
        proxy_headers: CIMultiDict[str] | None = None
        if secret is not None:
            headers.add(*endpoint.auth_header(secret))
        if proxy is not None and proxy.authorization is not None:
            # Plain HTTP has no CONNECT: the proxy reads the headers of the request itself.
            target = headers if base.scheme == "http" else (proxy_headers := CIMultiDict())
            target["Proxy-Authorization"] = proxy.authorization.reveal()
        path = base.raw_path.rstrip("/") + "/partneraccess/"
        origin = None
        if not self._sessions.borrowed and proxy is None:
            assert base.raw_host is not None
            assert base.port is not None
            origin = base.raw_host, base.port, base.scheme == "https"
        return _Prepared(
            endpoint,
            origin,
            f"GET {path}".encode("ascii"),
            _lines(base, headers),
            base,
            path,
            headers,
            secret,
            None if proxy is None else proxy.url,
            proxy_headers,
            tls,
        )

    def _not_connected(self, host: str) -> ConnectTimeoutError:
        return ConnectTimeoutError(f"no connection to {host} within {self._connect_timeout:g} s")

    def _translate(self, error: Exception, host: str, wire: Wire | None) -> FlinksError:
        """Our error for another one. Texts of aiohttp's are not used, because they contain URLs and text of the server."""
        if isinstance(error, _ConnectionBroken):
            return self._broken(error.error, host, wire)
        if cause := shortage(error):
            return ShortageError(f"no connection to {host}, because of a shortage: {cause}")
        match error:
            case aiohttp.ClientProxyConnectionError():
                return ProxyError(f"the proxy on the way to {host} cannot be reached{os_reason(error)}")
            case aiohttp.ClientHttpProxyError():
                return ProxyError(f"the proxy on the way to {host} answered {error.status}", status=error.status)
            case (
                aiohttp.ClientConnectorCertificateError()
                | aiohttp.ServerFingerprintMismatch()
                | ssl.SSLCertVerificationError()
            ):
                return CertificateError(f"the certificate of {host} is not valid{_verify_reason(error)}")
            case aiohttp.ClientSSLError() | ssl.SSLError():
                return ConnectError(f"no TLS connection to {host}{os_reason(error)}")
            case aiohttp.ClientConnectorDNSError() | socket.gaierror():
                return ConnectError(f"the host name {host} cannot be resolved")
            case aiohttp.ClientConnectorError():
                return ConnectError(f"no connection to {host}{os_reason(error)}")
            case aiohttp.ConnectionTimeoutError():
                return self._not_connected(host)
            case TimeoutError():
                return AttemptTimeoutError(f"{host} did not answer in time")
            case aiohttp.ClientPayloadError():
                # aiohttp raises this for a lost connection and for a body that is not HTTP; the cause tells them apart.
                why = error.__cause__
                if isinstance(why, HttpProcessingError) and "Not enough data" not in str(why):
                    return _not_http(host)
                return _cut_short(host)
            case aiohttp.ClientResponseError() | HttpProcessingError():
                # The status 400 in these errors is aiohttp's own, not the server's.
                return ProtocolError(f"the answer of {host} is not valid HTTP")
            case aiohttp.ClientOSError() | aiohttp.ServerDisconnectedError():
                return self._broken(error, host, wire)
            case OSError():
                return ConnectError(f"no connection to {host}{os_reason(error)}")
            case RuntimeError() | aiohttp.ClientConnectionError() if "is closed" in str(error):
                return ClientClosedError("the session was closed while the request was under way")
            case aiohttp.InvalidURL():
                return ConfigError("base_url is not a URL that aiohttp accepts")
        return TransportError(f"the request to {host} failed ({type(error).__name__})")

    def _broken(self, error: aiohttp.ClientError, host: str, wire: Wire | None) -> FlinksError:
        silent = not isinstance(error, aiohttp.ServerDisconnectedError) or error.message == "Server disconnected"
        if wire is not None and not wire.sockets and silent and not self._sessions.borrowed:
            return StaleConnectionError(f"a kept-alive connection to {host} was closed by the server")
        return ReadError(f"the connection to {host} broke before an answer arrived{os_reason(error)}")

    async def close(self) -> None:
        await self._sessions.close()


def _not_http(host: str) -> ProtocolError:
    return ProtocolError(f"the body from {host} is not valid HTTP")


def _cut_short(host: str) -> ReadError:
    return ReadError(f"the connection to {host} broke before the body was complete")


@contextmanager
def _end_with_connection(content: aiohttp.StreamReader, connection: Connection | None, host: str) -> Iterator[None]:
    """Ends the reading of a body when its connection ends.

    If a later packet of a body is not valid HTTP, aiohttp closes the connection but does not tell its reader, which would
    wait without end.
    """
    protocol = None if connection is None else connection.protocol
    if protocol is None:  # the body has arrived
        yield
        return
    closed = protocol.closed

    def end(_: object = None) -> None:
        if not content.is_eof() and content.exception() is None:
            content.set_exception(_not_http(host))

    if closed is None:
        end()
        yield
        return
    closed.remove_done_callback(mark_retrieved)
    closed.add_done_callback(mark_retrieved)
    closed.add_done_callback(end)
    try:
        yield
    finally:
        closed.remove_done_callback(end)


def _with_extra(headers: CIMultiDict[str], request: Request) -> CIMultiDict[str]:
    if not request.headers:
        return headers
    merged = headers.copy()
    merged.update([(plain(name), plain(value)) for name, value in request.headers.items()])
    return merged


def _lines(base: URL, headers: CIMultiDict[str]) -> bytes:
    """The head of a request after its token."""
    text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if text.count("\r") + text.count("\n") != 2 * len(headers) or "\0" in text:
        raise ConfigError("a middleware has added a header with a line break or NUL")
    host = "" if "Host" in headers else f"Host: {base.host_port_subcomponent}\r\n"
    return f" HTTP/1.1\r\n{host}{text}\r\n".encode()


def _verify_reason(error: BaseException) -> str:
    text = getattr(getattr(error, "certificate_error", error), "verify_message", None)
    return f" ({text})" if isinstance(text, str) else ""
