"""A shard under way: which of its rows are open, and its answers so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from attrs import define, field

from ..messages import Response
from .inputs import NO_KEY, Token
from .records import Failure, Shard
from .spool import Spool

_FULL: Final = 256 * 1024
_encode = msgspec.json.encode
_BOM: Final = b"\xef\xbb\xbf"


@define(eq=False)
class OpenShard:
    """A shard under way.

    Attributes:
        shard: its description.
        open: lines of its rows without an outcome.
        spool: its file of answers, once it has one. Belongs to the writing thread.
    """

    shard: Shard
    open: set[int]
    spool: Spool | None = None
    _lines: list[bytes] = field(factory=list, init=False)
    _size: int = field(default=0, init=False)
    _failures: list[Failure] = field(factory=list, init=False)
    _answered: int = field(default=0, init=False)

    @property
    def full(self) -> bool:
        """There are enough lines to be worth a write."""
        return self._size >= _FULL

    @property
    def begun(self) -> bool:
        """At least one row has an outcome."""
        return bool(self._answered or self._failures)

    @property
    def failures(self) -> tuple[Failure, ...]:
        return tuple(sorted(self._failures, key=lambda failure: failure.line))

    def answered(self, line: int, text: bytes) -> None:
        self.open.discard(line)
        self._lines.append(text)
        self._size += len(text)
        self._answered += 1

    def failed(self, failure: Failure) -> None:
        self.open.discard(failure.line)
        self._failures.append(failure)

    def take_lines(self) -> Sequence[bytes]:
        """The lines that are not in the spool yet."""
        lines, self._lines, self._size = self._lines, [], 0
        return lines


def spool_line(token: Token, response: Response) -> bytes:
    """One answer as a line: `{"line":7,"key":"u-1","instance":"acme","response":{...},"meta":{...}}`."""
    body = response.body
    if b"\n" in body or b"\r" in body or not body.startswith(b"{"):
        body = msgspec.json.format(body.removeprefix(_BOM), indent=-1)
    key = b"" if token.key is NO_KEY else b',"key":%b' % _encode(token.key)
    instance = b"" if token.instance is None else b',"instance":%b' % _encode(token.instance)
    meta = response.meta
    return b'{"line":%d%b%b,"response":%b,"meta":{"status":%d,"attempts":%d}}\n' % (
        token.line, key, instance, body, meta.status, meta.attempts,
    )  # fmt: skip


def key_of(token: Token) -> Any:
    return None if token.key is NO_KEY else token.key
