"""PostgreSQL: tables of a database, on a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

psycopg = pytest.importorskip("psycopg")

from flinks_async.bulk.errors import StoreError  # noqa: E402
from flinks_async.bulk.stores import Store, from_description  # noqa: E402
from flinks_async.bulk.stores.postgresql import PostgreSQLStore  # noqa: E402
from flinks_async.errors import ConfigError  # noqa: E402

from .database_contract import DatabaseContract, body  # noqa: E402
from .postgresql_server import GUARDED, Server  # noqa: E402
from .store_contract import Bench, at_points, expected  # noqa: E402

PASSWORD = "canary-hunter2"


class TestPostgreSQL(DatabaseContract):
    os_calls = ()

    @pytest.fixture(autouse=True)
    def _server(self, postgresql: Server) -> None:
        self.server = postgresql
        self.schemas: dict[Path, str] = {}

    def make(self, folder: Path) -> Store:
        if folder not in self.schemas:
            self.schemas[folder] = self.server.new_schema()
        return PostgreSQLStore(self.server.conninfo, self.schemas[folder])

    shared = make

    def query(self, folder: Path, sql: str) -> list[dict[str, Any]]:
        with psycopg.connect(self.server.conninfo, row_factory=psycopg.rows.dict_row) as db:
            db.execute(f'SET search_path TO "{self.schemas[folder]}"')
            cursor = db.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def test_texts_that_postgresql_cannot_hold(self, bench: Bench) -> None:
        bench.start()
        bench.put(0, {1: body(Description="A\0B", Merchant="x"), 2: body(Description="C", Merchant="y")})
        sql = "SELECT description, extra #>> '{}' AS exact FROM transactions WHERE line = 1"
        ((row),) = self.query(bench.folder, sql)
        assert row["description"] == "A\ufffdB"
        assert json.loads(row["exact"]) == {"Merchant": "x", "flinks_async.text": {"description": "A\0B"}}
        names = self.query(bench.folder, "SELECT extra ->> 'Merchant' AS name FROM transactions ORDER BY line")
        assert [name["name"] for name in names] == [None, "y"]
        assert bench.problems() == []

    @pytest.mark.parametrize(
        "value", [b'"a\\u0000b"', b'{"a\\u0000b": 1}', b"1e200000", b"[-1E-99999]", b"9" * 140_000 + b".5"]
    )
    def test_unknown_fields_that_jsonb_cannot_hold(self, bench: Bench, value: bytes) -> None:
        bench.start()
        bench.put(0, {1: body(New=7).replace(b": 7}", b": %b}" % value)})
        (row,) = self.query(
            bench.folder, "SELECT jsonb_typeof(extra) AS type, extra #>> '{}' AS exact FROM transactions"
        )
        assert row["type"] == "string"
        assert row["exact"].startswith('{"New":')
        assert decoded(row["exact"]) == decoded(b'{"New":%b}' % value)
        assert bench.problems() == []

    @pytest.mark.parametrize("value", ["\\u0000", "9" * 2000, "a1e4567b", "3e999"])
    def test_unknown_fields_that_only_look_like_it(self, bench: Bench, value: str) -> None:
        bench.start().put(0, {1: body(New=value)})
        assert self.query(bench.folder, "SELECT extra ->> 'New' AS new FROM transactions") == [{"new": value}]

    def test_a_server_that_goes_down_in_the_middle(self, bench: Bench) -> None:
        bench.start().put_missing(0)
        self.server.crash()
        with pytest.raises(StoreError, match="PostgreSQL: ") as raised:
            bench.put(1)
        assert raised.value.__context__ is None
        bench.store.close()
        with pytest.raises(StoreError, match="No such file or directory"):
            bench.start()
        self.server.start()
        bench.start().put_missing(1, 3)
        assert self.read(bench) == expected(0, 1, 3)
        assert bench.problems() == []

    @pytest.mark.parametrize("point", ["before", "rows written"])
    def test_a_lost_connection_is_made_again(self, bench: Bench, point: str) -> None:
        bench.start().put_missing(0)
        lost: list[str] = []

        def lose(name: str) -> None:
            if name == point and not lost:
                lost.append(name)
                self._disconnect()

        lose("before")
        with at_points(lose):
            bench.put(1)
        assert lost
        assert self.read(bench) == expected(0, 1)
        assert bench.problems() == []

    def _disconnect(self) -> None:
        sql = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'flinks-async'"
        assert self.server.sql(sql) == [(True,)]

    def test_commits_wait_for_the_disk_where_the_server_would_not(self, bench: Bench) -> None:
        found: list[Any] = []
        self.server.sql("ALTER ROLE owner SET synchronous_commit = off")
        try:
            bench.start()
            store: Any = bench.store
            with at_points(
                lambda name: found.append(store.fetch("SHOW synchronous_commit")) if name == "rows written" else None
            ):
                bench.store.put(*bench.handed(0))
        finally:
            self.server.sql("ALTER ROLE owner RESET synchronous_commit")
        assert found == [[("on",)]]

    def test_settings_of_the_user_change_nothing(self, bench: Bench) -> None:
        self.server.sql("ALTER ROLE owner SET DateStyle = 'German'")
        self.server.sql("ALTER ROLE owner SET TimeZone = 'Asia/Kathmandu'")
        try:
            bench.start().put_missing(0)
            assert bench.problems() == []
        finally:
            self.server.sql("ALTER ROLE owner RESET ALL")

    def test_jobs_that_begin_at_once_make_the_tables_once_however_strict_the_database(self, tmp_path: Path) -> None:
        self.server.sql("ALTER ROLE owner SET default_transaction_isolation = 'serializable'")
        benches = [Bench(tmp_path / str(n), lambda: self.shared(tmp_path), job=f"{n:032x}") for n in range(4)]
        try:
            with ThreadPoolExecutor(len(benches)) as threads:
                list(threads.map(Bench.start, benches))
            for bench in benches:
                bench.put_missing(0)
                assert bench.problems() == []
        finally:
            self.server.sql("ALTER ROLE owner RESET ALL")
            for bench in benches:
                bench.store.close()

    def test_what_the_server_says_of_a_row_is_not_repeated(self, bench: Bench) -> None:
        bench.start()
        self.query(bench.folder, "ALTER TABLE holders ADD CHECK (name <> 'Jane Secret')")
        with pytest.raises(
            StoreError, match=r"refuses the data: CheckViolation \(23514\) in the table holders"
        ) as raised:
            bench.put(0, {1: body()})
        assert "Secret" not in str(raised.value)
        assert raised.value.__context__ is None
        assert self.read(bench) == {}

    def test_rows_of_a_line_are_replaced_as_a_whole(self, bench: Bench) -> None:
        bench.start().put(0, {1: body()})
        self.query(bench.folder, "DELETE FROM flinks_shards")
        bench.put(0, {1: b'{"RequestId": "again"}'})
        assert self.query(bench.folder, "SELECT request_id FROM fetches") == [{"request_id": "again"}]
        assert self.query(bench.folder, "SELECT * FROM accounts") == []

    def test_any_name_of_a_schema(self, bench: Bench) -> None:
        self.schemas[bench.folder] = name = 'we"ird ?%s; é'
        bench.start().put_missing(0)
        assert self.server.sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'we%'") == [(name,)]
        assert bench.problems() == []

    def test_a_look_makes_no_schema(self, bench: Bench) -> None:
        with pytest.raises(StoreError, match=r"schema .* is missing"):
            bench.look()
        name = self.schemas[bench.folder]
        assert self.server.sql(f"SELECT 1 FROM pg_namespace WHERE nspname = '{name}'") == []

    def test_a_user_who_may_not_write(self, bench: Bench) -> None:
        self.server.sql("CREATE ROLE reader LOGIN")
        conninfo = self.server.conninfo.replace("owner", "reader")
        with pytest.raises(StoreError, match=r"permission denied .*\(InsufficientPrivilege, 42501\)"):
            PostgreSQLStore(conninfo, self.server.new_schema()).open(bench.place)


def decoded(text: str | bytes) -> Any:
    def number(digits: str) -> Any:
        return ("number", Decimal(digits))

    return json.loads(text, parse_float=number, parse_int=number)


class TestPasswords:
    @pytest.fixture(autouse=True)
    def _password(self, postgresql: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        self.server = postgresql
        self.conninfo = f"host={postgresql.folder} user={GUARDED} dbname=postgres"
        monkeypatch.delenv("PGPASSWORD", raising=False)
        postgresql.sql(f"ALTER ROLE {GUARDED} PASSWORD '{PASSWORD}'")
        yield
        postgresql.sql(f"ALTER ROLE {GUARDED} PASSWORD NULL")

    @pytest.mark.parametrize(
        "conninfo",
        [
            f"postgresql://user:{PASSWORD}@host/db",
            f"postgres://user:{PASSWORD}@@host/db",
            f"postgresql://user@host/db?password={PASSWORD}",
            f"host=h password={PASSWORD}",
            f"host=h password='{PASSWORD} x'",
            f"host=h sslpassword={PASSWORD}",
            f"host=h scram_client_key={PASSWORD}",
            f"host=h passwrd={PASSWORD}",
            f"{PASSWORD}",
            f"postgresql://user:{PASSWORD} x@host/db",
            f"postgresql://user:%zz{PASSWORD}@host/db",
        ],
    )
    def test_a_connection_with_a_password_is_refused_and_not_repeated(self, conninfo: str) -> None:
        with pytest.raises(ConfigError) as raised:
            PostgreSQLStore(conninfo)
        assert "hunter2" not in f"{raised.value!r} {raised.value}"
        assert raised.value.__context__ is None

    def test_it_comes_from_the_environment_and_is_written_nowhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
        schema = self.server.new_schema()
        bench = Bench(tmp_path / "job", lambda: PostgreSQLStore(self.conninfo, schema))
        bench.start().put_missing(0)
        assert bench.problems() == []
        bench.store.close()
        assert "hunter2" not in json.dumps(bench.store.describe()) + repr(bench.store)
        assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"hunter2" in p.read_bytes()]
        again = from_description(bench.store.describe())
        again.open(bench.place)
        again.close()

    def test_it_comes_from_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "pgpass"
        file.write_text(f"*:*:*:{GUARDED}:{PASSWORD}\n")
        file.chmod(0o600)
        store = PostgreSQLStore(f"{self.conninfo} passfile={file}", self.server.new_schema())
        bench = Bench(tmp_path / "job", lambda: store).start()
        bench.put_missing(0)
        assert bench.problems() == []
        store.close()

    @pytest.mark.parametrize("password", ["", f"{PASSWORD}x"])
    def test_a_wrong_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str) -> None:
        monkeypatch.setenv("PGPASSWORD", password)
        with pytest.raises(StoreError, match="password") as raised:
            Bench(tmp_path / "job", lambda: PostgreSQLStore(self.conninfo)).start()
        assert "hunter2" not in str(raised.value)
        assert raised.value.__context__ is None


def test_the_default_is_what_libpq_finds_in_the_environment() -> None:
    assert PostgreSQLStore().describe() == {"kind": "postgresql", "conninfo": "", "schema": "flinks"}


def test_a_url_and_its_pairs_are_the_same_place() -> None:
    url = PostgreSQLStore("postgresql://me@db.example:5433/bank?sslmode=verify-full").describe()
    pairs = PostgreSQLStore("host=db.example port=5433 user=me dbname=bank sslmode=verify-full").describe()
    assert url == pairs


@pytest.mark.parametrize("schema", ["", "x" * 64, "a\0b", "\ud800", "$user"])
def test_names_that_are_none(schema: str) -> None:
    with pytest.raises(ConfigError, match="schema must be a name"):
        PostgreSQLStore(schema=schema)
