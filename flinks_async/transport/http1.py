"""HTTP/1.1 on connections of our own, which nearly all requests use.

`HTTPConnection` writes a request and reads its answer: `httptools` parses what arrives straight into status, headers and
body, and one future wakes the caller. `ConnectionPool` opens the connections of one event loop and keeps the idle ones.
aiohttp's `ClientSession` makes a URL, timers, a writer, a response and a stream for each request.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import time
import warnings
import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, Final, cast

import aiohttp
from aiohappyeyeballs import AddrInfoType, pop_addr_infos_interleave, start_connection
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from .. import errors as e
from ..config import Connection
from ..messages import MAX_HEADER, MAX_HEADERS, Headers, check_fields, ends_with_connection, may_continue
from ..runtime import cut, mark_retrieved
from .inflate import STEP

Origin = tuple[str, int, bool]
"""Host, port, and whether the connection uses TLS. Requests to the same one may share a connection."""

# All connections of a loop read into one buffer, because a loop reads them one after the other. Without it, asyncio would
# allocate 256 KiB for each read, which takes half of the time of a small request.
_READ_SIZE: Final = 256 * 1024

_MAX_HEAD: Final = MAX_HEADER * MAX_HEADERS  # bytes of a head, or of the trailers

# Seconds; a connection that was used since is not polled before its next request.
_POLL_AFTER: Final = 0.001

# Seconds after which the next address is tried as well (RFC 8305, section 8).
_HAPPY_EYEBALLS: Final = 0.25


class HTTPConnection(asyncio.BufferedProtocol):
    """One connection. It carries one request at a time; anything unexpected closes it.

    Attributes:
        transport: None when the connection is closed.
        status, headers: of the current answer.
        encoded: it has a Content-Encoding.
        chunks: parts of its body, as they were sent.
        complete: the answer has arrived.
        used: answers that have arrived completely.
        idle_since: when the last answer was complete, by `time.monotonic()`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, host: str, buffer: memoryview) -> None:
        self._loop = loop
        self._host = host
        self._buffer = buffer
        self._parser = HttpResponseParser(self)
        # As aiohttp's parser: bare line feeds, and blanks where they do not change the meaning.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self.transport: asyncio.Transport | None = None
        self.headers = Headers(())
        self.chunks: list[bytes] = []
        self.status = self.used = self._size = self._max_body = 0
        self.complete = self.encoded = self._keep = self._sent_more = self._ended = False
        self._fields: list[bytes] = []  # names and values of headers, as they came
        self.idle_since = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._problem: e.FlinksError | None = None

    def ask(self, request: bytes, max_body: int, on_head: Callable[[], object]) -> asyncio.Future[None]:
        """Sends a request. The future is done when the answer is complete, when a part of an encoded body has arrived,
        or when the connection fails. Then call `check`.

        Args:
            max_body: bytes; an encoded body may have `STEP` more.
            on_head: called when status and headers have arrived.
        """
        self.status = self._size = self._head_size = self._received = 0
        self.complete = self.encoded = self._keep = False
        self._max_body = max_body
        self._on_head = on_head
        self._waiter = waiter = self._loop.create_future()
        if self.transport is None:
            self.fail(self._broken(None))
        else:
            self.transport.write(request)
        return waiter

    async def read(self) -> bytes:
        """The next part of an encoded body; empty at its end. Raises as `check`."""
        while not self.chunks and not self.complete and self._problem is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        self.check()
        chunks, self.chunks = self.chunks, []
        return b"".join(chunks)

    def check(self) -> None:
        """Raises what went wrong.

        Raises:
            StaleConnectionError: the server has closed a kept-alive connection.
            ReadError: the connection broke.
            ProtocolError: the answer is not HTTP.
            ResponseTooLargeError: the body is larger than `max_body`.
        """
        if self._problem is not None:
            raise self._problem

    def abort(self) -> None:
        """Closes the connection at once. A TLS connection that is closed waits up to 30 s for the peer's close_notify and
        keeps reading meanwhile, so an abandoned exchange would continue on the wire.
        """
        transport, self.transport = self.transport, None
        if transport is not None:
            transport.abort()

    @property
    def is_reusable(self) -> bool:
        """Whether another request may follow the complete answer."""
        return self._keep and not self._sent_more and self.transport is not None

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def fail(self, problem: e.FlinksError) -> None:
        """Closes the connection; `check` will raise the problem, if it is the first."""
        if self._problem is None:
            self._problem = problem
        self.abort()
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _refused(self) -> e.FlinksError:
        """Why what has arrived is not accepted."""
        if self._is_too_large():
            return e.ResponseTooLargeError(f"the body is larger than Limits.max_body = {self._max_body} bytes")
        part = "body from" if self.status else "answer of"
        return e.ProtocolError(f"the {part} {self._host} is not valid HTTP")

    def _broken(self, error: Exception | None) -> e.FlinksError:
        if self.status:
            return e.ReadError(f"the connection to {self._host} broke before the body was complete")
        if self.used and not self._received:
            return e.StaleConnectionError(f"a kept-alive connection to {self._host} was closed by the server")
        return e.ReadError(f"the connection to {self._host} broke before an answer arrived{e.os_reason(error)}")

    # --- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._waiter is None and (self.complete or not self.encoded):  # nobody has asked
            self.fail(self._refused())
            return
        self._received += nbytes
        try:
            self._parser.feed_data(self._buffer[:nbytes])
        except HttpParserUpgrade:  # after a 101, which ends the answer
            pass
        except HttpParserError as error:
            if not self.complete or self.status != 101:
                self.fail(self._refused())
                cause = error.__context__
                if cause is not None and not isinstance(cause, Exception):  # such as the SystemExit of a signal handler
                    raise cause from None
                return
        if self.complete and self._size <= self._max_body:
            self._wake()
        elif self._is_too_large():
            self.fail(self._refused())
        elif self.encoded and self.chunks:
            self._wake()
        elif self._head_size >= 0:  # still in the head or in the trailers
            self._head_size += nbytes if self._head_size else 1
            if self._head_size > _MAX_HEAD:
                self.fail(self._refused())

    def eof_received(self) -> None:
        tls = None if self.transport is None else self.transport.get_extra_info("ssl_object")
        try:  # anybody on the way can send a FIN, but only the server a close_notify, after which TLS reads nothing
            self._ended = tls is None or tls.read(1) == b""
        except ssl.SSLError:
            self._ended = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        del self._parser  # it holds methods of this object
        if self._waiter is None and (self.complete or not self.encoded):
            return
        if self._problem is None:
            if exc is None and self._ended and self.status and ends_with_connection(self.headers):
                self.complete = True
            else:
                self._problem = self._broken(exc)
        self._wake()

    def _is_too_large(self) -> bool:
        """Whether the body is too large, or will be."""
        if self._size > self._max_body:
            return True
        no_body = self.status < 200 or self.status in (204, 304)
        return not no_body and int(self.headers.get("Content-Length", "0")) > self._max_body

    # --- called by the parser

    def on_message_begin(self) -> None:
        if self.complete:  # data after the end of the answer
            self._sent_more = True
            return
        self.status = self._size = self._head_size = 0  # a 1xx may have come before
        self._fields, self.chunks = [], []

    def on_status(self, status: bytes) -> None:
        if len(status) > MAX_HEADER:
            raise HttpParserError("the reason phrase is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not value and name.lower() == b"transfer-encoding":  # older parsers take it for none
            raise HttpParserError("Transfer-Encoding is empty")
        self._fields += name, value

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        fields, self._fields = self._fields, []  # what follows are trailers
        text, status = check_fields(fields), self._parser.get_status_code()
        if status < 100:
            raise HttpParserError("the status is none")
        if b" \n" in text:  # the parser accepts blanks before a colon, and leaves them in the name
            fields = [field.strip() for field in fields]
        self.headers, self.status = Headers(fields), status
        self._head_size = -1
        if status >= 200 or status == 101:
            self._on_head()
            if b"content-encoding" in text.lower() and "Content-Encoding" in self.headers:
                self.encoded = True
                self._max_body += STEP  # incompressible data grows a little

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self._head_size = -1
            self._size += len(body)
            self.chunks.append(body)

    def on_chunk_header(self) -> None:
        self._head_size = 0  # a chunk of size 0 begins the trailers

    def on_chunk_complete(self) -> None:
        self._head_size = -1

    def on_message_complete(self) -> None:
        status = self.status
        if status < 200 and status != 101:  # the answer comes after it
            self.status = 0
        elif not self.complete:
            if self._fields:
                check_fields(self._fields)  # trailers
            self.complete = True
            self._keep = self._parser.should_keep_alive() and not may_continue(status, self.headers)
            self.used += 1


class ConnectionPool:
    """The connections of one event loop. There is no limit: the governor is the only place that waits.

    Connections that received unrequested data are dropped, and so are those that the server has closed: such data would
    be taken for the answer to the next request, which is for another token. The data may still be in the operating
    system's buffer if the event loop was busy, so the socket is polled too.
    """

    def __init__(self, settings: Connection, make_socket: Callable[[Any], socket.socket]) -> None:
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._make_socket = make_socket
        self._buffer = memoryview(bytearray(_READ_SIZE))
        self._resolver = aiohttp.DefaultResolver()
        self._lookups: dict[tuple[str, int], asyncio.Future[deque[AddrInfoType]]] = {}
        self._idle: defaultdict[Origin, deque[HTTPConnection]] = defaultdict(deque)
        self._open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> list[HTTPConnection]:
        return [connection for idle in self._idle.values() for connection in idle]

    def take(self, origin: Origin) -> HTTPConnection | None:
        """The idle connection that was used last, or None."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if self._is_usable(connection):
                return connection
            connection.abort()
        return None

    def keep(self, origin: Origin, connection: HTTPConnection) -> None:
        """Takes a connection back after its answer was read; closes it if no other request may follow."""
        if not connection.is_reusable or self.closed:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        self._idle[origin].append(connection)
        if self._sweep is None:
            self._sweep_later()

    async def connect(self, origin: Origin, host: str, tls: ssl.SSLContext | None) -> HTTPConnection:
        """A new connection to what error messages call `host`.

        Raises:
            OSError: there is no connection: `socket.gaierror`, `ssl.SSLError` or another one.
        """
        name, port, _ = origin
        addresses = await self._addresses(name, port)
        while True:
            try:
                connected = await start_connection(
                    addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS, loop=self._loop, socket_factory=self._make_socket
                )
                try:
                    _, connection = await self._loop.create_connection(
                        lambda: HTTPConnection(self._loop, host, self._buffer),
                        sock=connected,
                        ssl=tls,
                        server_hostname=None if tls is None else name.rstrip("."),
                    )
                except BaseException:
                    cut(connected)
                    raise
                self._open.add(connection)
                return connection
            except OSError:
                pop_addr_infos_interleave(addresses)
                if not addresses:
                    raise

    async def _addresses(self, host: str, port: int) -> list[AddrInfoType]:
        """The addresses of a host, each time with another one first."""
        if ":" in host or host.replace(".", "").isdigit():  # an address, as `make_endpoint` has checked
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return [_address(family, socket.IPPROTO_TCP, host, port)]
        lookup = self._lookups.get((host, port))
        if lookup is None:  # one for all who wait: cancelling one of them does not end it
            lookup = self._lookups[host, port] = self._loop.create_task(self._look_up(host, port))
            lookup.add_done_callback(lambda done: self._forget_later(host, port, done))
        found = await asyncio.shield(lookup)
        addresses = list(found)
        found.rotate(-1)
        return addresses

    async def _look_up(self, host: str, port: int) -> deque[AddrInfoType]:
        try:
            found = await self._resolver.resolve(host, port, socket.AF_UNSPEC)
        except OSError as error:
            if isinstance(error, socket.gaierror):
                raise
            found = []  # aiodns raises other errors
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "the host has no address")
        return deque(_address(each["family"], each["proto"], each["host"], each["port"]) for each in found)

    def _forget_later(self, host: str, port: int, lookup: asyncio.Future[deque[AddrInfoType]]) -> None:
        mark_retrieved(lookup)
        seconds = 0.0 if lookup.cancelled() or lookup.exception() is not None else self._settings.dns_cache
        if seconds > 0:
            self._loop.call_later(seconds, self._lookups.pop, (host, port), None)
        else:
            del self._lookups[host, port]

    def _is_usable(self, connection: HTTPConnection) -> bool:
        if not connection.is_open:
            return False
        idle = time.monotonic() - connection.idle_since
        # A poll is a system call and costs a tenth of a small request.
        return idle <= _POLL_AFTER or (idle <= self._settings.keepalive and not is_readable(connection.transport))

    def _sweep_later(self) -> None:
        close_idle = weakref.WeakMethod(self.close_idle)  # the timer must not keep a pool that nobody closed
        self._sweep = self._loop.call_later(self._settings.keepalive, lambda: (close := close_idle()) and close())

    def close_idle(self) -> None:
        """Closes the connections that were idle for too long."""
        self._sweep = None
        for origin, idle in tuple(self._idle.items()):
            while idle and not self._is_usable(idle[0]):
                idle.popleft().abort()
            if not idle:
                del self._idle[origin]
        if self._idle:
            self._sweep_later()

    async def close(self) -> None:
        """Closes all connections."""
        self.closed = True
        self._idle.clear()
        if self._loop.is_closed():  # an earlier `asyncio.run()` that ended without `close()`
            return
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in tuple(self._open):
            connection.fail(e.ClientClosedError("the client was closed while the request was under way"))
        await self._resolver.close()
        await asyncio.sleep(0)  # an event loop closes an aborted socket in its next turn

    def __del__(self) -> None:
        if self.closed or not hasattr(self, "_sweep"):
            return
        warnings.warn("a FlinksClient was not closed", ResourceWarning, source=self, stacklevel=1)
        if not self._loop.is_closed():
            for connection in self.idle:
                self._loop.call_soon_threadsafe(connection.abort)


def _address(family: int, protocol: int, host: str, port: int) -> AddrInfoType:
    place = (host, port, 0, 0) if family == socket.AF_INET6 else (host, port)
    return family, socket.SOCK_STREAM, protocol, "", place


def is_readable(transport: asyncio.BaseTransport | None) -> bool:
    """Whether the operating system has data, or the end of the connection, that the event loop has not read yet."""
    if transport is None or (connected := transport.get_extra_info("socket")) is None:
        return False
    if not hasattr(select, "poll"):
        return bool(select.select([connected.fileno()], [], [], 0)[0])
    poll = select.poll()  # unlike select(), it accepts any file descriptor
    poll.register(connected.fileno(), select.POLLIN)
    return bool(poll.poll(0))
