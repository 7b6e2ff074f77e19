"""The circuit breaker: whether an instance is down, and when to ask whether it is up again.

Source: Michael Nygard, "Release It!"; the states and names are the usual ones.

- *closed*: all requests go. The latest outcomes are remembered; when there are enough of them and too many are failures,
  or when some fail in a row, it opens. They are counted, not timed: at any rate of traffic it takes the same number;
- *open*: nobody goes. The next probe is due after an interval that doubles with each probe that fails, half of it
  random, so that the clients of an instance do not ask in step;
- *half-open*: one request at a time goes as a probe. Some successes in a row close it; a failure opens it again.

A failure is a transient one: no connection, a connection that breaks, a timeout, a 5xx. An answer that is wrong for
this token, or cannot be decoded, or throttles, comes from an instance that is up.

What a request does while it must not go, fail or wait, is not decided here. Pure: time and randomness are arguments.
"""

from __future__ import annotations

from enum import Enum

from ..config import Breaker

UNTIL_TOLD = float("inf")


class BreakerState(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitBreaker:
    """The state of one instance.

    Attributes:
        state: closed, open (until `probe_at`, and then until somebody takes the probe) or half-open (a probe is under
            way, or the next one is due).
        probe_at: when the next probe may go.
    """

    def __init__(self, settings: Breaker) -> None:
        self._settings = settings
        self._mask = (1 << settings.window) - 1
        self.state = BreakerState.CLOSED
        self.probe_at = 0.0
        self._outcomes = 0  # the newest in the lowest bit, 1 for a failure
        self._known = 0
        self._failed_probes = 0
        self._good_probes = 0
        self._probing = False

    @property
    def closed(self) -> bool:
        return self.state is BreakerState.CLOSED

    @property
    def spotless(self) -> bool:
        """Closed, and none of the remembered outcomes is a failure: another success changes nothing."""
        return not self._outcomes and self._known == self._settings.window

    def wait(self, now: float) -> float:
        """Seconds until a request may go; 0 for now, infinity until the probe that is under way has ended."""
        if self.state is BreakerState.CLOSED:
            return 0.0
        if self._probing:
            return UNTIL_TOLD
        return max(0.0, self.probe_at - now)

    def retry_after(self, now: float) -> float:
        """Seconds after which it makes sense to ask again; for errors."""
        return max(0.0, self.probe_at - now) or self._settings.probe_interval

    def take(self) -> bool:
        """A request goes now: whether it is a probe."""
        if self.state is BreakerState.CLOSED:
            return False
        self.state = BreakerState.HALF_OPEN
        self._probing = True
        return True

    def succeeded(self, *, probe: bool) -> bool:
        """An attempt found the instance up: whether this has closed the breaker."""
        if self.state is BreakerState.CLOSED:
            if self._known < self._settings.window:
                self._known += 1
            self._outcomes = (self._outcomes << 1) & self._mask
            return False
        if not probe:  # sent before it opened
            return False
        self._probing = False
        self._good_probes += 1
        if self._good_probes < self._settings.successes:
            return False
        self.state = BreakerState.CLOSED
        self._outcomes = self._known = self._failed_probes = self._good_probes = 0
        return True

    def failed(self, now: float, random: float, *, probe: bool) -> bool:
        """An attempt found the instance down: whether this has opened the breaker (again)."""
        settings = self._settings
        if self.state is BreakerState.CLOSED:
            if self._known < settings.window:
                self._known += 1
            self._outcomes = ((self._outcomes << 1) | 1) & self._mask
            many = self._known >= settings.volume and self._outcomes.bit_count() >= settings.ratio * self._known
            in_a_row = (1 << settings.in_a_row) - 1
            if not many and self._outcomes & in_a_row != in_a_row:
                return False
        elif not probe:
            return False
        else:
            self._failed_probes += 1
        interval = min(settings.probe_cap, settings.probe_interval * 2.0 ** min(self._failed_probes, 1000))
        self.state = BreakerState.OPEN
        self.probe_at = now + interval * (0.5 + random / 2)
        self._probing = False
        self._good_probes = 0
        return True

    def abandoned(self, *, probe: bool) -> None:
        """An attempt ended without saying anything about the instance, for example because it was cancelled."""
        if probe:
            self._probing = False
