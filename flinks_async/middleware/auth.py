"""An AuthSecret that is asked for: from a vault, a file, a rotation service.

It is asked for when first needed, once for all who wait, and kept until an answer refuses it; then once more.
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
from ..runtime.event_loop import PerLoop
from ..secret import Secret, SecretProvider
from ..verdict import Kind

# Seconds before a secret that was confirmed is asked for again: one dead token among many may look like a refused
# secret, and must not become a flood of questions.
CONFIRMED_FOR = 60.0

# The same when it could not be said: a vault that is down is not asked for each refused token, and a new secret is not
# missed for long.
NOT_SAID_FOR = 10.0


@define(eq=False)
class _Question:
    """The provider at work, and how many wait for what it says."""

    task: asyncio.Task[Secret | ConfigError]
    waiters: int = 0


class SecretSource:
    """Remembers what the provider said, and sees that it is asked once at a time in each event loop."""

    def __init__(self, provider: SecretProvider, clock: Clock) -> None:
        self._provider = provider
        self._clock = clock
        self._not_before = 0.0
        self._asking: PerLoop[_Question] = PerLoop()
        self.current: Secret | None = None
        self.problem: str | None = None  # why the provider could not say, when it was asked last

    async def get(self) -> Secret:
        """The secret, asked for if need be."""
        return self.current or await self._ask()

    async def replace(self, refused: Secret) -> bool:
        """After a refusal: whether there is another secret now."""
        if self.current != refused:
            return self.current is not None
        if self._clock.now() < self._not_before:
            return False
        try:
            confirmed = await self._ask() == refused
        except ConfigError:
            self._not_before = self._clock.now() + NOT_SAID_FOR
            return False
        if confirmed:
            self._not_before = self._clock.now() + CONFIRMED_FOR
        return not confirmed

    def refusal(self, request: Request, response: Response) -> AuthenticationError:
        """What a refused request becomes when the provider could not say whether there is another secret."""
        error = error_from(request, response, verdict_of(response), self._clock)
        message = f"{error.message}. Whether there is another one is not known: {self.problem}"
        return AuthenticationError(message, **{**error.fields(), "provider_problem": self.problem})

    async def _ask(self) -> Secret:
        loop = asyncio.get_running_loop()
        question = self._asking.get(loop)
        if question is None:
            self._asking.take_closed()  # loops that were closed while the provider ran
            # A task of its own: the first to wait may be cancelled, the others still want the answer.
            question = self._asking[loop] = _Question(loop.create_task(self._call_provider()))
        question.waiters += 1
        try:
            await asyncio.wait((question.task,))
        finally:
            question.waiters -= 1
            if self._asking.get(loop) is question and (question.task.done() or not question.waiters):
                del self._asking[loop]
            if not question.waiters and not loop.is_closed():
                question.task.cancel()  # a provider that hangs is asked anew by the next call
        answer = question.task.result()
        self.problem = answer.message if isinstance(answer, ConfigError) else None
        if isinstance(answer, ConfigError):
            raise copy.copy(answer)  # each waiter gets its own
        return answer

    async def _call_provider(self) -> Secret | ConfigError:
        try:
            self.current = check_secret(await self._provider())
        except FlinksError as error:
            return ConfigError(f"from the auth_secret callable: {error.message}")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return ConfigError("the auth_secret callable raised CancelledError, though nobody had cancelled it")
        except Exception as error:
            # Only the type: the text of a foreign error may hold anything, the secret too.
            return ConfigError(f"the auth_secret callable raised {type(error).__name__}")
        return self.current


class AuthMiddleware:
    """Puts the secret into the call's books, and asks for another one when it is refused."""

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
