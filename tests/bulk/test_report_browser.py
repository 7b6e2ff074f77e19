"""The report in a real browser: light and dark, wide and narrow, and nothing fetched from anywhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flinks_async.bulk.report import write_report

from .made_up_job import EVENING, a_night, commit, failure, make_job, progress

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SIZES = {1280: 900, 390: 844}
HOSTILE = "</style></title></text></svg><script>alert(1)</script><img src='https://example.com/x' onerror=alert(2)>"

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium; CHROMIUM may name one"),
    pytest.mark.usefixtures("closed_databases"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=PROGRAM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("night")
    a_night(folder)
    return write_report(folder)


@contextmanager
def shown(browser: Browser, path: Path, width: int, scheme: str = "light") -> Iterator[Page]:
    """A page; nothing may be asked for but the page itself, and nothing be said on the console."""
    asked: list[str] = []
    said: list[str] = []
    options: Any = {"color_scheme": scheme, "viewport": {"width": width, "height": SIZES[width]}}
    context = browser.new_context(**options)
    try:
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        yield page
        assert asked == [path.as_uri()]
        assert said == []
    finally:
        context.close()


SCROLLS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
VISIBLE = "[...document.querySelectorAll('{}')].filter(e => e.checkVisibility()).length"
# Texts of the plots that are cut off at an edge, lie over another one, or are too small to read.
CLASHES = """() => {
    const clashes = [];
    for (const svg of document.querySelectorAll("svg")) {
        const frame = svg.getBoundingClientRect();
        if (!frame.width) continue;
        const scale = frame.width / svg.viewBox.baseVal.width;
        for (const text of svg.querySelectorAll("text"))
            if (parseFloat(getComputedStyle(text).fontSize) * scale < 10) clashes.push(["too small", text.textContent]);
        const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
        texts.forEach(([text, box], number) => {
            if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 2)
                clashes.push(["cut off", text]);
            for (const [other, its] of texts.slice(number + 1))
                if (box.left < its.right - 1 && its.left < box.right - 1 && box.top < its.bottom - 3 && its.top < box.bottom - 3)
                    clashes.push(["overlap", text, other]);
        });
    }
    return clashes;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_the_page_fits_and_shows_its_plots(
    browser: Browser, night: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    with shown(browser, night, width, scheme) as page:
        assert "of 600,000 tokens have arrived" in page.title()
        assert not page.evaluate(SCROLLS)
        assert page.evaluate(VISIBLE.format("svg")) == 8
        assert page.evaluate(VISIBLE.format("figure svg")) == 7
        wanted = "wide" if width > 719 else "narrow"
        assert page.evaluate(VISIBLE.format(f"svg.{wanted}")) == 8
        for plot in page.query_selector_all(f"figure svg.{wanted}"):
            box = plot.bounding_box()
            assert box is not None
            assert box["height"] > 100
        assert page.evaluate(CLASHES) == []
        page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 50_000


@pytest.mark.parametrize("width", SIZES)
def test_short_and_many_runs_fit_too(browser: Browser, tmp_path: Path, width: int) -> None:
    ledger = make_job(tmp_path, tokens=50_000)
    for number in range(9):
        run = ledger.begin_run(EVENING + 3600 * number)
        for second in (10, 20, 30, 40):
            figures = progress(
                seconds=float(second), rate=40.0, p50=0.2, p95=0.31, fetched=40 * second, learned_rate=1480.0,
                learned=("1,480/s learned: refused at 1,507/s 12 s ago",),
            )  # fmt: skip
            ledger.add_sample(run, EVENING + 3600 * number + second, figures)
        if number in (0, 8):
            with shown(browser, write_report(tmp_path), width) as page:
                assert page.evaluate(CLASHES) == []
                assert not page.evaluate(SCROLLS)
    ledger.close()


def test_more_runs_than_are_shown_fit_a_phone(browser: Browser, tmp_path: Path) -> None:
    ledger = make_job(tmp_path, tokens=50_000)
    for number in range(101):
        run = ledger.begin_run(EVENING + 3600 * number)
        ledger.add_sample(run, EVENING + 3600 * number + 10, progress(seconds=10.0, requests=400))
    ledger.close()
    with shown(browser, write_report(tmp_path), 390) as page:
        assert "in the last 100 of 101 runs" in page.inner_text("body")
        assert not page.evaluate(SCROLLS)


@pytest.mark.parametrize("host", ["a-very-long-name." * 12 + "example", "x" * 250])
def test_a_long_problem_fits_a_phone(browser: Browser, tmp_path: Path, host: str) -> None:
    ledger = make_job(tmp_path, tokens=50)
    run = ledger.begin_run(EVENING)
    trouble = {"host": host, "reason": f"{host} cannot be looked up", "attempts": 14, "seconds": 120.0}
    for second in (10, 20, 30):
        ledger.add_sample(run, EVENING + second, progress(seconds=float(second)) | {"troubles": [trouble]})
    ledger.end_run(run, EVENING + 30, "stopped", f"{host} cannot be looked up; it has never answered", {})
    ledger.close()
    with shown(browser, write_report(tmp_path), 390) as page:
        assert "cannot be looked up; 14 attempts in a row" in page.inner_text(".findings")
        assert not page.evaluate(SCROLLS)


def test_dark_is_dark_and_plots_follow(browser: Browser, night: Path) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        with shown(browser, night, 1280, scheme) as page:
            seen[scheme] = page.evaluate("""() => {
                const shades = e => getComputedStyle(e);
                const line = [...document.querySelectorAll("#plot-throughput svg.wide path")]
                    .find(path => path.getAttribute("style")?.includes("--one"));
                return [shades(document.body).backgroundColor, shades(document.body).color, shades(line).stroke,
                        shades(document.querySelector("#plot-throughput svg.wide text")).fill];
            }""")
    assert seen["light"][:2] == ["rgb(255, 255, 255)", "rgb(26, 29, 33)"]
    assert seen["dark"][:2] == ["rgb(20, 23, 26)", "rgb(232, 234, 237)"]
    assert all(light != dark for light, dark in zip(*seen.values(), strict=True))


@pytest.mark.parametrize("width", SIZES)
def test_what_is_folded_out_fits_too(browser: Browser, night: Path, width: int) -> None:
    with shown(browser, night, width) as page:
        before = page.evaluate(VISIBLE.format("tbody tr"))
        for summary in page.query_selector_all("summary"):
            summary.click()
        assert page.evaluate(VISIBLE.format("tbody tr")) > before + 240
        assert not page.evaluate(SCROLLS)


def test_the_mouse_shows_numbers(browser: Browser, night: Path) -> None:
    with shown(browser, night, 1280) as page:
        page.locator("#plot-throughput .hover rect").nth(60).hover()
        assert page.evaluate(
            "document.querySelector('#plot-throughput .hover rect:hover title').textContent"
        ).startswith("2026-11-23 2")
        assert "tokens/s" in page.evaluate(
            "document.querySelector('#plot-throughput .hover rect:hover title').textContent"
        )


@pytest.mark.parametrize("width", SIZES)
def test_hostile_names_do_nothing(browser: Browser, tmp_path: Path, width: int) -> None:
    ledger = make_job(tmp_path, tokens=20, store={"kind": HOSTILE, HOSTILE: HOSTILE}, origin=HOSTILE)
    commit(ledger, next(ledger.pending()), failure(2, "final", HOSTILE, HOSTILE), failure(3, HOSTILE, "x" * 500))
    ledger.end_run(ledger.begin_run(EVENING), EVENING + 1, HOSTILE, HOSTILE, {})
    ledger.close()
    with shown(browser, write_report(tmp_path), width) as page:
        assert page.evaluate("document.querySelectorAll('script, img').length") == 0
        assert "<script>alert(1)</script>" in page.inner_text("body")
        assert not page.evaluate(SCROLLS)
