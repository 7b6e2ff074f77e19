"""Figures of matplotlib as inline SVG: colours of the page's style sheet, its font, and names that do not clash."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any, Final

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

COLOURS: Final = (
    "ink", "soft", "grid", "one", "two", "good", "again", "final", "waiting", "gap", "pause", "page",
)  # fmt: skip
"""Variables of the style sheet: text, lesser text, grid lines, two series, four outcomes, gaps, pauses, background."""

RC: Final[dict[str, Any]] = {
    "svg.fonttype": "none",  # texts stay texts
    "figure.dpi": 72,  # a unit of the SVG is a pixel at full width
    "text.parse_math": False,
    "font.size": 12,
    "hatch.linewidth": 1,
    "path.simplify": False,
}

_HEAD: Final = re.compile(r'^.*?<svg[^>]*viewBox="([^"]*)"[^>]*>', re.DOTALL)
_COLOUR: Final = re.compile(r"#0000([0-9a-f]{2})")
_ID: Final = re.compile(r'(\bid="|\bhref="#|url\(#)')
_PATH: Final = re.compile(r' d="[^"]*"')
_LONG: Final = re.compile(r"(\d\.\d)\d+")


def colour(name: str) -> str:
    """A colour that stands for a variable of the style sheet until the figure is SVG."""
    return f"#0000{COLOURS.index(name) + 1:02x}"


def inline(figure: Figure, name: str, variant: str, title: str, description: str, over: Markup) -> Markup:
    """A figure as an element of a page. To be called with `RC` in force.

    Args:
        figure: uses no colours but those of `colour`.
        name: of the figure, new for each one of a page.
        variant: a class for the style sheet.
        title, description: for those who do not see it.
        over: more elements, on top.
    """
    text = StringIO()
    # The metadata would name the time, and addresses of vocabularies.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata=nothing, transparent=True)
    head = _HEAD.match(text.getvalue())
    assert head is not None
    body = text.getvalue()[head.end() :].rstrip().removesuffix("</svg>")
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    body = _ID.sub(rf"\g<1>{name}-", body)
    body = _PATH.sub(lambda path: _LONG.sub(r"\1", " ".join(path[0].split("\n"))), body)
    body = _COLOUR.sub(lambda found: f"var(--{COLOURS[int(found[1], 16) - 1]})", body)
    begin = Markup(
        '<svg class="{0}" viewBox="{1}" role="img" aria-labelledby="{2}-t {2}-d">'
        '<title id="{2}-t">{3}</title><desc id="{2}-d">{4}</desc>'
    )
    # What matplotlib wrote has its texts escaped; everything of the job's is in them.
    return begin.format(variant, head[1], name, title, description) + Markup(body) + over + Markup("</svg>")
