"""Errors of tokens as the ledger keeps them. Whether an error stops the run is decided in `rules`."""

from __future__ import annotations

from typing import Any, Final

from ..classify import classify_error, classify_response
from ..errors import (
    APIStatusError,
    CircuitOpenError,
    DeadlineExceededError,
    FlinksError,
    InvalidTokenError,
    PendingError,
    QuotaExhaustedError,
)
from ..verdict import Envelope, Kind
from .records import Failure, FailureKind
from .rules import meets_every_token

_OUT_OF_TIME: Final = (DeadlineExceededError, QuotaExhaustedError, CircuitOpenError, PendingError)
_WILL_NOT_CHANGE: Final = (Kind.FINAL, Kind.REFUSED)


def failure_kind(error: FlinksError) -> FailureKind:
    """`exhausted` if another run may succeed, `final` if it will not, `invalid` if nothing can be sent."""
    if isinstance(error, InvalidTokenError):
        return "invalid"
    if isinstance(error, _OUT_OF_TIME) or meets_every_token(error):
        return "exhausted"
    verdict = classify_error(error)
    if isinstance(error, APIStatusError) and error.status is not None:
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
