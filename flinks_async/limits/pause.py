"""A pause for everybody: one answer that throttles speaks for the whole (instance, secret), not for one call.

While the pause lasts nobody sends. How long: as the server asked, or, where it did not say, `base` doubled with each
pause in a row, half of it random (AWS Architecture Blog, "Exponential Backoff And Jitter": equal jitter, since here a
wait of nearly nothing would be of no use). A success that was sent after a pause ends the row. Of several pauses the
one that ends last wins.

When it ends, those who waited must not come back at once: that is how the next throttling begins. So the rate rises
from a tenth of what it was before to the whole of it, in a ramp of some seconds, each gap with some randomness; after
the ramp nothing is held back. The breaker uses the same ramp when an instance has recovered.

The answers to requests that were already on their way when the pause began say nothing new: only a throttled request
that was sent later makes the next pause longer.

Pure: time and randomness are arguments.
"""

from __future__ import annotations

from ..config import Pause

# A ramp begins with at least this many requests per second and ends with at least ten times as many, however slow the
# traffic was before: a single caller should not notice it.
_SLOWEST = 2.0

# A ramp takes at most so many times the pause before it: one throttled answer among thousands is not an outage.
_RAMP_TO_PAUSE = 4.0


class SharedPause:
    """Until when nobody sends, and how fast they come back."""

    def __init__(self, settings: Pause) -> None:
        self._settings = settings
        self.until = float("-inf")
        self._began = float("-inf")
        self.in_a_row = 0
        self._ramp = settings.ramp
        self._ramp_end = float("-inf")
        self._slow = self._full = 0.0
        self._next = float("-inf")
        self._spaced_until = float("-inf")
        self._gap = 0.0

    def throttled(self, now: float, *, sent: float, asked: float | None, rate: float, random: float) -> None:
        """An answer throttles.

        Args:
            sent: when its request was sent.
            asked: seconds that the server asked to wait; None if it did not say.
            rate: requests per second that were made until now.
            random: in [0, 1).
        """
        settings = self._settings
        if sent >= self._began and now >= self.until:
            # The first of this round. One that comes long after the last ramp does not continue a row.
            self.in_a_row = self.in_a_row + 1 if now < self._ramp_end + settings.cap else 1
            self._began = now
        elif asked is None:
            return
        if asked is None:
            length = min(settings.cap, settings.base * 2.0 ** min(self.in_a_row - 1, 1000)) * (0.5 + random / 2)
        else:
            length = min(asked, settings.longest)
            length += min(1.0, length * 0.1) * random  # other processes were told the same
        if now + length > self.until:
            self.until = now + length
            self.ramp(self.until, rate, min(settings.ramp, _RAMP_TO_PAUSE * length))

    def join(self, now: float, *, until: float, in_a_row: int, rate: float) -> None:
        """Another process was throttled and pauses `until` then, for the `in_a_row`-th time: so do we, and together we
        come back at the rate that we had together.
        """
        self._began = now
        self.in_a_row = max(self.in_a_row, in_a_row)
        if until > self.until:
            self.until = until
            self.ramp(until, rate, min(self._settings.ramp, _RAMP_TO_PAUSE * (until - now)))

    def succeeded(self, *, sent: float) -> None:
        """An answer that does not throttle: if it was sent after the pause, the next pause begins a new row."""
        if sent >= self.until:
            self.in_a_row = 0

    def ramp(self, start: float, rate: float, seconds: float | None = None) -> None:
        """From `start` on, lets the rate rise from a tenth of `rate` to `rate`, in `Pause.ramp` seconds by default."""
        self._slow = max(_SLOWEST, rate / 10)
        self._full = max(_SLOWEST * 10, rate)
        self._ramp = self._settings.ramp if seconds is None else seconds
        self._ramp_end = start + self._ramp
        self._next = start

    def space(self, now: float, *, gap: float, reset: float) -> None:
        """The server says that little is left: `gap` seconds between requests for the next `reset` seconds."""
        self._gap = gap
        self._spaced_until = now + min(reset, self._settings.longest)
        self._next = max(self._next, now + min(gap, self._settings.longest))

    def idle(self, now: float) -> bool:
        """Whether nothing is held back, and nothing will be without a new event."""
        return now >= self.until and now >= self._ramp_end and now >= self._spaced_until

    def wait(self, now: float) -> float:
        """Seconds until the next request may go; 0 for now."""
        if self.idle(now):
            return 0.0
        return max(0.0, max(self.until, self._next) - now)

    def took(self, now: float, random: float) -> None:
        """A request goes now."""
        gap = self._gap if now < self._spaced_until else 0.0
        if now < self._ramp_end:
            done = max(0.0, 1.0 - (self._ramp_end - now) / self._ramp)
            gap = max(gap, 1.0 / (self._slow + (self._full - self._slow) * done))
        # Not from the last turn but from now: a turn that nobody took is not made up for.
        self._next = now + min(gap * (0.5 + random), self._settings.longest)
