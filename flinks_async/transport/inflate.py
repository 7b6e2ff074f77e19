"""Inflates a body as it arrives, with a cap on its size and a check that the stream is complete.

aiohttp's own decompression accepts a truncated body and has no cap.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from ..errors import ProtocolError, ReadError, ResponseTooLargeError

STEP: Final = 64 * 1024
"""Maximum output, in bytes, of one zlib call."""

TURN: Final = 32
"""zlib calls, each well below a millisecond, between two turns of the event loop."""

MAX_CODINGS: Final = 3

MAX_MEMBERS: Final = 10_000
"""Maximum number of gzip members. Our own limit: tools that write several members put at least some KB into each."""

_NONE: Final = ("", "identity", "none", "utf-8")

_GZIP: Final = 16 + zlib.MAX_WBITS


class Inflater:
    """Turns the chunks of an encoded body into plain chunks, in small pieces, so that the event loop can run in between.

        inflater = Inflater(headers.get("Content-Encoding", ""), limit)
        async for chunk in stream:
            parts += inflater.steps(chunk)
        inflater.finish()

    Args:
        encoding: the value of Content-Encoding: identity, gzip, deflate, or up to three of them separated by commas.
            `none` and `utf-8`, which some servers send, mean identity.
        limit: maximum bytes of output, and also of input and between two encodings, because an encoding can consume input
            without end and produce nothing.
        lenient: treat a body with an unsupported encoding or invalid data as empty, for answers whose status is enough.

    Raises:
        ProtocolError: the encoding is not supported, the data is invalid, or it has more than `MAX_MEMBERS` members.
        ReadError: from `finish()`, the body ended early.
        ResponseTooLargeError: input or output exceeded `limit` bytes. At most one step more was produced.
    """

    __slots__ = ("_calls", "_codings", "_consumed", "_lenient", "_limit", "_total", "_unreadable")

    def __init__(self, encoding: str, limit: int, *, lenient: bool = False) -> None:
        self._codings: list[_Zlib] = []
        self._limit = limit
        self._lenient = lenient
        self._unreadable = False
        self._total = self._consumed = self._calls = 0
        try:
            self._codings = _codings(encoding)
        except ProtocolError:
            if not lenient:
                raise
            self._unreadable = True

    def steps(self, chunk: bytes) -> Iterator[bytes]:
        """The plain bytes of a chunk, in pieces. After an empty piece, give the event loop a turn."""
        if not self._codings:
            self._count(len(chunk))
            yield b"" if self._unreadable else chunk
            return
        self._consumed += len(chunk)
        if self._consumed > self._limit + STEP:  # incompressible data grows a little
            raise ResponseTooLargeError(f"the encoded body is larger than {self._limit} bytes")
        codings, limit = self._codings, self._limit
        last, begin = len(codings) - 1, 0
        try:
            while begin < len(chunk):  # in parts, because zlib copies its unconsumed input each time
                codings[0].push(chunk[begin : begin + STEP])
                begin += STEP
                stage = 0
                # Each piece passes all codings before the next one is produced, so that nested bombs stay small too.
                while stage >= 0:
                    coding = codings[stage]
                    piece = coding.pull()
                    self._calls += 1
                    if self._calls % TURN == 0:
                        yield b""
                    if piece is None:
                        stage -= 1
                    elif piece and stage < last:
                        coding.produced += len(piece)
                        if coding.produced > limit + STEP:
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

    def finish(self) -> None:
        """Raises `ReadError` if the body ended early. Otherwise, `steps` has returned all of it."""
        for coding in self._codings:
            coding.finish()

    def _count(self, size: int) -> None:
        self._total += size
        if self._total > self._limit:
            raise ResponseTooLargeError(f"the body is larger than Limits.max_body = {self._limit} bytes")


def _codings(encoding: str) -> list[_Zlib]:
    """The codings in the order in which they are removed."""
    names = [name for part in encoding.split(",") if (name := part.strip().lower()) not in _NONE]
    if len(names) > MAX_CODINGS:
        raise ProtocolError(f"the body is encoded more than {MAX_CODINGS} times")
    return [_coding(name) for name in reversed(names)]


def _coding(name: str) -> _Zlib:
    if name in ("gzip", "x-gzip"):
        return _Zlib(_GZIP)
    if name == "deflate":
        return _Zlib(zlib.MAX_WBITS)
    # The server chose the name, so only well-known names are repeated in the message.
    known = name if name in ("br", "zstd", "compress", "x-compress", "dcb", "dcz") else "unknown"
    raise ProtocolError(f"the body has a Content-Encoding that was not requested ({known})")


class _Zlib:
    """One coding. gzip may have several members and zero padding after them; deflate may lack the zlib header."""

    __slots__ = ("_bits", "_inflate", "_members", "_pending", "_started", "produced")

    def __init__(self, bits: int) -> None:
        self.produced = 0
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
            raise ProtocolError("the body does not match its Content-Encoding")
        self._pending = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        return piece if piece or self._inflate.eof else None

    def finish(self) -> None:
        if self._started and not self._inflate.eof:
            raise ReadError("the body is truncated")
        if self._pending:  # a first byte of deflate without its second one
            raise ReadError("the body is truncated")

    def _next_member(self) -> bool:
        if self._bits == _GZIP:
            self._pending = self._pending.lstrip(b"\0")
        if not self._pending:
            return False
        if self._bits != _GZIP:
            raise ProtocolError("the body continues after the end of its Content-Encoding")
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
