"""The connections of an event loop, made at first use: its connection pool, an aiohttp session where one is needed; TLS contexts
and proxies.

`ConnectionStats` counts connections by their sockets, which costs nothing per request. aiohttp's own way, a TraceConfig,
costs 14 % of a request.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import socket
import ssl
import threading
import weakref
from contextvars import ContextVar
from types import FunctionType
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp.client
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection as AiohttpConnection
from aiohttp.tracing import Trace
from attrs import define, field, frozen

from ..checks import shown
from ..config import Connection
from ..endpoint import Endpoint, Proxy, is_exempt, make_proxy
from ..errors import ClientClosedError, ConfigError, FlinksError, ShortageError, shortage
from ..limits.notices import log_fields
from ..runtime import PerLoop
from ..schema import Record
from ..secret import Secret
from .http1 import ConnectionPool, is_readable

_AIOHTTP: Final = (vars(aiohttp.client), vars(aiohttp.connector))


def is_untouched(method: object) -> bool:
    """Whether a method of `ClientSession` or `TCPConnector` is aiohttp's own.

    A mock may copy its name and module, and may be in place when this module is imported, so neither tells.
    """
    return type(method) is FunctionType and any(method.__globals__ is own for own in _AIOHTTP)


def session_is_untouched() -> bool:
    """Whether requests of a `ClientSession` would be sent, and hosts resolved, by aiohttp's own functions."""
    global _own
    cls, connector, own = aiohttp.ClientSession, aiohttp.TCPConnector, _own
    # By identity, because a wrapper may be equal to what it wraps.
    same = cls._request is own[0] and cls.get is own[1] and cls.request is own[2]
    if same and connector._resolve_host is own[3] and connector.connect is own[4]:
        return True
    methods = cls._request, cls.get, cls.request, connector._resolve_host, connector.connect
    if not all(map(is_untouched, methods)):
        return False
    _own = methods
    return True


_own: tuple[object, ...] = (None,) * 5  # the methods that were found to be aiohttp's own

_log = logging.getLogger("flinks_async")
_reported: set[str] = set()


def _warn_of_onlookers(session: aiohttp.ClientSession) -> None:
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


@define(eq=False, repr=False)
class Wire:
    """The use of sockets by one attempt through an aiohttp session.

    Attributes:
        sockets: that the connector opened for it; none if it reused a kept-alive connection.
        protocol: that of the connection.
        transport: the connection, to be aborted if the attempt fails.
        fresh: the attempt must not use a kept-alive connection.
    """

    sockets: list[socket.socket] = field(factory=list)
    protocol: ResponseHandler | None = None
    transport: asyncio.Transport | None = None
    fresh: bool = False


wire_of_attempt: ContextVar[Wire | None] = ContextVar("flinks_async_wire", default=None)


class _Connector(aiohttp.TCPConnector):
    """aiohttp's connector, which drops kept-alive connections as `ConnectionPool` does."""

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> AiohttpConnection:
        wire = wire_of_attempt.get()
        passed_over: list[AiohttpConnection] = []
        try:
            while True:
                connection = await super().connect(req, traces, timeout)
                if wire is None or wire.sockets:
                    return connection
                if is_readable(connection.transport):
                    connection.close()
                elif wire.fresh:
                    passed_over.append(connection)
                else:
                    return connection
        finally:
            for connection in passed_over:
                connection.release()


@frozen(eq=False, repr=False)
class ConnectionStats(Record):
    """Connections of one client and of the clients that share its pool. All zero for a borrowed session.

    Attributes:
        open: connections that are open now.
        idle: open connections without a request.
        created: connections opened so far.
        reused: requests that used an open connection.
    """

    open: int = 0
    idle: int = 0
    created: int = 0
    reused: int = 0


class SessionManager:
    """Makes, provides and closes the connection pools and sessions of each event loop.

    A borrowed session is used as it is and never closed. Requests through it follow no redirects, run no aiohttp client
    middlewares, and are not counted in `ConnectionStats`. Its cookies, default headers, trace configs and proxy settings
    apply. Trace configs see tokens and secrets; a warning names them. Sessions of our own have none, not even those that
    tracing tools add to every new session.

    Attributes:
        borrowed: the session given as `session=`; None if the sessions are our own.
    """

    def __init__(self, connection: Connection, borrowed: aiohttp.ClientSession | None = None) -> None:
        if borrowed is not None and not isinstance(borrowed, aiohttp.ClientSession):
            raise ConfigError(f"session must be an aiohttp.ClientSession, not {type(borrowed).__name__}")
        if borrowed is not None:
            _warn_of_onlookers(borrowed)
        for name in ("ca_file", "client_cert", "client_key"):
            path = getattr(connection, name)
            if path is not None and not os.path.isfile(path):
                text = str(os.fspath(path))
                looks_like_path = "\n" not in text and (os.sep in text or "." in text)  # otherwise perhaps a key
                raise ConfigError(
                    f"Connection.{name}: there is no file {repr(text) if looks_like_path else shown(text)}"
                )
        self._connection = connection
        self.borrowed = borrowed
        self.pools: PerLoop[ConnectionPool] = PerLoop()  # those made so far, to be looked up fast
        self._sessions: PerLoop[aiohttp.ClientSession] = PerLoop()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._tls: ssl.SSLContext | None = connection.ssl_context
        self._tls_futures: dict[asyncio.AbstractEventLoop, asyncio.Future[ssl.SSLContext | FlinksError]] = {}
        proxies = getproxies() if connection.trust_env else {}
        self._proxies = {scheme: Secret(url) for scheme, url in proxies.items()}  # they may contain passwords
        self._closed_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._shut = False
        self.created = self.reused = self.in_use = 0
        _managers.add(self)

    async def pool(self) -> ConnectionPool:
        """The connection pool of the running loop; makes it at first use.

        Raises:
            ClientClosedError: the pools were closed.
        """
        loop = await self._open_loop()
        pool = self.pools.get(loop)
        if pool is None:
            pool = self.pools[loop] = ConnectionPool(self._connection, self._make_socket)
        return pool

    async def session(self) -> aiohttp.ClientSession:
        """The session of the running loop; makes one at first use if none is borrowed.

        Raises:
            ClientClosedError: the sessions were closed.
        """
        if self.borrowed is not None:
            if self.borrowed.closed:
                raise ClientClosedError("the aiohttp session given as session= is closed")
            if self.borrowed._loop is not asyncio.get_running_loop():
                raise ConfigError("the aiohttp session given as session= belongs to another event loop")
            return self.borrowed
        loop = await self._open_loop()
        session = self._sessions.get(loop)
        if session is None:
            session = self._sessions[loop] = self._make_session()
        return session

    async def _open_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        await self._close_unused()
        if self._shut or loop in self._closed_loops:
            raise ClientClosedError("the client is closed")
        return loop

    def _make_session(self) -> aiohttp.ClientSession:
        settings = self._connection
        connector = _Connector(
            keepalive_timeout=settings.keepalive,
            limit=0,  # the governor is the only place that waits
            use_dns_cache=settings.dns_cache > 0,
            ttl_dns_cache=int(settings.dns_cache),
            socket_factory=self._make_socket,
        )
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            raise_for_status=False,
            auto_decompress=False,
        )
        session.trace_configs.clear()  # OpenTelemetry, Sentry and others add theirs to each new session
        _warn_of_onlookers(session)
        return session

    def _make_socket(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = socket.socket(family=family, type=kind, proto=protocol)
        self._sockets.add(made)
        wire = wire_of_attempt.get()
        if wire is not None:
            if not wire.sockets:  # happy eyeballs may try several sockets for one connection
                self.created += 1
            wire.sockets.append(made)
        return made

    async def tls(self) -> ssl.SSLContext:
        """The TLS context: 1.2 or newer, HTTP/1.1 only. Built in a thread, because it reads files.

        Raises:
            ConfigError: a certificate file cannot be used.
            ShortageError: of file descriptors, threads or memory; the next call tries again.
        """
        if self._tls is None:
            await asyncio.wait((future := self._tls_future(),))  # a waiter may be cancelled while others wait
            if future.cancelled():
                raise _no_certificates("the event loop's executor was shut down")
            made = future.result()
            if isinstance(made, FlinksError):
                raise copy.copy(made)  # each waiter gets its own
            self._tls = made
        return self._tls

    def _tls_future(self) -> asyncio.Future[ssl.SSLContext | FlinksError]:
        """The future of the TLS context, one for all waiters of this loop."""
        loop = asyncio.get_running_loop()
        future = self._tls_futures.get(loop)
        if future is None:
            try:
                future = self._tls_futures[loop] = loop.run_in_executor(None, _make_tls, self._connection)
            except RuntimeError as error:  # no thread can be started, or the executor was shut down
                problem = _no_certificates(str(error))
            else:
                future.add_done_callback(lambda _: self._tls_futures.pop(loop, None))
                return future
            raise problem
        return future

    def proxy_for(self, endpoint: Endpoint) -> Proxy | None:
        """The proxy for an endpoint: `Connection.proxy`, or that of the environment when the client was made."""
        if self._connection.proxy is not None:
            return make_proxy(self._connection.proxy, "Connection.proxy")
        parts = urlsplit(endpoint.url)
        found, exceptions = self._proxies.get(parts.scheme), self._proxies.get("no")
        # Without NO_PROXY, macOS and Windows have exceptions of their own.
        if not found or (is_exempt(endpoint.url, exceptions) if exceptions else proxy_bypass(parts.netloc)):
            return None
        return make_proxy(found, f"{parts.scheme.upper()}_PROXY of the environment")

    def stats(self) -> ConnectionStats:
        opened = sum(made.fileno() != -1 for made in tuple(self._sockets))
        return ConnectionStats(opened, max(0, opened - self.in_use), self.created, self.reused)

    async def close(self) -> None:
        """Closes the connections of the running loop for good. A borrowed session stays open."""
        loop = asyncio.get_running_loop()
        self._closed_loops.add(loop)
        await self._close_unused()
        for kept in (self.pools.pop(loop, None), self._sessions.pop(loop, None)):
            if kept is not None:
                await kept.close()

    def shut(self) -> None:
        """Refuses new sessions in all loops."""
        self._shut = True

    async def _close_unused(self) -> None:
        """Closes what belongs to closed loops: of an earlier `asyncio.run()` that ended without `close()`."""
        unused: list[ConnectionPool | aiohttp.ClientSession] = [
            *self.pools.take_closed(),
            *self._sessions.take_closed(),
        ]
        for kept in unused:
            await kept.close()

    def _after_fork(self) -> None:
        # The connections belong to the parent process. Closing them here would end its TLS sessions.
        _kept_for_parent.extend((*self.pools.values(), *self._sessions.values()))
        self.pools, self._sessions = PerLoop(), PerLoop()
        self._sockets = weakref.WeakSet()
        self.in_use = 0


_managers: weakref.WeakSet[SessionManager] = weakref.WeakSet()

_kept_for_parent: list[ConnectionPool | aiohttp.ClientSession] = []


def _after_fork_in_child() -> None:
    for manager in _managers:
        manager._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _no_certificates(reason: str) -> ShortageError:
    return ShortageError(f"the certificates for TLS could not be loaded, because of a shortage: {reason}")


_MOST_CONTEXTS: Final = 8
_contexts: dict[object, ssl.SSLContext] = {}
_making = threading.Lock()


def _make_tls(connection: Connection) -> ssl.SSLContext | FlinksError:
    """The context for these settings, the same for all clients while the files stay the same: it takes 33 ms and 890 kB."""
    defaults = ssl.get_default_verify_paths()
    trusted = (defaults.cafile, defaults.capath) if connection.ca_file is None else (connection.ca_file,)
    paths = [os.fspath(path) for path in (*trusted, connection.client_cert, connection.client_key) if path is not None]
    with _making:
        try:
            stats = [os.stat(path) for path in paths]
        except OSError:  # a new context tells why
            return _new_tls(connection)
        key = (
            connection.client_cert,
            tuple((path, stat.st_mtime_ns, stat.st_size, stat.st_ino) for path, stat in zip(paths, stats, strict=True)),
        )
        context = _contexts.pop(key, None) or _new_tls(connection)
        if isinstance(context, ssl.SSLContext):
            _contexts[key] = context
            while len(_contexts) > _MOST_CONTEXTS:
                del _contexts[next(iter(_contexts))]
        return context


def _new_tls(connection: Connection) -> ssl.SSLContext | FlinksError:
    try:
        context = ssl.create_default_context(cafile=connection.ca_file)
        if connection.ca_file is None:
            _check_trust_store(context)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        if connection.client_cert is not None:
            # Without `password`, OpenSSL would ask on the terminal for the password of an encrypted key.
            context.load_cert_chain(connection.client_cert, connection.client_key, password=lambda: "")
    except (OSError, MemoryError) as error:
        if reason := shortage(error):
            return _no_certificates(reason)
        return ConfigError(
            f"Connection: ca_file, client_cert or client_key is not a readable PEM file ({type(error).__name__})"
        )
    return context


def _check_trust_store(context: ssl.SSLContext) -> None:
    """Raises the OSError of a shortage that left the trust store empty; OpenSSL itself ignores it."""
    file = ssl.get_default_verify_paths().cafile
    if file is None or context.cert_store_stats()["x509"]:
        return
    try:
        context.load_verify_locations(file)
    except OSError as error:
        if shortage(error):
            raise
        # an unreadable file of the system: the server's certificate will be refused, which says why
