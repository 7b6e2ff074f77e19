"""The only door: settings are checked, and session, chain and codec are put together once, when a client is made."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, overload

from attrs import evolve

from . import checks, config
from ._version import __version__
from .classify import error_from, verdict_of
from .clock import Clock, SystemClock
from .codec import Codec
from .config import Connection, Hedge, Limits, PollPending, Retry, Settings, Timeouts
from .endpoint import (
    OTHER_HEADER_FORMS,
    WHERE_SECRETS_COME_FROM,
    check_secret,
    check_token,
    headers_out_of_sight,
    make_endpoint,
)
from .errors import ClientClosedError, ConfigError, DeadlineExceededError, FlinksError
from .fanout import Outcome, Source, fan_out
from .limits.governor import Governor
from .messages import Call, Handler, Middleware, Request, Response, SendPermit, Transport, checked, compose
from .middleware.attempt import Attempt, Observed
from .middleware.auth import AuthMiddleware, SecretSource
from .middleware.retry import RetryMiddleware
from .models import PartnerAccessResponse
from .observe import ClientStats, Observer
from .runtime.cancel_scope import CancelScope
from .runtime.loop_state import LoopState, LoopStates, RequestCounters
from .secret import Secret, SecretProvider, fingerprint, hides_token, out_of_sight
from .transport import pool
from .transport.aiohttp import AiohttpTransport
from .transport.pool import Pool
from .transport.session import ConnectionStats, SessionManager
from .verdict import OK, Kind

if TYPE_CHECKING:
    from aiohttp import ClientSession

K = TypeVar("K", bound=Hashable)
AuthSecret = str | Secret | SecretProvider
Token = str | Secret


class FlinksClient:
    """Fetches account data from Flinks' partner access API.

    It may be made anywhere, also before there is an event loop, and used in several loops one after the other; each
    gets its own connections. Close it, or use it as `async with FlinksClient(...) as flinks:`.

    Args:
        instance: name of the Flinks instance, as in `https://{instance}-api.private.fin.ag`.
        auth_secret: the AuthSecret; or an async callable that returns it, asked when first needed and again when an
            answer refuses it.
        auth_scheme: the header that carries it: `flinks-auth-key: Bearer ...` (default), the same without the word
            (`flinks-auth-key-raw`), or `Authorization: Bearer ...` (`bearer`).
        base_url: another address, perhaps with a port and a path prefix; then `instance` is not used.
        settings: a preset: `config.service()` (default) or `config.bulk()`.
        retry, timeouts, limits, connection: a record replaces the preset's, a mapping changes some of its fields:
            `settings=config.bulk(), limits={"concurrency": 500}`.
        middleware: called once a call, outside the retry.
        attempt_middleware: called once an attempt, inside the retry.
        observers: callables that get events (see `flinks_async.observe`).
        app_name: put in front of the User-Agent, such as `acme-lending/2.1`.
        headers: sent with every request.
        allow_http: allow `http://` to other hosts than this one.
        hedge: send a second attempt when one takes unusually long; None for never.
        coalesce: let calls for the same token at the same time share one request and its answer.
        poll_pending: ask again while the answer is "not yet"; None to raise `PendingError` at once.
        session: an aiohttp session of yours to use; it is not closed. See `SessionManager` for its limits.
        transport: replaces aiohttp (see `flinks_async.testing.InMemoryTransport`).
        codec: decodes bodies; its `converter` is the place for hooks of your own.
        clock: time and randomness, for tests.

    Raises:
        ConfigError: a setting is wrong; the message names it.
    """

    def __init__(
        self,
        instance: str = "toolbox",
        *,
        auth_secret: AuthSecret,
        auth_scheme: config.AuthScheme = "flinks-auth-key",
        base_url: str | None = None,
        settings: Settings | None = None,
        retry: Retry | Mapping[str, Any] | None = None,
        timeouts: Timeouts | Mapping[str, Any] | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        connection: Connection | Mapping[str, Any] | None = None,
        middleware: Sequence[Middleware] = (),
        attempt_middleware: Sequence[Middleware] = (),
        observers: Sequence[Observer] = (),
        app_name: str | None = None,
        headers: Mapping[str, str] | None = None,
        allow_http: bool = False,
        hedge: Hedge | None = None,
        coalesce: bool = False,
        poll_pending: PollPending | None = None,
        session: ClientSession | None = None,
        transport: Transport | None = None,
        codec: Codec | None = None,
        clock: Clock | None = None,
    ) -> None:
        # Under the same names, so that no frame of ours holds the bare texts when one of the settings is wrong.
        auth_secret, connection = out_of_sight(auth_secret), _without_bare_proxy(connection)
        base_url, headers = out_of_sight(base_url), headers_out_of_sight(headers)
        if not callable(auth_secret):
            auth_secret = check_secret(auth_secret)
        if session is not None and transport is not None:
            raise ConfigError("give either session or transport, not both")
        records = {"retry": retry, "timeouts": timeouts, "limits": limits, "connection": connection}
        chosen = config.choose(settings, records)
        sessions = None if transport is not None else SessionManager(chosen.connection, session)
        self._options: dict[str, Any] = {
            "instance": instance,
            "auth_secret": auth_secret,
            "auth_scheme": auth_scheme,
            "base_url": base_url,
            "settings": chosen,
            "middleware": middleware,
            "attempt_middleware": attempt_middleware,
            "observers": observers,
            "app_name": app_name,
            "headers": headers,
            "allow_http": allow_http,
            "hedge": hedge,
            "coalesce": coalesce,
            "poll_pending": poll_pending,
            "codec": codec,
            "clock": clock,
        }
        self._set_up(Pool(sessions, transport))

    def _set_up(self, pool: Pool, source: SecretSource | None = None) -> None:
        options, settings = self._options, self._options["settings"]
        options["codec"] = options["codec"] or Codec()
        options["clock"] = options["clock"] or SystemClock()
        _check_parts(options)
        self._settings: Settings = settings
        self._clock: Clock = options["clock"]
        self._codec: Codec = options["codec"]
        self._endpoint = make_endpoint(
            options["instance"],
            auth_scheme=options["auth_scheme"],
            base_url=options["base_url"],
            allow_http=options["allow_http"],
            app_name=options["app_name"],
            headers=options["headers"],
            user_agent=f"flinks-async/{__version__}",
        )
        self._pool = pool
        if pool.sessions is not None:
            pool.sessions.proxy_for(self._endpoint)  # a wrong proxy is told now
            transport: Transport = AiohttpTransport(pool.sessions, settings.timeouts, settings.limits.max_body)
        else:
            assert pool.transport is not None
            transport = pool.transport
        secret: Secret | SecretProvider = options["auth_secret"]
        self._secret = secret if isinstance(secret, Secret) else None
        self._source = None if isinstance(secret, Secret) else source or SecretSource(secret, self._clock)
        self._handler = self._compose(transport)
        self._local: LoopState | None = None
        self._locals = LoopStates()
        self._closed = False
        self._counters = RequestCounters()
        self._derived: weakref.WeakSet[FlinksClient] = weakref.WeakSet()
        self._owns_pool = True

    def _compose(self, transport: Transport) -> Handler:
        options, settings, clock = self._options, self._settings, self._clock
        observers = tuple(options["observers"])
        attempt: Handler = Attempt(transport, self._codec, clock, settings.timeouts, settings.retry)
        if observers:
            attempt = Observed(attempt, observers)
        chain: list[Middleware] = [*map(checked, options["middleware"])]
        # What few ask for is imported when it is asked for.
        if options["coalesce"]:
            from .middleware.coalesce import CoalesceMiddleware

            chain.append(CoalesceMiddleware())
        if options["poll_pending"] is not None:
            from .middleware.pending import PollPendingMiddleware

            chain.append(PollPendingMiddleware(options["poll_pending"], clock))
        if self._source is not None:
            chain.append(AuthMiddleware(self._source))
        chain.append(RetryMiddleware(settings.retry, clock, observers))
        if options["hedge"] is not None:
            from .middleware.hedge import HedgeMiddleware

            chain.append(HedgeMiddleware(options["hedge"], clock))
        return compose((*chain, *map(checked, options["attempt_middleware"])), attempt)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **options: Any) -> Self:
        """A client from FLINKS_INSTANCE, FLINKS_AUTH_SECRET, FLINKS_AUTH_SCHEME and FLINKS_BASE_URL.

        Args:
            environ: instead of `os.environ`.
            options: arguments of `FlinksClient`; they win over the environment.
        """
        found = _without_bare_texts(config.from_env(environ))
        del environ  # it holds the bare secret
        options = _without_bare_texts(options)
        if "instance" in options:
            found.pop("base_url", None)  # it names another place than the argument does
        merged = {"auth_secret": None, **found, **options}
        if merged["auth_secret"] is None:
            raise ConfigError(
                f"auth_secret is missing: set FLINKS_AUTH_SECRET. {WHERE_SECRETS_COME_FROM}. {OTHER_HEADER_FORMS}"
            )
        return cls(**merged)

    def with_options(self, **options: Any) -> Self:
        """A client with some settings changed, on the same connection pool.

        Args:
            options: arguments of `FlinksClient`, except `connection`, `session` and `transport`, which belong to the
                pool. For another Flinks client: `with_options(instance=..., auth_secret=...)`.

        Closing it ends its own calls only; closing the client it comes from closes both.
        """
        options = _without_bare_texts(options)
        if self._closed:
            raise ClientClosedError("the client is closed")
        records = {name: options.pop(name, None) for name in ("retry", "timeouts", "limits")}
        unknown = options.keys() - (self._options.keys() - {"settings"}) - {"settings"}
        if unknown:
            raise ConfigError(
                f"with_options does not take {', '.join(sorted(map(repr, unknown)))}; it takes "
                f"{', '.join(sorted({*self._options, *records}))}"
            )
        if "auth_secret" in options and not callable(options["auth_secret"]):
            options["auth_secret"] = check_secret(options["auth_secret"])
        if "instance" in options and "base_url" not in options:
            options["base_url"] = None
        preset = options.pop("settings", None)
        # The pool stays, and with it its connection settings.
        if preset is None:
            preset = self._settings
        elif isinstance(preset, Settings):
            preset = evolve(preset, connection=self._settings.connection)
        client = object.__new__(type(self))
        client._options = {**self._options, **options, "settings": config.choose(preset, records)}
        same_secret = client._options["auth_secret"] is self._options["auth_secret"]
        client._set_up(self._pool, self._source if same_secret else None)
        client._owns_pool = False
        self._derived.add(client)
        return client

    @hides_token
    async def partner_access(self, token: Token, *, timeout: float | None = None) -> PartnerAccessResponse:
        """The account data of one access token.

        Args:
            token: the access token.
            timeout: seconds for the whole call, instead of `Timeouts.deadline`.

        Raises:
            FlinksError: see `flinks_async.errors` for the tree.
        """
        token = check_token(token)  # under the same name, so that no frame of ours holds a bare text
        response = await self.respond(token, timeout)
        assert response.answer is not None
        return response.answer

    async def respond(
        self, token: Secret, timeout: float | None = None, *, permit: SendPermit | None = None
    ) -> Response:
        """As `partner_access`, for a token that was checked: the answer (`Response.answer`) and the body it was read
        from. Internal; used by `flinks_async.bulk`.
        """
        response = await self._run(token, timeout, raw=False, permit=permit)
        if response.answer is None:  # a middleware answered by itself
            return evolve(response, answer=self._codec.decode(response.body, response.meta))
        return response

    @hides_token
    async def partner_access_raw(self, token: Token, *, timeout: float | None = None) -> Response:
        """The HTTP response for one access token, whatever its status, after the same retries; not decoded.

        Raises:
            FlinksError: there is no HTTP response.
        """
        token = check_token(token)
        return await self._run(token, timeout, raw=True)

    @overload
    def partner_access_many(
        self,
        tokens: Iterable[tuple[K, Token]] | AsyncIterable[tuple[K, Token]],
        *,
        concurrency: int | None = None,
        ordered: bool = False,
        timeout: float | None = None,
    ) -> AsyncGenerator[Outcome[K], None]: ...

    @overload
    def partner_access_many(
        self,
        tokens: Iterable[Token] | AsyncIterable[Token],
        *,
        concurrency: int | None = None,
        ordered: bool = False,
        timeout: float | None = None,
    ) -> AsyncGenerator[Outcome[int], None]: ...

    def partner_access_many(
        self,
        tokens: Iterable[Any] | AsyncIterable[Any],
        *,
        concurrency: int | None = None,
        ordered: bool = False,
        timeout: float | None = None,
    ) -> AsyncGenerator[Outcome[Any], None]:
        """The account data of many access tokens, as they come; memory does not grow with their number.

        Args:
            tokens: tokens, or (key, token) pairs, from any (async) iterable; it is read as fast as needed. The key of a
                bare token is its position, from 0.
            concurrency: calls at the same time, up to 100,000; default `Limits.concurrency`, or the most that it may
                become.
            ordered: give the outcomes in the order of the tokens.
            timeout: seconds for each call, instead of `Timeouts.deadline`.

        Returns:
            an async generator of `Fetched(key, response)` and `Failed(key, error)`. Leaving the loop early cancels what
            is in flight and closes `tokens` if it is a generator; use `contextlib.aclosing` to have that done at once.

        Raises:
            ConfigError: an argument is wrong.
            ClientClosedError: the client was closed before all tokens were taken.
            Exception: what iterating over `tokens` raised, after the outcomes of the tokens taken before it.
        """
        source, by_key = Source(tokens), isinstance(tokens, Mapping)
        del tokens  # no frame of ours holds bare tokens
        if by_key:
            raise ConfigError(
                "tokens must not be a mapping, whose keys would be sent: give its items(), or its values()"
            )
        if not source.readable:
            raise ConfigError("tokens must be an iterable of tokens or (key, token) pairs; for one, use partner_access")
        workers = self._settings.limits.most_at_once if concurrency is None else concurrency
        if not checks.is_whole(workers, 1, checks.MOST_AT_ONCE):
            raise ConfigError(f"concurrency {checks.must_be_whole(workers, 1, checks.MOST_AT_ONCE)}")
        checks.flag("ordered", ordered)
        if timeout is not None and not _is_timeout(timeout):
            raise _wrong_timeout(timeout)
        if self._closed:
            raise ClientClosedError("the client is closed")
        fetch = self.partner_access if timeout is None else partial(self.partner_access, timeout=timeout)
        return fan_out(source, fetch, concurrency=workers, ordered=ordered)

    async def _run(
        self, token: Secret, timeout: float | None, *, raw: bool, permit: SendPermit | None = None
    ) -> Response:
        if timeout is None:
            timeout = self._settings.timeouts.deadline
        elif not _is_timeout(timeout):
            raise _wrong_timeout(timeout)
        local = self._enter()
        now = self._clock.now()
        call = Call(now, local, None if timeout is None else now + timeout, secret=self._secret, permit=permit)
        request = Request(self._endpoint, token, call, raw=raw)
        problem: FlinksError
        scope = CancelScope()
        local.calls.add(scope)
        if timeout is not None:
            local.sweeper.arm(scope, timeout)
        response: Response | None = None
        try:
            with scope:
                response = await self._handler(request)
                if response.answer is not None and response.verdict is OK:
                    return response
            if response is not None:
                refusal = None if raw else self._refusal(request, response)
                if refusal is None:
                    return response
                problem, response = refusal, None  # the error holds this frame, which must not hold the body
            elif self._closed:
                problem = ClientClosedError("the client was closed while the call was under way")
            else:
                problem = DeadlineExceededError(
                    f"no answer from {self._endpoint.host} within {timeout:g} s ({call.attempts} attempts sent)"
                )
        except FlinksError as error:
            problem = error
        finally:
            local.end(scope)
        problem.attempts = call.attempts
        problem.elapsed = self._clock.now() - call.started
        problem.token_fingerprint = fingerprint(token)
        # Without the frames below this one, which hold nothing that helps a user, and without a cause.
        problem.__traceback__ = problem.__context__ = problem.__cause__ = None
        try:
            raise problem
        finally:
            del problem  # nor itself

    def _refusal(self, request: Request, response: Response) -> FlinksError | None:
        verdict = verdict_of(response, self._settings.retry.throttle_statuses)
        return None if verdict.kind is Kind.OK else error_from(request, response, verdict, self._clock)

    def _enter(self) -> LoopState:
        if self._closed:
            raise ClientClosedError("the client is closed")
        loop = asyncio.get_running_loop()
        local = self._local
        if local is None or local.loop is not loop:
            local = self._locals.get(loop)
            if local is None:
                self._locals.drop_closed()
                secret = self._options["auth_secret"]
                local = self._pool.local(loop, self._endpoint.url, secret, self._settings, self._clock)
                local.counters = self._counters
                self._locals[loop] = local
            self._local = local
        return local

    def stats(self) -> ClientStats:
        """Counters, as they stand now."""
        here = [local for local in tuple(self._locals.values()) if not local.loop.is_closed()]
        return ClientStats(
            connections=ConnectionStats() if self._pool.sessions is None else self._pool.sessions.stats(),
            calls_in_flight=sum(len(local.calls) for local in here),
            requests_in_flight=sum(local.governor.in_use for local in here),
            queued=sum(local.governor.waiting for local in here),
            queue_time=self._counters.queue_time,
            requests=self._counters.requests,
            retries=self._counters.retries,
            limit=sum(local.governor.concurrency.limit for local in here),
            throttled=sum(local.governor.throttled for local in here),
            held_back=max((local.governor.held_back for local in here), default=0.0),
            answered=any(local.governor.answered for local in here),
            trouble=next((local.governor.trouble for local in here if local.governor.trouble is not None), None),
        )

    def explain(self) -> str:
        """The effective settings and the schedule of retries, as text; secrets are masked."""
        from .explain import explain

        return explain(
            self._settings,
            self._endpoint,
            {name: self._options[name] for name in ("hedge", "coalesce", "poll_pending")},
        )

    @property
    def settings(self) -> Settings:
        """The effective settings."""
        return self._settings

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that make another client like this one. For the rooms above this one."""
        sessions = self._pool.sessions
        own = {"session": None if sessions is None else sessions.borrowed, "transport": self._pool.transport}
        return {**self._options, **own}

    @property
    def governor(self) -> Governor:
        """Where its requests wait, in the running loop. For the rooms above this one."""
        return self._enter().governor

    @property
    def host(self) -> str:
        """Where requests go: host, and port if it is not the usual one."""
        return self._endpoint.host

    @property
    def closed(self) -> bool:
        """True as soon as `close()` has been called."""
        return self._closed

    async def close(self, *, grace: float = 5.0) -> None:
        """Ends the client: no new calls; those in flight have `grace` seconds, then they end with `ClientClosedError`.

        It may be called again, also with a shorter grace. Cancelled, it ends at once what is in flight.

        Raises:
            ConfigError: `grace` is not a number. Then nothing was closed.
        """
        if not checks.is_number(grace):
            raise ConfigError(f"grace must be a number of seconds up to {checks.MOST:g}, not {checks.shown(grace)}")
        family = self._family()
        for client in family:
            client._closed, client._local = True, None
        await pool.close([client._locals for client in family], self._pool if self._owns_pool else None, grace)

    def _family(self) -> list[FlinksClient]:
        return [self, *(member for client in tuple(self._derived) for member in client._family())]

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        if "_owns_pool" not in vars(self):  # in a traceback of the constructor, which sets this last
            return "<FlinksClient>"
        return f"<FlinksClient {self._endpoint.host}{' closed' if self._closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a FlinksClient holds a secret and connections and refuses to be pickled: make one where you need it"
        )


def _without_bare_texts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `FlinksClient`, those that may hold a secret in a form that a frame may hold."""
    hidden = {"connection": _without_bare_proxy, "headers": headers_out_of_sight}
    hidden |= dict.fromkeys(("auth_secret", "base_url"), out_of_sight)
    return {name: hidden[name](value) if name in hidden else value for name, value in options.items()}


def _without_bare_proxy(connection: Any) -> Any:
    if not isinstance(connection, Mapping) or "proxy" not in connection:
        return connection
    return {**connection, "proxy": out_of_sight(connection["proxy"])}


def _check_parts(options: Mapping[str, Any]) -> None:
    """What the constructor cannot leave to a record."""
    for name in ("middleware", "attempt_middleware", "observers"):
        if not isinstance(options[name], Iterable):
            raise ConfigError(f"{name} must be a sequence of callables, not {type(options[name]).__name__}")
        for part in options[name]:
            if not callable(part):
                raise ConfigError(f"{name}: {type(part).__name__} is not callable")
    for name in ("allow_http", "coalesce"):
        checks.flag(name, options[name])
    for name, expected in (("hedge", Hedge), ("poll_pending", PollPending)):
        if options[name] is not None and not isinstance(options[name], expected):
            raise ConfigError(f"{name} must be a {expected.__name__} record, not {type(options[name]).__name__}")
    if not isinstance(options["codec"], Codec):
        raise ConfigError(f"codec must be a Codec, not {type(options['codec']).__name__}")
    missing = [
        name for name in ("now", "time", "sleep", "random") if not callable(getattr(options["clock"], name, None))
    ]
    if missing:
        raise ConfigError(f"clock has no {', '.join(missing)}: {type(options['clock']).__name__}")


def _is_timeout(timeout: object) -> bool:
    return checks.is_number(timeout) and timeout > 0  # type: ignore[operator]


def _wrong_timeout(timeout: object) -> ConfigError:
    return ConfigError(
        f"timeout must be a number of seconds greater than 0, up to {checks.MOST:g}, not {checks.shown(timeout)}"
    )
