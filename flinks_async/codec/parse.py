"""Bytes to plain Python: exact numbers, and every way in which a body is not JSON as one of our errors."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, DecimalException
from typing import Any, Final

import msgspec

from ..errors import DecodeError, EmptyBodyError, NotJSONError
from .plan import TRAPS

EXACT: Final = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=TRAPS)

# Looked for in a page that came instead of JSON. Only words of this list get into an error, nothing of the page.
_HINTS: Final = (
    (b"cloudflare", "Cloudflare"),
    (b"incapsula", "Incapsula"),
    (b"akamai", "Akamai"),
    (b"captcha", "a captcha"),
    (b"maintenance", "maintenance"),
    (b"access denied", "access denied"),
    (b"forbidden", "forbidden"),
    (b"bad gateway", "bad gateway"),
    (b"unavailable", "unavailable"),
    (b"timeout", "timeout"),
    (b"login", "login"),
)

decode_any: Final[Callable[[bytes | msgspec.Raw], Any]] = msgspec.json.Decoder(float_hook=EXACT.create_decimal).decode
"""JSON to dict, list, str, int (of any size), `Decimal`, bool and None."""

BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, DecimalException, ValueError, OverflowError)
"""What `decode_any` raises."""


def without_bom(body: bytes) -> bytes:
    return body[3:] if body.startswith(BOM_UTF8) else body


def why_not_json(body: bytes, error: Exception) -> DecodeError:
    """The error that stands for one of `BROKEN`. It holds nothing of the body."""
    text = body[:4096].strip()
    if not text and not body.strip():
        return EmptyBodyError("the body is empty")
    if text.startswith(b"<"):
        page = body[:65536].lower()
        seen = ", ".join(words for word, words in _HINTS if word in page)
        return NotJSONError(f"the body is a page, not JSON{seen and f' (it mentions {seen})'}")
    if isinstance(error, RecursionError):
        return NotJSONError("the body is JSON that is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return NotJSONError("the body is not valid UTF-8")
    if isinstance(error, (msgspec.ValidationError, DecimalException)):
        return NotJSONError("the body has a number that is out of range")
    # The texts of msgspec's DecodeError are fixed words and a position.
    reason = str(error) if type(error) is msgspec.DecodeError else "malformed"
    return NotJSONError(f"the body is not JSON: {reason.removeprefix('JSON is malformed: ')}")


def parse(body: bytes) -> Any:
    """The whole body at once.

    Raises:
        EmptyBodyError: there is nothing, or only `null`.
        NotJSONError: it is not JSON.
    """
    failure: DecodeError
    try:
        data = decode_any(without_bom(body))
        if data is not None:
            return data
        failure = EmptyBodyError("the body is null")
    except BROKEN as error:
        failure = why_not_json(without_bom(body), error)
    raise failure  # outside of `except`, so that it does not keep the other error, which may hold the body
