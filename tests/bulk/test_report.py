"""The report of a job as a page: what it says, what it must not say, and that it stays small."""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
import stat
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flinks_async import ConfigError
from flinks_async.bulk import purge
from flinks_async.bulk.directory import Manifest
from flinks_async.bulk.errors import JobMismatchError, StoreError
from flinks_async.bulk.files import LEDGER, MANIFEST
from flinks_async.bulk.ledger import Ledger
from flinks_async.bulk.outcome import report_of
from flinks_async.bulk.report import json_report, words, write_report
from flinks_async.bulk.report.facts import gather
from flinks_async.bulk.report.findings import findings, headline, tiles
from flinks_async.bulk.report.page import page
from flinks_async.bulk.report.timeline import Timeline, thin, time_ticks, timeline
from flinks_async.checks import duration

from ..cli_support import cli
from .made_up_job import EVENING, FINGERPRINT, KEY, MESSAGE, PATH, a_night, commit, make_job, progress

pytestmark = pytest.mark.usefixtures("closed_databases")

HOSTILE = "</style></title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}$x^2$\x00\u202e"


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("night")
    a_night(folder)
    return folder


@pytest.fixture(scope="module")
def night_text(night: Path) -> str:
    return page_of(night)


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def title_of(folder: Path) -> str:
    return headline(gather(folder)).title


class Page(HTMLParser):
    """The elements and the texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


# --- what it says -----------------------------------------------------------------------------------------------------


def test_the_first_thing_is_whether_all_have_arrived(night: Path) -> None:
    said = headline(gather(night))
    outcome = gather(night).json["outcome"]
    assert said.title == f"Finished: {outcome['fetched']:,} of 600,000 tokens have arrived."
    again, final = (outcome["by_kind"][kind] for kind in ("exhausted", "final"))
    assert [(step.text, step.command) for step in said.next] == [
        (f"{again:,} tokens can be retried:", "flinks-async retry DIR"),
        (f"{final:,} tokens cannot be fetched. They are listed in", "failed.jsonl"),
    ]
    shown = [tile.value for tile in tiles(gather(night))]
    assert shown[:4] == [f"{outcome['fetched']:,}", f"{again:,}", f"{final:,}", "0"]


def test_what_took_the_time(night: Path) -> None:
    found = {finding.name: f"{finding.value} {finding.note}" for finding in findings(gather(night))}
    # The outage is from minute 45 to 57, and the job was stopped from minute 70 to hour 8.4.
    assert re.match(r"about 1[2-5] min .* the longest about 12 min, at 2026-11-23 23:1[45]", found["Pauses"])
    assert found["Time between runs"].startswith("7 h 14 min between 2 runs; 1 run interrupted")
    assert "worst p95 1" in found["Response time"]
    assert "the limit of 20 to 200" in found["Requests at once"].replace("at ", "")


def test_every_plot_and_every_table_is_there(night_text: str) -> None:
    found = Page(night_text)
    figures = [attrs["id"] for tag, attrs in found.tags if tag == "figure"]
    assert figures == [
        f"plot-{name}" for name in ("failures", "progress", "throughput", "times", "concurrency", "trouble", "parts")
    ]
    images = [attrs for tag, attrs in found.tags if tag == "svg"]
    ids = [attrs["id"] for _, attrs in found.tags if attrs.get("id")]
    assert len(images) == 16  # seven and the outcome, each wide and narrow
    for image in images:
        assert image["role"] == "img"
        assert all(name in ids for name in (image["aria-labelledby"] or "").split())
    assert len(ids) == len(set(ids))
    used = {
        name
        for _, attrs in found.tags
        for value in attrs.values()
        for name in re.findall(r"url\(#(.*?)\)", value or "")
    }
    used |= {(attrs.get("href") or "#")[1:] for tag, attrs in found.tags if tag == "use"}
    assert used <= set(ids)
    for word in (
        "NotFoundError",
        "SESSION_EXPIRED",
        "interrupted",
        "complete",
        "JSONL",
        "All 240 parts",
        "7 h 14 min",
    ):
        assert word in found.text


def test_the_page_needs_nothing_else(night_text: str) -> None:
    text = night_text
    found = Page(text)
    assert not re.findall(r"https?://", text)
    assert "script" not in {tag for tag, _ in found.tags}
    assert {(attrs.get("href") or "#")[0] for _, attrs in found.tags if "href" in attrs} == {"#", "d"}  # d: data:,
    assert not any("src" in attrs for _, attrs in found.tags)
    assert "default-src 'none'" in text
    assert len(text) < 500_000


PROGRAM = """
import os, sys, tempfile
from flinks_async.bulk.report import write_report
def refuse(*_, **__): raise FileNotFoundError("no temporary folder")
if sys.argv[2] == "nowhere": tempfile.mkdtemp = refuse
try:
    print(write_report(sys.argv[1], out=sys.argv[3]).name, os.environ.get("MPLBACKEND"))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folders", "backend", "told"),
    [
        ("usual", "module://of_a_notebook", "page.html module://of_a_notebook"),
        ("usual", "nonsense", "page.html nonsense"),
        ("nowhere", "agg", "ConfigError matplotlib found no folder for its cache: set MPLCONFIGDIR to a folder"),
    ],
)
def test_where_matplotlib_is_set_up_for_something_else(
    night: Path, tmp_path: Path, folders: str, backend: str, told: str
) -> None:
    environment = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("MPLCONFIGDIR", None)
    if folders == "nowhere":
        environment |= {"HOME": os.devnull, "XDG_CONFIG_HOME": os.devnull, "XDG_CACHE_HOME": os.devnull}
    command = [sys.executable, "-c", PROGRAM, str(night), folders, str(tmp_path / "page.html")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.startswith(told), done.stderr


def test_nothing_of_a_person_is_in_it(night: Path, night_text: str) -> None:
    text = night_text + json_report(night).decode()
    ledger = Ledger(night / LEDGER)
    one = next(ledger.failures())
    ledger.close()
    assert (one.message, one.key, one.token_fingerprint) == (MESSAGE, KEY, FINGERPRINT)
    assert "canary" not in text.lower()
    assert "alice" not in text
    assert Manifest.load(night / MANIFEST).path == PATH


@pytest.mark.parametrize(
    ("store", "shown"),
    [
        ({"kind": "sqlite", "path": "/home/canary-alice/answers.sqlite"}, "answers.sqlite"),
        ({"kind": "postgresql", "conninfo": "host=db user=canary-alice", "schema": "answers"}, "answers"),
    ],
)
def test_nothing_of_a_person_is_in_what_a_store_says_of_itself(
    tmp_path: Path, store: dict[str, Any], shown: str
) -> None:
    make_job(tmp_path, tokens=10, store=store).close()
    text = page_of(tmp_path)
    assert shown in text
    assert "canary" not in text


def test_there_is_no_plot_of_times_without_answers(tmp_path: Path) -> None:
    ledger = make_job(tmp_path, tokens=10)
    run = ledger.begin_run(EVENING)
    for second in (10, 20, 30, 40):
        ledger.add_sample(run, EVENING + second, progress(seconds=float(second), requests=second))
    ledger.close()
    text = page_of(tmp_path)
    assert 'id="plot-throughput"' in text
    assert 'id="plot-times"' not in text
    assert "no answers" in text


def test_answers_of_less_than_a_millisecond_are_answers(tmp_path: Path) -> None:
    ledger = make_job(tmp_path, tokens=10)
    run = ledger.begin_run(EVENING)
    for second in (10, 20, 30):
        ledger.add_sample(run, EVENING + second, progress(seconds=float(second), p50=0.0004, p95=0.9))
    ledger.close()
    text = page_of(tmp_path)
    assert "no answers" not in text
    assert "0.5 ms" in text


@pytest.mark.slow
def test_of_very_many_runs_the_last_are_shown_and_the_figures_are_theirs(tmp_path: Path) -> None:
    ledger = make_job(tmp_path, tokens=10_000)
    for number in range(103):
        start = EVENING + 100 * number
        run = ledger.begin_run(start)
        fast = 900.0 if number == 0 else 5.0
        ledger.add_sample(run, start + 10, progress(seconds=10.0, rate=fast, p50=0.1, p95=0.2, requests=30))
        ledger.end_run(run, start + 10, "stopped", "", {})
    ledger.close()
    text = " ".join(re.sub(r"<[^>]*>", " ", page_of(tmp_path)).split())
    assert "Running time 16 min 40 s in the last 100 of 103 runs" in text
    assert "Requests 3,000 0 % throttled; in the same runs" in text
    assert "5 at best, at 2026-11-23 22:35" in text
    assert "The last 100 of 103" in text


@pytest.mark.parametrize("light", [True, False])
def test_colours_have_contrast(light: bool) -> None:
    style = (Path(sys.modules["flinks_async.bulk.report"].__file__ or "").parent / "templates" / "page.css").read_text()
    themes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", themes[0 if light else 1]))
    for text in ("ink", "soft", "one"):
        for background in ("page", "panel"):
            assert contrast(colours[text], colours[background]) >= 4.5
    for shape in ("one", "two", "good", "again", "final", "waiting", "pause"):
        assert contrast(colours[shape], colours["page"]) >= 3
    assert contrast(colours["ink"], colours["gap"]) >= 4.5


def contrast(one: str, other: str) -> float:
    """As WCAG 2.2 defines it."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# --- a week -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_week_is_thinned_out(tmp_path: Path) -> None:
    ledger = make_job(tmp_path, tokens=2_000_000, shard_size=400)
    run = ledger.begin_run(EVENING)
    for shard in list(ledger.pending())[:3]:
        commit(ledger, shard)
    ledger.close()
    samples = (
        (
            run,
            EVENING + 10 * n,
            json.dumps(progress(seconds=10.0 * n, p50=0.2, p95=9.0 if n == 31_337 else 0.5)).encode(),
        )
        for n in range(1, 60_001)
    )
    db = sqlite3.connect(tmp_path / LEDGER)
    with db:
        db.executemany("INSERT INTO samples VALUES (?, ?, ?)", samples)
        db.execute(
            "UPDATE shards SET done_at = 1, lines = 400, size = id * 1000, sha256 = hex(randomblob(32)), receipt = x'7b7d'"
        )
    db.close()
    facts = gather(tmp_path)
    points = thin(facts.intervals, facts.timeline, 200)
    assert len(points) == 200
    assert max(spread.high for point in points if (spread := point.spread("p95"))) == 9.0
    assert sum(point.end - point.start for point in points) == pytest.approx(600_000)
    text = page(facts, EVENING)
    assert len(text) < 900_000
    assert "The first 1,000 parts" in text


# --- its parts --------------------------------------------------------------------------------------------------------


def runs(*times: tuple[float, float | None]) -> list[dict[str, Any]]:
    return [{"run": n, "started": start, "ended": end} for n, (start, end) in enumerate(times, start=1)]


def test_a_night_between_runs_is_a_narrow_gap() -> None:
    line = timeline(runs((0, 1000), (30_000, 31_000)), {1: 1000.0, 2: 1000.0})
    (gap,) = line.gaps
    assert (gap.at, gap.width, gap.seconds) == (1000, 80, 29_000)
    assert (line.running, line.between, line.length) == (2000, 29_000, 2080)
    assert line.time_at(500) == 500
    assert line.time_at(1580) == 30_500


def test_a_short_time_between_runs_is_to_scale() -> None:
    line = timeline(runs((0, 1000), (1005, 2005)), {1: 1000.0, 2: 1000.0})
    assert (line.gaps[0].width, line.length) == (5, 2005)


def test_gaps_never_fill_the_axis() -> None:
    line = timeline(runs(*((n * 10_000.0, n * 10_000.0 + 10) for n in range(100))), {})
    assert sum(gap.width for gap in line.gaps) <= 0.31 * line.running


def test_a_clock_that_was_put_back_makes_no_gap() -> None:
    line = timeline(runs((1000, None), (500, 600)), {1: 50.0})
    assert not line.gaps
    assert [(s.at, s.seconds) for s in line.segments] == [(0, 50), (50, 100)]


def test_ticks_are_round_times_in_runs() -> None:
    line = timeline(runs((EVENING + 120, None), (EVENING + 36_000, None)), {1: 3600.0, 2: 3600.0})
    ticks = time_ticks(line, 7)
    assert [label for _, label in ticks] == ["23:00\nNov 23", "23:30", "09:00\nNov 24", "09:30"]
    assert all(0 <= place <= line.length for place, _ in ticks)
    assert time_ticks(Timeline(), 7) == []


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [(0, 9, "0 %"), (9, 9, "100 %"), (0, 0, "\N{EN DASH}"), (1, 10**6, "< 0.01 %"), (10**6 - 1, 10**6, "> 99.99 %"),
     (1, 3, "33.3 %"), (995, 1000, "99.50 %")],
)  # fmt: skip
def test_percent(part: int, whole: int, said: str) -> None:
    assert words.percent(part, whole) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.0123, "12.3 ms"), (1.254, "1.25 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7200, "2 h"),
     (22_320, "6 h 12 min"), (183_600, "2 d 3 h")],
)  # fmt: skip
def test_duration(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_times_that_no_calendar_has() -> None:
    assert words.moment(1e20) == words.moment(math.nan) == words.moment(words.since_1970("once")) == words.NONE


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_page_is_its_owners_and_purge_removes_it(tmp_path: Path) -> None:
    make_job(tmp_path).close()
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "report.html" in purge(tmp_path)
    assert not path.exists()


def test_it_may_be_written_somewhere_else(tmp_path: Path) -> None:
    job, out = tmp_path / "job", tmp_path / "page.html"
    job.mkdir()
    make_job(job).close()
    assert write_report(job, out) == out
    assert not (job / "report.html").exists()
    with pytest.raises(StoreError, match="cannot be written"):
        write_report(job, tmp_path / "nowhere" / "page.html")


def test_it_takes_the_place_of_nothing_else(tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.mkdir()
    make_job(job).close()
    with pytest.raises(ConfigError, match="in the directory of the job"):
        write_report(job, job / LEDGER)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="it is not a file"):
        write_report(job, tmp_path / "folder")


def test_a_directory_without_a_job(tmp_path: Path) -> None:
    with pytest.raises(JobMismatchError, match="not the directory of a job"):
        write_report(tmp_path)


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    make_job(tmp_path).close()
    for name in [name for name in sys.modules if name.startswith(("flinks_async.bulk.report.", f"{library}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"{library} is not installed: pip install 'flinks-async\[report\]'"):
        write_report(tmp_path)
    assert json.loads(json_report(tmp_path))


async def test_the_command(night: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = await cli("report", night, "--out", out)
    assert (done.exit_code, done.stderr) == (0, f"The report is in {out}\n")
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


async def test_the_command_prints_json(night: Path) -> None:
    done = await cli("report", night, "--json")
    facts = gather(night)
    ledger = Ledger(night / LEDGER)
    assert json.loads(done.stdout) == report_of(facts.manifest, ledger, facts.scanned)
    ledger.close()


async def test_json_goes_to_standard_output_only(night: Path) -> None:
    done = await cli("report", night, "--json", "--out", "x")
    assert done.exit_code == 2
    assert "use one of them" in done.stderr
