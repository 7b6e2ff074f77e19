"""An answer that a store cannot hold: its token counts as failed, and the others of its shard go on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import msgspec
from attrs import evolve

from .compression import Compression
from .errors import UnfitAnswerError
from .files import cannot_write
from .records import Failure, Finished
from .spool import Spool
from .stores.answer_files import read_lines

_BATCH = 100
"""Lines that are copied at once."""


class _Meta(msgspec.Struct):
    status: int
    attempts: int


class _Line(msgspec.Struct):
    line: int
    meta: _Meta
    key: Any = None
    instance: str | None = None


_read = msgspec.json.Decoder(_Line).decode


def without(finished: Finished, unfit: UnfitAnswerError, compression: Compression) -> Finished:
    """The shard again, with a spool that lacks one answer, and a failure in its place.

    Raises:
        StoreError: the spool cannot be read, or written anew.
        UnfitAnswerError: it has no such answer: the same error again, which ends the job.
    """
    path = finished.spool
    found: list[_Line] = []

    def others() -> Iterator[bytes]:
        for text in read_lines(path, compression):
            head = _read(text)
            if head.line == unfit.line:
                found.append(head)
            else:
                yield text

    spool = Spool(path.with_name(f"{path.name}.fit"), compression)
    try:
        lines = others()
        for first in lines:
            spool.write([first, *islice(lines, _BATCH)])
        written = spool.finish()
    finally:
        spool.abandon()
    if not found:
        raise unfit
    try:
        os.replace(spool.path, path)
    except OSError as error:
        problem = cannot_write(path, error)
    else:
        failures = chain(finished.failures, [_failure(found[0], unfit)])
        return evolve(finished, written=written, failures=tuple(sorted(failures, key=lambda failure: failure.line)))
    raise problem


def _failure(answer: _Line, unfit: UnfitAnswerError) -> Failure:
    return Failure(
        unfit.line,
        "final",
        type(unfit).__name__,
        unfit.message,
        key=answer.key,
        status=answer.meta.status,
        attempts=answer.meta.attempts,
        instance=answer.instance,
    )
