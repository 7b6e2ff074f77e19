"""An AuthSecret from a callable: a vault, a file, a rotation service.

The callable is called when a secret is first needed, once for all calls that wait for it. Its secret is kept until an
answer refuses it; then it is called again.
"""

from __future__ import annotations

import asyncio
import copy

from attrs import define

from ..classify import error_from, verdict_of
from ..clock import Clock
from ..endpoint import check_secret
from ..errors import AuthenticationError, ConfigError, FlinksError
from ..messages import Handler, Request, Response
from ..runtime import PerLoop
from ..secret import Secret, SecretProvider
from ..verdict import Kind

# Seconds without another call after the provider returned the refused secret again. A dead token may look like a refused
# secret, and many of them must not flood the provider.
CONFIRMED_COOLDOWN = 60.0

# Seconds without another call after the provider failed: long enough to spare a vault that is down, short enough to get a
# new secret soon.
FAILED_COOLDOWN = 10.0


@define(eq=False, repr=False)
class _ProviderCall:
    """A running call of the provider, and the number of calls that wait for it."""

    task: asyncio.Task[Secret | ConfigError]
    waiters: int = 0


class SecretSource:
    """Keeps the provider's secret, and calls the provider at most once at a time in each event loop.

    Attributes:
        current: the secret; None before the first call.
        problem: why the provider's latest call failed; None if it did not.
    """

    def __init__(self, provider: SecretProvider, clock: Clock) -> None:
        self._provider = provider
        self._clock = clock
        self._cooldown_until = 0.0
        self._running: PerLoop[_ProviderCall] = PerLoop()
        self.current: Secret | None = None
        self.problem: str | None = None

    async def get(self) -> Secret:
        """The secret; calls the provider if there is none yet."""
        return self.current or await self._fetch()

    async def replace(self, refused: Secret) -> bool:
        """After a refusal: looks for another secret, and returns whether there is one."""
        if self.current != refused:
            return self.current is not None
        if self._clock.now() < self._cooldown_until:
            return False
        try:
            confirmed = await self._fetch() == refused
        except ConfigError:
            self._cooldown_until = self._clock.now() + FAILED_COOLDOWN
            return False
        if confirmed:
            self._cooldown_until = self._clock.now() + CONFIRMED_COOLDOWN
        return not confirmed

    def refusal(self, request: Request, response: Response) -> AuthenticationError:
        """The error of a refused request if the provider failed, so that it is unknown whether there is another secret."""
        error = error_from(request, response, verdict_of(response), self._clock)
        message = f"{error.message}. Whether there is another one is not known: {self.problem}"
        fields = {**error.fields(), "message": message, "provider_problem": self.problem}
        del fields["class"]
        return AuthenticationError(**fields)

    async def _fetch(self) -> Secret:
        loop = asyncio.get_running_loop()
        running = self._running.get(loop)
        if running is None:
            self._running.take_closed()  # loops that were closed while the provider ran
            # A task of its own, because the first waiter may be cancelled while others still wait.
            running = self._running[loop] = _ProviderCall(loop.create_task(self._call_provider()))
        running.waiters += 1
        try:
            await asyncio.wait((running.task,))
        finally:
            running.waiters -= 1
            if self._running.get(loop) is running and (running.task.done() or not running.waiters):
                del self._running[loop]
            if not running.waiters and not loop.is_closed():
                running.task.cancel()  # a provider that hangs is called again for the next call
        result = running.task.result()
        self.problem = result.message if isinstance(result, ConfigError) else None
        if isinstance(result, ConfigError):
            raise copy.copy(result)  # each waiter gets its own
        return result

    async def _call_provider(self) -> Secret | ConfigError:
        try:
            self.current = check_secret(await self._provider())
        except FlinksError as error:
            return ConfigError(f"from the auth_secret callable: {error.message}")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return ConfigError("the auth_secret callable raised CancelledError, although it was not cancelled")
        except Exception as error:
            # Only the type, because the error's text may contain the secret.
            return ConfigError(f"the auth_secret callable raised {type(error).__name__}")
        return self.current


class AuthMiddleware:
    """Sets the secret of a call. If it is refused and there is another one, it sends the request again."""

    def __init__(self, source: SecretSource) -> None:
        self._source = source

    async def __call__(self, request: Request, call_next: Handler, /) -> Response:
        call = request.call
        call.secret = await self._source.get()
        response = await call_next(request)
        if verdict_of(response).kind is Kind.REFUSED:
            if await self._source.replace(call.secret):
                call.secret = await self._source.get()
                return await call_next(request)
            if self._source.problem is not None and not request.raw:
                raise self._source.refusal(request, response)
        return response
