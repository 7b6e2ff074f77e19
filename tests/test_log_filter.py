"""`SecretFilter` masks tokens and secrets in what other libraries log, and nothing else."""

from __future__ import annotations

import io
import json
import logging
import time
import traceback
from collections.abc import Callable
from pprint import pformat
from typing import Any

import pytest
from multidict import CIMultiDict
from yarl import URL

from flinks_async import SecretFilter
from flinks_async.secret import redact_request

CANARY = "canary-5f3e"


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
    assert time.process_time() - started < 5  # with a search from each place on it were minutes


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
    """Returns the record as a handler with these filters emits it."""
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
