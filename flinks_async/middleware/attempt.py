"""One attempt: wait for a place, send under a timer, give the place back, understand the answer.

The timer starts when the place is there, so that a queue is never mistaken for a slow server; decoding comes after
both are released, so that neither the place nor the timer pays for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..classify import Verdict, classify_error, classify_response
from ..clock import Clock
from ..codec import Codec, envelope_of, read_envelope
from ..config import Retry, Timeouts
from ..errors import AttemptTimeoutError, DecodeError, FlinksError
from ..messages import Request, Response
from ..observe import AttemptFinished, AttemptStarted, Observer, emit
from ..scope import Scope
from ..secret import fingerprint
from ..transport import Transport


class Attempt:
    """The innermost handler of the chain."""

    def __init__(
        self,
        transport: Transport,
        codec: Codec,
        clock: Clock,
        timeouts: Timeouts,
        retry: Retry,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._transport = transport
        self._codec = codec
        self._now = clock.now
        self._timeout = timeouts.attempt
        self._throttle_statuses = retry.throttle_statuses
        self._observers = observers

    async def __call__(self, request: Request, /) -> Response:
        if self._observers:
            return await self._observed(request)
        return self._understand(request, await self._send(request))

    async def _send(self, request: Request) -> Response:
        call, timeout = request.call, self._timeout
        governor = call.local.governor
        if not governor.try_acquire():
            asked = self._now()
            try:
                await governor.acquire()
            finally:
                waited = self._now() - asked
                call.queue_time += waited
                call.local.queue_time += waited
        sent = self._now()
        call.attempts += 1
        try:
            if timeout is None or (call.deadline is not None and call.deadline - sent <= timeout):
                return await self._transport.send(request)  # the deadline comes first, and has its own timer
            scope = Scope()
            call.local.sweeper.arm(scope, timeout)
            with scope:
                return await self._transport.send(request)
        finally:
            governor.release()
            call.wire_time += self._now() - sent
        raise AttemptTimeoutError(f"no whole answer from {request.endpoint.host} within {timeout:g} s")

    def _understand(self, request: Request, response: Response) -> Response:
        call, status, answer = request.call, response.status, None
        meta = call.meta(status)
        hidden = (request.token,) if call.secret is None else (request.token, call.secret)
        if status == 200 and not request.raw:
            try:
                answer = self._codec.decode(response.body, meta)
            except DecodeError as error:
                error.status = status
                raise
            envelope = envelope_of(answer, *hidden)
        else:
            envelope = read_envelope(response.body, *hidden)
        verdict = classify_response(status, envelope, self._throttle_statuses)
        return Response(status, response.headers, response.body, answer, envelope, verdict, meta)

    async def _observed(self, request: Request) -> Response:
        call, token = request.call, fingerprint(request.token)
        number = call.attempts + 1
        queue_time, wire_time = call.queue_time, call.wire_time
        emit(self._observers, AttemptStarted(request.endpoint.host, number, token))
        verdict: Verdict | None = None
        response: Response | None = None
        try:
            response = await self._send(request)
            response = self._understand(request, response)
            verdict = response.verdict
        except FlinksError as error:
            verdict = classify_error(error)
            raise
        finally:
            finished = AttemptFinished(
                request.endpoint.host,
                number,
                token,
                verdict,
                None if response is None else response.status,
                call.queue_time - queue_time,
                call.wire_time - wire_time,
                0 if response is None else len(response.body),
            )
            emit(self._observers, finished)
        return response
