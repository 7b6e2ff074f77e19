"""Spools as rows, and commits as marks."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flinks_async import tables
from flinks_async import tables as flat
from flinks_async.bulk.compression import Compression, compressor
from flinks_async.bulk.errors import StoreError
from flinks_async.bulk.records import Commit, Failure, Shard, Written
from flinks_async.bulk.stores.answer_files import PIECE, read_lines
from flinks_async.bulk.stores.answer_rows import (
    ACCOUNTS,
    FETCHES,
    HOLDERS,
    TABLES,
    TRANSACTIONS,
    RowBatch,
    RowDigest,
    does_not_fit,
    read_spool,
)
from flinks_async.bulk.stores.database import commit_from_json, commit_to_json
from flinks_async.testing.data import Size, expected_answer, expected_body

from ..answers import DOCUMENTED, to_bytes

SHARD = Shard(4, 1, 1000, 0, 1000, "d", round=2)


def spool(path: Path, *answers: tuple[str, bytes], compression: Compression = "none") -> Path:
    """A spool of answers with what stands before them in their lines."""
    text = b"".join(
        b'{%b,"response":%b,"meta":{"status":200,"attempts":3}}\n' % (head.encode(), body) for head, body in answers
    )
    stream = compressor(compression)
    path.write_bytes(stream.compress(text) + stream.flush())
    return path


def batches(path: Path, answers: int = 1, compression: Compression = "none", **options: int) -> list[RowBatch]:
    """The batches of a spool that was finished with so many answers."""
    return list(read_spool(path, compression, Commit(SHARD, Written(answers, 0, "")), **options))


def only(path: Path, compression: Compression = "none") -> RowBatch:
    (batch,) = batches(path, compression=compression)
    return batch


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
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_every_value_of_an_answer_is_in_a_row(tmp_path: Path, size: Size, compression: Compression) -> None:
    path = spool(tmp_path / "s", ('"line":1', expected_body("t", size=size)), compression=compression)
    batch = only(path, compression)
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


def test_batches_hold_whole_answers_and_are_bounded(tmp_path: Path) -> None:
    answers = [(f'"line":{n}', expected_body(f"t-{n}", size="medium")) for n in range(1, 41)]
    path = spool(tmp_path / "s", *answers)
    found = batches(path, 40, batch=1000)
    assert [row[0] for batch in found for row in batch.fetches] == list(range(1, 41))
    assert all(1000 <= len(batch) < 1000 + 125 for batch in found[:-1])
    assert len(found) > 4


def test_large_answers_make_small_batches(tmp_path: Path) -> None:
    large = body_with_a_title_of(9 * 1024 * 1024)
    path = spool(tmp_path / "s", *((f'"line":{n}', large) for n in range(1, 10)))
    assert [len(batch.fetches) for batch in batches(path, 9)] == [4, 4, 1]


def body_with_a_title_of(length: int) -> bytes:
    return b'{"GetAccountsDetail":{"Accounts":[{"Title":"%b"}]}}' % (b"x" * length)


def test_what_many_accounts_repeat_is_held_once(tmp_path: Path) -> None:
    body = b'{"GetAccountsDetail":{"Accounts":[{},{},{}],"New":1},"Answer":{"x":"y"}}'
    batch = only(spool(tmp_path / "s", ('"line":1', body)))
    for name, text in (("detail_extra", '{"New":1}'), ("answer_extra", '{"Answer":{"x":"y"}}')):
        texts = [named(ACCOUNTS, row)[name] for row in batch.accounts]
        assert texts == [text] * 3
        assert len({id(one) for one in texts}) == 1


def test_a_spool_without_answers(tmp_path: Path) -> None:
    assert batches(spool(tmp_path / "s"), 0) == []


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
        batches(path)
    assert why in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_spool_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        batches(tmp_path / "s")


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


# --- the digest of rows -----------------------------------------------------------------------------------------------

TABLE = flat.Table("t", (flat.Column("a", "text"), flat.Column("b", "integer")))


def digest(*rows: flat.Row, table: flat.Table = TABLE) -> str:
    found = RowDigest()
    found.add(table, rows)
    return found.hexdigest()


def test_the_digest_of_rows_does_not_depend_on_their_order() -> None:
    rows = [("x", 1), ("y", 2), ("z", None)]
    assert digest(*rows) == digest(*reversed(rows))
    parts = RowDigest()
    parts.add(TABLE, rows[:1])
    parts.add(TABLE, rows[1:])
    assert parts.hexdigest() == digest(*rows)
    assert parts.rows == {"t": 3}


def test_the_digest_of_rows_depends_on_everything_else() -> None:
    rows = [("x", 1), ("y", 2)]
    other = flat.Table("u", TABLE.columns)
    others = [
        digest(),
        digest(*rows, rows[0]),
        digest(rows[0], rows[0]),
        digest(rows[0]),
        digest(("x", 2), ("y", 1)),
        digest(("x", None), ("y", 2)),
        digest(("1", 1), ("y", 2)),
        digest(*rows, table=other),
    ]
    assert len({digest(*rows), *others}) == 1 + len(others)


def test_a_column_that_is_added_does_not_change_the_digest() -> None:
    wider = flat.Table("t", (TABLE.columns[0], flat.Column("new", "text"), TABLE.columns[1]))
    assert digest(("x", None, 1), table=wider) == digest(("x", 1))
