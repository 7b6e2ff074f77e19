"""`flinks-async export`: writes the answers of a job to one file of JSONL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import click

from .. import bulk
from ..bulk.compression import Compression, compressor
from ..bulk.inputs import STDIN
from .console import counted, debug_option, say
from .exit_codes import Exit, epilog
from .options import directory_argument
from .output import COMPRESSION, LINES, Command, split_name, to_stdout, whole_file

_PIECE: Final = 256 * 1024


@click.command(cls=Command, epilog=epilog())
@directory_argument
@click.option(
    "--out", metavar="FILE", required=True, help="'-' for standard output; compressed if it ends in .gz or .zst."
)
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
@debug_option
def export(directory: str, out: str, force: bool) -> int:
    """Write the answers of the job in DIR to one file of JSONL, if its store is JSONL.

    The file is outside of DIR, and complete or absent. Lines are in the order of the shards; within a shard in the order of
    arrival. Answers of retried tokens come last.
    """
    lines = bulk.export(directory)
    if out == STDIN:
        for piece in _pieces(lines, "none"):
            to_stdout(piece)
    else:
        with whole_file(out, directory, LINES, force=force) as write:
            for piece in _pieces(lines, COMPRESSION[split_name(out)[1]]):
                write(piece)
        say(f"Written: {out}")
    left = bulk.status(directory).totals.pending
    if left:
        say(f"The job is not done: {counted(left, 'token')} still to be fetched.")
    return Exit.OK


def _pieces(lines: Iterable[bytes], compression: Compression) -> Iterator[bytes]:
    """The content of the file, in pieces large enough for one write."""
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
