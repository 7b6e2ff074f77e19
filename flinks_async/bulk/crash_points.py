"""Named places where tests kill the process, to prove that a job survives it. Outside of tests they do nothing."""

from __future__ import annotations

from collections.abc import Callable

hook: Callable[[str], object] | None = None
"""Called with the name of each point that is reached. For tests and the demo's crash only."""


def reach(name: str) -> None:
    """Marks the point with this name."""
    if hook is not None:
        hook(name)
