"""Inflating bytes as they arrive: complete bodies, broken ones and bombs."""

from __future__ import annotations

import gzip
import random
import zlib
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flinks_async.errors import FlinksError, ProtocolError, ReadError, ResponseTooLargeError
from flinks_async.transport.inflate import MAX_MEMBERS, STEP, TURN, Inflater

from .support import examples, traced

MIB = 1024 * 1024
TEXT = b'{"GetAccountsDetail":null}' * 9000


def feed(inflater: Inflater, chunk: bytes) -> bytes:
    return b"".join(inflater.steps(chunk))


def inflate(encoding: str, body: bytes, size: int = 4096, limit: int = 64 * MIB) -> bytes:
    inflater = Inflater(encoding, limit)
    parts = [feed(inflater, body[start : start + size]) for start in range(0, len(body), size)]
    inflater.finish()
    return b"".join(parts)


def _raw(data: bytes) -> bytes:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


GZIPPED = gzip.compress(b"{}", mtime=0)
ENDLESS = {
    "zero padding": (GZIPPED, bytes(4096)),
    "a name": (b"\x1f\x8b\x08\x08" + bytes(6), b"a" * 4096),
    "empty blocks": (GZIPPED[:10], b"\0\0\0\xff\xff" * 1000),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_input_without_output_stops_at_the_limit(kind: str) -> None:
    begin, more = ENDLESS[kind]
    inflater, came = Inflater("gzip", MIB), 0
    with pytest.raises(ResponseTooLargeError):
        feed(inflater, begin)
        while came < 2 * MIB:
            feed(inflater, more)
            came += len(more)


EMPTY = gzip.compress(b"", mtime=0)


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip"])
def test_gzip_has_ten_thousand_members_at_most(encoding: str) -> None:
    for more, error in ((0, None), (1, ProtocolError)):
        body = GZIPPED + EMPTY * (MAX_MEMBERS - 1 + more)
        if encoding != "gzip":
            body = gzip.compress(body)
        with pytest.raises(error, match="more than 10000 gzip members") if error else nullcontext():
            assert inflate(encoding, body) == b"{}"


def test_endless_members_cost_no_more_than_the_maximum() -> None:
    inflater = Inflater("gzip", 64 * MIB)
    with pytest.raises(ProtocolError, match="members"):
        feed(inflater, EMPTY * 1_000_000)
    assert inflater._calls < 2 * MAX_MEMBERS


def test_the_limit_also_applies_between_two_encodings() -> None:
    inner = gzip.compress(b"{}")
    for size, error in ((MIB + STEP, None), (MIB + STEP + 1, ResponseTooLargeError)):
        body = gzip.compress(inner + bytes(size - len(inner)))  # padding
        with pytest.raises(error, match=f"the encoded body is larger than {MIB}") if error else nullcontext():
            assert inflate("gzip, gzip", body, limit=MIB) == b"{}"


def test_three_encodings_together_stay_within_the_limit_of_one() -> None:
    padding = gzip.compress(bytes(4 * MIB))
    inflater = Inflater("gzip, gzip, gzip", 6 * MIB)
    with pytest.raises(ResponseTooLargeError):
        feed(inflater, gzip.compress(gzip.compress(gzip.compress(b"{}")) + padding * 1000))
    assert inflater._calls < 3 * 6 * MIB / STEP


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(bytes(8 * MIB))),
        ("gzip, gzip", gzip.compress(gzip.compress(bytes(8 * MIB)))),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}") + bytes(8 * MIB))),
        ("gzip", EMPTY * 9000),
    ],
)
def test_long_work_gives_the_event_loop_turns(encoding: str, body: bytes) -> None:
    inflater, since, turns = Inflater(encoding, 64 * MIB), 0, 0
    for piece in inflater.steps(body):
        if piece:
            since += 1
        else:
            assert since <= TURN
            since, turns = 0, turns + 1
    assert turns == inflater._calls // TURN >= 4


def test_a_small_body_gives_no_turns() -> None:
    assert list(Inflater("gzip", MIB).steps(GZIPPED)) == [b"{}"]
    assert list(Inflater("", MIB).steps(GZIPPED)) == [GZIPPED]


def test_incompressible_data_may_be_as_large_as_the_limit() -> None:
    noise = random.Random(0).randbytes(MIB)
    assert inflate("gzip", gzip.compress(noise), limit=MIB) == noise


def test_an_encoded_body_may_exceed_the_limit_by_one_step() -> None:
    inflater = Inflater("gzip", MIB)
    assert feed(inflater, GZIPPED + bytes(MIB + STEP - len(GZIPPED))) == b"{}"
    with pytest.raises(ResponseTooLargeError, match="encoded body"):
        feed(inflater, b"\0")


@pytest.mark.parametrize(("first", "size"), [(0x08, 5), (0x09, 21), (0x88, 28)])
def test_a_raw_stream_may_begin_almost_like_a_zlib_header(first: int, size: int) -> None:
    stored = bytes([first]) + size.to_bytes(2, "little") + (0xFFFF - size).to_bytes(2, "little") + TEXT[:size]
    assert inflate("deflate", stored if first & 1 else stored + b"\x01\x00\x00\xff\xff") == TEXT[:size]


def test_gzip_may_refer_32_kb_back() -> None:
    data = random.Random(0).randbytes(32_000) * 2
    body = gzip.compress(data)
    assert len(body) < 40_000
    assert inflate("gzip", body) == data


ENCODED = [
    ("", TEXT),
    ("identity", TEXT),
    ("gzip", gzip.compress(TEXT, mtime=0)),
    ("x-gzip", gzip.compress(TEXT, mtime=0)),
    (" GZip ,, identity", gzip.compress(TEXT, mtime=0)),
    ("none", TEXT),
    ("UTF-8", TEXT),
    ("None, utf-8, identity, gzip, deflate", zlib.compress(gzip.compress(TEXT, mtime=0))),
    ("gzip", gzip.compress(TEXT[:1000], mtime=0) + gzip.compress(b"", mtime=0) + gzip.compress(TEXT[1000:], mtime=0)),
    ("gzip", gzip.compress(TEXT, mtime=0) + bytes(700)),
    ("deflate", zlib.compress(TEXT)),
    ("deflate", _raw(TEXT)),
    ("deflate, gzip", gzip.compress(zlib.compress(TEXT), mtime=0)),
    ("gzip,deflate,gzip", gzip.compress(_raw(gzip.compress(TEXT, mtime=0)), mtime=0)),
]


@pytest.mark.parametrize(("encoding", "body"), ENCODED)
@pytest.mark.parametrize("size", [1, 7, 4096, 10**9])
def test_whole_bodies(encoding: str, body: bytes, size: int) -> None:
    if size == 1 and len(body) > 50_000:
        size = 97
    assert inflate(encoding, body, size) == TEXT


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate", "gzip, deflate"])
def test_an_empty_body_is_empty(encoding: str) -> None:
    assert inflate(encoding, b"") == b""


@examples(25)
@given(st.binary(max_size=3000), st.sampled_from(["gzip", "zlib", "raw"]), st.integers(1, 500), st.data())
def test_any_cut_is_detected(data: bytes, how: str, size: int, draw: st.DataObject) -> None:
    body = {"gzip": gzip.compress, "zlib": zlib.compress, "raw": _raw}[how](data)
    encoding = "gzip" if how == "gzip" else "deflate"
    assert inflate(encoding, body, size) == data
    with pytest.raises(ReadError, match="truncated") as caught:
        inflate(encoding, body[: draw.draw(st.integers(1, len(body) - 1))], size)
    assert caught.value.sent is True


@pytest.mark.parametrize("cut", [1, 4, 8, 30])
def test_a_body_without_its_end_is_truncated(cut: int) -> None:
    with pytest.raises(ReadError, match="truncated"):
        inflate("gzip", gzip.compress(TEXT)[:-cut])
    with pytest.raises(ReadError, match="truncated"):
        inflate("gzip", gzip.compress(TEXT) + gzip.compress(TEXT)[:-cut])
    with pytest.raises(ReadError, match="truncated"):
        inflate("deflate, gzip", gzip.compress(zlib.compress(TEXT)[:-1]))


GZIP = gzip.compress(TEXT, mtime=0)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", TEXT),
        ("gzip", zlib.compress(TEXT)),
        ("gzip", GZIP[:-8] + bytes([GZIP[-8] ^ 1]) + GZIP[-7:]),  # the checksum
        ("gzip", GZIP[:-4] + bytes([GZIP[-4] ^ 1]) + GZIP[-3:]),  # the length
        ("gzip", GZIP + b"junk that is no member"),
        ("deflate", zlib.compress(TEXT)[:-1] + b"\x00"),
        ("deflate", zlib.compress(TEXT) + b"junk"),
        ("deflate", zlib.compress(TEXT) * 2),
        ("deflate", b"\xff\xff\xff\xff"),
    ],
)
def test_bad_data(encoding: str, body: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        inflate(encoding, body)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("encoding", ["br", "zstd", "rot13-SECRET", "gzip, br", "gzip,gzip,gzip,gzip", "gzip;q=1"])
def test_other_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        Inflater(encoding, MIB)
    assert "secret" not in str(caught.value).lower()
    assert ("(br)" in str(caught.value)) == (encoding in ("br", "gzip, br"))


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate", "gzip,gzip"])
def test_a_body_of_exactly_the_limit_is_fine(encoding: str) -> None:
    body = TEXT
    for name in filter(None, encoding.split(",")):
        body = gzip.compress(body) if name == "gzip" else zlib.compress(body)
    assert len(inflate(encoding, body, limit=len(TEXT))) == len(TEXT)
    with pytest.raises(ResponseTooLargeError, match=str(len(TEXT) - 1)):
        inflate(encoding, body, limit=len(TEXT) - 1)


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "deflate, gzip"])
def test_a_bomb_costs_no_more_than_the_limit(encoding: str) -> None:
    body = zlib.compress(bytes(100 * MIB), 9) if encoding.startswith("deflate") else gzip.compress(bytes(100 * MIB))
    if "," in encoding:
        body = gzip.compress(body)

    def peak() -> int:
        with traced() as memory, pytest.raises(ResponseTooLargeError):
            inflate(encoding, body, size=10**9, limit=MIB)
        return memory.peak

    assert any(peak() < 2 * MIB + 4 * STEP for _ in range(2))


def test_plain_chunks_are_passed_through_unchanged() -> None:
    chunk = bytes(1000)
    inflater = Inflater("", 2000)
    assert feed(inflater, chunk) is chunk
    assert feed(inflater, chunk) is chunk
    with pytest.raises(ResponseTooLargeError):
        feed(inflater, b"x")


@examples(25)
@given(st.binary(min_size=1, max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_random_input_gives_data_or_one_of_our_errors(body: bytes, encoding: str) -> None:
    try:
        data = inflate(encoding, body, 11, limit=MIB)
    except FlinksError:
        return
    assert len(data) <= MIB


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("br", b"abc"), ("gzip, " * 4 + "gzip", b"abc"), ("gzip", b"<html>")],
)
def test_a_lenient_inflater_gives_an_empty_body_for_unreadable_data(encoding: str, body: bytes) -> None:
    inflater = Inflater(encoding, 64 * MIB, lenient=True)
    assert feed(inflater, body) + feed(inflater, b"more") == b""
    inflater.finish()
    with pytest.raises(ProtocolError):
        inflate(encoding, body)


def test_an_unreadable_body_has_the_same_limit() -> None:
    inflater = Inflater("br", 10, lenient=True)
    with pytest.raises(ResponseTooLargeError):
        feed(inflater, bytes(11))
