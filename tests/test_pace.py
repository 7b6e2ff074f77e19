"""The pace that is learned from refusals: shapes of servers in virtual time, rules, and random servers."""

from __future__ import annotations

import asyncio
import importlib
import random
import sys
from math import inf, log
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flinks_async import Adaptive, ClientStats, Failed, FlinksClient, Limits, Pause, config
from flinks_async.limits.estimate import Cycle
from flinks_async.limits.pace import AttemptRecord, Mode, Pace
from flinks_async.limits.rate import LearnedLimit, PaceState, ServerLimit
from flinks_async.limits.reopening import Refusals, Reopening
from flinks_async.limits.slow_start import SlowStart
from flinks_async.messages import Request, Response
from flinks_async.testing import VirtualClock, run_virtual
from flinks_async.testing.in_memory import make_response

from .support import examples

BENCHMARKS = str(Path(__file__).resolve().parent.parent / "benchmarks")

sys.path.insert(0, BENCHMARKS)
try:
    bench: Any = importlib.import_module("congestion")
    servers: Any = importlib.import_module("limited_servers")
finally:
    sys.path.remove(BENCHMARKS)

DEMANDS = {
    # share of the best possible, requests for each answer
    "bucket 100/s, burst 20": (0.97, 1.03),
    "the same, Retry-After: 1": (0.97, 1.03),
    "strict 100/s, burst 1": (0.95, 1.03),
    "bucket 2,000/s, burst 20": (0.95, 1.03),
    "bucket 20/s, burst 20, answers in 1 s": (0.97, 1.03),
    "bucket 20/s, burst 4, answers in 5 s": (0.94, 1.03),  # those of the last 5 s do not count
    "bucket 5/s, burst 5": (0.97, 1.03),
    "100 in each second": (0.95, 1.03),
    "200 in each second, other phase": (0.94, 1.03),
    "100 in each second, answers in 0.5 s": (0.95, 1.04),
    "600 a minute": (0.97, 1.05),
    "600 a minute, Retry-After: 3600": (0.97, 1.05),
    "the same, Retry-After: 3600": (0.95, 1.03),
    "2,000 a day": (0.97, 1.06),
    "30 at once, answers in 0.2 s": (0.95, 1.03),
    "200/s, after 1 min 50/s, after 3 min 400/s": (0.95, 1.03),
    "a queue of 300/s": (0.97, 1.0),
    "no limit, answers in 1 s": (0.95, 1.0),
    "bucket 100/s, answers in 0.2 s, long tail": (0.9, 1.03),
    "no limit, answers in 1 s, long tail": (0.5, 1.0),
    "no limit, 0.5 % refused by chance, answers in 0.2 s": (0.9, 1.01),
    "bucket 200/s, and 2 % refused by chance": (0.8, 1.03),
    "bucket 100/s, and 0.5 % refused by chance": (0.95, 1.03),
    "bucket 100/s and 3,000 a minute": (0.95, 1.03),
    "100 in any 10 s": (0.97, 1.04),
    "bucket 30/s, burst 1, all in 5 s": (0.85, 1.09),
    "10/s, after 1 min 100/s": (0.9, 1.03),
}


@pytest.mark.parametrize("name", DEMANDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_limit_is_found_and_held(name: str, seed: int) -> None:
    result, (share, requests) = bench.ours(name, seed), DEMANDS[name]
    assert result.share >= share
    assert result.requests <= requests


@pytest.mark.parametrize("seed", [51, 52])
def test_seconds_in_which_all_places_were_taken_say_nothing_about_the_rate(seed: int) -> None:
    client, server = (
        bench.Client(bench.BULK, seed=seed),
        servers.Server([servers.Bucket(20, 4)], latency=5.0, refusal=5.0),
    )
    bench.simulate(server.seeded(seed), [client], 120.0)
    assert client.done >= 0.9 * 120 * 20


@pytest.mark.parametrize(
    ("most", "latency", "refusal", "spread", "requests"),
    [
        (2, 0.3, None, 0.1, 1.03),
        (2, 1.0, None, 0.1, 1.06),
        (5, 0.2, None, 0.5, 1.03),
        (10, 1.0, None, 0.1, 1.03),
        (10, 1.0, 1.0, 0.1, 1.05),
        (30, 0.2, 0.2, 0.5, 1.03),
        (100, 0.05, 0.05, 0.1, 1.03),
        (100, 1.0, 1.0, 0.1, 1.04),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_number_of_requests_at_once_is_found_and_held(
    most: int, latency: float, refusal: float | None, spread: float, requests: float, seed: int
) -> None:
    server = servers.Server([servers.Cap(most)], latency=latency, refusal=refusal, spread=spread).seeded(seed)
    client = bench.Client(bench.BULK, seed=seed)
    bench.simulate(server, [client], 120.0)
    assert client.done >= 0.95 * server.best(0.0, 120.0, bench.MOST)
    assert client.done + client.refused <= requests * client.done
    assert client.pace.cap.at_once in (most, most + 1)


@pytest.mark.parametrize(("rate", "burst", "latency"), [(5, 1, 0.3), (50, 1, 0.3), (20, 20, 1.0)])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_rate_is_not_mistaken_for_a_number_of_requests_at_once(
    rate: int, burst: int, latency: float, seed: int
) -> None:
    client = bench.Client(bench.BULK, seed=seed)
    bench.simulate(servers.Server([servers.Bucket(rate, burst)], latency=latency).seeded(seed), [client], 120.0)
    assert client.pace.cap.at_once is None
    assert client.done >= 0.85 * 120.0 * rate


@pytest.mark.parametrize("latency", [0.2, 5.0])
def test_a_fixed_number_is_lowered_to_what_the_instance_allows(latency: float) -> None:
    client = bench.Client(200)
    bench.simulate(servers.Server([servers.Cap(30)], latency=latency), [client], 60.0)
    assert client.refused <= 250
    assert client.done >= 0.8 * 30 * 60.0 / latency


def test_a_number_of_requests_at_once_that_rises_is_followed() -> None:
    cap = servers.Cap(20)
    client = bench.Client(bench.BULK)
    bench.simulate(servers.Server([cap, Raised(cap, 60, at=40.0)], latency=0.2), [client], 80.0)
    assert sum(at > 55.0 for at in client.ok_times) >= 0.9 * 25.0 * 60 / 0.2


class Raised(servers.Rule):  # type: ignore[misc]
    """Raises a cap at a time."""

    def __init__(self, cap: Any, most: int, at: float) -> None:
        self._cap, self._most, self._at = cap, most, at

    def allows(self, now: float) -> bool:
        if now >= self._at:
            self._cap.most = self._most
        return True


def test_requests_that_are_sent_late_count_as_sent_below_the_estimate() -> None:
    shares = []
    for seed in range(1, 7):
        client, server = bench.Client(bench.BULK, seed=seed), servers.Server([servers.Chance(0.02)], latency=0.2)
        bench.simulate(server.seeded(seed), [client], 120.0)
        shares.append(client.done / 120_000)
    assert sum(shares) / len(shares) >= 0.86


def test_an_estimate_after_a_rise_does_not_look_like_another_client() -> None:
    client = bench.Client(bench.BULK)
    bench.simulate(servers.Server([servers.Bucket(4500, 100)], latency=0.005), [client], 16.0)
    assert sum(at > 10.0 for at in client.ok_times) >= 0.97 * 6.0 * 4500


@pytest.mark.parametrize("later", [0.0, 60.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_clients_share_a_limit(later: float, seed: int) -> None:
    second, both = bench.two_clients(100.0, 20.0, later, seed)
    assert 0.4 <= second <= 0.6
    assert both >= 0.93


def test_who_was_stopped_at_the_start_is_not_pushed_out() -> None:
    """Many seeds, because one of them is chance."""
    runs = [bench.two_clients(100.0, 20.0, 0.0, seed) for seed in range(400, 418)]
    assert sum(0.1 <= second <= 0.9 for second, _ in runs) >= 15
    assert min(both for _, both in runs) >= 0.93


def test_the_burst_is_what_was_accepted_beyond_the_limit_in_the_start() -> None:
    start = SlowStart(4, 0.5)
    for _ in range(50):
        start.answered(0.005)  # so the pace doubles in 0.1 s
    start.ended(730)
    assert start.top == pytest.approx(log(2) / 0.1 * 730, rel=0.01)
    seconds = 0.1 * log(start.top / 3000) / log(2)  # above the limit
    assert start.burst_of(3000) == pytest.approx((start.top - 3000) * 0.1 / log(2) - 3000 * seconds, rel=0.01)


def test_a_refusal_of_a_request_before_the_last_signal_is_a_signal_too() -> None:
    """Refusals overtake each other where their times vary."""
    cycle, refusals = Cycle(), Refusals()
    cycle.begin(100.0, 0.0, lag=0.5)
    cycle._shared_until = 60.0
    cycle.now_used_up(50, 1.0, 0)
    refusals.add(45, 0.9, 60)
    cycle.signal(refusals, 1.5, 100.0, 0.5, SlowStart(4, 0.5))
    assert 1.0 <= cycle.limit <= 100.0


def test_a_client_that_comes_later_to_a_low_limit_is_not_left_out() -> None:
    shares = [bench.two_clients(20.0, 20.0, 60.0, seed)[0] for seed in (1, 2, 3)]
    assert 0.3 <= sorted(shares)[1] <= 0.7


def test_low_limits_are_shared_although_few_requests_are_refused() -> None:
    runs = [
        bench.two_clients(rate, rate, later, seed)
        for rate in (10.0, 20.0)
        for later in (0.0, 60.0)
        for seed in (1, 2, 3, 4, 5, 6)
    ]
    assert sum(0.395 <= second <= 0.605 for second, _ in runs) >= 14
    assert sum(0.25 <= second <= 0.75 for second, _ in runs) >= 20
    assert min(both for _, both in runs) >= 0.93


@pytest.mark.parametrize(("chance", "least"), [(0.02, 0.8), (0.03, 0.55)])
def test_refusals_by_chance_are_recognised_in_time(chance: float, least: float) -> None:
    """The mean of ten seeds, because one refusal at the start decides much of one run."""
    shares = []
    for seed in range(1, 11):
        client, server = bench.Client(bench.BULK, seed=seed), servers.Server([servers.Chance(chance)], latency=0.2)
        bench.simulate(server.seeded(seed), [client], 120.0)
        shares.append(client.done / (120.0 * (1 - chance) * bench.MOST / 0.2))
    assert sum(shares) / len(shares) >= least


@pytest.mark.parametrize(
    ("blocks", "share"),
    [
        ([2, 3, 3, 2], 0.025),
        ([2, 3, 3], 0.0),  # too few blocks
        ([0, 6, 0, 4], 0.0),  # as if another client filled the limit at some times
        ([1, 1, 1, 1], 0.0),  # too little
    ],
)
def test_refusals_below_the_estimate_are_by_chance_if_all_times_have_as_many(blocks: list[int], share: float) -> None:
    refusals = Refusals()
    for refused in blocks:
        refusals.below(60, 0.0)
        refusals.below(40, float(refused))
    assert refusals.by_chance == pytest.approx(share)


def test_a_short_window_is_no_quick_one() -> None:
    client = bench.Client(bench.BULK)
    bench.simulate(servers.Server([servers.Window(40, 3.0, step=1.1)]).seeded(1), [client], 120.0)
    assert client.done >= 0.95 * 1_600
    assert client.refused <= 0.08 * client.done


class RisingWindow(servers.Window):  # type: ignore[misc] # a class of an untyped module
    """100 in each 10 s; 300 after 100 s."""

    def __init__(self) -> None:
        super().__init__(100, 10.0)

    def allows(self, now: float) -> bool:
        self.count = 100 if now < 100.0 else 300
        return bool(super().allows(now))


def test_a_window_that_allows_more_is_used_after_some_windows() -> None:
    client = bench.Client(bench.BULK)
    bench.simulate(servers.Server([RisingWindow()]), [client], 300.0)
    assert sum(at >= 200.0 for at in client.ok_times) >= 0.95 * 3_000
    assert client.refused <= 0.1 * client.done


def test_wrong_rate_limit_headers_are_ignored_for_a_while_only() -> None:
    pace = Pace(20)
    assert pace.announced(ServerLimit(0, 100, 50.0), 1.0)
    pace.took(2, 2.0)
    pace.succeeded(AttemptRecord(2.0, 2, 1, ended=2.1))
    assert not pace.announced(ServerLimit(0, 100, 50.0), 61.0)
    assert pace.announced(ServerLimit(0, 100, 50.0), 63.0)


@pytest.mark.parametrize(("latency", "tokens", "share"), [(1.0, 4_000, 0.85), (5.0, 400, 0.7)])
def test_the_start_does_not_wait_for_answers(latency: float, tokens: int, share: float) -> None:
    client = bench.Client(bench.BULK, tokens=tokens)
    bench.simulate(servers.Server(latency=latency, spread=0.0), [client], 1000.0)
    assert tokens / bench.MOST * latency / client.finished >= share


@pytest.mark.parametrize(("slots", "longest"), [(None, 1.3), (20, 10.3)])
def test_a_fresh_service_sends_200_calls_within_a_third_of_a_second(slots: int | None, longest: float) -> None:
    client = bench.Client(config.service().limits.concurrency, tokens=200)
    bench.simulate(servers.Server(latency=1.0, spread=0.0, slots=slots), [client], 1000.0)
    assert sorted(client.ok_times)[197] <= longest


class Server:
    """A transport in front of a simulated server."""

    def __init__(self, shape: Any, down: tuple[float, float] = (0.0, 0.0)) -> None:
        self.shape, self.ok, self.refused = shape, 0, 0
        self.down = down

    async def send(self, request: Request, /) -> Response:
        if self.down[0] < asyncio.get_running_loop().time() < self.down[1]:
            return make_response({}, status=503)
        reply = self.shape.arrive(asyncio.get_running_loop().time())
        await asyncio.sleep(reply.delay)
        if reply.ok:
            self.shape.left(asyncio.get_running_loop().time())
            self.ok += 1
            return make_response({"GetAccountsDetail": [], "RequestId": "r"})
        self.refused += 1
        return make_response({"FlinksCode": "TOO_MANY_REQUESTS"}, status=401)

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "tokens", "seconds"),
    [
        ("bucket 100/s, burst 20", 3_000, 31.4),
        ("bucket 20/s, burst 4, answers in 5 s", 600, 38.0),
        ("600 a minute", 1_200, 75.0),
        ("30 at once, answers in 0.2 s", 3_000, 22.5),
    ],
)
def test_a_client_does_the_same_and_loses_nothing(name: str, tokens: int, seconds: float) -> None:
    async def main() -> tuple[Server, int, float, ClientStats, str]:
        server, failed, times = Server(servers.SHAPES[name].seeded(1)), 0, []
        async with FlinksClient(
            auth_secret="s", transport=server, settings=config.bulk(), clock=VirtualClock()
        ) as client:
            async for outcome in client.partner_access_many(f"t{number}" for number in range(tokens)):
                failed += isinstance(outcome, Failed)
                times.append(asyncio.get_running_loop().time())
            # The last tokens may be refused ones that wait to be sent again.
            return server, failed, times[-10], client.stats(), client.explain()

    server, failed, took, stats, explained = run_virtual(main())
    assert failed == 0
    assert took <= seconds
    assert server.refused <= 0.05 * tokens
    if name == "bucket 100/s, burst 20":
        assert stats.why_held.startswith("refused at 1")
        assert stats.learned_rate == pytest.approx(100.0, rel=0.1)
        assert f"requests per second: {stats.learned}" in explained
        assert "/s learned: refused at 1" in explained


@pytest.mark.parametrize("after", [50.0, 200.0])
def test_a_limit_is_still_known_after_an_outage(after: float) -> None:
    async def main() -> list[tuple[float, int, ClientStats]]:
        server, seen = Server(servers.Server([servers.Bucket([(0, 50), (30, after)], 20)]), (20.0, 40.0)), []
        async with FlinksClient(
            auth_secret="s", transport=server, settings=config.bulk(), clock=VirtualClock()
        ) as client:
            async for _ in client.partner_access_many(f"t{number}" for number in range(5_000 if after > 50 else 2_600)):
                seen.append((asyncio.get_running_loop().time(), server.ok, client.stats()))
        return seen

    seen = [one for one in run_virtual(main()) if one[0] > 40.0]
    back = seen[0][0]
    assert all(stats.learned_rate for _, _, stats in seen)
    assert any("the rate grows back to 50" in stats.why_held for _, _, stats in seen)
    assert all(stats.learned_rate == pytest.approx(50.0, rel=0.02) for at, _, stats in seen if at < back + 5.0)
    settled = [ok for at, ok, _ in seen if back + 15.0 <= at <= back + 20.0]
    assert settled[-1] - settled[0] >= 0.9 * 5.0 * after, "also if it has risen meanwhile"


def test_the_start_is_no_reason_while_all_places_are_used() -> None:
    async def main() -> list[ClientStats]:
        seen = []
        async with FlinksClient(
            auth_secret="s",
            transport=Server(servers.Server(latency=1.0)),
            settings=config.bulk(),
            clock=VirtualClock(),
        ) as client:
            async for _ in client.partner_access_many(f"t{number}" for number in range(2_000)):
                seen.append(client.stats())
        return seen

    seen = run_virtual(main())
    assert any(stats.why_held.startswith("the start") for stats in seen)
    full = [not stats.why_held for stats in seen if stats.limit == 200]
    assert sum(full) > 0.5 * len(full) > 100


def test_the_average_of_windows_is_the_learned_rate() -> None:
    client = bench.Client(bench.BULK)
    bench.simulate(servers.SHAPES["600 a minute"].seeded(1), [client], 130.0)
    learned = client.pace.learned(130.0)
    assert learned is not None
    assert learned.rate == pytest.approx(10.0, rel=0.05)


def test_one_refusal_among_many_answers_stops_nobody() -> None:
    pace = Pace(Adaptive())
    pace.mode = Mode.FREE
    pace.refused(AttemptRecord(9.9, 1000, 50, ended=10.0), rate=500.0)
    assert pace.free(10.0)
    assert pace.wait(10.0) == 0.0


def test_a_fixed_number_of_requests_at_once_has_no_start() -> None:
    assert Pace(20).free(0.0)
    assert not Pace(Adaptive()).free(0.0)


def test_a_long_hint_is_checked_by_single_requests() -> None:
    pace = Pace(20, longest=3600.0)
    pace.refused(AttemptRecord(0.9, 1, 1, ended=1.0, retry_after=300.0))
    assert pace.blocked
    assert 0.0 < pace.wait(1.0) < 300.0
    pace.took(2, 2.0)
    assert pace.wait(2.0) == inf
    assert pace.probing(2)
    pace.succeeded(AttemptRecord(2.0, 2, 1, ended=2.1))
    assert not pace.blocked


def test_a_probe_without_an_answer_is_repeated() -> None:
    pace = Pace(20)
    pace.refused(AttemptRecord(0.9, 1, 1, ended=1.0, retry_after=61.0))
    pace.took(2, 2.0)
    pace.abandoned(2, 3.0)
    assert pace.wait(3.0) < 10.0


def test_an_announced_end_of_a_window_is_believed_until_it_was_wrong() -> None:
    pace = Pace(20)
    assert pace.announced(ServerLimit(0, 100, 50.0), 1.0)
    pace.took(2, 2.0)
    pace.succeeded(AttemptRecord(2.0, 2, 1, ended=2.1))
    assert not pace.announced(ServerLimit(0, 100, 50.0), 3.0), "it was wrong"
    assert not Pace(20).announced(ServerLimit(1, 100, 50.0), 1.0)


def test_consistent_hints_name_the_same_moment() -> None:
    opening = Reopening(3600.0)
    opening.hinted(10.0, 30.0)
    assert opening.hint_at is None
    opening.hinted(15.0, 25.0)
    assert opening.hint_at == 40.0
    opening.hinted(20.0, 30.0)
    assert opening.hint_at is None, "a constant is no moment"


def test_a_constant_of_a_second_is_no_moment() -> None:
    opening = Reopening(3600.0)
    for now in (10.0, 11.0, 12.0):
        opening.hinted(now, 1.0)
        assert opening.hint_at is None


def test_the_period_of_a_window_is_a_round_time() -> None:
    opening = Reopening(60.0)
    opening.begins(0.0)
    for number, opened in ((500, 60.02), (1000, 120.04)):
        opening.window.used_up(number, 0)
        opening.since = opened - 59.0
        assert opening.reopened(number, opened, opened) == pytest.approx(60.02)
    assert opening.period == 60.0


@pytest.mark.parametrize(
    ("limit", "latency", "seed", "share", "requests"),
    [
        (servers.Window(300, 60.0, step=22.2), 0.05, 52, 0.95, 1.06),  # the next one opens at 105.6 s
        (servers.Window(20, 2.0), 0.05, 1, 0.95, 1.07),
        (servers.Window(20, 10.0, step=3.7), 0.05, 51, 0.95, 1.1),  # two windows at the start
        (servers.Window(15, 4.0, step=1.48), 0.05, 52, 0.95, 1.1),  # no round time
        (servers.Window(60, 5.0), 0.5, 51, 0.95, 1.03),
        (servers.Sliding(300, 5.0), 0.05, 51, 0.95, 1.04),
        (servers.Sliding(300, 10.0), 0.5, 51, 0.95, 1.03),
        (servers.Sliding(1000, 10.0), 0.5, 51, 0.95, 1.04),
        (servers.Sliding(60, 30.0), 0.05, 51, 0.95, 1.12),
        (servers.Sliding(15, 4.0), 0.5, 52, 0.95, 1.06),
    ],
)
def test_windows_are_used(limit: Any, latency: float, seed: int, share: float, requests: float) -> None:
    server, client = servers.Server([limit], latency=latency).seeded(seed), bench.Client(bench.BULK, seed=seed)
    bench.simulate(server, [client], 120.0)
    assert client.done >= share * server.best(0.0, 120.0, bench.MOST)
    assert client.done + client.refused <= requests * client.done


@pytest.mark.parametrize("seed", [51, 52, 53])
def test_a_low_rate_is_found_although_refusals_take_a_second(seed: int) -> None:
    server = servers.Server([servers.Bucket(2, 1)], latency=1.0, refusal=1.0).seeded(seed)
    client = bench.Client(bench.BULK, seed=seed)
    bench.simulate(server, [client], 120.0)
    assert client.done >= 0.7 * 240


def test_a_window_refuses_nothing_before_its_end() -> None:
    window = Reopening(60.0).window
    window.used_up(100, 0)
    window.opened(105, 10.0, found=True, known=False)
    window.refused(205)
    assert window.as_before(205)
    for number in range(206, 210):
        window.refused(number)
    assert not window.as_before(209), "a rate that was exceeded, not the end of a window"


def test_the_bounds_of_two_openings_tell_the_period_of_a_short_window() -> None:
    opening = Reopening(60.0)
    opening.begins(0.0)
    for number, used_up, asked, opened in ((21, 1.3, 1.4, 2.0), (41, 3.1, 3.1, 3.6)):  # it opens at 1.5 s and 3.5 s
        opening.window.used_up(number, 0)
        opening.stops(used_up, 20.0)
        opening.still_closed(asked)
        opening.reopened(number, opened, opened)
    assert opening.period == 2.0
    opening.stops(4.5, 20.0)
    assert 5.1 < opening.next_probe(4.5) < 5.5, "half-way between the bounds"


def test_a_window_is_not_asked_for_before_it_can_open_again() -> None:
    opening = Reopening(60.0)
    opening.begins(0.0)
    opening.window.used_up(100, 0)
    opening.stops(2.0, 100.0)
    opening.still_closed(45.0)
    opening.reopened(100, 60.0, 60.0)
    opening.window.used_up(200, 0)
    opening.stops(62.0, 100.0)
    assert opening.next_probe(62.0) >= 88.0, "it was closed for 43 s, and opened after 45 s"


def test_the_first_refusals_after_a_quick_start_are_judged_by_what_was_sent_lately() -> None:
    pace = Pace(200)  # a fixed number has no start
    for number in range(1, 1001):
        pace.took(number, number / 2000)
    for number in range(960, 1001, 3):
        pace.refused(AttemptRecord(number / 2000, number, 100, ended=0.51), rate=400.0)
    learned = pace.learned(0.6)
    assert learned is not None
    assert learned.rate is not None
    assert 1000 <= learned.rate <= 2000


def test_the_pace_is_known_at_once_after_unpaced_requests() -> None:
    cycle = Cycle()
    cycle.begin(100.0, 0.0, lag=0.01)
    cycle.mark(1.0, 32, inf)
    cycle.mark(1.001, 33, 50.0)
    assert cycle.pace_at(1.001) == 50.0


def test_requests_that_are_sent_in_bunches_are_not_idle() -> None:
    pace = Pace(200)
    pace.join(PaceState(100.0, 0.0), 0.0)
    number = 0
    for bunch in range(1, 51):
        now = bunch * 0.01  # the pace allows one in each 10 ms
        for _ in range(3):
            if pace.wait(now) == 0:
                number += 1
                pace.took(number, now)
    assert pace._cycle.idle <= 0.1
    pace.took(number + 1, 2.5)
    assert pace._cycle.idle == pytest.approx(2.0, abs=0.1), "2 s without a request"


def test_a_few_quick_answers_do_not_hurry_the_start() -> None:
    late = []
    for seed in range(1, 9):
        server = servers.Server([servers.Bucket(1500, 375)], latency=0.056, tail=0.5, spread=1.0, refusal=0.04)
        client = bench.Client(bench.BULK, seed=seed)
        bench.simulate(server.seeded(seed), [client], 9.0)
        late.append(sum(at > 5.0 for at in client.ok_times) / 6000)
    assert sum(late) / len(late) >= 0.97


def test_an_estimate_of_some_hundredths_of_a_second_is_not_firm() -> None:
    """100 requests take 0.07 s at 1,500/s, and the times of two requests differ by a good part of that."""
    cycle, refusals, start = Cycle(), Refusals(), SlowStart(4, 0.5)
    evidence = []
    for number, sent in ((1000, 1.0), (1105, 1.07), (1755, 1.5)):
        refusals.level = 0.0
        refusals.add(number, sent, number)
        cycle.refused(sent, 1)
        cycle.signal(refusals, sent + 0.03, 1550.0, 0.03, start)
        evidence.append(cycle.evidence)
    assert evidence[1] < 20
    assert evidence[2] == 100


def test_what_is_learned_is_told_to_other_processes() -> None:
    pace = Pace(20)
    assert pace.shared(0.0) is None
    pace.join(PaceState(50.0, 0.0), 1.0)
    assert pace.learned(1.0) == LearnedLimit(50.0)
    assert pace.shared(1.0) == PaceState(50.0, 0.0)
    assert pace.shared(1.0) is None
    pace.join(PaceState(None, 9.0), 1.0)
    assert pace.wait(1.0) == 8.0


RULES = st.one_of(
    st.builds(lambda rate, burst: lambda: servers.Bucket(rate, burst), st.floats(1, 300), st.integers(1, 100)),
    st.builds(
        lambda count, period: lambda: servers.Window(count, period),
        st.integers(20, 500),
        st.sampled_from([1.0, 5.0, 7.0]),
    ),
    st.builds(lambda count: lambda: servers.Sliding(count, 5.0), st.integers(20, 300)),
    st.builds(lambda most: lambda: servers.Cap(most), st.integers(1, 60)),
    st.builds(lambda share: lambda: servers.Chance(share), st.floats(0.0, 0.02)),
)


@examples(8)
@given(
    st.lists(RULES, min_size=1, max_size=2),
    st.floats(0.005, 2.0),
    st.sampled_from([None, 0.01, 1.0]),
    st.sampled_from([None, "right", 1.0, 60.0, 0.0]),
)
def test_no_server_stops_it_for_good(rules: list[Any], latency: float, refusal: float | None, hint: Any) -> None:
    shape = servers.Server([rule() for rule in rules], latency=latency, refusal=refusal, hint=hint)
    client = bench.Client(Adaptive(initial=4, doubling=0.5, maximum=60))
    bench.simulate(shape, [client], 60.0)
    assert client.in_use <= 60
    assert sum(at > 30.0 for at in client.ok_times) >= 1
    assert client.done >= 0.15 * shape.best(0.0, 60.0, 60)


@examples(25)
@given(st.lists(st.tuples(st.floats(0, 5), st.booleans(), st.sampled_from([None, 0.0, 5.0, 1e9])), max_size=200))
def test_any_order_of_answers_leaves_a_finite_wait(steps: list[tuple[float, bool, float | None]]) -> None:
    pace, now, chance = Pace(Adaptive(initial=2)), 0.0, random.Random(1)
    for number, (passed, ok, hint) in enumerate(steps, 1):
        now += min(passed, pace.wait(now) if pace.wait(now) < inf else passed)
        pace.took(number, now)
        sent, now = now, now + chance.random()
        if ok:
            pace.succeeded(AttemptRecord(sent, number, 3, ended=now))
        else:
            pace.refused(AttemptRecord(sent, number, 3, ended=now, retry_after=hint))
        assert 0.0 <= pace.wait(now) <= 61.0, "a hint of at most 60 s, and a gap"


def test_limits_are_still_settings() -> None:
    assert Limits().pause == Pause()
