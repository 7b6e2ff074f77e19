"""Finds duplicate tokens: exactly, with little memory, and without writing a token to the disk."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import Final

from ..files import PRIVATE_FILE, cannot_write, make_folder, write_all

_BUCKETS: Final = 256
_RECORD: Final = Struct(">16sQ")
_BUFFER: Final = 64 * 1024
_BLOCK: Final = 4096 * _RECORD.size
_AT_ONCE: Final = 4 * 1024 * 1024


class DuplicateFinder:
    """Receives the bytes of each token with its line, and reports the duplicates afterwards.

    A token takes 24 bytes on the disk: a 16-byte BLAKE2b hash, whose key is random and never stored, and its line. The
    first byte of a hash selects one of 256 buckets, and each bucket is searched separately. The probability that any two
    of a billion different tokens have the same hash is 1.5 : 10^21 (n² / 2¹²⁹).

    Memory is at most about 50 MB: 16 MB of buffers while tokens are added, then the 4 MB of hashes that are compared at
    once, as Python objects. A larger bucket (from 40 million tokens on) is read several times.

    Args:
        folder: for the buckets. What it holds is removed, and `close` removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = secrets.token_bytes(32)
        self._buffers = [bytearray() for _ in range(_BUCKETS)]
        self._sizes = [0] * _BUCKETS  # of the files
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)

    def add(self, identity: bytes, line: int) -> None:
        """Adds a token. Lines must be in ascending order.

        Raises:
            StoreError: the disk is full.
        """
        digest = blake2b(identity, key=self._key, digest_size=16).digest()
        number = digest[0]
        buffer = self._buffers[number]
        buffer += _RECORD.pack(digest, line)
        if len(buffer) >= _BUFFER:
            self._flush(number)

    def found(self) -> Iterator[tuple[int, int]]:
        """(line, line of the first occurrence) of each duplicate, in no particular order.

        Raises:
            StoreError: the disk cannot be read.
        """
        for number in range(_BUCKETS):
            turns = -(-self._sizes[number] // _AT_ONCE) or 1
            for turn in range(turns):
                first_lines: dict[bytes, int] = {}
                for digest, line in self._records(number):
                    if turns > 1 and int.from_bytes(digest[1:5], "big") % turns != turn:
                        continue
                    first = first_lines.setdefault(digest, line)
                    if first != line:
                        yield line, first

    def close(self) -> None:
        """Removes the files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"bucket-{number:03}"

    def _flush(self, number: int) -> None:
        path, buffer = self._path(number), self._buffers[number]
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            file = os.open(path, flags, PRIVATE_FILE)
            try:
                write_all(file, bytes(buffer))
            finally:
                os.close(file)
        except OSError as error:
            raise cannot_write(path, error) from None
        self._sizes[number] += len(buffer)
        buffer.clear()

    def _records(self, number: int) -> Iterator[tuple[bytes, int]]:
        if self._sizes[number]:
            yield from self._written(number)
        yield from _RECORD.iter_unpack(self._buffers[number])

    def _written(self, number: int) -> Iterator[tuple[bytes, int]]:
        path = self._path(number)
        try:
            with open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    yield from _RECORD.iter_unpack(block)
        except OSError as error:
            raise cannot_write(path, error) from None
