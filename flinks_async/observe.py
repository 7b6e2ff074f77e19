"""Events for observers (metrics, traces, progress) and the log, and the counters of a client.

An observer is a callable that takes one event. It runs in the event loop, between two steps of the call, so it must be
quick and must not block. Its exceptions are logged and dropped. No events are made for which there is neither an observer
nor a log at their level.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cache

from attrs import frozen

from .codec import Drift
from .errors import ConfigError
from .limits.governor import Trouble
from .limits.notices import InstanceDown, InstanceUp, LoggedEvent, Paused, Resumed, emit
from .limits.rate import LearnedLimit
from .runtime import LoopState, RequestCounters
from .schema import Record
from .secret import SecretFilter
from .transport.session import ConnectionStats
from .verdict import Verdict

__all__ = [
    "AttemptFinished",
    "AttemptStarted",
    "ClientStats",
    "Drift",
    "Event",
    "InstanceDown",
    "InstanceUp",
    "Observer",
    "Paused",
    "Resumed",
    "RetryScheduled",
    "emit",
]


@frozen(eq=False, repr=False)
class AttemptStarted(LoggedEvent):
    """An attempt started; it may have to wait for a free place.

    Attributes:
        host: the instance's host.
        attempt: its number, from 1.
        token_fingerprint: identifies the token without revealing it.
        call_id: identifies the call, in all its events and in its error.
    """

    text = "%(flinks_host)s: attempt %(flinks_attempt)d begins, call %(flinks_call_id)s"

    host: str
    attempt: int
    token_fingerprint: str
    call_id: str = ""


@frozen(eq=False, repr=False)
class AttemptFinished(LoggedEvent):
    """An attempt ended.

    Attributes:
        host, attempt, token_fingerprint, call_id: as in `AttemptStarted`.
        verdict: what its outcome means; None if it was cancelled.
        status: the HTTP status, if there was a response.
        queue_time: seconds spent waiting for a free place.
        wire_time: seconds from sending to the last byte.
        body_size: bytes of the body, decompressed; 0 if it could not be decoded.
    """

    text = (
        "%(flinks_host)s: attempt %(flinks_attempt)d ended: %(flinks_reason)s, %(flinks_wire_time).3f s on the wire, "
        "%(flinks_queue_time).3f s in the queue, %(flinks_body_size)d bytes, call %(flinks_call_id)s"
    )

    host: str
    attempt: int
    token_fingerprint: str
    verdict: Verdict | None
    status: int | None
    queue_time: float
    wire_time: float
    body_size: int
    call_id: str = ""


@frozen(eq=False, repr=False)
class RetryScheduled(LoggedEvent):
    """An attempt failed and will be retried.

    Attributes:
        host, attempt, token_fingerprint, call_id: as in `AttemptStarted`; `attempt` is the one that failed.
        verdict: why it failed.
        delay: seconds until the next attempt.
    """

    level = logging.INFO
    text = (
        "%(flinks_host)s: attempt %(flinks_attempt)d failed: %(flinks_reason)s, the next one in %(flinks_delay).3f s, "
        "call %(flinks_call_id)s"
    )

    host: str
    attempt: int
    token_fingerprint: str
    verdict: Verdict
    delay: float
    call_id: str = ""


Event = AttemptStarted | AttemptFinished | RetryScheduled | InstanceDown | InstanceUp | Paused | Resumed
"""An event that an observer receives. Each has the `host` of the instance."""

Observer = Callable[[Event], object]
"""A callable for events; the top of this module says what it may do."""


_LOG_LEVELS = ("debug", "info", "warning", "error")


def log_as_environment_says() -> None:
    """Sets the level of the log `flinks_async` to FLINKS_LOG, once. While the program has no logging of its own, the log
    goes to standard error.

    Raises:
        ConfigError: FLINKS_LOG is not the name of a level.
    """
    if name := os.environ.get("FLINKS_LOG", "").strip().lower():
        if name not in _LOG_LEVELS:
            raise ConfigError(f"FLINKS_LOG must be one of {', '.join(_LOG_LEVELS)} (its value is not shown)")
        _log_to_stderr(name)


@cache
def _log_to_stderr(name: str) -> None:
    root, log, handler = logging.getLogger(), logging.getLogger("flinks_async"), logging.StreamHandler()
    handler.addFilter(lambda _: not root.handlers)
    handler.addFilter(SecretFilter())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(name.upper())


@frozen(eq=False, repr=False)
class ClientStats(Record):
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
        held_back: seconds until requests are sent again, because the instance is down or asked for a pause; infinity
            while one request finds out whether it is up.
        answered: the instance has answered a request, with any status.
        trouble: the problem that the latest requests met; None while they succeed.
        learned: the limit of the instance, learned from refused requests; None while unknown. As text, such as
            "1,470/s learned: refused at 1,520/s 12 s ago".
        learned_rate: its requests per second; None while unknown.
        drift: how answers differ from their documentation, by path and never with values; the most frequent differences
            first. As text, such as "GetAccountsDetail[].Accounts[].Foo: unknown field in 98 % of answers since ...". Clients
            with one codec share it.
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
    drift: tuple[Drift, ...] = ()

    @classmethod
    def of(
        cls,
        states: Sequence[LoopState],
        counters: RequestCounters,
        connections: ConnectionStats,
        drift: tuple[Drift, ...],
    ) -> ClientStats:
        """Adds up the states of a client in its event loops."""
        governors = [state.governor for state in states]
        learned = next((limit for governor in governors if (limit := governor.learned) is not None), None)
        return cls(
            connections=connections,
            calls_in_flight=sum(len(state.calls) for state in states),
            requests_in_flight=sum(governor.in_use for governor in governors),
            queued=sum(governor.waiting for governor in governors),
            queue_time=counters.queue_time,
            requests=counters.requests,
            retries=counters.retries,
            limit=sum(governor.concurrency.limit for governor in governors),
            throttled=sum(governor.throttled for governor in governors),
            held_back=max((governor.held_back for governor in governors), default=0.0),
            answered=any(governor.answered for governor in governors),
            trouble=next((governor.trouble for governor in governors if governor.trouble is not None), None),
            learned=learned,
            learned_rate=None if learned is None else learned.rate,
            why_held=next((why for state in states if (why := state.governor.why_held(state.now()))), ""),
            drift=drift,
        )
