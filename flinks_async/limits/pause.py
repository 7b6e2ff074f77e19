"""A shared pause: one throttled answer speaks for the whole (instance, secret), not for one call.

Nothing is sent during a pause. It lasts as long as the server asked; if the server did not say, `base` seconds, doubled
with each pause in a row, half of it random (AWS Architecture Blog, "Exponential Backoff And Jitter": equal jitter, because
a wait of almost nothing would be useless here). A success that was sent after a pause ends the row. If pauses overlap, the
latest end counts.

After a pause the waiting requests must not return all at once, which would cause the next throttling. The rate rises from
a tenth of its former value to all of it, in a ramp of some seconds with randomized gaps; after the ramp nothing is held
back. The breaker uses the same ramp when an instance has recovered.

Answers to requests that were on the wire when the pause began say nothing new. Only a throttled request that was sent
later makes the next pause longer.

Pure: time and randomness are arguments.
"""

from __future__ import annotations

from ..config import Pause

# A ramp begins with at least this many requests per second and ends with at least ten times as many, however slow the
# traffic was before, so that a single caller does not notice it.
_MIN_RATE = 2.0

# A ramp takes at most four times as long as the pause before it: one throttled answer among thousands is not an outage.
_MAX_RAMP_TO_PAUSE = 4.0


class SharedPause:
    """The pause, the ramp after it, and the spacing that RateLimit headers ask for.

    Attributes:
        until: when the pause ends, or ended.
        in_a_row: pauses without a success between them.
        ramp_end: when the rate has risen to its former value.
    """

    def __init__(self, settings: Pause) -> None:
        self._settings = settings
        self.until = float("-inf")
        self._began_at = float("-inf")
        self.in_a_row = 0
        self._ramp = settings.ramp
        self.ramp_end = float("-inf")
        self._ramp_from = self._ramp_to = 0.0
        self._next_at = float("-inf")
        self._spaced_until = float("-inf")
        self._gap = 0.0

    def throttled(self, now: float, *, sent: float, retry_after: float | None, rate: float, random: float) -> None:
        """Registers a throttled answer.

        Args:
            sent: when its request was sent.
            retry_after: seconds that the server asked to wait; None if it did not say.
            rate: requests per second up to now.
            random: in [0, 1).
        """
        settings = self._settings
        if sent >= self._began_at and now >= self.until:
            # The first throttled answer since the pause. Long after the last ramp, it begins a new row.
            self.in_a_row = self.in_a_row + 1 if now < self.ramp_end + settings.cap else 1
            self._began_at = now
        elif retry_after is None:
            return
        if retry_after is None:
            length = min(settings.cap, settings.base * 2.0 ** min(self.in_a_row - 1, 1000)) * (0.5 + random / 2)
        else:
            length = min(retry_after, settings.longest)
            length += min(1.0, length * 0.1) * random  # other processes got the same number
        if now + length > self.until:
            self.until = now + length
            self.ramp(self.until, rate, min(settings.ramp, _MAX_RAMP_TO_PAUSE * length))

    def join(self, now: float, *, until: float, in_a_row: int, rate: float) -> None:
        """Joins the pause of another process, its `in_a_row`-th in a row, and its ramp."""
        self._began_at = now
        self.in_a_row = max(self.in_a_row, in_a_row)
        if until > self.until:
            self.until = until
            self.ramp(until, rate, min(self._settings.ramp, _MAX_RAMP_TO_PAUSE * (until - now)))

    def succeeded(self, *, sent: float) -> None:
        """Registers an answer that does not throttle. If it was sent after the pause, the next pause begins a new row."""
        if sent >= self.until:
            self.in_a_row = 0

    def ramp(self, start: float, rate: float, seconds: float | None = None) -> None:
        """Raises the rate from a tenth of `rate` to `rate`, beginning at `start`, in `Pause.ramp` seconds by default."""
        self._ramp_from = max(_MIN_RATE, rate / 10)
        self._ramp_to = max(_MIN_RATE * 10, rate)
        self._ramp = self._settings.ramp if seconds is None else seconds
        self.ramp_end = start + self._ramp
        self._next_at = start

    def space(self, now: float, *, gap: float, reset: float) -> None:
        """Leaves `gap` seconds between requests for the next `reset` seconds."""
        self._gap = gap
        self._spaced_until = now + min(reset, self._settings.longest)
        self._next_at = max(self._next_at, now + min(gap, self._settings.longest))

    def idle(self, now: float) -> bool:
        """Whether no request is held back, and none will be without a new event."""
        return now >= self.until and now >= self.ramp_end and now >= self._spaced_until

    def wait(self, now: float) -> float:
        """Seconds until the next request may be sent; 0 for now."""
        if self.idle(now):
            return 0.0
        return max(0.0, max(self.until, self._next_at) - now)

    def took(self, now: float, random: float) -> None:
        """Registers that a request is sent now."""
        gap = self._gap if now < self._spaced_until else 0.0
        if now < self.ramp_end:
            done = max(0.0, 1.0 - (self.ramp_end - now) / self._ramp)
            gap = max(gap, 1.0 / (self._ramp_from + (self._ramp_to - self._ramp_from) * done))
        # Counted from now, not from the last turn: unused turns are not made up for.
        self._next_at = now + min(gap * (0.5 + random), self._settings.longest)
