"""Which requests fail is a pure decision, so a client can compute what must arrive."""

from __future__ import annotations

from collections import Counter

import pytest

from flinks_async.testing import KINDS, DemoFaults, Faults

TOKENS = [f"token-{number}" for number in range(10_000)]


def test_a_share_of_the_requests_fails() -> None:
    plan = Faults(share=0.03)
    failed = [fault for token in TOKENS if (fault := plan.for_request(token, 1)) is not None]
    assert 200 < len(failed) < 400
    assert {fault.name for fault in failed} == {fault.name for fault in plan.kinds}


def test_each_request_of_a_token_is_decided_on_its_own() -> None:
    plan = Faults(share=0.5, kinds=("http_503", "reset"))
    decisions = [plan.for_request("token", number) for number in range(1, 1000)]
    assert {None, KINDS["http_503"], KINDS["reset"]} == set(decisions)
    assert decisions == [plan.for_request("token", number) for number in range(1, 1000)]


def test_other_seeds_hit_other_requests() -> None:
    hit = [{t for t in TOKENS if Faults(share=0.03, seed=seed).for_request(t, 1)} for seed in (1, 2)]
    assert len(hit[0] & hit[1]) < 40


@pytest.mark.parametrize(("share", "failed"), [(0.0, False), (1.0, True)])
def test_none_and_all(share: float, failed: bool) -> None:
    plan = Faults(share=share)
    assert all((plan.for_request(token, 1) is not None) is failed for token in TOKENS[:1000])


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown fault 'teapot'"):
        Faults(share=0.1, kinds=("teapot",))


def test_the_demo_has_every_kind_and_each_clears_within_the_attempts_of_its_class() -> None:
    plan = Faults.demo(share=0.3, seed=7)
    seen: Counter[str] = Counter()
    for token in TOKENS:
        fate = plan.plan(token)
        seen.update(fault.name for fault in fate.faults)
        classes = [fault.clears for fault in fate.faults]
        if not fate.fetchable:
            assert classes == ["final"]
        else:
            assert classes in ([], ["transient"], ["transient"] * 2, ["throttled"], ["malformed"], ["broken"], ["none"])
    assert set(seen) == set(KINDS) - {"unauthorized"}, "a refused secret is not a matter of a token"


def test_the_demo_ends_every_hang_by_itself() -> None:
    plan = Faults.demo(share=1.0)
    assert all(f.hang_for is not None for token in TOKENS for f in plan.plan(token).faults if f.mode == "hang")


def test_the_demo_keeps_its_promise_request_by_request() -> None:
    plan = Faults.demo(share=0.3)
    for token in TOKENS[:3000]:
        fate = plan.plan(token)
        met = [plan.for_request(token, number) for number in range(1, 8)]
        assert tuple(met[: len(fate.faults)]) == fate.faults
        assert set(met[len(fate.faults) :]) == ({None} if fate.fetchable else {fate.faults[-1]})


def test_the_demo_has_a_few_unfetchable_tokens_and_few_throttles() -> None:
    plan = DemoFaults(share=0.03)
    fates = [plan.plan(token) for token in TOKENS]
    assert 8 <= sum(not fate.fetchable for fate in fates) <= 40
    assert 200 <= sum(fate.fetchable and bool(fate.faults) for fate in fates) <= 400
    assert sum(fault.clears == "throttled" for fate in fates for fault in fate.faults) <= 35
    assert sum(not DemoFaults(share=0.03, unfetchable=0).plan(token).fetchable for token in TOKENS) == 0
