"""Reads the tokens of a shard again, when they are to be fetched."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from ..compression import CompressedDataError
from ..errors import InputChangedError
from ..records import Shard
from .rows import Lines, Token, check
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
        self._raw = file.raw()
        self._lines = None if file.seekable else self._from_the_beginning()

    def read(self, shard: Shard) -> list[Token]:
        """The sendable tokens of a shard, in order, including duplicates.

        Raises:
            InputChangedError: they differ from those that `scan` read.
            InputError: the file cannot be read.
        """
        tokens = []
        try:
            for row in self._file.columns.rows(self._lines_from(shard.offset), shard.first):
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
        self._raw.close()

    def _lines_from(self, offset: int) -> Lines:
        if self._lines is None:
            self._raw.seek(offset)
            return Lines(lambda: self._raw.read(CHUNK), offset)
        if offset < self._lines.position:
            self._raw.close()
            self._raw = self._file.raw()
            self._lines = self._from_the_beginning()
        self._lines.starts.clear()
        self._lines.skip_to(offset)
        return self._lines

    def _from_the_beginning(self) -> Lines:
        content = self._file.content_of(self._raw)
        return Lines(content.read, content.position)


def identity(token: Token) -> bytes:
    """The key for finding duplicates: instance and token, separated by a character that neither can contain."""
    return f"{token.instance or ''}\n{token.token.reveal()}".encode()


def shard_digest(identities: Iterable[bytes], key: bytes) -> str:
    """A keyed hash of tokens in order, as 32 hexadecimal digits. Tokens hold no line breaks, so these separate them."""
    return blake2b(b"\n".join(identities), key=key, digest_size=16, person=_PURPOSE).hexdigest()
