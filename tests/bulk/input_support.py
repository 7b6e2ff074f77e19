"""Files of tokens for tests, and a sink that keeps what a scan finds."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from flinks_async.bulk.compression import Compression, compressor
from flinks_async.bulk.inputs import InputFile, Layout, Scanned, ShardReader, Token, scan
from flinks_async.bulk.records import Failure, Shard

KEY = b"k" * 32
ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"


class Sink:
    """Keeps everything."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self.duplicates: dict[int, int] = {}
        self.shards: list[Shard] = []

    def invalid(self, failure: Failure) -> None:
        self.failures.append(failure)

    def duplicate(self, line: int, first: int) -> None:
        self.duplicates[line] = first

    def shard(self, shard: Shard) -> None:
        self.shards.append(shard)


def compressed(data: bytes, kind: Compression) -> bytes:
    stream = compressor(kind)
    return stream.compress(data) + stream.flush()


def write(path: Path, content: bytes | str, kind: Compression = "none") -> Path:
    path.write_bytes(compressed(content.encode() if isinstance(content, str) else content, kind))
    return path


def scanned(file: InputFile, scratch: Path, shard_size: int = 2) -> tuple[Scanned, Sink]:
    sink = Sink()
    return scan(file, key=KEY, shard_size=shard_size, scratch=scratch, sink=sink), sink


def read_all(file: InputFile, sink: Sink) -> list[Token]:
    """The tokens of all shards."""
    with closing(ShardReader(file, KEY)) as reader:
        return [token for shard in sink.shards for token in reader.read(shard)]


def plain(tokens: list[Token]) -> list[tuple[int, str]]:
    return [(token.line, token.token.reveal()) for token in tokens]


COLUMNS = Layout(column="t", key_column="k", instance_column="i")
