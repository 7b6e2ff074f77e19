"""The same answers in all stores with tables: the same rows, and the same numbers by the queries of docs/stores.md."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from flinks_async import FlinksClient
from flinks_async.bulk import Executor, InProcess, InputFile, Job, Processes, verify
from flinks_async.bulk.errors import UnfitAnswerError
from flinks_async.bulk.files import LEDGER
from flinks_async.bulk.ledger import Ledger
from flinks_async.bulk.stores import SQLiteStore, Store, answer_tables
from flinks_async.bulk.stores.answer_rows import TABLES, Table
from flinks_async.bulk.stores.duckdb import DuckDBStore
from flinks_async.bulk.stores.parquet import ParquetStore
from flinks_async.bulk.stores.postgresql import PostgreSQLStore
from flinks_async.testing import FlinksServer
from flinks_async.testing.data import expected_body

from ..answers import DOCUMENTED, answers, answers_perhaps_wrong, payload, to_bytes
from ..support import examples
from .postgresql_server import Server
from .store_contract import Bench, Bodies
from .store_docs import PAGE, page, queries
from .tables_support import decodes

duckdb = pytest.importorskip("duckdb")
psycopg = pytest.importorskip("psycopg")
pq = pytest.importorskip("pyarrow.parquet")

pytestmark = pytest.mark.usefixtures("closed_databases")

STRANGE = b"""{"GetAccountsDetail": [
    {"LoginId": "no accounts", "Login": {"LastRefresh": "never", "New": [1.10, null]}},
    {"InstitutionId": 7, "Login": {"LastRefresh": "2023-04-11T15:04:43.3464411"}, "Accounts": [
        {"Currency": "CAD", "Title": "a\\u0000b \\ud83d\\ude00 \\\\N \\t", "Balance": {"Current": -0.00, "New": 1e2},
         "OverdraftLimit": 12345678901234567890.123456789012345678, "Transactions": [
            {"Date": "0001-01-01", "Credit": 1e-18, "Description": "", "Z": {"b": 1, "a": [true, "\\u0000"]}},
            {"Date": "9999-12-31", "Debit": 0.10, "Balance": 99999999999999999999}]},
        {"Holder": {"Name": "N\\u00c9e", "Address": {"POBox": "7", "Country": null, "x": 1}}, "Transactions": null},
        {"Currency": "USD", "Balance": {"Current": 0.1}, "Transactions": []},
        {"Currency": "USD", "Balance": {"Current": 0.2}, "Transactions": []}]}],
    "RequestId": null, "Answer": {"new": 1.500}}""".replace(b"\n", b" ")

SHARDS: tuple[Bodies, ...] = (
    {7: to_bytes(DOCUMENTED), 2: STRANGE, 3: b'{"GetAccountsDetail":null,"RequestId":"r"}'},
    {},
    {number: expected_body(f"t-{number}", size="medium") for number in range(10, 14)},
)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, postgresql: Server) -> Iterator[dict[str, Path]]:
    """A finished job for each store."""
    folder = tmp_path_factory.mktemp("jobs")
    postgresql.sql("DROP SCHEMA IF EXISTS flinks CASCADE")
    stores: dict[str, Callable[[], Store]] = {
        "SQLite": SQLiteStore,
        "Parquet": ParquetStore,
        "DuckDB": DuckDBStore,
        "PostgreSQL": lambda: PostgreSQLStore(postgresql.conninfo),
    }
    for name, make in stores.items():
        bench = Bench(folder / name, make).start()
        for number, bodies in enumerate(SHARDS):
            bench.put(number, bodies)
        assert bench.problems() == []
        bench.store.close()
    yield {name: folder / name for name in stores}
    postgresql.sql("DROP SCHEMA flinks CASCADE")


def run(jobs: dict[str, Path], server: Server, name: str, sql: str) -> list[tuple[Any, ...]]:
    """A query, as a user of a store runs it."""
    folder = jobs[name]
    if name == "PostgreSQL":
        return server.sql(sql)
    if name == "SQLite":
        with closing(sqlite3.connect(folder / "answers.sqlite")) as db:
            return db.execute(sql).fetchall()
    with closing(duckdb.connect() if name == "Parquet" else duckdb.connect(str(folder / "answers.duckdb"))) as db:
        return db.execute(sql.replace("'parts/", f"'{folder}/parts/")).fetchall()


def rows(
    jobs: dict[str, Path], server: Server, name: str, table: Table, schema: str = "flinks"
) -> list[dict[str, Any]]:
    """All rows of a table as Python objects, in the order of the input."""
    if name == "Parquet":
        return sorted(pq.read_table(jobs[name] / "parts" / table.name).to_pylist(), key=lambda row: place(table, row))
    columns = []
    for column in table.columns:
        quoted = f'"{column.name}"'
        if name == "DuckDB" and column.type == "instant":
            quoted = f"epoch_us({quoted})"
        columns.append(f"CAST({quoted} AS text)" if name == "PostgreSQL" and column.type == "json" else quoted)
    prefix = f"{schema}." if name == "PostgreSQL" else ""
    found = run(jobs, server, name, f"SELECT {', '.join(columns)} FROM {prefix}{table.name}")
    return sorted((dict(zip(table.names, row, strict=True)) for row in found), key=lambda row: place(table, row))


def place(table: Table, row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(row[name] for name in table.identity)


def plain(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """A row whose values are of Python's own types in all stores."""
    values = {column.name: as_python(column.type, row[column.name]) for column in table.columns}
    exact = (values.get("extra") or {}).pop("flinks_async.text", {})  # PostgreSQL's way to hold U+0000
    return {**values, **exact, "extra": values.get("extra") or None}


def as_python(type_: str, value: Any) -> Any:
    if value is None:
        return None
    if type_ == "json":
        found = json.loads(value, parse_float=Decimal, parse_int=Decimal)
        return as_python(type_, found) if isinstance(found, str) else found  # PostgreSQL's way again
    if type_ == "amount":
        return Decimal(value)
    if type_ == "date" and isinstance(value, str):
        return dt.date.fromisoformat(value)
    if type_ == "instant" and isinstance(value, int):
        return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=value)
    if type_ == "instant" and isinstance(value, str):
        return dt.datetime.fromisoformat(value)
    return value


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_all_rows_are_the_same(jobs: dict[str, Path], postgresql: Server, table: Table) -> None:
    first, *others = (
        [plain(table, row) for row in rows(jobs, postgresql, name, table)]
        for name in ("SQLite", "Parquet", "DuckDB", "PostgreSQL")
    )
    assert len(first) > 1
    for other in others:
        assert other == first


def test_what_is_in_them(jobs: dict[str, Path], postgresql: Server) -> None:
    accounts = [plain(TABLES[1], row) for row in rows(jobs, postgresql, "PostgreSQL", TABLES[1])]
    account = next(row for row in accounts if row["title"] and row["title"].startswith("a"))
    assert account["title"] == "a\0b \U0001f600 \\N \t"
    assert account["overdraft_limit"] == Decimal("12345678901234567890.123456789012345678")
    assert account["last_refresh"] == dt.datetime(2023, 4, 11, 15, 4, 43, 346441, tzinfo=dt.UTC)
    assert account["last_refresh_text"] == "2023-04-11T15:04:43.3464411"
    assert account["extra"] == {"Balance": {"New": Decimal(100)}}
    assert account["answer_extra"] == {"Answer": {"new": Decimal("1.5")}}
    (fetch,) = (row for row in rows(jobs, postgresql, "PostgreSQL", TABLES[0]) if row["line"] == 2)
    assert json.loads(fetch["without_accounts"])[0]["LoginId"] == "no accounts"


STORES = ("SQLite", "DuckDB", "PostgreSQL", "Parquet")


@pytest.mark.parametrize("name", STORES)
def test_columns_and_the_careful_path_store_the_same(tmp_path: Path, postgresql: Server, name: str) -> None:
    """What a user reads after Arrow has made the columns, and after each answer went through Python objects."""
    folders = {"columns": tmp_path / "columns", "careful": tmp_path / "careful"}
    schemas = {way: postgresql.new_schema() for way in folders}
    made: dict[str, Callable[[str], Store]] = {
        "SQLite": lambda way: SQLiteStore(),
        "Parquet": lambda way: ParquetStore(),
        "DuckDB": lambda way: DuckDBStore(),
        "PostgreSQL": lambda way: PostgreSQLStore(postgresql.conninfo, schemas[way]),
    }
    benches = {way: Bench(folder, lambda way=way: made[name](way)).start() for way, folder in folders.items()}
    shards = count()

    @examples(6)
    @given(st.lists(st.one_of(answers, answers_perhaps_wrong), min_size=1, max_size=4))
    def put(generated: list[Any]) -> None:
        shard = next(shards)
        bodies = {10 * shard + n: body for n, answer in enumerate(generated, 1) if decodes(body := to_bytes(answer))}
        bodies[10 * shard + 9] = payload((1, 2), seed=shard)
        unfit = {}
        for way, bench in benches.items():
            with pytest.MonkeyPatch.context() as patch:
                if way == "careful":
                    patch.setattr(answer_tables._Reader, "_columns", lambda *_: None)
                unfit[way] = []
                while True:
                    try:
                        bench.put(shard, {line: body for line, body in bodies.items() if line not in unfit[way]})
                        break
                    except UnfitAnswerError as error:
                        unfit[way].append(error.line)
        assert sorted(unfit["columns"]) == sorted(unfit["careful"])

    put()
    found = {}
    for way, bench in benches.items():
        assert bench.problems() == []
        bench.store.close()
        found[way] = [
            [plain(t, row) for row in rows({name: folders[way]}, postgresql, name, t, schemas[way])] for t in TABLES
        ]
    assert found["columns"] == found["careful"]
    assert len(found["columns"][2]) > 10


def _transaction(fields: str) -> bytes:
    return f'{{"GetAccountsDetail":[{{"Accounts":[{{"Id":"a","Transactions":[{{{fields}}}]}}]}}]}}'.encode()


ODD = {
    "two keys": _transaction('"Debit":1,"Debit":2,"New":1,"New":2,"Id":"x","Id":"y"'),
    "two arrays": b'{"GetAccountsDetail":[{"Accounts":[{"Id":"x"}],"Accounts":[{"Id":"y"}]}],"RequestId":"r","RequestId":"s"}',
    "zeros": _transaction('"Debit":-0,"Credit":-0.0,"Balance":-0.00'),
    "exponents": _transaction('"Debit":1E2,"Credit":1.5e1,"New":1e400,"Newer":[1e-400,1e200000]'),
    "38 digits": _transaction(
        '"Debit":-12345678901234567890.123456789012345678,"New":1234567890123456789012345678901234567890'
    ),
    "40 decimals": _transaction('"Debit":0.1234567890123456789012345678901234567890'),
    "64 bits": b'{"GetAccountsDetail":[{"InstitutionId":-9223372036854775808,"Accounts":[{}]}]}',
    "more than 64 bits": b'{"GetAccountsDetail":[{"InstitutionId":9223372036854775808,"Accounts":[{}]}]}',
    "a whole fraction": b'{"GetAccountsDetail":[{"InstitutionId":7.0,"Accounts":[{}]}]}',
    "U+0000": _transaction(r'"Description":"a\u0000b","Code":"\u0000","New\u0000":"\u0000"'),
    "texts": _transaction(r'"Description":"a,\"b\"\r\nc\\N","Code":"","Id":"\\.","":"\ud83d\ude00\uffff\u2028"'),
    "a long text": _transaction('"Description":"' + "x" * 300_000 + '","New":"' + "y" * 300_000 + '"'),
    "nested": _transaction('"New":' + "[" * 90 + "]" * 90),
    "nothing": b"{}",
    "null": b'{"GetAccountsDetail":[{"Accounts":null},{"Accounts":[]},{"Accounts":[{"Transactions":null,"Holder":null}]}]}',
    "empty objects": b'{"GetAccountsDetail":{"Login":{},"Accounts":[{"Transactions":[{}],"Holder":{"Address":{}},"Balance":{}}]}}',
    "wrong types": _transaction('"Debit":"5","Credit":true,"Description":5,"Id":{"a":1},"Date":"2025-02-30"'),
}
UNFIT = {
    "40 decimals": (
        r"line 6 of the input, GetAccountsDetail\[0\].Accounts\[0\].Transactions\[0\].Debit: ",
        ("Parquet", "DuckDB"),
    ),
    "more than 64 bits": (r"line 8 of the input, GetAccountsDetail\[0\].InstitutionId: ", STORES),
}


def makers(postgresql: Server, schema: str) -> dict[str, Callable[[], Store]]:
    return {
        "SQLite": SQLiteStore,
        "Parquet": ParquetStore,
        "DuckDB": DuckDBStore,
        "PostgreSQL": lambda: PostgreSQLStore(postgresql.conninfo, schema),
    }


def test_odd_answers_are_the_same_in_all_stores_or_refused_by_their_place(tmp_path: Path, postgresql: Server) -> None:
    schema = postgresql.new_schema()
    made = makers(postgresql, schema)
    lines = dict(enumerate(ODD.values(), 1))
    found = {}
    for name, make in made.items():
        bench, fit = Bench(tmp_path / name, make).start(), dict(lines)
        for odd, (message, stores) in UNFIT.items():
            if name in stores:
                with pytest.raises(UnfitAnswerError, match=message):
                    bench.put(0, fit)
                del fit[list(ODD).index(odd) + 1]
        bench.put(0, fit)
        assert bench.problems() == []
        bench.store.close()
        for table in TABLES:
            some = [plain(table, row) for row in rows({name: bench.folder}, postgresql, name, table, schema)]
            found[name, table] = [row for row in some if row["line"] not in (6, 8)]
    for (_, table), some in found.items():
        assert some == found["SQLite", table]
    (zeros,) = (row for row in found["SQLite", TABLES[2]] if row["line"] == 3)
    assert [zeros[name] for name in ("debit", "credit", "balance")] == [0, 0, 0]


@pytest.mark.parametrize("name", STORES)
def test_tables_that_get_no_rows_stay_empty(tmp_path: Path, postgresql: Server, name: str) -> None:
    schema = postgresql.new_schema()
    made = makers(postgresql, schema)
    bench = Bench(tmp_path / name, made[name])
    bench.place = evolve(bench.place, tables=frozenset({"fetches", "transactions"}))
    for shard, bodies in enumerate(SHARDS):
        bench.start().put(shard, bodies)
    assert bench.problems() == []
    bench.store.close()
    found = {t.name: len(rows({name: bench.folder}, postgresql, name, t, schema)) for t in TABLES}
    assert found["accounts"] == found["holders"] == 0
    assert found["fetches"] == 7
    assert found["transactions"] > 100


@pytest.mark.slow
async def test_jobs_of_all_stores_at_once_and_in_processes_store_the_same(tmp_path: Path, postgresql: Server) -> None:
    """They are verified, and their digests are the same for the same types of amounts, whoever fetches."""
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("".join(f"token-{number}\n" for number in range(60)))

    async def run_job(server: FlinksServer, name: str, executor: Executor) -> list[Any]:
        folder = tmp_path / f"{name} {type(executor).__name__}"
        stores: dict[str, Callable[[], Store]] = {
            "SQLite": SQLiteStore,
            "Parquet": ParquetStore,
            "DuckDB": DuckDBStore,
            "PostgreSQL": lambda: PostgreSQLStore(postgresql.conninfo, postgresql.new_schema()),
        }
        with Job.start(folder, InputFile(tokens), stores[name](), {"": "here"}, shard_size=20) as job:
            async with FlinksClient(auth_secret=server.auth_secret, base_url=server.base_url) as client:
                result = await job.run(client, executor=executor)
        assert (result.state, result.totals.fetched) == ("complete", 60)
        assert verify(folder) == []
        with closing(Ledger(folder / LEDGER)) as ledger:
            return [receipt.get("digest") for receipt in ledger.receipts().values()]

    async with FlinksServer(seed=1, size="medium") as server:
        at_once = await asyncio.gather(*(run_job(server, name, InProcess()) for name in STORES))
        in_processes = [await run_job(server, name, Processes(2)) for name in STORES]
    assert at_once == in_processes
    digests = dict(zip(STORES, at_once, strict=True))
    assert digests["SQLite"] == digests["PostgreSQL"] != digests["DuckDB"]
    assert digests["Parquet"] == [None] * 3, "it compares files"


def totals() -> tuple[dict[str | None, Decimal], dict[str | None, Decimal]]:
    """Balance by currency and payroll by holder, from the answers themselves."""
    balances: dict[str | None, Decimal] = defaultdict(Decimal)
    payroll: dict[str | None, Decimal] = defaultdict(Decimal)
    for body in (body for shard in SHARDS for body in shard.values()):
        for detail in json.loads(body, parse_float=Decimal, parse_int=Decimal)["GetAccountsDetail"] or ():
            for account in detail.get("Accounts", ()):
                current = (account.get("Balance") or {}).get("Current")
                balances[account.get("Currency")] += current or 0
                for move in account["Transactions"] or () if account.get("Holder") else ():
                    if move["Description"].startswith("PAYROLL") and move["Credit"] is not None:
                        payroll[account["Holder"]["Name"]] += move["Credit"]
    return balances, payroll


@pytest.mark.parametrize("name", STORES)
def test_the_queries_of_the_docs(jobs: dict[str, Path], postgresql: Server, name: str) -> None:
    found = [
        {key: Decimal(str(total)) for key, total in run(jobs, postgresql, name, sql) if total is not None}
        for sql in queries(name)
    ]
    balances, payroll = totals()
    assert len(balances) > 2
    assert len(payroll) > 1
    assert found == [{name: total for name, total in balances.items() if name}, payroll]


def test_the_example_for_pyarrow(jobs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(jobs["Parquet"])
    scope: dict[str, Any] = {}
    (code,) = queries("Parquet", "python")
    exec(code, scope)
    found = {row["currency"]: row["balance_current_sum"] for row in scope["balances"].to_pylist() if row["currency"]}
    assert found == {name: total for name, total in totals()[0].items() if name}


def test_the_columns_in_the_docs_are_those_of_the_stores() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.bulk.store_docs writes them"
