"""The sentences of a report: whether everything arrived, what to do next, and what took the time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from statistics import median_high
from typing import Final, Literal

from attrs import evolve, frozen

from ...checks import counted, duration
from ..counters import InstanceTrouble
from ..ledger import Totals
from . import words
from .facts import Facts
from .timeline import Interval

Outlook = Literal["good", "again", "final", "waiting", "mixed"]

_AT_THE_LIMIT: Final = 0.9
"""From this share of the concurrency limit, the limit counts as reached."""


_MOST_PROBLEMS: Final = 3
"""Instances whose problems are shown."""


@frozen
class Step:
    """A next step for the user, and its command."""

    text: str
    command: str = ""


@frozen
class Headline:
    """The first lines of the page.

    Attributes:
        state: selects the colour.
        title: one sentence.
        next: the next steps.
    """

    state: Outlook
    title: str
    next: tuple[Step, ...]


@frozen
class Finding:
    """A number with its name: of the result, or of where the time went. `state` selects the colour of a result."""

    name: str
    value: str
    note: str = ""
    state: Outlook | None = None


def outcomes(totals: Totals) -> dict[Outlook, int]:
    """Numbers of tokens that arrived, that a retry may or will not fetch, and that are not processed yet. Each token is
    counted once.
    """
    return {
        "good": totals.fetched,
        "again": totals.failures.get("exhausted", 0),
        "final": totals.failures.get("final", 0),
        "waiting": totals.pending - totals.retrying,
    }


def headline(facts: Facts) -> Headline:
    """Whether everything arrived."""
    totals = facts.totals
    arrived = f"{totals.fetched:,} of {totals.tokens:,} tokens have arrived"
    state: Outlook = "mixed" if totals.failed or totals.invalid else "good"
    if facts.runs and facts.runs[-1]["state"] == "refused":
        state, title = "final", f"Stopped because the AuthSecret was refused: {arrived}."
    elif totals.pending:
        state, title = "waiting", f"Not finished: {arrived}."
    elif totals.fetched < totals.tokens:
        title = f"Finished: {arrived}."
    elif totals.tokens:
        title = f"Finished: all tokens have arrived ({totals.tokens:,})."
    else:
        title = "Finished: there was no token to fetch."
    return Headline(state, title, tuple(_next_steps(facts)))


def _next_steps(facts: Facts) -> Iterator[Step]:
    totals, last = facts.totals, facts.runs[-1] if facts.runs else None
    again, final = outcomes(totals)["again"], outcomes(totals)["final"]
    still = f"{counted(totals.pending, 'token')} not fetched yet"
    if last is not None and last["state"] == "refused":
        yield Step("Set the right AuthSecret and run the job again to resume it.")
    elif totals.pending and last is not None and last["ended"] is None:
        yield Step(f"{still}. If the job is no longer running, run it again to resume it.")
    elif totals.pending:
        if last is not None and last["state"] == "stopped" and last["reason"]:
            yield Step(f"The last run stopped: {last['reason']}.")
        yield Step(f"{still}. Run the job again to resume it.")
    if again:
        when = " when the job is finished" if totals.pending else ""
        yield Step(f"{counted(again, 'token')} can be retried{when}:", "flinks-async retry DIR")
    if final:
        yield Step(f"{counted(final, 'token')} cannot be fetched. They are listed in", "failed.jsonl")
    if totals.invalid:
        yield Step(f"{counted(totals.invalid, 'line')} could not be sent. They are listed in", "failed.jsonl")


_RESULTS: Final[dict[Outlook, str]] = {
    "good": "Arrived",
    "again": "Can be retried",
    "final": "Failed for good",
    "waiting": "Not fetched yet",
}


def tiles(facts: Facts) -> list[Finding]:
    """The numbers at the top of the page."""
    requests = facts.sum("requests")
    runs = counted(len(facts.runs), "run")
    throttled = f"{words.percent(facts.sum('throttled'), requests)} throttled" if requests else ""
    if facts.earlier:
        runs = f"the last {len(facts.runs):,} of {len(facts.runs) + facts.earlier:,} runs"
        throttled = throttled and f"{throttled}; in the same runs"
    return [
        *(
            Finding(_RESULTS[state], f"{number:,}", words.percent(number, facts.totals.tokens), state)
            for state, number in outcomes(facts.totals).items()
        ),
        Finding("Running time", duration(facts.timeline.running), f"in {runs}"),
        Finding("Requests", f"{requests:,.0f}", throttled),
    ]


def findings(facts: Facts) -> list[Finding]:
    """Where the time went, as far as the samples show; empty without samples."""
    found = facts.intervals
    if not found:
        return []
    running = sum(i.seconds for i in found)
    return [
        _throughput(facts, running),
        _response_time(facts),
        _throttled(facts),
        _retried(facts),
        _paused(facts, running),
        _limit(found, running),
        *_learned(facts),
        *_problems(facts),
        *([_between_runs(facts)] if len(facts.runs) > 1 else []),
    ]


def _throughput(facts: Facts, running: float) -> Finding:
    best = max(facts.intervals, key=lambda i: i.rate)
    mean = sum(i.rate * i.seconds for i in facts.intervals) / running
    return Finding(
        "Throughput",
        f"{words.rate(mean)} tokens/s",
        f"on average; {words.rate(best.rate)} at best, {_when(facts, best)}",
    )


def _response_time(facts: Facts) -> Finding:
    answered = [(i.p50, i.p95, i) for i in facts.intervals if i.p50 is not None and i.p95 is not None]
    if not answered:
        return Finding("Response time", words.NONE, "no answers")
    typical = median_high(p50 for p50, _, _ in answered)
    slow = median_high(p95 for _, p95, _ in answered)
    _, worst, interval = max(answered, key=lambda times: times[1])
    return Finding(
        "Response time",
        duration(typical),
        f"median p50; median p95 {duration(slow)}, worst p95 {duration(worst)}, {_when(facts, interval)}",
    )


def _throttled(facts: Facts) -> Finding:
    throttled = facts.sum("throttled")
    share = words.percent(throttled, facts.sum("requests"))
    return Finding("Throttling", share, f"{throttled:,.0f} answers asked to slow down")


def _retried(facts: Facts) -> Finding:
    retries, requests = facts.sum("retries"), facts.sum("requests")
    if retries < requests:
        note = f"{retries:,.0f} of {requests:,.0f} requests repeated an earlier one"
        return Finding("Retries", words.percent(retries, requests), note)
    if retries:  # a first request repeats nothing, so some of them are not in the samples
        return Finding("Retries", f"{retries:,.0f}", "requests repeated an earlier one")
    return Finding("Retries", words.NONE, "no request has ended in a sample")


def _paused(facts: Facts, running: float) -> Finding:
    paused = sum(i.seconds for i in facts.intervals if i.paused)
    if not paused:
        throttled = facts.sum("throttled")
        short = f"; {throttled:,.0f} throttled answers caused short ones" if throttled else ""
        return Finding("Pauses", "none sampled", f"no sample was taken during a pause{short}")
    stretches = [list(group) for held, group in groupby(facts.intervals, lambda i: i.paused and i.run) if held]
    longest = max(stretches, key=lambda group: group[-1].end - group[0].start)
    seconds = longest[-1].end - longest[0].start
    return Finding(
        "Pauses",
        f"about {duration(paused)}",
        f"{words.percent(paused, running)} of the time, because the instance was down or asked for a pause; "
        f"the longest about {duration(seconds)}, {_when(facts, longest[0])}",
    )


def _limit(found: Iterable[Interval], running: float) -> Finding:
    known = [i for i in found if i.limit > 0]
    limited = [i for i in known if not i.paused]
    if not limited:
        why = "no sample was taken outside of a pause" if known else "the limit is not in the samples"
        return Finding("Requests at once", words.NONE, why)
    full = sum(i.seconds for i in limited if i.in_flight >= _AT_THE_LIMIT * i.limit)
    lowest, highest = min(i.limit for i in limited), max(i.limit for i in limited)
    limit = f"{lowest:,.0f} to {highest:,.0f}" if lowest < highest else f"{highest:,.0f}"
    return Finding(
        "Requests at once",
        f"{words.percent(full, running)} of the time",
        f"at the limit of {limit} (pauses excluded)",
    )


def _learned(facts: Facts) -> Iterator[Finding]:
    """What refused requests have taught about the instances, from the last sample that knew it."""
    last = next((interval for interval in reversed(facts.intervals) if interval.learned), None)
    if last is not None:
        value = "requests at once" if last.allowed is None else f"about {words.rate(last.allowed)} requests/s"
        when = _when(facts, evolve(last, start=last.end))
        yield Finding("Limit of the instance", value, f"{'; '.join(last.learned)} (sample {when})")


def _problems(facts: Facts) -> Iterator[Finding]:
    """The longest problem of each instance, the worst ones first."""
    longest: dict[str, tuple[InstanceTrouble, Interval]] = {}
    for interval in facts.intervals:
        for trouble in interval.troubles:
            if trouble.host not in longest or trouble.seconds >= longest[trouble.host][0].seconds:
                longest[trouble.host] = trouble, interval
    worst = sorted(longest.values(), key=lambda found: found[0].seconds, reverse=True)
    for trouble, interval in worst[:_MOST_PROBLEMS]:
        tried = f"; {counted(trouble.attempts, 'attempt')} in a row" if trouble.attempts else ""
        note = f"{trouble.reason}{tried}, {_when(facts, interval)}"
        yield Finding("Longest problem", duration(trouble.seconds), note.rstrip(", "))


def _between_runs(facts: Facts) -> Finding:
    timeline = facts.timeline
    broken_off = sum(run["ended"] is None or run["state"] in ("failed", "interrupted") for run in facts.runs)
    note = f"between {len(timeline.segments)} runs"
    if broken_off:
        note += f"; {counted(broken_off, 'run')} interrupted or still running"
    return Finding("Time between runs", duration(timeline.between), note)


def _when(facts: Facts, interval: Interval) -> str:
    segment = facts.timeline.segment(interval.run)
    return "" if segment is None else f"at {words.moment(segment.started + interval.start)[:-3]}"
