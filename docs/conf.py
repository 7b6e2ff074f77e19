"""The documentation site. Its sources are the Markdown files of the repository, so that their links work everywhere:
`python3 dev.py nox -s docs` writes `.site`.
"""

from __future__ import annotations

import re
import sys
from inspect import getdoc
from pathlib import Path
from typing import Any

from sphinx.pycode import ModuleAnalyzer
from sphinx.search import languages
from sphinx.search.en import SearchEnglish

import flinks_async
import flinks_async.bulk
import flinks_async.testing
from flinks_async import config, errors, models

project = "flinks-async"
author = copyright = "The flinks-async authors"
release = version = flinks_async.__version__

root_doc = "docs/index"
include_patterns = ["docs/**", "README.md", "examples/README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]  # the block `layers` of CONTRIBUTING.md, which a test reads
napoleon_use_param = False  # a docstring may describe several names in one line
napoleon_custom_sections = [("Attributes", "params_style")]

html_theme = "furo"
html_title = "flinks-async"
html_show_sphinx = html_copy_source = html_show_sourcelink = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    # These have sections of their own.
    "exclude-members": ",".join(
        [*config.__all__, *errors.__all__, *models.__all__, "config", "errors", "models", "FlinksClient"]
    ),
}


class Search(SearchEnglish):
    """Also finds HTTP statuses. Sphinx and its script skip numbers, so both see `429` as `status429`."""

    js_splitter_code = r"""
        var splitQuery = (query) => query.split(/[^\p{Letter}\p{Number}_\p{Emoji_Presentation}]+/gu)
          .filter((word) => word).map((word) => /^\d{3}$/.test(word) ? `status${word}` : word);
    """

    def split(self, input: str) -> list[str]:
        return [f"status{word}" if re.fullmatch(r"\d{3}", word) else word for word in super().split(input)]


languages["en"] = Search


def _literal(code: re.Match[str]) -> str:
    return f"``{code[1]}``" + ("\\ " if code[2] else "")  # a letter may follow only after an escaped space


def markdown_to_rest(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks and indented examples; reST wants two backticks and a `::`."""
    paragraphs = re.split(r"\n\n+(?=\S)|\n\n+(?= {4})", "\n".join(lines))
    text = ""
    for before, paragraph in zip(["", *paragraphs], paragraphs, strict=False):
        sections = ("Args:", "Attributes:", "Raises:", "Returns:")
        example = paragraph.startswith("    ") and not before.startswith(sections)
        if example and not before.startswith("    "):
            text += "::\n\n"
        text += paragraph if example else re.sub(r"(?<!`)`([^`]+)`(?=(\w?))(?!`)", _literal, paragraph)
        text += "\n\n"
    lines[:] = text.split("\n")


def skip_internal(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Methods that other packages of the project call are no part of the reference."""
    return True if (getdoc(obj) or "").startswith("Internal") else None


def find_texts_of_data(app: Any) -> None:
    """Types and constants have their text where they are defined, and autodoc looks where they are exported."""
    public = ("flinks_async", "flinks_async.bulk", "flinks_async.config", "flinks_async.models", "flinks_async.testing")
    for name in public:
        for data in sys.modules[name].__all__:
            getattr(sys.modules[name], data)  # imports what is imported lazily
    found: dict[str, list[str]] = {}
    for name in [name for name in sys.modules if name.startswith("flinks_async.")]:
        analyzer = ModuleAnalyzer.for_module(name)
        analyzer.analyze()
        found |= {data: text for (owner, data), text in analyzer.attr_docs.items() if not owner}
    for name in (
        "flinks_async",
        "flinks_async.bulk",
        "flinks_async.config",
        "flinks_async.models",
        "flinks_async.testing",
    ):
        analyzer = ModuleAnalyzer.for_module(name)
        analyzer.analyze()
        for data in sys.modules[name].__all__:
            if data in found:
                analyzer.attr_docs.setdefault(("", data), found[data])


def redirect_to_index(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        page = (
            '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html"><title>flinks-async</title>\n'
        )
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app: Any) -> None:
    app.connect("builder-inited", find_texts_of_data)
    app.connect("autodoc-skip-member", skip_internal)
    app.connect("autodoc-process-docstring", markdown_to_rest, priority=400)
    app.connect("build-finished", redirect_to_index)
