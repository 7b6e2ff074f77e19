"""Notices about an instance: it is down, it is up again, requests are paused, they are sent again.

Each notice is an event for the observers of all clients that share the governor. `emit` also writes events to the log of the
package, as records with the fields that `docs/logging.md` lists.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, ClassVar, Final, Protocol
from weakref import WeakSet

from attrs import asdict, frozen

from ..checks import counted
from ..schema import Record
from ..verdict import Verdict

_log = logging.getLogger("flinks_async")

LOG_EVERY: Final = 60.0
"""Seconds between two log lines that say that an instance is down, in case it goes up and down."""

_DOWN: Final = "%s counts as down: %s"
_UP: Final = "%s is up again, after %.0f s"


def is_no_notice(record: logging.LogRecord) -> bool:
    """A filter that drops the log lines of this module, for programs that tell of outages themselves."""
    return record.msg not in (_DOWN, _UP)


def log_fields(event: str, **values: object) -> dict[str, object]:
    """The `extra` of a log record: `flinks_event`, and each value under its name after `flinks_`."""
    return {"flinks_event": event, **{f"flinks_{name}": value for name, value in values.items()}}


class LoggedEvent(Record):
    """The base of the events: how an event looks in the log.

    Attributes:
        level: of its records; `logging.NOTSET` for an event that is logged elsewhere.
        text: the message, with the fields of `log_fields` as `%(flinks_host)s`.
    """

    __slots__ = ()
    level: ClassVar[int] = logging.DEBUG
    text: ClassVar[str] = ""

    def log_fields(self) -> dict[str, object]:
        """The attributes as fields of a record; a verdict as its kind and its reason."""
        values = asdict(self, recurse=False)  # type: ignore[arg-type] # the events are attrs classes
        if isinstance(verdict := values.get("verdict"), Verdict):
            values.update(verdict=verdict.kind.value, reason=verdict.reason)
        elif "verdict" in values:
            values.update(verdict="cancelled", reason="cancelled")
        return log_fields(type(self).__name__, **values)


@frozen(eq=False, repr=False)
class InstanceDown(LoggedEvent):
    """An instance counts as down: too many of its latest requests failed, so the breaker opened.

    Attributes:
        host: the instance's host.
        reason: of the latest failure, in words.
        attempts: failures in a row.
        seconds: since the first of them ended.
        retry_after: seconds until the next probe.
    """

    level = logging.NOTSET

    host: str
    reason: str
    attempts: int
    seconds: float
    retry_after: float


@frozen(eq=False, repr=False)
class InstanceUp(LoggedEvent):
    """An instance that counted as down answers again: enough probes succeeded.

    Attributes:
        host: the instance's host.
        seconds: for which it counted as down.
    """

    level = logging.NOTSET

    host: str
    seconds: float


@frozen(eq=False, repr=False)
class Paused(LoggedEvent):
    """No requests are sent for a while, because the instance asked for that or throttled a request.

    Attributes:
        host: the instance's host.
        reason: why, in words.
        seconds: length of the pause; later answers may make it longer.
    """

    level = logging.INFO
    text = "requests to %(flinks_host)s are paused for %(flinks_seconds).1f s: %(flinks_reason)s"

    host: str
    reason: str
    seconds: float


@frozen(eq=False, repr=False)
class Resumed(LoggedEvent):
    """The first request after a pause is sent.

    Attributes:
        host: the instance's host.
        seconds: since the pause began.
    """

    level = logging.INFO
    text = "requests to %(flinks_host)s are sent again, after %(flinks_seconds).1f s"

    host: str
    seconds: float


Notice = InstanceDown | InstanceUp | Paused | Resumed


def is_watched(observers: Sequence[Callable[[Any], object]], level: int) -> bool:
    """Whether somebody wants an event: an observer, or the log at this level."""
    return bool(observers) or _log.isEnabledFor(level)


def emit(observers: Sequence[Callable[[Any], object]], event: LoggedEvent) -> None:
    """Logs an event and calls each observer, also when another one raises."""
    if event.level and _log.isEnabledFor(event.level):
        fields = event.log_fields()
        _log.log(event.level, event.text, fields, extra=fields)
    for observer in observers:
        try:
            observer(event)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a CancelledError from an observer is its bug, the call was not cancelled
            # Only the type, because the text may hold a secret.
            name = getattr(observer, "__qualname__", type(observer).__qualname__)
            fields = log_fields("ObserverFailed", observer=name, error=type(error).__name__)
            _log.error("observer %s raised %s; the event is dropped", name, type(error).__name__, extra=fields)


class HasObservers(Protocol):
    """A client in one event loop."""

    @property
    def observers(self) -> Sequence[Callable[[Any], object]]:
        """The observers of the client."""
        ...


def trouble_line(reason: str, attempts: int, seconds: float, next_try: float = 0.0, gives_up: float = 0.0) -> str:
    """Such as `x.example cannot be looked up, 14 attempts in 12 s, next try in 8 s`.

    Args:
        attempts: 0 leaves them out.
        seconds: from the first of the attempts until now.
        next_try: seconds until the next one; 0 leaves it out.
        gives_up: seconds until the run ends because of this; 0 leaves it out.
    """
    time = f"{seconds:,.0f} s" if seconds >= 1 else "less than 1 s"
    line = f"{reason}, {counted(attempts, 'attempt')} in {time}" if attempts else f"{reason} for {time}"
    later = (("next try", next_try), ("gives up", gives_up))
    return line + "".join(f", {what} in {max(1.0, when):,.0f} s" for what, when in later if when > 0)


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
        event = InstanceDown(self._host, reason, attempts, now - since, retry_after)
        if opened:
            self._down_since = now
            self._emit(event)
        if not self._is_logged and now - self._logged_at >= LOG_EVERY:
            self._logged_at, self._is_logged = now, True
            line = trouble_line(reason, attempts, now - since, retry_after)
            _log.warning(_DOWN, self._host, line, extra=event.log_fields())

    def up(self, now: float) -> None:
        """The instance is up again."""
        event = InstanceUp(self._host, now - self._down_since)
        if self._is_logged:
            self._is_logged = False
            _log.warning(_UP, self._host, event.seconds, extra=event.log_fields())
        self._emit(event)

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
