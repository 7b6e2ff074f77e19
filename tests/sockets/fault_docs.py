"""docs/faults.md from the table of faults. `python -m tests.sockets.fault_docs` writes it; a test compares it."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from attrs import frozen

from .fault_table import Row, all_rows

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
TITLES = {
    "rows_connection": "Connections",
    "rows_message": "Messages",
    "rows_body": "Bodies",
    "rows_json": "JSON",
    "rows_status": "Statuses",
    "rows_tls": "TLS",
}

HEADER = """# Faults

This page lists how the client reacts to each fault of a server or network. It is written by `python -m tests.sockets.fault_docs` from the
table that `tests/sockets/test_faults.py` runs; do not edit it. Each row is a test on real sockets. Most run twice: on a connection
of this package, and with `aiohttp.ClientSession`.

Each test checks the exact class of the outcome, its status, the number of requests that reached the server, and that the client counted
the same number of attempts. It also checks that no connection, slot or call is left over, that the error contains no secret and no URL
and can be pickled, and that the next request of the same client succeeds.

The client has `Retry(attempts=3)`. The column *requests* counts complete requests that reached the server: 3 means that all attempts were
used, 2 that the request was retried once, and 1 that the outcome is final. The number in brackets counts attempts, if it is different.
"""


@frozen
class Elsewhere:
    """A case with a separate test.

    Attributes:
        test: file and function, below tests/sockets.
    """

    number: str
    case: str
    outcome: str
    test: str


ELSEWHERE = (
    Elsewhere("3", "no response to a connect (SYNs are dropped)", "`ConnectTimeoutError`, 3 attempts", "test_waits.py::test_a_connect_that_gets_no_answer_ends_with_connect_timeout"),
    Elsewhere("15", "an unrequested response on an idle connection", "never used for the next request", "test_reuse.py::test_data_on_an_idle_connection_never_becomes_an_answer"),
    Elsewhere("33, 34", "bombs; endless bodies, headers, trailers, 1xx responses", "an error; memory stays below the limit", "test_memory.py::test_memory_stays_within_the_cap"),
    Elsewhere("35", "cookies", "not stored", "test_reuse.py::test_cookies_are_not_kept"),
    Elsewhere("38", "a redirect to another origin", "`RedirectError`; nothing is sent to it", "test_on_the_wire.py::test_a_redirect_to_another_origin_sends_nothing_there"),
    Elsewhere("44, 45", "Retry-After: seconds, milliseconds, three forms of dates, a wrong clock", "waits at least as long", "test_waits.py::test_at_least_as_long_as_the_server_asks"),
    Elsewhere("44, 45", "Retry-After: negative, past, garbage", "the usual backoff", "test_waits.py::test_nonsense_is_ignored"),
    Elsewhere("44", "Retry-After above the cap", "the error at once, with `retry_after`", "test_waits.py::test_what_is_asked_beyond_the_cap_ends_the_call_and_is_told"),
    Elsewhere("52", "a body without a length that ends with a FIN, but not with TLS's close_notify", "`ReadError`; accepted through a proxy or a session of yours, because aiohttp does not tell the two apart", "test_tls.py::test_a_body_without_a_length_ends_only_with_tls"),
    Elsewhere("52", "a client certificate, TLS 1.2 and 1.3, SNI, ALPN, a trailing dot, IPv6", "success", "test_tls.py::test_a_client_certificate_is_shown_when_asked_for"),
    Elsewhere("53", "base_url with a port and a path", "success", "test_on_the_wire.py::test_base_url_may_have_a_path_and_a_port"),
    Elsewhere("54", "a reused connection is dropped", "success; every request is counted", "test_hidden_retry.py::test_dropped_reused_connections_are_no_error_and_every_request_is_counted"),
    Elsewhere("55", "all slots in use", "success; time in the queue does not count against the attempt", "test_waits.py::test_the_time_in_the_queue_does_not_count_against_the_attempt"),
    Elsewhere("58", "a proxy that refuses (407 is final, others are retried)", "`ProxyError`", "test_proxy.py::test_a_proxy_that_refuses_is_a_proxy_error"),
    Elsewhere("58", "a proxy that is down", "`ProxyError`, 3 attempts", "test_proxy.py::test_a_proxy_that_is_down_is_a_proxy_error"),
    Elsewhere("58", "a proxy in the environment", "used only with `trust_env`", "test_proxy.py::test_a_proxy_of_the_environment_is_used_only_if_asked_for"),
    Elsewhere("59, 61, 62", "tokens that would change the request", "`InvalidTokenError`; nothing is sent", "test_on_the_wire.py::test_a_token_that_would_change_the_request_is_refused"),
    Elsewhere("60", "tokens with special characters", "percent-encoded exactly once", "test_on_the_wire.py::test_a_token_is_percent_encoded_exactly_once"),
    Elsewhere("63", "secrets and headers with line breaks", "`ConfigError`", "test_on_the_wire.py::test_a_header_cannot_be_injected"),
    Elsewhere("66", "cancelled at each await", "`CancelledError`; nothing is left over", "test_cancellation.py::test_a_call_on_real_sockets"),
    Elsewhere("67", "`asyncio.timeout` around the call", "the caller's `TimeoutError`", "test_cancellation.py::test_a_timeout_around_us_stays_the_callers"),
    Elsewhere("69", "client closed with calls in flight", "`ClientClosedError` after the grace period", "test_closing.py::test_after_the_grace_calls_end_with_client_closed"),
    Elsewhere("70", "another event loop, thread or forked child", "success, on separate connections", "test_session.py::test_a_forked_child_has_connections_of_its_own"),
    Elsewhere("71", "uvloop, debug mode", "nothing is left over, nothing is logged", "test_cancellation.py::test_uvloop"),
)  # fmt: skip


def page() -> str:
    parts = [HEADER]
    for family, rows in groupby(all_rows(), key=lambda row: row.family):
        parts.append(
            f"## {TITLES[family]}\n\n| # | fault | outcome | requests |\n|---|---|---|---|\n{_lines(list(rows))}\n"
        )
    lines = "\n".join(f"| {one.number} | {one.case} | {one.outcome} | `{one.test}` |" for one in ELSEWHERE)
    parts.append(f"## Separate tests\n\n| # | case | outcome | test |\n|---|---|---|---|\n{lines}\n")
    return "\n".join(parts)


def _lines(rows: list[Row]) -> str:
    lines = []
    for (number, outcome, requests), same in groupby(rows, key=lambda row: (row.number, _outcome(row), _requests(row))):
        cases = ", ".join(row.case for row in same).replace("|", "\\|")
        lines.append(f"| {number} | {cases} | {outcome} | {requests} |")
    return "\n".join(lines)


def _outcome(row: Row) -> str:
    outcome = "success" if row.outcome is None else f"`{row.outcome.__name__}`"
    return f"{outcome} (open: {row.open})" if row.open else outcome


def _requests(row: Row) -> str:
    return str(row.requests) if row.attempts == row.requests else f"{row.requests} ({row.attempts})"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
