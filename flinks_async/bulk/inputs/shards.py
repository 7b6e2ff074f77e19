"""Reads the tokens of a shard again, when they are to be fetched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from hashlib import blake2b
from typing import BinaryIO, Final, Protocol

from ..compression import CompressedDataError
from ..errors import InputChangedError
from ..records import Shard
from .rows import LineSplitter, Row, Token, check
from .source import CHUNK, InputFile, reason_of

_PURPOSE: Final = b"flinks shard"


class ShardReader:
    """Reads shards in any order. Going back in a compressed or a Parquet file starts from its beginning.

    Args:
        file: holds the tokens.
        key: the same as for `scan`.

    Raises:
        InputError: the file cannot be opened.
    """

    def __init__(self, file: InputFile, key: bytes) -> None:
        self._file = file
        self._key = key
        self._bytes: _Bytes = _Seekable(file.raw()) if file.seekable else _Forward(file)

    def read(self, shard: Shard) -> list[Token]:
        """The sendable tokens of a shard, in order, including duplicates.

        Raises:
            InputChangedError: they differ from those that `scan` read.
            InputError: the file cannot be read.
        """
        tokens = []
        try:
            for row in self._rows(shard):
                if row.line > shard.last:
                    break
                checked = check(row)
                if isinstance(checked, Token):
                    tokens.append(checked)
                if row.line == shard.last:
                    break
            same = shard_digest(map(identity, tokens), self._key) == shard.digest
            reason = "they hold other tokens"
        except (OSError, CompressedDataError) as error:
            same, reason = False, reason_of(error)
        if not same:
            raise InputChangedError(
                f"Lines {shard.first:,} to {shard.last:,} of the file of tokens cannot be read as they were when the job "
                f"was started: {reason}. Put the file back as it was, or start a new job."
            )
        return tokens

    def close(self) -> None:
        """Closes the file. May be called more than once."""
        self._bytes.close()

    def _rows(self, shard: Shard) -> Iterator[Row]:
        parser, splitter = self._file.columns.at(shard.first), LineSplitter()
        for chunk in self._bytes.after(shard.offset):
            yield from parser.feed(splitter.feed(chunk).lines)
        yield from parser.feed(splitter.feed(b"").lines)
        yield from parser.finish()


class _Bytes(Protocol):
    """The bytes of a file, decompressed."""

    def after(self, offset: int) -> Iterator[bytes]:
        """The bytes from this offset on, in pieces."""
        ...

    def close(self) -> None: ...


class _Seekable:
    """A plain file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def after(self, offset: int) -> Iterator[bytes]:
        self._file.seek(offset)
        while chunk := self._file.read(CHUNK):
            yield chunk

    def close(self) -> None:
        self._file.close()


class _Forward:
    """A compressed file, or a Parquet file. Keeps the last two pieces, because the end of a shard is only known after reading past it."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._resources = ExitStack()
        self._start_over()

    def after(self, offset: int) -> Iterator[bytes]:
        if offset < self._start:
            self._start_over()
        while offset > self._start + len(self._before) + len(self._piece):
            if not self._advance():
                return
        yield (self._before + self._piece)[offset - self._start :]
        while self._advance():
            yield self._piece

    def close(self) -> None:
        self._resources.close()

    def _start_over(self) -> None:
        self._resources.close()
        raw = self._resources.enter_context(self._file.raw())
        self._content = self._file.content_of(raw)
        self._start = self._content.position  # of `_before` and `_piece`, which follow each other
        self._before = self._piece = b""

    def _advance(self) -> bool:
        """Reads a piece; False at the end."""
        chunk = self._content.read()
        if chunk:
            self._start += len(self._before)
            self._before, self._piece = self._piece, chunk
        return bool(chunk)


def identity(token: Token) -> bytes:
    """The key for finding duplicates: instance and token, separated by a character that neither can contain."""
    return f"{token.instance or ''}\n{token.token.reveal()}".encode()


def shard_digest(identities: Iterable[bytes], key: bytes) -> str:
    """A keyed hash of tokens in order, as 32 hexadecimal digits. Tokens hold no line breaks, so these separate them."""
    return blake2b(b"\n".join(identities), key=key, digest_size=16, person=_PURPOSE).hexdigest()
