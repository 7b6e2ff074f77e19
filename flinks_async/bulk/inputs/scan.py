"""Reads a token file once before anything is sent: counts its lines, finds duplicates, and cuts it into shards.

`DuplicateFinder` finds duplicate tokens exactly, with little memory, and without writing a token to the disk.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import Final, Protocol, runtime_checkable

from attrs import field, frozen

from ... import checks
from ...limits.notices import log_fields
from ...secret import fingerprint
from ..errors import InputError
from ..files import create, descriptor, make_folder, open_to_write, write_all, writing
from ..records import Failure, Shard
from .rows import NO_KEY, Lines, Row, SkippedLine, SkipReason, check
from .source import InputFile, identity, reading, shard_digest

_HASH_BUCKETS: Final = 256
_HASH_RECORD: Final = Struct(">16sQ")
_BUFFER: Final = 64 * 1024
_BLOCK: Final = 4096 * _HASH_RECORD.size
_AT_ONCE: Final = 4 * 1024 * 1024


class DuplicateFinder:
    """Receives the bytes of each token with its line, and reports the duplicates afterwards.

    A token takes 24 bytes on the disk: a 16-byte BLAKE2b hash, whose key is random and never stored, and its line. The
    first byte of a hash selects one of 256 buckets, and each bucket is searched separately. The probability that any two
    of a billion different tokens have the same hash is 1.5 : 10^21 (n² / 2¹²⁹).

    Memory is at most about 50 MB: 16 MB of buffers while tokens are added, then the 4 MB of hashes that are compared at
    once, as Python objects. A larger bucket (from 40 million tokens on) is read several times.

    Args:
        folder: for the buckets. Its content is removed; `close` removes the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = secrets.token_bytes(32)
        self._buffers = [bytearray() for _ in range(_HASH_BUCKETS)]
        self._sizes = [0] * _HASH_BUCKETS  # of the files
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)

    def add(self, identity: bytes, line: int) -> None:
        """Adds a token. Lines must be in ascending order."""
        digest = blake2b(identity, key=self._key, digest_size=16).digest()
        number = digest[0]
        buffer = self._buffers[number]
        buffer += _HASH_RECORD.pack(digest, line)
        if len(buffer) >= _BUFFER:
            self._flush(number)

    def found(self) -> Iterator[tuple[int, int]]:
        """(line, line of the first occurrence) of each duplicate, in no particular order."""
        for number in range(_HASH_BUCKETS):
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
        with writing(path):
            opened = open_to_write(path, os.O_APPEND) if self._sizes[number] else create(path)
            with descriptor(opened) as file:
                write_all(file, bytes(buffer))
        self._sizes[number] += len(buffer)
        buffer.clear()

    def _records(self, number: int) -> Iterator[tuple[bytes, int]]:
        path = self._path(number)
        if self._sizes[number]:
            with writing(path), open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    yield from _HASH_RECORD.iter_unpack(block)
        yield from _HASH_RECORD.iter_unpack(self._buffers[number])


_BUCKETS: Final = "duplicates"
_RECORD: Final = Struct(">QQQQ16s")  # of a shard: first, last, offset, sendable tokens, digest

NO_TOKENS: Final = "The file of tokens holds no tokens."

_log: Final = logging.getLogger("flinks_async.bulk")
_PROGRESS_EVERY: Final = 1000
"""Lines."""

MOST_INSTANCES: Final = 1000
"""A column with more distinct values does not hold instances."""


@runtime_checkable
class PlanSink(Protocol):
    """Receives the result of a scan: invalid lines in order, then duplicates in any order, then shards in order."""

    def invalid(self, failure: Failure, /) -> None: ...

    def duplicate(self, line: int, first: int, /) -> None:
        """A line whose token came before, in the line `first`."""
        ...

    def shard(self, shard: Shard, /) -> None: ...


@frozen
class Scanned:
    """Counts of a file's lines. Each line is a token to fetch, a duplicate, invalid, blank, the header, or the continuation
    of a quoted CSV field.

    Attributes:
        shards: includes those that hold only duplicates.
        size: bytes, decompressed.
        instances: sendable tokens of each instance, including duplicates; empty without an instance column.
    """

    lines: int
    tokens: int
    duplicates: int
    invalid: int
    blank: int
    header: int
    continued: int
    shards: int
    size: int
    instances: dict[str, int] = field(factory=dict)


def scan(
    file: InputFile,
    *,
    key: bytes,
    shard_size: int,
    scratch: Path,
    sink: PlanSink,
    progress: Callable[[int, int], object] | None = None,
) -> Scanned:
    """Reads a file once.

    Needs 24 bytes in `scratch` for each token, and at most some 50 MB of memory (see `DuplicateFinder`), about 100 bytes
    for each shard, and one shard's tokens.

    Args:
        file: holds the tokens.
        key: of the job, at most 64 bytes; used for fingerprints and digests.
        shard_size: sendable tokens of a shard, including duplicates.
        scratch: a folder for temporary files.
        sink: receives the result.
        progress: called repeatedly with the bytes of the (compressed) file that were read, and the total.

    Raises:
        InputError: the file cannot be read to its end (the message names the last line that was read), has no header
            row, or lacks a column.
        InputChangedError: the file was changed while it was read.
        StoreError: the disk is full.
    """
    checks.kind("file", file, InputFile)
    checks.kind("key", key, bytes)
    checks.kind("sink", sink, PlanSink)
    checks.function_or_none("progress", progress)
    scratch = checks.path("scratch", scratch)
    checks.integer("shard_size", shard_size, 1)
    with file.content() as content, closing(DuplicateFinder(scratch / _BUCKETS)) as duplicates:
        lines = Lines(content.read, content.position)
        scanner = _Scanner(lines, key, shard_size, sink, duplicates)
        with reading(lines):
            for row in file.parser().rows(lines):
                scanner.take(row)
                if progress is not None and row.line % _PROGRESS_EVERY == 0:
                    progress(content.raw_position, file.size)
        if progress is not None:
            progress(content.raw_position, file.size)
        file.refuse_change()
        scanned = scanner.finish()
    if not scanned.tokens:
        _log.warning(NO_TOKENS, extra=log_fields("NoTokens"))
    return scanned


class _Scanner:
    """Counts lines, and cuts shards."""

    def __init__(
        self,
        lines: Lines,
        key: bytes,
        shard_size: int,
        sink: PlanSink,
        duplicates: DuplicateFinder,
    ) -> None:
        self._lines = lines
        self._key = key
        self._shard_size = shard_size
        self._sink = sink
        self._duplicates = duplicates
        self._cut_off = bytearray()  # packed shards: 48 bytes each
        self._tokens = 0
        self._notes: Counter[SkipReason] = Counter()
        self._instances: Counter[str] = Counter()
        self._shard: list[bytes] = []  # identities of the tokens of the shard that is not full yet
        self._first = self._last = self._offset = 0  # of that shard

    def take(self, row: Row) -> None:
        offset = self._lines.starts.popleft()  # each line is returned once, in order
        checked = check(row)
        if isinstance(checked, SkippedLine):
            self._note(checked)
            return
        if checked.instance is not None:
            self._count(checked.instance)
        who = identity(checked)
        self._duplicates.add(who, checked.line)
        if not self._shard:
            self._first, self._offset = checked.line, offset
        self._shard.append(who)
        self._last = checked.line
        if len(self._shard) >= self._shard_size:
            self._cut()

    def finish(self) -> Scanned:
        """Passes duplicates and shards to the sink."""
        if self._shard:
            self._cut()
        firsts = [first for first, *_ in _RECORD.iter_unpack(self._cut_off)]
        duplicates: Counter[int] = Counter()
        for line, first in self._duplicates.found():
            duplicates[bisect_right(firsts, line) - 1] += 1
            self._sink.duplicate(line, first)
        for id_, (first, last, offset, sendable, digest) in enumerate(_RECORD.iter_unpack(self._cut_off)):
            self._sink.shard(Shard(id_, first, last, offset, sendable - duplicates[id_], digest.hex()))
        notes = self._notes
        return Scanned(
            lines=self._lines.count,
            tokens=self._tokens - duplicates.total(),
            duplicates=duplicates.total(),
            invalid=notes["invalid"],
            blank=notes["blank"],
            header=notes["header"],
            continued=notes["continued"],
            shards=len(firsts),
            size=self._lines.position,
            instances=dict(self._instances),
        )

    def _count(self, instance: str) -> None:
        self._instances[instance] += 1
        if len(self._instances) > MOST_INSTANCES:
            raise InputError(
                f"The instance column names more than {MOST_INSTANCES:,} instances by line {self._lines.count:,}. "
                "Name the right column with `instance_column`.",
                field="instance_column",
            )

    def _cut(self) -> None:
        digest = bytes.fromhex(shard_digest(self._shard, self._key))
        self._cut_off += _RECORD.pack(self._first, self._last, self._offset, len(self._shard), digest)
        self._tokens += len(self._shard)
        self._shard = []

    def _note(self, note: SkippedLine) -> None:
        self._notes[note.kind] += 1
        if note.kind == "invalid":
            self._sink.invalid(
                Failure(
                    line=note.line,
                    kind="invalid",
                    error="InvalidTokenError",
                    message=note.message,
                    key=None if note.key is NO_KEY else note.key,
                    token_fingerprint=fingerprint(note.token, key=self._key) if note.token else None,
                    instance=note.instance,
                )
            )
