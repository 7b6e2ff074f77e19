"""A hostile body uses no more memory than the cap allows, regardless of its declared or decompressed size."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import pytest

from flinks_async import (
    AttemptTimeoutError,
    FlinksError,
    JSONLimitError,
    Limits,
    ProtocolError,
    ResponseTooLargeError,
    Retry,
    Timeouts,
)
from tests.raw_server import Flood, RawServer, ReadHead, Respond, Send

from ..support import traced
from .fault_table import head
from .support import BODY, SHORT, assert_clean, client_for

CAP = 1024 * 1024
ROOM = 3 * CAP + 2 * 1024 * 1024
"""The parts of the body, the body joined from them, and what the two sockets hold."""

_ZEROS = zlib.compressobj(9, zlib.DEFLATED, 31)
_BLOCK = b"\0" * 1024 * 1024
BOMB = b"".join([*(_ZEROS.compress(_BLOCK) for _ in range(100)), _ZEROS.flush()])  # 100 MB in 100 KB
TE = head("Transfer-Encoding: chunked")
KB = b"1000\r\n" + b" " * 4096 + b"\r\n"

HOSTILE: dict[str, tuple[Any, type[FlinksError]]] = {
    "gzip bomb": (Respond(200, BOMB, {"Content-Encoding": "gzip"}), ResponseTooLargeError),
    "bomb in a bomb": (Respond(200, gzip.compress(BOMB), {"Content-Encoding": "gzip, gzip"}), ResponseTooLargeError),
    "chunks without end": ((Send(TE), Flood(KB)), ResponseTooLargeError),
    "gzip chunks without end": (
        (
            Send(head("Transfer-Encoding: chunked", "Content-Encoding: gzip")),
            Flood(b"%x\r\n%b\r\n" % (len(gzip.compress(_BLOCK)), gzip.compress(_BLOCK))),
        ),
        ResponseTooLargeError,
    ),
    "a body without end": ((Send(head()), Flood(b" " * 65536)), ResponseTooLargeError),
    "a length of a petabyte": ((Send(head(f"Content-Length: {10**15}")), Flood(b" " * 65536)), ResponseTooLargeError),
    "headers without end": ((Send(b"HTTP/1.1 200 OK\r\n"), Flood(b"X-A: " + b"a" * 60000 + b"\r\n")), ProtocolError),
    "a header without end": ((Send(b"HTTP/1.1 200 OK\r\nX-A: "), Flood(b"a" * 65536)), ProtocolError),
    "a reason without end": ((Send(b"HTTP/1.1 200 "), Flood(b"a" * 65536)), ProtocolError),
    "trailers without end": ((Send(TE + b"0\r\n"), Flood(b"X-A: " + b"a" * 1000 + b"\r\n")), ProtocolError),
    "one trailer without end": ((Send(TE + b"0\r\nX-A: "), Flood(b"a" * 65536)), ProtocolError),
    "a chunk extension without end": ((Send(TE + b"1;"), Flood(b"a" * 65536)), AttemptTimeoutError),
    "1xx answers without end": (
        Flood(head("X-A: " + "a" * 4000, status="HTTP/1.1 103 Early Hints") * 10),
        AttemptTimeoutError,
    ),
    "members without data": (
        (
            Send(head("Transfer-Encoding: chunked", "Content-Encoding: gzip")),
            Flood(b"%x\r\n%b\r\n" % (20 * 100, gzip.compress(b"", mtime=0) * 100)),
        ),
        ProtocolError,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_memory_stays_within_the_cap(name: str) -> None:
    steps, outcome = HOSTILE[name]
    options: dict[str, Any] = {"limits": Limits(max_body=CAP), "retry": Retry(attempts=1)}
    if outcome is AttemptTimeoutError:
        options["timeouts"] = SHORT
    script = [ReadHead(), *(steps if isinstance(steps, tuple) else (steps,))]

    async def peak() -> int:
        async with RawServer(script) as server, client_for(server, **options) as client:
            with traced() as memory, pytest.raises(FlinksError) as caught:
                await client.partner_access("t")
            assert type(caught.value) is outcome
            await assert_clean(client)
        return memory.peak

    assert await peak() < ROOM or await peak() < ROOM


async def test_what_has_just_the_size_of_the_cap_is_taken() -> None:
    body = BODY + b" " * (CAP - len(BODY))
    for packed, headers in ((body, {}), (gzip.compress(body), {"Content-Encoding": "gzip"})):
        async with RawServer([ReadHead(), Respond(200, packed, headers)]) as server:
            async with client_for(server, limits=Limits(max_body=CAP)) as client:
                assert (await client.partner_access("t")).request_id == "r-1"


async def test_a_bomb_does_not_stop_the_event_loop() -> None:
    padding = gzip.compress(bytes(16 * CAP))
    bomb = gzip.compress(gzip.compress(gzip.compress(BODY)) + padding * 20)
    script = [ReadHead(), Respond(200, bomb, {"Content-Encoding": "gzip, gzip, gzip"})]
    async with RawServer(script) as server, client_for(server, retry=Retry(attempts=1)) as client:
        asked = asyncio.create_task(client.partner_access("t"))
        turns = 0
        while not asked.done():
            await asyncio.sleep(0)
            turns += 1
        with pytest.raises(ResponseTooLargeError):
            await asked
    assert turns > 40


async def test_a_bomb_has_no_more_time_than_an_attempt() -> None:
    bomb = gzip.compress(bytes(60 * CAP))
    packed = gzip.compress(gzip.compress(bomb))
    script = [ReadHead(), Respond(200, packed, {"Content-Encoding": "gzip, gzip, gzip"})]
    times = Timeouts(attempt=0.01)
    async with RawServer(script) as server, client_for(server, retry=Retry(attempts=1), timeouts=times) as client:
        with pytest.raises(AttemptTimeoutError):
            await client.partner_access("t")


async def test_json_of_more_values_than_account_data_have_is_not_expanded() -> None:
    body = b'{"X":[' + b"1," * 8 * CAP + b"1]}"
    script = [ReadHead(), Respond(200, gzip.compress(body), {"Content-Encoding": "gzip"})]
    async with RawServer(script) as server, client_for(server) as client:
        with traced() as memory, pytest.raises(JSONLimitError) as caught:
            await client.partner_access("t")
    assert caught.value.attempts == 1
    assert memory.peak < 3 * len(body)
