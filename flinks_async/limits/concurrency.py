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
from .breaker import AttemptRecord

_MIN_ROUND = 20  # answers
_SMOOTHING = 0.4  # weight of the newest round in the smoothed time
_MIN_DECREASE_FACTOR = 0.5  # one slow round shrinks the limit at most to this share

# A round within 1.25 times the baseline moves it with a small weight. A round that is 1.5 times quicker than the baseline
# shows that it was wrong, and moves it with a large one.
_BASELINE_BAND = 1.25
_BASELINE_WEIGHT = 0.05
_QUICKER = 1.5
_QUICKER_WEIGHT = 0.5

# A cap of requests at once is assumed after this many refusals, times the accepted requests that they are compared with.
_VOTES, _SURE = 3, 60
_FORGOTTEN = 1 / 40  # unexplained refusals for each accepted request
_TEST_EVERY = 200  # accepted requests; a test costs about one refusal

_TOLERATED_FAILURES = 0.1  # share of a round's attempts that may fail without counting as a loss


class FixedConcurrency:
    """Always the same number, unless the instance refuses so many at once."""

    def __init__(self, concurrency: int) -> None:
        self.limit = self._concurrency = concurrency

    def _ignores(self, *_: object) -> None:
        """Times and failures do not change the number."""

    answered = refused = failed = restart = _ignores

    def bound(self, most: int | None) -> None:
        self.limit = self._concurrency if most is None else min(most, self._concurrency)

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

    Then it refuses each request that arrives with more in flight than a number, and accepts all others. A refused request takes
    no place at the instance, so those on their way back are not counted. Which these were is known late. So a refusal is judged
    when as many later requests as were in flight with it could be answered.

    A cap is assumed after refusals in a row that each left with more in flight than all of the last accepted requests, before and
    after. Where the rate is limited, this is chance: that 3 of 23 are the largest has a probability of 1 in 1,771.
    Refusals without an accepted request between them count once, because the end of a window refuses everything. One of them has
    to be of a rate that is held: at the start, the requests in flight grow with the rate until the first refusal.

    The number is bounded then, instead of the rate. Three refusals within the bound that this does not explain disprove it, and it
    is not assumed again for a while. Refusals by chance are expected: one is forgotten with each 40 accepted requests.

    A cap may rise. So one request more is tried after 200, and if none is refused, two more, four more.

    Attributes:
        at_once: requests in flight that the instance accepts; None while that is not assumed.
    """

    def __init__(self) -> None:
        self.at_once: int | None = None
        self._accepted: deque[AttemptRecord] = deque(maxlen=240)
        self._refused: deque[AttemptRecord] = deque(maxlen=256)
        self._unjudged: deque[AttemptRecord] = deque(maxlen=32)
        self._judged = 0  # number of the last refused request that was judged
        self._held_from = inf  # number of the first one that was sent at a rate that is held
        self._votes = 0
        self._explains = False
        self._unexplained = 0.0
        self._ok = 0  # accepted since the bound was changed
        self._more = 1  # requests beyond the bound that are tried next
        self._raised = self._lowered = 0.0
        self._not_before = -inf
        self._backoff = 30.0

    def _working(self, record: AttemptRecord) -> int:
        """The requests in flight with this one, without those that were refused."""
        working = record.in_flight
        for other in reversed(self._refused):
            if other.ended <= record.sent:
                break
            working -= other.number < record.number
        return working

    def _most_accepted(self, outliers: int = 0) -> int:
        """Requests in flight with one of the last accepted ones, at most."""
        return sorted(map(self._working, self._accepted))[-1 - outliers]

    def _fewest_refused(self) -> int:
        """Requests in flight with one of the last refused ones, at least."""
        return min(self._working(self._refused[-back]) for back in range(1, 1 + min(4, len(self._refused))))

    def possible(self, now: float) -> bool:
        """It explains the last refusals, and was not disproved lately."""
        return now >= self._not_before and self._fewest_refused() > 1

    def accepted(self, record: AttemptRecord) -> bool:
        """Registers an answer that is no refusal. Returns whether a cap explains the refusals so far."""
        if self._unjudged and _judged_with(self._unjudged[0]) <= record.number:
            self._judge(record.number)
        self._accepted.append(record)
        if self.at_once is None:
            return self._explains and self._votes * len(self._accepted) >= _SURE and self.possible(record.ended)
        self._ok += 1
        self._unexplained = max(0.0, self._unexplained - _FORGOTTEN)
        enough = max(_MIN_ROUND, 2 * self.at_once) if self._more > 1 else _TEST_EVERY
        if (
            self._ok >= enough
            and record.in_flight >= self.at_once
            and (self._more > 1 or record.ended > self._raised + 2)
        ):
            self.at_once += self._more
            self._more *= 2
            self._ok, self._raised = 0, record.ended
        return False

    def _judge(self, number: int) -> None:
        """Judges the refusals that this later request, which was accepted, makes known."""
        most = self._most_accepted() if self._accepted else inf
        while self._unjudged and _judged_with(self._unjudged[0]) <= number:
            one = self._unjudged.popleft()
            before, self._judged = self._judged, one.number
            if self._working(one) <= most:
                self._votes, self._explains = 0, False
            else:
                self._votes += one.number > before + 1
                self._explains = self._votes >= _VOTES and one.number >= self._held_from

    def refused(self, record: AttemptRecord, *, held: bool) -> bool:
        """Registers a refusal. Returns whether the requests in flight explain it.

        Args:
            held: the request was sent at a rate that is held.
        """
        self._refused.append(record)
        if self.at_once is not None:
            return self._within(record)
        self._unjudged.append(record)
        if held:
            self._held_from = min(self._held_from, record.number)
        return False

    def assume(self, now: float) -> None:
        """The instance seems to accept as many as the last refusals say."""
        self.at_once = max(1, self._fewest_refused() - 1)
        self._votes, self._explains = 0, False
        self._unjudged.clear()
        self._unexplained = 0.0
        self._changed(now)

    def _changed(self, now: float) -> None:
        self._ok, self._more = 0, 1
        self._raised = self._lowered = now

    def _within(self, record: AttemptRecord) -> bool:
        assert self.at_once is not None
        working, now = self._working(record), record.ended
        if record.sent <= self._lowered or working > self.at_once:
            return True
        if working > 1 and len(self._accepted) >= _MIN_ROUND and working > self._most_accepted(outliers=2):
            self.at_once = working - 1
            self._changed(now)
            return True
        self._unexplained += 1
        if self._unexplained < 3:
            return True
        self.at_once = None
        self._not_before = now + self._backoff
        self._backoff *= 2
        return False


def _judged_with(refused: AttemptRecord) -> int:
    """The number of a request whose answer tells all about the requests that were in flight with this refused one."""
    return refused.number + refused.in_flight


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
