"""Bytes to plain Python: exact numbers, and every way in which a body is not JSON as one of our errors."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Callable, Generator, Iterator
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, DecimalException
from typing import Any, Final

import msgspec

from ..errors import DecodeError, EmptyBodyError, JSONLimitError, NotJSONError
from ..models import Model
from ..schema import SCHEMA, TRAPS

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


MAX_DEPTH: Final = 100
"""Levels that an unknown field may have. What is much deeper could be read, but not copied or pickled."""

MAX_KEYS: Final = 10_000
"""Keys that one object may have: a documented one has 17."""

COUNTED: Final = 2 * 1024 * 1024
"""Values are counted in bodies that are larger."""

MANY_VALUES: Final = 1_000_000
"""So many values any body may have, and one more for each `BYTES_A_VALUE` bytes; an unknown field has no more than these.
A sixth of them may be objects. A transaction has 8 values in some 160 bytes."""

BYTES_A_VALUE: Final = 16

_COUNTED_AT_ONCE: Final = 1024 * 1024

NESTED: Final = frozenset({dict, list})


class TooDeep(RecursionError):
    """An unknown field has more than `MAX_DEPTH` levels."""


class TooMany(ValueError):
    """More values or keys than account data have. Expanded, they would take many times the size of the body."""


def bounded(value: Any, levels: int = MAX_DEPTH) -> None:
    """Raises TooDeep if a dict or list has more levels, TooMany if a dict has more than `MAX_KEYS` keys."""
    if levels == 0:
        raise TooDeep
    if type(value) is dict and len(value) > MAX_KEYS:
        raise TooMany
    for item in value.values() if type(value) is dict else value:
        if type(item) in NESTED:
            bounded(item, levels - 1)


def count_steps(body: bytes) -> Generator[None, None, int]:
    """How many values a large body has; 0 for others. Inside of strings, their signs count too.

    Raises TooMany if they are too many to be read.
    """
    if len(body) <= COUNTED:
        return 0
    return (yield from _count(memoryview(body), MANY_VALUES + len(body) // BYTES_A_VALUE))


def few_values(piece: msgspec.Raw) -> Generator[None, None, None]:
    """Raises TooMany if an unknown field has more than `MANY_VALUES`."""
    if len(piece) > COUNTED:
        yield from _count(memoryview(piece), MANY_VALUES)


def _count(text: memoryview, most: int) -> Generator[None, None, int]:
    values = objects = 0
    for start in range(0, len(text), _COUNTED_AT_ONCE):
        part = bytes(text[start : start + _COUNTED_AT_ONCE])
        # What is rare is found faster by replacing than by counting.
        objects += len(part) - len(part.replace(b"{", b""))
        values += len(part) - len(part.replace(b"[", b"")) + part.count(b",")
        if objects > most // 6 or values + objects > most:
            raise TooMany
        yield
    return values + objects


def decode_unknown(piece: msgspec.Raw) -> Any:
    """The value of an unknown field."""
    deque(few_values(piece), maxlen=0)
    return decode_any(piece)


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
        return JSONLimitError("the body is JSON that is nested too deeply")
    if isinstance(error, TooMany):
        return JSONLimitError("the body has more values or keys than account data can have")
    if isinstance(error, UnicodeDecodeError):
        return NotJSONError("the body is not valid UTF-8")
    if isinstance(error, (msgspec.ValidationError, DecimalException)):
        return JSONLimitError("the body has a number that is out of range")
    if _has_constant(body):
        return JSONLimitError("the body has NaN or Infinity where JSON has a number")
    # msgspec says more, but not the same when a body is read in pieces.
    return NotJSONError("the body is not JSON, or was cut short")


def _has_constant(body: bytes) -> bool:
    """Whether it would be JSON up to a NaN or an Infinity."""
    place = _stops_at(body)
    return place is not None and body.startswith((b"NaN", b"Infinity"), place) and body[place - 1 : place + 1] != b"-N"


_skip: Final = msgspec.json.Decoder(msgspec.Raw).decode
_BYTE: Final = re.compile(r"invalid character \(byte ([0-9]+)\)$")


def _stops_at(body: bytes) -> int | None:
    """The place of the first byte that cannot begin a value where one should begin, found without reading the values."""
    try:
        _skip(body)
    except msgspec.DecodeError as error:
        found = _BYTE.search(str(error))
    except RecursionError:
        return None
    else:
        return None
    return int(found[1]) if found else None


PIECE: Final = 64 * 1024
"""JSON of up to this size is decoded at once."""

_MAX_DEPTH: Final = 8
_UNKNOWN: Final = object()
_MODELS: Final[dict[type[Model], dict[str, Any]]] = {
    cls: {field.wire: field.model for field in fields} for cls, fields in SCHEMA.items()
}
_decode_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


_KEY: Final = re.compile(rb'[\s{,]*"(?:[^"\\]|\\.)*+"\s*:', re.DOTALL)
_REST: Final = re.compile(r"trailing characters \(byte ([0-9]+)\)$")


def _few_keys(body: memoryview) -> None:
    """Raises TooMany if an object has more than `MAX_KEYS` keys, before they are kept. Looks no further than that, nor
    further than it is JSON.
    """
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


def parse_steps(
    body: bytes | msgspec.Raw, size: int, depth: int = 0, cls: type[Model] | None = None
) -> Generator[None, None, Any]:
    """`decode_any` in small steps: what is large is cut into its items first. Raises `BROKEN`.

    Args:
        cls: what the object, or the items of the array, will be; None for what is inside of unknown fields.
    """
    if size <= PIECE or depth == _MAX_DEPTH:  # deeper, cutting would only repeat the work
        return decode_any(body)
    start = bytes(memoryview(body)[:PIECE]).lstrip()[:1]
    if start == b"{":
        _few_keys(memoryview(body))
        data, since = {}, 0
        for key, piece in _decode_object(body).items():
            model = _MODELS[cls].get(key, _UNKNOWN) if cls is not None else None
            if model is _UNKNOWN:
                yield from few_values(piece)
                model = None
            data[key] = yield from parse_steps(piece, len(piece), depth + 1, model)
            since += min(len(piece), PIECE)  # larger ones have steps of their own
            if since > PIECE:
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
                items += decode_any(joined(pieces))
        return items
    return decode_any(body)


def batches(pieces: list[msgspec.Raw], size: int = PIECE) -> Iterator[list[msgspec.Raw]]:
    """The items of an array in groups of about `size` bytes. A larger item is a group of its own."""
    start = total = 0
    for end, length in enumerate(map(len, pieces)):
        if total + length > size and end > start:
            yield pieces[start:end]
            start, total = end, 0
        total += length
    if start < len(pieces):
        yield pieces[start:]


def joined(pieces: list[msgspec.Raw]) -> bytes:
    """A JSON array of the pieces."""
    return b"[%b]" % b",".join(pieces)
