"""Events for observers: metrics, traces, progress.

An observer is a callable that takes one event. It is called in the event loop, between two steps of the call, so it
must be quick and must not block. What it raises is logged and goes no further. When nobody observes, no event is made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from attrs import frozen

from .limits.governor import Trouble
from .transport.session import ConnectionStats
from .verdict import Verdict

# [flinks_async.stats] A client's counters, as they stand at one moment.


_log = logging.getLogger("flinks_async")


@frozen
class AttemptStarted:
    """An attempt begins: it now waits for a free place.

    Attributes:
        host: the instance's host.
        attempt: 1 for the first.
        token_fingerprint: stands for the token.
    """

    host: str
    attempt: int
    token_fingerprint: str


@frozen
class AttemptFinished:
    """An attempt ended.

    Attributes:
        host, attempt, token_fingerprint: as in `AttemptStarted`.
        verdict: what its outcome means; None when it was cancelled.
        status: the HTTP status, if there was an answer.
        queue_time: seconds spent waiting for a free place.
        wire_time: seconds from sending to the last byte.
        body_size: bytes of the body, inflated; 0 if it could not be understood.
    """

    host: str
    attempt: int
    token_fingerprint: str
    verdict: Verdict | None
    status: int | None
    queue_time: float
    wire_time: float
    body_size: int


@frozen
class RetryScheduled:
    """An attempt failed and another one will follow.

    Attributes:
        host, attempt, token_fingerprint: as in `AttemptStarted`; `attempt` is the one that failed.
        verdict: why.
        delay: seconds until the next attempt.
    """

    host: str
    attempt: int
    token_fingerprint: str
    verdict: Verdict
    delay: float


Event = AttemptStarted | AttemptFinished | RetryScheduled

Observer = Callable[[Event], object]


def emit(observers: Sequence[Observer], event: Event) -> None:
    """Shows an event to each observer, whatever the others do."""
    for observer in observers:
        try:
            observer(event)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a CancelledError from a hook is a bug of the hook, not a cancelled call
            # Only the type: the text of a foreign error may hold anything.
            name = getattr(observer, "__qualname__", type(observer).__qualname__)
            _log.error("observer %s raised %s; the event is dropped", name, type(error).__name__)


@frozen
class ClientStats:
    """A client's counters.

    Attributes:
        connections: of the pool, shared with derived clients.
        calls_in_flight: calls that have begun and not ended.
        requests_in_flight: requests on the wire, of all clients with the same instance, secret and limits.
        queued: requests that wait for a place, likewise.
        queue_time: seconds that this client's calls have spent waiting for a place, in all.
        requests: attempts handed to the transport, in all.
        retries: those of them that repeated a failed one.
        limit: requests that may be on the wire at once, as it stands, of all clients as for `requests_in_flight`.
        throttled: answers that asked to slow down, likewise, in all.
        held_back: seconds that no request is sent for, since the instance is down or asked for a pause.
        answered: the instance has answered a request, with whatever status.
        trouble: the problem that the latest requests met; None while they succeed.
    """

    connections: ConnectionStats
    calls_in_flight: int
    requests_in_flight: int
    queued: int
    queue_time: float
    requests: int
    retries: int
    limit: int = 0
    throttled: int = 0
    held_back: float = 0.0
    answered: bool = False
    trouble: Trouble | None = None
