"""`flinks-async export`: the answers of a job as one file of JSONL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import click

from .. import bulk
from ..bulk.compression import Compression, compressor
from .console import debug_option, say
from .exit_codes import Exit, epilog
from .options import directory_argument
from .output import to_stdout, whole_file
from .secret_input import STDIN

_PIECE: Final = 256 * 1024
_COMPRESSION: Final[dict[str, Compression]] = {".gz": "gzip", ".zst": "zstd"}


@click.command(epilog=epilog())
@directory_argument
@click.option(
    "--out", metavar="FILE", required=True, help="'-' for standard output; compressed if it ends in .gz or .zst."
)
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
@debug_option
def export(directory: str, out: str, force: bool) -> int:
    """Write the answers of the job in DIR to one file of JSONL, if its store is of JSONL.

    The file is whole, or not there, and lies outside of DIR. Lines come shard by shard, within a shard as they arrived;
    those of retried tokens come last.
    """
    lines = bulk.export(directory)
    if out == STDIN:
        for piece in _pieces(lines, "none"):
            to_stdout(piece)
        _say_what_is_left(directory)
        return Exit.OK
    with whole_file(out, directory, force=force) as file:
        for piece in _pieces(lines, _COMPRESSION.get(file.path.suffix.lower(), "none")):
            file.write_now(piece)
    say(f"Written: {out}")
    _say_what_is_left(directory)
    return Exit.OK


def _say_what_is_left(directory: str) -> None:
    left = bulk.status(directory).totals.pending
    if left:
        say(f"The job is not done: {left:,} tokens are still to be fetched.")


def _pieces(lines: Iterable[bytes], compression: Compression) -> Iterator[bytes]:
    """The content of the file, in pieces that are worth a write."""
    stream = compressor(compression)
    ready: list[bytes] = []
    size = 0
    for line in lines:
        ready.append(line)
        size += len(line)
        if size >= _PIECE:
            if data := stream.compress(b"".join(ready)):
                yield data
            ready.clear()
            size = 0
    if data := stream.compress(b"".join(ready)) + stream.flush():
        yield data
