"""Which rows are worth sending."""

from __future__ import annotations

from typing import Any

from ...config import INSTANCE_NAME, check_token
from ...errors import InvalidTokenError
from ...secret import Secret
from .rows import NO_KEY, Note, Row


def check(row: Row) -> Row:
    """The row itself, if its token can be sent; else a note that says why, and never shows the token."""
    if isinstance(row, Note):
        return row
    problem = _problem_of_token(row.token)
    key_holds_it = row.key is not NO_KEY and holds_token(row.key, row.token)
    if problem is None and key_holds_it:
        problem = "the key column holds the access token"
    instance_problem = None if row.instance is None else _problem_of_instance(row.instance, row.token)
    if problem is None and instance_problem is None:
        return row
    return Note(
        row.line,
        "invalid",
        problem or instance_problem or "",
        row.token,
        None if key_holds_it else row.key,
        row.instance if instance_problem is None else None,
    )


def _problem_of_token(token: Secret) -> str | None:
    try:
        check_token(token)
    except InvalidTokenError as error:
        return error.message
    if not token.reveal().isprintable():
        # Allowed on the wire, but in a file it is a byte-order mark or a space that nobody sees.
        return "the access token holds an invisible character"
    return None


def _problem_of_instance(instance: str, token: Secret) -> str | None:
    if not instance:
        return "the instance is missing"
    if not INSTANCE_NAME.fullmatch(instance):
        return "the instance column does not hold the name of an instance"
    return "the instance column holds the access token" if holds_token(instance, token) else None


def holds_token(value: Any, token: Secret) -> bool:
    """Whether a text, a number, or something inside of a list or an object contains the token."""
    left = [value] if token else []
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
        elif isinstance(value, (str, int, float)) and token.reveal() in str(value):
            return True
    return False
