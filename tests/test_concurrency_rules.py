"""The adaptive limit, rule by rule, with numbers that can be checked by hand."""

from __future__ import annotations

import pytest

from flinks_async import Adaptive
from flinks_async.limits.concurrency import AdaptiveConcurrency


def steady(settings: Adaptive) -> AdaptiveConcurrency:
    """A state after its slow start."""
    state = AdaptiveConcurrency(settings)
    state.slow_start = False
    return state


def feed(state: AdaptiveConcurrency, count: int, time: float = 1.0, *, now: float = 0.0, in_use: int = 1000) -> None:
    """Feeds answers; by default all slots are in use."""
    for _ in range(count):
        state.answered(time, now, in_use)


def lose(state: AdaptiveConcurrency, in_use: int) -> None:
    """A loss: the failure with which more than a tenth of a round has failed."""
    if state._after_loss:
        state._after_loss -= 1
    else:
        state._lose(in_use)


def after_a_round(time: float = 1.0, *, initial: int = 20) -> AdaptiveConcurrency:
    """A state with the baseline `time`, and one slot more than at the start."""
    state = steady(Adaptive(initial=initial))
    feed(state, initial + max(20, initial), time)
    assert (state.baseline, state.limit) == (time, initial + 1)
    return state


@pytest.mark.parametrize(("initial", "answers"), [(5, 5 + 20), (20, 20 + 20), (30, 30 + 30)])
def test_the_first_answers_are_ignored_and_a_round_is_as_long_as_the_limit(initial: int, answers: int) -> None:
    state = steady(Adaptive(initial=initial))
    feed(state, answers - 1)
    assert (state.limit, state.baseline) == (initial, float("inf"))
    feed(state, 1)
    assert (state.limit, state.baseline) == (initial + 1, 1.0)
    feed(state, max(20, initial + 1) - 1)
    assert state.limit == initial + 1
    feed(state, 1)
    assert state.limit == initial + 2


def test_a_round_counts_by_its_median() -> None:
    for initial, times, median in (
        (20, [0.25] * 9 + [0.5] + [1.0] * 10, 0.75),
        (20, [9.0] * 9 + [1.0] * 11, 1.0),
        (21, [0.5] * 10 + [1.0] + [3.0] * 10, 1.0),
    ):
        state = steady(Adaptive(initial=initial))
        feed(state, initial, 7.0)
        for time in times:
            feed(state, 1, time)
        assert state.baseline == median


def test_a_limit_grows_only_if_it_was_reached_in_this_round() -> None:
    state = after_a_round()
    feed(state, 21, in_use=20)
    assert state.limit == 21
    feed(state, 20, in_use=20)
    feed(state, 1, in_use=21)
    assert state.limit == 22
    feed(state, 22, in_use=21)
    assert state.limit == 22


@pytest.mark.parametrize(
    ("first", "second", "baseline"),
    [
        (1.0, 1.5, 1.01),  # smoothed to 1.2, which is usual, and has a weight of 0.05
        (1.0, 1.625, 1.0125),  # to 1.25, the most that is usual
        (1.0, 1.7, 1.0),  # to 1.28, which is not
        (1.5, 0.25, 1.475),  # to 1.0, not much quicker yet
        (1.5, 0.24, 1.248),  # to 0.996, which is, and has a weight of 0.5
    ],
)
def test_the_baseline_follows_usual_and_much_quicker_rounds(first: float, second: float, baseline: float) -> None:
    state = after_a_round(first)
    feed(state, 21, second)
    assert state.baseline == pytest.approx(baseline)


@pytest.mark.parametrize(
    ("time", "limit"),
    [
        (3.5, 22),  # smoothed to 2.0: all that the tolerance allows
        (3.6, 18),  # to 2.04: ten percent less
        (6.0, 14),  # to 3.0: two thirds
        (100.0, 10),  # a half at most
    ],
)
def test_beyond_the_tolerance_it_shrinks(time: float, limit: int) -> None:
    state = after_a_round()
    feed(state, 21, time)
    assert state.limit == limit


def test_after_a_decrease_old_answers_are_ignored_and_the_average_starts_again() -> None:
    state = after_a_round()
    feed(state, 21, 3.6)
    assert state.limit == 18  # 18.9, rounded down
    feed(state, 21, 100.0)  # on the wire when the limit shrank
    feed(state, 19, 1.0)
    assert state.limit == 18
    feed(state, 1, 1.0)
    assert state.limit == 19  # 19.9
    feed(state, 20, 3.5)  # with the earlier 2.04 it would exceed the tolerance
    assert state.limit == 20


def test_times_of_zero_are_accepted() -> None:
    state = after_a_round(0.0)
    feed(state, 21, 0.0)
    assert state.limit == 22
    feed(state, 22, 1.0)
    assert state.limit == 23


def test_one_loss_a_round_counts() -> None:
    state = steady(Adaptive())
    lose(state, 20)
    assert state.limit == 14
    feed(state, 10)
    for _ in range(9):
        lose(state, 14)
    assert state.limit == 14
    lose(state, 14)
    assert state.limit == 9
    state.restart()
    lose(state, 30)  # more are on the wire than there are slots
    for _ in range(29):
        lose(state, 14)
    assert state.limit == 14
    lose(state, 14)
    assert state.limit == 9


def test_failures_of_one_round_count_once_and_from_the_third_of_twenty() -> None:
    state = steady(Adaptive(initial=20, loss=0.7))
    limits = []
    for _ in range(23):
        state.failed(20)
        limits.append(state.limit)
    assert limits == [20, 20, *[14] * 21]
    for _ in range(2):
        state.failed(14)
    assert state.limit == 9


def test_failures_of_earlier_rounds_do_not_add_up() -> None:
    state = steady(Adaptive(initial=20))
    for number in range(200):
        if number % 20 < 2:
            state.failed(20)
        state.answered(0.1, float(number), 20)
    assert state.limit >= 20


def test_refusals_are_no_part_of_a_round_but_failures_among_many_of_them_are_few() -> None:
    state = after_a_round()
    for _ in range(100):
        for _ in range(19):
            state.refused()
        state.failed(20)
        state.refused()
    assert (state.limit, state.baseline) == (21, 1.0)
    for _ in range(19):
        state.refused()
    for _ in range(2):
        state.failed(20)
    assert state.limit == 21
    state.failed(20)
    assert state.limit == 14


@pytest.mark.parametrize(("before", "limit"), [(9, 3), (19, 5)])
def test_failures_are_counted_over_as_many_refusals_as_a_round_has(before: int, limit: int) -> None:
    state = steady(Adaptive(initial=5, minimum=1))
    for _ in range(5 + before):  # the first five are ignored
        state.refused()
    for _ in range(2):
        state.failed(5)
    state.refused()
    for _ in range(1 if limit == 3 else 2):
        state.failed(5)
    assert state.limit == limit


def test_refusals_count_as_answers_under_an_old_limit() -> None:
    state = steady(Adaptive(initial=20))
    for _ in range(20):
        state.refused()
    feed(state, 20, in_use=1)
    assert state.baseline == 1.0
    lose(state, 20)
    for _ in range(19):
        state.refused()
    lose(state, 20)
    assert state.limit == 9


def test_after_a_loss_old_answers_are_ignored() -> None:
    state = after_a_round()
    feed(state, 10, 50.0)
    lose(state, 21)
    assert state.limit == 14
    feed(state, 21, 50.0)
    feed(state, 19, 1.0)
    assert state.limit == 14
    feed(state, 1, 1.0)
    assert (state.limit, state.baseline) == (15, 1.0)


def test_after_an_outage_nothing_is_ignored_and_the_baseline_is_kept() -> None:
    state = after_a_round()
    feed(state, 10, 50.0)
    lose(state, 21)
    state.restart()
    assert (state.limit, state.baseline) == (20, 1.0)
    feed(state, 19, 2.0)
    assert state.limit == 20
    feed(state, 1, 2.0)
    assert state.limit == 21
    lose(state, 20)
    assert state.limit == 14


def test_a_round_cut_short_by_an_outage_is_dropped() -> None:
    state = after_a_round()
    feed(state, 10, 50.0)
    state.restart()
    feed(state, 19, 2.0, in_use=1)
    feed(state, 1, 2.0, in_use=19)
    assert state.limit == 20  # slots in use before the outage are forgotten as well
    feed(state, 20, 2.0)
    assert state.limit == 21


def at_the_second_measuring() -> AdaptiveConcurrency:
    state = steady(Adaptive())
    feed(state, 40, now=100.0)
    feed(state, 21, now=699.0)
    assert state.limit == 22
    feed(state, 22, now=700.0)  # 600 s later
    assert state.limit == 11  # 23, divided by the tolerance
    return state


def test_the_baseline_is_measured_again_with_a_drained_queue() -> None:
    state = at_the_second_measuring()
    feed(state, 23, 50.0, now=701.0)  # answers from the draining queue
    feed(state, 19, 3.0, now=701.0)
    assert (state.limit, state.baseline) == (11, 1.0)
    feed(state, 1, 3.0, now=702.0)
    assert (state.limit, state.baseline) == (23, 3.0)
    feed(state, 23, 6.0, now=1299.0)  # with the earlier 1.0 this would exceed the tolerance
    assert (state.limit, state.baseline) == (24, 3.0)
    feed(state, 24, 3.0, now=1300.0)
    assert state.limit == 12


def test_a_loss_ends_the_measuring() -> None:
    state = at_the_second_measuring()
    lose(state, 11)
    assert state.limit == 8  # 23 / 2 * 0.7
    feed(state, 11, 50.0, now=701.0)
    feed(state, 20, 1.0, now=701.0)
    assert (state.limit, state.baseline) == (9, 1.0)


def test_an_outage_ends_the_measuring() -> None:
    state = at_the_second_measuring()
    state.restart()
    feed(state, 20, 1.0, now=701.0)
    assert state.limit == 21


def test_the_bounds() -> None:
    state = steady(Adaptive(initial=20, minimum=19, maximum=21))
    feed(state, 40)
    feed(state, 21)
    assert state.limit == 21
    lose(state, 21)
    assert state.limit == 19
