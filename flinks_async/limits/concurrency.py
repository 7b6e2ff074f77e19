"""How many requests may be on the wire at once: a fixed number, or one that finds its own level.

Why: the right number is not known and not constant. By Little's law (L = rate x time) an instance that answers in 100 ms
and manages 500 requests a second has 50 of ours at work; one request more only waits in a queue there. When the same
instance takes 20 times as long (a gray failure: slow, but not down), 50 would pile up and keep it slow.

How: additive increase, multiplicative decrease (Chiu and Jain, 1989), as in TCP and in Netflix' concurrency-limits:

- measured is the *time to first byte* of answers with data. Answers differ five-thousandfold in size, and the time to
  read a large one says nothing about a queue; nor does the time in which a token is refused;
- the answers come in rounds of as many as the limit has places (at least 20), and a round counts by its median, so that
  one slow token moves nothing;
- rounds about as quick as the usual ones make up the memory of an idle instance (a moving average, not the minimum, which
  chance would pull ever lower where times vary). While a round stays within `tolerance` times that, the limit grows by 1,
  but only if it was reached in this round: a limit that is not used is not tested;
- beyond that the limit shrinks by 10 %, and in proportion if it takes much longer, to a half at most. The answers to
  requests that were on their way just then say nothing about the new limit, and are passed over;
- an attempt that is throttled (a loss) makes it shrink by 30 %, once in a round: all requests of one round meet the same
  trouble, and their number says nothing about its size. One that times out, breaks or is answered with a 5xx may be the
  fault of its own login, so it only counts as a loss with others: when more than a tenth of a round fail. Else three
  logins of a hundred that always fail would hold everybody at 4 at once (0.3 L per loss against 1 per round);
- the memory of an idle instance grows old. After `remember` seconds the limit is divided by `tolerance` for a round,
  which empties our part of the queue, and the time is measured afresh. So a lasting change is accepted in the end, and a
  queue of our own making is never mistaken for the instance's nature (the trouble with Vegas and Gradient limits).

Pure: time is an argument.
"""

from __future__ import annotations

from ..config import Adaptive

_FEWEST = 20  # answers in a round

_SMOOTHING = 0.4  # weight of the newest round

_MOST_AT_A_TIME = 0.5

_AS_USUAL = 1.25  # rounds up to this many times the idle time belong to its average, with the weight:

_USUAL_WEIGHT = 0.05

_MUCH_QUICKER = 1.5  # so much below it, the idle time was wrong, and follows with the weight:

_QUICKER_WEIGHT = 0.5

_BY_CHANCE = 0.1  # of a round's attempts may fail without a meaning

_UNKNOWN = float("inf")


class FixedConcurrency:
    """Always the same number."""

    def __init__(self, concurrency: int) -> None:
        self.limit = concurrency

    def answered(self, time_to_first_byte: float, now: float, in_use: int) -> None:
        pass

    def refused(self) -> None:
        pass

    def lost(self, in_use: int) -> None:
        pass

    def failed(self, in_use: int) -> None:
        pass

    def restart(self) -> None:
        pass


class AdaptiveConcurrency:
    """The limit, and what it has learned.

    Attributes:
        limit: requests at once, as it stands.
        idle_time: seconds to the first byte of an idle instance, as far as it is known.
    """

    def __init__(self, settings: Adaptive) -> None:
        self._settings = settings
        self.limit = settings.initial
        self.idle_time = _UNKNOWN
        self._level = float(settings.initial)  # the limit before rounding
        self._smoothed = _UNKNOWN
        self._times: list[float] = []
        self._size = max(_FEWEST, self.limit)
        self._most_in_use = 0
        self._failures = 0  # in this round, or in the last so many that were refused
        self._refused = 0
        # Answers still to come that say little: those of an old limit, and the first, which are the quickest.
        self._passed_over = settings.initial
        self._after_loss = 0  # answers and losses until another loss counts
        self._measure_at = _UNKNOWN
        self._resume: float | None = None  # the level before the idle time was measured again

    def answered(self, time_to_first_byte: float, now: float, in_use: int) -> None:
        """An attempt was answered.

        Args:
            time_to_first_byte: seconds.
            in_use: places taken while it was under way, itself included.
        """
        if self._after_loss:
            self._after_loss -= 1
        if self._passed_over:
            self._passed_over -= 1
            return
        times = self._times
        times.append(time_to_first_byte)
        if in_use > self._most_in_use:
            self._most_in_use = in_use
        if len(times) >= self._size:
            self._end_round(now)

    def refused(self) -> None:
        """An attempt was answered without data. Its time says nothing: to refuse a token may take a hundredth of what data
        take, and an instance would seem slow ever after.
        """
        if self._after_loss:
            self._after_loss -= 1
        if self._passed_over:
            self._passed_over -= 1
            return
        self._refused += 1
        if self._refused >= self._size:
            self._refused = self._failures = 0

    def lost(self, in_use: int) -> None:
        """An attempt was throttled; `in_use` as above."""
        if self._after_loss:
            self._after_loss -= 1
        else:
            self._lose(in_use)

    def failed(self, in_use: int) -> None:
        """An attempt timed out, broke, or was answered that the instance failed; `in_use` as above."""
        if self._after_loss:
            self._after_loss -= 1
            return
        self._failures += 1
        if self._failures > _BY_CHANCE * self._size:
            self._lose(in_use)

    def restart(self) -> None:
        """The instance was down and is back: begins again. What was lost meanwhile says nothing about its capacity."""
        self._set(self._settings.initial)
        self._smoothed, self._resume = _UNKNOWN, None
        self._after_loss = self._passed_over = 0
        self._begin_round()

    def _end_round(self, now: float) -> None:
        settings, typical = self._settings, _median(self._times)
        used = self._most_in_use >= self.limit
        self._begin_round()
        if self._measure_at == _UNKNOWN:
            self._measure_at = now + settings.remember
        if self._resume is not None:  # this was the round with an emptied queue
            self.idle_time, resume = typical, self._resume
            self._smoothed, self._resume = _UNKNOWN, None
            self._set(resume)
            return
        known = self._smoothed < _UNKNOWN
        self._smoothed = self._smoothed + _SMOOTHING * (typical - self._smoothed) if known else typical
        self._remember(self._smoothed)
        excess = self._smoothed / (self.idle_time * settings.tolerance) if self.idle_time > 0 else 0.0
        if excess > 1.0:
            self._shrink(min(settings.decrease, max(_MOST_AT_A_TIME, 1.0 / excess)))
        elif used:
            self._set(self._level + 1.0)
        if now >= self._measure_at:
            self._measure_at = now + settings.remember
            self._resume = self._level
            self._shrink(1.0 / settings.tolerance)

    def _remember(self, time: float) -> None:
        if self.idle_time == _UNKNOWN:
            self.idle_time = time
        elif time <= self.idle_time * _AS_USUAL:
            weight = _QUICKER_WEIGHT if time * _MUCH_QUICKER < self.idle_time else _USUAL_WEIGHT
            self.idle_time += weight * (time - self.idle_time)

    def _lose(self, in_use: int) -> None:
        self._after_loss, self._resume = max(in_use, self.limit) - 1, None
        self._shrink(self._settings.loss)

    def _shrink(self, factor: float) -> None:
        self._passed_over = self.limit
        self._set(self._level * factor)
        self._smoothed = _UNKNOWN
        self._begin_round()

    def _begin_round(self) -> None:
        self._times.clear()
        self._most_in_use = self._failures = self._refused = 0

    def _set(self, level: float) -> None:
        self._level = max(float(self._settings.minimum), min(float(self._settings.maximum), level))
        self.limit = int(self._level)
        self._size = max(_FEWEST, self.limit)


def make_concurrency(settings: int | Adaptive) -> FixedConcurrency | AdaptiveConcurrency:
    """The state that goes with the settings."""
    return FixedConcurrency(settings) if isinstance(settings, int) else AdaptiveConcurrency(settings)


def _median(times: list[float]) -> float:
    ordered = sorted(times)  # the module `statistics` would be a tenth of this package's import time
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
