"""Failed tokens as the ledger keeps them: from an error, or from an answer that a store cannot hold.

An answer that does not fit is taken out of its shard: its token counts as failed, and the other answers of the shard are
stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, Final

from attrs import evolve

from ..classify import classify_error, classify_response
from ..errors import (
    CircuitOpenError,
    DeadlineExceededError,
    FlinksError,
    InvalidTokenError,
    PendingError,
    QuotaExhaustedError,
    ServerError,
)
from ..verdict import Envelope, Kind
from .compression import Compression
from .errors import UnfitAnswerError
from .files import cannot_write
from .records import Failure, FailureKind, Finished, key_from_json
from .rules import meets_every_token
from .spool import Spool, SpoolLine, read_spool_line
from .stores.answer_files import read_lines

_OUT_OF_TIME: Final = (DeadlineExceededError, QuotaExhaustedError, CircuitOpenError, PendingError)

_WILL_NOT_CHANGE: Final = (Kind.FINAL, Kind.REFUSED)


def failure_kind(error: FlinksError) -> FailureKind:
    """`exhausted` if another run may succeed, `final` if it will not, `invalid` if nothing can be sent."""
    if isinstance(error, InvalidTokenError):
        return "invalid"
    if isinstance(error, _OUT_OF_TIME) or meets_every_token(error):
        return "exhausted"
    verdict = classify_error(error)  # by its class, because `Retry.throttle_statuses` are not known here
    if (
        isinstance(error, ServerError) and error.status is not None and error.status >= 500
    ):  # a 501 is final, a 503 is not
        verdict = classify_response(error.status, Envelope(flinks_code=error.flinks_code))
    return "final" if verdict.kind in _WILL_NOT_CHANGE else "exhausted"


def failure_of(
    error: FlinksError, line: int, *, key: Any = None, instance: str | None = None, token_fingerprint: str | None = None
) -> Failure:
    """A failed token as a record."""
    return Failure(
        line,
        failure_kind(error),
        type(error).__name__,
        error.message,
        key=key,
        token_fingerprint=token_fingerprint,
        flinks_code=error.flinks_code,
        status=error.status,
        attempts=error.attempts or 0,
        instance=instance,
    )


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
        key=key_from_json(answer.key),
        status=answer.meta.status,
        attempts=answer.meta.attempts,
        instance=answer.instance,
    )
