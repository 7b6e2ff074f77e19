"""Parquet files of tokens."""

from __future__ import annotations

import datetime as dt
import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flinks_async.bulk.errors import InputChangedError, InputError
from flinks_async.bulk.inputs import InputFile, Layout, ShardReader
from flinks_async.errors import ConfigError

from ..support import traced
from .input_support import COLUMNS, KEY, plain, read_all, scanned

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NUMBER = 5000


def table(folder: Path, columns: dict[str, Any], name: str = "t.parquet", **options: Any) -> Path:
    pq.write_table(pa.table(columns), folder / name, **options)
    return folder / name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Several row groups, more columns than are wanted, one duplicate."""
    columns = {
        "x": [[1]] * NUMBER,
        "k": list(range(NUMBER)),
        "i": pa.array(["acme", "other"] * (NUMBER // 2)).dictionary_encode(),
        "t": [f"token-{number}" for number in range(NUMBER - 1)] + ["token-1"],
    }
    return table(tmp_path, columns, row_group_size=700)


def test_all_tokens_with_keys_and_instances(path: Path, tmp_path: Path) -> None:
    file = InputFile(path, COLUMNS)
    result, sink = scanned(file, tmp_path, shard_size=300)
    assert (result.lines, result.tokens, result.duplicates, result.shards) == (NUMBER, NUMBER - 1, 1, 17)
    assert sink.duplicates == {NUMBER: 2}
    tokens = read_all(file, sink)
    assert plain(tokens)[:-1] == [(number + 1, f"token-{number}") for number in range(NUMBER - 1)]
    assert [token.key for token in tokens] == list(range(NUMBER))
    assert [token.instance for token in tokens] == ["acme", "other"] * (NUMBER // 2)


def test_shards_in_any_order(path: Path, tmp_path: Path) -> None:
    file = InputFile(path, COLUMNS)
    _, sink = scanned(file, tmp_path, shard_size=300)
    with closing(ShardReader(file, KEY)) as reader:
        for shard in (sink.shards[-1], sink.shards[2], sink.shards[0], sink.shards[9]):
            assert [token.line for token in reader.read(shard)] == list(range(shard.first, shard.last + 1))


def test_the_usual_name_of_the_column_is_found_and_any_name_of_a_file(tmp_path: Path) -> None:
    path = table(tmp_path, {"id": [1], "access_token": ["one"]}, "tokens.bin")
    file = InputFile(path, Layout("parquet"))
    assert plain(read_all(file, scanned(file, tmp_path)[1])) == [(1, "one")]


def test_rows_without_a_token_cost_only_themselves(tmp_path: Path) -> None:
    file = InputFile(
        table(tmp_path, {"t": ["one", None, "", "a\nb", "two"], "k": [1, 2, 3, 4, 5]}),
        Layout(key_column="k", column="t"),
    )
    result, sink = scanned(file, tmp_path)
    assert (result.tokens, result.invalid) == (2, 3)
    assert [failure.line for failure in sink.failures] == [2, 3, 4]
    assert [token.line for token in read_all(file, sink)] == [1, 5]


def test_no_rows_at_all(tmp_path: Path) -> None:
    file = InputFile(table(tmp_path, {"t": pa.array([], pa.string())}))
    assert scanned(file, tmp_path)[0].tokens == 0


@pytest.mark.parametrize(
    ("value", "type_", "key"),
    [
        (7, pa.uint64(), 7),
        (2**64 - 1, pa.uint64(), 2**64 - 1),
        (True, pa.bool_(), True),
        (0.5, pa.float64(), 0.5),
        (None, pa.int32(), None),
        ("é", pa.large_string(), "é"),
        (Decimal("1.10"), pa.decimal128(10, 2), "1.10"),
        (dt.date(2025, 1, 31), pa.date32(), "2025-01-31"),
        (1, pa.timestamp("ns", "UTC"), "1970-01-01 00:00:00.000000001Z"),
    ],
)
def test_keys(tmp_path: Path, value: Any, type_: Any, key: object) -> None:
    path = table(tmp_path, {"t": ["one"], "k": pa.array([value], type_)})
    file = InputFile(path, Layout(column="t", key_column="k"))
    (token,) = read_all(file, scanned(file, tmp_path)[1])
    assert token.key == key


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (Layout(column="no"), "There is no column 'no' .*'t', 'n', 'l'"),
        (Layout(), "Which column holds the tokens"),
        (Layout(column="n"), "The column 'n' must hold text; it is of type int64"),
        (
            Layout(column="t", key_column="l"),
            "The column 'l' must hold text, a number, a date or a time; it is of type list",
        ),
        (Layout(column="t", key_column="no"), "There is no column 'no' ..key_column"),
        (Layout(column="t", instance_column="n"), "The column 'n' must hold text"),
        (Layout(column="t", key_column="t"), "`key_column` must be another column"),
        (Layout(delimiter=";"), "`delimiter` is for CSV"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path: Path, layout: Layout, says: str) -> None:
    path = table(tmp_path, {"t": ["one"], "n": [1], "l": [[1]]})
    with pytest.raises(InputError, match=says):
        InputFile(path, layout)


@pytest.mark.parametrize("content", [b"", b"token-1\n", b"PAR1", b"PAR1" + b"x" * 100 + b"PAR1"])
def test_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match="it is not a Parquet file, or was cut short"):
        InputFile(path)


def test_a_file_that_was_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="was cut short"):
        InputFile(path, COLUMNS)


def test_a_file_that_is_damaged_in_the_middle(tmp_path: Path) -> None:
    tokens = [f"{number:032x}" for number in range(20_000)]
    path = table(tmp_path, {"t": tokens}, row_group_size=5000, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    with pytest.raises(
        InputError, match=r"Reading the tokens broke off after line [0-9,]+: the Parquet data is damaged"
    ):
        scanned(InputFile(path), tmp_path)


def test_a_file_that_was_changed_since(path: Path, tmp_path: Path) -> None:
    file = InputFile(path, COLUMNS)
    _, sink = scanned(file, tmp_path, shard_size=300)
    columns = pq.read_table(path).to_pydict()
    columns["t"][1000] = "another"
    table(tmp_path, columns)
    with pytest.raises(InputChangedError, match="Lines 901 to 1,200"):
        read_all(InputFile(path, COLUMNS), sink)


def test_under_another_name_it_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, {"t": ["one"]}, "t.txt")
    with pytest.raises(InputError, match=r"is a Parquet file.*set `format` to parquet"):
        InputFile(path)


def test_without_pyarrow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"flinks-async\[arrow\]"):
        InputFile(path, COLUMNS)


def test_memory_does_not_depend_on_the_size_of_the_file(tmp_path: Path) -> None:
    tokens = [f"{number:064x}" for number in range(200_000)]
    path = table(tmp_path, {"t": tokens}, use_dictionary=False, compression="none")
    assert path.stat().st_size > 12_000_000
    del tokens
    file = InputFile(path)

    def peak() -> int:
        before, most = pa.total_allocated_bytes(), 0
        with traced() as memory, file.content() as content:
            while content.read():
                most = max(most, pa.total_allocated_bytes() - before)
        assert most < 5_000_000
        return memory.peak

    assert any(peak() < 3_000_000 for _ in range(2))
