"""The tokens that are worth sending: checked, each once. What is wrong with the others goes into the books."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from ..bulk.inputs import Row, SkippedLine
from ..bulk.inputs import check as check_row
from ..secret import Secret
from .dedup import SeenTokens
from .outcome_writer import Books, Place
from .token_files import TokenFile


async def tokens_of(file: TokenFile, books: Books, stop: asyncio.Event) -> AsyncGenerator[tuple[Place, Secret], None]:
    """(place, token) of each token of a file, until it ends or `stop` is set.

    Raises:
        OutputError: a line that is wrong could not be written down.
    """
    seen = SeenTokens()
    async with aclosing(file.rows(stop)) as rows:
        async for row in rows:
            checked = check(row, seen)
            if isinstance(checked, SkippedLine):
                await books.note(checked)
            else:
                books.take()
                yield Place(checked.line, checked.key), checked.token


def check(row: Row, seen: SeenTokens) -> Row:
    """The row itself, if its token can be sent and was not seen before; else a note that says why."""
    checked = check_row(row)
    if isinstance(checked, SkippedLine) or seen.add(checked.token):
        return checked
    return SkippedLine(checked.line, "duplicate", key=checked.key)
