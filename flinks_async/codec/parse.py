"""Bytes to plain Python: exact numbers, and every way in which a body is not JSON as one of our errors."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Generator, Iterator
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, DecimalException
from typing import Any, Final

import msgspec

from ..errors import DecodeError, EmptyBodyError, JSONLimitError, NotJSONError
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


MAX_DEPTH: Final = 100
"""Levels that an unknown field may have. What is much deeper could be read, but not copied or pickled."""

NESTED: Final = frozenset({dict, list})


class TooDeep(RecursionError):
    """An unknown field has more than `MAX_DEPTH` levels."""


def bounded(value: Any, levels: int = MAX_DEPTH) -> None:
    """Raises TooDeep if a dict or list has more levels."""
    if levels == 0:
        raise TooDeep
    for item in value.values() if type(value) is dict else value:
        if type(item) in NESTED:
            bounded(item, levels - 1)


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
    if isinstance(error, UnicodeDecodeError):
        return NotJSONError("the body is not valid UTF-8")
    if isinstance(error, (msgspec.ValidationError, DecimalException)):
        return JSONLimitError("the body has a number that is out of range")
    if _has_constant(body):
        return JSONLimitError("the body has NaN or Infinity where JSON has a number")
    # msgspec says more, but not the same when a body is read in pieces.
    return NotJSONError("the body is not JSON, or was cut short")


class _Constant(Exception):
    pass


def _has_constant(body: bytes) -> bool:
    """Whether it would be JSON up to a NaN or an Infinity, which Python's own reader accepts as a number."""
    if b"NaN" not in body and b"Infinity" not in body:
        return False

    def found(name: str) -> None:
        raise _Constant

    try:
        json.loads(body, parse_constant=found, parse_int=len, parse_float=len)
    except _Constant:
        return True
    except (ValueError, RecursionError):
        return False
    return False


PIECE: Final = 64 * 1024
"""JSON of up to this size is decoded at once."""

_MAX_DEPTH: Final = 8
_decode_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


def parse_steps(body: bytes | msgspec.Raw, size: int, depth: int = 0) -> Generator[None, None, Any]:
    """`decode_any` in small steps: what is large is cut into its items first. Raises `BROKEN`."""
    if size <= PIECE or depth == _MAX_DEPTH:  # deeper, cutting would only repeat the work
        return decode_any(body)
    start = bytes(memoryview(body)[:PIECE]).lstrip()[:1]
    if start == b"{":
        data = {}
        for key, piece in _decode_object(body).items():
            data[key] = yield from parse_steps(piece, len(piece), depth + 1)
        yield
        return data
    if start == b"[":
        items: list[Any] = []
        for pieces in batches(_decode_array(body)):
            yield
            if len(pieces) == 1:
                items.append((yield from parse_steps(pieces[0], len(pieces[0]), depth + 1)))
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
