"""The contract of every store in a database, in addition to `StoreContract`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from flinks_async.bulk.errors import StoreError
from flinks_async.bulk.records import Written
from flinks_async.bulk.stores import Store
from flinks_async.bulk.stores.database_schema import NAMES, VIEWS

from .store_contract import JOB, OTHER_JOB, SHARDS, Bench, Crash, StoreContract, Summaries, at_points, expected
from .tables_support import summaries


def body(**transaction: Any) -> bytes:
    """An answer with one transaction and a holder."""
    account = {"Id": "a-1", "Currency": "CAD", "Holder": {"Name": "Jane Secret"}, "Transactions": [transaction]}
    return json.dumps({"GetAccountsDetail": [{"Accounts": [account]}], "RequestId": "r"}).encode()


NIGHTLY = Path(__file__).parents[2] / "docs" / "nightly.md"


def balances(key: str, amount: int) -> tuple[str, bytes]:
    account = b'{"Id":"1","Balance":{"Current":%d},"Transactions":[{"Id":"m-0"},{"Id":"m-%d"}]}' % (amount, amount)
    return key, b'{"GetAccountsDetail":[{"Accounts":[%b]}]}' % account


def spool_line(line: int, key: str, response: bytes) -> bytes:
    return b'{"line":%d,"key":"%b","response":%b,"meta":{"status":200,"attempts":1}}\n' % (line, key.encode(), response)


def put_two_nights(folder: Path, make: Callable[[Path], Store]) -> None:
    """Jobs of two nights. The user b, with two accounts at two tokens, fails in the second one; d is new; a and c have moved."""
    nights = {
        "2026-11-27": [balances("a", 1), balances("b", 2), balances("b", 3), balances("c", 4), balances("e", 5)],
        "2026-11-28": [balances("a", 10), balances("d", 5), balances("c", 40), balances("e", 5)],
    }
    for (night, answers), (_, job) in zip(nights.items(), JOBS, strict=True):
        place = folder / "nights" / night
        place.parent.mkdir(exist_ok=True)
        bench = Bench(place, lambda place=place: make(place), job).start()
        commit, path = bench.handed(0, {})
        path.write_bytes(b"".join(spool_line(line, *answer) for line, answer in enumerate(answers, 1)))
        bench.store.put(evolve(commit, written=Written(len(answers), 0, "")), path)
        bench.store.close()


def check_two_nights(query: Callable[[str], list[tuple[Any, ...]]]) -> None:
    """Runs the queries of docs/nightly.md."""
    latest, changed, transactions, *_ = nightly_queries()
    found = [(key, Decimal(balance), job) for key, _, balance, job in query(latest)]
    assert sorted(found) == [("a", 10, 2), ("b", 2, 1), ("b", 3, 1), ("c", 40, 2), ("d", 5, 2), ("e", 5, 2)]
    moves = [(key, what, *(n and int(Decimal(n)) for n in numbers)) for key, _, what, *numbers in query(changed)]
    assert moves == [("a", "moved", 1, 10), ("c", "moved", 4, 40), ("d", "new", None, 5)]
    assert [row[:2] for row in query(transactions)] == [("a", "m-10"), ("c", "m-40"), ("d", "m-0"), ("d", "m-5")]
    counts = {view: query(f"SELECT count(*) FROM {view}")[0][0] for view in VIEWS}
    assert counts == {"current_fetches": 6, "current_accounts": 6, "current_transactions": 12, "current_holders": 0}


def nightly_queries() -> list[str]:
    return re.findall(r"```sql\n(.*?)```", NIGHTLY.read_text(encoding="utf-8"), re.DOTALL)


class DatabaseContract(StoreContract):
    def query(self, folder: Path, sql: str) -> list[dict[str, Any]]:
        """As a user, in a connection of their own."""
        raise NotImplementedError

    def drop_views(self, folder: Path) -> None:
        """As in a database of an older version."""
        for view in VIEWS:
            self.query(folder, f"DROP VIEW IF EXISTS {view}")

    def drop_everything(self, folder: Path) -> None:
        for view in VIEWS:
            self.query(folder, f"DROP VIEW IF EXISTS {view}")
        for table in NAMES:
            self.query(folder, f"DROP TABLE IF EXISTS {table}")

    def shared(self, folder: Path) -> Store:
        """A store in a database that several jobs may share."""
        raise NotImplementedError

    def read(self, bench: Bench, job: int = 1) -> Summaries:
        columns = 'line, "key", request_id, accounts'
        bench.store.close()
        found = summaries(
            self.query(bench.folder, f"SELECT {columns} FROM fetches WHERE job = {job}"),
            self.query(bench.folder, f"SELECT line, balance FROM transactions WHERE job = {job}"),
        )
        bench.store.open(bench.place)
        return found

    def damages(self, bench: Bench) -> Mapping[str, Callable[[], object]]:
        set_ = {
            "a row less": "DELETE FROM holders WHERE line = 2 AND account = 0",
            "a row of no answer": "INSERT INTO holders (job, line, detail, account) VALUES (1, 99, 0, 0)",
            "another amount": "UPDATE transactions SET balance = balance + 0.01 WHERE line = 5",
            "no mark": "DELETE FROM flinks_shards WHERE shard = 1",
            "another mark": "UPDATE flinks_shards SET mark = '{}' WHERE shard = 1",
            "a mark too many": "INSERT INTO flinks_shards SELECT job, 7, mark FROM flinks_shards WHERE shard = 0",
        }
        return {name: partial(self.query, bench.folder, sql) for name, sql in set_.items()}

    def test_two_jobs_in_one_database(self, tmp_path: Path) -> None:
        first, second = (Bench(tmp_path / name, lambda: self.shared(tmp_path), job) for name, job in JOBS)
        first.start().put_missing(0)
        first.store.close()
        second.start().put_missing(1)
        second.folder = tmp_path
        assert self.read(second, 1) == expected(0)
        assert self.read(second, 2) == expected(1)
        assert second.problems() == []
        removed = second.store.purge()
        assert [text.partition(" in ")[0] for text in removed] == [
            "2 rows of fetches",
            "4 rows of accounts",
            "240 rows of transactions",
            "4 rows of holders",
            f"left: {second.store.where}, now without rows of this job",
        ]
        second.store.close()
        assert first.problems() == []
        first.store.close()
        assert self.query(tmp_path, "SELECT job FROM flinks_jobs") == [{"job": JOB}]

    def test_views_of_the_latest_answers_of_each_key(self, tmp_path: Path) -> None:
        put_two_nights(tmp_path, lambda folder: self.shared(tmp_path))
        check_two_nights(lambda sql: [tuple(row.values()) for row in self.query(tmp_path, sql)])

    def test_a_view_of_the_users_is_left_alone(self, bench: Bench) -> None:
        bench.start()
        bench.store.purge()
        bench.store.close()
        self.drop_everything(bench.folder)
        self.query(bench.folder, "CREATE TABLE mine (x INTEGER)")
        self.query(bench.folder, "CREATE VIEW current_accounts AS SELECT x FROM mine")
        bench.start().put_missing(0)
        assert bench.problems() == []
        bench.store.close()
        assert self.query(bench.folder, "SELECT * FROM current_accounts") == []

    def test_a_newer_version_is_refused(self, bench: Bench) -> None:
        bench.start().put_missing(0)
        bench.store.close()
        self.query(bench.folder, "UPDATE flinks_meta SET value = 2")
        with pytest.raises(StoreError, match="newer version of flinks-async"):
            bench.start()

    def test_columns_of_an_older_version_are_added(self, bench: Bench) -> None:
        bench.start()
        bench.store.close()
        self.drop_views(bench.folder)
        self.query(bench.folder, "ALTER TABLE accounts DROP COLUMN answer_extra")
        self.query(bench.folder, "UPDATE flinks_meta SET value = 0")
        bench.start().put_missing(0)
        assert bench.problems() == []
        bench.store.close()
        assert self.query(bench.folder, "SELECT DISTINCT answer_extra FROM accounts") == [{"answer_extra": None}]
        assert self.query(bench.folder, "SELECT value FROM flinks_meta") == [{"value": 1}]

    def test_tables_of_an_older_version_are_looked_at_as_they_are(self, bench: Bench) -> None:
        bench.start().put_missing(0)
        bench.store.close()
        self.drop_views(bench.folder)
        self.query(bench.folder, "ALTER TABLE accounts DROP COLUMN answer_extra")
        self.query(bench.folder, "UPDATE flinks_meta SET value = 0")
        assert bench.problems() == []
        bench.store.close()
        assert self.query(bench.folder, "SELECT value FROM flinks_meta") == [{"value": 0}]

    def test_a_database_without_the_job_is_looked_at_and_nothing_is_added(self, tmp_path: Path) -> None:
        first, second = (Bench(tmp_path / name, lambda: self.shared(tmp_path), job) for name, job in JOBS)
        first.start().put_missing(0)
        first.store.close()
        second.commits = first.commits
        assert second.missing() == [0]
        assert second.problems()
        second.store.close()
        assert self.query(tmp_path, "SELECT job FROM flinks_jobs") == [{"job": JOB}]

    def test_a_database_without_our_tables_gets_none_by_a_look(self, bench: Bench) -> None:
        bench.start().put_missing(0)
        bench.store.close()
        self.drop_views(bench.folder)
        for table in NAMES:
            self.query(bench.folder, f"DROP TABLE IF EXISTS {table}")
        self.query(bench.folder, "CREATE TABLE mine (x INTEGER)")
        assert bench.missing() == [0]
        assert [problem.what for problem in bench.problems()] == ["it has no tables of flinks-async"]
        assert bench.store.purge() == []
        bench.store.close()
        assert self.query(bench.folder, "SELECT * FROM mine") == []

    def test_tables_of_somebody_else_are_left_alone(self, bench: Bench) -> None:
        bench.start()
        bench.store.purge()
        bench.store.close()
        self.drop_views(bench.folder)
        for table in ("flinks_meta", "flinks_jobs", "flinks_shards", "accounts", "transactions", "holders"):
            self.query(bench.folder, f"DROP TABLE IF EXISTS {table}")
        self.query(bench.folder, "CREATE TABLE IF NOT EXISTS fetches (mine INTEGER)")
        with pytest.raises(StoreError, match="a table 'fetches' that is not of flinks-async"):
            bench.start()
        bench.store.close()
        self.query(bench.folder, "SELECT * FROM fetches")

    def test_a_part_of_the_database_is_missing(self, bench: Bench) -> None:
        bench.start()
        bench.store.close()
        self.drop_views(bench.folder)
        self.query(bench.folder, "DROP TABLE holders")
        with pytest.raises(StoreError, match="a part of it was removed"):
            bench.start()

    def test_shards_that_were_lost_are_noticed_at_the_start(self, bench: Bench) -> None:
        bench.start().put_missing(0, 1)
        bench.store.close()
        self.query(bench.folder, "DELETE FROM flinks_shards WHERE shard = 1")
        with pytest.raises(StoreError, match="lacks 1 shards that the job has written"):
            bench.start()

    def test_what_the_ledger_does_not_know_comes_back_as_it_was(self, bench: Bench) -> None:
        bench.start()
        commit, path = bench.handed(1)
        with at_points(_crash_at("rows committed")), pytest.raises(Crash):
            bench.store.put(commit, path)
        (found,) = list(bench.store.recover({}))
        assert (found.shard, found.written, found.failures) == (commit.shard, commit.written, commit.failures)
        assert bench.store.put(commit, path) == found.receipt
        assert self.read(bench) == expected(1)

    def test_nothing_of_a_shard_is_kept_when_an_answer_cannot_be_read(self, bench: Bench) -> None:
        bench.start()
        with pytest.raises(StoreError, match=r"line 2: .*expected an object, found a number"):
            bench.put(0, {1: SHARDS[0][1], 2: b"7"})
        assert self.read(bench) == {}

    def test_a_number_that_is_too_large_for_its_column(self, bench: Bench) -> None:
        bench.start()
        answer = {"GetAccountsDetail": [{"InstitutionId": 2**63, "Accounts": [{}]}]}
        with pytest.raises(StoreError, match=r"line 1 of the input, GetAccountsDetail\[0\].InstitutionId"):
            bench.put(0, {1: json.dumps(answer).encode()})
        assert self.read(bench) == {}

    def test_exact_amounts_and_unknown_fields(self, bench: Bench) -> None:
        bench.start()
        text = b'{"Debit": 0.1, "Credit": 12345678901234567.10, "Balance": -0.000000000000000001, "Merchant": {"Fee": 1.10}}'
        bench.put(0, {1: body().replace(b"[{}]", b"[%b]" % text)})
        bench.store.close()
        columns = "debit, credit, balance, CAST(extra AS text) AS extra"
        (row,) = self.query(bench.folder, f"SELECT {columns} FROM transactions")
        assert row["debit"] == Decimal("0.1")
        assert row["credit"] == Decimal("12345678901234567.10")
        assert row["balance"] == Decimal("-0.000000000000000001")
        assert json.loads(row["extra"], parse_float=Decimal) == {"Merchant": {"Fee": Decimal("1.10")}}
        assert bench.problems() == []

    def test_unknown_numbers_of_any_form_are_verified(self, bench: Bench) -> None:
        bench.start()
        numbers = b"[-0.0, -0, 0e7, -0.00E5, 1E+3, 1e-7, 12345678901234567890.10]"
        bench.put(0, {1: body(New=7).replace(b": 7}", b": %b}" % numbers)})
        assert bench.problems() == []


JOBS = (("a", JOB), ("b", OTHER_JOB))


def _crash_at(point: str) -> Callable[[str], None]:
    def crash(name: str) -> None:
        if name == point:
            raise Crash

    return crash
