"""How many requests may be on the wire at once: a fixed number, or one that adapts.

The right number is unknown and changes. By Little's law (L = rate x time) an instance that answers in 100 ms and sustains
500 requests per second works on 50 requests at once; a 51st only waits in a queue there. If the same instance becomes 20
times slower without failing (a gray failure), those 50 pile up and keep it slow.

The adaptive limit uses additive increase, multiplicative decrease (AIMD; Chiu and Jain, 1989), as TCP and Netflix'
concurrency-limits do:

- It measures the *time to first byte* of answers with data. Body sizes differ by a factor of 5,000, so the time to read a
  body says nothing about a queue; neither does the time of a refused token.
- Answers are grouped into rounds, each as long as the limit (at least 20 answers). A round counts by its median, so that
  one slow token changes nothing. Where times vary much, a median varies by chance, which is tolerated too.
- Rounds of about the usual speed form the baseline, the time of an instance without a queue. It is a moving average
  instead of a minimum, which chance would lower further and further where times vary. While a round stays within
  `tolerance` times the baseline, the limit grows by 1, but only if the round used the whole limit.
- A slower round shrinks the limit by 10 %, a much slower one in proportion, at most by half. Answers to requests that
  were already on the wire are then ignored, because they do not describe the new limit.
- At the start, until the first slow round, the limit doubles each round (slow start); `pace` widens it even before the
  first answers.
- A throttled attempt changes nothing here, because a refusal is about the rate (see `pace`). If the instance limits the
  requests at once, `bound` says how many.
- A timeout, a broken connection or a 5xx may be the fault of one login, so it only counts when more than a tenth of a round
  fails. Then the limit shrinks by 30 %, once per round. Otherwise 3 logins of 100 that always fail would hold everybody at 4
  requests at once (0.3 L per loss against 1 per round).
- The baseline expires. After `remember` seconds the limit is divided by `tolerance` for one round, which drains our part
  of the queue, and the baseline is measured again. So a lasting change is accepted eventually, and a queue that we cause
  is not mistaken for the instance's normal speed (the weakness of Vegas and Gradient limits).

Pure: time is an argument.
"""

from __future__ import annotations

from collections import deque
from math import inf

from ..config import Adaptive

_MIN_ROUND = 20  # answers
_SMOOTHING = 0.4  # weight of the newest round in the smoothed time
_MIN_DECREASE_FACTOR = 0.5  # one slow round shrinks the limit at most to this share

# A round within 1.25 times the baseline moves it with a small weight. A round that is 1.5 times quicker than the baseline
# shows that it was wrong, and moves it with a large one.
_BASELINE_BAND = 1.25
_BASELINE_WEIGHT = 0.05
_QUICKER = 1.5
_QUICKER_WEIGHT = 0.5

_TOLERATED_FAILURES = 0.1  # share of a round's attempts that may fail without counting as a loss


class FixedConcurrency:
    """Always the same number."""

    def __init__(self, concurrency: int) -> None:
        self.limit = concurrency

    def _ignores(self, *_: object) -> None:
        """Nothing changes the number."""

    answered = refused = failed = restart = bound = _ignores

    def widen(self, most: int) -> bool:
        return False


class AdaptiveConcurrency:
    """A limit that follows the instance's capacity.

    Attributes:
        limit: requests at once, now.
        baseline: seconds to the first byte of an instance without a queue; infinity while unknown.
        slow_start: no round has been slow yet.
    """

    def __init__(self, settings: Adaptive) -> None:
        self._settings = settings
        self.limit = settings.initial
        self.baseline = inf
        self._level = float(settings.initial)  # the limit before rounding
        self._smoothed = inf
        self._times: list[float] = []
        self._size = max(_MIN_ROUND, self.limit)
        self._most_in_use = 0
        self._failures = 0  # in this round; rounds of refusals also reset it
        self._refused = 0
        # Answers to ignore: those sent under an older limit, and the very first, which are the quickest.
        self._ignored = settings.initial
        self.slow_start = True
        self._bound = settings.maximum
        self._after_loss = 0  # answers and losses until another loss counts
        self._measure_at = inf
        self._resume: float | None = None  # the level to return to once the baseline is measured again

    def answered(self, time_to_first_byte: float, now: float, in_use: int) -> None:
        """Registers an answer with data.

        Args:
            time_to_first_byte: seconds.
            in_use: slots in use while the attempt was on the wire, including its own.
        """
        if self._after_loss:
            self._after_loss -= 1
        if self._ignored:
            self._ignored -= 1
            return
        times = self._times
        times.append(time_to_first_byte)
        if in_use > self._most_in_use:
            self._most_in_use = in_use
        if len(times) >= self._size:
            self._end_round(now)

    def refused(self) -> None:
        """Registers an answer without data. Its time is not used: a refusal may be 100 times quicker than data, and would
        set a baseline that makes every later answer look slow.
        """
        if self._after_loss:
            self._after_loss -= 1
        if self._ignored:
            self._ignored -= 1
            return
        self._refused += 1
        if self._refused >= self._size:
            self._refused = self._failures = 0

    def failed(self, in_use: int) -> None:
        """Registers a timeout, a broken connection or a 5xx; `in_use` as in `answered`."""
        if self._after_loss:
            self._after_loss -= 1
            return
        self._failures += 1
        if self._failures > _TOLERATED_FAILURES * self._size:
            self._lose(in_use)

    def restart(self) -> None:
        """Starts again after an outage. Failures during the outage say nothing about capacity, so they are forgotten."""
        self._set(self._settings.initial)
        self._smoothed, self._resume = inf, None
        self._after_loss = self._ignored = 0
        self._begin_round()

    def _end_round(self, now: float) -> None:
        settings, (typical, noise) = self._settings, _median(self._times)
        used = self._most_in_use >= self.limit
        self._begin_round()
        if self._measure_at == inf:
            self._measure_at = now + settings.remember
        if self._resume is not None:  # this round ran with a drained queue
            self.baseline, resume = typical, self._resume
            self._smoothed, self._resume = inf, None
            self._set(resume)
            return
        known = self._smoothed < inf
        self._smoothed = self._smoothed + _SMOOTHING * (typical - self._smoothed) if known else typical
        self._update_baseline(self._smoothed, noise)
        excess = self._smoothed / (self.baseline * settings.tolerance * noise) if self.baseline > 0 else 0.0
        if excess > 1.0:
            self.slow_start = False
            self._shrink(min(settings.decrease, max(_MIN_DECREASE_FACTOR, 1.0 / excess)))
        elif used:
            self._set(self._level * 2 if self.slow_start else self._level + 1.0)
        if now >= self._measure_at:
            self._measure_at = now + settings.remember
            self._resume = self._level
            self._shrink(1.0 / settings.tolerance)

    def _update_baseline(self, time: float, noise: float) -> None:
        if self.baseline == inf:
            self.baseline = time
        elif time <= self.baseline * _BASELINE_BAND * noise:
            weight = _QUICKER_WEIGHT if time * _QUICKER * noise < self.baseline else _BASELINE_WEIGHT
            self.baseline += weight * (time - self.baseline)

    def _lose(self, in_use: int) -> None:
        self._after_loss, self._resume = max(in_use, self.limit) - 1, None
        self._shrink(self._settings.loss)

    def _shrink(self, factor: float) -> None:
        self._ignored = self.limit
        self._set(self._level * factor)
        self._smoothed = inf
        self._begin_round()

    def _begin_round(self) -> None:
        self._times.clear()
        self._most_in_use = self._failures = self._refused = 0

    def widen(self, most: int) -> bool:
        """Allows `most` requests at once, if nothing has been slow so far. Returns whether they are allowed."""
        if not self.slow_start or most > self._settings.maximum or most > self._bound:
            return False
        self._set(max(self._level, float(most)))
        return True

    def bound(self, most: int | None) -> None:
        """The instance refuses more than `most` at once; None if it is not known to."""
        most = self._settings.maximum if most is None else most
        if most != self._bound:
            self._bound = most
            self._set(float(most))

    def _set(self, level: float) -> None:
        settings = self._settings
        self._level = min(float(self._bound), max(float(settings.minimum), min(float(settings.maximum), level)))
        self.limit = int(self._level)
        self._size = max(_MIN_ROUND, self.limit)


class AtOnceCap:
    """Whether an instance refuses because of the requests in flight, not because of their rate.

    Then requests are refused only with more in flight than those that are accepted. That is assumed after two refusals in a
    row that left with more in flight than each of the last accepted ones: by chance the next of 61 is the largest once in 61
    times. The number is bounded then, instead of the rate. Three refusals within the bound that this does not explain disprove
    it, and it is not assumed again for a while.

    A refused request takes no place at the instance. So those that were on their way back are not counted.

    Attributes:
        at_once: requests in flight that the instance accepts; None while that is not assumed.
    """

    def __init__(self) -> None:
        self.at_once: int | None = None
        self._accepted: deque[int] = deque(maxlen=60)  # in flight when accepted requests were sent
        self._refused: deque[tuple[float, float]] = deque(maxlen=32)  # when refused requests were sent and answered
        self._votes = 0
        self._unexplained = 0
        self._ok = 0  # accepted within the bound since it was changed
        self._since = self._changed = 0.0
        self._patience = 2.0  # seconds until one more is tried; doubles each time that it is refused
        self._not_before = -inf
        self._backoff = 30.0

    def _working(self, in_flight: int, sent: float) -> int:
        """The requests in flight without refusals on their way back."""
        return in_flight - sum(left < sent < back for left, back in self._refused)

    def forget(self) -> None:
        """The rate has changed, so that older answers say nothing about the requests in flight."""
        self._votes = 0
        self._accepted.clear()

    def accepted(self, in_flight: int, sent: float, now: float) -> None:
        """Registers an answer that is no refusal."""
        self._accepted.append(self._working(in_flight, sent) if self._refused else in_flight)
        if self.at_once is None:
            return
        self._ok += 1
        if self._ok >= 200 and now - self._since > self._patience and in_flight >= self.at_once:
            self.at_once += 1
            self._ok, self._unexplained, self._since = 0, 0, now

    def refused(self, in_flight: int, sent: float, now: float, *, steady: bool) -> bool:
        """Registers a refusal. Returns whether the requests in flight explain it.

        Args:
            steady: the pace is near its limit; while it grows, the requests in flight grow too, and prove nothing.
        """
        working = self._working(in_flight, sent)
        self._refused.append((sent, now))
        if self.at_once is not None:
            return self._within(working, sent, now)
        if not steady or len(self._accepted) < 20 or now < self._not_before:
            return False
        self._votes = self._votes + 1 if working > max(self._accepted) else 0
        if self._votes < 2:
            return False
        self.assume(working - 1, now)
        return True

    def possible(self, now: float) -> bool:
        """It was not disproved lately."""
        return now >= self._not_before

    def assume(self, at_once: int, now: float) -> None:
        """The instance seems to accept so many."""
        self.at_once = max(1, at_once)
        self._votes = self._unexplained = self._ok = 0
        self._patience = 2.0
        self._since = self._changed = now

    def _within(self, working: int, sent: float, now: float) -> bool:
        assert self.at_once is not None
        if sent <= self._changed or working > self.at_once:
            return True
        if self._ok < 200 and working > 1 and len(self._accepted) >= 20 and working > sorted(self._accepted)[-3]:
            self.at_once = working - 1
            self._ok, self._since, self._changed = 0, now, now
            self._patience = min(32.0, 2.0 * self._patience)
            return True
        self._unexplained += 1
        if self._unexplained < 3:
            return True
        self.at_once = None
        self._not_before = now + self._backoff
        self._backoff *= 2
        return False


def make_concurrency(settings: int | Adaptive) -> FixedConcurrency | AdaptiveConcurrency:
    """The state for these settings."""
    return FixedConcurrency(settings) if isinstance(settings, int) else AdaptiveConcurrency(settings)


def _median(times: list[float]) -> tuple[float, float]:
    """The median, and by which factor it may differ by chance: its standard error, from the quartiles (log-normal)."""
    ordered = sorted(times)  # importing `statistics` would add a tenth to this package's import time
    count = len(ordered)
    middle, low, high = count // 2, ordered[count // 4], ordered[(3 * count - 1) // 4]
    median = ordered[middle] if count % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return median, (high / low) ** (0.93 / count**0.5) if low > 0 else 1.0
