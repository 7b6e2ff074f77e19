"""`flinks-async doctor` on directories of jobs, databases, object storage and clusters, good ones and bad ones."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flinks_async.bulk import InputFile, Job, JSONLFile, SQLiteStore, directory
from flinks_async.bulk.stores.duckdb import DuckDBStore
from flinks_async.bulk.stores.postgresql import PostgreSQLStore
from flinks_async.cli import Exit
from flinks_async.testing import FlinksServer
from tests.cli_support import SECRET, cli
from tests.raw_server import Hang, RawServer
from tests.test_cli_doctor import doctor, states

from .postgresql_server import Server

# --- jobs -------------------------------------------------------------------------------------------------------------


def start(folder: Path, store: Any = None) -> Job:
    source = folder / "tokens.txt"
    source.write_text("a\n")
    return Job.start(folder / "job", InputFile(source), store or JSONLFile(folder / "out"))


@pytest.fixture
async def at(tmp_path: Path) -> Any:
    async with FlinksServer(auth_secret=SECRET) as server:

        async def call(code: Exit = Exit.OK, *args: object, **more: Any) -> dict[str, list[dict[str, str]]]:
            return await doctor(*(args or (tmp_path / "job",)), code=code, server=server, **more)

        yield call


Doctor = Callable[..., Awaitable[dict[str, list[dict[str, str]]]]]


async def test_a_job_that_runs_and_one_that_does_not(tmp_path: Path, at: Doctor) -> None:
    with start(tmp_path, SQLiteStore()):
        findings = await at()
        assert findings["directory"][0]["text"].endswith("holds a job that is running; 0 of 1 shard done")
        assert "database" not in findings  # the job itself holds a lock now and then
    findings = await at()
    assert "not running" in findings["directory"][0]["text"]
    assert states(findings, "directory", "disk") == ["ok", "ok"]


async def test_a_directory_that_others_can_write_to_is_a_problem(tmp_path: Path, at: Doctor) -> None:
    start(tmp_path).close()
    (tmp_path / "job").chmod(0o777)
    findings = await at(Exit.FAILED)
    assert states(findings, "directory") == ["problem"]


async def test_a_network_file_system_and_a_full_disk(
    tmp_path: Path, at: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text("36 35 98:0 / / rw shared:1 - nfs4 server:/x rw\n")
    monkeypatch.setattr(directory, "_MOUNTS", mounts)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1 << 25))
    findings = await at(Exit.FAILED)
    assert "network file system" in findings["directory"][0]["text"]
    assert states(findings, "disk") == ["warning"]
    assert findings["disk"][0]["text"] == "32 MiB free"


async def test_a_full_disk_is_a_problem_of_room(tmp_path: Path, at: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path).close()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1000))
    findings = await at(Exit.FAILED)
    assert states(findings, "directory", "disk") == ["ok", "problem"]
    (tmp_path / "job" / "ledger.sqlite").write_bytes(b"cut")
    findings = await at(Exit.FAILED)
    assert [findings[check][0]["advice"] for check in ("directory", "disk")] == [
        "Make room: a full disk stops a job, which can be resumed"
    ] * 2


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "Make room"), (errno.EDQUOT, "Make room"), (errno.EROFS, "another directory")]
)
async def test_a_directory_that_takes_no_files(
    tmp_path: Path, at: Doctor, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    findings = await at(Exit.FAILED)
    assert findings["directory"][0]["text"] == f"{tmp_path} cannot be written: {os.strerror(number)}"
    assert advice in findings["directory"][0]["advice"]


@pytest.mark.parametrize("option", [(), ("--out",)])
async def test_a_name_that_is_too_long_is_no_crash(tmp_path: Path, option: tuple[str, ...]) -> None:
    long = f"{tmp_path}/{'x' * 300}"
    result = await cli("doctor", *option, f"file://{long}" if option else long)
    assert result.exit_code in (Exit.OK, Exit.FAILED), result.output


async def test_the_database_of_a_job_and_its_rights(tmp_path: Path, at: Doctor, postgresql: Server) -> None:
    schema = postgresql.new_schema()
    postgresql.sql("DROP ROLE IF EXISTS narrow")
    postgresql.sql("CREATE ROLE narrow LOGIN")
    conninfo = postgresql.conninfo.replace("user=owner", "user=narrow")
    start(tmp_path, PostgreSQLStore(postgresql.conninfo, schema)).close()
    findings = await at()
    assert findings["database"][0]["text"].endswith("reachable, and the rights suffice")
    manifest = tmp_path / "job" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("user=owner", "user=narrow"))
    findings = await at(Exit.FAILED)
    assert (
        findings["database"][0]["advice"] == f"An administrator runs: GRANT USAGE, CREATE ON SCHEMA {schema} TO narrow"
    )
    postgresql.sql(f"GRANT USAGE, CREATE ON SCHEMA {schema} TO narrow")
    postgresql.sql(f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA {schema} TO narrow")
    findings = await at(Exit.FAILED)
    assert "DELETE on accounts" in findings["database"][0]["text"]
    postgresql.sql(findings["database"][0]["advice"].partition(": ")[2])
    findings = await at()
    assert states(findings, "database") == ["ok"]
    environment = {"PGHOST": conninfo.split()[0].partition("=")[2], "PGDATABASE": "postgres", "PGUSER": "narrow"}
    findings = await at(Exit.FAILED, "--postgresql", **environment)
    assert "may not be created" in findings["database"][0]["text"]


async def test_a_database_that_cannot_be_reached(at: Doctor, tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    findings = await at(Exit.FAILED, "--postgresql", PGHOST=str(tmp_path), PGPASSWORD=SECRET)
    assert states(findings, "database") == ["problem"]
    assert "PGHOST" in findings["database"][0]["advice"]


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
async def test_answers_that_another_program_has_locked(tmp_path: Path, at: Doctor, kind: str) -> None:
    if kind == "duckdb":
        pytest.importorskip("duckdb")
    path = tmp_path / "job" / f"answers.{kind}"
    start(tmp_path, SQLiteStore() if kind == "sqlite" else DuckDBStore()).close()
    findings = await at()
    assert states(findings, "database", "tokens") == ["ok", "ok"]
    hold = {
        "sqlite": "import sqlite3; db = sqlite3.connect(sys.argv[1]); db.execute('BEGIN EXCLUSIVE')",
        "duckdb": "import duckdb; db = duckdb.connect(sys.argv[1])",
    }[kind]
    program = f"import sys; {hold}; print('locked', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        findings = await at(Exit.FAILED)
        holder.kill()
    assert states(findings, "database") == ["problem"]
    assert "lock" in findings["database"][0]["text"].lower()


async def test_tokens_that_are_gone_or_changed_and_a_broken_ledger(tmp_path: Path, at: Doctor) -> None:
    start(tmp_path).close()
    (tmp_path / "tokens.txt").write_text("a\nb\n")
    findings = await at(Exit.FAILED)
    assert "4 bytes instead of 2" in findings["tokens"][0]["text"]
    (tmp_path / "tokens.txt").unlink()
    findings = await at(Exit.FAILED)
    assert "--tokens" in findings["tokens"][0]["advice"]
    (tmp_path / "job" / "ledger.sqlite").write_bytes(b"not a database")
    findings = await at(Exit.FAILED)
    assert "ledger.sqlite" in findings["directory"][0]["text"]


# --- object storage and clusters --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.backend
async def test_object_storage_is_written_listed_read_and_cleaned(tmp_path: Path, at: Doctor) -> None:
    from .objects.s3 import running

    with running() as s3:
        environment = s3.environment
        findings = await at(Exit.FAILED, "--out", "s3://bucket/folder", **environment)
        assert "the bucket does not exist" in findings["storage"][0]["text"]
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{s3.port}/bucket", method="PUT")).close()
        findings = await at(Exit.OK, "--out", "s3://bucket/folder", **environment)
        assert findings["storage"][0]["text"].endswith("can be written, listed, read and deleted")
        assert s3.count("PUT") >= 2
        assert s3.count("POST") == 1  # the object is deleted
        s3.fault = lambda asked: 403 if asked.method == "GET" else None
        findings = await at(Exit.FAILED, "--out", "s3://bucket/folder", **environment)
        assert "cannot be listed: the object storage failed (status 403" in findings["storage"][0]["text"]
        assert "AWS_SECRET_ACCESS_KEY" in findings["storage"][0]["advice"]
    findings = await at(Exit.FAILED, "--out", "s3://bucket/folder", **environment)
    assert "there is no connection" in findings["storage"][0]["text"]


async def test_a_folder_for_answers_and_a_url_with_a_password(tmp_path: Path, at: Doctor) -> None:
    findings = await at(Exit.OK, "--out", f"file://{tmp_path}/new/folder")
    assert states(findings, "storage") == ["ok"]
    assert [*tmp_path.iterdir()] == []
    findings = await at(Exit.FAILED, "--out", f"s3://{SECRET}:canary@bucket/x")
    assert "must hold no user, password" in findings["storage"][0]["text"]


@pytest.mark.parametrize("scheme", ["dask", "ray"])
async def test_a_cluster_that_is_not_there(at: Doctor, scheme: str) -> None:
    pytest.importorskip({"dask": "distributed"}.get(scheme, scheme))
    findings = await at(Exit.FAILED, "--executor", f"{scheme}://127.0.0.1:1")
    assert "cannot be used: Connection refused" in findings["cluster"][0]["text"]
    findings = await at(Exit.FAILED, FLINKS_EXECUTOR=f"{scheme}://cluster.invalid:8786")
    assert "--insecure-cluster" in findings["cluster"][0]["text"] + findings["cluster"][0]["advice"]
    findings = await at(Exit.FAILED, FLINKS_EXECUTOR=f"{scheme}://user:{SECRET}@cluster.invalid:8786")
    assert "must be dask://HOST:PORT" in findings["cluster"][0]["text"]


async def test_a_scheduler_that_never_answers_and_one_whose_certificates_are_not_set(
    at: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    from flinks_async.bulk.executors import engines

    monkeypatch.setattr(engines, "LONGEST_LOOK", 0.5)
    async with RawServer([Hang()]) as silent:
        place = silent.base_url.removeprefix("http://")
        findings = await at(Exit.FAILED, "--executor", f"dask://{place}")
        assert findings["cluster"][0]["text"] == f"dask://{place} cannot be used: it does not answer in time"
        findings = await at(Exit.FAILED, "--executor", f"dask+tls://{place}")
    assert findings["cluster"][0]["text"] == f"no certificates are set for tls://{place}"
    assert "distributed.comm.tls" in findings["cluster"][0]["advice"]


async def test_a_redis_that_is_not_there(at: Doctor) -> None:
    pytest.importorskip("redis")
    findings = await at(Exit.FAILED, "--redis", REDIS_URL=f"redis://:{SECRET}@127.0.0.1:1/0")
    assert findings["redis"][0]["text"].endswith("cannot be used: there is no connection (ConnectionError)")
    findings = await at(Exit.FAILED, "--redis", REDIS_URL=None)
    assert findings["redis"][0]["text"] == "REDIS_URL is not set"
