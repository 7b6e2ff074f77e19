"""JSONL: one file for each shard, and one file for all."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from attrs import evolve

from flinks_async.bulk.compression import Compression, zstd_library
from flinks_async.bulk.errors import StoreError
from flinks_async.bulk.stores import JSONLFile, JSONLParts, Store, from_description
from flinks_async.errors import ConfigError

from . import store_contract
from .store_contract import SHARDS, Bench, StoreContract, Summaries, Summary, append, flip, spool_lines, truncate


@pytest.fixture(params=get_args(Compression))
def compression(request: pytest.FixtureRequest) -> Compression:
    kind: Compression = request.param
    return kind


def uncompressed(path: Path) -> bytes:
    """By the tools that a user has."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        whole: bytes = zstd_library().decompress(data)
        return whole
    return data


def summaries(data: bytes) -> Summaries:
    found: Summaries = {}
    for text in data.splitlines():
        record = json.loads(text)
        body = text[text.index(b'"response":') + 11 : text.rindex(b',"meta":')]
        assert record["line"] not in found, "twice in the output"
        found[record["line"]] = Summary.of(record["key"], body)
    return found


class _JSONL(StoreContract):
    @pytest.fixture(autouse=True)
    def _compressed(self, compression: Compression) -> None:
        self.compression: Compression = compression

    def test_export_gives_the_lines_as_they_were(self, bench: Bench) -> None:
        bench.start().put_missing(0, 1, 2, 3)
        assert list(bench.store.lines(bench.commits.values())) == [t for bodies in SHARDS for t in spool_lines(bodies)]

    def test_an_exported_file_that_is_damaged_is_not_taken_for_whole(self, bench: Bench) -> None:
        bench.start().put_missing(0)
        truncate(self.files(bench)[0], 3)
        with pytest.raises(StoreError, match=r"cannot be read: (it ends within|.*cut short)"):
            list(bench.store.lines(bench.commits.values()))

    def files(self, bench: Bench) -> list[Path]:
        raise NotImplementedError

    def damages(self, bench: Bench) -> Mapping[str, Callable[[], object]]:
        path = self.files(bench)[0]
        return {
            "a flipped bit": lambda: flip(path),
            "a flipped bit in front": lambda: flip(path, 5),
            "cut short": lambda: truncate(path),
            "longer": lambda: append(path),
            "empty": lambda: path.write_bytes(b""),
            "missing": path.unlink,
        }

    def test_files_are_the_owners_alone(self, bench: Bench) -> None:
        bench.start().put_missing(0)
        assert {path.stat().st_mode & 0o777 for path in self.files(bench)} == {0o600}

    def test_a_wrong_number_of_lines_is_found(self, bench: Bench) -> None:
        bench.start().put_missing(1)
        commit = bench.commits[1]
        bench.commits[1] = evolve(commit, written=evolve(commit.written, lines=3))
        (problem,) = bench.problems()
        assert (problem.what, problem.shard) == ("it has 2 answers, but 3 were written", 1)


class TestParts(_JSONL):
    def make(self, folder: Path) -> Store:
        return JSONLParts(self.compression)

    def files(self, bench: Bench) -> list[Path]:
        return sorted(bench.place.parts.glob("answers-*"))

    def read(self, bench: Bench) -> Summaries:
        return summaries(b"".join(uncompressed(path) for path in self.files(bench)))

    def damages(self, bench: Bench) -> Mapping[str, Callable[[], object]]:
        stray = bench.place.parts / self.files(bench)[0].name.replace("000000", "000077")
        return {**super().damages(bench), "a stray file with the job's id": lambda: stray.write_bytes(b"")}

    def test_names(self, bench: Bench) -> None:
        bench.start().put_missing(0, 1)
        suffix = {"none": "", "gzip": ".gz", "zstd": ".zst"}[self.compression]
        assert [path.name for path in self.files(bench)] == [
            f"answers-000000-01234567.jsonl{suffix}",
            f"answers-000001-01234567.jsonl{suffix}",
        ]

    def test_only_files_with_the_jobs_id_are_removed(self, bench: Bench) -> None:
        bench.start().put_missing(0)
        parts, name = bench.place.parts, self.files(bench)[0].name
        stray = parts / name.replace("000000", "000001")
        stray.write_bytes(b"")
        others = [parts / f"my-{name}", parts / f"{name}.bak", parts / name.replace("01234567", "01234568")]
        for path in others:
            path.write_bytes(b"")
        (parts / name.replace("000000", "000002")).mkdir()
        bench.start()
        assert not stray.exists()
        assert all(path.exists() for path in others)
        assert bench.problems() == []


class TestFile(_JSONL):
    os_calls = ("write", "fsync", "replace", "ftruncate")

    def make(self, folder: Path) -> Store:
        return JSONLFile(compression=self.compression)

    def files(self, bench: Bench) -> list[Path]:
        return list(bench.folder.glob("answers.jsonl*"))

    def read(self, bench: Bench) -> Summaries:
        (path,) = self.files(bench)
        return summaries(uncompressed(path))


class TestFileOfTheUsersChoice(TestFile):
    @pytest.fixture
    def compression(self) -> Compression:
        return "none"

    def make(self, folder: Path) -> Store:
        return JSONLFile(folder.parent / f"{folder.name}.jsonl")

    def files(self, bench: Bench) -> list[Path]:
        return list(bench.folder.parent.glob(f"{bench.folder.name}.jsonl*"))


def _noting(calls: list[str], name: str) -> Callable[..., Any]:
    original = getattr(os, name)

    def call(*args: Any) -> Any:
        calls.append(name)
        return original(*args)

    return call


@pytest.mark.parametrize(("store", "order"), [(JSONLParts(), ["replace", "fsync"]), (JSONLFile(), ["write", "fsync"])])
def test_a_shard_is_synced_before_it_is_said_to_be_there(
    store: Store, order: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path / "job", lambda: store).start()
    commit, spool = bench.handed(0)
    calls: list[str] = []
    for name in ("write", "fsync", "replace"):
        monkeypatch.setattr(os, name, _noting(calls, name))
    store.put(commit, spool)
    assert calls == order


# --- one file: it is the job's, or it is left alone -------------------------------------------------------------------


def bench_of(tmp_path: Path, name: str = "job", job: str = store_contract.JOB) -> Bench:
    return Bench(tmp_path / name, lambda: JSONLFile(tmp_path / "out.jsonl"), job)


def test_a_file_that_exists_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for content in (b"precious\n", b""):
        out.write_bytes(content)
        with pytest.raises(StoreError, match="exists already and is not this job's"):
            bench_of(tmp_path).start()
        assert out.read_bytes() == content


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="exists already"):
        bench_of(tmp_path).start()


def test_two_jobs_do_not_share_a_file(tmp_path: Path) -> None:
    first = bench_of(tmp_path).start()
    with pytest.raises(StoreError, match="exists already"):
        bench_of(tmp_path, "other", store_contract.OTHER_JOB).start()
    first.put_missing(0)
    assert first.problems() == []


def test_a_file_that_came_while_the_job_began_is_refused(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)

    def crash(name: str) -> None:
        if name == "folder synced":  # of the note: the file is not made yet
            raise store_contract.Crash

    with store_contract.at_points(crash), pytest.raises(store_contract.Crash):
        bench.start()
    assert not (tmp_path / "out.jsonl").exists()
    (tmp_path / "out.jsonl").write_bytes(b"precious\n")
    with pytest.raises(StoreError, match="exists already"):
        bench.start()
    assert (tmp_path / "out.jsonl").read_bytes() == b"precious\n"
    assert os.listdir(bench.folder) == []


@pytest.mark.parametrize("shards", [(), (2,), (0, 1, 2)])
def test_another_file_in_its_place_is_not_cut(tmp_path: Path, shards: tuple[int, ...]) -> None:
    bench = bench_of(tmp_path).start()
    bench.put_missing(*shards)
    size = (tmp_path / "out.jsonl").stat().st_size
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"x" * (size + 100))
    other.replace(tmp_path / "out.jsonl")
    with pytest.raises(StoreError, match=r"Restore that file|Move it away"):
        bench.start()
    assert (tmp_path / "out.jsonl").read_bytes() == b"x" * (size + 100)
    bench.store.open(bench.place)
    assert bench.store.purge() == [f"left, because it is not the file that the job created: {tmp_path / 'out.jsonl'}"]
    assert (tmp_path / "out.jsonl").exists()


def test_a_shorter_file_is_refused(tmp_path: Path) -> None:
    bench = bench_of(tmp_path).start()
    bench.put_missing(0, 1)
    out = tmp_path / "out.jsonl"
    size = out.stat().st_size
    os.truncate(out, size - 1)
    with pytest.raises(StoreError, match=rf"has only {size - 1:,} bytes, but the job has written {size:,}"):
        bench.start()
    assert out.stat().st_size == size - 1
    out.unlink()
    with pytest.raises(StoreError, match="is missing"):
        bench.start()
    assert not out.exists()


def test_a_file_that_was_restored_from_a_copy_goes_on(tmp_path: Path) -> None:
    bench = bench_of(tmp_path).start()
    bench.put_missing(0)
    out = tmp_path / "out.jsonl"
    copy = tmp_path / "copy"
    copy.write_bytes(out.read_bytes() + b"half a li")
    copy.replace(out)
    bench.start().put_missing(1)
    assert bench.problems() == []
    assert summaries(out.read_bytes()) == store_contract.expected(0, 1)
    bench.store.purge()
    assert not out.exists()


def test_an_empty_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    bench = bench_of(tmp_path).start()
    (tmp_path / "out.jsonl").unlink()
    bench.start().put_missing(0)
    assert bench.problems() == []


def test_a_spool_that_changed_on_the_disk_is_refused(tmp_path: Path) -> None:
    bench = bench_of(tmp_path).start()
    commit, spool = bench.handed(0)
    flip(spool)
    with pytest.raises(StoreError, match="does not hold what was written to it"):
        bench.store.put(commit, spool)
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_a_broken_note_is_told(tmp_path: Path) -> None:
    bench = bench_of(tmp_path).start()
    (bench.folder / "out.json").write_bytes(b"{")
    with pytest.raises(StoreError, match=r"out\.json is broken"):
        bench.start()


def test_a_folder_that_is_not_there_leaves_no_note(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "job", lambda: JSONLFile(tmp_path / "nowhere" / "out.jsonl"))
    with pytest.raises(StoreError, match=r"nowhere/out\.jsonl cannot be written: No such file"):
        bench.start()
    assert os.listdir(bench.folder) == []


def test_a_look_at_a_file_of_somebody_elses_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_bytes(b"precious\n")
    bench = bench_of(tmp_path)
    assert bench.problems() == []
    assert bench.missing() == []
    assert bench.store.purge() == [f"left, because it is not the file that the job created: {tmp_path / 'out.jsonl'}"]
    assert (tmp_path / "out.jsonl").read_bytes() == b"precious\n"


def test_a_copy_of_the_file_is_purged_by_its_content(tmp_path: Path) -> None:
    bench = bench_of(tmp_path).start()
    bench.put_missing(0, 1)
    out = tmp_path / "out.jsonl"
    out.with_name("copy").write_bytes(out.read_bytes())
    out.with_name("copy").replace(out)
    assert bench.missing() == []
    bench.store.purge()
    assert not out.exists()


def test_a_file_that_was_cut_short_misses_what_is_behind(tmp_path: Path) -> None:
    bench = bench_of(tmp_path).start()
    bench.put_missing(0, 1)
    os.truncate(tmp_path / "out.jsonl", bench.commits[1].receipt["offset"])
    assert bench.missing() == [1]


# --- descriptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [JSONLParts, lambda compression: JSONLFile(compression=compression)])
def test_an_unknown_compression_is_refused(kind: Callable[[str], Store]) -> None:
    with pytest.raises(ConfigError, match="none, gzip, zstd"):
        kind("brotli")


@pytest.mark.parametrize("description", [{}, {"kind": "carrier pigeon"}, {"kind": "sqlite", "wings": 2}, {"kind": []}])
def test_a_store_of_another_version_is_refused(description: dict[str, object]) -> None:
    with pytest.raises(StoreError, match="this version of flinks-async has no store"):
        from_description(description)


@pytest.mark.parametrize("kind", ["jsonl", "sqlite", "duckdb"])
@pytest.mark.parametrize("path", ["a\0b", "a\ud800b"])
def test_what_cannot_be_the_name_of_a_file_is_refused(kind: str, path: str) -> None:
    if kind == "duckdb":
        pytest.importorskip("duckdb")
        pytest.importorskip("pyarrow")
    with pytest.raises(ConfigError, match="path must be the path of a file or folder") as caught:
        from_description({"kind": kind, "path": path})
    assert str(caught.value).isprintable()


def test_a_relative_path_is_made_absolute() -> None:
    assert JSONLFile("out.jsonl").describe()["path"] == str(Path.cwd() / "out.jsonl")


@pytest.mark.parametrize("store", [JSONLParts(), JSONLFile()])
def test_a_store_that_is_not_open_says_so(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not open"):
        store.recover({})
    with pytest.raises(StoreError, match="not open"):
        store.purge()
