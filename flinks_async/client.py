"""`FlinksClient`. The constructor checks the options and assembles transport, middleware and codec once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, Unpack, overload

from attrs import evolve

from . import checks, config
from .classify import complete, deadline_error, error_from, verdict_of
from .client_options import (
    AuthSecret,
    ClientArguments,
    ClientOptions,
    DerivedArguments,
    copy_attributes,
    wrap_proxy,
    wrap_secrets,
)
from .clock import Clock
from .codec import Codec
from .config import Settings
from .endpoint import OTHER_HEADER_FORMS, WHERE_SECRETS_COME_FROM, check_headers, check_token
from .errors import ClientClosedError, ConfigError, FlinksError, keep_users_frames
from .fanout import Outcome, TokenSource, fan_out
from .limits.governor import Governor
from .messages import NO_HEADERS, Call, Middleware, Response, SendPermit, Transport, new_request
from .middleware.auth import SecretSource
from .models import PartnerAccessResponse
from .observe import ClientStats, Observer
from .runtime import LoopState, PerLoop, RequestCounters
from .secret import Secret, wrap_header_values, wrap_secret, wraps_token
from .transport import pool
from .transport.pool import Lineage, Pool
from .transport.session import SessionManager
from .verdict import OK, Kind

if TYPE_CHECKING:
    from aiohttp import ClientSession

K = TypeVar("K", bound=Hashable)
Token = str | Secret
Headers = Mapping[str, str | Secret] | None


class FlinksClient:
    """Fetches account data from Flinks' partner access API.

    You can create a client anywhere, even outside an event loop, and use it in several loops one after the other; each
    loop gets its own connections. Close it, or use it as `async with FlinksClient(...) as flinks:`.

    A subclass may have attributes and a constructor of its own: `with_options` copies the attributes (not deeply) and
    does not call the constructor.

    Args:
        instance: name of the Flinks instance, as in `https://{instance}-api.private.fin.ag`.
        auth_secret: the AuthSecret, or an async callable that returns it, called on first use and again when the
            server refuses the secret.
        auth_scheme: the header that carries it: `flinks-auth-key: Bearer ...` (default), the same without `Bearer`
            (`flinks-auth-key-raw`), or `Authorization: Bearer ...` (`bearer`).
        base_url: another address, with an optional port and path prefix; it replaces the one made from `instance`.
        settings: a preset: `config.service()` (default) or `config.bulk()`.
        retry, timeouts, limits, connection: a record replaces the preset's, a mapping changes some of its fields:
            `settings=config.bulk(), limits={"concurrency": 500}`.
        middleware: called once per call, outside the retry.
        attempt_middleware: called once per attempt, inside the retry.
        observers: callables that receive events (see `flinks_async.observe`).
        app_name: prefix of the User-Agent, such as `acme-lending/2.1`.
        headers: sent with every request.
        allow_http: allow `http://` to hosts other than localhost.
        hedge: send a second attempt when one takes unusually long; None never sends one.
        coalesce: let concurrent calls for the same token share one request and its answer.
        poll_pending: ask again while the data is not ready; None raises `PendingError` at once.
        session: your own aiohttp session; it is not closed. See `SessionManager` for its limits.
        transport: replaces aiohttp (see `flinks_async.testing.InMemoryTransport`).
        codec: decodes bodies; register your own hooks on its `converter`.
        clock: time and randomness, for tests.

    Raises:
        ConfigError: an argument is wrong; the message names it.
    """

    def __init__(
        self,
        instance: str = "toolbox",
        *,
        auth_secret: AuthSecret,
        auth_scheme: config.AuthScheme = "flinks-auth-key",
        base_url: str | None = None,
        settings: Settings | None = None,
        retry: config.Retry | config.RetryFields | None = None,
        timeouts: config.Timeouts | config.TimeoutsFields | None = None,
        limits: config.Limits | config.LimitsFields | None = None,
        connection: config.Connection | config.ConnectionFields | None = None,
        middleware: Sequence[Middleware] = (),
        attempt_middleware: Sequence[Middleware] = (),
        observers: Sequence[Observer] = (),
        app_name: str | None = None,
        headers: Mapping[str, str] | None = None,
        allow_http: bool = False,
        hedge: config.Hedge | None = None,
        coalesce: bool = False,
        poll_pending: config.PollPending | None = None,
        session: ClientSession | None = None,
        transport: Transport | None = None,
        codec: Codec | None = None,
        clock: Clock | None = None,
    ) -> None:
        # Bound to the same names, so that the traceback of a wrong setting shows no secret.
        auth_secret, base_url = wrap_secret(auth_secret), wrap_secret(base_url)
        connection, headers = wrap_proxy(connection), wrap_header_values(headers)
        records = {"retry": retry, "timeouts": timeouts, "limits": limits, "connection": connection}
        options = ClientOptions(
            instance=instance,
            auth_secret=auth_secret,
            auth_scheme=auth_scheme,
            base_url=base_url,
            settings=config.choose(settings, records),
            middleware=middleware,
            attempt_middleware=attempt_middleware,
            observers=observers,
            app_name=app_name,
            headers=headers,
            allow_http=allow_http,
            hedge=hedge,
            coalesce=coalesce,
            poll_pending=poll_pending,
            session=session,
            transport=transport,
            codec=codec,
            clock=clock,
        )
        sessions = None if transport is not None else SessionManager(options.settings.connection, session)
        self._set_up(options, Pool(sessions, transport))

    def _set_up(
        self,
        options: ClientOptions,
        pool: Pool,
        source: SecretSource | None = None,
        parent: Lineage[FlinksClient] | None = None,
    ) -> None:
        self._options = options
        self._settings, self._clock, self._codec = options.settings, options.clock, options.codec
        self._endpoint = options.endpoint()
        self._pool = pool
        secret = options.auth_secret
        self._secret = secret if isinstance(secret, Secret) else None
        self._source = None if isinstance(secret, Secret) else source or SecretSource(secret, options.clock)
        self._handler = options.handler(pool.transport_for(self._endpoint, options.settings), self._source)
        self._counters = RequestCounters()
        self._state: LoopState | None = None  # of the loop used last
        self._states: PerLoop[LoopState] = PerLoop()
        self._closed = False
        self._lineage = Lineage.add(self, parent)
        self._owns_pool = parent is None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **arguments: Unpack[ClientArguments]) -> Self:
        """A client from FLINKS_INSTANCE, FLINKS_AUTH_SECRET, FLINKS_AUTH_SCHEME and FLINKS_BASE_URL.

        Args:
            environ: used instead of `os.environ`.
            arguments: arguments of `FlinksClient`; they win over the environment.
        """
        found = wrap_secrets(config.from_env(environ))
        del environ  # it holds the secret as a str
        arguments = wrap_secrets(arguments)
        if "instance" in arguments:
            found.pop("base_url", None)  # it belongs to the instance of the environment
        merged: dict[str, Any] = {"auth_secret": None, **found, **arguments}
        if merged["auth_secret"] is None:
            raise ConfigError(
                f"auth_secret is missing: set FLINKS_AUTH_SECRET. {WHERE_SECRETS_COME_FROM}. {OTHER_HEADER_FORMS}"
            )
        return cls(**merged)

    def with_options(self, **changes: Unpack[DerivedArguments]) -> Self:
        """A client with some options changed, on the same connection pool.

        Closing it ends its own calls only; closing the client it comes from closes both.

        Args:
            changes: arguments of `FlinksClient`, except `connection`, `session` and `transport`, which belong to the
                pool. For another Flinks customer: `with_options(instance=..., auth_secret=...)`.
        """
        changes = wrap_secrets(changes)
        if self._closed:
            raise ClientClosedError("the client is closed")
        options = self._options.derive(changes)
        client = object.__new__(type(self))
        copy_attributes(self, client)
        source = self._source if options.auth_secret is self._options.auth_secret else None
        client._set_up(options, self._pool, source, self._lineage)
        return client

    @wraps_token
    async def partner_access(
        self, token: Token, *, timeout: float | None = None, headers: Headers = None
    ) -> PartnerAccessResponse:
        """Fetches the account data of one access token.

        Args:
            token: the access token.
            timeout: seconds for the whole call, instead of `Timeouts.deadline`.
            headers: sent with each attempt; they replace the client's. Not the header of the AuthSecret.

        Raises:
            FlinksError: see `flinks_async.errors` for the tree.
        """
        token = check_token(token)  # bound to the same name, so that a traceback does not show it
        response = await self._run(token, timeout, headers, raw=False)
        return self._decoded(response) if response.answer is None else response.answer

    async def respond(self, token: Secret, permit: SendPermit) -> Response:
        """Internal; used by `flinks_async.bulk`. Like `partner_access` for a checked token, but returns the whole
        response: the answer and the body.
        """
        response = await self._run(token, None, None, raw=False, permit=permit)
        return response if response.answer is not None else evolve(response, answer=self._decoded(response))

    def _decoded(self, response: Response) -> PartnerAccessResponse:
        """The answer in a response of a middleware that did not call the next handler."""
        return self._codec.decode(response.body, response.meta)

    @wraps_token
    async def partner_access_raw(
        self, token: Token, *, timeout: float | None = None, headers: Headers = None
    ) -> Response:
        """Fetches the HTTP response for one access token, with any status and not decoded, after the same retries.

        Raises:
            FlinksError: no HTTP response was received.
        """
        token = check_token(token)
        return await self._run(token, timeout, headers, raw=True)

    @overload
    def partner_access_many(
        self,
        tokens: Iterable[tuple[K, Token]] | AsyncIterable[tuple[K, Token]],
        *,
        concurrency: int | None = None,
        ordered: bool = False,
        timeout: float | None = None,
        headers: Headers = None,
    ) -> AsyncGenerator[Outcome[K], None]: ...

    @overload
    def partner_access_many(
        self,
        tokens: Iterable[Token] | AsyncIterable[Token],
        *,
        concurrency: int | None = None,
        ordered: bool = False,
        timeout: float | None = None,
        headers: Headers = None,
    ) -> AsyncGenerator[Outcome[int], None]: ...

    def partner_access_many(
        self,
        tokens: Iterable[Any] | AsyncIterable[Any],
        *,
        concurrency: int | None = None,
        ordered: bool = False,
        timeout: float | None = None,
        headers: Headers = None,
    ) -> AsyncGenerator[Outcome[Any], None]:
        """Fetches the account data of many access tokens; memory does not grow with their number.

        Args:
            tokens: tokens, or (key, token) pairs, from any (async) iterable; it is read only as fast as needed. The key
                of a token without one is its position, from 0.
            concurrency: concurrent calls, up to 100,000; default `Limits.concurrency`, or its maximum if adaptive.
            ordered: yield the outcomes in the order of the tokens.
            timeout, headers: for each call, as in `partner_access`.

        Returns:
            an async generator of `Fetched(key, response)` and `Failed(key, error)`. If you leave the loop early, calls
            in flight are cancelled, and `tokens` is closed if it is a generator: at once with `contextlib.aclosing`,
            otherwise when the generator is collected.

        Raises:
            ConfigError: an argument is wrong.
            ClientClosedError: the client was closed before all tokens were taken.
            Exception: any exception from iterating over `tokens`, after the outcomes of the tokens taken before it.
        """
        headers = wrap_header_values(headers)
        source = TokenSource(tokens)
        del tokens  # so that a traceback does not show them
        if source.problem is not None:
            raise ConfigError(source.problem)
        workers = self._settings.limits.most_at_once if concurrency is None else concurrency
        checks.integer("concurrency", workers, 1, checks.MOST_AT_ONCE)
        checks.flag("ordered", ordered)
        if timeout is not None:
            checks.seconds("timeout", timeout)
        check_headers(headers)
        if self._closed:
            raise ClientClosedError("the client is closed")
        options: dict[str, Any] = {name: value for name, value in (("timeout", timeout), ("headers", headers)) if value}
        fetch = partial(self.partner_access, **options) if options else self.partner_access
        return fan_out(source, fetch, concurrency=workers, ordered=ordered)

    async def _run(
        self, token: Secret, timeout: float | None, headers: Headers, *, raw: bool, permit: SendPermit | None = None
    ) -> Response:
        if timeout is None:
            timeout = self._settings.timeouts.deadline
        else:
            checks.seconds("timeout", timeout)
        state = self._state
        if state is None or state.loop is not asyncio.get_running_loop():
            state = self._enter()
        now, scope = state.now(), state.timer.scope(timeout)
        call = Call(now, state, None if timeout is None else now + timeout, scope, self._secret, permit)
        # Not bound to a name, because a traceback shows the names of this frame.
        request = new_request(
            self._endpoint, token, call, NO_HEADERS if headers is None else check_headers(headers), raw
        )
        problem: FlinksError
        state.calls.add(scope)
        response: Response | None = None
        try:
            with scope:
                response = await self._handler(request)
                if response.answer is not None and response.verdict is OK:
                    return response
            if response is not None:
                verdict = verdict_of(response, self._settings.retry.throttle_statuses)
                if raw or verdict.kind is Kind.OK:
                    return response
                problem = error_from(request, response, verdict, self._clock)
                response = None  # the traceback holds this frame, which must not hold the body
            elif self._closed:
                problem = ClientClosedError("the client was closed while the call was in flight")
            else:
                problem = deadline_error(request, timeout, self._clock.now())
        except FlinksError as error:
            problem = error
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                keep_users_frames(error)
            raise
        finally:
            state.calls.discard(scope)
            if state.drained is not None:
                state.call_ended()
        complete(problem, request, self._clock.now())
        try:
            raise problem
        finally:
            del problem  # this frame is in its traceback: a reference cycle

    def _enter(self) -> LoopState:
        """The state of the running loop."""
        if self._closed:
            raise ClientClosedError("the client is closed")
        loop = asyncio.get_running_loop()
        state = self._states.get(loop)
        if state is None:
            self._states.take_closed()
            state = self._states[loop] = self._pool.loop_state(
                loop, self._endpoint, self._options.auth_secret, self._settings, self._clock, self._counters,
                self._options.observers,
            )  # fmt: skip
        self._state = state
        return state

    def stats(self) -> ClientStats:
        """The current counters."""
        return ClientStats.of(self._states.open_values(), self._counters, self._pool.stats(), self._codec.drift())

    def explain(self) -> str:
        """Describes the effective settings and the retry schedule as text; secrets are masked."""
        from .explain import explain

        return explain(self._options, self._endpoint, self.stats().learned)

    @property
    def settings(self) -> Settings:
        """The effective settings."""
        return self._settings

    @property
    def options(self) -> ClientOptions:
        """Internal; used by `flinks_async.bulk` to recreate the client in another process."""
        return self._options

    @property
    def governor(self) -> Governor:
        """Internal; used by `flinks_async.bulk`. The governor of this client in the running loop."""
        try:
            return self._enter().governor
        except RuntimeError:
            problem = AttributeError("no event loop is running")  # so that mocks made from a client skip it
        raise problem

    @property
    def host(self) -> str:
        """The host that requests go to, with its port if that is not the default."""
        return self._endpoint.host

    @property
    def closed(self) -> bool:
        """True as soon as `close()` has been called."""
        return self._closed

    async def close(self, *, grace: float = 5.0) -> None:
        """Closes the client. It takes no new calls; calls in flight that do not end within `grace` seconds are
        interrupted and raise `ClientClosedError`.

        You may call it again, also with a shorter grace period. If `close` is cancelled, it interrupts the calls at once.

        Raises:
            ConfigError: `grace` is not a number; nothing was closed.
        """
        if not checks.is_number(grace):
            raise ConfigError(f"grace must be a number of seconds up to {checks.MOST:g}, not {checks.shown(grace)}")
        family = self._lineage.with_descendants()
        for client in family:
            client._closed, client._state = True, None
        await pool.close([client._states for client in family], self._pool if self._owns_pool else None, grace)

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        if "_owns_pool" not in vars(self):  # in a traceback of the constructor, which sets this attribute last
            return "<FlinksClient>"
        return f"<FlinksClient {self._endpoint.host}{' closed' if self._closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a FlinksClient holds a secret and connections and refuses to be pickled: create one where you need it"
        )
