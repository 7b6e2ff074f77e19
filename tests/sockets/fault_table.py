"""The table of faults: what a server does, and the outcome for the client. Run by test_faults.py, printed into docs/faults.md.

The numbers are those of the project's list of hostile cases; a letter marks a case of the same family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from attrs import evolve, field, frozen

from flinks_async import FlinksError
from tests.raw_server import Script, Step

Check = Callable[[Any], object]
NOTHING: Mapping[str, Any] = MappingProxyType({})


@frozen(kw_only=True)
class Row:
    """One fault.

    Attributes:
        number: in the list of hostile cases.
        case: in words.
        turn: what the server does with each request, after it has read its head.
        accept: what it does with each connection before that.
        outcome: the class of the error, exactly; None for an answer.
        requests: complete request heads on the wire, with 3 attempts allowed.
        attempts: made by the client; default as many as requests.
        status: the error's status.
        check: looks at the answer or the error.
        options: of the client.
        listening: False: the port is closed until the fault is over.
        tls: makes the server's TLS context out of the test's authority, for as long as the fault lasts.
        resolve: replaces the event loop's `getaddrinfo`, for as long as the fault lasts.
        family: the module that it comes from.
        open: why the outcome is another one for now.
        open_since: from this version of Python.
        reused: the next request is expected on the same connection (True) or on a new one (False).
    """

    number: str
    case: str
    turn: Script = ()
    accept: Script = ()
    outcome: type[FlinksError] | None = None
    requests: int = 1
    attempts: int = field()
    status: int | None = None
    check: Check | None = None
    options: Mapping[str, Any] = NOTHING
    listening: bool = True
    tls: Callable[[Any], Any] | None = None
    resolve: Callable[..., Any] | None = None
    reused: bool | None = None
    open: str | None = None
    open_since: tuple[int, int] = (3, 0)
    family: str = ""

    @attempts.default
    def _as_many_as_requests(self) -> int:
        return self.requests

    @property
    def name(self) -> str:
        return f"{self.number} {self.case}"


def row(
    number: str, case: str, turn: Step | Script, outcome: type[FlinksError] | None, requests: int, **more: Any
) -> Row:
    steps = (turn,) if callable(turn) else tuple(turn)
    return Row(number=number, case=case, turn=steps, outcome=outcome, requests=requests, **more)


def head(*lines: str, status: str = "HTTP/1.1 200 OK", end: str = "\r\n") -> bytes:
    """The head of a response, from its lines."""
    return (end.join((status, *lines)) + end + end).encode("latin-1")


def chunked(*parts: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + last


def never(*args: Any, **kwargs: Any) -> None:
    """Replaces `getaddrinfo`: no answer while the fault lasts."""


def all_rows() -> list[Row]:
    from . import rows_body, rows_connection, rows_json, rows_message, rows_status, rows_tls

    families = (rows_connection, rows_message, rows_body, rows_json, rows_status, rows_tls)
    return [evolve(row, family=family.__name__.rpartition(".")[2]) for family in families for row in family.ROWS]
