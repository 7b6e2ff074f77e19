"""One attempt: wait for a slot, send under a timer, release the slot, decode the answer.

The timer starts once the slot is taken, so that a queue is not mistaken for a slow server. Decoding comes after slot and
timer are released, because it uses neither the network nor the server.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from math import inf

from ..classify import classify_error, classify_response, outcome_line
from ..clock import Clock
from ..codec import DIRECT_SIZE, Codec, envelope_of, read_envelope
from ..config import Retry, Timeouts
from ..errors import (
    AttemptTimeoutError,
    ConnectTimeoutError,
    DeadlineExceededError,
    DecodeError,
    FlinksError,
    ShortageError,
)
from ..limits.notices import emit
from ..limits.pace import AttemptRecord
from ..messages import Call, Handler, Request, Response, Transport, new_response
from ..models import Meta, PartnerAccessResponse, new_meta
from ..observe import AttemptFinished, AttemptStarted, Observer
from ..runtime import LATE
from ..secret import fingerprint
from ..verdict import EMPTY_ENVELOPE, OK, Kind, Verdict

_TIMED_OUT = Verdict(Kind.TRANSIENT, "DeadlineExceededError", DeadlineExceededError)

# Seconds. aiohttp rounds timers above 5 s up to a whole second.
_LATE_CONNECT = LATE + 1.0


class Attempt:
    """The innermost handler of the chain, and the only one that sends."""

    def __init__(self, transport: Transport, codec: Codec, clock: Clock, timeouts: Timeouts, retry: Retry) -> None:
        self._transport = transport
        self._codec = codec
        self._clock = clock
        self._now = clock.now
        self._timeout = timeouts.attempt
        self._connect_is_late = inf if timeouts.connect is None else timeouts.connect + _LATE_CONNECT
        self._throttle_statuses = retry.throttle_statuses
        self._verdict_on_data = classify_response(200, throttle_statuses=retry.throttle_statuses)

    async def __call__(self, request: Request, /) -> Response:
        call, timeout, probe = request.call, self._timeout, False
        local, permit = call.local, call.permit
        governor = local.governor
        if permit is not None and permit.revoked:
            raise DeadlineExceededError("not sent: the caller wants no more requests")
        if not governor.try_acquire():
            probe = await self._wait_for_slot(call)
        sent = now = self._now()
        number, in_flight = governor.sent, governor.in_use
        call.attempts += 1
        call.headers_at, call.blocked = None, False
        response: Response | None = None
        if permit is not None:
            permit.on_wire += 1
        try:
            try:
                own_deadline = call._deadline
                if timeout is None or (
                    own_deadline is not None and own_deadline - sent <= timeout and call.shared is None
                ):  # the deadline's timer comes first; a shared deadline may still move, so it never counts
                    response = await self._transport.send(request)
                else:
                    with local.timer.scope(timeout) as scope:
                        response = await self._transport.send(request)
                    if response is None:
                        call.blocked = scope.late
                        raise AttemptTimeoutError(
                            f"no complete answer from {request.endpoint.host} within {timeout:g} s"
                        )
            finally:
                governor.release()
                now = self._now()
                call.wire_time += now - sent
                local.counters.requests += 1
                if call.retrying:
                    call.retrying = False
                    local.counters.retries += 1
            # The body is not bound to a name, because a traceback shows the names of this frame.
            meta = new_meta(response.status, call.attempts, call.queue_time, call.wire_time)
            if response.status != 200 or request.raw:
                answer = None
            elif len(response.body) <= DIRECT_SIZE:
                answer = self._codec.decode(response.body, meta)
            else:  # in turns, because one step would stall the event loop
                answer = await self._codec.decode_async(response.body, meta, local.decoding)
        except BaseException as error:
            if response is not None and isinstance(error, DecodeError):
                error.status = response.status
            self._record_failure(request, error, AttemptRecord(sent, number, in_flight, probe), now)
            raise
        finally:
            if permit is not None:
                permit.on_wire -= 1
        return self._answered(request, response, answer, meta, AttemptRecord(sent, number, in_flight, probe, now))

    async def _wait_for_slot(self, call: Call) -> bool:
        """Waits for a slot and adds the time to the call. Returns whether the attempt is a probe."""
        queued = self._now()
        try:
            while True:
                deadline = call.deadline
                try:
                    return await call.local.governor.acquire(deadline)
                except DeadlineExceededError:
                    if call.deadline == deadline:
                        raise  # otherwise a shared deadline has moved meanwhile, so the wait may fit now
        finally:
            waited = self._now() - queued
            call.queue_time += waited
            call.local.counters.queue_time += waited

    def _answered(
        self,
        request: Request,
        response: Response,
        answer: PartnerAccessResponse | None,
        meta: Meta,
        record: AttemptRecord,
    ) -> Response:
        """Classifies a response and reports it. Returns it with its answer, envelope and verdict."""
        call, status = request.call, response.status
        if answer is None:
            envelope = read_envelope(response.body, request.token, call.secret)
        else:
            envelope, meta = envelope_of(answer, request.token, call.secret), answer.meta
        if answer is not None and envelope is EMPTY_ENVELOPE:
            verdict = self._verdict_on_data
        else:
            verdict = classify_response(status, envelope, self._throttle_statuses)
        response = new_response(status, response.headers, response.body, answer, envelope, verdict, meta)
        call.problem = ""
        if verdict is not OK:
            record.verdict, record.retry_after = verdict, response.retry_after(self._clock)
            call.problem = record.problem = outcome_line(request, response)
        record.status, record.headers = status, response.headers
        record.time_to_first_byte = (call.headers_at or record.ended) - record.sent
        call.down = call.local.governor.record(record)
        return response

    def _record_failure(self, request: Request, error: BaseException, record: AttemptRecord, now: float) -> None:
        """Reports an attempt that raised; its request ended at `now`."""
        call = request.call
        governor = call.local.governor
        if (
            isinstance(error, ShortageError)
            or (isinstance(error, ConnectTimeoutError) and now - record.sent > self._connect_is_late)
            or (not isinstance(error, FlinksError) and call.scope is not None and call.scope.late)
        ):
            call.blocked = True
        record.ended = self._now()
        if isinstance(error, FlinksError):
            call.problem = record.problem = error.message
        if call.blocked:  # our own process is the cause: this says nothing of the server
            governor.abandon(record)
        elif isinstance(error, FlinksError):
            record.verdict, record.status = classify_error(error), error.status
            if error.status is not None:
                record.time_to_first_byte = (call.headers_at or now) - record.sent
            call.down = governor.record(record)
        elif call.deadline is not None and record.ended >= call.deadline:
            # A deadline that passes while the request is on the wire counts like a timeout of the attempt.
            record.verdict = _TIMED_OUT
            record.problem = f"{request.endpoint.host} did not answer before the deadline"
            governor.record(record)
        else:
            governor.abandon(record)


class Observed:
    """Emits an event before and after each attempt, for observers and the log."""

    @classmethod
    def handler(cls, attempt: Attempt, observers: Sequence[Observer]) -> Handler:
        """An attempt with events while somebody wants them. The level of the log may change at any time."""
        observed, is_logged = cls(attempt, observers).__call__, logging.getLogger("flinks_async").isEnabledFor
        if observers:
            return observed
        plain = attempt.__call__  # a method is called faster than an object

        def choose(request: Request) -> Awaitable[Response]:
            return observed(request) if is_logged(AttemptStarted.level) else plain(request)

        return choose

    def __init__(self, attempt: Handler, observers: Sequence[Observer]) -> None:
        self._attempt = attempt
        self._observers = observers

    async def __call__(self, request: Request, /) -> Response:
        call, host, token = request.call, request.endpoint.host, fingerprint(request.token)
        number = call.attempts + 1
        queue_before, wire_before = call.queue_time, call.wire_time
        emit(self._observers, AttemptStarted(host, number, token, call.id))
        verdict: Verdict | None = None
        status: int | None = None
        size = 0
        try:
            response = await self._attempt(request)
            verdict, status, size = response.verdict, response.status, len(response.body)
        except FlinksError as error:
            verdict, status = classify_error(error), error.status
            raise
        finally:
            queue_time, wire_time = call.queue_time - queue_before, call.wire_time - wire_before
            event = AttemptFinished(host, number, token, verdict, status, queue_time, wire_time, size, call.id)
            emit(self._observers, event)
        return response
