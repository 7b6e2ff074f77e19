"""Wrong usage, said in our own words."""

from __future__ import annotations

import click


class Wrong(click.UsageError):
    """Wrong usage. Its message holds no value that was typed, except names of options, files and columns."""

    def __init__(self, message: str) -> None:
        super().__init__(message, click.get_current_context(silent=True))
