"""Removes an answer that a store cannot hold from its shard: the token counts as failed, the others continue."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, islice
from typing import Final

import msgspec
from attrs import evolve

from .compression import Compression
from .errors import UnfitAnswerError
from .files import cannot_write
from .records import Failure, Finished
from .spool import Spool, SpoolLine, read_spool_line
from .stores.answer_files import read_lines

_BATCH: Final = 100
"""Lines that are copied at once."""


def without(finished: Finished, unfit: UnfitAnswerError, compression: Compression) -> Finished:
    """The shard with a spool that lacks the unfit answer, and with a failure for its token.

    Raises:
        StoreError: the spool cannot be read or rewritten.
        UnfitAnswerError: the spool has no such answer. It is the same error, and it ends the job.
    """
    path = finished.spool
    found: list[SpoolLine] = []

    def others() -> Iterator[bytes]:
        for text in read_lines(path, compression):
            head = read_spool_line(text)
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


def _failure(answer: SpoolLine, unfit: UnfitAnswerError) -> Failure:
    return Failure(
        unfit.line,
        "final",
        type(unfit).__name__,
        unfit.message,
        key=msgspec.json.decode(answer.key),
        status=answer.meta.status,
        attempts=answer.meta.attempts,
        instance=answer.instance,
    )
