"""Answers as Arrow tables."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from decimal import Decimal
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given

from flinks_async import Failed, Fetched, Outcome, table_batches
from flinks_async.codec import Codec
from flinks_async.errors import ConfigError, FlinksError, ServerError, WrongTypeError
from flinks_async.models import PartnerAccessResponse
from flinks_async.tables import CHUNK, Tables, schemas, to_arrow
from flinks_async.testing.data import expected_body

from .answers import DOCUMENTED, answers, from_bytes, payload, to_bytes
from .support import examples

pa = pytest.importorskip("pyarrow")

codec = Codec()
ANSWER = codec.decode(to_bytes(DOCUMENTED))


def decoded(**account: Any) -> PartnerAccessResponse:
    return codec.decode(to_bytes({"GetAccountsDetail": [{}, {"Accounts": [{}, account]}]}))


def test_the_documented_answer_as_tables() -> None:
    tables = to_arrow([ANSWER])
    (account,) = tables.accounts.to_pylist()
    assert account["answer"] == account["detail"] == account["account"] == 0
    assert account["account_number"] == "7641238"
    assert account["transit_number"] == "12347"
    assert account["balance_current"] == Decimal("5105.5")
    assert account["overdraft_limit"] == 0
    assert account["institution_id"] == 14
    assert account["last_refresh"] == dt.datetime(2023, 4, 11, 15, 4, 43, 346441, tzinfo=dt.UTC)
    assert account["last_refresh_text"] == "2023-04-11T15:04:43.3464411"
    assert account["request_id"] == DOCUMENTED["RequestId"]
    assert account["extra"] is None
    (move,) = tables.transactions.to_pylist()
    assert move == {
        "answer": 0,
        "detail": 0,
        "account": 0,
        "transaction": 0,
        "account_id": account["id"],
        "currency": "CAD",
        "date": dt.date(2025, 1, 31),
        "code": None,
        "description": "PAYROLL - Stripe Paycheck",
        "debit": Decimal("1000.4"),
        "credit": Decimal("1500.25"),
        "balance": Decimal("5105.6"),
        "id": "d9b2d63d-a233-4123-847a-7090d5c0f4a1",
        "extra": None,
    }
    (holder,) = tables.holders.to_pylist()
    assert holder["name"] == "John Doe"
    assert holder["address_postal_code"] == "M5J 2V5"


def test_the_types_are_fixed() -> None:
    tables = ANSWER.to_arrow()
    assert tables.transactions.schema.field("debit").type == pa.decimal128(38, 18)
    assert tables.transactions.schema.field("date").type == pa.date32()
    assert tables.accounts.schema.field("last_refresh").type == pa.timestamp("us", "UTC")
    for table, schema in zip(_three(tables), _three(schemas()), strict=True):
        assert table.schema == schema


def _three(tables: Tables) -> tuple[Any, Any, Any]:
    return tables.accounts, tables.transactions, tables.holders


@pytest.mark.parametrize("keyed", [False, True])
def test_nothing_has_the_same_schema(keyed: bool) -> None:
    some = to_arrow([("a", ANSWER)] if keyed else [ANSWER])
    for table, other, schema in zip(
        _three(to_arrow([], keyed=keyed)), _three(some), _three(schemas(keyed=keyed)), strict=True
    ):
        assert table.num_rows == 0
        assert table.schema == other.schema == schema
    assert to_arrow([]).accounts.schema == schemas().accounts
    assert to_arrow(iter([codec.decode(b'{"GetAccountsDetail":[{"LoginId":"a"}]}')])).accounts.num_rows == 0


def test_rows_carry_their_key() -> None:
    tables = to_arrow((key, ANSWER) for key in ("a", "b"))
    for table in _three(tables):
        assert table.column_names[:2] == ["key", "answer"]
        assert table.column("key").to_pylist() == ["a", "b"]
        assert table.column("answer").to_pylist() == [0, 1]


@pytest.mark.parametrize("bad", [[("a", ANSWER), ANSWER], [ANSWER, ("a", ANSWER)], [(1, ANSWER)], [3]])
def test_a_mixture_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigError):
        to_arrow(bad)


def test_positions_join_the_tables() -> None:
    tables = to_arrow([ANSWER, codec.decode(payload((3, 4)))])
    joined = tables.transactions.join(
        tables.accounts.select(["answer", "detail", "account", "account_number"]), keys=["answer", "detail", "account"]
    )
    assert joined.num_rows == 1 + 12
    assert joined.column("account_number").null_count == 0


def test_unknown_fields_are_json() -> None:
    move = {"Id": "a", "Enrichment": {"Score": Decimal("0.10")}}
    answer = codec.decode(
        to_bytes(
            {
                "Top": 1,
                "GetAccountsDetail": {
                    "Region": "QC",
                    "Login": {"Mfa": True},
                    "Accounts": [
                        {
                            "New": [1],
                            "Balance": {"Pending": 2},
                            "Holder": {"Age": 3, "Address": {"Unit": "4"}},
                            "Transactions": [move],
                        }
                    ],
                },
            }
        )
    )
    tables = answer.to_arrow()
    (account,), (transaction,), (holder,) = (table.to_pylist() for table in _three(tables))
    assert json.loads(account["extra"]) == {"New": [1], "Balance": {"Pending": 2}}
    assert json.loads(account["detail_extra"]) == {"Region": "QC", "Login": {"Mfa": True}}
    assert json.loads(account["answer_extra"]) == {"Top": 1}
    assert transaction["extra"] == '{"Enrichment":{"Score":0.10}}'
    assert json.loads(holder["extra"]) == {"Age": 3, "Address": {"Unit": "4"}}


def test_a_login_without_a_readable_time() -> None:
    answer = codec.decode(b'{"GetAccountsDetail":[{"Login":{"LastRefresh":"soon"},"Accounts":[{}]}]}')
    (account,) = answer.to_arrow().accounts.to_pylist()
    assert (account["last_refresh"], account["last_refresh_text"]) == (None, "soon")


@pytest.mark.parametrize("text", ["12345678901234567890.123456789012345678", "0.30000000000000004", "1E+19", "-0.00"])
def test_amounts_are_exact(text: str) -> None:
    amount = Decimal(text)
    (_, account) = decoded(OverdraftLimit=amount).to_arrow().accounts.to_pylist()
    assert account["overdraft_limit"] == amount


@pytest.mark.parametrize(
    ("account", "path"),
    [
        ({"OverdraftLimit": Decimal("1E+20")}, "OverdraftLimit"),
        ({"OverdraftLimit": Decimal("1.0000000000000000001")}, "OverdraftLimit"),
        ({"Balance": {"Limit": Decimal("1E-19")}}, "Balance.Limit"),
        ({"Transactions": [{}, {"Debit": Decimal("9E+27")}]}, "Transactions[1].Debit"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_place(account: dict[str, Any], path: str) -> None:
    with pytest.raises(WrongTypeError, match=r"decimal128\(38, 18\)") as caught:
        to_arrow([ANSWER, decoded(**account)])
    assert caught.value.path == f"[1].GetAccountsDetail[1].Accounts[1].{path}"
    assert caught.value.__context__ is None


def test_a_huge_institution_id_is_refused() -> None:
    answer = codec.decode(b'{"GetAccountsDetail":[{"InstitutionId":9223372036854775808,"Accounts":[{}]}]}')
    with pytest.raises(WrongTypeError) as caught:
        answer.to_arrow()
    assert caught.value.path == "[0].GetAccountsDetail[0].InstitutionId"


def test_objects_of_a_hook_are_refused() -> None:
    (detail,) = ANSWER.details
    odd = evolve(ANSWER, get_accounts_detail=(evolve(detail, accounts=("x",)),))
    with pytest.raises(ConfigError, match="str where a Account"):
        odd.to_arrow()


def test_many_rows_come_in_chunks() -> None:
    answer = codec.decode(payload((1, 1000)))
    count = CHUNK // 1000 + 2
    table = to_arrow(answer for _ in range(count)).transactions
    assert table.num_rows == count * 1000
    assert len(table.column("id").chunks) == 2
    assert table.column("answer").to_pylist() == [position for position in range(count) for _ in range(1000)]


@examples(25)
@given(answers)
def test_generated_answers_fit_or_are_refused_with_a_path(data: dict[str, Any]) -> None:
    answer = codec.decode(to_bytes(data))
    try:
        tables = answer.to_arrow()
    except WrongTypeError as error:
        assert str(error.path).startswith("[0].GetAccountsDetail[")
        return
    assert tables.accounts.num_rows == len(answer.accounts)
    assert tables.accounts.column("balance_current").to_pylist() == [
        account.balance.current if account.balance else None for account in answer.accounts
    ]
    moves = [move for account in answer.accounts for move in account.transactions]
    assert tables.transactions.column("debit").to_pylist() == [move.debit for move in moves]
    assert tables.transactions.column("date").to_pylist() == [move.date for move in moves]
    assert [text and from_bytes(text.encode()) for text in tables.transactions.column("extra").to_pylist()] == [
        dict(move.extra) or None for move in moves
    ]


def test_without_pyarrow_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"flinks-async\[arrow\]") as caught:
        to_arrow([ANSWER])
    assert isinstance(caught.value, FlinksError)
    assert caught.value.__context__ is None


def test_importing_the_module_does_not_import_pyarrow() -> None:
    code = "import sys, flinks_async.columns, flinks_async.tables; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def outcomes(count: int, closed: list[bool] | None = None) -> AsyncGenerator[Outcome[int], None]:
    """Each third call failed."""
    try:
        for key in range(count):
            if key % 3 == 2:
                yield Failed(key, ServerError("x"))
            else:
                yield Fetched(key, Codec().decode(expected_body(f"t-{key}", size="medium")))
    finally:
        if closed is not None:
            closed.append(True)


async def test_outcomes_come_as_tables_batch_by_batch() -> None:
    batches = [batch async for batch in table_batches(outcomes(8), size=3)]
    assert [[failed.key for failed in batch.failed] for batch in batches] == [[2], [5], []]
    found = [(row["key"], row["answer"]) for batch in batches for row in batch.tables.accounts.to_pylist()]
    assert list(dict.fromkeys(found)) == [("0", 0), ("1", 1), ("3", 2), ("4", 3), ("6", 4), ("7", 5)]
    pairs = [(str(o.key), o.response) async for o in outcomes(8) if isinstance(o, Fetched)]
    assert pa.concat_tables([batch.tables.transactions for batch in batches]).equals(to_arrow(pairs).transactions)


async def test_a_batch_that_is_left_closes_the_outcomes() -> None:
    closed: list[bool] = []
    async with aclosing(table_batches(outcomes(100, closed), size=2)) as batches:
        async for batch in batches:
            assert batch.tables.accounts.num_rows > 0
            break
    assert closed == [True]


async def test_outcomes_before_a_failure_of_their_source_are_handed_over() -> None:
    async def breaking() -> AsyncGenerator[Outcome[str], None]:
        async for outcome in outcomes(7):
            yield outcome
        raise OSError("tokens.csv is gone")

    batches = []
    with pytest.raises(OSError, match="gone"):
        async for batch in table_batches(breaking(), size=3):
            batches.append(batch)
    assert [row["key"] for batch in batches for row in batch.tables.accounts.to_pylist()][-1] == "6"
    assert len(batches) == 3


async def test_only_failures_are_a_batch_without_rows() -> None:
    async def failures() -> AsyncGenerator[Outcome[str], None]:
        yield Failed("a", ServerError("x"))

    (batch,) = [batch async for batch in table_batches(failures())]
    assert batch.tables.transactions.schema.equals(schemas(keyed=True).transactions)
    assert batch.tables.transactions.num_rows == 0
    assert [failed.key for failed in batch.failed] == ["a"]


async def test_a_size_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="size must be"):
        await anext(table_batches(outcomes(1), size=0))
