"""The tables in docs/stores.md, from the list of columns: `python -m tests.bulk.store_docs` writes them, a test compares."""

from __future__ import annotations

import re
from pathlib import Path

from flinks_async.bulk.stores.answer_rows import TABLES

PAGE = Path(__file__).parents[2] / "docs" / "stores.md"
BEGIN = "<!-- tables: written by python -m tests.bulk.store_docs -->\n"
END = "<!-- end of tables -->"


def tables() -> str:
    parts = []
    for table in TABLES:
        parts.append(f"### {table.name}\n\n| column | type | of the answer |\n|---|---|---|\n")
        for column in table.columns:
            wire = column.wire.removeprefix("^")
            parts.append(f"| `{column.name}` | {column.type} | {f'`{wire}`' if wire else ''} |\n")
        parts.append("\n")
    return "".join(parts)


def page() -> str:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}{END}{rest.partition(END)[2]}"


def queries(section: str, language: str = "sql") -> list[str]:
    """The examples of a section of the page."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n### {section}\n")[2]
    text = re.split(r"\n##+ ", text)[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
