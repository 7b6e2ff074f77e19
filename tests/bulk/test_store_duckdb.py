"""DuckDB: tables of a database."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing, nullcontext
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from flinks_async.bulk.errors import StoreError
from flinks_async.bulk.files import SPOOLS, make_folder
from flinks_async.bulk.stores import Store
from flinks_async.bulk.stores.duckdb import DuckDBStore

from ..answers import payload
from .database_contract import DatabaseContract, body
from .store_contract import Bench, at_points, expected

duckdb = pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    return memory_path


class TestDuckDB(DatabaseContract):
    os_calls = ("fsync",)

    def make(self, folder: Path) -> Store:
        return DuckDBStore()

    def refuses(self, name: str) -> bool:
        return not {"?", "\\", "\udcff"}.isdisjoint(name)

    def shared(self, folder: Path) -> Store:
        return DuckDBStore(folder / "answers.duckdb")

    def query(self, folder: Path, sql: str) -> list[dict[str, Any]]:
        with closing(duckdb.connect(str(folder / "answers.duckdb"))) as db:
            cursor = db.execute(sql)
            return [dict(zip((d[0] for d in cursor.description), row, strict=True)) for row in cursor.fetchall()]

    def test_an_amount_that_does_not_fit_is_refused_and_not_rounded(self, bench: Bench) -> None:
        bench.start()
        place = r"line 1 of the input, GetAccountsDetail\[0\].Accounts\[0\].Transactions\[0\].Debit: "
        with pytest.raises(StoreError, match=place) as raised:
            bench.put(0, {2: body(), 1: body(Debit=1).replace(b": 1}", b": 123456789012345678901.5}")})
        assert "5678901" not in str(raised.value)
        assert self.read(bench) == {}

    def test_a_database_of_sqlite_is_refused_and_nothing_is_downloaded_for_it(self, tmp_path: Path) -> None:
        path = tmp_path / "sqlite.db"
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE mine (x)")
        with pytest.raises(StoreError, match="sqlite") as raised:
            Bench(tmp_path / "job", lambda: DuckDBStore(path)).start()
        assert "download" not in str(raised.value)

    def test_a_database_that_could_not_be_made_is_not_left_half_made(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = bench.place.folder / "answers.duckdb"

        def half(where: str, **options: Any) -> None:
            Path(where).write_bytes(bytes(4096))
            raise duckdb.IOException("Input/output error")

        for kill in (False, True):  # after a kill, the files are not removed
            with monkeypatch.context() as patched, pytest.raises(StoreError, match="Input/output error"):
                patched.setattr(duckdb, "connect", half)
                if kill:
                    patched.setattr(Path, "unlink", lambda path, missing_ok=False: None)
                bench.start()
            assert not path.exists()
        bench.start().put(0)
        assert self.read(bench) == expected(0)
        assert {entry.name.removeprefix("answers.duckdb") for entry in path.parent.glob("answers*")} <= {"", ".wal"}

    def test_memory_is_limited_and_the_rest_of_a_large_shard_goes_to_the_folder_of_spools(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("flinks_async.bulk.stores.duckdb._MEMORY", 24)
        make_folder(bench.folder / SPOOLS)
        bodies = {line: payload((2, 100), seed=line) for line in range(1, 601)}
        spilled: list[str] = []
        with at_points(lambda _: spilled.extend(path.name for path in bench.folder.glob("spools/duckdb_temp*"))):
            bench.start().put(0, bodies)
        assert spilled
        assert bench.problems() == []
        bench.store.close()
        assert [*bench.folder.glob("spools/*"), *bench.folder.glob("*.tmp")] == []

    @pytest.mark.parametrize("field", ["Description", "New"])
    def test_a_text_larger_than_the_memory_is_stored(self, bench: Bench, field: str) -> None:
        make_folder(bench.folder / SPOOLS)
        text = "x" * 20_000_000
        bench.start().put(0, {1: body(Id="1"), 2: body(Id="2", **{field: text})})
        bench.put(1)
        assert bench.problems() == []
        bench.store.close()
        found = self.query(bench.folder, "SELECT description, extra FROM transactions WHERE id = '2'")
        expected_extra = None if field == "Description" else json.dumps({"New": text}, separators=(",", ":"))
        assert found == [{"description": text if field == "Description" else None, "extra": expected_extra}]

    def test_files_are_the_owners_alone(self, bench: Bench) -> None:
        bench.start().put_missing(0)
        modes = {path.name: path.stat().st_mode & 0o777 for path in bench.folder.glob("answers*")}
        assert modes == {"answers.duckdb": 0o600, "answers.duckdb.wal": 0o600}

    def test_the_log_is_the_owners_alone_before_answers_are_in_it(self, bench: Bench) -> None:
        bench.start().put_missing(0)
        bench.start()
        log = bench.folder / "answers.duckdb.wal"
        assert not log.exists(), "DuckDB creates it again"
        modes = {}
        with at_points(lambda point: modes.update({point: log.exists() and log.stat().st_mode & 0o777})):
            bench.put(1)
        assert modes["database committed"] == 0o600
        bench.start()
        assert not log.exists()

    def test_a_process_that_is_killed_after_a_shard_leaves_it_and_lets_nobody_in_before(self, bench: Bench) -> None:
        program = (
            "import sys; from pathlib import Path\n"
            "from flinks_async.bulk.stores.duckdb import DuckDBStore\n"
            "from tests.bulk.store_contract import Bench\n"
            f"bench = Bench(Path({str(bench.folder)!r}), DuckDBStore).start(); bench.put(0); print('put', flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", program]
        with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"put\n"
            with pytest.raises(StoreError, match="lock"):
                bench.start()
            process.kill()
        bench.start().put_missing(1)
        assert sorted(bench.commits) == [0, 1]
        assert self.read(bench) == expected(0, 1)

    @pytest.mark.parametrize("ledger_has_it", [False, True])
    def test_a_log_that_a_power_cut_has_torn_is_cut_and_a_copy_is_kept(
        self, bench: Bench, ledger_has_it: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        database, log, copy = (bench.folder / f"answers.duckdb{suffix}" for suffix in ("", ".wal", ".wal.torn"))
        bench.start().put(0)
        synced = log.stat().st_size
        bench.put(1)
        before, torn = database.read_bytes(), bytearray(log.read_bytes())
        torn[synced + (len(torn) - synced) // 2] ^= 1
        bench.store.close()
        database.write_bytes(before)
        log.write_bytes(torn)
        if not ledger_has_it:
            del bench.commits[1]

        with pytest.raises(StoreError, match=r"its log is torn, probably by a power cut\. Run the job again"):
            bench.look()
        assert log.read_bytes() == torn
        with pytest.raises(StoreError, match="lacks 1 shards") if ledger_has_it else nullcontext():
            bench.start()
        assert copy.read_bytes() == torn
        assert copy.stat().st_mode & 0o777 == 0o600
        assert f"{copy} is a copy" in caplog.text
        if not ledger_has_it:
            bench.put(1)
            assert self.read(bench) == expected(0, 1)
            assert bench.problems() == []
            bench.store.purge()
            assert not copy.exists()

    def test_something_else_than_a_database(self, bench: Bench) -> None:
        (bench.folder / "answers.duckdb").write_bytes(b"something else" * 1000)
        with pytest.raises(StoreError, match="not a valid DuckDB database"):
            bench.start()
