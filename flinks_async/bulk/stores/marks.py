"""Commits as JSON, for stores that keep them beside the rows, in the same transaction."""

from __future__ import annotations

import msgspec

from ..records import Commit

to_json = msgspec.json.Encoder().encode
"""A commit as JSON bytes. It has no token, as no record of a job does."""

_decode = msgspec.json.Decoder(Commit).decode


def from_json(mark: bytes | str) -> Commit:
    """The commit again. Fields of a newer version are left out.

    Raises:
        ValueError: the mark is broken.
    """
    return _decode(mark)
