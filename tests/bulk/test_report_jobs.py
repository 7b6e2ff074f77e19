"""What the report says, and must not claim, of jobs of all kinds."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from flinks_async.bulk.errors import JobError
from flinks_async.bulk.files import LEDGER
from flinks_async.bulk.report import write_report
from flinks_async.bulk.report.facts import gather
from flinks_async.bulk.report.findings import findings, headline
from flinks_async.bulk.report.timeline import intervals

from .made_up_job import EVENING, commit, failure, make_job, progress
from .test_report import HOSTILE, Page, page_of, title_of


def found_in(folder: Path, *samples: dict[str, Any]) -> dict[str, str]:
    """The findings about one run with these samples."""
    ledger = make_job(folder, tokens=50)
    run = ledger.begin_run(EVENING)
    for number, figures in enumerate(samples, start=1):
        ledger.add_sample(run, EVENING + 10 * number, progress(seconds=10.0 * number) | figures)
    ledger.close()
    return {finding.name: f"{finding.value}: {finding.note}" for finding in findings(gather(folder))}


def test_not_all_requests_repeated_an_earlier_one(tmp_path: Path) -> None:
    found = found_in(tmp_path, {"requests": 20, "retries": 20})
    assert found["Retries"] == "20: requests repeated an earlier one"


def test_no_share_of_no_requests(tmp_path: Path) -> None:
    assert found_in(tmp_path, {})["Retries"] == "\N{EN DASH}: no request has ended in a sample"


def test_a_share_of_retries_is_one_of_all_requests(tmp_path: Path) -> None:
    found = found_in(tmp_path, {"requests": 20, "retries": 5}, {"requests": 40, "retries": 10})
    assert found["Retries"] == "25.0 %: 10 of 40 requests repeated an earlier one"


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([{"limit": 20, "held_back": 4.0}] * 3, "\N{EN DASH}: no sample was taken outside of a pause"),
        ([{"limit": 0}] * 3, "\N{EN DASH}: the limit is not in the samples"),
        ([{"limit": 20}] * 3, "0 % of the time: at the limit of 20 (pauses excluded)"),
        ([{"limit": 20, "held_back": 4.0}, {"limit": 8, "in_flight": 8}], "50.0 % of the time: at the limit of 8"),
    ],
)
def test_a_limit_is_never_denied_above_its_plot(tmp_path: Path, samples: list[dict[str, Any]], said: str) -> None:
    assert found_in(tmp_path, *samples)["Requests at once"].startswith(said)
    assert "no limit" not in page_of(tmp_path)


def test_pauses_between_two_samples_are_not_denied(tmp_path: Path) -> None:
    found = found_in(tmp_path, {"requests": 20}, {"requests": 40, "throttled": 2})
    assert found["Pauses"] == (
        "none sampled: no sample was taken during a pause; 2 throttled answers caused short ones"
    )


def trouble(host: str, reason: str, attempts: int, seconds: float) -> dict[str, Any]:
    return {"host": host, "reason": f"{host} {reason}", "attempts": attempts, "seconds": seconds, "next_try": 1.0}


def test_the_longest_problem_of_each_instance_is_told(tmp_path: Path) -> None:
    found = found_in(
        tmp_path,
        {"troubles": [trouble("a.example", "answered 503", 1, 0.0)]},
        {"troubles": [trouble("a.example", "cannot be looked up", 9, 125.0)]},
        {"troubles": [trouble("a.example", "answered 500", 2, 3.0)]},
    )
    assert found["Longest problem"] == (
        "2 min 5 s: a.example cannot be looked up; 9 attempts in a row, at 2026-11-23 22:30"
    )
    assert "a.example cannot be looked up" in Page(page_of(tmp_path)).text


def test_the_worst_problems_of_many_instances_are_told_and_hostile_ones_do_nothing(tmp_path: Path) -> None:
    many = [trouble(f"{n}.example", HOSTILE, n, float(n)) for n in range(1, 8)]
    odd: list[Any] = [None, 5, {}, {"host": 5, "reason": "x"}, {"host": "h", "reason": "r", "seconds": "x"}]
    found_in(tmp_path, {"troubles": many}, {"troubles": odd}, {"troubles": 5})
    told = [one for one in findings(gather(tmp_path)) if one.name == "Longest problem"]
    assert [(one.value, one.note.partition(" ")[0]) for one in told] == [
        ("7 s", "7.example"), ("6 s", "6.example"), ("5 s", "5.example"),
    ]  # fmt: skip
    assert "script" not in {tag for tag, _ in Page(page_of(tmp_path)).tags}


def test_the_learned_limit_and_its_reason_are_told_and_drawn(tmp_path: Path) -> None:
    why = "1,480/s learned: refused at 1,507/s 12 s ago"
    found = found_in(tmp_path, {}, {"learned": [why], "learned_rate": 1480.0}, {"rate": 900.0})
    told = f"about 1,480 requests/s: {why} (sample at 2026-11-23 22:30)"
    assert found["Limit of the instance"] == told
    text = page_of(tmp_path)
    assert f"{why} (sample" in Page(text).text
    plot = text.partition('id="plot-throughput"')[2].partition("</figure>")[0]
    wide, narrow = plot.split("</svg>")[:2]
    assert "1,480 requests/s allowed" in wide  # the tooltip
    for image in (wide, narrow):
        assert ">requests/s allowed<" in image  # the legend


def test_no_limit_is_told_or_drawn_that_was_not_learned(tmp_path: Path) -> None:
    found = found_in(tmp_path, {"learned": 5, "learned_rate": "x"}, {"learned": [None]}, {})
    assert "Limit of the instance" not in found
    assert "requests/s allowed" not in page_of(tmp_path)


def test_a_learned_limit_of_requests_at_once_has_no_rate(tmp_path: Path) -> None:
    why = "at most 50 at once learned: more were refused"
    found = found_in(tmp_path, {"learned": [why], "learned_rate": None})
    assert found["Limit of the instance"] == f"requests at once: {why} (sample at 2026-11-23 22:30)"


# --- jobs of all kinds ------------------------------------------------------------------------------------------------


def test_a_job_without_tokens(tmp_path: Path) -> None:
    make_job(tmp_path).close()
    assert title_of(tmp_path) == "Finished: there was no token to fetch."
    assert "There are no samples" in page_of(tmp_path)


def test_a_job_that_has_not_run(tmp_path: Path) -> None:
    make_job(tmp_path, tokens=2500).close()
    assert title_of(tmp_path) == "Not finished: 0 of 2,500 tokens have arrived."
    text = Page(page_of(tmp_path)).text
    assert "2,500 tokens not fetched yet. Run the job again" in text
    assert "No parts yet" in text


def test_a_job_in_which_all_failed(tmp_path: Path) -> None:
    ledger = make_job(tmp_path, tokens=20, shard_size=10)
    run = ledger.begin_run(EVENING)
    for shard in list(ledger.pending()):
        commit(ledger, shard, *(failure(line) for line in range(shard.first, shard.last + 1)))
    last = progress(total=20, failed=20, requests=60, retries=40, seconds=3.0)
    ledger.add_sample(run, EVENING + 3, last)
    ledger.end_run(run, EVENING + 3, "complete", "", last)
    ledger.close()
    assert title_of(tmp_path) == "Finished: 0 of 20 tokens have arrived."
    assert "100 %" in page_of(tmp_path)


def test_a_job_of_which_all_has_arrived(tmp_path: Path) -> None:
    ledger = make_job(tmp_path, tokens=1)
    commit(ledger, next(ledger.pending()))
    ledger.close()
    said = headline(gather(tmp_path))
    assert (said.state, said.title, said.next) == ("good", "Finished: all tokens have arrived (1).", ())


def test_a_refused_secret_comes_first(tmp_path: Path) -> None:
    ledger = make_job(tmp_path, tokens=20)
    ledger.end_run(ledger.begin_run(EVENING), EVENING + 2, "refused", "the AuthSecret is refused", {})
    ledger.close()
    said = headline(gather(tmp_path))
    assert said.title == "Stopped because the AuthSecret was refused: 0 of 20 tokens have arrived."
    assert said.next[0].text.startswith("Set the right AuthSecret")
    assert "AuthSecret refused: the AuthSecret is refused" in Page(page_of(tmp_path)).text


def test_why_a_run_has_stopped_comes_before_the_advice_to_run_it_again(tmp_path: Path) -> None:
    ledger = make_job(tmp_path, tokens=20)
    ledger.end_run(ledger.begin_run(EVENING), EVENING + 2, "stopped", "the certificate is not valid", {})
    ledger.close()
    first, second = headline(gather(tmp_path)).next
    assert first.text == "The last run stopped: the certificate is not valid."
    assert second.text.startswith("20 tokens not fetched yet. Run the job again")


def test_runs_that_were_killed_before_their_first_sample(tmp_path: Path) -> None:
    ledger = make_job(tmp_path, tokens=20)
    for start in (0, 60, 30):  # and a clock that was put back
        ledger.begin_run(EVENING + start)
    ledger.close()
    text = Page(page_of(tmp_path)).text
    assert text.count("interrupted") == 3
    assert "interrupted or still running" in text


def test_odd_samples(tmp_path: Path) -> None:
    ledger = make_job(tmp_path, tokens=20)
    run = ledger.begin_run(EVENING)
    odd: list[dict[str, Any]] = [
        {},
        {"seconds": 10.0},
        progress(seconds=20.0, p50=None, p95=0.3, limit=0),
        progress(seconds=20.0),
        progress(seconds=15.0),
        progress(seconds=30.0, requests=5, rate=1e12, p50=0.0001, p95=4000.0),
        {"seconds": 40.0, "requests": "many", "p50": True, "rate": None, "in_flight": -3},
        progress(seconds=50.0, requests=2),
    ]
    for number, sample in enumerate(odd):
        ledger.add_sample(run, EVENING + number, sample)
    ledger.close()
    page_of(tmp_path)
    found = list(gather(tmp_path).intervals)
    assert [interval.end for interval in found] == [10, 20, 30, 40, 50]
    assert [interval.requests for interval in found] == [0, 0, 5, 0, 2]


def test_not_a_number_is_zero() -> None:
    (one,) = intervals([{"run": 1, "seconds": 1.0, "rate": math.nan, "limit": math.inf}])
    assert (one.rate, one.limit) == (0, 0)


def test_a_job_whose_input_was_not_read_through(tmp_path: Path) -> None:
    make_job(tmp_path).close()
    db = sqlite3.connect(tmp_path / LEDGER)
    with db:
        db.execute("DELETE FROM meta")
    db.close()
    with pytest.raises(JobError, match="nothing to report"):
        write_report(tmp_path)


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    store = {"kind": HOSTILE, HOSTILE: HOSTILE, "list": [HOSTILE]}
    ledger = make_job(tmp_path, tokens=20, store=store, origin=HOSTILE)
    bad = failure(2, HOSTILE, HOSTILE, HOSTILE)
    commit(ledger, next(ledger.pending()), bad)
    ledger.end_run(ledger.begin_run(EVENING), EVENING + 1, HOSTILE, HOSTILE, {})
    ledger.close()
    found = Page(page_of(tmp_path))
    assert not {tag for tag, _ in found.tags} & {"script", "img", "iframe", "object"}
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert found.text.count("<script>alert(1)</script>") >= 7
    assert "{{7*7}}" in found.text
