"""Secrets that stay secret: a wrapper that never shows its value, keyed fingerprints, redaction of text.

The access token is part of the URL path, a place that every HTTP stack logs; the AuthSecret is a header.
Both travel through this package as `Secret` and are revealed only inside the expression that puts them
on the wire.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import logging
import re
import secrets
import sys
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from hashlib import blake2b
from typing import Any, Final, NoReturn, ParamSpec, TypeVar
from urllib.parse import quote, unquote_plus

P = ParamSpec("P")
T = TypeVar("T")

MASK: Final = "***"

_PROCESS_KEY: Final = secrets.token_bytes(32)
# Patterns as text: `re` compiles them when they are first needed, and keeps them. An import does not pay for them.
_UNPRINTABLE: Final = r"[^\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]+"  # half a surrogate pair is no text: it has no UTF-8
_HIDDEN: Final = (
    # The first two begin where such a word can begin, and give nothing back: a hostile text costs no more than others.
    r"(?i)(?<![a-z0-9+.-])[a-z0-9+.-]++://[^\s\"'<>]++",  # a URL
    r"(?<![^\s@<>\"'])[^\s@<>\"']++@[^\s@<>\"']++",  # an e-mail
    r"(?i)\b[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}\b",  # a GUID
    r"\d{5,}",  # a long number
)
_CODED: Final = r"[A-Za-z0-9+/=_%-]{24,}+"  # a longer word than people write: base64, perhaps, of something hidden


def plain(text: str) -> str:
    """The text of a `str` or of a subclass, which may write itself in another way: a member of an enum by its name."""
    return str.__str__(text)


class Secret:
    """A text that shows itself only through `reveal()`.

    It is masked in repr, str and format, compares in constant time, and refuses to be pickled. A copy is the
    same object. Of a subclass of `str`, such as a text that is a member of an enum, it keeps the text alone.

    Raises:
        TypeError: the value is neither a `str` nor a `Secret`.
    """

    __slots__ = ("__weakref__", "_value")

    def __init__(self, value: str | Secret) -> None:
        if isinstance(value, Secret):
            self._value: str = value._value
            return
        text: Any = value
        if not isinstance(text, str):
            text = value = NotText(text)  # type: ignore[assignment] # no frame holds what may be a secret as bytes
            raise TypeError(f"a secret must be a str, not {text.type_name}")
        self._value = plain(text)

    def reveal(self) -> str:
        """The text itself. Use it inside one expression; do not bind it to a name."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret('{MASK}')"

    def __str__(self) -> str:
        return MASK

    def __format__(self, format_spec: str) -> str:
        return MASK

    def __len__(self) -> int:
        return len(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(
            self._value.encode("utf-8", "surrogatepass"), other._value.encode("utf-8", "surrogatepass")
        )

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a Secret refuses to be pickled: send a reference to it and reveal it where it is used")


SecretProvider = Callable[[], Awaitable[str | Secret]]
"""Asks for the AuthSecret, for example a vault."""


class NotText:
    """Stands for a value that should be a text and is not: perhaps a secret as bytes, so it is not kept.

    Attributes:
        type_name: the name of its type.
    """

    __slots__ = ("type_name",)

    def __init__(self, value: object) -> None:
        self.type_name = type(value).__name__


def wrap_secret(value: object) -> Any:
    """What a caller gave as a secret, in a form that a frame may hold when an error passes it: a `Secret`, or a `NotText`.
    None and callables are given back as they are. To be bound to the name of the bare value, before anything can fail.
    """
    if isinstance(value, str):
        return Secret(value)
    return value if value is None or isinstance(value, (Secret, NotText)) or callable(value) else NotText(value)


def wraps_token(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """For a coroutine method whose first argument is a token: its frame never holds the bare text, not even when it is
    cancelled before its first step.
    """
    call: Callable[..., Coroutine[Any, Any, T]] = method

    @wraps(method)
    def hidden(self: Any, token: Any, **options: Any) -> Coroutine[Any, Any, T]:
        token = wrap_secret(token)
        return call(self, token, **options)

    # For what asks whether a function gives a coroutine, such as a mock.
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(hidden)  # type: ignore[return-value]
    hidden._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
    return hidden  # type: ignore[return-value]


def fingerprint(secret: str | Secret, *, key: bytes | None = None) -> str:
    """16 hexadecimal digits that stand for a secret: keyed BLAKE2b, so that it cannot be looked up.

    The default key is random per process; a job passes its own, so that its fingerprints last as long as it.

    Raises:
        TypeError: the value is neither a `str` nor a `Secret`.
    """
    hidden = wrap_secret(secret)
    del secret
    if not isinstance(hidden, Secret):
        del key  # no frame of an error holds it
        name = hidden.type_name if isinstance(hidden, NotText) else type(hidden).__name__
        raise TypeError(f"a secret must be a str, not {name}")
    keyed = blake2b(key=_PROCESS_KEY if key is None else key, digest_size=8)
    keyed.update(hidden.reveal().encode("utf-8", "surrogatepass"))
    return keyed.hexdigest()


def repeats(text: str, *hidden: Secret | None) -> bool:
    """Whether a server's text has a hidden value in it, plain or in a usual coding: percent, HTML, JSON (each up to three
    times over), base64, hexadecimal; without regard to case and hyphens. What has less than 8 characters does not count:
    it is found in many a word.
    """
    forms = {_bare(form) for secret in hidden if secret is not None for form in _forms(secret)}
    if not forms:
        return False
    from html import unescape  # a large table, seldom needed

    texts = [text]
    for _ in range(3):
        text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), unescape(unquote_plus(text)))
        texts.append(text)
    seen = _bare("\n".join(texts))
    return any(len(form) >= 8 and form in seen for form in forms)


def _forms(secret: Secret) -> tuple[str, ...]:
    data = secret.reveal().encode("utf-8", "surrogatepass")
    return (
        secret.reveal(),
        data.hex(),
        b64encode(data).decode().rstrip("="),
        urlsafe_b64encode(data).decode().rstrip("="),
    )


def _bare(text: str) -> str:
    return text.lower().replace("-", "")


def redact(text: str, *hidden: Secret | None, limit: int = 200, coded: bool = False) -> str:
    """A server's text made fit for an error or a log: hidden values, URLs, e-mails, GUIDs and long numbers are
    masked, control characters and what is no text are dropped, and it is cut to `limit` characters. Nothing is left of one
    that has a hidden value in some coding (`repeats`).

    Args:
        coded: mask words of 24 characters and more, too: they may be a hidden value in some coding.
    """
    # Cut before matching (a hostile text may be megabytes long), with room for values that straddle the limit.
    text = re.sub(_UNPRINTABLE, " ", text[: limit + 2048])
    # The longest first: a short one, masked inside of it, would leave the rest of it to be seen.
    for secret in sorted(filter(None, hidden), key=len, reverse=True):
        for form in {secret.reveal(), quote(secret.reveal(), safe="", errors="replace")}:
            text = re.sub(re.escape(form), MASK, text, flags=re.IGNORECASE)
    for pattern in (_CODED, *_HIDDEN) if coded else _HIDDEN:
        text = re.sub(pattern, MASK, text)
    if repeats(text, *hidden):
        return MASK
    return text if len(text) <= limit else text[: limit - 1] + "…"


_QUOTE: Final = r"\\{0,8}+[\"']"  # in a JSON text, or a repr of a repr, with backslashes
_HEADER: Final = rf"(?:flinks[-_]auth[-_]key|authorization)(?![\w-])(?:{_QUOTE})?"
# A secret may hold every printable ASCII character: its end is that of the quotes around it, else that of the line.
# What is repeated gives nothing back, so that a hostile text costs no more than others.
_IN_LOGS: Final = (
    (r"(?i)(partneraccess(?:\\{0,8}+/|%(?:25){0,8}+2f))[^\s/?#\"'<>\\)\]}]+", rf"\1{MASK}"),
    # {"flinks-auth-key": "Bearer ..."}, (b'flinks-auth-key', b'Bearer ...'): the bare quote ends it, not an
    # escaped one, nor one that goes on in the next line, as pprint writes a long text
    (rf"(?i)({_HEADER}\s*+[:=,]>?\s*+[\[(]?b?({_QUOTE}))(?:(?!(?<!\\)\2)[^\r\n]|\2\n[ \t]*+b?\2)*+", rf"\1{MASK}"),
    # flinks-auth-key: Bearer ...; a quote before a bracket, a comma or a space is that of a text around the line, and
    # four characters \r\n are the line's end in the repr of a head
    (
        rf"(?i)({_HEADER}(?:[ \t]*+[:=]>?[ \t]*+|[ \t]++(?=(?:Bearer|Basic)\s)))(?![\[(]?b?{_QUOTE})"
        r"(?:(?!\\++r\\++n|(?<!\\)[\"'](?:[\s,;:)\]}>]|\Z))[^\r\n])++",
        rf"\1{MASK}",
    ),
    (r"(?i)(flinks[-_]auth[-_]key[ \t]++)[^\s\"',}]++", rf"\1{MASK}"),
)


def redact_request(text: str) -> str:
    """Masks the token in a `/partneraccess/...` URL and the value of the authentication headers."""
    for pattern, replacement in _IN_LOGS:
        text = re.sub(pattern, replacement, text)
    return text


class SecretFilter(logging.Filter):
    """A filter for the loggers of other libraries that write down URLs and headers.

    Add it to a *handler* (`handler.addFilter(SecretFilter())`): filters of a logger do not see the records of its
    children. This package logs neither tokens nor URLs, so it needs no filter for its own records.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:  # a broken logging call must not break the program, nor slip through unread
            message = "(a log record that could not be formatted)"
        record.msg, record.args = redact_request(message), None
        if record.exc_info:
            # Formatted here, since the traceback of another library may name the URL.
            record.exc_text = redact_request(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True
