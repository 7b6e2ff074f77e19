"""Secrets: a wrapper that never shows its value, keyed fingerprints, and redaction of text.

The access token is part of the URL path, which HTTP libraries log; the AuthSecret is a header. This package passes both
as `Secret` and reveals them only inside the expression that sends them.
"""

from __future__ import annotations

import hmac
import inspect
import logging
import re
import secrets
import sys
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from functools import wraps
from hashlib import blake2b
from typing import Any, Final, NoReturn, ParamSpec, TypeVar
from unicodedata import normalize
from urllib.parse import quote, unquote, unquote_plus

P = ParamSpec("P")
T = TypeVar("T")

MASK: Final = "***"

_PROCESS_KEY: Final = secrets.token_bytes(32)
# Patterns are strings, so that an import does not compile them: `re` compiles them on first use and caches them.
# Half a surrogate pair has no UTF-8. Characters without width would cut a value in two.
_UNPRINTABLE: Final = r"[^\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]+"
_INVISIBLE: Final = r"[\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]+"
_HIDDEN: Final = (
    # Those that begin with a word begin at its start and are possessive, so that a hostile text costs no more than others.
    r"(?i)(?<![a-z0-9+.-])[a-z0-9+.-]++://[^\s\"'<>]++",  # a URL
    r"(?<![^\s@<>\"'])[^\s@<>\"']++\s?(?:@|[(\[{]\s?[aA][tT]\s?[)\]}])\s?[^\s@<>\"']++",  # an e-mail
    r"(?i)\b[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}\b",  # a GUID
    r"(?i)(?<![a-z0-9])[a-z]{2}\d\d(?:[ .-]?[a-z0-9]{4}){2,7}+(?:[ .-]?[a-z0-9]{1,3})?+(?![a-z0-9])",  # an IBAN
    r"\+?\(?\d(?:[\s.,/()\u2010-\u2015_-]{0,2}\d){6,}+",  # a number in groups: of a phone, card, account or person
    r"\d{5,}",  # a long number
)
_CODED: Final = r"[A-Za-z0-9+/=_%-]{24,}+"  # longer than a word that people write: perhaps base64 of a hidden value


def plain(text: str) -> str:
    """The characters of a `str`. A subclass may have another `str()`: a member of an enum returns its name."""
    return str.__str__(text)


class Secret:
    """A string that only `reveal()` returns.

    repr, str and format mask it. Comparison takes constant time. It refuses to be pickled, and a copy is the same
    object. Of a subclass of `str`, such as a member of an enum, it keeps the characters only.

    Raises:
        TypeError: the value is neither a `str` nor a `Secret`.
    """

    __slots__ = ("__weakref__", "_value")

    def __init__(self, value: str | Secret) -> None:
        self._value: str
        if type(value) is str:
            self._value = value
            return
        if isinstance(value, Secret):
            self._value = value._value
            return
        text: Any = value
        if not isinstance(text, str):
            text = value = NotText(text)  # type: ignore[assignment] # the traceback must not show a secret as bytes
            raise TypeError(f"a secret must be a str, not {text.type_name}")
        self._value = plain(text)

    def reveal(self) -> str:
        """The string itself. Use it inside one expression; do not bind it to a name."""
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

    def __getstate__(self) -> NoReturn:
        self.__reduce_ex__(None)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a Secret refuses to be pickled: send a reference to it and reveal it where it is used")


SecretProvider = Callable[[], Awaitable[str | Secret]]
"""An async callable that returns the AuthSecret, for example from a vault."""


class NotText:
    """Replaces a value that should be a `str` and is not. The value is not kept, because it may be a secret as bytes.

    Attributes:
        type_name: the name of its type.
    """

    __slots__ = ("type_name",)

    def __init__(self, value: object) -> None:
        self.type_name = type(value).__name__


def wrap_secret(value: object) -> Any:
    """Wraps a secret so that locals in a traceback cannot show it: a `str` in a `Secret`, anything else in a `NotText`.

    None, callables and wrapped values are returned unchanged. Bind the result to the name of the argument at once.
    """
    if isinstance(value, str):
        return Secret(value)
    return value if value is None or isinstance(value, (Secret, NotText)) or callable(value) else NotText(value)


def wrap_header_values(headers: object) -> Any:
    """Wraps the values of `headers` with `wrap_secret`; anything but a mapping becomes a `NotText`."""
    if not headers or isinstance(headers, NotText):
        return headers
    if not isinstance(headers, Mapping):
        return NotText(headers)
    return {name: wrap_secret(value) for name, value in headers.items()}


def wraps_token(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Decorates a coroutine method with the arguments `token`, `timeout` and `headers`, so that its frame never holds the token
    or a value of `headers` as a `str`, not even when the coroutine is cancelled before its first step.
    """
    call: Callable[..., Coroutine[Any, Any, T]] = method

    @wraps(method)
    def hidden(self: Any, token: Any, *, timeout: Any = None, headers: Any = None) -> Any:
        token = wrap_secret(token)
        headers = wrap_header_values(headers)
        return call(self, token, timeout=timeout, headers=headers)

    # Marked, so that `inspect.iscoroutinefunction` is true, which mocks and retry libraries ask for.
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(hidden)  # type: ignore[return-value]
    # It reads this flag. In Python 3.11 an instruction at the start of the code makes a coroutine, not the flag.
    marked: Any = hidden
    marked.__code__ = marked.__code__.replace(co_flags=marked.__code__.co_flags | inspect.CO_COROUTINE)
    return marked  # type: ignore[no-any-return]


def fingerprint(secret: str | Secret, *, key: bytes | None = None) -> str:
    """16 hexadecimal digits that identify a secret: a keyed BLAKE2b hash, so that it cannot be looked up in a table of hashes.

    The default key is random per process; a job passes its own key, so that its fingerprints stay the same.

    Raises:
        TypeError: the value is neither a `str` nor a `Secret`.
    """
    hidden = wrap_secret(secret)
    del secret
    if not isinstance(hidden, Secret):
        del key  # the traceback must not show it
        name = hidden.type_name if isinstance(hidden, NotText) else type(hidden).__name__
        raise TypeError(f"a secret must be a str, not {name}")
    keyed = blake2b(key=_PROCESS_KEY if key is None else key, digest_size=8)
    keyed.update(hidden.reveal().encode("utf-8", "surrogatepass"))
    return keyed.hexdigest()


def repeats(text: str, *hidden: Secret | None) -> bool:
    """Whether a server's text contains a hidden value, plain or in a usual encoding: percent, HTML, JSON (each up to three
    times), base64, hexadecimal. Case, hyphens, spaces and invisible characters are ignored. Values of less than 8
    characters are ignored, because ordinary words contain them.
    """
    forms = {_bare(form) for secret in hidden if secret is not None for form in _forms(secret)}
    if not forms:
        return False
    from html import unescape  # imported here, because it is a large table that is seldom needed

    texts = [text]
    for _ in range(3):
        text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), unescape(unquote_plus(text)))
        texts.append(text)
    searched = _bare("\n".join(texts))
    return any(len(form) >= 8 and form in searched for form in forms)


def _forms(secret: Secret) -> tuple[str, ...]:
    data = secret.reveal().encode("utf-8", "surrogatepass")
    return (
        secret.reveal(),
        data.hex(),
        b64encode(data).decode().rstrip("="),
        urlsafe_b64encode(data).decode().rstrip("="),
    )


def _bare(text: str) -> str:
    return re.sub(r"[\s-]+", "", re.sub(_INVISIBLE, "", text.lower()))


def redact(text: str, *hidden: Secret | None, limit: int = 200, coded: bool = False) -> str:
    """Makes a server's text safe for an error or a log.

    Hidden values, URLs, e-mails, GUIDs and numbers are masked, also in percent or HTML encoding; control and invisible
    characters are dropped, and the text is cut to `limit` characters. A text with an encoded hidden value (`repeats`) is
    masked as a whole. Names, addresses and other words cannot be recognized: they stay.

    Args:
        coded: also mask words of 24 characters and more, because they may be an encoded hidden value.
    """
    from html import unescape

    # Cut before matching, because a hostile text may be megabytes long; with room for values that cross the limit.
    text = text[: limit + 2048]
    for decoding in range(4):
        if decoding:
            decoded = unescape(unquote(normalize("NFKC", text), errors="replace"))
            if decoded == text:
                break
            text = decoded
        text = re.sub(_UNPRINTABLE, " ", re.sub(_INVISIBLE, "", text))
        # The longest first: masking a short value inside a longer one would leave the rest of the longer one visible.
        for secret in sorted(filter(None, hidden), key=len, reverse=True):
            for form in {secret.reveal(), quote(secret.reveal(), safe="", errors="replace")}:
                text = re.sub(re.escape(form), MASK, text, flags=re.IGNORECASE)
    for pattern in (_CODED, *_HIDDEN) if coded else _HIDDEN:
        text = re.sub(pattern, MASK, text)
    if repeats(text, *hidden):
        return MASK
    return text if len(text) <= limit else text[: limit - 1] + "…"


_QUOTE: Final = r"\\{0,8}+[\"']"  # in a JSON text, or a repr of a repr, with backslashes
_NAME: Final = r"(?:flinks[-_]?(?:auth[-_]?(?:key|secret)|access[-_]?token)|authorization)(?![\w-])"
_HEADER: Final = rf"{_NAME}(?:{_QUOTE})?"
_VALUE: Final = r"(?<![a-z])value"  # the field of a header object
# Between the path and the token: a slash, perhaps encoded, or the border of two items in a list of path segments.
_SLASH: Final = r"(?:\\{0,8}+(?:/|u002f|x2f)|%(?:25){0,8}+2f|&(?:amp;){0,4}+(?:#47|#x2f|sol);)"
# A secret may contain any printable ASCII character, so it ends at the closing quote, or else at the end of the line.
# Repetitions are possessive, so that a hostile text costs no more than others.
_REST_OF_STRING: Final = r"(?:(?!(?<!\\)\2)[^\r\n]|\2\n[ \t]*+b?\2)*+"
_IN_LOGS: Final = (
    (rf"(?i)(partneraccess(?:{_SLASH}++|{_QUOTE}\s?,\s?b?{_QUOTE}))[^\s?#\"'<>\\)\]}}]+", rf"\1{MASK}"),
    # {"flinks-auth-key": "Bearer ..."}, (b'flinks-auth-key', b'Bearer ...'): an unescaped quote ends it, unless the
    # string continues on the next line, as pprint writes long strings. Also {"name": "authorization", "value": "..."}.
    (
        rf"(?i)({_HEADER}(?:[\s,;]++(?:{_QUOTE})?{_VALUE}(?:{_QUOTE})?\s*+[:=]\s*+|\s*+[:=,]>?\s*+[\[(]?)b?({_QUOTE}))"
        rf"{_REST_OF_STRING}",
        rf"\1{MASK}",
    ),
    # {"value": "...", "name": "authorization"}
    (
        rf"(?i)({_VALUE}(?:{_QUOTE})?\s*+[:=]\s*+b?({_QUOTE}))(?:(?!(?<!\\)\2)[^\r\n])*+"
        rf"(?=\2[\s,;]++(?:{_QUOTE})?(?:name|key|header)(?:{_QUOTE})?\s*+[:=]\s*+b?{_QUOTE}{_NAME})",
        rf"\1{MASK}",
    ),
    # flinks-auth-key: Bearer ...; a quote before a bracket, a comma or a space closes a string around the line, and the
    # four characters \r\n end the line in the repr of a request's head. Also Header: flinks-auth-key, Value: ...
    (
        rf"(?i)({_HEADER}(?:[ \t]*+[:=]>?[ \t]*+|[ \t]++(?=(?:Bearer|Basic)\s)|[\s,;]++{_VALUE}\s*+[:=]\s*+)"
        rf")(?![\[(]?b?{_QUOTE})(?:(?!\\++r\\++n|(?<!\\)[\"'](?:[\s,;:)\]}}>]|\Z))[^\r\n])++",
        rf"\1{MASK}",
    ),
    (r"(?i)(flinks[-_]auth[-_]key[ \t]++)(?!value\b)[^\s\"',}]++", rf"\1{MASK}"),
)


def redact_request(text: str) -> str:
    """Masks the token in a `/partneraccess/...` URL and the value of the authentication headers."""
    for pattern, replacement in _IN_LOGS:
        text = re.sub(pattern, replacement, text)
    return text


class SecretFilter(logging.Filter):
    """A logging filter that masks tokens and secrets, for other libraries that log URLs and headers.

    Add it to a *handler* (`handler.addFilter(SecretFilter())`), because a logger's filters do not see the records of its
    children. The handler gets a masked copy of the record: message, traceback, stack and the fields of `extra`. Other
    handlers get the record as it was. This package logs no tokens and no URLs, so its own records need no filter.
    """

    def filter(self, record: logging.LogRecord) -> Any:
        masked = _masked_record(record)
        if sys.version_info >= (3, 12):
            return masked
        # Before Python 3.12 a filter cannot replace the record, so the copy is passed on here.
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code is not logging.Filterer.filter.__code__:
            frame = frame.f_back
        owner = None if frame is None else frame.f_locals["self"]
        if owner is None or self not in owner.filters:
            vars(record).update(vars(masked))
            return True
        rest = owner.filters[owner.filters.index(self) + 1 :]
        if all(part.filter(masked) if hasattr(part, "filter") else part(masked) for part in rest):
            if isinstance(owner, logging.Handler):
                with owner.lock or nullcontext():
                    owner.emit(masked)
            else:
                owner.callHandlers(masked)
        return False


_STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _masked_record(record: logging.LogRecord) -> logging.LogRecord:
    masked = copy(record)
    try:
        message = record.getMessage()
    except Exception:  # a wrong logging call must neither break the program nor pass unmasked
        message = "(a log record that could not be formatted)"
    masked.msg, masked.args = redact_request(message), None
    if record.exc_info and record.exc_info[0] and not record.exc_text:
        # Formatted here, because the traceback of another library may contain the URL.
        masked.exc_text = logging.Formatter().formatException(record.exc_info)
    masked.exc_info = None
    masked.exc_text = redact_request(masked.exc_text) if masked.exc_text else None
    masked.stack_info = redact_request(record.stack_info) if record.stack_info else None
    for name, value in vars(record).items():
        if name not in _STANDARD_FIELDS:
            setattr(masked, name, _masked_field(name, value))
    vars(masked).pop("message", None)  # of another handler's formatter
    return masked


def _masked_field(name: str, value: object) -> object:
    """A field of `extra`: unchanged if nothing in it is to be masked, otherwise its masked text."""
    if re.fullmatch(f"(?i){_NAME}", name):
        return MASK
    try:
        shown = value if isinstance(value, str) else repr(value)
        text = shown if isinstance(value, (str, Mapping, Sequence)) else str(value)
    except Exception:
        return MASK
    masked = redact_request(text)
    if masked != text:
        return masked
    return value if redact_request(shown) == shown else MASK
