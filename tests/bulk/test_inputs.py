"""Files of tokens: which can be used, and what is said of the others."""

from __future__ import annotations

import os
import pickle
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from flinks_async.bulk.compression import Compression
from flinks_async.bulk.errors import InputChangedError, InputError
from flinks_async.bulk.inputs import InputFile, Layout, digest
from flinks_async.bulk.inputs.formats import CSVParser, JSONLParser
from flinks_async.bulk.inputs.rows import TextParser
from flinks_async.cli.console import text_of
from flinks_async.errors import ConfigError

from .input_support import ZSTD, compressed, plain, read_all, scanned, write

TOKEN = "8d0a3f52-1a4e-4c6b-9f0e-3b1f2d4c5a69"


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "parser"),
        [
            ("tokens", TextParser),
            ("tokens.txt", TextParser),
            ("tokens.gz", TextParser),
            ("tokens.CSV", CSVParser),
            ("tokens.tsv.zst", CSVParser),
            ("tokens.csv.gz", CSVParser),
            ("tokens.csv.old", TextParser),
            ("tokens.jsonl.GZ", JSONLParser),
            ("csv", TextParser),
            ("tokens.ndjson", JSONLParser),
        ],
    )
    def test_the_name_without_gz_and_zst_decides(self, name: str, parser: type) -> None:
        assert isinstance(Layout().parser(name), parser)

    def test_what_was_asked_for_wins(self) -> None:
        assert isinstance(Layout("jsonl").parser("tokens.csv"), JSONLParser)

    @pytest.mark.parametrize("kind", ["none", "gzip", "zstd"])
    @pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.csv.zst"])
    def test_the_first_bytes_tell_how_it_is_compressed(self, tmp_path: Path, kind: Compression, name: str) -> None:
        file = InputFile(write(tmp_path / name, "\ufeffid;token\n1;one\n2;two\n", kind), Layout(delimiter=";"))
        assert file.compression == kind
        assert file.size == (tmp_path / name).stat().st_size
        _, sink = scanned(file, tmp_path)
        assert plain(read_all(file, sink)) == [(2, "one"), (3, "two")]

    @pytest.mark.parametrize(
        ("layout", "says"),
        [
            (Layout(column="t"), "so `column` cannot be used. Set `format` to csv or jsonl"),
            (Layout(instance_column="i"), "so `instance_column` cannot be used"),
            (Layout(delimiter=";"), "`delimiter` is for CSV"),
            (Layout("jsonl", delimiter=";"), "`delimiter` is for CSV"),
        ],
    )
    def test_options_that_do_not_go_together(self, layout: Layout, says: str) -> None:
        with pytest.raises(InputError, match=says):
            layout.parser("tokens.txt")

    @pytest.mark.parametrize("column", ["token", None])
    @pytest.mark.parametrize(("name", "content"), [("t.csv", "token,id\na,1\n"), ("t.jsonl", '{"token":"a","id":1}\n')])
    def test_the_column_of_the_tokens_is_never_written_to_the_output(
        self, tmp_path: Path, name: str, content: str, column: str | None
    ) -> None:
        path = write(tmp_path / name, content)
        with pytest.raises(InputError, match="`key_column` must be another column than `column`") as raised:
            InputFile(path, Layout(column=column, key_column="token"))
        assert raised.value.field == "key_column"
        with pytest.raises(InputError, match="`instance_column` must be another column than `column`"):
            InputFile(path, Layout(column=column, instance_column="token"))


class TestFilesThatCannotBeUsed:
    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("t.csv", b"a,b\n1,2\n", "'a', 'b'"),
            ("t.csv", b"", "no header row"),
            ("t.csv", b'"id,t\n', "quote that does not end"),
            ("t.txt", b"\xff\xfea\x00", "UTF-16"),
            ("t.txt", b"\xfe\xff\x00a", "UTF-16"),
            ("t.xlsx", b"PK\x03\x04aa", "export it as CSV"),
            ("t.gz", compressed(b"\xff\xfea\x00", "gzip"), "UTF-16"),
            ("t.gz", compressed(b"PK\x03\x04aa", "gzip"), "ZIP"),
            ("t.gz", compressed(compressed(b"one\n", "zstd"), "gzip"), "compressed twice"),
            ("t.gz", b"\x1f\x8b\x08\x00", "the compressed data ends too early"),
            ("t.gz", b"\x1f\x8b\x08\xff" + b"x" * 40, "the gzip data is damaged"),
            ("t.zst", compressed(b"one\n", "zstd")[:6], "the compressed data ends too early"),
        ],
    )
    def test_they_are_refused_when_they_are_opened(self, tmp_path: Path, name: str, content: bytes, says: str) -> None:
        layout = Layout(column="no") if says == "'a', 'b'" else Layout()
        with pytest.raises(InputError, match=says) as raised:
            InputFile(write(tmp_path / name, content), layout)
        assert str(tmp_path) not in str(raised.value), "somebody may have typed a token in place of the path"
        assert raised.value.__cause__ is None

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^The file of tokens cannot be read: No such file or directory\.$"):
            InputFile(tmp_path / TOKEN)

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cannot be read: (Is a directory|Permission denied)\.$"):
            InputFile(tmp_path)

    def test_a_name_that_is_none(self) -> None:
        with pytest.raises(InputError, match="it is not a file"):
            InputFile("a\0b")

    def test_standard_input(self) -> None:
        with pytest.raises(InputError, match=r"standard input \('-'\) is read only once"):
            InputFile("-")

    @pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
    def test_a_pipe_is_not_even_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InputError, match="a pipe or a device"):
            InputFile(tmp_path / "pipe")

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
    def test_a_file_of_somebody_else(self, tmp_path: Path) -> None:
        write(tmp_path / "t.txt", b"one\n").chmod(0)
        with pytest.raises(InputError, match="Permission denied"):
            InputFile(tmp_path / "t.txt")

    def test_without_the_library_for_zstandard(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "t.txt", b"one\n", "zstd")
        monkeypatch.setitem(sys.modules, ZSTD, None)
        with pytest.raises(ConfigError, match=r"flinks-async\[zstd\]"):
            InputFile(tmp_path / "t.txt")

    def test_a_first_row_that_is_data_is_not_shown(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as raised:
            InputFile(write(tmp_path / "t.csv", f"7,{TOKEN}\n"), Layout(column="token"))
        assert TOKEN not in str(raised.value)

    def test_columns_are_looked_for_as_far_as_it_takes(self, tmp_path: Path) -> None:
        write(tmp_path / "t.csv", "\n" * 70_000 + "t\none\n")
        file = InputFile(tmp_path / "t.csv")
        result, sink = scanned(file, tmp_path)
        assert (result.blank, result.header, sink.shards[0].first) == (70_000, 1, 70_002)

    def test_its_repr_shows_no_content(self, tmp_path: Path) -> None:
        assert TOKEN not in repr(InputFile(write(tmp_path / "t.txt", TOKEN)))


def test_an_error_keeps_its_field_between_processes() -> None:
    again = pickle.loads(pickle.dumps(InputError("no", field="column")))
    assert (again.message, again.field) == ("no", "column")


def test_the_command_line_names_its_options() -> None:
    error = InputError("There is no column 'x' (`column`), `b`; use `header=False`.", field="column")
    assert text_of(error) == "There is no column 'x' (--column), `b`; use --no-header."


class TestDigest:
    def test_it_is_of_the_file_as_it_is(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.txt", b"one\n" * 1_000_000, "gzip")
        seen: list[tuple[int, int]] = []
        size, found = digest(InputFile(path), lambda done, all_: seen.append((done, all_)))
        assert (size, found) == (path.stat().st_size, sha256(path.read_bytes()).hexdigest())
        assert seen[-1] == (size, size)

    def test_a_file_that_changes_meanwhile(self, tmp_path: Path) -> None:
        file = InputFile(write(tmp_path / "t.txt", b"one\n"))
        write(tmp_path / "t.txt", b"one\ntwo\n")
        with pytest.raises(InputChangedError, match="changed while it was read"):
            digest(file)

    def test_a_file_that_is_gone(self, tmp_path: Path) -> None:
        file = InputFile(write(tmp_path / "t.txt", b"one\n"))
        file.path.unlink()
        with pytest.raises(InputError, match="No such file"):
            digest(file)
