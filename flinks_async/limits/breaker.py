"""The circuit breaker: decides whether an instance is down, and when to probe it.

Source: Michael Nygard, "Release It!"; states and names are the usual ones.

- *closed*: all requests pass. The breaker remembers the latest outcomes and opens when enough are known and too many of
  them failed, or when several failed in a row. It counts outcomes instead of time, so that it works the same at any rate
  of traffic.
- *open*: no request passes. The interval to the next probe doubles with each failed probe; half of it is random, so that
  the clients of one instance do not probe in step.
- *half-open*: one request at a time passes as a probe. Several successes in a row close the breaker; a failure opens it.

Only transient problems are failures: no connection, a broken connection, a timeout, a 5xx. An answer that throttles,
cannot be decoded, or is wrong for this token proves that the instance is up.

The caller decides whether a blocked request fails or waits. Pure: time and randomness are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from math import inf
from types import MappingProxyType

from attrs import define

from ..config import Breaker
from ..verdict import OK, Kind, Verdict

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})

# Codes of a 5xx that concern one login or its institution: the instance is up.
_TOKEN_CODES = frozenset({"AGGREGATION_ERROR", "CARD_IN_USE", "CONCURRENT_SESSION"})


@define
class AttemptRecord:
    """One attempt: how it was sent, and how it ended.

    Attributes:
        sent: when it was sent.
        number: of the request; they count up in the order of sending.
        in_flight: requests on the wire with this one.
        probe: it asks whether an instance that is down is up again.
        ended: when it ended.
        verdict: the result.
        status: of the answer; None without an answer.
        time_to_first_byte: seconds; None without an answer.
        headers: of the answer, read for RateLimit fields.
        retry_after: seconds that the answer asks to wait.
        problem: what went wrong, in words.
    """

    sent: float
    number: int = 0
    in_flight: int = 0
    probe: bool = False
    ended: float = 0.0
    verdict: Verdict = OK
    status: int | None = None
    time_to_first_byte: float | None = None
    headers: Mapping[str, str] = _NO_HEADERS
    retry_after: float | None = None
    problem: str = ""

    @property
    def says_down(self) -> bool:
        """It failed as all requests to an instance that is down do."""
        if self.verdict.kind is not Kind.TRANSIENT:
            return False
        return self.status is None or (self.status >= 500 and self.verdict.reason not in _TOKEN_CODES)


class BreakerState(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitBreaker:
    """The state of one instance.

    Attributes:
        state: closed; open (until a request takes the probe, from `probe_at` on); or half-open (a probe is under way, or
            the next one is due).
        probe_at: when the next probe may be sent.
    """

    def __init__(self, settings: Breaker) -> None:
        self._settings = settings
        self._mask = (1 << settings.window) - 1
        self.state = BreakerState.CLOSED
        self.probe_at = 0.0
        self._outcomes = 0  # one bit each, 1 for a failure; the newest is the lowest bit
        self._known = 0
        self._failed_probes = 0
        self._good_probes = 0
        self._probing = False

    @property
    def closed(self) -> bool:
        return self.state is BreakerState.CLOSED

    @property
    def all_succeeded(self) -> bool:
        """Closed with a full window of successes, so that another success changes nothing."""
        return not self._outcomes and self._known == self._settings.window

    def wait(self, now: float) -> float:
        """Seconds until a request may be sent: 0 for now, infinity while a probe is under way."""
        if self.state is BreakerState.CLOSED:
            return 0.0
        if self._probing:
            return inf
        return max(0.0, self.probe_at - now)

    def retry_after(self, now: float) -> float:
        """Seconds after which a caller may try again, for errors."""
        return max(0.0, self.probe_at - now) or self._settings.probe_interval

    def take(self) -> bool:
        """Registers that a request is sent now. Returns whether it is a probe."""
        if self.state is BreakerState.CLOSED:
            return False
        self.state = BreakerState.HALF_OPEN
        self._probing = True
        return True

    def succeeded(self, *, probe: bool) -> bool:
        """Registers that an attempt found the instance up. Returns whether this closed the breaker."""
        if self.state is BreakerState.CLOSED:
            if self._known < self._settings.window:
                self._known += 1
            self._outcomes = (self._outcomes << 1) & self._mask
            return False
        if not probe:  # sent before the breaker opened
            return False
        self._probing = False
        self._good_probes += 1
        if self._good_probes < self._settings.successes:
            return False
        self.state = BreakerState.CLOSED
        self._outcomes = self._known = self._failed_probes = self._good_probes = 0
        return True

    def failed(self, now: float, random: float, *, probe: bool) -> bool:
        """Registers that an attempt found the instance down. Returns whether this opened the breaker (again)."""
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
        """Registers that an attempt ended without a verdict, for example because it was cancelled."""
        if probe:
            self._probing = False
