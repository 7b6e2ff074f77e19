"""Notices about an instance: it is down, it is up again, requests are paused, they are sent again.

Each notice is an event for the observers of all clients that share the governor. The log of the package says when an
instance goes down and when it is back; a user without observers sees the reason of an outage there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final, Protocol
from weakref import WeakSet

from attrs import frozen

from ..checks import counted

_log = logging.getLogger("flinks_async")

LOG_EVERY: Final = 60.0
"""Seconds between two log lines that say that an instance is down, in case it goes up and down."""

_DOWN: Final = "%s counts as down: %s"
_UP: Final = "%s is up again, after %.0f s"


def is_no_notice(record: logging.LogRecord) -> bool:
    """A filter that drops the log lines of this module, for programs that tell of outages themselves."""
    return record.msg not in (_DOWN, _UP)


@frozen
class InstanceDown:
    """An instance counts as down: too many of its latest requests failed, so the breaker opened.

    Attributes:
        host: the instance's host.
        reason: of the latest failure, in words.
        attempts: failures in a row.
        seconds: since the first of them ended.
        retry_after: seconds until the next probe.
    """

    host: str
    reason: str
    attempts: int
    seconds: float
    retry_after: float


@frozen
class InstanceUp:
    """An instance that counted as down answers again: enough probes succeeded.

    Attributes:
        host: the instance's host.
        seconds: for which it counted as down.
    """

    host: str
    seconds: float


@frozen
class Paused:
    """No requests are sent for a while, because the instance asked for that or throttled a request.

    Attributes:
        host: the instance's host.
        reason: why, in words.
        seconds: length of the pause; later answers may make it longer.
    """

    host: str
    reason: str
    seconds: float


@frozen
class Resumed:
    """The first request after a pause is sent.

    Attributes:
        host: the instance's host.
        seconds: since the pause began.
    """

    host: str
    seconds: float


Notice = InstanceDown | InstanceUp | Paused | Resumed


def emit(observers: Sequence[Callable[[Any], object]], event: object) -> None:
    """Calls each observer, also when another one raises."""
    for observer in observers:
        try:
            observer(event)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a CancelledError from an observer is its bug, the call was not cancelled
            # Only the type, because the text may hold a secret.
            name = getattr(observer, "__qualname__", type(observer).__qualname__)
            _log.error("observer %s raised %s; the event is dropped", name, type(error).__name__)


class HasObservers(Protocol):
    """A client in one event loop."""

    @property
    def observers(self) -> Sequence[Callable[[Any], object]]:
        """The observers of the client."""
        ...


def trouble_line(reason: str, attempts: int, seconds: float, next_try: float = 0.0) -> str:
    """Such as `x.example cannot be looked up, 14 attempts in 12 s, next try in 8 s`.

    Args:
        seconds: from the first of the attempts until now.
        next_try: seconds until the next one; 0 leaves it out.
    """
    later = f", next try in {max(1.0, next_try):,.0f} s" if next_try > 0 else ""
    time = f"{seconds:,.0f} s" if seconds >= 1 else "less than 1 s"
    return f"{reason}, {counted(attempts, 'attempt')} in {time}{later}"


class Notices:
    """Tells observers and the log how an instance is. One for each governor.

    Attributes:
        listeners: the clients with observers that use the governor. They are held weakly, so that a client that is
            derived for one request does not stay.
    """

    def __init__(self, host: str) -> None:
        self.listeners: WeakSet[HasObservers] = WeakSet()
        self._host = host
        self._down_since = -inf
        self._logged_at = -inf
        self._is_logged = False  # the log says that the instance is down
        self._paused_since: float | None = None

    @property
    def paused(self) -> bool:
        """A pause began, and no request was sent since."""
        return self._paused_since is not None

    def down(self, now: float, *, reason: str, attempts: int, since: float, retry_after: float, opened: bool) -> None:
        """An attempt failed and found the instance down.

        Args:
            opened: the instance was up before.
        """
        if opened:
            self._down_since = now
            self._emit(InstanceDown(self._host, reason, attempts, now - since, retry_after))
        if not self._is_logged and now - self._logged_at >= LOG_EVERY:
            self._logged_at, self._is_logged = now, True
            line = trouble_line(reason, attempts, now - since, retry_after)
            _log.warning(_DOWN, self._host, line)

    def up(self, now: float) -> None:
        """The instance is up again."""
        seconds = now - self._down_since
        if self._is_logged:
            self._is_logged = False
            _log.warning(_UP, self._host, seconds)
        self._emit(InstanceUp(self._host, seconds))

    def pause(self, now: float, *, reason: str, seconds: float) -> None:
        """A pause begins; one before it is over."""
        self.resume(now)
        self._paused_since = now
        self._emit(Paused(self._host, reason, seconds))

    def resume(self, now: float) -> None:
        """The pause is over, if there was one."""
        since, self._paused_since = self._paused_since, None
        if since is not None:
            self._emit(Resumed(self._host, now - since))

    def _emit(self, event: Notice) -> None:
        observers: list[Callable[[Any], object]] = []
        for listener in tuple(self.listeners):
            observers += [one for one in listener.observers if one not in observers]
        emit(observers, event)
