"""Bodies that are HTTP but perhaps not an answer."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from flinks_async import (
    AuthenticationError,
    JSONLimitError,
    NotJSONError,
    PartnerAccessResponse,
    RateLimitedError,
    ServerError,
    WrongTypeError,
)
from tests.raw_server import Respond

from .fault_table import Row, row
from .support import BODY

PAGE = b"<!DOCTYPE html><html><head><title>Maintenance</title></head><body>PLANTED-TEXT</body></html>"


def page(number: str, case: str, body: bytes, content_type: str = "text/html") -> Row:
    return row(
        number,
        case,
        Respond(200, body, {"Content-Type": content_type}),
        NotJSONError,
        2,
        status=200,
        check=_shows_no_page,
    )


def _shows_no_page(error: Any) -> None:
    assert "PLANTED" not in f"{error!r}{error}"


def typed(number: str, case: str, content_type: str, body: bytes = BODY) -> Row:
    return row(number, case, Respond(200, body, {"Content-Type": content_type}), None, 1)


def broken(number: str, case: str, body: bytes) -> Row:
    return row(number, case, Respond(200, body), NotJSONError, 2, status=200)


def final(number: str, case: str, body: bytes, **more: Any) -> Row:
    return row(number, case, Respond(200, body), JSONLimitError, 1, status=200, **more)


def fine(number: str, case: str, body: bytes, check: Any = None) -> Row:
    return row(number, case, Respond(200, body), None, 1, check=check, reused=True)


def wrong(number: str, case: str, body: bytes, path: str | None) -> Row:
    def names_the_place(error: WrongTypeError) -> None:
        assert error.path == path

    return row(number, case, Respond(200, body), WrongTypeError, 1, status=200, check=names_the_place)


def amount(text: bytes) -> bytes:
    return b'{"GetAccountsDetail":[{"Accounts":[{"Balance":{"Current":%b}}]}],"RequestId":"r"}' % text


CURRENT = "GetAccountsDetail[0].Accounts[0].Balance.Current"


def current(value: str) -> Any:
    def check(answer: PartnerAccessResponse) -> None:
        balance = answer.accounts[0].balance
        assert balance is not None
        assert str(balance.current) == str(Decimal(value))

    return check


def unknown(text: bytes) -> bytes:
    return b'{"GetAccountsDetail":[],"RequestId":"r-1","Later":%b}' % text


ROWS = [
    page("21", "a maintenance page", PAGE),
    page("21a", "a page labelled as JSON", PAGE, "application/json"),
    page("21b", "XML", b"<?xml version='1.0'?><error>PLANTED</error>", "text/xml"),
    page("21c", "a page of 1 MB", PAGE + b"<p>PLANTED</p>" * 70_000),
    page("21d", "plain text", b"PLANTED: upstream connect error", "text/plain"),
    row("22", "no Content-Type", Respond(200, BODY, {"Content-Type": ""}), None, 1),
    typed("22a", "text/plain", "text/plain"),
    typed("22b", "an unknown charset", "application/json; charset=utf-99"),
    typed("22c", "a wrong charset", "application/json; charset=utf-16"),
    typed("22d", "an invalid Content-Type", ";;;===\"'"),
    typed("22e", "a byte-order mark", "application/json", b"\xef\xbb\xbf" + BODY),
    broken("22f", "UTF-16", BODY.decode().encode("utf-16")),
    broken("22g", "Latin-1", '{"RequestId":"é"}'.encode("latin-1")),
    broken("23", "JSON cut short", BODY[:-10]),
    broken("23a", "junk after the JSON", BODY + b"}"),
    broken("23b", "two JSON texts", BODY + b"\n" + BODY),
    broken("23c", "single quotes", b"{'RequestId': 'r'}"),
    broken("23d", "a trailing comma", b'{"RequestId":"r",}'),
    broken("23e", "a comment", b'{"RequestId":"r"} // done'),
    broken("23f", "a raw control character in a string", b'{"RequestId":"a\x00b"}'),
    broken("23g", "NUL bytes", b"\0" * 100),
    broken("23h", "JSON-P", b"callback(" + BODY + b")"),
    final("24", "NaN as an amount", amount(b"NaN")),
    final("24a", "Infinity as an amount", amount(b"-Infinity")),
    wrong("24b", "1e400 as an amount", amount(b"1e400"), CURRENT),
    wrong("24c", "1e-400 as an amount", amount(b"1e-400"), CURRENT),
    final("25", "2,000 levels deep in an unknown field", unknown(b"[" * 2_000 + b"]" * 2_000)),
    final("25a", "100,000 levels deep", unknown(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)),
    final("25b", "100,000 levels that never close", b"[" * 100_000),
    final("25c", "two million values", b'{"New":[' + b"[]," * 2_000_000 + b"[]]}"),
    final("25d", "20,000 keys in one object", b"{" + b",".join(b'"%d":1' % n for n in range(20_000)) + b"}"),
    fine(
        "26",
        "an amount of 28 digits",
        amount(b"1234567890123456789012345.678"),
        current("1234567890123456789012345.678"),
    ),
    fine("26a", "an integer above 2**63 in an unknown field", unknown(b"9223372036854775809123")),
    final("26b", "an amount of 5,000 digits", amount(b"9" * 5_000)),
    final("26c", "5,000 digits in an unknown field", unknown(b"9" * 5_000)),
    fine("26d", "12.30 keeps its zero", amount(b"12.30"), current("12.30")),
    fine("27", "unknown fields at every level", unknown(b'{"a":[1,2.50,null,true]}')),
    fine("27a", "GetAccountsDetail is null", b'{"GetAccountsDetail":null,"RequestId":"r"}'),
    fine("27b", "GetAccountsDetail is an object", b'{"GetAccountsDetail":{"LoginId":"l"},"RequestId":"r"}'),
    fine("27c", "GetAccountsDetail is missing", b'{"RequestId":"r"}'),
    fine("27d", "an empty object", b"{}"),
    fine("27e", "a duplicate key", b'{"RequestId":"a","RequestId":"r-2","GetAccountsDetail":[]}'),
    wrong("27f", "an array", b"[]", None),
    wrong("27g", "a string", b'"x"', None),
    wrong("27h", "a number", b"1", None),
    wrong("27i", "true", b"true", None),
    wrong("27j", "GetAccountsDetail is a string", b'{"GetAccountsDetail":"x"}', "GetAccountsDetail"),
    wrong("27k", "GetAccountsDetail is a number", b'{"GetAccountsDetail":1}', "GetAccountsDetail"),
    wrong("27l", "GetAccountsDetail is a list with null", b'{"GetAccountsDetail":[null]}', "GetAccountsDetail[0]"),
    wrong("27m", "an amount as a string", amount(b'"12.30"'), CURRENT),
    row(
        "28",
        "200 with UNAUTHORIZED in the body",
        Respond(200, b'{"HttpStatusCode":401,"FlinksCode":"UNAUTHORIZED"}'),
        AuthenticationError,
        1,
        status=200,
    ),
    row(
        "28a",
        "200 with TOO_MANY_REQUESTS in the body",
        Respond(200, b'{"HttpStatusCode":401,"FlinksCode":"TOO_MANY_REQUESTS"}'),
        RateLimitedError,
        3,
        status=200,
    ),
    row(
        "28b",
        "200 with HttpStatusCode 503 in the body",
        Respond(200, b'{"HttpStatusCode":503}'),
        ServerError,
        3,
        status=200,
    ),
    row(
        "28c",
        '200 with HttpStatusCode "401" in the body, as text',
        Respond(200, b'{"HttpStatusCode":"401"}'),
        AuthenticationError,
        1,
        status=200,
    ),
]
