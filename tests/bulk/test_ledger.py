"""The ledger alone: what it remembers, and what it refuses."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flinks_async.bulk.errors import LedgerError, StoreError
from flinks_async.bulk.files import crash_points
from flinks_async.bulk.ledger import Ledger
from flinks_async.bulk.records import Commit, Failure, Shard, Written

pytestmark = pytest.mark.usefixtures("closed_databases")

WRITTEN = Written(8, 100, "ab" * 32)


def failure(line: int, kind: str = "exhausted", error: str = "ServerError") -> Failure:
    return Failure(line, kind, error, "no", key={"a": [1, "x"]}, status=503, attempts=3)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Three shards of ten lines; line 12 came before, line 15 is invalid."""
    ledger = Ledger(tmp_path / "ledger.sqlite", new=True)
    with ledger.planning() as planner:
        for number, tokens in enumerate((10, 8, 10)):
            planner.shard(Shard(number, 10 * number + 1, 10 * number + 10, 370 * number, tokens, f"d{number}"))
        planner.duplicate(12, 2)
        planner.invalid(failure(15, "invalid", "InvalidTokenError"))
        planner.finish({"tokens": 28})
    return ledger


def shards(ledger: Ledger) -> list[Shard]:
    return list(ledger.pending())


def test_a_plan_is_pending_in_the_order_of_the_input(ledger: Ledger) -> None:
    assert [(shard.id, shard.first, shard.tokens) for shard in shards(ledger)] == [(0, 1, 10), (1, 11, 8), (2, 21, 10)]
    assert ledger.duplicates(11, 20) == {12}
    assert ledger.duplicates(13, 20) == set()
    assert list(ledger.all_duplicates()) == [(12, 2)]
    totals = ledger.totals()
    assert (totals.tokens, totals.pending, totals.fetched, totals.failed) == (28, 28, 0, 0)
    assert totals.failures == {"invalid": 1}
    assert totals.classes == {}


def test_a_shard_of_some_rows_has_the_pieces_of_the_plan_that_hold_them(ledger: Ledger) -> None:
    rows = (9, 10, 21)
    assert [cut.first for cut in ledger.cuts(Shard(7, 9, 21, 0, 3, "", 1, rows))] == [1, 21]
    assert [cut.first for cut in ledger.cuts(Shard(7, 9, 21, 0, 13, ""))] == [1, 11, 21]


def test_an_empty_plan_has_no_invalid_lines(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "ledger.sqlite", new=True).totals().invalid == 0


def test_a_ledger_that_is_opened_again_can_be_written_by_another_thread(ledger: Ledger) -> None:
    ledger.close()
    again = Ledger(ledger.path)
    with ThreadPoolExecutor() as pool:
        pool.submit(again.put, "name", "value").result()
    assert again.get("name") == "value"


def test_a_plan_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", new=True)
    with pytest.raises(RuntimeError), ledger.planning() as planner:
        planner.shard(Shard(0, 1, 10, 0, 10, "d"))
        raise RuntimeError
    assert not shards(ledger)
    assert ledger.get("plan") is None


def test_a_commit_is_remembered_by_another_opening(ledger: Ledger) -> None:
    first = shards(ledger)[0]
    ledger.commit(Commit(first, WRITTEN, (failure(3), failure(5, "final"))), run=1, now=7.0)
    ledger.close()
    again = Ledger(ledger.path)
    assert [shard.id for shard in again.pending()] == [1, 2]
    assert again.receipts() == {0: {}}
    assert next(iter(again.failures())) == failure(3)
    totals = again.totals()
    assert (totals.fetched, totals.failed, totals.pending, totals.shards_done, totals.size) == (8, 2, 18, 1, 100)
    assert [(commit.shard.id, commit.written) for commit in again.commits()] == [(0, WRITTEN)]


def test_what_was_left_becomes_a_shard(ledger: Ledger) -> None:
    second = shards(ledger)[1]
    ledger.commit(Commit(second, Written(5, 1, "x"), (), (14, 16, 20)), run=1, now=0.0)
    (left,) = [shard for shard in ledger.pending() if shard.only]
    assert (left.id, left.first, left.last, left.tokens, left.only, left.round) == (3, 14, 20, 3, (14, 16, 20), 0)
    assert [cut.first for cut in ledger.cuts(left)] == [11]
    assert ledger.totals().tokens == 28


def test_a_retry_takes_failures_up_and_counts_them_once(ledger: Ledger) -> None:
    for shard, failed in zip(shards(ledger), ((3, 5), (13,), (25,)), strict=True):
        failures = tuple(failure(line, "final" if line == 5 else "exhausted") for line in failed)
        ledger.commit(Commit(shard, Written(shard.tokens - len(failed), 1, "x"), failures), run=1, now=0.0)
    assert ledger.totals().pending == 0
    assert ledger.retry({"exhausted"}, 2) == 3
    one, two = shards(ledger)
    assert (one.only, one.round, two.only) == ((3, 13), 1, (25,))
    assert [cut.first for cut in ledger.cuts(one)] == [1, 11]
    assert [cut.first for cut in ledger.cuts(two)] == [21]
    totals = ledger.totals()
    assert (totals.tokens, totals.failed, totals.pending, totals.retrying) == (28, 4, 3, 3)
    ledger.commit(Commit(one, Written(1, 1, "x"), (failure(13, "final", "NotFoundError"),)), run=2, now=0.0)
    totals = ledger.totals()
    assert (totals.tokens, totals.fetched, totals.failed, totals.pending) == (28, 25, 3, 1)
    assert [one.line for one in ledger.failures()] == [5, 13, 15, 25]


def test_a_retry_that_is_stopped_keeps_the_failures_it_did_not_reach(ledger: Ledger) -> None:
    for shard in shards(ledger):
        failed = tuple(failure(shard.first + 2 + number) for number in range(2))
        ledger.commit(Commit(shard, Written(shard.tokens - 2, 1, "x"), failed), run=1, now=0.0)
    ledger.retry({"exhausted"}, 100)
    (shard,) = shards(ledger)
    assert shard.only is not None
    ledger.commit(Commit(shard, Written(2, 1, "x"), (), shard.only[2:]), run=2, now=0.0)
    assert [one.line for one in ledger.failures()] == [13, 14, 15, 23, 24]
    assert ledger.totals().tokens == 28


def test_invalid_rows_are_never_retried(ledger: Ledger) -> None:
    assert ledger.retry({"exhausted", "final", "invalid"}, 10) == 0


@pytest.mark.parametrize("point", ["ledger written", "ledger committed"])
def test_a_crash_in_a_commit_leaves_all_of_it_or_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    def crash(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    monkeypatch.setattr(crash_points, "hook", crash)
    with pytest.raises(KeyboardInterrupt):
        ledger.commit(Commit(shards(ledger)[0], WRITTEN, (failure(3),)), run=1, now=0.0)
    monkeypatch.setattr(crash_points, "hook", None)
    done = point == "ledger committed"
    assert ledger.totals().shards_done == done
    assert len(list(ledger.failures())) == 1 + done


def test_it_is_private_and_every_commit_is_synced(ledger: Ledger) -> None:
    db = ledger._db
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    if os.name == "posix":
        assert {stat.S_IMODE(path.stat().st_mode) for path in ledger.path.parent.iterdir()} == {0o600}


def test_many_shards_and_failures_come_in_pages(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", new=True)
    with ledger.planning() as planner:
        for number in range(1000):
            planner.shard(Shard(number, number + 1, number + 1, 0, 1, ""))
            planner.invalid(failure(10_000 + number, "invalid"))
            planner.duplicate(20_000 + number, 1)
    assert [shard.id for shard in ledger.pending()] == list(range(1000))
    assert [one.line for one in ledger.failures()] == list(range(10_000, 11_000))
    assert len(list(ledger.all_duplicates())) == 1000


def test_runs_and_samples(ledger: Ledger) -> None:
    run = ledger.begin_run(10.0)
    ledger.add_sample(run, 11.0, {"done": 3})
    ledger.end_run(run, 12.0, "stopped", "why", {"done": 4})
    killed = ledger.begin_run(13.0)
    assert [(one["run"], one["ended"], one["state"], one["summary"]) for one in ledger.runs()] == [
        (run, 12.0, "stopped", {"done": 4}),
        (killed, None, None, None),
    ]
    assert list(ledger.samples()) == [{"run": run, "at": 11.0, "done": 3}]


def test_the_latest_sample_is_of_the_last_run(ledger: Ledger) -> None:
    assert ledger.latest_sample() is None
    first = ledger.begin_run(1.0)
    ledger.add_sample(first, 2.0, {"done": 1})
    ledger.add_sample(first, 3.0, {"done": 2})
    assert ledger.latest_sample() == {"run": first, "at": 3.0, "done": 2}
    ledger.begin_run(4.0)
    assert ledger.latest_sample() is None


def test_a_snapshot_is_of_one_moment(ledger: Ledger) -> None:
    reader = ledger.reader()
    first, second, _ = shards(ledger)
    with reader.snapshot():
        before = reader.totals()
        ledger.commit(Commit(first, WRITTEN, (failure(3), failure(4))), run=1, now=7.0)
        assert reader.totals() == before
        assert list(reader.commits()) == []
    assert reader.totals() == ledger.totals() != before
    with reader.snapshot():  # it can be read after an error, too
        ledger.commit(Commit(second, WRITTEN), run=1, now=8.0)
    assert reader.totals() == ledger.totals()


def test_totals_are_of_one_moment(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit between two of their queries does not count failures twice."""
    reader = ledger.reader()

    class Between:
        """The reader's connection; before each query except the first, the job continues."""

        in_transaction = property(lambda self: reader_db.in_transaction)

        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            if "FROM failures" in sql and (left := shards(ledger)):
                ledger.commit(Commit(left[0], WRITTEN, (failure(left[0].first),)), run=1, now=7.0)
            return reader_db.execute(sql, *values)

    reader_db = reader._db
    monkeypatch.setattr(reader, "_db", Between())
    assert reader.totals().tokens == 28
    assert ledger.totals().shards_done == 2


@pytest.mark.parametrize("ended", [True, False])
def test_in_a_folder_that_cannot_be_written_it_can_be_looked_at(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """As root and without a mount, only what SQLite is asked for can be seen."""
    ledger.commit(Commit(shards(ledger)[0], WRITTEN), run=1, now=7.0)
    if ended:
        ledger.close()
    asked = []
    connect = sqlite3.connect

    def note(where: str, **options: Any) -> sqlite3.Connection:
        asked.append((where.rpartition("?")[2], options["uri"]))
        return connect(where, **options)

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(sqlite3, "connect", note)
    with closing(Ledger(ledger.path)) as looked_at:
        assert looked_at.totals().fetched == 8
        with pytest.raises(StoreError, match="readonly"):
            looked_at.begin_run(1.0)
    assert asked == [("immutable=1" if ended else "mode=ro", True)]


def test_a_missing_ledger_is_never_made_anew(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="missing"):
        Ledger(tmp_path / "ledger.sqlite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["text", "zeros", "middle", "names"])
def test_a_broken_ledger_is_refused(ledger: Ledger, damage: str) -> None:
    ledger.close()
    data = bytearray(ledger.path.read_bytes())
    if damage == "text":
        data[:] = b"not a database" * 100
    elif damage == "zeros":
        data[: len(data) // 2] = bytes(len(data) // 2)
    elif damage == "names":
        data = data.replace(b"KEY (run, at)", b"K\xe6Y (run, at)")
    else:
        data[4096:] = os.urandom(len(data) - 4096)
    ledger.path.write_bytes(data)
    with pytest.raises(LedgerError, match=r"cannot be understood|not a ledger"):
        Ledger(ledger.path).totals()


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ("UPDATE shards SET done_at = 1, lines = 1, size = 1, sha256 = '', receipt = x'7bff'", "receipts"),
        ("UPDATE shards SET done_at = 1, lines = 1, size = 1, sha256 = '', receipt = NULL", "commits"),
        ("UPDATE shards SET only_rows = x'7b'", "pending"),
        ("INSERT INTO failures VALUES (1, 'final', 'E', 'm', x'7b', NULL, NULL, NULL, 1, NULL)", "failures"),
        ("INSERT INTO runs VALUES (1, 1.0, 1.0, 'complete', '', x'7b')", "runs"),
        ("INSERT INTO samples VALUES (1, 1.0, x'7b')", "samples"),
        ("INSERT OR REPLACE INTO meta VALUES ('plan', '{}')", "plan"),
    ],
)
def test_a_value_that_no_job_writes_means_a_broken_ledger(ledger: Ledger, change: str, read: str) -> None:
    ledger._db.execute(change)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite is broken"):
        found = getattr(ledger, read)()
        list(found.values() if isinstance(found, Mapping) else found)


def test_the_problems_that_sqlite_finds_are_told(ledger: Ledger) -> None:
    assert ledger.problems() == []
    ledger._db.execute("INSERT INTO failures VALUES (1, 'final', 'E', 'm', x'7b7d', NULL, NULL, NULL, 1, NULL)")
    ledger.close()
    with sqlite3.connect(ledger.path) as db:  # a column that must have a value has none
        db.execute("PRAGMA writable_schema = ON")
        db.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'instance TEXT', 'instance TEXT NOT NULL') WHERE name = 'failures'"
        )
    db.close()
    assert Ledger(ledger.path).problems() != []


@pytest.mark.parametrize("change", ["PRAGMA user_version = 0", "DROP TABLE shards"])
def test_another_database_is_no_ledger(ledger: Ledger, change: str) -> None:
    ledger.close()
    with sqlite3.connect(ledger.path) as db:
        db.execute(change)
    db.close()
    with pytest.raises(LedgerError, match="not a ledger"):
        Ledger(ledger.path)


def test_a_newer_ledger_is_refused(ledger: Ledger) -> None:
    ledger.close()
    with sqlite3.connect(ledger.path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LedgerError, match="newer version"):
        Ledger(ledger.path)


def test_a_ledger_that_another_program_holds_is_a_store_error(ledger: Ledger) -> None:
    ledger._db.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        ledger.begin_run(0.0)
    other.close()
    assert ledger.begin_run(0.0) == 1


@pytest.fixture
def new(tmp_path: Path) -> Ledger:
    """A ledger without a plan."""
    return Ledger(tmp_path / "new.sqlite", new=True)


def test_a_shard_finds_its_pieces_by_the_index(new: Ledger) -> None:
    """Not by looking at all pieces before it: a job may have 100,000."""
    with new.planning() as planner:
        for number in range(2000):
            planner.shard(Shard(number, 2 + 10 * number, 11 + 10 * number, 0, 10, "d"))
    steps = []
    new._db.set_progress_handler(lambda: steps.append(1), 10)
    assert [cut.first for cut in new.cuts(Shard(1900, 19002, 19011, 0, 10, "d"))] == [19002]
    assert len(steps) < 20, "in tens of steps of SQLite's machine"
    left = Shard(5000, 25, 52, 0, 3, "", 0, (25, 33, 52))
    assert [cut.first for cut in new.cuts(left)] == [22, 32, 52]
    assert [cut.first for cut in new.cuts(Shard(0, 1, 1, 0, 0, "d"))] == []
    new._db.set_progress_handler(None, 0)


def test_receipts_are_read_when_they_are_asked_for(new: Ledger) -> None:
    with new.planning() as planner:
        for number in range(5):
            planner.shard(Shard(number, 2 + number, 2 + number, 0, 1, "d"))
    receipts = new.receipts()
    assert (len(receipts), dict(receipts)) == (0, {})
    for number in (3, 1):
        new.commit(
            Commit(Shard(number, 2 + number, 2 + number, 0, 1, "d"), WRITTEN, receipt={"n": number}), run=1, now=1.0
        )
    assert dict(receipts) == {1: {"n": 1}, 3: {"n": 3}}
    assert (3 in receipts, 2 in receipts, receipts.get(2)) == (True, False, None)
    assert receipts.keys() - {1} == {3}
    assert {1, 2} - receipts.keys() == {2}


def test_commits_are_in_the_order_of_the_input_also_those_that_came_late(new: Ledger) -> None:
    with new.planning() as planner:
        for number in range(3):
            planner.shard(Shard(number, 2 + 10 * number, 11 + 10 * number, 0, 10, "d"))
    first = Shard(0, 2, 11, 0, 10, "d")
    new.commit(Commit(first, WRITTEN, left=(3, 4)), run=1, now=1.0)
    for shard in list(new.pending()):
        new.commit(Commit(shard, WRITTEN, failures=(failure(12),) if shard.id == 1 else ()), run=1, now=1.0)
    assert new.retry(["exhausted"], 10) == 1
    for shard in list(new.pending()):
        new.commit(Commit(shard, WRITTEN), run=2, now=2.0)
    found = [(commit.shard.round, commit.shard.first) for commit in new.commits()]
    assert found == [(0, 2), (0, 3), (0, 12), (0, 22), (1, 12)]


def test_only_the_latest_sample_has_its_details(new: Ledger) -> None:
    """With 50 workers, they are most of it, and a night has 3,000 samples."""
    assert new.begin_run(0.0) == 1
    for at in (1.0, 2.0):
        new.add_sample(1, at, {"rate": at, "workers": [{"name": "w"}], "drift": [{"path": "x"}]})
    assert new.latest_sample() == {
        "run": 1, "at": 2.0, "rate": 2.0, "workers": [{"name": "w"}], "drift": [{"path": "x"}],
    }  # fmt: skip
    assert list(new.samples()) == [{"run": 1, "at": 1.0, "rate": 1.0}, {"run": 1, "at": 2.0, "rate": 2.0}]
    assert new.begin_run(2.5) == 2
    new.add_sample(2, 3.0, {"rate": 3.0})
    assert new.latest_sample() == {"run": 2, "at": 3.0, "rate": 3.0}
