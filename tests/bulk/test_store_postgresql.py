"""PostgreSQL: tables of a database, on a real server."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flinks_async.bulk.errors import StoreError, StoreMissingError, UnfitAnswerError
from flinks_async.bulk.stores import Problem, Store, from_description
from flinks_async.bulk.stores.postgresql import PostgreSQLStore
from flinks_async.errors import ConfigError

from .database_contract import DatabaseContract, body
from .postgresql_server import GUARDED, Missing, Server
from .store_contract import Bench, at_points, expected

psycopg = pytest.importorskip("psycopg")

PASSWORD = "canary-hunter2"


class TestPostgreSQL(DatabaseContract):
    os_calls = ()
    retry_for = 30.0

    @pytest.fixture(autouse=True)
    def _server(self, postgresql: Server) -> None:
        self.server = postgresql
        self.schemas: dict[Path, str] = {}

    def make(self, folder: Path) -> Store:
        if folder not in self.schemas:
            self.schemas[folder] = self.server.new_schema()
        return PostgreSQLStore(self.server.conninfo, self.schemas[folder], retry_for=self.retry_for)

    shared = make

    def copy(self, folder: Path, to: Path) -> None:
        super().copy(folder, to)
        self.schemas[to] = self.schemas[folder]

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

    def test_a_field_that_has_our_name_for_exact_texts_is_kept(self, bench: Bench) -> None:
        bench.start()
        own = {"flinks_async.text": "theirs", "flinks_async.text_": 7}
        bench.put(0, {1: body(Description="A\0B", **own), 2: body(Description="C", **own)})
        found = self.query(bench.folder, "SELECT extra #>> '{}' AS exact FROM transactions ORDER BY line")
        assert [json.loads(row["exact"]) for row in found] == [
            {**own, "flinks_async.text__": {"description": "A\0B"}},
            own,
        ]
        assert bench.problems() == []

    @pytest.mark.parametrize(
        "text", ["", "\\N", "\\.", "a\n\\.\nb", "say \"x\", 'y'", "a\r\nb\rc", ",", " ", "NULL", "\t\\"]
    )
    def test_texts_that_mean_something_to_copy(self, bench: Bench, text: str) -> None:
        bench.start()
        bench.put(0, {1: body(Code=text, Description=text), 2: body(Code=None, Description="x"), 3: body(Code="y")})
        found = self.query(bench.folder, "SELECT code, description FROM transactions ORDER BY line")
        assert [tuple(row.values()) for row in found] == [(text, text), (None, "x"), ("y", None)]
        assert bench.problems() == []

    @pytest.mark.parametrize("digits", ["12.30", "0.00", "-0.00", "100", "1.0000", "0.10"])
    def test_amounts_keep_their_digits(self, bench: Bench, digits: str) -> None:
        bench.start().put(0, {1: body(Debit=7).replace(b": 7}", b": %b}" % digits.encode())})
        found = self.query(bench.folder, "SELECT debit::text AS debit FROM transactions")
        assert found == [{"debit": digits.removeprefix("-")}]
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
        self.retry_for = 1.0
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

    def test_a_user_who_may_not_write(self, bench: Bench, reader: str) -> None:
        with pytest.raises(StoreError, match=r"permission denied .*\(InsufficientPrivilege, 42501\)"):
            PostgreSQLStore(reader, self.server.new_schema()).open(bench.place)

    def store(self, conninfo: str, bench: Bench) -> PostgreSQLStore:
        """The same tables, for another user or by another way."""
        return PostgreSQLStore(conninfo, self.schemas[bench.folder])

    @pytest.fixture
    def reader(self) -> str:
        """A user without any grant."""
        self.server.sql("DROP ROLE IF EXISTS reader")
        self.server.sql("CREATE ROLE reader LOGIN")
        return self.server.conninfo.replace("owner", "reader")

    def test_a_schema_that_the_user_may_not_use_is_not_missing(self, bench: Bench, reader: str) -> None:
        bench.start().put_missing(0)
        store = self.store(reader, bench)
        for existing in (True, False):
            with pytest.raises(StoreError, match="permission denied for schema") as raised:
                store.open(bench.place, existing=existing)
            assert not isinstance(raised.value, StoreMissingError)

    @pytest.mark.parametrize("table", ["flinks_meta", "flinks_jobs", "flinks_shards", "fetches", "holders"])
    def test_a_table_that_the_user_may_not_read_is_not_missing(self, bench: Bench, reader: str, table: str) -> None:
        bench.start().put_missing(0)
        schema = self.schemas[bench.folder]
        self.server.sql(f"GRANT USAGE ON SCHEMA {schema} TO reader")
        self.server.sql(f"GRANT SELECT, DELETE ON ALL TABLES IN SCHEMA {schema} TO reader")
        self.server.sql(f"REVOKE SELECT ON {schema}.{table} FROM reader")
        try:
            found = self._everything_of(self.store(reader, bench), bench)
        finally:
            self.server.sql("DROP OWNED BY reader")
        assert all(f"permission denied for table {table}" in text for text in found)
        assert found
        assert bench.problems() == []

    def test_rows_that_a_policy_hides_are_not_missing(self, bench: Bench, reader: str) -> None:
        bench.start().put_missing(0)
        schema = self.schemas[bench.folder]
        self.server.sql(f"GRANT ALL ON SCHEMA {schema} TO reader")
        self.server.sql(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO reader")
        self.server.sql(f"ALTER TABLE {schema}.flinks_shards ENABLE ROW LEVEL SECURITY")
        try:
            found = self._everything_of(self.store(reader, bench), bench)
        finally:
            self.server.sql("DROP OWNED BY reader")
        assert found
        assert all("row-level security" in text for text in found)

    def _everything_of(self, store: PostgreSQLStore, bench: Bench) -> list[str]:
        """What `verify` and `purge` say."""
        commits = list(bench.commits.values())
        found = []
        for look in (store.verify, store.missing, lambda _: store.purge()):
            try:
                store.open(bench.place, existing=True)
                found += [problem.what for problem in look(commits) if isinstance(problem, Problem)]
            except StoreError as error:
                assert not isinstance(error, StoreMissingError)
                found.append(error.message)
            finally:
                store.close()
        return found

    @pytest.mark.parametrize("mode", ["transaction", "session"])
    def test_a_pooler_may_give_each_transaction_another_session(self, bench: Bench, mode: str) -> None:
        self.server.sql("ALTER ROLE owner SET DateStyle = 'German'")
        connections = 1 if mode == "transaction" else 3
        try:
            with self.pooler(mode, connections) as conninfo, psycopg.connect(conninfo, autocommit=True) as other:
                bench._make = lambda: PostgreSQLStore(conninfo, self.schemas[bench.folder])
                before = [self._seen_by(other)]
                other.execute("CREATE TABLE IF NOT EXISTS mine (x int)")
                bench.start()
                for shard in range(4):
                    bench.put(shard)
                    assert self._seen_by(other) == before[0]
                assert bench.problems() == []
                assert self.read(bench) == expected(0, 1, 3)
                assert self._seen_by(other) == before[0]
                assert other.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall() == [
                    ("mine",)
                ]
                other.execute("DROP TABLE mine")
                bench.store.close()
        finally:
            self.server.sql("ALTER ROLE owner RESET ALL")

    @contextmanager
    def pooler(self, mode: str, connections: int) -> Iterator[str]:
        try:
            with self.server.pooler(mode, connections) as conninfo:
                yield conninfo
        except Missing as missing:
            pytest.skip(str(missing))

    def _seen_by(self, other: Any) -> list[Any]:
        names = ("search_path", "TimeZone", "DateStyle", "row_security", "synchronous_commit")
        temporary = "SELECT count(*) FROM pg_class WHERE relpersistence = 't'"
        return [other.execute(sql).fetchall() for sql in (*(f"SHOW {name}" for name in names), temporary)]

    def test_a_pooler_that_allows_no_transactions_is_named(self, bench: Bench) -> None:
        with self.pooler("statement", 2) as conninfo:
            store = PostgreSQLStore(conninfo, self.server.new_schema(), retry_for=0.1)
            with pytest.raises(StoreError, match="transaction blocks not allowed in statement pooling mode"):
                store.open(bench.place)

    @pytest.mark.parametrize("state", ["40001", "40P01", "55P03", "57014", "57P01", "57P03", "53300", "08006"])
    def test_what_may_pass_is_repeated(self, bench: Bench, state: str) -> None:
        bench.start()
        self._raise_at_first(bench, state)
        bench.put_missing(0)
        assert bench.problems() == []
        assert self.read(bench) == expected(0)

    @pytest.mark.parametrize("state", ["42501", "23514", "53100"])
    def test_what_does_not_pass_is_not_repeated(self, bench: Bench, state: str) -> None:
        bench.start()
        self._raise_at_first(bench, state)
        with pytest.raises(StoreError, match=state):
            bench.put(0)

    def _raise_at_first(self, bench: Bench, state: str) -> None:
        """Lets the first commit mark fail."""
        schema = self.schemas[bench.folder]
        self.server.sql(f"CREATE SEQUENCE {schema}.n")  # a rollback does not reset it
        self.server.sql(
            f"CREATE FUNCTION {schema}.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF nextval('{schema}.n') = 1 THEN RAISE EXCEPTION 'once' USING ERRCODE = '{state}'; END IF; RETURN NEW; END $$"
        )
        self.server.sql(
            f"CREATE TRIGGER fail BEFORE INSERT ON {schema}.flinks_shards FOR EACH ROW EXECUTE FUNCTION {schema}.fail()"
        )

    def test_a_lock_of_somebody_else_is_waited_for(self, bench: Bench) -> None:
        bench.start()
        self.server.sql("ALTER ROLE owner SET lock_timeout = '50ms'")
        bench.start()
        notices: list[logging.LogRecord] = []
        try:
            with psycopg.connect(self.server.conninfo) as other:
                other.execute(f"LOCK TABLE {self.schemas[bench.folder]}.fetches")

                def let_go(notice: logging.LogRecord) -> bool:
                    notices.append(notice)
                    other.commit()
                    return True

                logger = logging.getLogger("flinks_async.bulk")
                logger.addFilter(let_go)
                try:
                    bench.put(0)
                finally:
                    logger.removeFilter(let_go)
        finally:
            self.server.sql("ALTER ROLE owner RESET ALL")
        (notice,) = notices
        assert notice.getMessage() == (
            "writing shard 0 failed and is repeated: PostgreSQL: canceling statement due to lock timeout "
            "(LockNotAvailable, 55P03)"
        )
        assert bench.problems() == []

    def test_a_server_that_restarts_while_a_shard_is_written(self, bench: Bench) -> None:
        bench._make = lambda: PostgreSQLStore(self.server.conninfo, self.schemas[bench.folder])
        bench.start().put_missing(0)
        with ThreadPoolExecutor(1) as thread:
            restarts: list[Any] = []

            def restart(name: str) -> None:
                if name == "rows written" and not restarts:
                    self.server.crash()
                    restarts.append(thread.submit(self.server.start))

            with at_points(restart):
                bench.put(1)
            restarts[0].result()
        assert self.read(bench) == expected(0, 1)
        assert bench.problems() == []

    def test_a_text_without_a_form_in_the_database_fails_alone(self, bench: Bench) -> None:
        conninfo = self.server.database("latin", "LATIN1")
        try:
            bench._make = lambda: PostgreSQLStore(conninfo, "flinks")
            bench.start()
            answers = {line: body(Description=f"Café {line}") for line in range(1, 40)}
            answers[17] = body(Description="Caf\u00e9", New=[1, "\U0001f600"])
            place = r"line 17 of the input, GetAccountsDetail\[0\]\.Accounts\[0\]\.Transactions\[0\]"
            with pytest.raises(UnfitAnswerError, match=rf"{place}.*type jsonb in a database .*LATIN1") as raised:
                bench.put(0, answers)
            assert raised.value.line == 17
            assert raised.value.__context__ is None
            del answers[17]
            bench.put(0, answers)
            assert bench.problems() == []
            bench.store.close()
        finally:
            self.server.sql("DROP DATABASE latin")

    def test_a_value_that_the_server_refuses_fails_alone(self, bench: Bench) -> None:
        bench.start()
        self.drop_views(bench.folder)
        self.query(bench.folder, "ALTER TABLE transactions ALTER debit TYPE numeric(5, 2)")
        with pytest.raises(UnfitAnswerError, match=r"line 2 of the input, .*Debit: the value does not fit") as raised:
            bench.put(0, {1: body(), 2: body(Debit=123456), 3: body()})
        assert raised.value.line == 2
        bench.put(0, {1: body(), 3: body()})
        assert bench.problems() == []


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
