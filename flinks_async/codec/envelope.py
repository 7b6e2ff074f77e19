"""The envelope of an answer: its code, status, message and request id. The case of the keys does not matter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, cast

from ..models import AccountsDetail, PartnerAccessResponse
from ..schema import DEFAULT_WIRE_STATE, unknown_fields
from ..secret import Secret, redact, repeats
from ..verdict import EMPTY_ENVELOPE, Envelope
from .parse import PARSE_ERRORS, decode_any, without_bom

MAX_ERROR_BODY: Final = 256 * 1024
"""Bytes. A larger body is not parsed, because it is no error envelope."""

UNREADABLE: Final = "UNREADABLE"
"""Replaces a code that cannot be shown. An answer with such a code is still an error, never an empty answer."""

_NAMES: Final = ("flinkscode", "httpstatuscode", "message")
_STATUS: Final = re.compile(r"\s*([1-9][0-9]{2})(?:\.0*)?\s*")
_CODE: Final = re.compile(r"(?!.*[A-Za-z0-9]{24})[A-Za-z0-9_.-]{1,64}")
_ID: Final = re.compile(r"(?!.*[A-Za-z0-9]{33})[A-Za-z0-9_.-]{1,64}")  # 32: a GUID without hyphens


def read_envelope(body: bytes, *hidden: Secret) -> Envelope:
    """The envelope of a body that is not a success. Never raises; unreadable values are None.

    Args:
        hidden: secrets to mask in the message and the request id.
    """
    if not body or len(body) > MAX_ERROR_BODY:
        return EMPTY_ENVELOPE
    try:
        data = decode_any(without_bom(body))
    except PARSE_ERRORS:
        return EMPTY_ENVELOPE
    return _envelope(data, hidden) if isinstance(data, dict) else EMPTY_ENVELOPE


def envelope_of(answer: PartnerAccessResponse, *hidden: Secret) -> Envelope:
    """The envelope of an answer with status 200. It is empty, unless the body contains an error.

    An error is a code, status or message beside `GetAccountsDetail`, or a `FlinksCode` or a status of 400 or more in each
    of its entries, none of which has accounts; the first entry then gives the envelope. A code that is not a short word
    becomes `UNREADABLE`. Without data, so does a status or message that cannot be read.
    """
    if not isinstance(cast(object, answer), PartnerAccessResponse):
        return EMPTY_ENVELOPE  # a user's hook has replaced the answer
    detail = answer.get_accounts_detail
    first = detail[0] if type(detail) is tuple and detail else detail
    if answer._wire is DEFAULT_WIRE_STATE and (
        not first or type(first) is not AccountsDetail or not _may_be_error(first)
    ):
        return EMPTY_ENVELOPE  # the usual case
    extra = unknown_fields(answer)
    if extra:
        found = _envelope({"RequestId": answer.request_id, **extra}, hidden, unreadable=UNREADABLE)
        if found.flinks_code or found.http_status_code or found.message:
            return found
        if not answer.details and any(map(_without_case(extra).get, _NAMES)):
            return Envelope(flinks_code=UNREADABLE, request_id=found.request_id)
    details = answer.details
    if details and all(_is_error(detail) for detail in details):
        first = details[0]
        own = {"HttpStatusCode": first.http_status_code, "RequestId": first.request_id or answer.request_id}
        return _envelope({**own, **unknown_fields(first)}, hidden, unreadable=UNREADABLE)
    return EMPTY_ENVELOPE


def _may_be_error(detail: AccountsDetail) -> bool:
    return _has_error_status(detail) or bool(unknown_fields(detail))


def _is_error(detail: AccountsDetail) -> bool:
    # A user's hook may have replaced the entry by an object of another class.
    if type(detail) is not AccountsDetail or detail.accounts:
        return False
    return _has_error_status(detail) or _without_case(unknown_fields(detail)).get("flinkscode") is not None


def _has_error_status(detail: AccountsDetail) -> bool:
    status = detail.http_status_code
    return status is not None and status >= 400


def _without_case(data: Mapping[str, Any]) -> dict[str, Any]:
    # Without nulls, because of two keys that differ only in case one may have a value.
    return {key.lower(): value for key, value in data.items() if value is not None}


def _envelope(data: Mapping[str, Any], hidden: tuple[Secret, ...], *, unreadable: str | None = None) -> Envelope:
    values = _without_case(data)
    code, request_id = values.get("flinkscode"), values.get("requestid")
    message = values.get("message")
    return Envelope(
        flinks_code=code if _is_id(code, hidden, _CODE) else unreadable if code else None,
        http_status_code=_status(values.get("httpstatuscode")),
        message=redact(message, *hidden, coded=True) if isinstance(message, str) and message else None,
        request_id=_request_id(request_id, hidden),
    )


def _status(value: object) -> int | None:
    if type(value) is int:
        return value if 100 <= value <= 999 else None
    # Other forms are read too, because an error would otherwise pass as a success.
    found = _STATUS.fullmatch(str(value)) if isinstance(value, str | float | Decimal) else None
    return int(found[1]) if found else None


def _request_id(value: object, hidden: tuple[Secret, ...]) -> str | None:
    # A request id is usually a GUID, which `redact` would mask. Users need it for the support of Flinks.
    if _is_id(value, hidden):
        return str(value)
    return redact(value, *hidden, coded=True) if isinstance(value, str) and value else None


def _is_id(value: object, hidden: tuple[Secret, ...], form: re.Pattern[str] = _ID) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None and not repeats(value, *hidden)
