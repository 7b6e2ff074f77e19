"""The seam to the wire: one method that makes one attempt, and its aiohttp implementation."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

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
    StaleConnectionError,
    TransportError,
)
from ..messages import Request, Response
from ..secret import Secret, plain
from .fast_path import SUPPORTED, Template, exchange, session_is_untouched
from .inflate import Inflater
from .session import SessionManager, Wire, wire_of_attempt


class _Broken(Exception):
    """A connection error that aiohttp must not see: it would send the request again by itself."""

    def __init__(self, error: aiohttp.ClientError) -> None:
        super().__init__()
        self.error = error


async def _one_request(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:  # an aiohttp client middleware
    """Keeps one attempt one request: aiohttp repeats a GET whose connection broke, out of sight."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise  # no connection, so nothing was sent; aiohttp does not repeat these
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        broken = _Broken(error)
    raise broken


@define(eq=False)
class _Prepared:
    """What requests to one endpoint have in common."""

    endpoint: Endpoint
    template: Template | None
    base: URL
    path: str
    headers: CIMultiDict[str] = field(repr=False)
    secret: Secret | None
    proxy: str | None
    proxy_headers: CIMultiDict[str] | None = field(repr=False)
    tls: ssl.SSLContext | bool


class AiohttpTransport:
    """Sends through the aiohttp session of the running loop."""

    def __init__(self, sessions: SessionManager, timeouts: Timeouts, max_body: int) -> None:
        self._sessions = sessions
        # Only `connect` is aiohttp's, and only new connections pay for it; the rest has cheaper timers of ours.
        self._timeout = aiohttp.ClientTimeout(total=None, connect=timeouts.connect)
        self._max_body = max_body
        self._prepared: _Prepared | None = None  # a client has one endpoint, and seldom a new secret

    async def send(self, request: Request, /) -> Response:
        sessions, fresh = self._sessions, request.call.fresh and not self._sessions.borrowed
        prepared = self._prepared
        if prepared is None or prepared.endpoint is not request.endpoint or prepared.secret is not request.call.secret:
            prepared = self._prepared = await self._prepare(request)
        session = sessions.current(fresh=fresh) or await sessions.open(fresh=fresh)
        wire = Wire()
        token = wire_of_attempt.set(wire)
        sessions.in_use += 1
        stopped: BaseException
        try:
            template = prepared.template
            if template is not None and not fresh and not request.headers and session_is_untouched():
                assert session.connector is not None
                answer = await exchange(
                    session.connector, template, encode_token(request.token).reveal().encode("ascii"), self._timeout
                )
                request.call.headers_came()
                try:
                    body = await self._read(answer.status, answer.headers, answer.content, answer.connection)
                except BaseException:
                    answer.abort()
                    raise
                answer.finish()
                return Response(answer.status, answer.headers, body)
            return await self._through_session(session, prepared, request)
        except asyncio.CancelledError as cancelled:
            stopped = cancelled
        except FlinksError as error:
            stopped = error
        except Exception as error:
            stopped = self._translate(error, request.endpoint.host, wire)
        finally:
            sessions.in_use -= 1
            sessions.reused += wire.sockets == 0
            wire_of_attempt.reset(token)
        # Raised from here, without the frames and errors of aiohttp, whose variables hold the URL and the headers.
        stopped.__traceback__ = stopped.__context__ = stopped.__cause__ = None
        raise stopped

    async def _through_session(self, session: aiohttp.ClientSession, prepared: _Prepared, request: Request) -> Response:
        # A frame of its own, which `send` drops: aiohttp's response shows its URL.
        response = await session.get(
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
        try:
            body = await self._read(response.status, response.headers, response.content, response.connection)
        except BaseException:
            response.close()
            raise
        response.release()  # after 101 it is still open, and aiohttp's warning about that shows the URL
        return Response(response.status, response.headers, body)

    async def _read(
        self, status: int, headers: CIMultiDictProxy[str], content: aiohttp.StreamReader, connection: Connection | None
    ) -> bytes:
        limit = self._max_body
        encoded, size = "Content-Encoding" in headers, content.total_bytes
        if content.is_eof() and content.exception() is None and size <= limit and not (encoded and size):
            return content.read_nowait()  # came with the head, whole: the usual case of a small answer
        length = headers.get("Content-Length", "")
        if length.isdecimal() and int(length[:20]) > limit:
            raise ResponseTooLargeError(f"the body has {length} bytes, more than max_body = {limit}")
        # A list may be spread over several lines (RFC 9110, section 5.3).
        encoding = ", ".join(headers.getall("Content-Encoding")) if encoded else ""
        inflater = Inflater(encoding, limit, lenient=status >= 400)
        read = content.readany
        chunks: list[bytes] = []
        with _ended_with(content, connection):
            while chunk := await read():
                for piece in inflater.steps(chunk):
                    if piece:
                        chunks.append(piece)
                    else:  # a small body can be much work: timeouts and other tasks get their turns
                        await asyncio.sleep(0)
        chunks.append(inflater.finish())
        return b"".join(chunks)

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
            # Plain HTTP has no CONNECT: there the proxy reads the request's own headers.
            target = headers if base.scheme == "http" else (proxy_headers := CIMultiDict())
            target["Proxy-Authorization"] = proxy.authorization.reveal()
        path = base.raw_path.rstrip("/") + "/partneraccess/"
        template = None
        if SUPPORTED and not self._sessions.borrowed and proxy is None:
            template = Template.make(base, path, headers, tls, asyncio.get_running_loop())
        return _Prepared(
            endpoint,
            template,
            base,
            path,
            headers,
            secret,
            None if proxy is None else proxy.url,
            proxy_headers,
            tls,
        )

    def _translate(self, error: Exception, host: str, wire: Wire) -> FlinksError:
        """aiohttp's error as ours. Their texts name URLs and repeat what servers sent: none is taken over."""
        if isinstance(error, _Broken):
            return self._broken(error.error, host, wire)
        match error:
            case aiohttp.ClientProxyConnectionError():
                return ProxyError(f"the proxy on the way to {host} cannot be reached{_reason(error)}")
            case aiohttp.ClientHttpProxyError():
                return ProxyError(f"the proxy on the way to {host} answered {error.status}", status=error.status)
            case aiohttp.ClientConnectorCertificateError() | aiohttp.ServerFingerprintMismatch():
                return CertificateError(f"the certificate of {host} is not valid{_verify_reason(error)}")
            case aiohttp.ClientSSLError():
                return ConnectError(f"no TLS connection to {host}{_reason(error)}")
            case aiohttp.ClientConnectorDNSError():
                return ConnectError(f"the host {host} is not known, or cannot be looked up at the moment")
            case aiohttp.ClientConnectorError():
                return ConnectError(f"no connection to {host}{_reason(error)}")
            case aiohttp.ConnectionTimeoutError():
                return ConnectTimeoutError(f"no connection to {host} within {self._timeout.connect:g} s")
            case TimeoutError():
                return AttemptTimeoutError(f"{host} did not answer in time")
            case aiohttp.ClientPayloadError():
                # The same class for a connection that ended and for a body that is not HTTP; the cause tells.
                cause = error.__cause__
                if isinstance(cause, HttpProcessingError) and "Not enough data" not in str(cause):
                    return ProtocolError(f"the body from {host} is not valid HTTP")
                return ReadError(f"the connection to {host} broke before the body was whole")
            case aiohttp.ClientResponseError() | HttpProcessingError():
                # aiohttp says 400 here, which is its own and not the server's.
                return ProtocolError(f"the answer of {host} is not valid HTTP")
            case aiohttp.ClientOSError() | aiohttp.ServerDisconnectedError():
                return self._broken(error, host, wire)
            case OSError():
                return ConnectError(f"no connection to {host}{_reason(error)}")
            case RuntimeError() | aiohttp.ClientConnectionError() if "is closed" in str(error):
                return ClientClosedError("the session was closed while the request was under way")
            case aiohttp.InvalidURL():
                return ConfigError("base_url is not a URL that aiohttp accepts")
        return TransportError(f"the request to {host} failed ({type(error).__name__})")

    def _broken(self, error: aiohttp.ClientError, host: str, wire: Wire) -> FlinksError:
        silent = not isinstance(error, aiohttp.ServerDisconnectedError) or error.message == "Server disconnected"
        if wire.sockets == 0 and silent and not self._sessions.borrowed:
            return StaleConnectionError(f"a kept-alive connection to {host} was closed by the other side")
        return ReadError(f"the connection to {host} broke before an answer came{_reason(error)}")

    async def close(self) -> None:
        await self._sessions.close()


@contextmanager
def _ended_with(content: aiohttp.StreamReader, connection: Connection | None) -> Iterator[None]:
    """Ends the reading of a body with its connection.

    Where a body stops being HTTP in a later packet than its head, aiohttp closes the connection and tells nobody: its
    reader would wait for ever.
    """
    protocol = None if connection is None else connection.protocol
    if protocol is None:  # the body has arrived
        yield
        return
    closed = protocol.closed

    def end(_: object = None) -> None:
        if not content.is_eof() and content.exception() is None:
            content.set_exception(ProtocolError("the body is not valid HTTP"))

    if closed is None:
        end()
        yield
        return
    closed.remove_done_callback(_seen)
    closed.add_done_callback(_seen)
    closed.add_done_callback(end)
    try:
        yield
    finally:
        closed.remove_done_callback(end)


def _seen(closed: asyncio.Future[None]) -> None:
    """Keeps asyncio from complaining that nobody looked at how a connection ended."""
    if not closed.cancelled():
        closed.exception()


def _with_extra(headers: CIMultiDict[str], request: Request) -> CIMultiDict[str]:
    if not request.headers:
        return headers
    merged = headers.copy()
    merged.update([(plain(name), plain(value)) for name, value in request.headers.items()])
    return merged


def _reason(error: BaseException) -> str:
    """The operating system's word for it, which holds no data of ours."""
    inner = getattr(error, "os_error", error)
    number = getattr(inner, "errno", None)
    if isinstance(inner, ssl.SSLError):
        return f" ({inner.reason})" if inner.reason else ""
    if not isinstance(number, int) or number <= 0:
        return ""
    import os

    return f" ({os.strerror(number)})"


def _verify_reason(error: BaseException) -> str:
    inner = getattr(error, "certificate_error", None)
    said = getattr(inner, "verify_message", None)
    return f" ({said})" if isinstance(said, str) else ""
