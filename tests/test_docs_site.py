"""The documentation site: built without a warning, complete, and usable in a browser and on a phone."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

import flinks_async

from .bulk.test_report_browser import FLAGS, PROGRAM

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.once]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", folder / "trees", "."]
    done = subprocess.run([*command, folder / "html"], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def pages(site: Path) -> dict[Path, str]:
    return {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html") if page.name != "search.html"}


def test_every_page_of_docs_is_in_the_site_and_in_its_menu(site: Path) -> None:
    index = (site / "docs" / "index.html").read_text(encoding="utf-8")
    sources = [path for pattern in ("*.md", "*.rst") for path in (ROOT / "docs").glob(pattern)]
    assert len(sources) > 15
    for source in sources:
        assert (site / "docs" / f"{source.stem}.html").exists()
        assert source.stem == "index" or f'href="{source.stem}.html"' in index
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")


def test_every_internal_link_leads_to_a_page_and_to_a_place_on_it(site: Path) -> None:
    texts = pages(site)
    places = {page.resolve(): set(re.findall(r'\bid="([^"]+)"', text)) for page, text in texts.items()}
    found = 0
    for page, text in texts.items():
        for link in map(unescape, re.findall(r'<a [^>]*href="([^"]+)"', text)):
            target, _, place = link.partition("#")
            if target.startswith(("https:", "http:", "mailto:")) or link == "#":
                continue
            path = (page.parent / target).resolve() if target else page.resolve()
            assert path.exists(), f"{page.name}: {link}"
            assert not place or place in places.get(path, {place}), f"{page.name}: {link}"
            found += 1
    assert found > 1000


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page, text in pages(site).items():
        assert not re.search(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(?:https?:)?//', text), page.name


def test_the_reference_has_every_public_name(site: Path) -> None:
    page = (site / "docs" / "api.html").read_text(encoding="utf-8")
    places = {name.rpartition(".")[2] for name in re.findall(r'\bid="(flinks_async\.[\w.]+)"', page)}
    public = {*re.findall(r"flinks_async(?:\.\w+)+", flinks_async.__doc__ or ""), "flinks_async"}
    assert len(public) > 10
    for module in map(import_module, public - {"flinks_async.cli"}):  # the commands have a page of their own
        names = {name for name in module.__all__ if not isinstance(getattr(module, name), ModuleType)}
        assert names - places <= {"__version__"}, module
    assert not re.search("Internal[;:]", page)
    assert "flinks_async.bulk.DaskExecutor.look" not in page
    assert [name for name in places if name.startswith("_") and not name.endswith("__")] == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("there is no Chromium; CHROMIUM may name one")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=PROGRAM, args=FLAGS)
        yield opened
        opened.close()


def test_search_finds_a_header(site: Path, browser: Browser) -> None:
    page = browser.new_page()
    page.goto((site / "docs" / "index.html").as_uri())
    page.fill("input[name=q]", "Retry-After")
    page.press("input[name=q]", "Enter")
    page.get_by_role("link", name="Resilience", exact=True).last.click(timeout=20_000)
    assert "resilience.html" in page.url
    page.close()


WANTED = {  # what users look for, and pages that tell
    "429": ("docs/questions", "docs/errors"),
    "timeout": ("docs/service", "docs/settings"),
    "proxy": ("docs/questions", "docs/settings"),
    "pandas": ("docs/data-frames",),
    "Kubernetes": ("docs/many-machines", "docs/questions"),
    "Windows": ("docs/questions",),
    "cancel": ("docs/questions",),
    "fork": ("docs/questions",),
    "Django": ("examples/README",),
}


def test_search_finds_what_users_look_for_among_the_first_results(site: Path, browser: Browser) -> None:
    page = browser.new_page()
    for word, wanted in WANTED.items():
        page.goto(f"{(site / 'search.html').as_uri()}?q={word}")
        page.get_by_text(re.compile("Search finished")).wait_for(timeout=20_000)
        found = page.evaluate("[...document.querySelectorAll('#search-results li > a')].map(one => one.href)")
        assert any(f"/{name}.html" in url for url in found[:6] for name in wanted), (word, found[:10])
    page.close()


def test_every_page_says_what_it_is_for_in_its_first_lines(site: Path) -> None:
    for name, text in pages(site).items():
        article = text.partition("<h1>")[2].partition("</h1>")[2]
        first = re.match(r"\s*<(\w+)", article)
        assert name.parent == site or (first is not None and first[1] == "p"), name


CUT = "[...document.querySelectorAll('{}')].filter(one => one.scrollWidth > one.clientWidth).length"
HIGHEST_ROW = "Math.max(0, ...[...document.querySelectorAll('article tr')].map(row => row.clientHeight))"


def test_tables_fit_a_desk_and_no_row_is_high_because_a_column_is_narrow(site: Path, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    for source in ("docs/settings", "docs/logging", "docs/many-machines", "docs/stores", "docs/questions", "README"):
        page.goto((site / f"{source}.html").as_uri())
        assert page.evaluate(HIGHEST_ROW) < 260, source
        assert page.evaluate(CUT.format("article table")) == 0, source
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_pages_without_scrolling_sideways_and_tables_that_can_be_read(
    site: Path, browser: Browser, scheme: str
) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 390, "height": 844})
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for source in (
        *("docs/index", "docs/settings", "docs/observability", "docs/errors", "docs/api", "README"),
        *("docs/tutorial-service", "docs/tutorial-job", "docs/command-line", "docs/logging"),
        *("docs/questions", "examples/README"),
    ):
        page.goto((site / f"{source}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390, source
        narrow = "[...document.querySelectorAll('article td')].filter(cell => cell.clientWidth < 100).length"
        assert page.evaluate(narrow) == 0, source
        assert page.evaluate(CUT.format(".highlight-sh pre, .highlight-bash pre")) == 0, source
        assert page.evaluate(HIGHEST_ROW) < 844, source
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light is (scheme == "light")
    assert [url for url in asked if not url.startswith("file:")] == []
    context.close()
