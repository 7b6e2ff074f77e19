"""What an answer says about itself: code, message and request id, whatever the case of the keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, cast

from ..models import DEFAULT_WIRE_STATE, AccountsDetail, PartnerAccessResponse, unknown_fields
from ..secret import Secret, redact, repeats
from ..verdict import EMPTY_ENVELOPE, Envelope
from .parse import PARSE_ERRORS, decode_any, without_bom

MAX_ERROR_BODY: Final = 256 * 1024
"""A larger body is no error envelope; it is not parsed."""

UNREADABLE: Final = "UNREADABLE"
"""Stands for the code of a success that has one which cannot be shown: still an error, never an empty answer."""

_NAMES: Final = ("flinkscode", "httpstatuscode", "message")
_STATUS: Final = re.compile(r"\s*([1-9][0-9]{2})(?:\.0*)?\s*")
_CODE: Final = re.compile(r"(?!.*[A-Za-z0-9]{24})[A-Za-z0-9_.-]{1,64}")
_ID: Final = re.compile(r"(?!.*[A-Za-z0-9]{33})[A-Za-z0-9_.-]{1,64}")  # 32: a GUID without hyphens


def read_envelope(body: bytes, *hidden: Secret) -> Envelope:
    """The envelope of a body that is not a success. Never raises: what cannot be read is None."""
    if not body or len(body) > MAX_ERROR_BODY:
        return EMPTY_ENVELOPE
    try:
        data = decode_any(without_bom(body))
    except PARSE_ERRORS:
        return EMPTY_ENVELOPE
    return _envelope(data, hidden) if isinstance(data, dict) else EMPTY_ENVELOPE


def envelope_of(answer: PartnerAccessResponse, *hidden: Secret) -> Envelope:
    """The envelope of a success: empty, unless the body says inside that it is an error.

    That is a code, status or message beside the data, or a `FlinksCode` or a status from 400 on in every entry of
    `GetAccountsDetail` while none of them has accounts; then the first entry speaks. A code of any other form than a
    short word is `UNREADABLE`, and so is a status or message of another form where there are no data.
    """
    if not isinstance(cast(object, answer), PartnerAccessResponse):
        return EMPTY_ENVELOPE  # a hook of a user has put something else in its place
    detail = answer.get_accounts_detail
    first = detail[0] if type(detail) is tuple and detail else detail
    if answer._wire is DEFAULT_WIRE_STATE and (not first or type(first) is not AccountsDetail or not _says_more(first)):
        return EMPTY_ENVELOPE  # nearly every answer
    extra = unknown_fields(answer)
    if extra:
        found = _envelope({"RequestId": answer.request_id, **extra}, hidden, unreadable=UNREADABLE)
        if found.flinks_code or found.http_status_code or found.message:
            return found
        if not answer.details and any(map(_fold(extra).get, _NAMES)):
            return Envelope(flinks_code=UNREADABLE, request_id=found.request_id)
    details = answer.details
    if details and all(_refuses(detail) for detail in details):
        first = details[0]
        own = {"HttpStatusCode": first.http_status_code, "RequestId": first.request_id or answer.request_id}
        return _envelope({**own, **unknown_fields(first)}, hidden, unreadable=UNREADABLE)
    return EMPTY_ENVELOPE


def _says_more(detail: AccountsDetail) -> bool:
    return _says_no(detail) or bool(unknown_fields(detail))


def _refuses(detail: AccountsDetail) -> bool:
    # A hook of a user may have put something else than our class here.
    if type(detail) is not AccountsDetail or detail.accounts:
        return False
    return _says_no(detail) or _fold(unknown_fields(detail)).get("flinkscode") is not None


def _says_no(detail: AccountsDetail) -> bool:
    status = detail.http_status_code
    return status is not None and status >= 400


def _fold(data: Mapping[str, Any]) -> dict[str, Any]:
    # Without nulls: of two keys that differ in case only, one may say something.
    return {key.lower(): value for key, value in data.items() if value is not None}


def _envelope(data: Mapping[str, Any], hidden: tuple[Secret, ...], *, unreadable: str | None = None) -> Envelope:
    folded = _fold(data)
    code, request_id = folded.get("flinkscode"), folded.get("requestid")
    message = folded.get("message")
    return Envelope(
        flinks_code=code if _is_id(code, hidden, _CODE) else unreadable if code else None,
        http_status_code=_status(folded.get("httpstatuscode")),
        message=redact(message, *hidden, coded=True) if isinstance(message, str) and message else None,
        request_id=_request_id(request_id, hidden),
    )


def _status(value: object) -> int | None:
    if type(value) is int:
        return value if 100 <= value <= 999 else None
    # Read in other forms all the same: else an error would be a success.
    found = _STATUS.fullmatch(str(value)) if isinstance(value, str | float | Decimal) else None
    return int(found[1]) if found else None


def _request_id(value: object, hidden: tuple[Secret, ...]) -> str | None:
    # Usually a GUID, which `redact` would mask, though it is there to be quoted.
    if _is_id(value, hidden):
        return str(value)
    return redact(value, *hidden, coded=True) if isinstance(value, str) and value else None


def _is_id(value: object, hidden: tuple[Secret, ...], form: re.Pattern[str] = _ID) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None and not repeats(value, *hidden)
