"""The options of a client, in one frozen record that the client, clients derived from it and worker processes read.

`ClientArguments` is what a caller may pass, for type checkers. `ClientOptions` is what a client keeps: every argument
checked, defaults filled in, secrets wrapped. It makes the endpoint and the chain of handlers from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import isasyncgenfunction, iscoroutinefunction, isfunction, isgeneratorfunction, ismethod
from types import NoneType
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from attrs import Attribute, evolve, field, frozen

from . import checks, config
from ._version import __version__
from .clock import Clock, SystemClock
from .codec import Codec
from .config import (
    AuthScheme,
    Connection,
    ConnectionFields,
    Hedge,
    Limits,
    LimitsFields,
    PollPending,
    Retry,
    RetryFields,
    Settings,
    Timeouts,
    TimeoutsFields,
)
from .endpoint import Endpoint, check_secret, make_endpoint
from .errors import ConfigError
from .messages import Handler, Middleware, Transport, checked, compose, name_of
from .middleware.attempt import Attempt, Observed
from .middleware.auth import AuthMiddleware, SecretSource
from .middleware.retry import PollPendingMiddleware, RetryMiddleware
from .observe import Observer, log_as_environment_says
from .secret import Secret, SecretProvider, wrap_header_values, wrap_secret

if TYPE_CHECKING:
    from aiohttp import ClientSession
else:
    ClientSession = Any  # so that tools such as cattrs can read the annotations

AuthSecret = str | Secret | SecretProvider
A = TypeVar("A", bound=Mapping[str, object])


class DerivedArguments(TypedDict, total=False):
    """The arguments of `FlinksClient.with_options`; `FlinksClient` documents them."""

    instance: str
    auth_secret: AuthSecret
    auth_scheme: AuthScheme
    base_url: str | None
    settings: Settings | None
    retry: Retry | RetryFields | None
    timeouts: Timeouts | TimeoutsFields | None
    limits: Limits | LimitsFields | None
    middleware: Sequence[Middleware]
    attempt_middleware: Sequence[Middleware]
    observers: Sequence[Observer]
    app_name: str | None
    headers: Mapping[str, str] | None
    allow_http: bool
    hedge: Hedge | None
    coalesce: bool
    poll_pending: PollPending | None
    codec: Codec | None
    clock: Clock | None


class ClientArguments(DerivedArguments, total=False):
    """The arguments of `FlinksClient` and of `FlinksClient.from_env`: these and those that belong to the pool."""

    connection: Connection | ConnectionFields | None
    session: ClientSession | None
    transport: Transport | None


def wrap_secrets(arguments: A) -> A:
    """Wraps the arguments that may hold a secret, so that no frame of a traceback shows one."""
    wrap = {
        "auth_secret": wrap_secret,
        "base_url": wrap_secret,
        "connection": wrap_proxy,
        "headers": wrap_header_values,
    }
    wrapped: Any = {name: wrap[name](value) if name in wrap else value for name, value in arguments.items()}
    return wrapped  # type: ignore[no-any-return]


def wrap_proxy(connection: Any) -> Any:
    """Wraps the proxy in a mapping of `Connection` fields; its URL may hold a password."""
    if not isinstance(connection, Mapping) or "proxy" not in connection:
        return connection
    return {**connection, "proxy": wrap_secret(connection["proxy"])}


def _auth_secret(value: Any) -> Any:
    return value if callable(value) else check_secret(value)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, Iterable) else value  # the validator refuses anything else


def _codec(value: Codec | None) -> Codec:
    return Codec() if value is None else value


def _clock(value: Clock | None) -> Clock:
    return SystemClock() if value is None else value


def _callables(instance: object, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, tuple):
        raise ConfigError(f"{attribute.name} must be a sequence of callables, not {type(value).__name__}")
    for part in value:
        if not callable(part):
            raise ConfigError(f"{attribute.name}: {type(part).__name__} is not callable")


def _middleware(instance: object, attribute: Attribute[Any], value: Any) -> None:
    _callables(instance, attribute, value)
    for part in value:
        if isgeneratorfunction(part) or isasyncgenfunction(part) or _returns_a_value(part):
            raise ConfigError(
                f"{attribute.name}: {name_of(part)} is not async; write `async def` and return a Response"
            )


def _returns_a_value(part: Any) -> bool:
    """Whether a middleware is a plain function. One that wraps another, or that says that it returns an awaitable, is not:
    it may return what `call_next` returned.
    """
    if not (isfunction(part) or ismethod(part)) or iscoroutinefunction(part) or hasattr(part, "__wrapped__"):
        return False
    if part.__name__ == "<lambda>":
        return False
    said = str(part.__annotations__.get("return", ""))
    return not any(word in said for word in ("Awaitable", "Coroutine", "Future", "Task", "Any"))


def _observers(instance: object, attribute: Attribute[Any], value: Any) -> None:
    _callables(instance, attribute, value)
    for part in value:
        for called in (part, getattr(part, "__call__", None)):  # noqa: B004 # also an object whose `__call__` is async
            if iscoroutinefunction(called) or isasyncgenfunction(called) or isgeneratorfunction(called):
                raise ConfigError(
                    f"observers: {name_of(part)} must be a plain function; observers are called, not awaited (start a task)"
                )


def _is_clock(instance: object, attribute: Attribute[Any], value: Any) -> None:
    missing = [name for name in ("now", "time", "sleep", "random") if not callable(getattr(value, name, None))]
    if missing:
        raise ConfigError(f"clock has no {', '.join(missing)}: {type(value).__name__}")


@frozen(kw_only=True, eq=False, repr=False)  # a traceback may show it half made, and a repr would raise then
class ClientOptions:
    """The checked arguments of one client; `FlinksClient` documents them.

    `settings` is the preset with `retry`, `timeouts`, `limits` and `connection` applied. `base_url` and the values of
    `headers` are wrapped, because they may hold a secret; `endpoint()` checks them.

    Raises:
        ConfigError: an argument is wrong; the message names it.
    """

    instance: str
    auth_secret: Secret | SecretProvider = field(converter=_auth_secret)
    auth_scheme: AuthScheme
    base_url: Secret | None = field(converter=wrap_secret)
    settings: Settings
    middleware: tuple[Middleware, ...] = field(converter=_as_tuple, validator=_middleware)
    attempt_middleware: tuple[Middleware, ...] = field(converter=_as_tuple, validator=_middleware)
    observers: tuple[Observer, ...] = field(converter=_as_tuple, validator=_observers)
    app_name: str | None
    headers: Mapping[str, Secret] | None = field(converter=wrap_header_values)
    allow_http: bool = field(validator=checks.validator(checks.flag))
    hedge: Hedge | None = field(validator=checks.one_of(Hedge, NoneType))
    coalesce: bool = field(validator=checks.validator(checks.flag))
    poll_pending: PollPending | None = field(validator=checks.one_of(PollPending, NoneType))
    session: ClientSession | None
    transport: Transport | None
    codec: Codec = field(converter=_codec, validator=checks.one_of(Codec))
    clock: Clock = field(converter=_clock, validator=_is_clock)

    def __attrs_post_init__(self) -> None:
        if self.session is not None and self.transport is not None:
            raise ConfigError("give either session or transport, not both")
        log_as_environment_says()

    def endpoint(self) -> Endpoint:
        """Where requests go, and their headers."""
        return make_endpoint(
            self.instance,
            auth_scheme=self.auth_scheme,
            base_url=self.base_url,
            allow_http=self.allow_http,
            app_name=self.app_name,
            headers=self.headers,
            user_agent=f"flinks-async/{__version__}",
        )

    def handler(self, transport: Transport, source: SecretSource | None) -> Handler:
        """Composes the chain that a request passes through, in the order of this function, down to the transport.

        Args:
            source: asks for the AuthSecret, if it is a callable.
        """
        settings, clock = self.settings, self.clock
        attempt = Attempt(transport, self.codec, clock, settings.timeouts, settings.retry)
        chain: list[Middleware] = [*map(checked, self.middleware)]
        # Optional middleware is imported lazily.
        if self.coalesce:
            from .middleware.coalesce import CoalesceMiddleware

            chain.append(CoalesceMiddleware())
        if self.poll_pending is not None:
            chain.append(PollPendingMiddleware(self.poll_pending, clock))
        if source is not None:
            chain.append(AuthMiddleware(source))
        chain.append(RetryMiddleware(settings.retry, clock, self.observers))
        if self.hedge is not None:
            from .middleware.hedge import HedgeMiddleware

            chain.append(HedgeMiddleware(self.hedge, clock))
        return compose((*chain, *map(checked, self.attempt_middleware)), Observed.handler(attempt, self.observers))

    def derive(self, changes: DerivedArguments) -> ClientOptions:
        """These options with some changed, for a client on the same pool. Secrets in `changes` must be wrapped.

        Raises:
            ConfigError: a change is wrong, unknown, or belongs to the pool.
        """
        known = DerivedArguments.__optional_keys__
        changed: dict[str, Any] = {**changes}
        if unknown := changed.keys() - known:
            raise ConfigError(
                f"with_options does not take {', '.join(sorted(map(repr, unknown)))}; it takes {', '.join(sorted(known))}"
            )
        if "instance" in changed:
            changed.setdefault("base_url", None)  # the old address belongs to the old instance
        preset = changed.pop("settings", None)
        if preset is None:
            preset = self.settings
        elif isinstance(preset, Settings):
            preset = evolve(preset, connection=self.settings.connection)  # it belongs to the pool
        records = {name: changed.pop(name, None) for name in ("retry", "timeouts", "limits")}
        return evolve(self, **changed, settings=config.choose(preset, records))


def copy_attributes(source: object, target: object) -> None:
    """Copies all attributes of a client, including those in `__slots__` of a subclass."""
    state: Any = object.__getstate__(source)
    for attributes in state if isinstance(state, tuple) else (state,):
        for name, value in (attributes or {}).items():
            object.__setattr__(target, name, value)
