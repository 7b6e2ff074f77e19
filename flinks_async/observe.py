"""Events for observers (metrics, traces, progress), and the counters of a client.

An observer is a callable that takes one event. It runs in the event loop, between two steps of the call, so it must be
quick and must not block. Its exceptions are logged and dropped. Without observers, no events are made.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from .limits.governor import Trouble
from .limits.notices import InstanceDown, InstanceUp, Paused, Resumed, emit
from .limits.rate import LearnedLimit
from .transport.session import ConnectionStats
from .verdict import Verdict

__all__ = [
    "AttemptFinished",
    "AttemptStarted",
    "ClientStats",
    "Event",
    "InstanceDown",
    "InstanceUp",
    "Observer",
    "Paused",
    "Resumed",
    "RetryScheduled",
    "emit",
]


@frozen
class AttemptStarted:
    """An attempt started; it may have to wait for a free place.

    Attributes:
        host: the instance's host.
        attempt: its number, from 1.
        token_fingerprint: identifies the token without revealing it.
    """

    host: str
    attempt: int
    token_fingerprint: str


@frozen
class AttemptFinished:
    """An attempt ended.

    Attributes:
        host, attempt, token_fingerprint: as in `AttemptStarted`.
        verdict: what its outcome means; None if it was cancelled.
        status: the HTTP status, if there was a response.
        queue_time: seconds spent waiting for a free place.
        wire_time: seconds from sending to the last byte.
        body_size: bytes of the body, decompressed; 0 if it could not be decoded.
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
    """An attempt failed and will be retried.

    Attributes:
        host, attempt, token_fingerprint: as in `AttemptStarted`; `attempt` is the one that failed.
        verdict: why it failed.
        delay: seconds until the next attempt.
    """

    host: str
    attempt: int
    token_fingerprint: str
    verdict: Verdict
    delay: float


Event = AttemptStarted | AttemptFinished | RetryScheduled | InstanceDown | InstanceUp | Paused | Resumed
"""An event that an observer receives. Each has the `host` of the instance."""

Observer = Callable[[Event], object]
"""A callable for events; the top of this module says what it may do."""


@frozen
class ClientStats:
    """A client's counters at one moment.

    Some concern the governor, which all clients with the same instance, secret and limits share.

    Attributes:
        connections: connections of the pool, which derived clients share.
        calls_in_flight: calls of this client that have started and not ended.
        requests_in_flight: requests on the wire, of the governor.
        queued: requests that wait for a free place, of the governor.
        queue_time: total seconds that this client's calls have waited for a free place.
        requests: attempts of this client that were handed to the transport and have ended.
        retries: those of them that repeated a failed one.
        limit: requests that may be on the wire at once now, of the governor.
        throttled: responses that asked to slow down, of the governor.
        held_back: seconds until requests are sent again, because the instance is down or asked for a pause.
        answered: the instance has answered a request, with any status.
        trouble: the problem that the latest requests met; None while they succeed.
        learned: the limit of the instance, learned from refused requests; None while unknown. As text, such as
            "1,470/s learned: refused at 1,520/s 12 s ago".
        learned_rate: its requests per second; None while unknown.
        why_held: what holds requests back now, in words, such as "refused at 104/s 12 s ago"; empty if nothing does.
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
    learned: LearnedLimit | None = None
    learned_rate: float | None = None
    why_held: str = ""
