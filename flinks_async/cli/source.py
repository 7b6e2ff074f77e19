"""The tokens that are worth sending: checked, each once. What is wrong with the others goes into the books."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from ..config import check_token
from ..errors import InvalidTokenError
from ..secret import Secret
from .books import Books, Place
from .rows import Note, Row, Token
from .seen import SeenTokens
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
            if isinstance(checked, Note):
                await books.note(checked)
            else:
                books.take()
                yield Place(checked.line, checked.key), checked.token


def check(row: Row, seen: SeenTokens) -> Row:
    """The row itself, if its token can be sent and was not seen before; else a note that says why."""
    if isinstance(row, Note):
        return row
    problem = _problem(row)
    if problem is not None:
        return Note(row.line, "invalid", problem, row.token, None if _holds_token(row) else row.key)
    return row if seen.add(row.token) else Note(row.line, "duplicate", key=row.key)


def _problem(row: Token) -> str | None:
    try:
        check_token(row.token)
    except InvalidTokenError as error:
        return error.message
    if not row.token.reveal().isprintable():
        # Allowed on the wire, but in a file it is a byte-order mark or a space that nobody sees.
        return "the access token holds an invisible character"
    return "the key column holds the access token" if _holds_token(row) else None


def _holds_token(row: Token) -> bool:
    return bool(row.token) and isinstance(row.key, (str, list, dict)) and row.token.reveal() in str(row.key)
