"""Secrets show themselves only when they are revealed; what may repeat one is masked, also in logs of other libraries."""

from __future__ import annotations

import base64
import copy
import html
import inspect
import io
import json
import logging
import pickle
import time
import traceback
from collections.abc import Callable
from enum import Enum
from pprint import pformat
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from yarl import URL

from flinks_async import Secret, SecretFilter, fingerprint
from flinks_async.secret import redact, redact_request, repeats

from .support import examples

CANARY = "canary-5f3e"


def test_a_secret_shows_itself_only_when_revealed() -> None:
    secret = Secret(CANARY)
    assert secret.reveal() == CANARY
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r:>50}", repr({"a": [secret]})):
        assert CANARY not in shown
    assert not hasattr(secret, "__dict__")


def test_a_secret_refuses_to_be_pickled_and_is_its_own_copy() -> None:
    secret = Secret(CANARY)
    with pytest.raises(TypeError, match="refuses to be pickled"):
        pickle.dumps(secret)
    assert copy.copy(secret) is secret
    assert copy.deepcopy({"a": secret})["a"] is secret


def test_secrets_are_equal_by_value_and_can_be_keys() -> None:
    assert Secret(CANARY) == Secret(Secret(CANARY))
    assert Secret(CANARY) != Secret("other")
    assert Secret(CANARY) != CANARY
    assert {Secret(CANARY): 1}[Secret(CANARY)] == 1


@pytest.mark.parametrize("value", [None, b"bytes", 5])
def test_only_text_can_be_a_secret(value: object) -> None:
    with pytest.raises(TypeError, match="must be a str"):
        Secret(value)


def test_of_a_subclass_of_str_the_text_alone_is_kept() -> None:
    class Text(str):
        def encode(self, *_: object) -> bytes:
            return b"another"

    class Named(str, Enum):  # noqa: UP042 - a StrEnum writes itself as its value
        ONE = CANARY

    for text in (Text(CANARY), Named.ONE):
        assert type(Secret(text).reveal()) is str
        assert f"{Secret(text).reveal()}" == CANARY
        assert fingerprint(text) == fingerprint(CANARY)


@pytest.mark.parametrize("make", [Secret, fingerprint])
@pytest.mark.parametrize("value", [CANARY.encode(), [CANARY]])
def test_a_secret_that_is_no_text_is_in_no_frame_of_ours(make: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=f"must be a str, not {type(value).__name__}") as caught:
        make(value)
    (_, *ours) = traceback.walk_tb(caught.tb)
    assert ours
    for frame, _line in ours:
        assert CANARY not in repr(frame.f_locals)
        assert not {bytes, type(None)} & {type(local) for local in frame.f_locals.values()}  # nor the process's key


def test_the_signature_of_fingerprint_does_not_show_the_key() -> None:
    assert inspect.signature(fingerprint).parameters["key"].default is None


def test_a_fingerprint_is_stable_within_a_key_and_differs_between_keys() -> None:
    secret = Secret(CANARY)
    assert fingerprint(secret) == fingerprint(Secret(CANARY)) == fingerprint(CANARY)
    assert fingerprint(secret, key=b"one") != fingerprint(secret, key=b"two")
    assert len(fingerprint(secret)) == 16


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words", "plain words"),
        ("token canary-5f3e is dead", "token *** is dead"),
        ("CANARY-5F3E", "***"),
        ("see https://x.example/partneraccess/abc?d=e now", "see *** now"),
        ("ask jane.doe@example.com", "ask ***"),
        ("account 7641238", "account ***"),
        ("code 404", "code 404"),
        ("id 5e115eac-1209-4f19-641c-08d6d484e2fe", "id ***"),
        ("line\r\nbreak\x00", "line break "),
        ("call 514-555-1234 now", "call *** now"),
        ("call (514) 555-1234 now", "call *** now"),
        ("call +1 514.555.1234 now", "call *** now"),
        ("card 4539 1488 0343 6467 of", "card *** of"),
        ("SIN 046 454 286 of", "SIN *** of"),
        ("account 9876-5432-1012 of", "account *** of"),
        ("account 9876\u20115432\u00a01012 of", "account *** of"),
        ("account \uff17\uff16\uff14\uff11\uff12\uff13\uff18 of", "account *** of"),
        ("account 98\u200b765 of", "account *** of"),
        ("12345-003", "***"),
        ("balance 1,234,567.89", "balance ***"),
        ("IBAN DE89 3704 0044 0532 0130 00 of", "IBAN *** of"),
        ("IBAN GB29NWBK60161331926819 of", "IBAN *** of"),
        ("IBAN gb29 nwbk 6016 1331 9268 19, of", "IBAN ***, of"),
        ("ask jane.doe%40example.com now", "ask *** now"),
        ("ask jane.doe%2540example.com now", "ask *** now"),
        ("ask jane.doe&#64;example.com now", "ask *** now"),
        ("ask jane.doe&amp;#x40;example.com now", "ask *** now"),
        ("ask jane.doe\uff20example.com now", "ask *** now"),
        ("ask jane.doe @ example.com now", "ask *** now"),
        ("ask jane.doe (at) example.com now", "ask *** now"),
        ("account 76%34%31238", "account ***"),
        ("token canary- 5f3e is dead", "***"),
        ("token c a n a r y - 5 f 3 e", "***"),
        ("token canary\u200b-5f\u20603e is dead", "token *** is dead"),
        ("token cana\nry-5f\t3e", "***"),
        ("line%0d%0abreak", "line break"),
        ("error 12 of 2024, see the docs, at 10:15", "error 12 of 2024, see the docs, at 10:15"),
        ("in 24 hours at 7 am, 100 % of 1.5 s", "in 24 hours at 7 am, 100 % of 1.5 s"),
    ],
)
def test_redaction_hides_what_may_be_a_secret_or_personal(text: str, shown: str) -> None:
    assert redact(text, Secret(CANARY)) == shown


@pytest.mark.parametrize("part", ["a", "a.", "a+-", "a:", "a:/", "1-", "x@", "a-b.c+"])
def test_redacting_a_hostile_text_takes_no_longer_than_another(part: str) -> None:
    started = time.process_time()
    for _ in range(10):
        redact(part * (3000 // len(part)))
    assert time.process_time() - started < 0.1  # with a search from each letter on it were 0.2 to 0.4


def test_a_short_hidden_value_leaves_nothing_of_a_long_one() -> None:
    assert redact("is sk-live-canary", Secret("a"), None, Secret("sk-live-canary")) == "is ***"


def test_redacted_text_can_be_written_down() -> None:
    """A byte of a header that is no UTF-8 comes as half a surrogate pair."""
    shown = redact("one\udcff\ud800two\u00e9\U0001f600")
    assert shown == "one two\u00e9\U0001f600"
    assert shown.encode("utf-8").decode("utf-8") == shown


def test_redaction_also_finds_the_percent_encoded_form() -> None:
    assert redact("a%2Fb%3F", Secret("a/b?")) == "***"


def _often(coding: Callable[[str], str], times: int) -> Callable[[str], str]:
    return lambda text: text if times == 0 else _often(coding, times - 1)(coding(text))


CODINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "other case": str.swapcase,
    "without hyphens": lambda text: text.replace("-", ""),
    "percent": lambda text: quote(text, safe=""),
    "percent, lower case": lambda text: quote(text, safe="").lower(),
    "form": quote_plus,
    "percent, three times": _often(lambda text: quote(text, safe=""), 3),
    "percent, all": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "HTML": html.escape,
    "HTML, numbers": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "HTML, twice": _often(html.escape, 2),
    "JSON": lambda text: "".join(f"\\u{ord(char):04X}" for char in text),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 of URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "hexadecimal": lambda text: text.encode().hex().upper(),
}


@pytest.mark.parametrize("value", ["3fa85f64-5717-4562-b3fc-2c963f66afa6", "tok/en & <1>=='é", "abcdefgh"])
@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_what_repeats_a_hidden_value_in_a_coding_is_masked(coding: Callable[[str], str], value: str) -> None:
    told, hidden = coding(value), (None, Secret("another-value"), Secret(value))
    assert repeats(f"no: {told}, sorry", *hidden)
    assert told not in redact(f"no: {told}, sorry", *hidden)
    assert not repeats(f"no: {coding(value[1:])}", *hidden)
    assert not repeats(told, None, Secret("another-value"))


def test_a_short_hidden_value_or_one_of_hyphens_masks_only_itself() -> None:
    for value in ("retry", "-" * 20, "a" + "-" * 20):
        assert not repeats("RETRY_LATER: an a-b-c", Secret(value))
        assert redact(f"a {value} word", Secret(value)) == "a *** word"


@examples(100)
@given(st.text(max_size=600), st.text("abcdef-/%", min_size=4, max_size=12))
def test_redacted_text_is_short_and_never_holds_the_secret(text: str, secret: str) -> None:
    shown = redact(f"{text}{secret}{text}", Secret(secret))
    assert len(shown) <= 200
    assert secret not in shown


FORMS: list[Callable[[str, str], str]] = [
    lambda name, value: repr([(name.encode(), value.encode()), (b"accept", b"x")]),  # as httpcore and h11 log it
    lambda name, value: repr({name.encode(): value.encode()}),
    lambda name, value: repr({name: value, "accept": "x"}),
    lambda name, value: repr({name: [value]}),
    lambda name, value: repr(repr({name: value})),
    lambda name, value: repr(CIMultiDict({name: value})),
    lambda name, value: pformat([(name, value + "-" * 80), ("accept", "x" * 80)]),
    lambda name, value: json.dumps({name: value}),
    lambda name, value: json.dumps(json.dumps({name: value})),
    lambda name, value: f"{name}: {value}",
    lambda name, value: f"{name}={value}",
    lambda name, value: repr(f"GET / HTTP/1.1\r\n{name}: {value}\r\n\r\n".encode()),
]


@pytest.mark.parametrize(
    "line",
    [
        f"GET https://toolbox-api.private.fin.ag/partneraccess/{CANARY} HTTP/1.1",
        f"URL('http://h/prefix/partneraccess/{CANARY}')",
        f"{{'flinks-auth-key': 'Bearer {CANARY}'}}",
        f"flinks-auth-key: {CANARY}",
        f"Authorization: Bearer {CANARY}",
        f"('Authorization', 'Bearer {CANARY}')",
        *(
            form(name, value)
            for name in ("flinks-auth-key", "Flinks-Auth-Key", "Authorization", "flinks_auth_key")
            for value in (
                f"Bearer {CANARY}",
                CANARY,
                f"a,{CANARY}",
                f"a {CANARY}",
                f"a'{CANARY}",
                f"a\"'\\{CANARY}",
                f"\\{CANARY}",
            )
            for form in FORMS
        ),
        f"https://proxy/?u=https%3A%2F%2Fx%2Fpartneraccess%2F{CANARY}",
        f"https://proxy/?u=https%3a%2f%2fx%2fpartneraccess%2f{CANARY}&b=1",
        f"https://proxy/?u=https%253A%252F%252Fx%252Fpartneraccess%252F{CANARY}",
        f'"https:\\/\\/x\\/partneraccess\\/{CANARY}"',
        rf"'{{\"url\": \"https:\\/\\/x\\/partneraccess\\/{CANARY}\"}}'",
        *(
            f"https://x/partneraccess{slash}{CANARY}"
            for slash in ("//", "/%2F", "&#47;", "&#x2F;", "&amp;#47;", "&sol;")
        ),
        *(f"https://x/partneraccess{slash}{CANARY}" for slash in ("\\u002f", "\\x2F", "%2f%2f")),
        f"https://x/partneraccess/a/{CANARY}?b",
        repr(["partneraccess", CANARY]),
        repr(("/", "partneraccess", CANARY)),
        repr((b"partneraccess", CANARY.encode())),
        json.dumps(json.dumps(["partneraccess", CANARY])),
        *(
            form.format(name=name, value=value)
            for name in ("flinks-auth-key", "Authorization")
            for value in (f"Bearer {CANARY}", CANARY)
            for form in (
                "Header: {name}, Value: {value}",
                "header={name}; value={value}",
                "Header(name='{name}', value='{value}')",
                "Header(name={name}, value={value})",
                "[{{'name': '{name}', 'value': '{value}'}}, {{'name': 'accept', 'value': 'x'}}]",
                "[{{'value': '{value}', 'name': '{name}'}}, {{'name': 'accept', 'value': 'x'}}]",
                '{{"key": "{name}", "value": "{value}"}}',
                '{{"value":"{value}","key":"{name}"}}',
                '<header name="{name}" value="{value}"/>',
                "HTTP_{name}='{value}'",
                "map[{name}:[{value}]]",
            )
        ),
        f"{{'flinksAuthKey': '{CANARY}'}}",
        f"FLINKS_AUTH_SECRET={CANARY}",
        f"environ({{'FLINKS_ACCESS_TOKEN': '{CANARY}'}})",
    ],
)
def test_a_log_filter_masks_what_other_libraries_write(line: str) -> None:
    assert CANARY not in redact_request(line)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(SecretFilter())
    record = logging.LogRecord("other", logging.INFO, "f.py", 1, "sent %s", (line,), None)
    handler.handle(record)
    assert "sent" in stream.getvalue()
    assert CANARY not in stream.getvalue()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("[(b'flinks-auth-key', b'Bearer s'), (b'Accept', b'x')]", "[(b'flinks-auth-key', b'***'), (b'Accept', b'x')]"),
        ("{'Authorization': 'Basic s', 'Accept': 'x'}", "{'Authorization': '***', 'Accept': 'x'}"),
        ('"{\\"authorization\\": \\"s\\", \\"a\\": 1}"', '"{\\"authorization\\": \\"***\\", \\"a\\": 1}"'),
        ("flinks-auth-key: Bearer a, b c\nAccept: x", "flinks-auth-key: ***\nAccept: x"),
        (r"b'GET /\r\nflinks-auth-key: a b\r\nAccept: x'", r"b'GET /\r\nflinks-auth-key: ***\r\nAccept: x'"),
        ("curl -H 'flinks-auth-key: Bearer s' https://x", "curl -H 'flinks-auth-key: ***' https://x"),
        ('{"event": "sent authorization: s", "level": 1}', '{"event": "sent authorization: ***", "level": 1}'),
        ("GET https://x/partneraccess/t HTTP/1.1", "GET https://x/partneraccess/*** HTTP/1.1"),
        ("GET https://x/partneraccess/", "GET https://x/partneraccess/"),
        ("flinks-auth-key Bearer s t", "flinks-auth-key ***"),
        ("flinks-auth-key s was sent", "flinks-auth-key *** was sent"),
        ("['/', 'partneraccess', 's'] was sent", "['/', 'partneraccess', '***'] was sent"),
        ("{'name': 'authorization', 'value': 's', 'a': 1}", "{'name': 'authorization', 'value': '***', 'a': 1}"),
        ("{'value': 's', 'name': 'authorization'}", "{'value': '***', 'name': 'authorization'}"),
        ("Header: flinks-auth-key, Value: s t\nb", "Header: flinks-auth-key, Value: ***\nb"),
        *(
            (text, text)
            for text in (
                "authorization failed for the user, who tried again",
                "auth_secret is missing: set FLINKS_AUTH_SECRET",
                "{'name': 'accept', 'value': 's'}, {'value': 's', 'name': 'host'}",
                "the authorization, which was asked for, came",
                "no header 'Authorization' in ['Accept', 'Host']",
                "FlinksClient(auth_scheme='flinks-auth-key', headers=<Accept>, app_name='a')",
                "the form flinks-auth-key-raw: without a word",
                "authorization_id=5, authorized: yes",
                "partneraccess was called",
            )
        ),
    ],
)
def test_a_log_filter_leaves_the_rest_to_be_read(line: str, shown: str) -> None:
    assert redact_request(line) == shown
    assert redact_request(shown) == shown


@pytest.mark.parametrize(
    "part",
    [
        *(
            "authorization",
            "authorization:",
            "authorization: '",
            "'authorization': '",
            "flinks-auth-key \t",
            "partneraccess",
        ),
        *("authorization" + "\\" * 50, "authorization" + " " * 50, "authorization='" + "\\" * 50, "\\r", "\\\\r'"),
        *(
            "partneraccess%25",
            "partneraccess%" + "25" * 50,
            "partneraccess" + "\\" * 50,
            "authorization: Bearer ",
            "\\'",
        ),
        *(
            "value='",
            "value: \\'",
            "value=\"s' ",
            "value='s' name=",
            "authorization, value",
            "partneraccess&amp;",
            "partneraccess', '",
        ),
    ],
)
@pytest.mark.parametrize("start", ["", "authorization: ", "authorization: '", "authorization: \\'"])
def test_filtering_a_hostile_text_takes_no_longer_than_another(start: str, part: str) -> None:
    started = time.process_time()
    redact_request(start + part * (100_000 // len(part)))
    assert time.process_time() - started < 0.5  # with a search from each place on it were minutes


def test_the_log_filter_masks_tracebacks_and_survives_broken_records() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(SecretFilter())
    with pytest.raises(ValueError) as caught:
        raise ValueError(f"http://h/partneraccess/{CANARY}")
    info = (caught.type, caught.value, caught.tb)
    assert CANARY in "".join(traceback.format_exception(caught.value))
    handler.handle(logging.LogRecord("other", logging.ERROR, "f.py", 1, "failed", None, info))
    handler.handle(logging.LogRecord("other", logging.ERROR, "f.py", 1, "broken %d", ("x",), None))
    assert "ValueError" in stream.getvalue()
    assert "could not be formatted" in stream.getvalue()
    assert CANARY not in stream.getvalue()


class Exploding:
    def __repr__(self) -> str:
        raise RuntimeError(CANARY)


def _handled(record: logging.LogRecord, *filters: Any) -> logging.LogRecord:
    """What a handler with a `SecretFilter` emits."""
    emitted: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = emitted.append
    for one in (SecretFilter(), *filters):
        handler.addFilter(one)
    handler.handle(record)
    (only,) = emitted
    return only


def _record(**fields: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": "sent %s", "args": (f"http://h/partneraccess/{CANARY}",), **fields})


URL_TEXT = f"http://h/partneraccess/{CANARY}"


@pytest.mark.parametrize(
    "fields",
    [
        {"exc_text": f"ValueError: {URL_TEXT}"},
        {"stack_info": f'Stack: File "{URL_TEXT}"'},
        {"url": URL_TEXT},
        {"url": URL(URL_TEXT)},
        {"parts": URL(URL_TEXT).parts},
        {"headers": {"flinks-auth-key": f"Bearer {CANARY}"}},
        {"headers": [("Authorization", CANARY)]},
        {"headers": CIMultiDict({"Authorization": CANARY})},
        {"request": {"url": {"path": f"/partneraccess/{CANARY}"}}},
        {"body": URL_TEXT.encode()},
        {"error": ValueError(URL_TEXT)},
        {"authorization": CANARY},
        {"flinks_auth_key": (CANARY,)},
        {"broken": Exploding()},
        {"message": f"sent {URL_TEXT}"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_the_log_filter_masks_every_part_of_a_copy_of_the_record(fields: dict[str, Any]) -> None:
    record = _record(count=3, **fields)
    before = dict(vars(record))
    emitted = _handled(record)
    assert vars(record) == before  # the next handler gets it as it was
    for value in vars(emitted).values():
        assert CANARY not in str(value)
        assert CANARY not in repr(value)
    assert CANARY not in logging.Formatter("%(message)s %(asctime)s").format(emitted)
    assert emitted.__dict__["count"] == 3
    assert emitted.getMessage() == "sent http://h/partneraccess/***"


def test_other_handlers_get_the_arguments_and_the_exception() -> None:
    error = ValueError(URL_TEXT)
    record = _record(exc_info=(ValueError, error, None))
    emitted = _handled(record)
    assert emitted.exc_text == "ValueError: http://h/partneraccess/***"
    assert emitted.exc_info is None
    assert record.exc_info == (ValueError, error, None)
    assert record.exc_text is None
    assert record.args == (URL_TEXT,)


def test_filters_after_the_log_filter_get_the_masked_record() -> None:
    seen: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        seen.append(record.getMessage())
        return True

    class Own(SecretFilter):
        def filter(self, record: logging.LogRecord) -> Any:
            return super().filter(record)

    assert CANARY not in _handled(_record(), note, SecretFilter(), Own(), lambda one: note(one)).getMessage()
    assert seen == ["sent http://h/partneraccess/***"] * 2
    handler = logging.Handler()
    handler.emit = lambda _: seen.append("emitted")
    handler.addFilter(SecretFilter())
    handler.addFilter(lambda _: False)
    handler.handle(_record())
    assert "emitted" not in seen


@pytest.mark.parametrize("wrapped", ["subclass", "function"])
def test_a_log_filter_that_another_filter_calls_masks_too(wrapped: str) -> None:
    class Own(SecretFilter):
        def filter(self, record: logging.LogRecord) -> Any:
            return super().filter(record)

    inner = SecretFilter()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(Own() if wrapped == "subclass" else lambda record: inner.filter(record))
    handler.handle(_record())
    assert stream.getvalue() == "sent http://h/partneraccess/***\n"


def test_a_log_filter_of_a_logger_masks_its_records() -> None:
    stream = io.StringIO()
    logger = logging.Logger("own")
    logger.addHandler(logging.StreamHandler(stream))
    logger.addFilter(SecretFilter())
    logger.error("sent %s", URL_TEXT, extra={"url": URL_TEXT})
    assert stream.getvalue() == "sent http://h/partneraccess/***\n"


def test_a_secret_has_no_state_to_be_copied_from() -> None:
    with pytest.raises(TypeError, match="refuses to be pickled"):
        Secret(CANARY).__getstate__()
