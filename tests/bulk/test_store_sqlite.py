"""SQLite: rows and mark in one transaction, in a database of one job or of several."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from flinks_async import tables as flat
from flinks_async.bulk.errors import StoreError
from flinks_async.bulk.files import crash_points
from flinks_async.bulk.stores import SQLiteStore, Store, database_schema
from flinks_async.bulk.stores import sqlite as sqlite_store
from flinks_async.bulk.stores.answer_rows import TABLES

from ..answers import DOCUMENTED, to_bytes
from . import store_contract
from .database_contract import check_two_nights, put_two_nights
from .store_contract import OTHER_JOB, SHARDS, Bench, StoreContract, Summaries, Summary, expected

pytestmark = pytest.mark.usefixtures("closed_databases")

tmp_path = store_contract.tmp_path


def query(path: Path, sql: str, *values: Any) -> list[Any]:
    """As a user, in a connection of their own."""
    with closing(sqlite3.connect(path)) as db:
        found = db.execute(sql, values).fetchall()
        db.commit()
    return found


def change(path: Path, *statements: str) -> Callable[[], object]:
    def damage() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            for statement in statements:
                assert db.execute(statement).rowcount, "changes something"

    return damage


def summaries(path: Path, job: int = 1) -> Summaries:
    with closing(sqlite3.connect(path)) as db:
        answers = db.execute("SELECT line, key, request_id, accounts FROM fetches WHERE job = ?", (job,)).fetchall()
        found = {}
        for line, key, request_id, accounts in answers:
            moves = db.execute("SELECT balance FROM transactions WHERE job = ? AND line = ?", (job, line)).fetchall()
            total = sum((Decimal(balance) for (balance,) in moves), Decimal())
            found[line] = Summary(key, request_id, accounts, len(moves), total)
            count = db.execute("SELECT count(*) FROM accounts WHERE job = ? AND line = ?", (job, line)).fetchone()
            assert count == (accounts,)
    return found


class _SQLite(StoreContract):
    os_calls = ("fsync",)

    def path(self, bench: Bench) -> Path:
        raise NotImplementedError

    def read(self, bench: Bench) -> Summaries:
        return summaries(self.path(bench))

    def damages(self, bench: Bench) -> Mapping[str, Callable[[], object]]:
        path = self.path(bench)
        set_ = {
            "an amount": "UPDATE transactions SET debit = '0.01' WHERE line = 5 AND \"transaction\" = 7",
            "a digit that does not change the amount": "UPDATE transactions SET balance = balance || '0' WHERE line = 5",
            "a name": "UPDATE holders SET name = 'x' WHERE line = 2 AND account = 0",
            "a null": "UPDATE accounts SET currency = NULL WHERE line = 2",
            "a key": "UPDATE fetches SET key = 'k-9' WHERE line = 2",
            "the shard of a row": "UPDATE fetches SET shard = 1 WHERE line = 2",
            "a transaction less": "DELETE FROM transactions WHERE line = 5 AND \"transaction\" = 7",
            "an answer less": "DELETE FROM fetches WHERE line = 1",
            "a transaction too many": "INSERT INTO transactions (job, line, detail, account, \"transaction\") "
            "VALUES (1, 2, 9, 9, 9)",
            "a row of no shard": "INSERT INTO transactions (job, line, detail, account, \"transaction\") "
            "VALUES (1, 99, 0, 0, 0)",
            "an answer of no shard": "INSERT INTO fetches (job, line, shard) VALUES (1, 99, 77)",
            "a mark": "DELETE FROM flinks_shards WHERE shard = 2",
            "a mark too many": "INSERT INTO flinks_shards SELECT job, 77, mark FROM flinks_shards WHERE shard = 0",
            "a mark of another shard": "UPDATE flinks_shards SET mark = (SELECT mark FROM flinks_shards WHERE shard = 1) "
            "WHERE shard = 0",
            "a broken mark": "UPDATE flinks_shards SET mark = x'7b' WHERE shard = 0",
        }  # fmt: skip
        return {
            **{name: change(path, statement) for name, statement in set_.items()},
            "a flipped bit": lambda: _flip(path, b"PAYROLL"),
            "cut short": lambda: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 4096 * 4096]),
            "missing": path.unlink,
        }

    def test_all_files_are_the_owners_alone(self, bench: Bench) -> None:
        bench.start().put_missing(0)
        files = list(self.path(bench).parent.glob(self.path(bench).name + "*"))
        assert len(files) == 3, "with the log and its index"
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def _flip(path: Path, text: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(text)] ^= 1
    path.write_bytes(data)


class TestSQLite(_SQLite):
    def make(self, folder: Path) -> Store:
        return SQLiteStore()

    def path(self, bench: Bench) -> Path:
        return bench.folder / "answers.sqlite"


class TestSQLiteOfTheUsersChoice(_SQLite):
    def make(self, folder: Path) -> Store:
        return SQLiteStore(folder.parent / f"{folder.name}.db")

    def path(self, bench: Bench) -> Path:
        return bench.folder.parent / f"{bench.folder.name}.db"

    def test_purge_leaves_no_data_in_the_file(self, bench: Bench) -> None:
        bench.start().put_missing(0, 1)
        bench.store.close()
        assert b"PAYROLL" in self.path(bench).read_bytes()
        bench.start()
        removed = bench.store.purge()
        assert removed[0] == f"5 rows of fetches in {self.path(bench)}"
        for path in self.path(bench).parent.glob(self.path(bench).name + "*"):
            assert b"PAYROLL" not in path.read_bytes()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "job", SQLiteStore)
    yield bench
    bench.store.close()


def database(bench: Bench) -> Path:
    return bench.folder / "answers.sqlite"


# --- what is in the tables --------------------------------------------------------------------------------------------


def test_types_as_they_are_documented(bench: Bench) -> None:
    answer = json.loads(to_bytes(DOCUMENTED))
    bench.start().put(0, {3: to_bytes(DOCUMENTED)})
    (row,) = query(
        database(bench),
        "SELECT t.date, t.debit, a.last_refresh, a.last_refresh_text, a.institution_id, typeof(a.balance_current), f.key "
        "FROM fetches f JOIN accounts a USING (job, line) JOIN transactions t USING (job, line, detail, account)",
    )
    assert row == (
        "2025-01-31", "1000.4", "2023-04-11T15:04:43.346441Z", "2023-04-11T15:04:43.3464411", 14, "text", "k-3",
    )  # fmt: skip
    assert answer["GetAccountsDetail"]
    assert query(database(bench), "SELECT date(last_refresh), strftime('%H', last_refresh) FROM accounts") == [
        ("2023-04-11", "15")
    ]


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("12.30", "12.30"),
        ("-0.00", "-0.00"),
        ("1E+19", "10000000000000000000"),
        ("99999999999999999999999999999", "99999999999999999999999999999"),
        ("0.1234567890123456789012345678", "0.1234567890123456789012345678"),
        ("1E-28", "0.0000000000000000000000000001"),
    ],
)
def test_money_keeps_every_digit(bench: Bench, amount: str, text: str) -> None:
    bench.start().put(0, {3: b'{"GetAccountsDetail":{"Accounts":[{"OverdraftLimit":%b}]}}' % amount.encode()})
    assert query(database(bench), "SELECT overdraft_limit FROM accounts") == [(text,)]
    assert Decimal(text) == Decimal(amount)
    assert bench.problems() == []


def test_it_needs_no_pyarrow(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows and digests, only slower."""
    bodies = {**SHARDS[0], 7: to_bytes(DOCUMENTED), 8: b'{"GetAccountsDetail":{"Accounts":[{"OverdraftLimit":1.50}]}}'}
    with_arrow = bench.start().put(0, bodies)
    rows = query(database(bench), 'SELECT * FROM transactions ORDER BY job, line, detail, account, "transaction"')
    bench.store.purge()
    bench.commits.clear()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert bench.start().put(0, bodies).receipt == with_arrow.receipt
    assert bench.problems() == []
    assert rows == query(database(bench), 'SELECT * FROM transactions ORDER BY line, detail, account, "transaction"')
    with pytest.raises(StoreError, match=r"line 9 of the input, GetAccountsDetail\[0\]\.InstitutionId: .*64 bits"):
        bench.put(1, {9: b'{"GetAccountsDetail":[{"InstitutionId":9223372036854775808,"Accounts":[{}]}]}'})


@pytest.mark.parametrize("title", ["a\0b😀'\"", "a\x1fb", "\x1f", ""])
def test_odd_texts(bench: Bench, title: str) -> None:
    accounts = [{"Title": title, "X": {"y": ["\0", 1.5]}}, {"Title": None}, {"Title": "z"}]
    bench.start().put(0, {3: to_bytes({"GetAccountsDetail": [{"Accounts": accounts}]})})
    assert query(database(bench), "SELECT title, extra, json_extract(extra, '$.X.y[1]') FROM accounts") == [
        (title, '{"X":{"y":["\\u0000",1.5]}}', 1.5),
        (None, None, None),
        ("z", None, None),
    ]
    assert bench.problems() == []


def test_an_integer_beyond_64_bits_is_refused_by_its_place(bench: Bench) -> None:
    bench.start()
    with pytest.raises(StoreError, match=r"line 3 of the input, GetAccountsDetail\[0\]\.InstitutionId: .*64 bits"):
        bench.put(0, {3: b'{"GetAccountsDetail":[{"InstitutionId":9223372036854775808,"Accounts":[{}]}]}'})
    assert summaries(database(bench)) == {}
    bench.put_missing(0)
    assert summaries(database(bench)) == expected(0)


def test_a_line_that_is_there_already_is_refused(bench: Bench) -> None:
    bench.start().put(0, {3: to_bytes(DOCUMENTED)})
    with pytest.raises(StoreError, match=r"cannot be written: UNIQUE constraint failed: fetches\.job, fetches\.line"):
        bench.put(1, {4: to_bytes(DOCUMENTED), 3: to_bytes(DOCUMENTED)})
    assert list(summaries(database(bench))) == [3]


def test_a_spool_with_other_answers_than_were_counted_is_refused(bench: Bench) -> None:
    commit, spool = bench.start().handed(0)
    with pytest.raises(StoreError, match="has 3 answers, not 4"):
        bench.store.put(evolve(commit, written=evolve(commit.written, lines=4)), spool)
    assert summaries(database(bench)) == {}


# --- what users ask ---------------------------------------------------------------------------------------------------


def _accounts() -> Iterator[dict[str, Any]]:
    for bodies in SHARDS:
        for body in bodies.values():
            details = json.loads(body, parse_float=Decimal)["GetAccountsDetail"] or []
            for detail in [details] if isinstance(details, dict) else details:
                yield from detail.get("Accounts", ())


def test_balance_per_currency(bench: Bench) -> None:
    bench.start().put_missing(0, 1, 3)
    wanted: dict[str, Decimal] = defaultdict(Decimal)
    for account in _accounts():
        wanted[account["Currency"]] += account["Balance"]["Current"]
    found = query(
        database(bench),
        "SELECT currency, sum(CAST(round(balance_current * 100) AS INTEGER)) FROM accounts GROUP BY currency",
    )
    assert {currency: Decimal(cents) / 100 for currency, cents in found} == wanted
    assert len(wanted) > 0


def test_payroll_credits_per_holder(bench: Bench) -> None:
    bench.start().put_missing(0, 1, 3)
    wanted: dict[str, Decimal] = defaultdict(Decimal)
    for account in _accounts():
        for move in account["Transactions"]:
            if account["Holder"] and move["Description"].startswith("PAYROLL") and move["Credit"] is not None:
                wanted[account["Holder"]["Name"]] += move["Credit"]
    found = query(
        database(bench),
        """
        SELECT h.name, sum(CAST(round(t.credit * 100) AS INTEGER))
        FROM transactions t JOIN holders h USING (job, line, detail, account)
        WHERE t.description LIKE 'PAYROLL%' AND t.credit IS NOT NULL
        GROUP BY h.name
        """,
    )
    assert {name: Decimal(cents) / 100 for name, cents in found} == wanted
    assert len(wanted) > 1


def test_an_answer_by_the_users_key_uses_an_index(bench: Bench) -> None:
    bench.start().put_missing(0)
    (plan,) = query(database(bench), "EXPLAIN QUERY PLAN SELECT line FROM fetches WHERE key = 'k-2'")
    assert "flinks_fetches_key" in plan[-1]


def test_export_says_where_the_answers_are(bench: Bench) -> None:
    bench.start().put_missing(0)
    with pytest.raises(StoreError, match=r"Query .*answers\.sqlite"):
        list(bench.store.lines(bench.commits.values()))


# --- rows and mark are one --------------------------------------------------------------------------------------------


def test_what_the_ledger_missed_comes_back_as_the_whole_commit(bench: Bench) -> None:
    bench.start().put_missing(0, 1)
    commit = bench.commits.pop(1)
    assert len(commit.failures) == 1
    bench.put_missing(2)
    second = bench.commits.pop(2)
    assert len(second.failures) == 3
    bench.start()
    assert bench.commits[1] == commit
    assert bench.commits[2] == second
    assert bench.problems() == []


def test_a_shard_that_is_there_is_not_written_again(bench: Bench) -> None:
    first = bench.start().put(0)
    again = bench.put(0, {1: to_bytes(DOCUMENTED)})
    assert again.receipt == first.receipt
    assert summaries(database(bench)) == expected(0)


def test_a_database_that_lost_shards_is_refused(bench: Bench) -> None:
    bench.start().put_missing(0, 1)
    bench.store.close()
    change(database(bench), "DELETE FROM flinks_shards WHERE shard = 1")()
    with pytest.raises(StoreError, match="lacks 1 shards that the job has written to it"):
        bench.start()
    database(bench).unlink()
    with pytest.raises(StoreError, match="lacks 2 shards"):
        bench.start()


def test_a_disk_that_is_full_at_any_moment(bench: Bench) -> None:
    """SQLite's own limit on pages has the effect of a full disk; real ones are met under torture."""
    bench.start()
    pages = bench.store._opened.execute("PRAGMA page_count").fetchone()[0]
    failed = 0
    for limit in range(pages, pages + 60):
        bench.store._opened.execute(f"PRAGMA max_page_count = {limit}")
        try:
            bench.put(0)
        except StoreError as error:
            failed += 1
            assert str(error) == f"{database(bench)} cannot be written: database or disk is full"
            assert summaries(database(bench)) == {}
        else:
            break
    assert failed > 3
    assert summaries(database(bench)) == expected(0)
    assert bench.problems() == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("SQLITE_IOERR_WRITE", "cannot be written: disk I/O error"),
        ("SQLITE_BUSY", "cannot be written: another program keeps it locked"),
        ("SQLITE_CORRUPT", "is broken: disk I/O error"),
    ],
)
def test_errors_of_sqlite_are_ours(bench: Bench, number: str, message: str) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = number
    store: Any = bench.start().store

    def fail() -> None:
        raise error

    with pytest.raises(StoreError) as caught, store._transaction():
        store._do(fail)
    assert str(caught.value) == f"{database(bench)} {message}"
    bench.put_missing(0)
    assert summaries(database(bench)) == expected(0)


def test_another_writer_is_waited_for_and_then_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "_WAIT", 0.01)
    bench.start()
    with closing(sqlite3.connect(database(bench), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program keeps it locked"):
            bench.put(0)
        other.execute("ROLLBACK")
    bench.put(0)


def test_it_is_synced_in_full(bench: Bench) -> None:
    db = bench.start().store._opened
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_readers_do_not_disturb_and_see_whole_shards(bench: Bench) -> None:
    bench.start().put_missing(0)
    with closing(sqlite3.connect(database(bench))) as reader:
        seen: list[int] = []
        crash_points.hook = lambda _: seen.append(reader.execute("SELECT count(*) FROM transactions").fetchone()[0])
        try:
            bench.put_missing(1)
        finally:
            crash_points.hook = None
    assert seen == [120, 120, 120, 360], "spool written and synced, rows written, rows committed"


# --- whose database it is ---------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    return tmp_path / "shared.db"


def bench_at(path: Path, name: str = "job", **options: Any) -> Bench:
    return Bench(path.parent / name, lambda: SQLiteStore(path), **options)


def test_several_jobs_share_a_database(shared: Path) -> None:
    one = bench_at(shared).start()
    other = bench_at(shared, "other", job=OTHER_JOB).start()
    one.put_missing(0)
    other.put_missing(0, 1)
    one.put_missing(1, 2, 3)
    assert summaries(shared, 1) == expected(0, 1, 3)
    assert summaries(shared, 2) == expected(0, 1)
    assert one.problems() == other.problems() == []
    one.store.purge()
    assert summaries(shared, 1) == {}
    assert summaries(shared, 2) == expected(0, 1)
    assert other.problems() == []


def test_a_default_database_with_rows_of_others_is_kept(bench: Bench) -> None:
    bench.start().put_missing(0)
    other = bench_at(database(bench), "other", job=OTHER_JOB).start()
    other.put_missing(0)
    bench.store.purge()
    assert summaries(database(bench), 2) == expected(0)


def test_tables_of_others_stay(shared: Path) -> None:
    query(shared, "CREATE TABLE mine (x)")
    query(shared, "INSERT INTO mine VALUES (7)")
    bench = bench_at(shared).start()
    bench.put_missing(0)
    assert bench.problems() == []
    bench.store.purge()
    assert query(shared, "SELECT x FROM mine") == [(7,)]


@pytest.mark.parametrize("statement", ["CREATE TABLE accounts (x)", "CREATE VIEW holders AS SELECT 1"])
def test_a_table_of_the_same_name_is_refused(shared: Path, statement: str) -> None:
    query(shared, statement)
    before = shared.read_bytes()
    with pytest.raises(StoreError, match=r"has a table '(accounts|holders)' that is not of flinks-async"):
        bench_at(shared).start()
    assert shared.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(shared: Path) -> None:
    shared.write_bytes(b"precious notes\n" * 100)
    with pytest.raises(StoreError, match=r"shared\.db is not an SQLite database"):
        bench_at(shared).start()
    assert shared.read_bytes() == b"precious notes\n" * 100


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"out\.db cannot be written: No such file"):
        Bench(tmp_path / "job", lambda: SQLiteStore(tmp_path / "nowhere" / "out.db")).start()


def test_a_database_of_a_newer_version_is_refused(shared: Path) -> None:
    bench = bench_at(shared).start()
    bench.store.close()
    change(shared, "UPDATE flinks_meta SET value = 99")()
    with pytest.raises(StoreError, match=r"newer version of flinks-async \(format 99\)\. Update flinks-async"):
        bench.start()


@pytest.mark.parametrize(
    "statement", ["DROP TABLE holders", "DELETE FROM flinks_meta", "UPDATE flinks_meta SET value = 'x'"]
)
def test_a_database_that_was_tampered_with_is_refused(shared: Path, statement: str) -> None:
    bench_at(shared).start().store.close()
    query(shared, statement)
    with pytest.raises(StoreError, match="is not a database of flinks-async, or a part of it was removed"):
        bench_at(shared).start()


def test_views_of_the_latest_answers_of_each_key(shared: Path) -> None:
    put_two_nights(shared.parent, lambda _: SQLiteStore(shared))
    check_two_nights(lambda sql: query(shared, sql))


def test_columns_of_a_newer_version_are_added(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> list[flat.Table]:
        return [evolve(table, columns=tuple(c for c in table.columns if c.name != name)) for table in TABLES]

    old = bench_at(shared)
    with monkeypatch.context() as past:
        past.setattr(database_schema, "TABLES", without("description"))
        past.setattr(database_schema, "VERSION", 0)
        old.start()
        assert query(shared, "SELECT value FROM flinks_meta") == [(0,)]
        with pytest.raises(StoreError, match="has no column named description"):
            old.put(0)
        old.store.close()
    old.start().put_missing(0)
    assert query(shared, "SELECT value FROM flinks_meta") == [(1,)]
    assert old.problems() == []
    with monkeypatch.context() as past:
        past.setattr(database_schema, "TABLES", without("detail"))
        other = shared.with_name("other.db")
        bench_at(other, "other").start().store.close()
    with pytest.raises(
        StoreError, match=r"the table 'accounts' of .* lacks the column 'detail', which cannot be added"
    ):
        bench_at(other, "other").start()


def test_a_store_that_is_not_open_says_so() -> None:
    with pytest.raises(StoreError, match="not open"):
        SQLiteStore().purge()
