"""Each fault, byte by byte, seen by a raw socket."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
import zlib
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from flinks_async.testing import KINDS, Fault, FlinksServer, expected_body

TOKEN = "token-1"
ANSWER = expected_body(TOKEN, size="medium")


async def wire(kind: str | Fault, server: FlinksServer | None = None) -> tuple[bytes, bool]:
    """Everything that came for one request, and whether the connection was reset."""
    if server is None:
        async with FlinksServer(size="medium") as server:
            return await wire(kind, server)
    server.script(TOKEN, [kind])
    host, port = server.base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
    head = f"GET /partneraccess/{TOKEN} HTTP/1.1\r\nHost: {host}\r\nflinks-auth-key: {server.auth_secret}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode())
    received, was_reset = b"", False
    try:
        async with asyncio.timeout(10):
            while chunk := await reader.read(65536):
                received += chunk
    except ConnectionResetError:
        was_reset = True
    writer.close()
    with suppress(ConnectionResetError):
        await writer.wait_closed()
    return received, was_reset


def parse(received: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}, body


REPLIES = [name for name, fault in KINDS.items() if fault.mode == "reply"]


@pytest.mark.parametrize("name", REPLIES)
async def test_replies_are_whole(name: str) -> None:
    fault = KINDS[name]
    received, was_reset = await wire(name)
    status, headers, body = parse(received)
    assert (status, body, was_reset) == (fault.status, fault.body, False)
    assert headers["content-length"] == str(len(body))
    assert headers["content-type"] == fault.content_type


@pytest.mark.parametrize(
    ("name", "status", "code", "inside"),
    [
        ("too_many_requests", 401, "TOO_MANY_REQUESTS", 401),
        ("too_many_requests_403", 403, "TOO_MANY_REQUESTS", 403),
        ("retry_later", 401, "RETRY_LATER", 401),
        ("aggregation_error", 500, "AGGREGATION_ERROR", 500),
        ("card_in_use", 400, "CARD_IN_USE", 400),
        ("operation_pending", 202, "OPERATION_PENDING", 202),
        ("envelope_200", 200, "AGGREGATION_ERROR", 500),
        ("session_nonexistent", 401, "SESSION_NONEXISTENT", 401),
        ("unauthorized", 401, "UNAUTHORIZED", 401),
    ],
)
async def test_envelopes(name: str, status: int, code: str, inside: int) -> None:
    received, _ = await wire(name)
    seen, _, body = parse(received)
    envelope = json.loads(body)
    assert (seen, envelope["FlinksCode"], envelope["HttpStatusCode"]) == (status, code, inside)
    assert set(envelope) == {"HttpStatusCode", "FlinksCode", "Message"}


async def test_the_forms_of_retry_after() -> None:
    assert "retry-after" not in parse((await wire("http_429"))[0])[1]
    assert parse((await wire("http_429_seconds"))[0])[1]["retry-after"] == "1"
    in_an_hour = KINDS["http_429_date"].evolve(retry_after=3600)
    date = parsedate_to_datetime(parse((await wire(in_an_hour))[0])[1]["retry-after"])
    assert 3590 < date.timestamp() - time.time() <= 3600


async def test_reset_and_close_before_the_headers() -> None:
    assert await wire("reset") == (b"", True)
    assert await wire("close") == (b"", False)


@pytest.mark.parametrize(("name", "is_reset"), [("reset_body", True), ("close_body", False)])
async def test_reset_and_close_in_the_middle_of_the_body(name: str, is_reset: bool) -> None:
    received, was_reset = await wire(name)
    status, headers, body = parse(received)
    assert (status, was_reset) == (200, is_reset)
    assert int(headers["content-length"]) == len(ANSWER)
    assert body == ANSWER[: len(ANSWER) // 2]


async def test_truncated_json_is_a_correct_http_message() -> None:
    status, headers, body = parse((await wire("truncated_json"))[0])
    assert (status, headers["content-length"]) == (200, str(len(body)))
    assert ANSWER.startswith(body)
    assert 0 < len(body) < len(ANSWER)


async def test_truncated_gzip_is_a_correct_http_message() -> None:
    status, headers, body = parse((await wire("truncated_gzip"))[0])
    assert (status, headers["content-length"], headers["content-encoding"]) == (200, str(len(body)), "gzip")
    assert ANSWER.startswith(zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(body))
    with pytest.raises(EOFError):
        gzip.decompress(body)


@pytest.mark.parametrize("name", ["garbage", "two_lengths"])
async def test_what_is_not_http(name: str) -> None:
    assert await wire(name) == (KINDS[name].body, False)


async def test_a_hang_ends_when_it_is_released() -> None:
    async with FlinksServer(size="medium") as server:
        waiting = asyncio.create_task(wire("hang", server))
        await server.received(1)
        server.release()
        assert parse((await waiting)[0])[2] == ANSWER


async def test_a_hang_can_end_by_itself() -> None:
    assert await wire(KINDS["hang"].evolve(hang_for=0.01)) == (b"", False)


async def test_a_delay_comes_before_the_answer() -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    received, _ = await wire(KINDS["slow"].evolve(delay=0.05))
    assert parse(received)[2] == ANSWER
    assert loop.time() - start >= 0.04


async def test_every_fault_is_counted_and_leaves_nothing_behind() -> None:
    async with FlinksServer() as server:
        for name in KINDS:
            kind = KINDS[name].evolve(hang_for=0.01) if name == "hang" else KINDS[name]
            await wire(kind, server)
        assert server.stats.faults == dict.fromkeys(KINDS, 1)
        assert server.stats.answered == 1, "the slow one"
        ended = {"hang", "reset", "close", "reset_body", "close_body", "garbage", "two_lengths"}
        assert sum(server.stats.statuses.values()) == len(KINDS) - len(ended)
        async with asyncio.timeout(5):
            while server.stats.in_flight:
                await asyncio.sleep(0)


def test_the_page_about_tests_names_every_fault() -> None:
    page = (Path(__file__).parent.parent / "docs" / "testing.md").read_text(encoding="utf-8")
    table = "".join(line for line in page.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([a-z_0-9]+)`", table.replace("server.release()", ""))) == set(KINDS)


async def test_a_script_takes_answers_as_dictionaries() -> None:
    status, _, body = parse((await wire({"GetAccountsDetail": None, "RequestId": "r"}))[0])
    assert (status, json.loads(body)) == (200, {"GetAccountsDetail": None, "RequestId": "r"})
