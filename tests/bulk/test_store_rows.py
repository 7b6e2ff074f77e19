"""Answers as rows, the digest of rows, and commits as marks."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flinks_async import tables
from flinks_async import tables as flat
from flinks_async.bulk.errors import StoreError
from flinks_async.bulk.records import Commit, Failure, Shard, Written
from flinks_async.bulk.spool import PIECE, read_lines, read_spool
from flinks_async.bulk.stores.answer_rows import (
    ACCOUNTS,
    FETCHES,
    HOLDERS,
    TABLES,
    TRANSACTIONS,
    RowBatch,
    ShardDigest,
    add_rows,
    as_texts,
    decoded,
    does_not_fit,
)
from flinks_async.bulk.stores.answer_tables import read_tables
from flinks_async.bulk.stores.database import commit_from_json, commit_to_json
from flinks_async.testing.data import Size, expected_answer, expected_body

from ..answers import DOCUMENTED, to_bytes

SHARD = Shard(4, 1, 1000, 0, 1000, "d", round=2)


def spool(path: Path, *answers: tuple[str, bytes]) -> Path:
    """A spool of answers with what stands before them in their lines."""
    path.write_bytes(
        b"".join(
            b'{%b,"response":%b,"meta":{"status":200,"attempts":3}}\n' % (head.encode(), body) for head, body in answers
        )
    )
    return path


def only(path: Path) -> RowBatch:
    """The rows of a spool with one answer."""
    (((number, line),),) = read_spool(path, 1, 1)
    rows = RowBatch()
    add_rows(rows, *decoded(path, number, line), SHARD)
    return rows


def named(table: flat.Table, row: flat.Row) -> dict[str, Any]:
    return dict(zip(table.names, row, strict=True))


def test_the_documented_answer(tmp_path: Path) -> None:
    batch = only(spool(tmp_path / "s", ('"line":7,"key":"u-1","instance":"acme"', to_bytes(DOCUMENTED))))
    (fetch,) = batch.fetches
    assert named(FETCHES, fetch) == {
        "line": 7,
        "key": "u-1",
        "instance": "acme",
        "request_id": DOCUMENTED["RequestId"],
        "status": 200,
        "attempts": 3,
        "accounts": 1,
        "shard": 4,
        "round": 2,
        "without_accounts": None,
        "extra": None,
    }
    (account,) = batch.accounts
    assert account[:4] == (7, "u-1", 0, 0)
    assert named(ACCOUNTS, account)["balance_current"] == Decimal("5105.5")
    assert named(ACCOUNTS, account)["last_refresh"].tzinfo is dt.UTC
    assert named(ACCOUNTS, account)["last_refresh_text"] == "2023-04-11T15:04:43.3464411"
    (move,) = batch.transactions
    assert move[:5] == (7, "u-1", 0, 0, 0)
    assert named(TRANSACTIONS, move)["date"] == dt.date(2025, 1, 31)
    (holder,) = batch.holders
    assert named(HOLDERS, holder)["address_postal_code"] == "M5J 2V5"
    assert [batch.of(table) for table in TABLES] == [[fetch], [account], [move], [holder]]


def test_columns_are_those_of_arrow_with_the_line_in_front() -> None:
    pytest.importorskip("pyarrow")
    schemas = tables.schemas(keyed=True)
    for table in (ACCOUNTS, TRANSACTIONS, HOLDERS):
        assert table.names[:2] == ("line", "key")
        assert ["key", "answer", *table.names[2:]] == getattr(schemas, table.name).names
        assert table.identity[:3] == ("line", "detail", "account")
    assert FETCHES.identity == ("line",)


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_every_value_of_an_answer_is_in_a_row(tmp_path: Path, size: Size) -> None:
    batch = only(spool(tmp_path / "s", ('"line":1', expected_body("t", size=size))))
    answer = expected_answer("t", size=size)
    accounts = [a for detail in answer["GetAccountsDetail"] for a in detail.get("Accounts", [])]
    assert [row[ACCOUNTS.names.index("balance_current")] for row in batch.accounts] == [
        account["Balance"]["Current"] for account in accounts
    ]
    wanted = [
        (number, place, move["Date"], move["Description"], move["Debit"], move["Credit"], move["Balance"], move["Id"])
        for number, account in enumerate(accounts)
        for place, move in enumerate(account["Transactions"])
    ]
    assert [
        (number, place, day.isoformat(), description, debit, credit, balance, id_)
        for _, _, _, number, place, _, _, day, _, description, debit, credit, balance, id_, _ in batch.transactions
    ] == wanted
    assert len(batch.holders) == sum(account["Holder"] is not None for account in accounts)
    assert batch.fetches[0][FETCHES.names.index("accounts")] == len(accounts)


def test_entries_without_accounts_are_kept(tmp_path: Path) -> None:
    body = b'{"GetAccountsDetail":[{"LoginId":"a","New":1.50},{"Accounts":[{}]},{"Accounts":[]}],"Top":true}'
    batch = only(spool(tmp_path / "s", ('"line":1', body)))
    fetch = named(FETCHES, batch.fetches[0])
    assert fetch["without_accounts"] == '[{"LoginId":"a","New":1.50},{"Accounts":[]}]'
    assert fetch["extra"] == '{"Top":true}'
    assert [row[:4] for row in batch.accounts] == [(1, None, 1, 0)]


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ('"u"', "u"),
        ('""', ""),
        ("7", "7"),
        ("7.10", "7.10"),
        ("null", None),
        ('{"a":[1]}', '{"a":[1]}'),
        ("true", "true"),
    ],
)
def test_a_key_that_is_not_text_is_its_json(tmp_path: Path, key: str, found: str | None) -> None:
    batch = only(spool(tmp_path / "s", (f'"line":1,"key":{key}', to_bytes(DOCUMENTED))))
    assert {batch.fetches[0][1], batch.accounts[0][1], batch.transactions[0][1], batch.holders[0][1]} == {found}


def test_the_request_id_of_an_entry_will_do(tmp_path: Path) -> None:
    body = b'{"GetAccountsDetail":[{"RequestId":"inside"}]}'
    batch = only(
        spool(
            tmp_path / "s",
            ('"line":1', body),
        )
    )
    assert batch.fetches[0][FETCHES.names.index("request_id")] == "inside"


def test_odd_texts_come_through(tmp_path: Path) -> None:
    body = '{"GetAccountsDetail":{"Accounts":[{"Title":"a\\u0000b","Currency":"王\\ud83d\\ude00","X":"\\u0000"}]}}'.encode()
    (account,) = only(spool(tmp_path / "s", ('"line":1', body))).accounts
    row = named(ACCOUNTS, account)
    assert (row["title"], row["currency"], json.loads(row["extra"])) == ("a\0b", "王😀", {"X": "\0"})


def test_answers_come_in_the_order_of_the_input(tmp_path: Path) -> None:
    bodies = {line: expected_body(f"t-{line}", size="small") for line in (30, 4, 100, 5)}
    path = spool(tmp_path / "s", *((f'"line":{line}', body) for line, body in bodies.items()))
    size = len(path.read_bytes()) // 3
    found = [[(number, decoded(path, number, line)[0].line) for number, line in b] for b in read_spool(path, 4, size)]
    assert found == [[(2, 4), (4, 5)], [(1, 30), (3, 100)]]


@pytest.mark.parametrize("step", [1, 2, 7, 31])
def test_lines_are_the_same_however_far_apart_they_are(tmp_path: Path, step: int) -> None:
    """Whether a block is read at once or line by line."""
    answers = {line: expected_body(f"t-{line}", size="small") for line in ((step * n) % 97 for n in range(97))}
    path = spool(tmp_path / "s", *((f'"line":{line}', body) for line, body in answers.items()))
    written = path.read_bytes().splitlines(keepends=True)
    for size in (1, 1_000, 10**6):
        found = [one for block in read_spool(path, 97, size) for one in block]
        assert [decoded(path, *one)[0].line for one in found] == list(range(97))
        assert all(written[number - 1] == text for number, text in found)


def test_what_many_accounts_repeat_is_held_once(tmp_path: Path) -> None:
    body = b'{"GetAccountsDetail":{"Accounts":[{},{},{}],"New":1},"Answer":{"x":"y"}}'
    batch = only(spool(tmp_path / "s", ('"line":1', body)))
    for name, text in (("detail_extra", '{"New":1}'), ("answer_extra", '{"Answer":{"x":"y"}}')):
        texts = [named(ACCOUNTS, row)[name] for row in batch.accounts]
        assert texts == [text] * 3
        assert len({id(one) for one in texts}) == 1


def test_a_spool_without_answers(tmp_path: Path) -> None:
    assert list(read_spool(spool(tmp_path / "s"), 0, 1)) == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{}\n", "line 1: it is not a line of a spool"),
        (b"garbage\n", "line 1: it is not a line of a spool"),
        (b"\xff\n", "line 1: it is not a line of a spool"),
        (b'{"line":1,"response":3,"meta":{"status":200,"attempts":1}}\n', "expected an object, found a number"),
        (b'{"line":1,"response":{"GetAccountsDetail":["\\ud800"]},"meta":{"status":200,"attempts":1}}\n', "line 1: "),
        (b'{"line":1', "it ends within a line"),
    ],
)
def test_a_broken_spool_is_refused_by_its_line(tmp_path: Path, line: bytes, why: str) -> None:
    path = tmp_path / "s"
    path.write_bytes(line)
    with pytest.raises(StoreError) as caught:
        list(read_tables(path, Commit(SHARD, Written(1, 0, "")), "out", texts=True))
    assert why in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_spool_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        list(read_spool(tmp_path / "s", 1, 1))


def test_lines_longer_than_a_piece(tmp_path: Path) -> None:
    lines = [b"a" * (PIECE - 1) + b"\n", b"b" * (3 * PIECE) + b"\n", b"\n", b"c\n", b"d" * PIECE + b"\n"]
    path = tmp_path / "s"
    path.write_bytes(b"".join(lines))
    assert list(read_lines(path, "none")) == lines
    assert list(read_lines(path, "none", PIECE, 3 * PIECE + 2)) == lines[1:3]


def test_a_value_that_does_not_fit_is_told_by_its_place(tmp_path: Path) -> None:
    body = b'{"GetAccountsDetail":[{},{"Accounts":[{},{"Balance":{"Limit":1},"Transactions":[{},{"Debit":123}]}]}]}'
    batch = only(spool(tmp_path / "s", ('"line":7', body)))
    debit = TRANSACTIONS.columns[TRANSACTIONS.names.index("debit")]
    error = does_not_fit(Path("db"), TRANSACTIONS, debit, batch.transactions[1], "DECIMAL")
    assert str(error) == (
        "db cannot be written: line 7 of the input, GetAccountsDetail[1].Accounts[1].Transactions[1].Debit: "
        "the value does not fit a column of type DECIMAL"
    )
    status = FETCHES.columns[FETCHES.names.index("status")]
    assert "line 7 of the input, status:" in str(does_not_fit(Path("db"), FETCHES, status, batch.fetches[0], "INTEGER"))


# --- marks ------------------------------------------------------------------------------------------------------------

FULL = Commit(
    Shard(3, 11, 20, 370, 9, "abc", round=1, only=(11, 13, 2**40)),
    Written(7, 2**40, "ab" * 32),
    (
        Failure(11, "final", "NotFoundError", 'no "such" token \u2028', key={"a": [1, 2.5, None, 2**70]}),
        Failure(13, "exhausted", "ServerError", "", "é\0", "fp", "CODE", 503, 6, "acme"),
    ),
    (17, 19),
    {"rows": {"fetches": 7}, "digest": "00ff", "deep": [{"x": None}]},
)


@pytest.mark.parametrize("commit", [FULL, Commit(Shard(0, 1, 2, 0, 1, ""), Written(0, 0, ""))])
def test_a_mark_is_the_whole_commit(commit: Commit) -> None:
    again = commit_from_json(commit_to_json(commit))
    assert again == commit
    assert repr(again) == repr(commit), "types too"
    assert commit_from_json(commit_to_json(commit).decode()) == commit


def test_a_mark_of_a_newer_version_is_understood() -> None:
    data = json.loads(commit_to_json(FULL)) | {"later": 1}
    assert commit_from_json(json.dumps(data)) == FULL


@pytest.mark.parametrize("mark", [b"", b"{}", b"nonsense", b'{"shard":3,"written":{}}'])
def test_a_broken_mark_is_refused(mark: bytes) -> None:
    with pytest.raises(ValueError):
        commit_from_json(mark)


# --- rows as texts, and their digest ----------------------------------------------------------------------------------


def test_days_before_the_year_1000() -> None:
    refresh = ACCOUNTS.names.index("last_refresh")
    row = tuple(dt.datetime(1, 1, 1, tzinfo=dt.UTC) if n == refresh else None for n in range(len(ACCOUNTS.columns)))
    ((*texts,),) = as_texts("db", ACCOUNTS, [row])
    assert texts[refresh] == "0001-01-01T00:00:00.000000Z"


def fetch(line: int, **values: Any) -> flat.Row:
    return tuple({"line": line, **values}.get(name) for name in FETCHES.names)


def digest(*rows: flat.Row, table: flat.Table = FETCHES) -> str:
    found = ShardDigest()
    if rows:
        found.add(table, list(rows))
    return found.hexdigest()


def test_the_digest_of_rows_does_not_depend_on_how_many_come_at_once() -> None:
    rows = [fetch(1, key="x", status=1), fetch(2, key="y", extra='{"b":1,"a":1.0}'), fetch(3)]
    parts = ShardDigest()
    parts.add(FETCHES, rows[:1])
    parts.add(FETCHES, rows[1:])
    assert parts.hexdigest() == digest(*rows)
    assert parts.rows == {"fetches": 3, "accounts": 0, "transactions": 0, "holders": 0}


def test_the_digest_of_rows_depends_on_everything() -> None:
    rows = [fetch(1, key="xy", status=2), fetch(2, key="z", status=1)]
    others = [
        digest(),
        digest(*rows, rows[1]),
        digest(rows[0]),
        digest(*reversed(rows)),
        digest(fetch(1, key="x", status=2), fetch(2, key="yz", status=1)),
        digest(fetch(1, key="xy", status=1), fetch(2, key="z", status=2)),
        digest(fetch(1, key="xy"), fetch(2, key="z", status=1)),
        digest(fetch(1, key="", status=2), fetch(2, key="xyz", status=1)),
        digest(fetch(1, status=2), fetch(2, key="xyz", status=1)),
        digest(fetch(1, instance="xy", status=2), fetch(2, instance="z", status=1)),
    ]
    assert len({digest(*rows), *others}) == 1 + len(others)
    assert digest((1,) + (None,) * (len(HOLDERS.columns) - 1), table=HOLDERS) != digest(fetch(1))


def test_the_digest_of_rows_is_the_one_that_is_written_down() -> None:
    """Databases of earlier versions hold it."""
    rows = [fetch(1, key="é", instance="", status=200, extra='{"b":[1.50,-0,true],"a":"\\u00e9"}'), fetch(10, shard=7)]
    assert digest(*rows) == "bd5ac772162747d37fddd00c06669be3"


def test_a_column_that_is_added_does_not_change_the_digest() -> None:
    assert digest(fetch(1, key="x", extra=None)) == digest(fetch(1, key="x"))
    assert digest(fetch(1, key="x", extra="{}")) != digest(fetch(1, key="x"))
