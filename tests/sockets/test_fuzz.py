"""For any response, only a `FlinksError` is raised: never another exception, never a hang, never more than the cap."""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
import pickle
import random
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flinks_async import (
    Codec,
    DecodeError,
    FlinksClient,
    FlinksError,
    Limits,
    PartnerAccessResponse,
    Response,
    Retry,
    Timeouts,
)
from flinks_async.testing import FakeClock, InMemoryTransport
from flinks_async.transport.inflate import Inflater
from tests.raw_server import Close, RawConnection, RawServer, ReadHead, Respond, Send
from tests.support import examples

from .fault_table import chunked, head
from .support import BODY, OK, SECRET, assert_clean, client_for

RICH = json.dumps(
    {
        "GetAccountsDetail": [
            {
                "HttpStatusCode": 200,
                "Accounts": [
                    {
                        "Transactions": [{"Date": "2025-01-31", "Debit": 1000.4, "Balance": None, "Id": "x"}],
                        "Balance": {"Available": 5405.5, "Current": 5105.5, "Limit": None},
                        "Holder": {"Name": "n", "Address": {"City": "c"}},
                    }
                ],
                "Login": {"LastRefresh": "2023-04-11T15:04:43.3464411Z", "IsScheduledRefresh": False},
                "InstitutionId": 14,
            }
        ],
        "RequestId": "r-1",
    }
).encode()
GZIPPED = gzip.compress(RICH, mtime=0)
MESSAGES = {
    "with a length": OK.message,
    "chunked": head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunked(BODY[:20], BODY[20:]),
    "gzip": Respond(200, GZIPPED, {"Content-Encoding": "gzip"}).message,
    "an error": Respond(401, b'{"HttpStatusCode":401,"FlinksCode":"TOO_MANY_REQUESTS"}', {"Retry-After": "1"}).message,
}
CODEC = Codec()
INTERESTING = b'\x00\xff\r\n :;,+-0169aAz{}[]"\\/%'
relaxed = examples(100, derandomize=True)


async def outcome_of(call: Any) -> Any:
    """The answer, or the `FlinksError`; anything else goes through."""
    try:
        return await call
    except FlinksError as error:
        return error


def mutations(message: bytes, number: int, seed: int) -> list[bytes]:
    """The message with bytes changed, dropped, doubled or put in, and cut short."""
    rng = random.Random(seed)
    mutated = []
    for _ in range(number):
        data = bytearray(message)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at = rng.randrange(len(data))
            match rng.randrange(6):
                case 0:
                    data[at] = rng.choice(INTERESTING)
                case 1:
                    data[at] ^= 1 << rng.randrange(8)
                case 2:
                    del data[at]
                case 3:
                    data.insert(at, rng.choice(INTERESTING))
                case 4:
                    data[at:at] = data[at : at + rng.randrange(40)]
                case 5:
                    del data[max(1, at) :]
        mutated.append(bytes(data))
    return mutated


class Mutant:
    """Answers each connection with the current message and closes."""

    def __init__(self) -> None:
        self.message = b""

    async def __call__(self, connection: RawConnection) -> None:
        await ReadHead()(connection)
        await Send(self.message)(connection)
        await Close()(connection)


@pytest.mark.parametrize("kind", MESSAGES)
async def test_a_message_mutated_byte_by_byte(kind: str) -> None:
    mutant = Mutant()
    options: dict[str, Any] = {
        "retry": Retry(attempts=1),
        "timeouts": Timeouts(connect=5, attempt=5, deadline=None),
        "limits": Limits(max_body=100_000, breaker=None),
    }
    async with RawServer([mutant]) as server, client_for(server, **options) as client:
        for message in mutations(MESSAGES[kind], 400, seed=len(kind)):
            mutant.message = message
            async with asyncio.timeout(10):
                outcome = await outcome_of(client.partner_access("the-token"))
            assert isinstance(outcome, (PartnerAccessResponse, FlinksError))
            if isinstance(outcome, FlinksError):
                assert "the-token" not in repr(outcome)
        await assert_clean(client)
        mutant.message = OK.message
        assert (await client.partner_access("next")).request_id == "r-1"


async def test_a_message_cut_after_each_byte_is_never_an_answer() -> None:
    mutant = Mutant()
    message = Respond(200, BODY, {"X-A": "1"}).message
    async with RawServer([mutant]) as server, client_for(server, retry=Retry(attempts=1)) as client:
        for size in range(len(message)):
            mutant.message = message[:size]
            outcome = await outcome_of(client.partner_access("t"))
            assert isinstance(outcome, FlinksError), size
        await assert_clean(client)


class Fetch:
    """The outcome of a call that gets a response, without a network."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner

    def __call__(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, attempts: int = 2) -> Any:
        return self._runner.run(self._call(Response(status, headers or {}, body), attempts))

    async def _call(self, response: Response, attempts: int) -> Any:
        options: dict[str, Any] = {"clock": FakeClock(), "codec": CODEC, "retry": Retry(attempts=attempts)}
        transport = InMemoryTransport(default=response)
        async with FlinksClient(auth_secret=SECRET, transport=transport, **options) as client:
            return await outcome_of(client.partner_access("t"))


@pytest.fixture(scope="module")
def fetched() -> Iterator[Fetch]:
    with asyncio.Runner() as runner:
        yield Fetch(runner)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["2025-01-31", "2023-04-11T15:04:43.3464411Z", "0001-01-01", "12.30", -1, 2**64, 1e308])
)  # fmt: skip
names = st.sampled_from(
    [
        "GetAccountsDetail",
        "RequestId",
        "Accounts",
        "Transactions",
        "Balance",
        "Holder",
        "Address",
        "Login",
        "Links",
        "Date",
        "Debit",
        "Id",
        "Available",
        "HttpStatusCode",
        "FlinksCode",
        "Message",
        "IsScheduledRefresh",
        "LastRefresh",
        "InstitutionId",
        "rel",
        "href",
    ]
)
shapes = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | st.text(max_size=8), inner, max_size=6),
    max_leaves=25,
)


@relaxed
@given(data=shapes, status=st.sampled_from([200, 200, 200, 202, 400, 401, 404, 500]))
def test_json_of_any_shape(fetched: Fetch, data: Any, status: int) -> None:
    outcome = fetched(json.dumps(data).encode("utf-8", "surrogatepass"), status)
    assert isinstance(outcome, (PartnerAccessResponse, FlinksError))
    if isinstance(outcome, PartnerAccessResponse):
        repr(outcome)
        outcome.to_json()


@relaxed
@given(body=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_bytes_of_any_kind(fetched: Fetch, body: bytes) -> None:
    assert isinstance(fetched(body), (PartnerAccessResponse, FlinksError))


def test_an_answer_mutated_byte_by_byte(fetched: Fetch) -> None:
    for body in mutations(RICH, 1500, seed=3):
        outcome = fetched(body, attempts=1)
        assert isinstance(outcome, (PartnerAccessResponse, DecodeError, FlinksError))


@pytest.mark.parametrize("depth", [50, 200, 900, 5000])
def test_what_is_accepted_can_be_copied_and_pickled(depth: int, fetched: Fetch) -> None:
    outcome = fetched(b'{"RequestId":"r","Later":%b}' % (b"[" * depth + b"]" * depth), attempts=1)
    assert isinstance(outcome, (PartnerAccessResponse, DecodeError))
    for use in (repr, copy.deepcopy, pickle.dumps):
        try:
            use(outcome)
        except RecursionError:
            break
    else:
        return
    raise AssertionError(f"{use.__name__} at depth {depth}")


@relaxed
@given(
    name=st.sampled_from(
        ["Retry-After", "Retry-After-Ms", "X-Ms-Retry-After-Ms", "Date", "RateLimit-Remaining", "RateLimit-Reset"]
    ),
    value=st.text(max_size=40)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(
        [
            "1e9",
            "-1",
            "+5",
            "0x10",
            "٣",
            "1_000",
            "Mon, 99 Foo 2025 25:61:61 GMT",
            "9" * 400,
            "Fri, 31 Dec 9999 23:59:59 GMT",
        ]
    )
    | st.datetimes().map(lambda at: at.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    status=st.sampled_from([200, 429, 503]),
)
def test_headers_of_any_kind(fetched: Fetch, name: str, value: str, status: int) -> None:
    outcome = fetched(BODY, status, {name: value})
    assert isinstance(outcome, PartnerAccessResponse if status == 200 else FlinksError)
    if isinstance(outcome, FlinksError) and outcome.retry_after is not None:
        assert outcome.retry_after >= 0


@relaxed
@given(
    data=st.binary(max_size=300),
    coding=st.sampled_from(["gzip", "deflate", "gzip, deflate", "", "identity", "br"]) | st.text(max_size=12),
    size=st.integers(1, 50),
)
def test_encoded_bytes_of_any_kind(data: bytes, coding: str, size: int) -> None:
    total = 0
    try:
        inflater = Inflater(coding, 1000)
        for start in range(0, len(data), size):
            total += sum(map(len, inflater.steps(data[start : start + size])))
        inflater.finish()
    except FlinksError:
        pass
    assert total <= 1000


@relaxed
@given(
    data=st.binary(max_size=2000),
    members=st.integers(1, 4),
    twice=st.booleans(),
    size=st.integers(1, 400),
    raw=st.booleans(),
)
def test_what_was_encoded_comes_out_whatever_the_chunks(
    data: bytes, members: int, twice: bool, size: int, raw: bool
) -> None:
    if raw:
        packer = zlib.compressobj(wbits=-15)
        packed, coding = packer.compress(data) + packer.flush(), "deflate"
    else:
        cuts = [len(data) * part // members for part in range(members + 1)]
        packed, coding = b"".join(gzip.compress(data[a:b]) for a, b in pairwise(cuts)), "gzip"
    if twice:
        packed, coding = zlib.compress(packed), f"{coding}, deflate"
    inflater = Inflater(coding, 10_000)
    parts = [piece for start in range(0, len(packed), size) for piece in inflater.steps(packed[start : start + size])]
    inflater.finish()
    assert b"".join(parts) == data
