"""Standard error as a place for lines, when the answers go to standard output and there is no file for the others."""

from __future__ import annotations

from .console import say


class StderrLines:
    """Failed tokens and skipped lines as JSON on standard error."""

    def __init__(self) -> None:
        self.lines = 0

    async def write(self, line: bytes) -> None:
        say(line.decode().rstrip("\n"))
        self.lines += 1
