"""Bytes to plain Python: exact numbers, limits, every way in which a body is not JSON, as one of our errors, and the envelope."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, DecimalException
from itertools import accumulate
from typing import Any, Final, cast

import msgspec

from ..errors import DecodeError, EmptyBodyError, JSONLimitError, NotJSONError
from ..models import SCHEMA, AccountsDetail, Model, PartnerAccessResponse
from ..schema import DEFAULT_WIRE_STATE, TRAPS, unknown_fields
from ..secret import Secret, redact, repeats
from ..verdict import EMPTY_ENVELOPE, Envelope

EXACT: Final = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=TRAPS)

decode_any: Final[Callable[[bytes | msgspec.Raw], Any]] = msgspec.json.Decoder(float_hook=EXACT.create_decimal).decode
"""JSON to dict, list, str, int (of any size), `Decimal`, bool and None."""

PARSE_ERRORS: Final = (
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
    DecimalException,
    ValueError,
    OverflowError,
)
"""The exceptions of `decode_any`."""

_skip: Final = msgspec.json.Decoder(msgspec.Raw).decode


def without_bom(body: bytes) -> bytes:
    return body[3:] if body.startswith(BOM_UTF8) else body


# --- limits: a small body must not expand to many times its size in memory ---

MAX_DEPTH: Final = 100
"""Levels of an unknown field. Much deeper values can be read, but not copied or pickled."""

MAX_KEYS: Final = 10_000
"""Keys of one object. A documented object has at most 17."""

COUNTED_SIZE: Final = 2 * 1024 * 1024
"""The values of a body are counted if it has more bytes than this."""

MAX_VALUES: Final = 1_000_000
"""Values of an unknown field. A body may have as many, and one more for each `BYTES_PER_VALUE` bytes. At most a sixth of the
values may be objects. A transaction has 8 values in about 160 bytes."""

BYTES_PER_VALUE: Final = 16

_COUNT_CHUNK: Final = 1024 * 1024

CONTAINERS: Final = frozenset({dict, list})


class TooDeep(RecursionError):
    """An unknown field has more than `MAX_DEPTH` levels."""


class TooMany(ValueError):
    """The JSON has more values or keys than account data can have."""


def check_limits(value: Any, levels: int = MAX_DEPTH) -> None:
    """Raises TooDeep if a dict or list has too many levels, and TooMany if a dict in it has more than `MAX_KEYS` keys."""
    if levels == 0:
        raise TooDeep
    if type(value) is dict and len(value) > MAX_KEYS:
        raise TooMany
    for item in value.values() if type(value) is dict else value:
        if type(item) in CONTAINERS:
            check_limits(item, levels - 1)


def count_steps(body: bytes) -> Generator[None, None, int]:
    """The number of values of a large body, or 0 for others, in steps. Brackets and commas inside of strings count too.

    Raises:
        TooMany: there are too many of them.
    """
    if len(body) <= COUNTED_SIZE:
        return 0
    return (yield from _count(memoryview(body), MAX_VALUES + len(body) // BYTES_PER_VALUE))


def check_value_count(piece: msgspec.Raw) -> Generator[None, None, None]:
    """Raises TooMany, in steps, if an unknown field has more than `MAX_VALUES` values."""
    if len(piece) > COUNTED_SIZE:
        yield from _count(memoryview(piece), MAX_VALUES)


def _count(text: memoryview, most: int) -> Generator[None, None, int]:
    values = objects = 0
    for start in range(0, len(text), _COUNT_CHUNK):
        part = bytes(text[start : start + _COUNT_CHUNK])
        # For rare characters, `replace` is faster than `count`.
        objects += len(part) - len(part.replace(b"{", b""))
        values += len(part) - len(part.replace(b"[", b"")) + part.count(b",")
        if objects > most // 6 or values + objects > most:
            raise TooMany
        yield
    return values + objects


def decode_unknown(piece: msgspec.Raw) -> Any:
    """The value of an unknown field."""
    deque(check_value_count(piece), maxlen=0)
    return decode_any(piece)


_KEY: Final = re.compile(rb'[\s{,]*"(?:[^"\\]|\\.)*+"\s*:', re.DOTALL)
_REST: Final = re.compile(r"trailing characters \(byte ([0-9]+)\)$")


def _check_key_count(body: memoryview) -> None:
    """Raises TooMany if an object has more than `MAX_KEYS` keys, without storing them. Stops where the JSON is broken."""
    place = 0
    for _ in range(MAX_KEYS + 1):
        key = _KEY.match(body, place)
        if key is None:
            return
        place = key.end()
        try:
            _skip(body[place:])
        except msgspec.DecodeError as error:
            rest = _REST.search(str(error))
        else:
            return
        if rest is None:
            return
        place += int(rest[1]) - 1
    raise TooMany


# --- large bodies in steps ---

PIECE_SIZE: Final = 64 * 1024
"""JSON of up to this many bytes is decoded in one step."""

_MAX_CUT_DEPTH: Final = 8
_UNKNOWN: Final = object()
_MODELS: Final[dict[type[Model], dict[str, Any]]] = {
    cls: {field.wire: field.model for field in fields} for cls, fields in SCHEMA.items()
}
_decode_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


def parse_steps(
    body: bytes | msgspec.Raw, size: int, depth: int = 0, cls: type[Model] | None = None
) -> Generator[None, None, Any]:
    """`decode_any` in small steps: large values are cut into their items first. Raises `PARSE_ERRORS`.

    Args:
        cls: the class of the object, or of the array's items; None inside of unknown fields.
    """
    if size <= PIECE_SIZE or depth == _MAX_CUT_DEPTH:  # each level of cutting scans the value once more
        return decode_any(body)
    start = bytes(memoryview(body)[:PIECE_SIZE]).lstrip()[:1]
    if start == b"{":
        _check_key_count(memoryview(body))
        data, since = {}, 0
        for key, piece in _decode_object(body).items():
            model = _MODELS[cls].get(key, _UNKNOWN) if cls is not None else None
            if model is _UNKNOWN:
                yield from check_value_count(piece)
                model = None
            data[key] = yield from parse_steps(piece, len(piece), depth + 1, model)
            since += min(len(piece), PIECE_SIZE)  # larger ones have steps of their own
            if since > PIECE_SIZE:
                yield
                since = 0
        yield
        return data
    if start == b"[":
        items: list[Any] = []
        for pieces in batches(_decode_array(body)):
            yield
            if len(pieces) == 1:
                items.append((yield from parse_steps(pieces[0], len(pieces[0]), depth + 1, cls)))
            else:
                items += decode_any(json_array(pieces))
        return items
    return decode_any(body)


def batches(pieces: list[msgspec.Raw], size: int = PIECE_SIZE) -> Iterator[list[msgspec.Raw]]:
    """The items of an array in groups of about `size` bytes. A larger item is a group of its own."""
    start = total = 0
    for end, length in enumerate(map(len, pieces)):
        if total + length > size and end > start:
            yield pieces[start:end]
            start, total = end, 0
        total += length
    if start < len(pieces):
        yield pieces[start:]


def json_array(pieces: list[msgspec.Raw]) -> bytes:
    """A JSON array of the pieces."""
    return b"[%b]" % b",".join(pieces)


# --- errors ---

# Only words of this list get into an error about an HTML page, nothing of the page itself.
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


def json_error(body: bytes, error: Exception) -> DecodeError:
    """The error to raise for one of `PARSE_ERRORS`. It contains nothing of the body."""
    text = body[:4096].strip()
    if not text and not body.strip():
        return EmptyBodyError("the body is empty")
    if text.startswith(b"<"):
        page = body[:65536].lower()
        seen = ", ".join(words for word, words in _HINTS if word in page)
        return NotJSONError(f"the body is a page, not JSON{seen and f' (it mentions {seen})'}")
    if isinstance(error, RecursionError):
        return JSONLimitError("the body is JSON that is nested too deeply")
    if isinstance(error, TooMany):
        return JSONLimitError("the body has more values or keys than account data can have")
    if isinstance(error, UnicodeDecodeError):
        return NotJSONError("the body is not valid UTF-8")
    if isinstance(error, (msgspec.ValidationError, DecimalException)):
        return JSONLimitError("the body has a number that is out of range")
    if _has_constant(body):
        return JSONLimitError("the body has NaN or Infinity where JSON has a number")
    if _is_deep(text):
        return JSONLimitError("the body is JSON that is nested too deeply")
    # The message of msgspec is left out, because it differs when a body is read in pieces.
    return NotJSONError("the body is not JSON, or was cut short")


_TEXT_OR_BRACKET: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?|[][{}]', re.DOTALL)
_LEVELS: Final = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


def _is_deep(text: bytes) -> bool:
    """Whether the beginning of a body has more than `MAX_DEPTH` levels. Since Python 3.14, 100,000 levels need not raise a
    RecursionError.
    """
    changes = (_LEVELS.get(found[0], 0) for found in _TEXT_OR_BRACKET.finditer(text))
    return any(level > MAX_DEPTH for level in accumulate(changes))


def _has_constant(body: bytes) -> bool:
    """Whether the first syntax error of a body is NaN or Infinity."""
    place = _syntax_error_at(body)
    return place is not None and body.startswith((b"NaN", b"Infinity"), place) and body[place - 1 : place + 1] != b"-N"


_BYTE: Final = re.compile(r"invalid character \(byte ([0-9]+)\)$")


def _syntax_error_at(body: bytes) -> int | None:
    """The index of the first byte that cannot begin a value where a value must begin."""
    try:
        _skip(body)
    except msgspec.DecodeError as error:
        found = _BYTE.search(str(error))
    except RecursionError:
        return None
    else:
        return None
    return int(found[1]) if found else None


# --- the envelope of an answer: its code, status, message and request id; the case of the keys does not matter ------------

MAX_ERROR_BODY: Final = 256 * 1024
"""Bytes. A larger body is not parsed, because it is no error envelope."""

UNREADABLE: Final = "UNREADABLE"
"""Replaces a code that cannot be shown. An answer with such a code is still an error, never an empty answer."""

_NAMES: Final = ("flinkscode", "httpstatuscode", "message")
_STATUS: Final = re.compile(r"\s*([1-9][0-9]{2})(?:\.0*)?\s*")
_CODE: Final = re.compile(r"(?!.*[A-Za-z0-9]{24})[A-Za-z0-9_.-]{1,64}")
_ID: Final = re.compile(r"(?!.*[A-Za-z0-9]{33})[A-Za-z0-9_.-]{1,64}")  # 32: a GUID without hyphens


def read_envelope(body: bytes, *hidden: Secret | None) -> Envelope:
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


def envelope_of(answer: PartnerAccessResponse, *hidden: Secret | None) -> Envelope:
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
        not first or type(first) is not AccountsDetail or not (_has_error_status(first) or unknown_fields(first))
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


def _envelope(data: Mapping[str, Any], hidden: tuple[Secret | None, ...], *, unreadable: str | None = None) -> Envelope:
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


def _request_id(value: object, hidden: tuple[Secret | None, ...]) -> str | None:
    # A request id is usually a GUID, which `redact` would mask. Users need it for the support of Flinks.
    if _is_id(value, hidden):
        return str(value)
    return redact(value, *hidden, coded=True) if isinstance(value, str) and value else None


def _is_id(value: object, hidden: tuple[Secret | None, ...], form: re.Pattern[str] = _ID) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None and not repeats(value, *hidden)
