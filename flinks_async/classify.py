"""Classifies answers and errors: the FlinksCode counts first, then the HTTP status.

This module alone knows what an answer means. Retry, governor, errors and reports read its `Verdict`. `error_from` turns an
answer into the error that a caller sees.

Sources: Flinks documents the FlinksCodes for sibling endpoints; that PartnerAccess uses them is inferred. Throttling is
documented as 401 with TOO_MANY_REQUESTS. Statuses follow RFC 9110, and Cloudflare's documentation for 520 to 526.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final
from urllib.parse import urlsplit

from . import errors as e
from .checks import counted
from .clock import Clock
from .config import THROTTLE_STATUSES
from .endpoint import OTHER_HEADER_FORMS, WHERE_SECRETS_COME_FROM
from .messages import Request, Response
from .secret import fingerprint, redact
from .verdict import EMPTY_ENVELOPE, OK, Envelope, Kind, Verdict

_BY_CODE: Final = {
    code: Verdict(kind, code, error)
    for kind, error, codes in (
        (Kind.THROTTLED, e.RateLimitedError, "TOO_MANY_REQUESTS"),
        (Kind.TRANSIENT, e.ServerError, "RETRY_LATER AGGREGATION_ERROR CARD_IN_USE CONCURRENT_SESSION"),
        (Kind.PENDING, e.PendingError, "OPERATION_PENDING OPERATION_DISPATCHED"),
        (Kind.REFUSED, e.AuthenticationError, "UNAUTHORIZED ACCESS_DENIED"),
        (
            Kind.FINAL,
            e.BadRequestError,
            "SESSION_NONEXISTENT SESSION_EXPIRED INVALID_LOGIN DISABLED_LOGIN INVALID_REQUEST DISABLED_INSTITUTION",
        ),
    )
    for code in codes.split()
}

_BY_STATUS: Final[tuple[tuple[Collection[int], Kind, type[e.FlinksError]], ...]] = (
    ({202}, Kind.PENDING, e.PendingError),
    ({401, 403}, Kind.REFUSED, e.AuthenticationError),
    ({407}, Kind.FINAL, e.ProxyError),
    ({404, 410}, Kind.FINAL, e.NotFoundError),
    ({408, 425, 500, 502, 503, 504, *range(520, 527)}, Kind.TRANSIENT, e.ServerError),
    (range(300, 400), Kind.FINAL, e.RedirectError),
    (range(400, 500), Kind.FINAL, e.BadRequestError),
    (range(500, 600), Kind.FINAL, e.ServerError),
)
"""The first entry that has the status counts."""


def _by_status(status: int) -> Verdict:
    if status == 200:
        return OK
    for statuses, kind, error in _BY_STATUS:
        if status in statuses:
            return Verdict(kind, f"http_{status}", error)
    # 101, 204, 205, 206, 299: valid HTTP, but no answer to this request.
    return Verdict(Kind.FINAL, f"http_{status}", e.APIStatusError)


def classify_response(
    status: int, envelope: Envelope = EMPTY_ENVELOPE, throttle_statuses: frozenset[int] = THROTTLE_STATUSES
) -> Verdict:
    """The verdict on a response. An error inside the body of a 200 wins over its status.

    Args:
        throttle_statuses: `Retry.throttle_statuses`; a known FlinksCode wins over them.
    """
    code = envelope.flinks_code
    if status == 200 and envelope.http_status_code is not None:
        status = envelope.http_status_code
    if code is None:
        return _throttled(f"http_{status}") if status in throttle_statuses else _by_status(status)
    known = _BY_CODE.get(code.upper())
    if known is not None:
        return known
    if status in throttle_statuses:
        return _throttled(code)
    verdict = _by_status(status)
    if verdict.kind is Kind.OK:  # a success with an unknown code
        return Verdict(Kind.FINAL, code, e.BadRequestError)
    return Verdict(verdict.kind, code, verdict.error)


def _throttled(reason: str) -> Verdict:
    return Verdict(Kind.THROTTLED, reason, e.RateLimitedError)


def verdict_of(response: Response, throttle_statuses: frozenset[int] = THROTTLE_STATUSES) -> Verdict:
    """The verdict of a response. A response made by a user's middleware may have none; it is classified now."""
    return response.verdict or classify_response(response.status, response.envelope, throttle_statuses)


_BY_ERROR: Final[tuple[tuple[type[e.FlinksError], Kind], ...]] = (
    (e.StaleConnectionError, Kind.STALE),
    (e.CertificateError, Kind.FINAL),
    (e.ProxyError, Kind.TRANSIENT),
    (e.TransportError, Kind.TRANSIENT),
    (e.ProtocolError, Kind.BROKEN),
    (e.EmptyBodyError, Kind.MALFORMED),
    (e.JSONLimitError, Kind.FINAL),
    (e.NotJSONError, Kind.MALFORMED),
    (e.PendingError, Kind.PENDING),
    (e.AuthenticationError, Kind.REFUSED),
    (e.RateLimitedError, Kind.THROTTLED),
    (e.ServerError, Kind.TRANSIENT),
)


def classify_error(error: e.FlinksError) -> Verdict:
    """The verdict on an error that the chain raised."""
    cls = type(error)
    for base, kind in _BY_ERROR:
        if issubclass(cls, base):
            # 407: the proxy wants credentials, so a retry does not help.
            return Verdict(Kind.FINAL if error.status == 407 else kind, cls.__name__, cls)
    return Verdict(Kind.FINAL, cls.__name__, cls)


def outcome_line(request: Request, response: Response) -> str:
    """Which host answered what, for example `x-api.private.fin.ag answered 500 RETRY_LATER`."""
    code = response.envelope.flinks_code
    return f"{request.endpoint.host} answered {response.status}{f' {code}' if code else ''}"


def error_from(request: Request, response: Response, verdict: Verdict, clock: Clock) -> e.FlinksError:
    """The error that a response becomes."""
    envelope = response.envelope
    cls = verdict.error or e.APIStatusError
    fields: dict[str, Any] = {
        "status": response.status,
        "flinks_code": envelope.flinks_code,
        "server_message": envelope.message,
        "request_id": envelope.request_id,
        "retry_after": response.retry_after(clock),
    }
    text = outcome_line(request, response)
    if cls is e.AuthenticationError:
        text += f": the AuthSecret is refused. {WHERE_SECRETS_COME_FROM}. {OTHER_HEADER_FORMS}"
    elif cls is e.RedirectError:
        fields["location_host"] = target = _location_host(response, request)
        text += f", a redirect to {target or 'nowhere'}; redirects are not followed (is base_url right?)"
    elif cls is e.PendingError:
        text += ": accepted, but there is no data yet; ask again later"
    elif cls is e.ProxyError:
        text += ": the proxy wants credentials (Connection.proxy may hold them)"
    elif envelope.message is not None:
        text += f": {envelope.message}"
    return cls(text, **fields)


def _location_host(response: Response, request: Request) -> str | None:
    try:
        host = urlsplit(response.headers.get("Location", "")).hostname
    except ValueError:
        return None
    # The server may repeat the token or the secret in the host name.
    return redact(host, request.token, request.call.secret, limit=100) if host else None


def deadline_error(request: Request, timeout: float | None, now: float) -> e.DeadlineExceededError:
    """The error of a call that got no answer before its deadline."""
    call, host = request.call, request.endpoint.host
    why = call.problem or ("" if call.attempts else call.local.governor.why_held(now))
    sent = f"{counted(call.attempts, 'attempt')} sent{f'; {why}' if why else ''}"
    return e.DeadlineExceededError(f"no answer from {host} within {timeout:g} s ({sent})")


# Errors that end a call between attempts. Their cause is the error of the last attempt, if there was one.
_GIVEN_UP: Final = (e.CircuitOpenError, e.DeadlineExceededError, e.QuotaExhaustedError)


def complete(problem: e.FlinksError, request: Request, now: float) -> None:
    """Adds to the error of a call what is known of the call, and drops the frames of this package."""
    call = request.call
    problem.host = request.endpoint.host
    problem.attempts = call.attempts
    problem.elapsed = now - call.started
    problem.token_fingerprint = fingerprint(request.token)
    problem.call_id = call.id
    e.drop_internal_frames(problem)
    if isinstance(problem, _GIVEN_UP) and problem is not call.failure and problem.__cause__ is None:
        problem.__cause__ = call.failure
