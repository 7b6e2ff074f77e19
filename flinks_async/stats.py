"""A client's counters, as they stand at one moment."""

from __future__ import annotations

from attrs import frozen

from .session import ConnectionStats


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
