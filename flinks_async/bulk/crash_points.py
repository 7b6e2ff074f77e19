"""Named places where tests kill the process, to see that a job survives it there. In use they do nothing."""

from __future__ import annotations

from collections.abc import Callable

hook: Callable[[str], object] | None = None
"""Called with the name of each point that is reached. For tests and `demo --crash` only."""


def reach(name: str) -> None:
    """Marks a point."""
    if hook is not None:
        hook(name)
