"""A scan and the shards that it makes, against a plain reading of the same file."""

from __future__ import annotations

import csv
import errno
import importlib
import io
import json
import os
import random
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import chain, repeat
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flinks_async.bulk.compression import Compression, detect
from flinks_async.bulk.errors import InputChangedError, InputError, StoreError
from flinks_async.bulk.inputs import InputFile, Layout, Row, ShardReader, SkippedLine, Token, check, scan, source
from flinks_async.bulk.inputs.detection import problem_of_value, refuse_magic
from flinks_async.bulk.inputs.rows import Lines
from flinks_async.bulk.records import Failure, Shard
from flinks_async.errors import ConfigError
from flinks_async.secret import fingerprint

from ..support import examples, traced
from .input_support import COLUMNS, KEY, Sink, compressed, plain, read_all, scanned, write

scan_module = importlib.import_module("flinks_async.bulk.inputs.scan")  # the package has a function of this name

TOKEN = "8d0a3f52-1a4e-4c6b-9f0e-3b1f2d4c5a69"
KINDS: tuple[Compression, ...] = ("none", "gzip", "zstd")
NAMES = {"text": "t.txt", "csv": "t.csv", "jsonl": "t.jsonl"}


@contextmanager
def chunks_of(size: int) -> Iterator[None]:
    with patch.object(source, "CHUNK", size):
        yield


def is_foreign(head: bytes) -> bool:
    """Whether a text that begins like this is taken for something else, by its first bytes."""
    try:
        refuse_magic(head)
    except InputError:
        return True
    return detect(head) != "none"


def any_text_is_tokens() -> AbstractContextManager[object]:
    """Detection off: it refuses most texts."""
    return patch.object(Layout, "for_content", lambda self, path, sample: self.for_file(path))


def rows_at_once(file: InputFile, data: bytes) -> list[Row]:
    """All rows of a file, from one piece."""
    pieces = iter((data.removeprefix(b"\xef\xbb\xbf"), b""))
    return [check(row) for row in file.parser().rows(Lines(lambda: next(pieces, b"")))]


class TestExamples:
    def test_a_text_file_with_everything(self, tmp_path: Path) -> None:
        lines = [
            b"\xef\xbb\xbfalpha",
            b"",
            b"beta",
            b"alpha",
            b"..",
            b"\xff\xfa",
            b"y" * (2 << 20),
            b" beta\t",
            b"gamma",
        ]
        file = InputFile(write(tmp_path / "t.txt", b"\r\n".join(lines)))
        result, sink = scanned(file, tmp_path)
        assert (result.lines, result.tokens, result.duplicates, result.invalid, result.blank) == (9, 3, 2, 3, 1)
        assert (result.header, result.continued, result.shards) == (0, 0, 3)
        assert result.size == (tmp_path / "t.txt").stat().st_size
        assert sink.duplicates == {4: 1, 8: 3}
        assert [(s.id, s.first, s.last, s.offset, s.tokens) for s in sink.shards] == [
            (0, 1, 3, 3, 2),
            (1, 4, 8, 18, 0),
            (2, 9, 9, file.size - 5, 1),
        ]
        assert all((shard.round, shard.only) == (0, None) for shard in sink.shards)
        assert plain(read_all(file, sink)) == [(1, "alpha"), (3, "beta"), (4, "alpha"), (8, "beta"), (9, "gamma")]

    def test_invalid_rows_say_what_is_wrong(self, tmp_path: Path) -> None:
        text = f't,k,i\n{TOKEN},{TOKEN},acme\nx,y\n"",u-2,acme\nbad\x01token,u-3,acme\none,u-4,no name\n'
        _, sink = scanned(InputFile(write(tmp_path / "t.csv", text), COLUMNS), tmp_path)
        common = {"kind": "invalid", "error": "InvalidTokenError"}
        assert sink.failures == [
            Failure(line=2, message="the key column holds the access token", instance="acme",
                    token_fingerprint=fingerprint(TOKEN, key=KEY), **common),
            Failure(line=3, message="the row has 2 fields, the header has 3", **common),
            Failure(line=4, message="the access token is empty", key="u-2", instance="acme", **common),
            Failure(line=5, message="the access token has a line break or another control character", key="u-3",
                    instance="acme", token_fingerprint=fingerprint("bad\x01token", key=KEY), **common),
            Failure(line=6, message="the instance column does not hold the name of an instance", key="u-4",
                    token_fingerprint=fingerprint("one", key=KEY), **common),
        ]  # fmt: skip

    def test_csv_counts_header_and_continued_lines(self, tmp_path: Path) -> None:
        file = InputFile(write(tmp_path / "t.csv", 'k,t\n"a\nb",one\n\n7\nc,one\n'), Layout(column="t"))
        result, sink = scanned(file, tmp_path, 1)
        assert (result.lines, result.tokens, result.duplicates) == (6, 1, 1)
        assert (result.invalid, result.blank, result.header, result.continued) == (1, 1, 1, 1)
        assert [(shard.first, shard.last, shard.offset) for shard in sink.shards] == [(2, 2, 4), (6, 6, 17)]

    def test_the_same_token_in_two_instances_is_two_tokens(self, tmp_path: Path) -> None:
        text = "".join(json.dumps({"t": "one", "i": name}) + "\n" for name in ("acme", "toolbox", "acme"))
        file = InputFile(write(tmp_path / "t.jsonl", text), Layout(column="t", instance_column="i"))
        result, sink = scanned(file, tmp_path)
        assert (result.tokens, sink.duplicates) == (2, {3: 1})
        assert result.instances == {"acme": 2, "toolbox": 1}
        assert [token.instance for token in read_all(file, sink)] == ["acme", "toolbox", "acme"]

    def test_a_column_with_too_many_instances_is_the_wrong_one(self, tmp_path: Path) -> None:
        text = "t,i\n" + "".join(f"t-{number},i-{number}\n" for number in range(1001))
        file = InputFile(write(tmp_path / "t.csv", text), Layout(column="t", instance_column="i"))
        with pytest.raises(InputError, match="more than 1,000 instances"):
            scanned(file, tmp_path)

    def test_instance_and_token_do_not_run_together(self, tmp_path: Path) -> None:
        file = InputFile(write(tmp_path / "t.csv", "t,i\nbc,a\nc,ab\n"), Layout(column="t", instance_column="i"))
        result, sink = scanned(file, tmp_path, 1)
        assert result.tokens == 2
        assert sink.shards[0].digest != sink.shards[1].digest

    @pytest.mark.parametrize("text", ["", "\n \n", "..\n"])
    def test_nothing_to_fetch(self, tmp_path: Path, text: str) -> None:
        result, sink = scanned(InputFile(write(tmp_path / "t.txt", text)), tmp_path)
        assert (result.tokens, result.shards, sink.shards) == (0, 0, [])

    def test_digests_depend_on_tokens_order_and_key(self, tmp_path: Path) -> None:
        def digests(text: str, key: bytes = KEY) -> list[str]:
            sink = Sink()
            file = InputFile(write(tmp_path / "t.txt", text))
            scan(file, key=key, shard_size=2, scratch=tmp_path, sink=sink)
            return [shard.digest for shard in sink.shards]

        first = digests("one-1\ntwo-1\ntree-1\nfour-1\n")
        assert digests("one-1\n\ntwo-1\r\ntree-1\nfour-1\n") == first
        assert digests("two-1\none-1\ntree-1\nfour-1\n") == [digests("two-1\none-1\n")[0], first[1]] != first
        assert not set(digests("one-1\ntwo-1\ntree-1\nfour-1\n", b"other")) & set(first)
        assert all(len(digest) == 32 for digest in first)

    def test_progress_is_told(self, tmp_path: Path) -> None:
        file = InputFile(write(tmp_path / "t.txt", "token\n" * 30_000, "gzip"))
        seen: list[tuple[int, int]] = []
        scan(file, key=KEY, shard_size=1000, scratch=tmp_path, sink=Sink(), progress=lambda *now: seen.append(now))
        assert seen[-1] == (file.size, file.size)
        assert seen == sorted(seen)

    @pytest.mark.parametrize("size", [0, -1])
    def test_shards_have_at_least_one_token(self, tmp_path: Path, size: int) -> None:
        with pytest.raises(ConfigError, match="shard_size"):
            scanned(InputFile(write(tmp_path / "t.txt", "one\n")), tmp_path, size)


_PIECES = st.sampled_from(
    [
        b"\n", b"\n", b"\r\n", b"\r", b",", b",", b",", b'"', b'"', b" ", b"\t", b"token-1", b"token-2", b"acme",
        b"\xff", b"\xc3\xa9", b"..", b"\xef\xbb\xbf", b"x" * 30, b'{"t":"token-1","k":1,"i":"acme"}', b'{"t":"two","i":"a"}',
        b'"token"\n', b"{}", b"a,b,c\n", b'"a\nb",token-3,acme\n',
    ]
)  # fmt: skip
_CONTENT = st.lists(_PIECES | st.binary(max_size=6), max_size=60).map(b"".join)
_HEADS = {"text": b"", "csv": b"k,t,i\n", "jsonl": b'{"t":"zero","k":[7],"i":"acme"}\n'}


class TestAnyBytes:
    """For any content, each line is counted once, and scan and reader agree with a simple reference reader."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("form", NAMES)
    @examples(15)
    @given(body=_CONTENT, shard_size=st.integers(1, 5), chunk=st.sampled_from([1, 5, 64, 65536]))
    @example(body=b"PAR1", shard_size=1, chunk=64)
    def test_scan_and_reader(self, form: str, kind: Compression, body: bytes, shard_size: int, chunk: int) -> None:
        data = _HEADS[form] + body
        with tempfile.TemporaryDirectory() as folder, chunks_of(chunk), any_text_is_tokens():
            path = write(Path(folder, NAMES[form]), data, kind)
            if form == "text" and is_foreign(data[: max(4, chunk)]):
                with pytest.raises(InputError):
                    InputFile(path)
                return
            file = InputFile(path, Layout() if form == "text" else COLUMNS)
            result, sink = scanned(file, Path(folder), shard_size)
            expected = rows_at_once(file, data)
            assert sorted(row.line for row in expected) == list(range(1, result.lines + 1))
            assert result.lines == data.count(b"\n") + (not data.endswith(b"\n") and data not in (b"", b"\xef\xbb\xbf"))
            counted = (result.tokens, result.duplicates, result.invalid, result.blank, result.header, result.continued)
            assert sum(counted) == result.lines
            assert result.size == len(data)

            tokens = [row for row in expected if isinstance(row, Token)]
            first: dict[tuple[str | None, str], int] = {}
            repeats = {}
            for token in tokens:
                found = first.setdefault((token.instance, token.token.reveal()), token.line)
                if found != token.line:
                    repeats[token.line] = found
            assert sink.duplicates == repeats
            assert result.tokens == len(first)
            notes = [row for row in expected if isinstance(row, SkippedLine) and row.kind == "invalid"]
            assert [(f.line, f.message) for f in sink.failures] == [(note.line, note.message) for note in notes]

            self._check_shards(file, sink, tokens, shard_size, data)
            assert read_all(file, sink) == tokens
            assert [entry.name for entry in os.scandir(folder)] == [NAMES[form]]

    @staticmethod
    def _check_shards(file: InputFile, sink: Sink, tokens: list[Token], shard_size: int, data: bytes) -> None:
        starts = [0, *(place + 1 for place, byte in enumerate(data) if byte == 10)]
        parts = [tokens[start : start + shard_size] for start in range(0, len(tokens), shard_size)]
        assert [(s.first, s.last, s.tokens) for s in sink.shards] == [
            (part[0].line, part[-1].line, sum(token.line not in sink.duplicates for token in part)) for part in parts
        ]
        bom = 3 * data.startswith(b"\xef\xbb\xbf")
        assert [shard.offset for shard in sink.shards] == [max(bom, starts[part[0].line - 1]) for part in parts]
        order = list(zip(sink.shards, parts, strict=True))
        random.Random(1).shuffle(order)
        with closing(ShardReader(file, KEY)) as reader:
            for shard, part in order:
                assert reader.read(shard) == part


_TOKENS = st.text(
    st.characters(
        codec="utf-8", exclude_categories=["C", "Z", "Pi", "Pf"], exclude_characters="\"'`\u201a\u201b\u201e\u201f"
    ),
    min_size=1,
    max_size=8,
).filter(lambda text: problem_of_value(text) is None)


class TestWellFormedFiles:
    """Files that other tools write."""

    @pytest.mark.parametrize("kind", KINDS)
    @examples(20)
    @given(
        rows=st.lists(st.tuples(_TOKENS, st.text(max_size=8), st.sampled_from(["acme", "toolbox"])), max_size=20),
        shard_size=st.integers(1, 7),
        line_end=st.sampled_from(["\n", "\r\n"]),
    )
    def test_csv(self, kind: Compression, rows: list[tuple[str, str, str]], shard_size: int, line_end: str) -> None:
        rows = [(t, k.replace("\r", ""), i) for t, k, i in rows if t.strip(".") and "%" not in t]
        rows = [row for row in rows if row[0] not in row[1] and row[0] not in row[2]]
        text = io.StringIO()
        csv.writer(text, lineterminator=line_end).writerows([("t", "k", "i"), *rows])
        with tempfile.TemporaryDirectory() as folder:
            file = InputFile(write(Path(folder, "t.csv"), text.getvalue(), kind), COLUMNS)
            result, sink = scanned(file, Path(folder), shard_size)
            assert [(t.token.reveal(), t.key, t.instance) for t in read_all(file, sink)] == rows
            assert (result.tokens, result.header) == (len({(t, i) for t, _, i in rows}), 1)

    @examples(20)
    @given(rows=st.lists(st.tuples(_TOKENS, st.integers()), max_size=20), shard_size=st.integers(1, 7))
    def test_jsonl(self, rows: list[tuple[str, int]], shard_size: int) -> None:
        rows = [row for row in rows if row[0].strip(".") and "%" not in row[0] and row[0] not in str(row[1])]
        with tempfile.TemporaryDirectory() as folder:
            text = "".join(json.dumps({"t": t, "k": k}) + "\n" for t, k in rows)
            layout = Layout(column="t", key_column="k")
            file = InputFile(write(Path(folder, "t.jsonl"), text), layout)
            _, sink = scanned(file, Path(folder), shard_size)
            found = [(t.token.reveal(), t.key) for t in read_all(file, sink)]
            assert [t for t, _ in found] == [t for t, _ in rows]
            assert all(a == pytest.approx(b) for (_, a), (_, b) in zip(found, rows, strict=True))


class TestDuplicates:
    @pytest.mark.parametrize(("buffer", "at_once"), [(64 * 1024, 4 << 20), (48, 4 << 20), (48, 240)])
    def test_they_are_found_exactly_in_memory_on_disk_and_in_turns(
        self, tmp_path: Path, buffer: int, at_once: int
    ) -> None:
        rng = random.Random(7)
        names = [f"token-{rng.randrange(6000)}" for _ in range(10_000)]
        first: dict[str, int] = {}
        repeats = {}
        for line, name in enumerate(names, 1):
            if first.setdefault(name, line) != line:
                repeats[line] = first[name]
        file = InputFile(write(tmp_path / "t.txt", "\n".join(names)))
        with patch.object(scan_module, "_BUFFER", buffer), patch.object(scan_module, "_AT_ONCE", at_once):
            result, sink = scanned(file, tmp_path, 100)
        assert sink.duplicates == repeats
        assert (result.tokens, result.duplicates) == (len(first), len(repeats))
        assert sum(shard.tokens for shard in sink.shards) == len(first)
        assert os.listdir(tmp_path) == ["t.txt"]

    def test_they_take_24_bytes_each_for_their_owner_only(self, tmp_path: Path) -> None:
        finder = scan_module.DuplicateFinder(tmp_path / "buckets")
        with patch.object(scan_module, "_BUFFER", 24):
            for number in range(1000):
                finder.add(b"token-%d" % number, number)
        files = list((tmp_path / "buckets").iterdir())
        assert sum(path.stat().st_size for path in files) == 24_000
        if os.name != "nt":
            assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        finder.close()
        assert os.listdir(tmp_path) == []

    def test_their_hashes_say_nothing_to_who_knows_the_tokens(self, tmp_path: Path) -> None:
        def written(folder: Path) -> set[bytes]:
            finder = scan_module.DuplicateFinder(folder)
            with patch.object(scan_module, "_BUFFER", 1):
                for number in range(100):
                    finder.add(b"token-%d" % number, number)
            found = {path.read_bytes()[:16] for path in folder.iterdir()}
            finder.close()
            return found

        assert not written(tmp_path / "a") & written(tmp_path / "b")


class TestMemory:
    def test_a_line_of_2_gb_is_one_invalid_line(self, tmp_path: Path) -> None:
        piece, size = b"x" * 65536, 2 << 30

        class Endless(io.BytesIO):
            """`one`, a huge line, `two`."""

            def __init__(self) -> None:
                self.pieces = chain([b"one\n"], repeat(piece, size // len(piece)), [b"\ntwo\n", b""])

            def read(self, count: int | None = -1, /) -> bytes:
                return next(self.pieces)

        def peak() -> int:
            with patch.object(InputFile, "raw", lambda _: Endless()), traced() as memory:
                result, sink = scanned(file, tmp_path)
            assert (result.lines, result.tokens, result.invalid) == (3, 2, 1)
            assert [(f.line, f.message) for f in sink.failures] == [(2, "the line is longer than 1048576 bytes")]
            assert result.size == size + 9
            return memory.peak

        file = InputFile(write(tmp_path / "t.txt", "one\n"))
        assert any(peak() < 8 << 20 for _ in range(2))

    def test_the_number_of_lines_costs_nothing(self, tmp_path: Path) -> None:
        def peak(lines: int) -> int:
            file = InputFile(write(tmp_path / "t.txt", "".join(f"token-{n}\n" for n in range(lines)), "gzip"))
            with traced() as memory, patch.object(scan_module, "_BUFFER", 240):
                scanned(file, tmp_path, 100)
            return memory.peak

        peak(1000)
        most = peak(12_000) + 100_000
        assert any(peak(30_000) < most for _ in range(2))


class TestWhatGoesWrong:
    @pytest.mark.parametrize("kind", ["gzip", "zstd"])
    def test_a_file_that_was_cut_short_names_the_last_line(self, tmp_path: Path, kind: Compression) -> None:
        whole = compressed("".join(f"token-{n}\n" for n in range(1, 1001)).encode(), kind)
        file = InputFile(write(tmp_path / "t.txt", whole[:-2]))
        with pytest.raises(InputError, match=r"broke off after line 1,000: the compressed data ends too early"):
            scanned(file, tmp_path)
        assert os.listdir(tmp_path) == ["t.txt"]

    def test_a_wrong_checksum(self, tmp_path: Path) -> None:
        whole = compressed(b"one\ntwo\n", "gzip")
        with chunks_of(4), pytest.raises(InputError, match="after line 1: the gzip data is damaged"):
            scanned(InputFile(write(tmp_path / "t.txt", whole[:-8] + b"12345678")), tmp_path)

    def test_a_disk_that_cannot_be_read(self, tmp_path: Path) -> None:
        class Broken(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if data := super().read(5):
                    return data
                raise OSError(errno.EIO, "Input/output error")

        file = InputFile(write(tmp_path / "t.txt", "one\n"))
        with patch.object(InputFile, "raw", lambda _: Broken(b"one\ntwo\ntr")):
            with pytest.raises(InputError, match=r"after line 2: Input/output error\.$"):
                scanned(file, tmp_path)

    def test_a_file_that_changes_while_it_is_read(self, tmp_path: Path) -> None:
        file = InputFile(write(tmp_path / "t.txt", "..\none\n"))

        class Meddler(Sink):
            def invalid(self, failure: Failure) -> None:
                with open(file.path, "ab") as target:
                    target.write(b"two\n")

        with pytest.raises(InputChangedError, match="changed while it was read"):
            scan(file, key=KEY, shard_size=2, scratch=tmp_path, sink=Meddler())

    @pytest.mark.parametrize("call", ["invalid", "duplicate", "shard"])
    def test_whatever_happens_nothing_is_left_in_scratch(self, tmp_path: Path, call: str) -> None:
        file = InputFile(write(tmp_path / "t.txt", "..\none\none\n"))
        sink = Sink()
        setattr(sink, call, lambda *_: 1 // 0)
        with patch.object(scan_module, "_BUFFER", 1), pytest.raises(ZeroDivisionError):
            scan(file, key=KEY, shard_size=2, scratch=tmp_path, sink=sink)
        assert os.listdir(tmp_path) == ["t.txt"]

    def test_what_a_killed_scan_left_does_no_harm(self, tmp_path: Path) -> None:
        (tmp_path / "duplicates").mkdir()
        for number in range(256):
            write(tmp_path / "duplicates" / f"bucket-{number:03}", bytes(24))
        with patch.object(scan_module, "_BUFFER", 1):
            result, sink = scanned(InputFile(write(tmp_path / "t.txt", "one\none\n")), tmp_path)
        assert (result.shards, sink.duplicates) == (1, {2: 1})

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(scan_module, "_BUFFER", 1)
        monkeypatch.setattr(scan_module, "write_all", full)
        with pytest.raises(StoreError, match="cannot be written: No space left on device"):
            scanned(InputFile(write(tmp_path / "t.txt", "one\n")), tmp_path)
        assert os.listdir(tmp_path) == ["t.txt"]


def shards_of(file: InputFile, scratch: Path, size: int = 100) -> list[Shard]:
    return scanned(file, scratch, size)[1].shards


class TestReader:
    @pytest.mark.parametrize("kind", KINDS)
    def test_going_forward_opens_the_file_once(self, tmp_path: Path, kind: Compression) -> None:
        text = "k,t\n" + "".join(f'"u\n{n}",token-{n}\n' for n in range(10_000))
        file = InputFile(write(tmp_path / "t.csv", text, kind), Layout(column="t"))
        shards = shards_of(file, tmp_path)
        opened = []
        raw = InputFile.raw
        with patch.object(InputFile, "raw", lambda self: opened.append(1) or raw(self)):
            reader = ShardReader(file, KEY)
            for shard in (*shards[:30], *shards[70:]):
                assert len(reader.read(shard)) == 100
            assert len(opened) == 1
            assert reader.read(shards[7])[0].token.reveal() == "token-700"
            assert len(opened) == (1 if kind == "none" else 2)
            reader.close()
            reader.close()

    def test_a_plain_file_is_not_read_from_the_start(self, tmp_path: Path) -> None:
        file = InputFile(write(tmp_path / "t.txt", "".join(f"token-{n:06}\n" for n in range(30_000))))
        shard = shards_of(file, tmp_path)[250]
        sizes: list[int] = []

        class Counted(io.FileIO):
            def read(self, size: int | None = -1, /) -> bytes:
                data = super().read(size)
                sizes.append(len(data))
                return data

        with patch.object(InputFile, "raw", lambda self: Counted(self.path)), closing(ShardReader(file, KEY)) as reader:
            assert len(reader.read(shard)) == 100
        assert sum(sizes) <= 64 * 1024

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "change",
        [
            lambda lines: [*lines[:150], "other", *lines[151:]],
            lambda lines: [*lines[:150], *lines[151:]],
            lambda lines: lines[:150],
            lambda lines: [*lines[:150], lines[151], lines[150], *lines[152:]],
            lambda lines: [*lines[:150], "..", *lines[151:]],
        ],
    )
    def test_other_tokens_are_refused_by_line(self, tmp_path: Path, kind: Compression, change: object) -> None:
        lines = [f"token-{n:03}" for n in range(300)]
        file = InputFile(write(tmp_path / "t.txt", "\n".join(lines), kind))
        shards = shards_of(file, tmp_path)
        write(tmp_path / "t.txt", "\n".join(change(lines)), kind)
        reader = ShardReader(InputFile(tmp_path / "t.txt"), KEY)
        assert len(reader.read(shards[0])) == 100
        with pytest.raises(InputChangedError, match=r"^Lines 101 to 200 .* they hold other tokens\. Put the file back"):
            reader.read(shards[1])
        reader.close()

    def test_a_compressed_file_that_was_cut_short_meanwhile(self, tmp_path: Path) -> None:
        rng = random.Random(1)
        data = compressed("".join(f"{rng.getrandbits(128):032x}\n" for _ in range(20_000)).encode(), "gzip")
        file = InputFile(write(tmp_path / "t.txt", data))
        shards = shards_of(file, tmp_path)
        write(tmp_path / "t.txt", data[: len(data) // 2])
        reader = ShardReader(file, KEY)
        assert len(reader.read(shards[0])) == 100
        with pytest.raises(InputChangedError, match=r"Lines 19,901 to 20,000 .* ends too early"):
            reader.read(shards[-1])
        reader.close()

    def test_another_key_is_another_digest(self, tmp_path: Path) -> None:
        file = InputFile(write(tmp_path / "t.txt", "one\n"))
        (shard,) = shards_of(file, tmp_path)
        with closing(ShardReader(file, b"other")) as reader, pytest.raises(InputChangedError):
            reader.read(shard)

    def test_a_file_that_is_gone(self, tmp_path: Path) -> None:
        file = InputFile(write(tmp_path / "t.txt", "one\n"))
        file.path.unlink()
        with pytest.raises(InputError, match="No such file"):
            ShardReader(file, KEY)


class TestSecrets:
    """A canary is looked for in every file that a scan writes, in every error and in every repr."""

    def test_no_token_is_written_or_shown(self, tmp_path: Path) -> None:
        canaries = [f"canary-{n:04}" for n in range(500)]
        text = "t,k,i\n" + "".join(f"{c},u,acme\n{c},{c},acme\n{c}\n{c},u,{c}\n\x01{c},u,acme\n" for c in canaries)
        path = write(tmp_path / "t.csv", text)
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        written, shown = [b""], [""]

        class Nosy(Sink):
            def look(self, found: object) -> None:
                shown.append(repr(found))
                if len(shown) % 100 == 0:
                    written.extend(entry.read_bytes() for entry in scratch.rglob("*") if entry.is_file())

            invalid = duplicate = shard = lambda self, *found: self.look(found)

        file = InputFile(path, COLUMNS)
        with patch.object(scan_module, "_BUFFER", 24):
            scan(file, key=KEY, shard_size=10, scratch=scratch, sink=Nosy())
        assert sum(map(len, written)) > 10_000, "the scratch files were seen"
        assert not any(b"canary" in data for data in written)
        assert not any("canary" in text for text in shown)
        assert list(scratch.iterdir()) == []

        shards = scanned(file, scratch, 10)[1].shards
        with closing(ShardReader(file, KEY)) as reader:
            shown.append(f"{file!r} {reader!r} {reader.read(shards[0])!r}")
            write(path, text.replace("0000", "9999"))
            with pytest.raises(InputChangedError) as raised:
                reader.read(shards[0])
        shown.append("".join(traceback.format_exception(raised.value)))
        assert "canary" not in "".join(shown)
