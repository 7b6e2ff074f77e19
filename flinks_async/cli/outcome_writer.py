"""What became of every line: counted so that the numbers add up, and written down.

A line is fetched (output file), failed or invalid (file of failed tokens), skipped as a blank or a duplicate (file of
skipped lines), the header, or the continuation of a quoted CSV field. What is none of these was taken but not finished
when the run was stopped.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

import msgspec
from attrs import define, field, frozen

from ..bulk.failures import failure_kind
from ..bulk.inputs.rows import NO_KEY, SkippedLine, SkipReason
from ..bulk.records import FailureKind
from ..bulk.rules import doubt_about
from ..errors import FlinksError
from ..models import PartnerAccessResponse
from ..secret import fingerprint


@frozen(eq=False)
class Place:
    """Where a token came from. The key of its outcome."""

    line: int
    key: Any = NO_KEY

    def fields(self) -> dict[str, Any]:
        return {"line": self.line} if self.key is NO_KEY else {"line": self.line, "key": self.key}


class Lines(Protocol):
    """Where lines of a kind are written to."""

    async def write(self, line: bytes) -> None: ...


@define
class Counts:
    """Lines by what became of them, and failures by kind."""

    taken: int = 0
    fetched: int = 0
    notes: Counter[SkipReason] = field(factory=Counter)
    failures: Counter[FailureKind] = field(factory=Counter)
    classes: Counter[str] = field(factory=Counter)

    @property
    def failed(self) -> int:
        """Tokens that were asked for and did not arrive."""
        return self.failures["final"] + self.failures["exhausted"]

    @property
    def invalid(self) -> int:
        """Lines from which nothing was sent, because something is wrong with them."""
        return self.failures["invalid"]

    @property
    def done(self) -> int:
        """Tokens with an outcome."""
        return self.fetched + self.failed

    @property
    def unfinished(self) -> int:
        """Tokens that were taken and have no outcome."""
        return self.taken - self.done

    @property
    def lines(self) -> int:
        """All of them."""
        return self.taken + self.invalid + self.notes.total()


class Books:
    """Writes down what became of each line.

    Args:
        out: for the answers.
        failed: for tokens that failed and lines that are invalid.
        skipped: for blank lines and duplicates.
    """

    def __init__(self, out: Lines, failed: Lines, skipped: Lines) -> None:
        self.counts = Counts()
        self.in_a_row = Counter[str]()  # failures by suspicion, with no success between
        self._out = out
        self._failed = failed
        self._skipped = skipped

    def take(self) -> None:
        """A token is handed to the client."""
        self.counts.taken += 1

    async def fetched(self, place: Place, response: PartnerAccessResponse) -> None:
        await self._out.write(_output_line(place, response))
        self.counts.fetched += 1
        self.in_a_row.clear()

    async def failed(self, place: Place, error: FlinksError) -> None:
        kind = failure_kind(error)
        await self._failed.write(_line({**place.fields(), **_failure(error, kind)}))
        self.counts.failures[kind] += 1
        self.counts.classes[type(error).__name__] += 1
        if (suspected := doubt_about(error)) is not None:
            self.in_a_row[suspected] += 1

    async def note(self, note: SkippedLine) -> None:
        """A line from which nothing is sent."""
        if note.kind == "invalid":
            await self._failed.write(_line(_invalid(note)))
            self.counts.failures["invalid"] += 1
            return
        if note.kind in ("blank", "duplicate"):
            await self._skipped.write(_line({**Place(note.line, note.key).fields(), "kind": note.kind}))
        self.counts.notes[note.kind] += 1


def _failure(error: FlinksError, kind: FailureKind) -> dict[str, Any]:
    return {
        "token_fingerprint": error.token_fingerprint,
        "error": type(error).__name__,
        "kind": kind,
        "flinks_code": error.flinks_code,
        "status": error.status,
        "attempts": error.attempts,
        "message": error.message,
    }


def _invalid(note: SkippedLine) -> dict[str, Any]:
    return {
        **Place(note.line, note.key).fields(),
        "token_fingerprint": None if note.token is None else fingerprint(note.token),
        "error": "InvalidTokenError",
        "kind": "invalid",
        "flinks_code": None,
        "status": None,
        "attempts": 0,
        "message": note.message,
    }


def _line(record: dict[str, Any]) -> bytes:
    return msgspec.json.encode(record) + b"\n"


def _output_line(place: Place, response: PartnerAccessResponse) -> bytes:
    head = msgspec.json.encode(place.fields())[:-1]
    meta = msgspec.json.encode({"status": response.meta.status, "attempts": response.meta.attempts})
    return b'%b,"response":%b,"meta":%b}\n' % (head, response.to_json(), meta)
