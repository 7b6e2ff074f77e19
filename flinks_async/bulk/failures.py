"""Errors of tokens as the ledger keeps them."""

from __future__ import annotations

from typing import Any, Final

from ..classify import classify_error, classify_response
from ..errors import (
    APIStatusError,
    AuthenticationError,
    CertificateError,
    CircuitOpenError,
    ConfigError,
    DeadlineExceededError,
    FlinksError,
    InvalidTokenError,
    JSONLimitError,
    NotJSONError,
    PendingError,
    ProxyError,
    QuotaExhaustedError,
    RedirectError,
    ServerError,
)
from ..verdict import Envelope, Kind
from .records import Failure, FailureKind

# [flinks_async.bulk.blame] Whether an error is one token's, or would meet every token.


_TIME_IS_UP: Final = (DeadlineExceededError, QuotaExhaustedError, CircuitOpenError, PendingError)

_NO_USE: Final = (Kind.FINAL, Kind.REFUSED)


def failure_kind(error: FlinksError) -> FailureKind:
    """`exhausted` if another run may succeed, `final` if it will not, `invalid` if nothing can be sent."""
    if isinstance(error, InvalidTokenError):
        return "invalid"
    if isinstance(error, _TIME_IS_UP) or concerns_all(error):
        return "exhausted"
    verdict = classify_error(error)
    if isinstance(error, APIStatusError) and error.status is not None:
        verdict = classify_response(error.status, Envelope(flinks_code=error.flinks_code))
    return "final" if verdict.kind in _NO_USE else "exhausted"


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


_WHAT_TO_DO: Final[tuple[tuple[type[FlinksError], str], ...]] = (
    (CertificateError, "Have it put right; if its authority is your own, Connection.ca_file names it"),
    (ProxyError, "Give the proxy the credentials that it wants"),
    (ConfigError, "Nothing can be sent until that is put right"),
)


def concerns_all(error: FlinksError) -> bool:
    """It is about the connection or the settings, and was so before the server saw the token.

    A proxy that is down is an outage, and waited for like one; a proxy that wants credentials wants them always.
    """
    return isinstance(error, (ConfigError, CertificateError)) or (isinstance(error, ProxyError) and error.status == 407)


def suspicion(error: FlinksError) -> str | None:
    """What several tokens in a row, answered in this way, mean; None for an answer that is about its token.

    A 4xx is about its token, but for 401, 403 and 407: what an expired token is answered is not documented, and a file may
    begin with many.
    """
    if isinstance(error, AuthenticationError):
        return "refused"
    if isinstance(error, RedirectError):
        return "redirects"
    if isinstance(error, NotJSONError) and not isinstance(error, JSONLimitError):
        return "pages"
    if isinstance(error, ServerError) and error.status is not None:
        verdict = classify_response(error.status, Envelope(flinks_code=error.flinks_code))
        return "cannot" if verdict.kind is Kind.FINAL else None
    return None


def why_all(error: FlinksError, instance: str | None) -> str:
    """Why a job stops for one error that concerns all tokens."""
    advice = next(text for kind, text in _WHAT_TO_DO if isinstance(error, kind))
    return f"{_named(instance)}{error.message}. {advice}"


def why_row(error: FlinksError, instance: str | None, tokens: int) -> str:
    """Why a job stops for the last of several errors in a row."""
    row = f"({tokens} different tokens in a row)"
    if not isinstance(error, AuthenticationError):
        return f"{_named(instance)}{error.message} {row}"
    of = "" if instance is None else f" of the instance {instance!r}"
    why = "" if error.provider_problem is None else f", and {error.provider_problem}"
    return f"the AuthSecret{of} is refused {row}{why}"


def _named(instance: str | None) -> str:
    return "" if instance is None else f"instance {instance!r}: "
