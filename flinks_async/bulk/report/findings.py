"""The sentences of a report: whether everything arrived, what to do next, and what took the time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Final, Literal

from attrs import frozen

from ..records import InstanceTrouble
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
class Tile:
    """A number with its label."""

    name: str
    value: str
    note: str
    state: Outlook | None = None


@frozen
class Finding:
    """One observation about where the time went."""

    name: str
    value: str
    note: str = ""


@frozen
class Outcome:
    """The outcome of all tokens. Each token is counted once.

    Attributes:
        waiting: not processed yet.
        again: failed; a retry may help.
        final: failed; a retry will not help.
    """

    tokens: int
    fetched: int
    again: int
    final: int
    waiting: int
    invalid: int

    @classmethod
    def of(cls, facts: Facts) -> Outcome:
        totals = facts.totals
        return cls(
            totals.tokens,
            totals.fetched,
            totals.failures.get("exhausted", 0),
            totals.failures.get("final", 0),
            totals.pending - totals.retrying,
            totals.invalid,
        )


def headline(facts: Facts) -> Headline:
    """Whether everything arrived."""
    outcome, totals = Outcome.of(facts), facts.totals
    arrived = f"{words.count(outcome.fetched)} of {words.count(outcome.tokens)} tokens"
    refused = bool(facts.runs) and facts.runs[-1]["state"] == "refused"
    if refused:
        title = f"Stopped because the AuthSecret was refused: {arrived} have arrived."
    elif totals.pending:
        title = f"Not finished: {arrived} have arrived."
    elif outcome.fetched < outcome.tokens:
        title = f"Finished: {arrived} have arrived."
    elif outcome.tokens:
        title = f"Finished: all tokens have arrived ({words.count(outcome.tokens)})."
    else:
        title = "Finished: there was no token to fetch."
    state: Outlook = "good"
    if refused:
        state = "final"
    elif totals.pending:
        state = "waiting"
    elif outcome.again or outcome.final or outcome.invalid:
        state = "mixed"
    return Headline(state, title, tuple(_next_steps(facts, outcome, refused)))


def _next_steps(facts: Facts, outcome: Outcome, refused: bool) -> Iterator[Step]:
    if refused:
        yield Step("Set the right AuthSecret and run the job again to resume it.")
    elif facts.totals.pending:
        still = f"{_tokens(facts.totals.pending)} not fetched yet"
        if facts.runs and facts.runs[-1]["ended"] is None:
            yield Step(f"{still}. If the job is no longer running, run it again to resume it.")
        else:
            if facts.runs and facts.runs[-1]["state"] == "stopped" and facts.runs[-1]["reason"]:
                yield Step(f"The last run stopped: {facts.runs[-1]['reason']}.")
            yield Step(f"{still}. Run the job again to resume it.")
    if outcome.again:
        when = " when the job is finished" if facts.totals.pending else ""
        yield Step(f"{_tokens(outcome.again)} can be retried{when}:", "flinks-async retry DIR")
    if outcome.final:
        yield Step(f"{_tokens(outcome.final)} cannot be fetched. They are listed in", "failed.jsonl")
    if outcome.invalid:
        yield Step(f"{_plural(outcome.invalid, 'line')} could not be sent. They are listed in", "failed.jsonl")


def tiles(facts: Facts) -> list[Tile]:
    """The numbers at the top of the page."""
    outcome = Outcome.of(facts)
    running = facts.timeline.running
    runs = _plural(len(facts.runs), "run")
    if facts.earlier:
        runs = f"the last {words.count(len(facts.runs))} of {words.count(len(facts.runs) + facts.earlier)} runs"
    requests = sum(i.requests for i in facts.intervals)
    throttled = sum(i.throttled for i in facts.intervals)
    return [
        Tile("Arrived", words.count(outcome.fetched), words.percent(outcome.fetched, outcome.tokens), "good"),
        Tile("Can be retried", words.count(outcome.again), words.percent(outcome.again, outcome.tokens), "again"),
        Tile("Failed for good", words.count(outcome.final), words.percent(outcome.final, outcome.tokens), "final"),
        Tile("Not fetched yet", words.count(outcome.waiting), words.percent(outcome.waiting, outcome.tokens), "waiting"),
        Tile("Running time", words.duration(running), f"in {runs}"),
        Tile("Requests", words.count(round(requests)), _of_requests(facts, throttled, requests)),
    ]  # fmt: skip


def _of_requests(facts: Facts, throttled: float, requests: float) -> str:
    if not requests:
        return ""
    return f"{words.percent(throttled, requests)} throttled" + ("; in the same runs" if facts.earlier else "")


def findings(facts: Facts) -> list[Finding]:
    """Where the time went, as far as the samples show; empty without samples."""
    found = facts.intervals
    if not found:
        return []
    running = sum(i.seconds for i in found)
    requests = sum(i.requests for i in found)
    several = [_between_runs(facts)] if len(facts.runs) > 1 else []
    return [
        _throughput(facts, running),
        _response_time(facts),
        _throttled(found, requests),
        _retried(found, requests),
        _paused(facts, running),
        _limit(found, running),
        *_problems(facts),
        *several,
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
    answered = [i for i in facts.intervals if i.p50 is not None and i.p95 is not None]
    if not answered:
        return Finding("Response time", words.NONE, "no answers")
    typical = sorted(i.p50 or 0.0 for i in answered)[len(answered) // 2]
    slow = sorted(i.p95 or 0.0 for i in answered)[len(answered) // 2]
    worst = max(answered, key=lambda i: i.p95 or 0.0)
    return Finding(
        "Response time",
        words.duration(typical),
        f"median p50; median p95 {words.duration(slow)}, worst p95 {words.duration(worst.p95 or 0.0)}, "
        f"{_when(facts, worst)}",
    )


def _throttled(found: Iterable[Interval], requests: float) -> Finding:
    throttled = sum(i.throttled for i in found)
    return Finding(
        "Throttling", words.percent(throttled, requests), f"{words.count(round(throttled))} answers asked to slow down"
    )


def _retried(found: Iterable[Interval], requests: float) -> Finding:
    retries = sum(i.retries for i in found)
    if retries >= requests:  # a first request repeats nothing, so some of them are not in the samples
        note = "requests repeated an earlier one" if retries else "no request has ended in a sample"
        return Finding("Retries", words.count(round(retries)) if retries else words.NONE, note)
    return Finding(
        "Retries",
        words.percent(retries, requests),
        f"{words.count(round(retries))} of {words.count(round(requests))} requests repeated an earlier one",
    )


def _paused(facts: Facts, running: float) -> Finding:
    paused = sum(i.seconds for i in facts.intervals if i.paused)
    if not paused:
        throttled = sum(i.throttled for i in facts.intervals)
        short = f"; {words.count(round(throttled))} throttled answers caused short ones" if throttled else ""
        return Finding("Pauses", "none sampled", f"no sample was taken during a pause{short}")
    stretches = [list(group) for held, group in groupby(facts.intervals, lambda i: i.paused and i.run) if held]
    longest = max(stretches, key=lambda group: group[-1].end - group[0].start)
    seconds = longest[-1].end - longest[0].start
    return Finding(
        "Pauses",
        f"about {words.duration(paused)}",
        f"{words.percent(paused, running)} of the time, because the instance was down or asked for a pause; "
        f"the longest about {words.duration(seconds)}, {_when(facts, longest[0])}",
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


def _problems(facts: Facts) -> Iterator[Finding]:
    """The longest problem of each instance, the worst ones first."""
    longest: dict[str, tuple[InstanceTrouble, Interval]] = {}
    for interval in facts.intervals:
        for trouble in interval.troubles:
            if trouble.host not in longest or trouble.seconds >= longest[trouble.host][0].seconds:
                longest[trouble.host] = trouble, interval
    worst = sorted(longest.values(), key=lambda found: found[0].seconds, reverse=True)
    for trouble, interval in worst[:_MOST_PROBLEMS]:
        note = f"{trouble.reason}; {_plural(trouble.attempts, 'attempt')} in a row, {_when(facts, interval)}"
        yield Finding("Longest problem", words.duration(trouble.seconds), note.rstrip(", "))


def _between_runs(facts: Facts) -> Finding:
    timeline = facts.timeline
    broken_off = sum(run["ended"] is None or run["state"] in ("failed", "interrupted") for run in facts.runs)
    note = f"between {len(timeline.segments)} runs"
    if broken_off:
        note += f"; {_plural(broken_off, 'run')} interrupted or still running"
    return Finding("Time between runs", words.duration(timeline.between), note)


def _when(facts: Facts, interval: Interval) -> str:
    segment = facts.timeline.segment(interval.run)
    return "" if segment is None else f"at {words.moment(segment.started + interval.start)[:-3]}"


def _tokens(number: int) -> str:
    return _plural(number, "token")


def _plural(number: int, noun: str) -> str:
    return f"{words.count(number)} {noun}" + ("" if number == 1 else "s")
