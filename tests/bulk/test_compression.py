"""gzip and Zstandard, in pieces."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flinks_async.bulk.compression import (
    CompressedDataError,
    Compression,
    Corrupt,
    CutShort,
    compressor,
    decompressed,
    detect,
    zstd_library,
)
from flinks_async.errors import ConfigError

from ..support import examples, traced
from .input_support import ZSTD

zstd = zstd_library()

KINDS: tuple[Compression, ...] = ("gzip", "zstd")
DATA = b"".join(b"line %d of some text that repeats itself\n" % n for n in range(2000))


def compress(kind: Compression, *pieces: bytes) -> bytes:
    stream = compressor(kind)
    return b"".join([*map(stream.compress, pieces), stream.flush()])


def decompress(kind: Compression, data: bytes, size: int = 1000) -> bytes:
    stream, pieces = decompressed(io.BytesIO(data), kind), []
    while piece := stream.read(size):
        assert len(piece) <= size
        pieces.append(piece)
    assert stream.read(size) == b""
    return b"".join(pieces)


class TestRoundTrip:
    @pytest.mark.parametrize("kind", ["none", *KINDS])
    @examples(50)
    @given(pieces=st.lists(st.binary(max_size=300), max_size=5), size=st.integers(1, 400))
    def test_what_went_in_comes_out(self, kind: Compression, pieces: list[bytes], size: int) -> None:
        assert decompress(kind, compress(kind, *pieces), size) == b"".join(pieces)

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_is_the_same_each_time(self, kind: Compression) -> None:
        assert compress(kind, DATA) == compress(kind, DATA)

    def test_the_usual_programs_read_it(self) -> None:
        assert gzip.decompress(compress("gzip", DATA)) == DATA
        packed = compress("zstd", DATA)
        assert packed[4] & 4, "the frame has a checksum (RFC 8878, section 3.1.1.1.1)"
        assert zstd.decompress(packed) == DATA

    def test_a_file_that_zstandard_0_25_wrote_for_an_earlier_version(self) -> None:
        assert decompress("zstd", b64decode("KLUv/QRYdQAAQG9uZQp0d28KAQBDChddrIkB")) == b"one\ntwo\n" * 3

    def test_gzip_names_neither_time_nor_file(self) -> None:
        assert compress("gzip", DATA)[3:8] == bytes(5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_several_in_a_row_are_one_file(self, kind: Compression) -> None:
        data = compress(kind, b"one") + compress(kind) + compress(kind, b"two")
        assert decompress(kind, data) == b"onetwo"

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_source_that_gives_a_byte_at_a_time(self, kind: Compression) -> None:
        class Slow(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                return super().read(1)

        stream = decompressed(Slow(compress(kind, DATA) * 2), kind)
        assert b"".join(iter(lambda: stream.read(64), b"")) == DATA * 2

    def test_zeros_may_follow_gzip(self) -> None:
        assert decompress("gzip", compress("gzip", DATA) + bytes(100_000)) == DATA

    @pytest.mark.parametrize(
        "options",
        [
            {"checksum_flag": 0},
            {"content_size_flag": 0, "checksum_flag": 1},
            {"compression_level": -5},
            {"window_log": 27, "enable_long_distance_matching": 1},
        ],
    )
    @pytest.mark.parametrize("data", [b"", b"x", DATA, bytes(1_000_000)])
    def test_frames_of_other_programs(self, options: dict[str, int], data: bytes) -> None:
        packed = zstd.compress(
            data, options={zstd.CompressionParameter[name]: value for name, value in options.items()}
        )
        skippable = b"\x57\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
        for whole in (packed, skippable + packed, packed + skippable, packed * 2):
            assert decompress("zstd", whole, 1 << 20) == data * (2 if whole == packed * 2 else 1)
            assert detect(whole) == "zstd"


class TestNotWhole:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_cut_is_found(self, kind: Compression) -> None:
        whole = compress(kind, b"one") + compress(kind, DATA[:400]) + compress(kind, b"two")
        ends = {len(compress(kind, b"one")), len(compress(kind, b"one")) + len(compress(kind, DATA[:400]))}
        for end in range(len(whole)):
            if end not in ends:  # where a member ends, nothing is missing
                with pytest.raises(CutShort):
                    decompress(kind, whole[:end])

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_came_before_a_cut_is_given(self, kind: Compression) -> None:
        stream, given = decompressed(io.BytesIO(compress(kind, DATA)[:-1]), kind), b""
        with pytest.raises(CutShort):
            while piece := stream.read(1000):
                given += piece
        assert given == DATA

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_flipped_bit_is_found(self, kind: Compression) -> None:
        whole, found = compress(kind, DATA), 0
        for place in range(len(whole)):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            try:
                assert decompress(kind, bytes(flipped), 1 << 20) == DATA, "another text was taken for the right one"
            except CompressedDataError:
                found += 1
        assert found > 0.99 * len(whole), "only a few bits say nothing of the text"

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("tail", [b"garbage", b"\n\n\n\n\n", b"\x1f\x8b\x00\x00\x00"])
    def test_something_else_behind_it(self, kind: Compression, tail: bytes) -> None:
        with pytest.raises(CompressedDataError):
            decompress(kind, compress(kind, DATA) + tail)

    def test_the_words(self) -> None:
        with pytest.raises(CutShort, match="the compressed data ends too early: the file was cut short"):
            decompress("gzip", compress("gzip", DATA)[:-3])
        with pytest.raises(Corrupt, match="the Zstandard data is damaged"):
            decompress("zstd", compress("zstd", DATA)[:-4] + b"abcd")

    def test_an_error_of_the_file_comes_through(self) -> None:
        class Broken(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                raise OSError(5, "Input/output error")

        for kind in KINDS:
            with pytest.raises(OSError, match="Input/output error"):
                decompressed(Broken(), kind).read(10)


class TestMemory:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_bomb_costs_a_piece(self, kind: Compression) -> None:
        stream = compressor(kind)
        bomb = b"".join([*(stream.compress(bytes(1 << 20)) for _ in range(40)), stream.flush()])

        def peak() -> int:
            with traced() as memory:
                reader, size = decompressed(io.BytesIO(bomb), kind), 0
                while piece := reader.read(64 * 1024):
                    size += len(piece)
            assert size == 40 << 20
            return memory.peak

        assert any(peak() < 1 << 20 for _ in range(2))

    def test_a_frame_that_asks_for_too_much_is_refused(self) -> None:
        stream = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 30})
        with pytest.raises(Corrupt, match="needs too much memory"):
            decompress("zstd", stream.compress(DATA) + stream.flush())


class TestDetect:
    @pytest.mark.parametrize(
        ("head", "kind"),
        [
            (b"", "none"),
            (b"\x1f", "none"),
            (b"toke", "none"),
            (b"\x1f\x8b\x08\x00", "gzip"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"\x28\xb5\x2f", "none"),
            (b"\x50\x2a\x4d\x18", "zstd"),
            (b"\x5f\x2a\x4d\x18", "zstd"),
            (b"\x60\x2a\x4d\x18", "none"),
        ],
    )
    def test_by_the_first_bytes(self, head: bytes, kind: Compression) -> None:
        assert detect(head) == kind


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, ZSTD, None)
    with pytest.raises(ConfigError, match=r"pip install 'flinks-async\[zstd\]'"):
        compressor("zstd")
    with pytest.raises(ConfigError, match=r"pip install 'flinks-async\[zstd\]'"):
        decompressed(io.BytesIO(), "zstd")
    assert zlib.decompress(compress("gzip", DATA), 31) == DATA
