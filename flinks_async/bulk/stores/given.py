"""Where the user wants a store's file."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import ConfigError


def given_path(path: str | os.PathLike[str] | None) -> Path | None:
    """The path in a form that stays right when the working directory changes; None where none is given.

    Raises:
        ConfigError: it cannot be the name of a file.
    """
    if path is None:
        return None
    absolute = Path(path).absolute()
    try:
        possible = b"\0" not in os.fsencode(absolute)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ConfigError(f"path must be the name of a file, not {str(path)!a}")
    return absolute


def in_folder(path: Path, folder: Path) -> bool:
    """Whether a file is in a folder, by whatever names."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
