"""Jobs that are verified, looked at and purged, also if their answers, directory or output are somewhere else now."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest

from flinks_async.bulk import (
    InputError,
    Job,
    JobMismatchError,
    JSONLFile,
    JSONLParts,
    SQLiteStore,
    Store,
    StoreError,
    StoreMissingError,
    export,
    purge,
    status,
    verify,
)
from flinks_async.bulk import job as job_module
from flinks_async.bulk import maintenance as care_module
from flinks_async.bulk.ledger import Ledger
from flinks_async.bulk.report.facts import gather
from flinks_async.testing.faults import KINDS

from .memory_desk import ORIGIN, Desk
from .store_contract import read_only, snapshot

Make = Callable[[Path], Store]


def _duckdb(path: Path) -> Store:
    pytest.importorskip("duckdb")
    pytest.importorskip("pyarrow")
    from flinks_async.bulk.stores.duckdb import DuckDBStore

    return DuckDBStore(path)


def parquet(path: Path | None = None) -> Store:
    pytest.importorskip("pyarrow")
    from flinks_async.bulk.stores.parquet import ParquetStore

    return ParquetStore()


ONE_FILE = {"jsonl": JSONLFile, "sqlite": SQLiteStore, "duckdb": _duckdb}
FOLDERS = {"parts": lambda path: JSONLParts(), "parquet": parquet}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture(params=ONE_FILE)
def make(request: pytest.FixtureRequest) -> Make:
    found: Make = ONE_FILE[request.param]
    return found


@pytest.fixture(params={**ONE_FILE, **FOLDERS})
def any_store(request: pytest.FixtureRequest) -> Make:
    found: Make = {**ONE_FILE, **FOLDERS}[request.param]
    return found


def start(desk: Desk, store: Store, **layout: Any) -> Job:
    return Job.start(desk.directory, desk.source(**layout), store, ORIGIN, shard_size=10)


def complete(desk: Desk, store: Store) -> None:
    with start(desk, store) as job:
        assert desk.run(job).state == "complete"


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


class TestAnswersThatWereMovedAway:
    @pytest.fixture
    def moved(self, desk: Desk, any_store: Make, tmp_path: Path) -> tuple[Path, Path]:
        out = tmp_path / "out"
        complete(desk, any_store(out))
        place = out if out.exists() else desk.directory / "parts"
        return place, place.rename(tmp_path / "archive")

    def test_purge_stops_and_keeps_what_knows_of_them(
        self, desk: Desk, moved: tuple[Path, Path], tmp_path: Path
    ) -> None:
        before = everything(tmp_path)
        place, archive = moved
        with pytest.raises(StoreError, match="25 answers") as raised:
            purge(desk.directory)
        assert str(place) in raised.value.message
        assert everything(tmp_path) == before
        archive.rename(place)
        assert verify(desk.directory) == []
        purge(desk.directory)
        assert not desk.directory.exists()

    def test_they_can_be_forgotten(self, desk: Desk, moved: tuple[Path, Path], tmp_path: Path) -> None:
        told = purge(desk.directory, forget_answers=True)
        assert told[0] == f"left, because they could not be found: answers of the job ({moved[0]} is missing)"
        assert not desk.directory.exists()
        assert moved[1].exists()
        assert not moved[0].exists()

    def test_verify_says_so_and_makes_nothing(self, desk: Desk, moved: tuple[Path, Path], tmp_path: Path) -> None:
        before = everything(tmp_path)
        assert [(problem.where, problem.what) for problem in verify(desk.directory)] == [
            (str(moved[0]), "it is missing")
        ]
        assert everything(tmp_path) == before

    def test_export_says_so(self, desk: Desk, moved: tuple[Path, Path], tmp_path: Path) -> None:
        before = everything(tmp_path)
        with pytest.raises(StoreMissingError, match="is missing"):
            list(export(desk.directory))
        assert everything(tmp_path) == before


def test_some_answers_that_are_missing_stop_a_purge_too(desk: Desk) -> None:
    desk.complete()
    first, *others = sorted((desk.directory / "parts").iterdir())
    first.unlink()
    with pytest.raises(StoreError, match="10 answers"):
        purge(desk.directory)
    assert all(path.exists() for path in others)
    told = purge(desk.directory, forget_answers=True)
    assert told[0].startswith("2 files of answers")
    assert told[1] == "left, because they could not be found: 10 answers of the job"
    assert not desk.directory.exists()


def test_a_purge_that_was_interrupted_after_the_answers_goes_on(
    desk: Desk, any_store: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(desk, any_store(tmp_path / "out"))

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(care_module, "empty", interrupt)
        with pytest.raises(KeyboardInterrupt):
            purge(desk.directory)
    purge(desk.directory)
    assert not desk.directory.exists()


def test_a_purge_of_a_copy_that_was_interrupted_before_the_file_goes_on(desk: Desk, tmp_path: Path) -> None:
    out = tmp_path / "out"
    complete(desk, JSONLFile(out))
    (tmp_path / "copy").write_bytes(out.read_bytes())
    (tmp_path / "copy").replace(out)
    with closing(Ledger(desk.directory / "ledger.sqlite")) as ledger:
        ledger.put("purging", 1)
    purge(desk.directory)
    assert not out.exists()


def test_a_job_that_went_on_after_a_purge_that_failed_is_purged_with_the_same_care(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(store: SQLiteStore) -> list[str]:
        raise StoreError("another program keeps it locked")

    out = tmp_path / "out"
    complete(desk, SQLiteStore(out))
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="locked"):
        patch.setattr(SQLiteStore, "purge", fail)
        purge(desk.directory)
    Job.resume(desk.directory).close()
    out.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="25 answers of the job are not where it put them"):
        purge(desk.directory)


@pytest.mark.parametrize("look", [verify, lambda directory: list(export(directory))])
def test_where_nothing_can_be_written_no_lock_is_asked_for(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, look: Callable[[Path], object]
) -> None:
    complete(desk, JSONLParts())
    asked = []
    monkeypatch.setattr(care_module, "enter", lambda *_, **__: asked.append(True))
    look(desk.directory)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    look(desk.directory)
    assert asked == [True]


def test_a_database_that_cannot_be_read_is_not_forgotten_unasked(desk: Desk, tmp_path: Path) -> None:
    complete(desk, SQLiteStore(tmp_path / "out"))
    (tmp_path / "out").write_bytes(b"precious notes\n" * 100)
    with pytest.raises(StoreError, match="is not an SQLite database"):
        purge(desk.directory)
    told = purge(desk.directory, forget_answers=True)
    assert "is not an SQLite database" in told[0]
    assert not desk.directory.exists()
    assert (tmp_path / "out").exists()


def test_a_database_that_the_user_chose_is_left_without_rows_and_purge_says_so(desk: Desk, tmp_path: Path) -> None:
    out = tmp_path / "out"
    complete(desk, SQLiteStore(out))
    assert f"left: {out}, now without rows of this job" in purge(desk.directory)
    assert out.exists()


def test_a_broken_ledger_and_missing_answers_are_not_purged_unasked(desk: Desk, tmp_path: Path) -> None:
    complete(desk, SQLiteStore(tmp_path / "out"))
    (desk.directory / "ledger.sqlite").write_bytes(b"not a ledger")
    (tmp_path / "out").rename(tmp_path / "archive")
    with pytest.raises(StoreError, match="forget"):
        purge(desk.directory)
    purge(desk.directory, forget_answers=True)
    assert not desk.directory.exists()


class TestADirectoryThatWasMoved:
    @pytest.fixture
    def elsewhere(self, desk: Desk, make: Make, tmp_path: Path) -> Desk:
        complete(desk, make(desk.directory / "my.out"))
        desk.directory = desk.directory.rename(tmp_path / "moved")
        return desk

    def test_answers_in_it_are_found(self, elsewhere: Desk) -> None:
        assert verify(elsewhere.directory) == []
        purge(elsewhere.directory)
        assert not elsewhere.directory.exists()

    def test_the_job_goes_on(self, elsewhere: Desk, make: Make) -> None:
        sent = len(elsewhere.transport.requests)
        complete(elsewhere, make(elsewhere.directory / "my.out"))
        with Job.resume(elsewhere.directory) as job:
            assert job.manifest.store["path"] == str(elsewhere.directory / "my.out")
            assert elsewhere.run(job).state == "complete"
        assert len(elsewhere.transport.requests) == sent

    def test_another_output_is_another_job(self, elsewhere: Desk, make: Make) -> None:
        with pytest.raises(JobMismatchError, match=r"my\.out"):
            start(elsewhere, make(elsewhere.directory / "other.out"))


def test_a_copy_on_another_disk_is_purged(desk: Desk, tmp_path: Path) -> None:
    complete(desk, JSONLFile(desk.directory / "my.jsonl"))
    data = (desk.directory / "my.jsonl").read_bytes()
    desk.directory = desk.directory.rename(tmp_path / "moved")
    (tmp_path / "copy").write_bytes(data)
    (tmp_path / "copy").replace(desk.directory / "my.jsonl")
    purge(desk.directory)
    assert not desk.directory.exists()


def test_manifests_with_an_absolute_path_are_still_understood(desk: Desk) -> None:
    out = desk.directory / "my.jsonl"
    complete(desk, JSONLFile(out))
    manifest = desk.directory / "manifest.json"
    values = json.loads(manifest.read_text())
    assert values["store"]["path"] == "my.jsonl"
    values["store"]["path"] = str(out)
    manifest.write_text(json.dumps(values))
    assert verify(desk.directory) == []
    complete(desk, JSONLFile(out))
    purge(desk.directory)
    assert not desk.directory.exists()


def test_a_directory_by_another_name_is_the_same_job(desk: Desk, tmp_path: Path) -> None:
    complete(desk, JSONLFile(desk.directory / "my.jsonl"))
    (tmp_path / "link").symlink_to(desk.directory)
    given = desk.directory / "my.jsonl"
    desk.directory = tmp_path / "link"
    complete(desk, JSONLFile(given))
    assert verify(desk.directory) == []
    assert len(desk.transport.requests) == 25, "the second run had nothing to fetch"


class TestAnOutputThatCannotBe:
    def test_the_next_try_may_ask_for_another(self, desk: Desk, make: Make, tmp_path: Path) -> None:
        with pytest.raises(StoreError):
            start(desk, make(tmp_path / "nodir" / "out"))
        complete(desk, make(tmp_path / "out"))
        purge(desk.directory)
        assert not desk.directory.exists()

    def test_the_input_is_not_read_through_before(
        self, desk: Desk, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(job_module, "scan", lambda *_, **__: pytest.fail("it was read"))
        with pytest.raises(StoreError):
            start(desk, make(tmp_path / "nodir" / "out"))

    def test_a_job_that_was_killed_while_it_began_can_be_purged(
        self, desk: Desk, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        out.write_bytes(b"precious\n" * 1000)
        store = make(out)

        def killed(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(type(store), "open", killed)
            with pytest.raises(KeyboardInterrupt):
                start(desk, store)
        with pytest.raises(StoreError):
            start(desk, make(out))
        purge(desk.directory)
        assert not desk.directory.exists()
        assert out.read_bytes() == b"precious\n" * 1000


def test_a_job_that_was_killed_while_its_input_was_read_goes_on(
    desk: Desk, any_store: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job_module, "scan", killed)
        with pytest.raises(KeyboardInterrupt):
            start(desk, any_store(tmp_path / "out"))
    complete(desk, any_store(tmp_path / "out"))
    assert verify(desk.directory) == []


def test_an_input_that_is_refused_leaves_no_output(desk: Desk, any_store: Make, tmp_path: Path) -> None:
    for out in (tmp_path / "out", desk.directory / "out"):
        before = everything(tmp_path) - everything(desk.directory)
        with pytest.raises(InputError, match="no column 'tokne'"):
            start(desk, any_store(out), column="tokne")
        assert not out.exists()
        assert not (desk.directory / "manifest.json").exists()
        assert before <= everything(tmp_path)
    complete(desk, JSONLParts())


def test_a_job_without_answers_is_purged_though_its_output_is_gone(desk: Desk, make: Make, tmp_path: Path) -> None:
    with start(desk, make(tmp_path / "out")):
        pass
    (tmp_path / "out").unlink()
    assert verify(desk.directory) == []
    purge(desk.directory)
    assert not desk.directory.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["parts", "sqlite"])
def test_a_look_at_a_job_that_a_crash_has_ended_changes_nothing(desk: Desk, tmp_path: Path, kind: str) -> None:
    crashed = tmp_path / "crashed"
    with Job.start(desk.directory, desk.source(), JSONLParts() if kind == "parts" else SQLiteStore(), ORIGIN) as job:
        desk.run(job)
        shutil.copytree(desk.directory, crashed)  # the ledger is open, and its log is not written back
    assert (crashed / "ledger.sqlite-wal").stat().st_size
    before = snapshot(crashed)
    for look in (nullcontext, read_only):
        with look(crashed):
            assert status(crashed).totals.fetched == 25
            assert verify(crashed) == []
            if kind == "parts":
                assert len(list(export(crashed))) == 25
            assert gather(crashed) is not None
        assert snapshot(crashed) == before
    assert purge(crashed)


def test_verify_finds_a_flipped_bit_and_a_part_that_was_cut_short(desk: Desk) -> None:
    desk.complete()
    first, second, third = sorted((desk.directory / "parts").iterdir())
    data = bytearray(first.read_bytes())
    data[100] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-20])
    third.unlink()
    problems = verify(desk.directory)
    assert [problem.shard for problem in problems] == [0, 1, 2]


def test_purge_removes_the_job_and_nothing_else(desk: Desk) -> None:
    desk.complete()
    (desk.directory / "notes.txt").write_text("mine")
    (desk.directory / "parts" / "mine.jsonl").write_text("mine")
    told = purge(desk.directory)
    assert any("notes.txt" in line for line in told)
    assert sorted(str(path.relative_to(desk.directory)) for path in desk.directory.rglob("*")) == [
        "notes.txt", "parts", "parts/mine.jsonl",
    ]  # fmt: skip
    assert desk.path.exists()


def test_purge_needs_no_ledger_so_one_that_was_interrupted_can_be_repeated(desk: Desk) -> None:
    desk.complete()
    (desk.directory / "ledger.sqlite").unlink()
    assert any("3 files of answers" in line for line in purge(desk.directory))
    assert not desk.directory.exists()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_everything_is_for_the_owner_only(desk: Desk) -> None:
    before = os.umask(0)
    try:
        desk.transport.answers["token-3"] = KINDS["bad_request"]
        desk.complete()
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (desk.directory, *desk.directory.rglob("*"))}
    assert {path.name for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)} == set()


def test_no_token_and_no_secret_is_in_any_file(desk: Desk) -> None:
    for number in (3, 20):
        desk.transport.answers[f"token-{number}"] = KINDS["unauthorized"]
    desk.transport.answers["token-5"] = KINDS["http_503"]
    desk.write([f"token-{number}" for number in range(1, 26)] + ["token-bad\x07", "token-3"])
    with desk.job() as job:
        desk.run(job)
        for path in desk.directory.rglob("*"):
            if path.is_file():
                assert b"token-" not in path.read_bytes().replace(b"token-bearing", b""), path.name
        assert "token-" not in repr((job, job.manifest, job.totals, job.scanned)).replace(str(desk.path), "")
