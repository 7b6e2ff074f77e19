"""Parquet: one file for each table and shard."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from flinks_async import tables
from flinks_async.bulk.errors import StoreError
from flinks_async.bulk.stores import Store, answer_tables, parquet
from flinks_async.bulk.stores.answer_rows import TABLES
from flinks_async.bulk.stores.parquet import ParquetStore
from flinks_async.errors import ConfigError
from flinks_async.testing.data import expected_body

from .database_contract import body, nightly_queries, put_two_nights
from .store_contract import (
    JOB,
    OTHER_JOB,
    Bench,
    StoreContract,
    Summaries,
    append,
    expected,
    flip,
    snapshot,
    truncate,
)
from .tables_support import summaries

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    return memory_path


class TestParquet(StoreContract):
    def make(self, folder: Path) -> Store:
        return ParquetStore()

    def read(self, bench: Bench) -> Summaries:
        tables = {name: pq.read_table(bench.place.parts / name) for name in ("fetches", "transactions")}
        return summaries(tables["fetches"].to_pylist(), tables["transactions"].to_pylist())

    def test_more_text_than_arrow_keeps_in_one_piece(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Above 2 GB, an array comes in chunks."""

        def in_chunks(values: Sequence[Any], type_: Any) -> Any:
            return pa.chunked_array([pa.array([value], type_) for value in values], type_)

        monkeypatch.setattr(tables, "array_of", in_chunks)
        bench.start().put_missing(0, 1)
        assert self.read(bench) == expected(0, 1)
        assert bench.problems() == []

    def test_memory_that_is_short_is_not_taken_for_a_value_that_does_not_fit(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def short(*args: Any) -> None:
            raise pa.ArrowMemoryError("malloc of size 4096 failed")

        bench.start()
        monkeypatch.setattr(pa, "array", short)
        with pytest.raises(MemoryError):
            bench.put(0)

    def damages(self, bench: Bench) -> Mapping[str, Callable[[], object]]:
        damages: dict[str, Callable[[], object]] = {}
        for path in sorted(bench.place.parts.glob("**/000001-*.parquet")):
            name = path.relative_to(bench.place.parts).parts[0]
            damages[f"a bit of {name}"] = partial(flip, path)
            damages[f"no {name}"] = path.unlink
        damages["a cut"] = partial(truncate, path)
        damages["an addition"] = partial(append, path)
        damages["a file too many"] = partial(shutil.copy, path, path.with_name(path.name.replace("000001", "000007")))
        return damages


@pytest.mark.slow
class TestPartitions(TestParquet):
    """Hive partitions by the day of the job."""

    def make(self, folder: Path) -> Store:
        return ParquetStore(fetched_on="2026-11-28")

    def test_the_day_is_a_column_for_readers(self, bench: Bench) -> None:
        bench.start().put_missing(0)
        files = [path.relative_to(bench.place.parts).as_posix() for path in bench.place.parts.glob("**/*.parquet")]
        name = f"000000-{JOB[:8]}.parquet"
        assert sorted(files) == sorted(f"{table.name}/fetched_on=2026-11-28/{name}" for table in TABLES)
        assert set(pq.read_table(bench.place.parts / "accounts")["fetched_on"].to_pylist()) == {"2026-11-28"}
        duckdb = pytest.importorskip("duckdb")
        with closing(duckdb.connect()) as db:
            sql = f"SELECT DISTINCT fetched_on FROM '{bench.place.parts}/accounts/*/*.parquet'"
            assert db.execute(sql).fetchall() == [(dt.date(2026, 11, 28),)]

    def test_nothing_is_left_of_it(self, bench: Bench) -> None:
        bench.start().put_missing(0)
        bench.store.purge()
        assert not bench.place.parts.exists()

    @pytest.mark.parametrize("day", ["", "today", "2026-13-01", "../x", dt.datetime(2026, 11, 28, 10), 20261128])
    def test_a_day_that_is_none_is_refused(self, day: Any) -> None:
        with pytest.raises(ConfigError, match="fetched_on must be"):
            ParquetStore(fetched_on=day)

    def test_a_date_is_a_day_too(self) -> None:
        assert ParquetStore(fetched_on=dt.date(2026, 11, 28)).describe()["fetched_on"] == "2026-11-28"
        assert "fetched_on" not in ParquetStore().describe(), "jobs of earlier versions have none"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "job", ParquetStore)


def test_types_do_not_depend_on_the_data(bench: Bench) -> None:
    bench.start().put_missing(0, 2)
    for table in TABLES:
        full, empty = (pq.read_schema(path) for path in sorted((bench.place.parts / table.name).iterdir()))
        assert full.equals(empty, check_metadata=True)
        assert full.names == list(table.names)
    schema = pq.read_schema(next((bench.place.parts / "transactions").iterdir()))
    assert schema.field("line").type == pa.int64()
    assert schema.field("credit").type == pa.decimal128(38, 18)
    assert schema.field("date").type == pa.date32()
    assert schema.metadata[b"flinks_async.job"] == JOB.encode()
    assert schema.metadata[b"flinks_async.version"] == b"1"
    accounts = pq.read_schema(next((bench.place.parts / "accounts").iterdir()))
    assert accounts.field("last_refresh").type == pa.timestamp("us", "UTC")


def test_a_value_that_does_not_fit_is_refused_and_nothing_is_left(bench: Bench) -> None:
    bench.start()
    before = snapshot(bench.place.parts)
    answer = body(Debit=1).replace(b": 1}", b": 1e-19}")
    place = r"line 5 of the input, GetAccountsDetail\[0\].Accounts\[0\].Transactions\[0\].Debit: .*decimal128\(38, 18\)"
    with pytest.raises(StoreError, match=place):
        bench.put(0, {4: body(), 5: answer})
    assert snapshot(bench.place.parts) == before == {}


def test_a_spool_that_lacks_answers_is_refused(bench: Bench) -> None:
    bench.start()
    commit, path = bench.handed(0)
    with pytest.raises(StoreError, match="has 3 answers, not 4"):
        bench.store.put(evolve(commit, written=evolve(commit.written, lines=4)), path)
    assert snapshot(bench.place.parts) == {}


def test_readers_pass_over_what_is_not_whole_and_the_next_start_removes_it(bench: Bench) -> None:
    bench.start().put_missing(0)
    folder = bench.place.parts / "accounts"
    (folder / f".000001-{JOB[:8]}.parquet.tmp").write_bytes(b"half of it")
    (folder / f".000001-{OTHER_JOB[:8]}.parquet.tmp").write_bytes(b"not yours")
    assert pq.read_table(folder).num_rows == 2
    bench.store.close()
    bench.start()
    found = sorted(path.name for path in folder.iterdir())
    assert found == [f".000001-{OTHER_JOB[:8]}.parquet.tmp", f"000000-{JOB[:8]}.parquet"]


def test_all_is_written_and_synced_before_anything_is_renamed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.start()
    commit, path = bench.handed(0)
    calls: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(file: int) -> None:
        about = os.fstat(file)
        is_file = stat.S_ISREG(about.st_mode)
        assert not is_file or os.pread(file, 4, about.st_size - 4) == b"PAR1", "not all is written"
        calls.append("file" if is_file else "folder")
        sync(file)

    def noted_replace(source: Any, target: Any) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    bench.store.put(commit, path)
    assert calls == ["file"] * 4 + ["rename", "folder"] * 4


def test_a_large_shard_has_several_row_groups(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_ROWS", 300)
    monkeypatch.setattr(answer_tables, "BLOCK", 1)  # one answer at a time
    bench.start().put(0, {line: expected_body(f"t-{line}", size="medium") for line in range(1, 9)})
    (path,) = (bench.place.parts / "transactions").iterdir()
    assert pq.read_metadata(path).num_row_groups == 3
    assert pq.read_table(path).column("line").to_pylist() == [line for line in range(1, 9) for _ in range(120)]
    assert bench.problems() == []


def test_files_of_a_newer_version_are_refused(bench: Bench) -> None:
    bench.start().put_missing(0)
    bench.store.close()
    bench.commits[0] = evolve(bench.commits[0], receipt={**bench.commits[0].receipt, "version": 2})
    with pytest.raises(StoreError, match="newer version of flinks-async"):
        bench.start()


def test_files_of_an_older_version_are_read_with_those_of_a_newer_one(bench: Bench) -> None:
    bench.start().put_missing(0, 1)
    old = min((bench.place.parts / "accounts").iterdir())
    pq.write_table(pq.read_table(old).drop_columns(["answer_extra"]), old)
    duckdb = pytest.importorskip("duckdb")
    sql = f"SELECT count(*), count(answer_extra) FROM read_parquet('{old.parent}/*.parquet', union_by_name = true)"
    assert duckdb.sql(sql).fetchall() == [(6, 0)]


@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
def test_compression_of_pages(tmp_path: Path, compression: parquet.Pages) -> None:
    bench = Bench(tmp_path / "job", lambda: ParquetStore(compression)).start()
    bench.put_missing(1)
    (path,) = (bench.place.parts / "transactions").iterdir()
    found = pq.read_metadata(path).row_group(0).column(0).compression
    assert found == ("UNCOMPRESSED" if compression == "none" else compression.upper())


def test_a_compression_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="compression must be one of zstd, snappy, none, not text of 4 characters"):
        ParquetStore("gzip")


def test_the_latest_answers_of_each_key(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    put_two_nights(tmp_path, lambda _: ParquetStore())
    *_, latest, _ = nightly_queries()
    with closing(duckdb.connect()) as db:
        found = db.execute(latest.replace("'nights/*", f"'{tmp_path}/nights/*")).fetchall()
    assert sorted((key, int(balance), night[-2:]) for key, _, balance, night in found) == [
        ("a", 10, "28"), ("b", 2, "27"), ("b", 3, "27"), ("c", 40, "28"), ("d", 5, "28"), ("e", 5, "28"),
    ]  # fmt: skip


def test_nights_as_partitions(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    put_two_nights(tmp_path, lambda place: ParquetStore(fetched_on=place.name))
    *_, by_night = nightly_queries()
    with closing(duckdb.connect()) as db:
        found = db.execute(by_night.replace("'nights/*", f"'{tmp_path}/nights/*")).fetchall()
    assert found == [(dt.date(2026, 11, 27), 4, 15), (dt.date(2026, 11, 28), 4, 60)]


def test_files_are_the_owners_alone(bench: Bench) -> None:
    bench.start().put_missing(0)
    made = [bench.place.parts, *bench.place.parts.rglob("*")]
    assert {p.stat().st_mode & 0o777 for p in made if p.is_file()} == {0o600}
    assert {p.stat().st_mode & 0o777 for p in made if p.is_dir()} == {0o700}


def test_purge_says_how_many_files(bench: Bench) -> None:
    bench.start().put_missing(0, 1)
    assert bench.store.purge() == [f"2 files of answers in {bench.place.parts / table.name}" for table in TABLES]
