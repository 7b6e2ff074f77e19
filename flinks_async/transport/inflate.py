"""Inflates a body while it arrives, with a cap and an end-of-stream check.

aiohttp's own inflating accepts a body that was cut short, and knows no cap.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from ..errors import ProtocolError, ReadError, ResponseTooLargeError

STEP: Final = 64 * 1024
"""The most that one call of zlib may produce."""

TURN: Final = 32
"""Calls of zlib, each of them well below a millisecond, between two turns of the event loop."""

MAX_CODINGS: Final = 3

MAX_MEMBERS: Final = 10_000
"""Members of one gzip coding. Ours: tools that write several put at least some KB into each."""

_NONE: Final = ("", "identity", "none", "utf-8")

_GZIP: Final = 16 + zlib.MAX_WBITS


class Inflater:
    """Turns the chunks of an encoded body into those of the plain one.

        inflater = Inflater(headers.get("Content-Encoding", ""), limit)
        async for chunk in stream:
            parts.append(inflater.feed(chunk))
        parts.append(inflater.finish())

    `steps` does what `feed` does, and leaves room for turns of the event loop.

    Args:
        encoding: the value of Content-Encoding: identity, gzip, deflate, or up to three of them with commas. `none` and
            `utf-8`, which some servers put there, mean identity.
        limit: the most bytes that may come out, and, of an encoded body, go in: an encoding can take in bytes without end
            and give none. Between two encodings it is the same.
        lenient: a body in another encoding, or not in its own, is taken for empty: for answers whose status says enough.

    Raises:
        ProtocolError: the encoding is not supported, or the data is not in it, or has more than `MAX_MEMBERS` members.
        ReadError: at `finish()`, the body ended early.
        ResponseTooLargeError: more than `limit` bytes came out, or went in. No more than that and one step were produced.
    """

    __slots__ = ("_calls", "_codings", "_given", "_lenient", "_limit", "_total", "_unreadable")

    def __init__(self, encoding: str, limit: int, *, lenient: bool = False) -> None:
        self._codings: list[_Zlib] = []
        self._limit = limit
        self._lenient = lenient
        self._unreadable = False
        self._total = self._given = self._calls = 0
        try:
            self._codings = _codings(encoding)
        except ProtocolError:
            if not lenient:
                raise
            self._unreadable = True

    def feed(self, chunk: bytes) -> bytes:
        """The plain bytes that a chunk gives, perhaps none."""
        if self._codings:
            return b"".join(self.steps(chunk))
        self._count(len(chunk))
        return b"" if self._unreadable else chunk

    def steps(self, chunk: bytes) -> Iterator[bytes]:
        """The same in pieces. An empty piece means that a turn of the event loop is due."""
        if not self._codings:
            yield self.feed(chunk)
            return
        self._given += len(chunk)
        if self._given > self._limit + STEP:  # what does not compress grows a little
            raise ResponseTooLargeError(f"the encoded body is larger than {self._limit} bytes")
        codings, limit = self._codings, self._limit
        last, begin = len(codings) - 1, 0
        try:
            while begin < len(chunk):  # in parts, since zlib copies what it leaves over, each time
                codings[0].push(chunk[begin : begin + STEP])
                begin += STEP
                stage = 0
                # Each piece goes all the way down before the next one is made, so a bomb inside a bomb stays small too.
                while stage >= 0:
                    coding = codings[stage]
                    piece = coding.pull()
                    self._calls += 1
                    if self._calls % TURN == 0:
                        yield b""
                    if piece is None:
                        stage -= 1
                    elif piece and stage < last:
                        coding.came += len(piece)
                        if coding.came > limit + STEP:
                            raise ResponseTooLargeError(f"the encoded body is larger than {limit} bytes")
                        stage += 1
                        codings[stage].push(piece)
                    elif piece:
                        self._count(len(piece))
                        yield piece
        except ProtocolError:
            if not self._lenient:
                raise
            self._unreadable, self._codings = True, []

    def finish(self) -> bytes:
        """The rest (nothing, with the encodings of today). Raises if the body ended too early."""
        for coding in self._codings:
            coding.finish()
        return b""

    def _count(self, size: int) -> None:
        self._total += size
        if self._total > self._limit:
            raise ResponseTooLargeError(f"the body is larger than {self._limit} bytes")


def _codings(encoding: str) -> list[_Zlib]:
    """In the order in which they are undone."""
    names = [name for part in encoding.split(",") if (name := part.strip().lower()) not in _NONE]
    if len(names) > MAX_CODINGS:
        raise ProtocolError(f"the body is encoded more than {MAX_CODINGS} times")
    return [_coding(name) for name in reversed(names)]


def _coding(name: str) -> _Zlib:
    if name in ("gzip", "x-gzip"):
        return _Zlib(_GZIP)
    if name == "deflate":
        return _Zlib(zlib.MAX_WBITS)
    # The name is the server's text: only a well-known one is repeated.
    known = name if name in ("br", "zstd", "compress", "x-compress", "dcb", "dcz") else "unknown"
    raise ProtocolError(f"the body has a Content-Encoding that was not asked for ({known})")


class _Zlib:
    """One coding. gzip may have several members and zero padding after them; deflate comes with or without header."""

    __slots__ = ("_bits", "_inflate", "_members", "_pending", "_started", "came")

    def __init__(self, bits: int) -> None:
        self.came = 0
        self._bits = bits
        self._pending = b""
        self._started = False  # a member has begun
        self._members = 1
        self._inflate = zlib.decompressobj(bits)

    def push(self, data: bytes) -> None:
        self._pending = self._pending + data if self._pending else data

    def pull(self) -> bytes | None:
        """Up to STEP bytes, perhaps none; None when more input is needed."""
        if self._inflate.eof and not self._next_member():
            return None
        if not self._started:
            if self._bits == zlib.MAX_WBITS and not self._choose_deflate():
                return None
            self._started = bool(self._pending)
        try:
            piece = self._inflate.decompress(self._pending, STEP)
        except zlib.error:
            piece = None
        if piece is None:
            raise ProtocolError("the body is not in its Content-Encoding")
        self._pending = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        return piece if piece or self._inflate.eof else None

    def finish(self) -> None:
        if self._started and not self._inflate.eof:
            raise ReadError("body truncated")
        if self._pending:  # a first byte of deflate that never got its second one
            raise ReadError("body truncated")

    def _next_member(self) -> bool:
        if self._bits == _GZIP:
            self._pending = self._pending.lstrip(b"\0")
        if not self._pending:
            return False
        if self._bits != _GZIP:
            raise ProtocolError("the body goes on after its end")
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise ProtocolError(f"the body has more than {MAX_MEMBERS} gzip members")
        self._inflate = zlib.decompressobj(self._bits)
        return True

    def _choose_deflate(self) -> bool:
        # Two bytes tell a zlib header from a raw stream (RFC 1950).
        if len(self._pending) < 2:
            return False
        first, second = self._pending[0], self._pending[1]
        if first & 0x0F != 8 or first >> 4 > 7 or (first << 8 | second) % 31:
            self._bits = -zlib.MAX_WBITS
            self._inflate = zlib.decompressobj(self._bits)
        return True
