"""`AiohttpTransport` makes one attempt with aiohttp: one request on the wire, no retry, no redirect.

It uses the short path of `fast_path` where possible and `ClientSession` otherwise, reads and inflates the body under a
cap, and translates aiohttp's errors into those of `flinks_async.errors`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
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
)
from ..messages import Request, Response
from ..runtime import mark_retrieved
from ..secret import Secret, plain
from .fast_path import (
    SUPPORTED,
    Connector,
    Protocol,
    Template,
    Wire,
    is_untouched,
    session_is_untouched,
    wire_of_attempt,
)
from .inflate import Inflater
from .session import SessionManager, shortage


class _ConnectionBroken(Exception):
    """Hides a connection error from aiohttp, which would send the request again by itself."""

    def __init__(self, error: aiohttp.ClientError) -> None:
        super().__init__()
        self.error = error


async def _one_request(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:  # an aiohttp client middleware
    """Keeps one attempt one request: aiohttp silently repeats a GET whose connection broke.

    It also notes the connection of a borrowed session, because aiohttp forgets it when it closes it.
    """
    wire = wire_of_attempt.get()
    if wire is not None:
        send = request.send

        async def noted(conn: Connection) -> aiohttp.ClientResponse:
            wire.transport = conn.transport
            return await send(conn)

        request.send = noted  # type: ignore[method-assign]
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise  # nothing was sent, and aiohttp does not repeat these
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        broken = _ConnectionBroken(error)
    raise broken


@define(eq=False)
class _Prepared:
    """The parts that all requests to one endpoint share."""

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
    """Sends through the aiohttp session of the running event loop."""

    def __init__(self, sessions: SessionManager, timeouts: Timeouts, max_body: int) -> None:
        self._sessions = sessions
        # aiohttp times only `connect`, which costs nothing on open connections. The other timers are ours and cheaper.
        self._timeout = aiohttp.ClientTimeout(total=None, connect=timeouts.connect)
        self._max_body = max_body
        self._prepared: _Prepared | None = None  # for the latest endpoint and secret, which seldom change

    async def send(self, request: Request, /) -> Response:
        sessions = self._sessions
        prepared = self._prepared
        if prepared is None or prepared.endpoint is not request.endpoint or prepared.secret is not request.call.secret:
            prepared = self._prepared = await self._prepare(request)
        session = sessions.current() or await sessions.open()
        wire = Wire(fresh=request.call.fresh)
        token = wire_of_attempt.set(wire)
        sessions.in_use += 1
        stopped: BaseException | None = None
        try:
            template = prepared.template
            if template is not None and not request.headers and session_is_untouched():
                return await self._send_fast(session, template, request)
            return await self._send_by_session(session, prepared, request)
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
            if stopped is not None and wire.transport is not None:
                wire.transport.abort()  # of a borrowed session; the connections of our own are aborted when closed
            sessions.in_use -= 1
            sessions.reused += wire.sockets == 0
            try:  # noqa: SIM105 - faster than `suppress`
                wire_of_attempt.reset(token)
            except ValueError:  # a coroutine was closed from another context
                pass
        assert stopped is not None
        # Raised here, without the frames and errors of aiohttp, because their variables hold the URL and the headers.
        stopped.__traceback__ = stopped.__context__ = stopped.__cause__ = None
        raise stopped

    async def _send_fast(self, session: aiohttp.ClientSession, template: Template, request: Request) -> Response:
        connector = session.connector
        assert isinstance(connector, Connector)
        connection = None if request.call.fresh else connector.take(template.key)
        if connection is None:
            with suppress(TimeoutError):
                connection = await connector.connect(template.request, [], self._timeout)
            if connection is None:
                raise aiohttp.ConnectionTimeoutError
        try:
            protocol = connection.protocol
            if not isinstance(protocol, Protocol) or protocol.transport is None:
                raise aiohttp.ServerDisconnectedError  # it broke before this task ran again
            protocol.expect_answer()
            segment = encode_token(request.token).reveal().encode("ascii")
            protocol.transport.write(b"".join((template.before, segment, template.after)))
            message, content = await protocol.read()
            while 100 <= message.code < 200 and message.code != 101:
                message, content = await protocol.read()
            request.call.headers_came()
            body = self._body_at_once(message.headers, content)
            if body is None:
                body = await self._read(message.code, message.headers, content, connection)
        except BaseException:
            connection.close()  # the answer was not read to its end
            raise
        connector.keep(template.key, connection)
        return Response(message.code, message.headers, body)

    async def _send_by_session(self, session: aiohttp.ClientSession, prepared: _Prepared, request: Request) -> Response:
        if isinstance(session.connector, Connector):
            session.connector.release_idle()
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
        try:
            body = self._body_at_once(response.headers, response.content)
            if body is None:
                body = await self._read(response.status, response.headers, response.content, response.connection)
        except BaseException:
            response.close()
            raise
        response.release()  # after a 101 it is still open, and aiohttp would warn with the URL
        return Response(response.status, response.headers, body)

    def _body_at_once(self, headers: CIMultiDictProxy[str], content: aiohttp.StreamReader) -> bytes | None:
        """The body, if it has arrived complete with its head, as a small one usually does."""
        size = content.total_bytes
        if not content.is_eof() or content.exception() is not None or size > self._max_body:
            return None
        return None if size and "Content-Encoding" in headers else content.read_nowait()

    async def _read(
        self, status: int, headers: CIMultiDictProxy[str], content: aiohttp.StreamReader, connection: Connection | None
    ) -> bytes:
        limit = self._max_body
        length = headers.get("Content-Length", "")
        if length.isdecimal() and int(length[:20]) > limit:
            raise ResponseTooLargeError(f"the body has {length} bytes, more than Limits.max_body = {limit}")
        # A list may be spread over several lines (RFC 9110, section 5.3).
        encoding = ", ".join(headers.getall("Content-Encoding", ()))
        inflater = Inflater(encoding, limit, lenient=status >= 400)
        read = content.readany
        chunks: list[bytes] = []
        with _end_with_connection(content, connection):
            while chunk := await read():
                for piece in inflater.steps(chunk):
                    if piece:
                        chunks.append(piece)
                    else:  # even a small body can take long to inflate: let timers and other tasks run
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
            # Plain HTTP has no CONNECT: the proxy reads the headers of the request itself.
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
        """Our error for one of aiohttp's. Their texts are not used, because they contain URLs and text of the server."""
        if isinstance(error, _ConnectionBroken):
            return self._broken(error.error, host, wire)
        if reason := shortage(error):
            return ShortageError(f"no connection to {host}, because of a shortage: {reason}")
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
                return ConnectError(f"the host name {host} cannot be resolved")
            case aiohttp.ClientConnectorError():
                return ConnectError(f"no connection to {host}{_reason(error)}")
            case aiohttp.ConnectionTimeoutError():
                return ConnectTimeoutError(f"no connection to {host} within {self._timeout.connect:g} s")
            case TimeoutError():
                return AttemptTimeoutError(f"{host} did not answer in time")
            case aiohttp.ClientPayloadError():
                # aiohttp raises this for a lost connection and for a body that is not HTTP; the cause tells them apart.
                cause = error.__cause__
                if isinstance(cause, HttpProcessingError) and "Not enough data" not in str(cause):
                    return ProtocolError(f"the body from {host} is not valid HTTP")
                return ReadError(f"the connection to {host} broke before the body was complete")
            case aiohttp.ClientResponseError() | HttpProcessingError():
                # The status 400 in these errors is aiohttp's own, not the server's.
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
            return StaleConnectionError(f"a kept-alive connection to {host} was closed by the server")
        return ReadError(f"the connection to {host} broke before an answer arrived{_reason(error)}")

    async def close(self) -> None:
        await self._sessions.close()


@contextmanager
def _end_with_connection(content: aiohttp.StreamReader, connection: Connection | None) -> Iterator[None]:
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
            content.set_exception(ProtocolError("the body is not valid HTTP"))

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


def _reason(error: BaseException) -> str:
    """The operating system's text for an error number, in brackets; it contains no data of the request."""
    inner = getattr(error, "os_error", error)
    number = getattr(inner, "errno", None)
    if isinstance(inner, ssl.SSLError):
        if inner.reason == "WRONG_VERSION_NUMBER":
            return " (the answer is not TLS; the server may expect http://)"
        return f" ({inner.reason})" if inner.reason else ""
    if not isinstance(number, int) or number <= 0:
        return ""
    import os

    return f" ({os.strerror(number)})"


def _verify_reason(error: BaseException) -> str:
    inner = getattr(error, "certificate_error", None)
    text = getattr(inner, "verify_message", None)
    return f" ({text})" if isinstance(text, str) else ""
